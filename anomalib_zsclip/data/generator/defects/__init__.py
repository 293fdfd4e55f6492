# Copyright (C) 2026 anomalib-zsclip contributors
# SPDX-License-Identifier: Apache-2.0

"""Kinds of defects: each changes a part of a finished scene and says exactly which.

A kind is a function ``(scene, rng, strength) -> (image, alpha)``: the changed image and a field in [0, 1] that tells
where it was changed. ``strength`` in (0, 1] goes from barely visible to gross. The mask of a sample is where
``alpha`` is high and the pixels really differ.
"""

from __future__ import annotations

from .common import (
    bent,
    blowhole,
    broken,
    colour_spot,
    contamination,
    crack,
    cut,
    dent,
    fray,
    hole,
    misprint,
    missing_part,
    scratch,
    stain,
    thread,
    uneven,
)
from .further import bubble, burn, distortion, fold, glue, line_fault, patch, rust, scuff, smear
from .scene import Scene, locate, rim

__all__ = [
    "Scene",
    "bent",
    "blowhole",
    "broken",
    "bubble",
    "burn",
    "colour_spot",
    "contamination",
    "crack",
    "cut",
    "dent",
    "distortion",
    "fold",
    "fray",
    "glue",
    "hole",
    "line_fault",
    "locate",
    "misprint",
    "missing_part",
    "patch",
    "rim",
    "rust",
    "scratch",
    "scuff",
    "smear",
    "stain",
    "thread",
    "uneven",
]
