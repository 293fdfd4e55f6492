# Copyright (C) 2026 anomalib-zsclip contributors
# SPDX-License-Identifier: Apache-2.0

"""Texture families: surfaces that fill the image.

A family is a function ``(style, rng, size) -> image``, with ``image`` float32 RGB ``(size, size, 3)``. ``style`` fixes
the look of a product (colour, pitch, roughness) and is the same for all images of a data set; ``rng`` makes one
specimen of it.
"""

from __future__ import annotations

from .materials import (
    brushed_metal,
    carpet,
    cast_metal,
    concrete,
    corduroy,
    foam,
    granite,
    gravel,
    knit,
    leather,
    marble,
    orientation,
    plaid,
    plain,
    surface,
    terrazzo,
    tiles,
    twill,
    wood,
    woven,
)
from .patterns import (
    bricks,
    cardboard,
    circuit,
    cork,
    fur,
    honeycomb,
    noise_field,
    perforated,
    printed,
    roof,
    rubber,
    solar_cell,
    turned_metal,
    wire_grid,
)

__all__ = [
    "bricks",
    "brushed_metal",
    "cardboard",
    "carpet",
    "cast_metal",
    "circuit",
    "concrete",
    "corduroy",
    "cork",
    "foam",
    "fur",
    "granite",
    "gravel",
    "honeycomb",
    "knit",
    "leather",
    "marble",
    "noise_field",
    "orientation",
    "perforated",
    "plaid",
    "plain",
    "printed",
    "roof",
    "rubber",
    "solar_cell",
    "surface",
    "terrazzo",
    "tiles",
    "turned_metal",
    "twill",
    "wire_grid",
    "wood",
    "woven",
]
