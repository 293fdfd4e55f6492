# Copyright (C) 2026 anomalib-zsclip contributors
# SPDX-License-Identifier: Apache-2.0

"""Texture families: surfaces that fill the image.

A family is a function ``(style, rng, size) -> image``, with ``image`` float32 RGB ``(size, size, 3)``. ``style`` fixes
the look of a product (colour, pitch, roughness) and is the same for all images of a data set; ``rng`` makes one
specimen of it.
"""

from __future__ import annotations

import cv2
import numpy as np

from . import fields as f
from .fields import Array, Rng

TAU = 2 * np.pi


def orientation(style: Rng, rng: Rng) -> float:
    """An orientation: mostly along the axes, with a little play from image to image."""
    base = style.choice([0.0, np.pi / 2, style.uniform(0, np.pi)], p=[0.35, 0.25, 0.4])
    return float(base + rng.normal(0, 0.03))


def surface(style: Rng, rng: Rng, size: int) -> Array:
    """A plain surface with cloudy brightness: painted sheet, plastic, skin, stone."""
    base, cells = f.colour(style), f.log_uniform(style, 1.5, 40)
    rough, ratio, depth = style.uniform(0.3, 0.95), f.log_uniform(style, 0.25, 4), f.log_uniform(style, 0.01, 0.22)
    tint = f.near(style, base, 0.2)
    field = f.fractal(rng, size, cells, rough, 4, ratio)
    return f.blend(f.paint(base, 1 + depth * field), tint, f.step(field, 0.5, 2.5) * 0.6)


def plain(style: Rng, rng: Rng, size: int) -> Array:
    """An almost uniform sheet of glass, plastic or paper."""
    base = f.colour(style, low=0.15, high=0.97)
    grain = f.log_uniform(style, 0.002, 0.03)
    return f.paint(base, 1 + grain * rng.standard_normal((size, size), dtype=np.float32))


def brushed_metal(style: Rng, rng: Rng, size: int) -> Array:
    """Metal with fine parallel grinding marks."""
    base = f.blend(np.full(3, style.uniform(0.25, 0.85), np.float32), f.colour(style), style.uniform(0, 0.25))
    depth, fine = f.log_uniform(style, 0.02, 0.14), style.uniform(0.4, 1.0)
    across, along = f.log_uniform(style, 1, 5), size * fine
    vertical = f.chance(style, 0.5)
    streaks = f.smooth_noise(rng, size, across, along) + 0.6 * f.smooth_noise(rng, size, 2, along / 4)
    streaks = streaks + 0.5 * f.smooth_noise(rng, size, 1, 4)
    return f.paint(base, 1 + depth * (streaks.T if vertical else streaks))


def cast_metal(style: Rng, rng: Rng, size: int) -> Array:
    """Cast or sintered metal, dull and grainy, sometimes with machined stripes."""
    base = np.full(3, style.uniform(0.12, 0.7), np.float32) * (1 + 0.04 * style.standard_normal(3))
    height = f.fractal(rng, size, f.log_uniform(style, 8, 50), style.uniform(0.5, 1.0), 3)
    shade = f.relief(height * style.uniform(0.3, 1.5), style.uniform(0, TAU), style.uniform(0.1, 0.5))
    cloud = f.smooth_noise(rng, size, 3) * style.uniform(0.01, 0.08)
    if f.chance(style, 0.4):
        cloud = cloud + style.uniform(0.01, 0.06) * f.smooth_noise(rng, size, f.log_uniform(style, 8, 60), 1.0)
    return f.paint(base.astype(np.float32), 1 + shade + cloud)


def granite(style: Rng, rng: Rng, size: int) -> Array:
    """Stone with speckles of several minerals."""
    base = f.colour(style, grey=0.5)
    image = f.paint(base, 1 + 0.05 * f.fractal(rng, size, 6))
    for _ in range(int(style.integers(1, 4))):
        other, grain = f.contrasting(style, base, 0.15), f.log_uniform(style, 15, 70)
        level, strength = style.uniform(0.6, 1.5), style.uniform(0.3, 0.9)
        image = f.blend(image, other, strength * f.step(f.fractal(rng, size, grain, 0.6, 2), level, 0.5))
    return image


