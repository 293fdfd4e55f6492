# Copyright (C) 2026 anomalib-zsclip contributors
# SPDX-License-Identifier: Apache-2.0

"""From a scene to a photograph: light, lens, sensor, compression.

A :class:`Shot` is drawn once and then applied to any number of scenes, so that the good and the defective version of
a picture differ in the defect alone.
"""

from __future__ import annotations

import cv2
import numpy as np

from . import fields as f
from .fields import Array, Rng


class Shot:
    """One way of taking a picture.

    Args:
        style: fixes the studio (mean light, lens, sensor, grey or colour).
        rng: the small differences from picture to picture.
        size: side of the images.
        wild: how far the conditions stray, 0 for a clean studio, 1 for the training data.
    """

    def __init__(self, style: Rng, rng: Rng, size: int, wild: float = 1.0) -> None:
        x, y = f.grid(size)
        self.grey = f.chance(style, 0.33)
        self.weights = np.array(style.dirichlet([4, 6, 3]), np.float32)
        light = np.ones((size, size), np.float32)
        if f.chance(style, 0.65):
            t, depth = style.uniform(0, 2 * np.pi) + rng.normal(0, 0.1), style.uniform(0.05, 0.45) * wild
            light += depth * ((x - 0.5) * np.cos(t) + (y - 0.5) * np.sin(t))
        if f.chance(style, 0.4):
            cx, cy = style.uniform(0.1, 0.9, 2) + rng.normal(0, 0.03, 2)
            spot = np.exp(-((x - cx) ** 2 + (y - cy) ** 2) / style.uniform(0.05, 0.5))
            light += style.uniform(-0.2, 0.35) * wild * spot
        if f.chance(style, 0.3):
            light -= style.uniform(0.1, 0.6) * wild * ((x - 0.5) ** 2 + (y - 0.5) ** 2)
        if f.chance(style, 0.12):  # the soft shadow of something outside the picture
            t, edge = style.uniform(0, 2 * np.pi), style.uniform(-0.3, 0.3) + rng.normal(0, 0.03)
            side = (x - 0.5) * np.cos(t) + (y - 0.5) * np.sin(t) - edge
            light *= 1 - style.uniform(0.1, 0.4) * wild * f.step(side, 0, style.uniform(0.05, 0.3))
        self.light = np.clip(light * (1 + rng.normal(0, 0.02)), 0.3, 1.8)[..., None].astype(np.float32)
        self.tint = np.clip(1 + 0.06 * wild * style.standard_normal(3), 0.75, 1.25).astype(np.float32)
        self.contrast = f.log_uniform(style, 0.45, 1.25) if f.chance(style, 0.5 * wild) else 1.0
        self.level = style.uniform(-0.15, 0.15) * wild
        self.gamma = f.log_uniform(style, 0.65, 1.5) if f.chance(style, 0.5 * wild) else 1.0
        self.blur = f.log_uniform(style, 0.3, 1.6) * size / 128 if f.chance(style, 0.4 * wild) else 0.0
        self.noise = None
        if f.chance(style, 0.75):
            strength = f.log_uniform(style, 0.003, 0.05 if wild > 0.5 else 0.015)
            self.noise = strength * rng.standard_normal((size, size, 1 if self.grey else 3), dtype=np.float32)
            if f.chance(style, 0.3):
                self.noise = 1.6 * cv2.GaussianBlur(self.noise, (3, 3), 0).reshape(size, size, -1)
        self.jpeg = int(style.integers(35, 95)) if f.chance(style, 0.35 * wild) else 0
        self.band = None
        if wild > 0.5 and f.chance(style, 0.08):  # a dark or bright margin, as in scans and crops
            self.band = (
                int(style.integers(4)),
                int(size * style.uniform(0.03, 0.25)),
                float(style.choice([0.0, 0.03, 1.0])),
            )

    def take(self, image: Array) -> Array:
        """Photograph a scene ``(size, size, 3)`` in [0, 1]; returns uint8 RGB of the same shape."""
        image = np.clip(image, 0, 1) * self.light
        if self.band is not None:
            side, width, value = self.band
            image = np.rot90(image, side).copy()
            image[:width] = value
            image = np.ascontiguousarray(np.rot90(image, -side))
        image = np.repeat((image @ self.weights)[..., None], 3, 2) if self.grey else image * self.tint
        image = f.blur(image, self.blur)
        if self.contrast != 1.0 or self.level:
            image = (image - 0.5) * self.contrast + 0.5 + self.level
        if self.gamma != 1.0:
            image = np.power(np.clip(image, 0, 1), self.gamma)
        if self.noise is not None:
            image = image + self.noise
        pixels = np.clip(image * 255 + 0.5, 0, 255).astype(np.uint8)
        if self.jpeg:
            _, code = cv2.imencode(".jpg", pixels, [cv2.IMWRITE_JPEG_QUALITY, self.jpeg])
            pixels = cv2.imdecode(code, cv2.IMREAD_COLOR)
        return pixels
