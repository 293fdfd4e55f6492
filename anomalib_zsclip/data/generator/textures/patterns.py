# Copyright (C) 2026 anomalib-zsclip contributors
# SPDX-License-Identifier: Apache-2.0

"""Patterns: grids, walls, prints, and made surfaces."""

from __future__ import annotations

import cv2
import numpy as np

from .. import fields as f
from ..fields import Array, Rng
from .materials import _lattice, orientation

TAU = 2 * np.pi


def perforated(style: Rng, rng: Rng, size: int) -> Array:
    """A sheet with a regular pattern of holes or dots."""
    base = f.colour(style)
    other = base * 0.15 if f.chance(style, 0.5) else f.contrasting(style, base)
    a, b = _lattice(style, rng, size, 4, 16, f.chance(style, 0.5))
    distance = np.sqrt(a * a + b * b) if f.chance(style, 0.75) else np.maximum(np.abs(a), np.abs(b))
    hole = 1 - f.step(distance, style.uniform(0.15, 0.36), 0.08)
    image = f.paint(base, 1 + 0.04 * f.fractal(rng, size, f.log_uniform(style, 3, 40)))
    return f.blend(image, other.astype(np.float32), hole)


def wire_grid(style: Rng, rng: Rng, size: int) -> Array:
    """A grid of wires or bars over a backing."""
    wire, back = f.colour(style, grey=0.7, low=0.4), f.colour(style, grey=0.7, high=0.5)
    if f.chance(style, 0.4):
        wire, back = back, wire
    width, hexagonal = style.uniform(0.06, 0.2), f.chance(style, 0.25)
    a, b = _lattice(style, rng, size, 4, 13, False)
    if hexagonal:
        a, b = a + b, a - b
        a, b = a - np.floor(a + 0.5), b - np.floor(b + 0.5)
    bars = np.maximum(f.step(width - np.abs(a), 0, 0.08), f.step(width - np.abs(b), 0, 0.08))
    rounding = 1 - 0.5 * np.minimum(np.abs(a), np.abs(b)) / max(width, 0.05)
    base = f.paint(back, 1 + 0.05 * f.fractal(rng, size, 6))
    return f.blend(base, f.paint(wire, np.clip(rounding, 0.4, 1)), bars)


def bricks(style: Rng, rng: Rng, size: int) -> Array:
    """A brick wall or paving."""
    base, mortar = (f.earthy(style) if f.chance(style, 0.6) else f.colour(style)), f.colour(style, grey=0.9)
    rows, ratio, width = style.integers(4, 11), style.uniform(1.6, 3.2), style.uniform(0.05, 0.14)
    u, v = f.rotated(size, rng.normal(0, 0.015), (rng.random(), rng.random()))
    b = v * rows
    a = u * rows / ratio + 0.5 * (np.floor(b) % 2)
    edge = np.minimum((0.5 - np.abs(a - np.floor(a) - 0.5)) * ratio, 0.5 - np.abs(b - np.floor(b) - 0.5))
    tone = 1 + style.uniform(0.03, 0.15) * rng.standard_normal((40, 40), dtype=np.float32)
    face = f.paint(base, tone[np.floor(a).astype(int) % 40, np.floor(b).astype(int) % 40])
    face = face * (1 + 0.1 * f.fractal(rng, size, 15, 0.7, 3))[..., None]
    return f.blend(face, mortar, 1 - f.step(edge + 0.015 * f.smooth_noise(rng, size, 20), width, 0.06))


def cardboard(style: Rng, rng: Rng, size: int) -> Array:
    """Cardboard or paper with fibres and faint flutes."""
    base = f.earthy(style) if f.chance(style, 0.7) else f.colour(style, low=0.5)
    _u, v = f.rotated(size, orientation(style, rng))
    flutes = style.uniform(0, 0.06) * np.sin(TAU * f.log_uniform(style, 12, 40) * v)
    fibres = style.uniform(0.01, 0.05) * f.smooth_noise(rng, size, size * 0.12, size * 0.6)
    return f.paint(base, 1 + flutes + fibres + 0.03 * f.fractal(rng, size, 3))


def honeycomb(style: Rng, rng: Rng, size: int) -> Array:
    """Closed cells of similar size: honeycomb, scales, cobbles."""
    base = f.colour(style)
    wall = f.contrasting(style, base, 0.2)
    distance, value = f.cells(rng, size, int(f.log_uniform(style, 30, 350)), jitter=style.uniform(0.05, 0.6))
    edges = f.cell_edges(value, style.uniform(0.004, 0.016) * size)
    face = f.paint(base, 1.05 - 0.3 * distance * style.random() + style.uniform(0, 0.2) * (value - 0.5))
    return f.blend(face, wall, edges * style.uniform(0.5, 1))