def concrete(style: Rng, rng: Rng, size: int) -> Array:
    """Concrete or plaster: clouds, sand and a few natural pores."""
    base = f.blend(np.full(3, style.uniform(0.35, 0.8), np.float32), f.earthy(style), style.uniform(0, 0.3))
    sand, cloud, pores = f.log_uniform(style, 0.01, 0.08), f.log_uniform(style, 0.02, 0.12), int(style.integers(0, 60))
    field = cloud * f.fractal(rng, size, 3) + sand * rng.standard_normal((size, size), dtype=np.float32)
    image = f.paint(base, 1 + field)
    canvas = np.zeros((size, size), np.uint8)
    for x, y, r in rng.random((rng.poisson(pores), 3)):
        centre = (int(x * size * 16), int(y * size * 16))
        cv2.circle(canvas, centre, int((0.2 + r * r) * 0.008 * size * 16) + 4, 255, -1, cv2.LINE_AA, 4)
    return f.blend(image, image * 0.6, canvas.astype(np.float32) / 255)


def wood(style: Rng, rng: Rng, size: int) -> Array:
    """Planed wood: growth rings, fibres and now and then a sound knot."""
    light = f.earthy(style) if f.chance(style, 0.8) else f.colour(style, 0.6)
    dark = light * style.uniform(0.45, 0.85)
    rings, fibre, angle = f.log_uniform(style, 3, 22), f.log_uniform(style, 0.02, 0.1), orientation(style, rng)
    knot_rate = style.uniform(0, 0.5)
    u, v = f.rotated(size, angle)
    v = v + 0.06 * f.smooth_noise(rng, size, 2) * style.uniform(0.2, 1.2)
    if f.chance(rng, knot_rate):
        kx, ky, width = rng.random(), rng.random(), rng.uniform(0.04, 0.1)
        bulge = np.exp(-(((u - kx) / (2.2 * width)) ** 2 + ((v - ky) / width) ** 2))
        v = v + bulge * width * 1.5
        light = f.blend(f.paint(light, np.ones_like(u)), dark, np.clip(bulge * 1.2 - 0.25, 0, 1))
    wave = 0.5 + 0.5 * np.sin(TAU * rings * v + 2.5 * f.smooth_noise(rng, size, 2, 3))
    image = f.blend(light, dark, np.power(wave, style.uniform(1, 4)))
    streaks = f.smooth_noise(rng, size, 4, size * 0.9)
    if abs(np.sin(angle)) > 0.7:
        streaks = streaks.T
    return image * (1 + fibre * streaks)[..., None]


def leather(style: Rng, rng: Rng, size: int) -> Array:
    """Leather: irregular small cells with soft furrows."""
    base = f.earthy(style) if f.chance(style, 0.6) else f.colour(style)
    count, depth = f.log_uniform(style, 150, 1500), style.uniform(0.15, 0.6)
    distance, value = f.cells(rng, size, int(count))
    height = f.blur(np.clip(distance, 0, 1), 0.006 * size)
    shade = f.relief(height * size * 0.03, style.uniform(0, TAU), depth)
    return f.paint(base, 1 + shade - 0.35 * depth * height + 0.04 * value + 0.05 * f.fractal(rng, size, 3))


def _threads(style: Rng, rng: Rng, size: int, low: float = 8, high: float = 34) -> tuple[Array, Array]:
    """Warp and weft phase (in threads) of a slightly distorted cloth."""
    pitch, angle = f.log_uniform(style, low, high), orientation(style, rng)
    wobble = style.uniform(0.02, 0.25)
    u, v = f.rotated(size, angle, (rng.random(), rng.random()))
    return (
        pitch * u + wobble * f.smooth_noise(rng, size, 4),
        pitch * v * style.uniform(0.85, 1.15) + wobble * f.smooth_noise(rng, size, 4),
    )


