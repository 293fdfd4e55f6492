# Copyright (C) 2026 anomalib-zsclip contributors
# SPDX-License-Identifier: Apache-2.0

"""Object families: things on a background.

A family is a function ``(style, rng, canvas)`` that draws one specimen on a :class:`Canvas`. ``style`` fixes the
product, ``rng`` the specimen, as for the textures. The canvas keeps the silhouette, so that defects know where the
object is, and the background, so that a missing part shows it.
"""

from __future__ import annotations

from .canvas import BACKGROUNDS, Canvas, background, imprint, material
from .mechanical import (
    board,
    bottle_top,
    bracket,
    brush,
    button,
    cable,
    can_lid,
    capsule,
    coin,
    gear,
    label,
    nut,
    pill,
    screw,
    washer,
)
from .products import (
    bearing,
    bottle,
    connector,
    cookie,
    dial,
    fruit,
    leaf,
    plate_with_border,
    rod,
    sheet_with_fittings,
    spring,
    transistor,
    tray,
    widget,
    zipper,
)

__all__ = [
    "BACKGROUNDS",
    "Canvas",
    "background",
    "bearing",
    "board",
    "bottle",
    "bottle_top",
    "bracket",
    "brush",
    "button",
    "cable",
    "can_lid",
    "capsule",
    "coin",
    "connector",
    "cookie",
    "dial",
    "fruit",
    "gear",
    "imprint",
    "label",
    "leaf",
    "material",
    "nut",
    "pill",
    "plate_with_border",
    "rod",
    "screw",
    "sheet_with_fittings",
    "spring",
    "transistor",
    "tray",
    "washer",
    "widget",
    "zipper",
]
