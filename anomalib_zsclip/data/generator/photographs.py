# Copyright (C) 2026 anomalib-zsclip contributors
# SPDX-License-Identifier: Apache-2.0

"""A family whose surfaces are photographs from a folder of your own, so that the defects are drawn on real ones.

The package holds no photographs. ``tools/texture_pool.py`` makes such a folder for the training of the built-in CLIP::

    FAMILIES["photograph"] = photograph_family("runs/textures/training")
"""

from __future__ import annotations

from functools import lru_cache
from pathlib import Path
from typing import TYPE_CHECKING

import cv2
import numpy as np

from .fields import Array, Rng, chance

if TYPE_CHECKING:
    from . import Family

#: Name of the family in captions and tables.
NAME = "photograph"
NOUNS = ("surface", "material", "wall", "floor", "panel", "texture", "sheet", "slab")
#: Photographs kept in memory by each process: 300 of 512 px take 240 MB.
CACHED = 300


def photograph_family(folder: Path | str) -> Family:
    """A texture family that cuts its pictures out of the photographs in ``folder``.

    Args:
        folder: holds JPEG or PNG files; which of them is drawn depends on their sorted names.

    Raises:
        ValueError: If there is no photograph in the folder.
    """
    from . import Family

    paths = sorted(str(p) for p in Path(folder).glob("*") if p.suffix.lower() in (".jpg", ".jpeg", ".png"))
    if not paths:
        msg = f"There is no JPEG or PNG file in folder {str(folder)!r}: name one that holds photographs of surfaces."
        raise ValueError(msg)

    @lru_cache(maxsize=CACHED)
    def read(path: str) -> Array:
        photograph = cv2.imread(path, cv2.IMREAD_COLOR)
        if photograph is None:
            msg = f"{path} cannot be read as a picture: take it out of the folder of photographs."
            raise ValueError(msg)
        return cv2.cvtColor(photograph, cv2.COLOR_BGR2RGB)

    def draw(style: Rng, rng: Rng, size: int) -> Array:
        photograph = read(paths[int(style.integers(len(paths)))])
        grey, turned, bright = chance(style, 0.4), chance(style, 0.5), style.uniform(0.2, 0.7)
        share = style.uniform(0.35, 1)  # of the shorter side: from a close view to the whole
        for _ in range(5):
            crop = _cut(photograph, share, rng, size)
            if crop.std() > 0.02 and crop.mean() > 0.08:  # a dark or empty corner shows no defect
                break
        if grey:
            crop = np.repeat(crop.mean(2, keepdims=True), 3, 2)
        if turned:
            crop = np.rot90(crop).copy()
        # Textures of games are dark, cameras expose for the surface; more than that would only raise the noise.
        gain = np.clip(bright / max(float(crop.mean()), 0.01), 0.6, 3.0)
        return np.clip(crop * np.float32(gain), 0, 1)

    return Family(NAME, "texture", NOUNS, draw)


def _cut(photograph: Array, share: float, rng: Rng, size: int) -> Array:
    """A random square of the photograph, ``(size, size, 3)`` in [0, 1]."""
    side = max(int(min(photograph.shape[:2]) * share), 1)
    y, x = (int(rng.integers(n - side + 1)) for n in photograph.shape[:2])
    method = cv2.INTER_AREA if side > size else cv2.INTER_CUBIC
    crop = cv2.resize(photograph[y : y + side, x : x + side], (size, size), interpolation=method)
    return crop.astype(np.float32) / 255