def woven(style: Rng, rng: Rng, size: int) -> Array:
    """Plain weave: canvas, linen, mat."""
    first = f.colour(style)
    second = f.near(style, first, 0.15) if f.chance(style, 0.6) else f.contrasting(style, first, 0.15)
    a, b = _threads(style, rng, size)
    over = f.step(np.sin(np.pi * a) * np.sin(np.pi * b), 0, 0.5)
    round_a, round_b = np.abs(np.cos(np.pi * a)), np.abs(np.cos(np.pi * b))
    depth = style.uniform(0.2, 0.65)
    image = f.blend(f.paint(first, 1 - depth + depth * round_b), f.paint(second, 1 - depth + depth * round_a), over)
    return image * (1 + style.uniform(0.01, 0.08) * f.fractal(rng, size, 20, 0.8, 2))[..., None]


def twill(style: Rng, rng: Rng, size: int) -> Array:
    """Diagonal weave: denim, twill."""
    first = f.colour(style)
    second = f.contrasting(style, first, 0.15)
    a, b = _threads(style, rng, size)
    diagonal = 0.5 + 0.5 * np.sin(TAU * (a + b) / style.integers(1, 4))
    fine = 0.5 + 0.5 * np.cos(TAU * b)
    image = f.blend(first, second, 0.75 * diagonal * style.uniform(0.4, 1.0))
    return image * (0.8 + 0.3 * fine * style.uniform(0.3, 1) + 0.05 * f.fractal(rng, size, 25, 0.8, 2))[..., None]


def carpet(style: Rng, rng: Rng, size: int) -> Array:
    """Pile carpet or felt: dense short fibres."""
    base = f.colour(style)
    depth, stretch = f.log_uniform(style, 0.06, 0.35), f.log_uniform(style, 0.3, 3)
    fibres = f.smooth_noise(rng, size, size * 0.45 / max(stretch, 1), size * 0.45 * min(stretch, 1))
    image = f.paint(base, 1 + depth * (0.7 * fibres + 0.5 * f.fractal(rng, size, 10, 0.8, 3)))
    if f.chance(style, 0.4):
        a, b = _threads(style, rng, size, 4, 14)
        image = f.blend(image, image * style.uniform(0.5, 0.85), f.step(np.sin(TAU * a) * np.cos(np.pi * b), 0.3, 0.6))
    return image


def knit(style: Rng, rng: Rng, size: int) -> Array:
    """Knitwear: columns of V-shaped stitches."""
    base = f.colour(style)
    a, b = _threads(style, rng, size, 6, 18)
    lean = np.abs(a - np.floor(a) - 0.5)
    stitch = np.sin(TAU * (b - 0.9 * lean)) * 0.5 + 0.5
    gap = np.power(np.abs(np.sin(np.pi * a)), 0.4)
    return f.paint(base, 0.45 + 0.6 * np.sqrt(stitch) * gap + 0.05 * f.fractal(rng, size, 30, 0.8, 2))


def corduroy(style: Rng, rng: Rng, size: int) -> Array:
    """Ribs, grooves and gratings."""
    base = f.colour(style)
    a, _ = _threads(style, rng, size, 5, 32)
    wave, sharp = 0.5 + 0.5 * np.cos(TAU * a), f.log_uniform(style, 0.3, 3)
    depth = style.uniform(0.15, 0.7)
    return f.paint(base, 1 - depth + depth * np.power(wave, sharp) + 0.04 * f.fractal(rng, size, 24, 0.8, 2))


def plaid(style: Rng, rng: Rng, size: int) -> Array:
    """Checked or striped cloth."""
    base = f.colour(style)
    a, b = _threads(style, rng, size, 1.5, 6)
    image = f.paint(base, np.ones_like(a))
    for _ in range(int(style.integers(1, 4))):
        other, offset, duty = f.colour(style), style.random(), style.uniform(-0.4, 0.8)
        image = f.blend(image, other, 0.6 * f.step(np.sin(TAU * (a + offset)), duty, 0.15))
        if f.chance(style, 0.75):
            image = f.blend(image, other, 0.6 * f.step(np.sin(TAU * (b + offset)), duty, 0.15))
    fine = np.sin(TAU * 11 * a) * np.sin(TAU * 11 * b)
    return image * (1 + 0.06 * fine + 0.03 * f.fractal(rng, size, 12))[..., None]