def cork(style: Rng, rng: Rng, size: int) -> Array:
    """Pressed granules of two tones: cork, chipboard, particle board."""
    base = f.earthy(style)
    _, value = f.cells(rng, size, int(f.log_uniform(style, 150, 2500)))
    image = f.paint(base, 0.8 + style.uniform(0.15, 0.45) * value)
    return image * (1 + 0.06 * f.fractal(rng, size, 25, 0.8, 2))[..., None]


def printed(style: Rng, rng: Rng, size: int) -> Array:
    """A repeated printed motif: wallpaper, wrapping, foil."""
    base = f.colour(style)
    ink = f.contrasting(style, base, 0.25)
    tile_size = max(int(size * style.uniform(0.11, 0.34)), 10)
    tile = np.zeros((tile_size, tile_size), np.float32)
    for _ in range(int(style.integers(1, 4))):
        cx, cy, radius = style.uniform(0.25, 0.75), style.uniform(0.25, 0.75), style.uniform(0.08, 0.28)
        kind = style.integers(0, 4)
        if kind == 0:
            shape = f.disc(tile_size, cx, cy, radius)
        elif kind == 1:
            shape = f.disc(tile_size, cx, cy, radius) - f.disc(tile_size, cx, cy, radius * 0.6)
        elif kind == 2:
            outline = f.regular(int(style.integers(3, 7)), radius, radius * style.uniform(0.4, 0.9))
            shape = f.polygon(tile_size, f.turn(outline, style.uniform(0, TAU), cx, cy))
        else:
            shape = f.polygon(tile_size, f.turn(f.blob_outline(style, radius), 0, cx, cy))
        tile = np.maximum(tile, shape)
    repeats = int(np.ceil(1.5 * size / tile_size)) + 1
    sheet = np.tile(tile, (repeats, repeats))
    angle, scale = orientation(style, rng), 1.0
    matrix = cv2.getRotationMatrix2D((sheet.shape[1] / 2, sheet.shape[0] / 2), np.degrees(angle), scale)
    matrix[:, 2] += size / 2 - sheet.shape[0] / 2 + rng.uniform(-0.5, 0.5, 2) * tile_size
    pattern = cv2.warpAffine(sheet, matrix, (size, size), flags=cv2.INTER_LINEAR, borderMode=cv2.BORDER_REFLECT)
    return f.blend(f.paint(base, 1 + 0.03 * f.fractal(rng, size, 5)), ink, pattern * style.uniform(0.5, 1))


def noise_field(style: Rng, rng: Rng, size: int) -> Array:
    """Two or three colours mixed by noise of any spectrum: camouflage, clouds, rust bloom, moss."""
    first = f.colour(style)
    image = np.broadcast_to(first, (size, size, 3))
    for _ in range(int(style.integers(1, 4))):
        other = f.near(style, first, 0.25) if f.chance(style, 0.6) else f.colour(style)
        cells, rough, ratio = f.log_uniform(style, 2, 50), style.uniform(0.3, 1), f.log_uniform(style, 0.2, 5)
        field = f.fractal(rng, size, cells, rough, 3, ratio)
        image = f.blend(
            image, other, style.uniform(0.3, 1) * f.step(field, style.uniform(-0.8, 0.8), style.uniform(0.1, 3))
        )
    return image


def turned_metal(style: Rng, rng: Rng, size: int) -> Array:
    """A face turned on a lathe or spun: concentric or swirled marks."""
    base = np.full(3, style.uniform(0.25, 0.8), np.float32)
    x, y = f.grid(size)
    cx, cy = style.uniform(-0.6, 1.6, 2) + rng.normal(0, 0.01, 2)
    radius = np.sqrt((x - cx) ** 2 + (y - cy) ** 2) + 0.002 * f.smooth_noise(rng, size, 4)
    profile = rng.standard_normal(512).astype(np.float32)
    profile = cv2.GaussianBlur(profile[None], (0, 0), style.uniform(0.6, 3))[0] * style.uniform(1, 2)
    pitch = style.uniform(60, 200)
    marks = np.interp((radius * pitch) % 511, np.arange(512), profile).astype(np.float32)
    angle = np.arctan2(y - cy, x - cx)
    sheen = 0.15 * np.cos(2 * angle + style.uniform(0, TAU)).astype(np.float32)
    return f.paint(base, 1 + f.log_uniform(style, 0.04, 0.16) * marks + sheen * style.random())


