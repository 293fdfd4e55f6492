# Copyright (C) 2026 anomalib-zsclip contributors
# SPDX-License-Identifier: Apache-2.0


"""The scene that a defect changes, and where and how it may be changed."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import cv2
import numpy as np

from .. import fields as f
from ..fields import Array, Rng

TAU = 2 * np.pi


@dataclass
class Scene:
    """A picture before the camera.

    Args:
        image: what is seen, ``(size, size, 3)``.
        backdrop: what is seen where the object is not, ``(size, size, 3)``.
        silhouette: where the object is, ``(size, size)``; all ones for a texture.
        donor: makes an unrelated texture for foreign material, ``(size, size, 3)``; called only where one is needed.
    """

    image: Array
    backdrop: Array
    silhouette: Array
    donor: Callable[[], Array]

    @property
    def size(self) -> int:
        """Side of the image in pixels."""
        return self.image.shape[0]

    def cut(self, window: tuple[slice, slice]) -> Scene:
        """The part of the scene inside a square window, as a scene of its own."""
        parts = (self.image[window], self.backdrop[window], self.silhouette[window])
        return Scene(*parts, donor=lambda: self.donor()[window])


def locate(scene: Scene, rng: Rng, inside: float = 0.0) -> tuple[float, float]:
    """A point on the object, at least about ``inside`` image sides away from its border if there is one."""
    solid = scene.silhouette > 0.5
    if inside > 0 and not solid.all():
        radius = max(int(inside * scene.size), 1)
        eroded = cv2.erode(solid.astype(np.uint8), np.ones((2 * radius + 1,) * 2, np.uint8)) > 0
        solid = eroded if eroded.any() else solid
    found = np.flatnonzero(solid)
    if found.size == 0:
        return 0.5, 0.5
    index = int(found[int(rng.integers(found.size))])
    return (index % scene.size + 0.5) / scene.size, (index // scene.size + 0.5) / scene.size


def rim(scene: Scene, rng: Rng) -> tuple[float, float]:
    """A point on the border of the object, or of the image where the object fills it."""
    solid = (scene.silhouette > 0.5).astype(np.uint8)
    edge = solid - cv2.erode(solid, np.ones((3, 3), np.uint8), borderType=cv2.BORDER_CONSTANT, borderValue=0)
    found = np.flatnonzero(edge)
    if found.size == 0:
        return 0.5, 0.5
    index = int(found[int(rng.integers(found.size))])
    return (index % scene.size + 0.5) / scene.size, (index // scene.size + 0.5) / scene.size


def _spread(rng: Rng, strength: float, small: float, large: float) -> float:
    """A size in image sides that grows with the strength."""
    return small * (large / small) ** float(np.clip(rng.normal(0.25 + 0.5 * strength, 0.25), 0, 1))


def _walk(rng: Rng, x: float, y: float, length: float, bend: float, points: int = 12) -> Array:
    """A wandering path of ``length`` centred near ``(x, y)``; ``bend`` radians of change per point."""
    direction = rng.uniform(0, TAU) + np.cumsum(rng.normal(0, bend, points))
    steps = np.stack([np.cos(direction), np.sin(direction)], 1) * length / points
    path = np.cumsum(steps, 0)
    return path - path.mean(0) + [x, y]


def _ink(scene: Scene, alpha: Array, rng: Rng, strength: float, dark: float = 0.5) -> Array:
    """A colour that stands out from what is under ``alpha``: darker or lighter by the strength."""
    weight = float(alpha.sum()) + 1e-6
    local = (scene.image * alpha[..., None]).sum((0, 1)) / weight
    shift = 0.1 + 0.5 * strength
    target = 0.0 if f.chance(rng, dark) else 1.0
    if abs(float(local.mean()) - target) < 0.2:
        target = 1.0 - target
    return (local + (target - local) * shift).astype(np.float32)


def _clip(scene: Scene, alpha: Array) -> Array:
    """Keep only what lies on the object."""
    return alpha * scene.silhouette


def _cover(scene: Scene, alpha: Array, paint: Array) -> tuple[Array, Array]:
    return f.blend(scene.image, paint, alpha), alpha