def tiles(style: Rng, rng: Rng, size: int) -> Array:
    """Ceramic tiles with grout."""
    base, grout = f.colour(style, low=0.3), f.colour(style, grey=0.8)
    count, width, gloss = style.integers(2, 8), style.uniform(0.03, 0.12), style.uniform(0, 0.12)
    u, v = f.rotated(size, rng.normal(0, 0.02), (rng.random(), rng.random()))
    a, b = u * count, v * count * style.choice([1, 1, 2, 0.5])
    if f.chance(style, 0.3):
        a = a + 0.5 * (np.floor(b) % 2)
    edge = np.minimum(0.5 - np.abs(a - np.floor(a) - 0.5), 0.5 - np.abs(b - np.floor(b) - 0.5))
    palette = 1 + gloss * rng.standard_normal((40, 40), dtype=np.float32)
    tone = palette[np.floor(a).astype(int) % 40, np.floor(b).astype(int) % 40]
    face = f.paint(base, tone + 0.04 * f.fractal(rng, size, 5))
    return f.blend(face, grout, 1 - f.step(edge, width / 2, 0.03))


def marble(style: Rng, rng: Rng, size: int) -> Array:
    """Polished stone with soft veins."""
    base = f.colour(style, grey=0.6, low=0.3)
    vein = f.contrasting(style, base, 0.2)
    _u, v = f.rotated(size, orientation(style, rng))
    field = np.sin(TAU * style.uniform(1, 4) * v + 2.2 * f.fractal(rng, size, 3, 0.6, 4))
    veins = np.power(1 - np.abs(field), f.log_uniform(style, 2, 9))
    return f.blend(f.paint(base, 1 + 0.04 * f.fractal(rng, size, 4)), vein, veins * style.uniform(0.2, 0.6))


def terrazzo(style: Rng, rng: Rng, size: int) -> Array:
    """Stone chips set in cement."""
    base = f.colour(style, grey=0.6)
    palette = np.stack([f.contrasting(style, base, 0.12) for _ in range(4)])
    distance, value = f.cells(rng, size, int(f.log_uniform(style, 60, 700)))
    chip = f.step(distance + 0.15 * f.fractal(rng, size, 14, 0.6, 2), style.uniform(0.2, 0.42), 0.08)
    pick = palette[(value * 3.999).astype(int)]
    return f.blend(pick * (0.9 + 0.2 * value)[..., None], f.paint(base, 1 + 0.04 * f.fractal(rng, size, 20)), chip)


def gravel(style: Rng, rng: Rng, size: int) -> Array:
    """Packed pebbles, grains or asphalt."""
    base = f.colour(style, grey=0.6)
    spread, light = style.uniform(0.05, 0.35), style.uniform(0, TAU)
    distance, value = f.cells(rng, size, int(f.log_uniform(style, 60, 1600)))
    height = np.sqrt(np.clip(1 - 1.6 * distance * distance, 0, 1))
    shade = f.relief(height * size * 0.02, light, 0.5)
    return f.paint(base, (0.35 + 0.65 * height) * (1 + spread * (2 * value - 1)) + shade)


def foam(style: Rng, rng: Rng, size: int) -> Array:
    """Sponge, foam or bread: natural pores of many sizes everywhere."""
    base = f.earthy(style) if f.chance(style, 0.5) else f.colour(style)
    image = f.paint(base, 1 + 0.05 * f.fractal(rng, size, 8))
    for grain in (f.log_uniform(style, 8, 20), f.log_uniform(style, 20, 60)):
        pores = f.step(f.smooth_noise(rng, size, grain), style.uniform(0.7, 1.3), 0.4)
        image = f.blend(image, image * style.uniform(0.3, 0.75), pores)
    return image


def _lattice(style: Rng, rng: Rng, size: int, low: float, high: float, hexagonal: bool) -> tuple[Array, Array]:
    """Offsets from the nearest node of a square or hexagonal lattice, in units of the pitch."""
    count = f.log_uniform(style, low, high)
    u, v = f.rotated(size, orientation(style, rng), (rng.random(), rng.random()))
    a, b = u * count, v * count * (1.1547 if hexagonal else 1.0)
    if hexagonal:
        a = a + 0.5 * (np.floor(b) % 2)
    return a - np.floor(a) - 0.5, (b - np.floor(b) - 0.5) / (1.1547 if hexagonal else 1.0)


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
