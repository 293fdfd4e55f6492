# Copyright (C) 2026 anomalib-zsclip contributors
# SPDX-License-Identifier: Apache-2.0

"""Materials: metal, stone, wood, leather, textiles, and what has grains or pores."""

from __future__ import annotations

import cv2
import numpy as np

from .. import fields as f
from ..fields import Array, Rng

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