def solar_cell(style: Rng, rng: Rng, size: int) -> Array:
    """A crystalline cell with fine fingers and bus bars."""
    base = f.colour(style, grey=0.4, high=0.45)
    line = f.colour(style, grey=0.9, low=0.55)
    _, value = f.cells(rng, size, int(f.log_uniform(style, 10, 120)))
    image = f.paint(base, 1 + style.uniform(0, 0.5) * (value - 0.5) + 0.03 * f.fractal(rng, size, 8))
    u, v = f.rotated(size, rng.normal(0, 0.01), (rng.random(), rng.random()))
    fingers, bars = f.log_uniform(style, 10, 26), f.log_uniform(style, 1.2, 4)
    image = f.blend(image, line, style.uniform(0.2, 0.7) * f.step(np.cos(TAU * fingers * u), 0.8, 0.3))
    return f.blend(image, line, f.step(np.cos(TAU * bars * v), style.uniform(0.9, 0.98), 0.03))


def fur(style: Rng, rng: Rng, size: int) -> Array:
    """Fibres along a flowing direction: fur, fibreglass, straw, brushed felt."""
    base = f.colour(style)
    flow = f.smooth_noise(rng, size, style.uniform(1, 3)) * style.uniform(0.05, 0.5)
    noise = rng.standard_normal((size, size), dtype=np.float32)
    length = max(int(size * style.uniform(0.04, 0.12)), 3)
    streaks = cv2.blur(noise, (length, 1)) * np.sqrt(length)
    streaks = f.warp(streaks, np.zeros_like(flow), flow * size * 0.3)
    angle = orientation(style, rng)
    if abs(np.sin(angle)) > 0.7:
        streaks = streaks.T
    return f.paint(base, 1 + f.log_uniform(style, 0.06, 0.25) * streaks)


def roof(style: Rng, rng: Rng, size: int) -> Array:
    """Overlapping rows of scales or shingles."""
    base = f.colour(style)
    rows = f.log_uniform(style, 4, 12)
    u, v = f.rotated(size, orientation(style, rng), (rng.random(), rng.random()))
    a, b = u * rows, v * rows
    a = a + 0.5 * (np.floor(b) % 2)
    bow = 0.35 * style.random() * np.cos(TAU * a)
    depth = (b + bow) - np.floor(b + bow)
    gap = f.step(0.5 - np.abs(a - np.floor(a) - 0.5), 0.05, 0.08)
    return f.paint(base, (0.55 + 0.45 * depth) * (0.7 + 0.3 * gap) + 0.05 * f.fractal(rng, size, 18, 0.8, 3))


def circuit(style: Rng, rng: Rng, size: int) -> Array:
    """Bare circuit board: parallel traces, bends and pads; the layout belongs to the product."""
    base = f.colour(style, grey=0.15, high=0.5)
    trace = f.contrasting(style, base, 0.15)
    layout: Array = np.zeros((size, size), np.float32)
    width = style.uniform(0.008, 0.02) * size
    for _ in range(int(style.integers(8, 22))):
        x, y = style.random(2)
        points = [(x, y)]
        for _ in range(int(style.integers(1, 4))):
            direction, length = style.integers(0, 8) * np.pi / 4, style.uniform(0.08, 0.45)
            x, y = x + length * np.cos(direction), y + length * np.sin(direction)
            points.append((x, y))
        layout = np.maximum(layout, f.polyline(size, np.array(points), width))
        layout = np.maximum(layout, f.disc(size, *points[0], 1.3 * width / size))
    shift = np.array([[1, 0, rng.normal(0, 0.01) * size], [0, 1, rng.normal(0, 0.01) * size]], np.float32)
    layout = cv2.warpAffine(layout, shift, (size, size), borderMode=cv2.BORDER_REPLICATE)
    return f.blend(f.paint(base, 1 + 0.03 * f.fractal(rng, size, 6)), trace, layout * style.uniform(0.5, 1))


def rubber(style: Rng, rng: Rng, size: int) -> Array:
    """Moulded surface with a raised pattern lit from the side: rubber mats, embossed sheet, knurling."""
    base = f.colour(style, grey=0.6, high=0.7)
    a, b = _lattice(style, rng, size, 5, 16, f.chance(style, 0.4))
    kind = style.integers(0, 3)
    distance = [np.sqrt(a * a + b * b), np.abs(a) + np.abs(b), np.maximum(np.abs(a), 2.2 * np.abs(b))][kind]
    height = 1 - f.step(distance, style.uniform(0.2, 0.4), style.uniform(0.1, 0.4))
    shade = f.relief(height * size * 0.05, style.uniform(0, TAU), style.uniform(0.2, 0.6))
    return f.paint(base, 1 + shade + 0.04 * f.fractal(rng, size, f.log_uniform(style, 4, 40)))
