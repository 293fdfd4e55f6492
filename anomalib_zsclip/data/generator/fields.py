# Copyright (C) 2026 anomalib-zsclip contributors
# SPDX-License-Identifier: Apache-2.0

"""Building blocks of the procedural images: noise fields, cells, warps, shading, colours and shapes.

All fields are ``float32`` arrays of shape ``(size, size)``; images are ``float32`` RGB of shape ``(size, size, 3)`` in
[0, 1]. Randomness comes from the generator that is passed in and from nowhere else.
"""

from __future__ import annotations

import colorsys
from functools import lru_cache

import cv2
import numpy as np

Array = np.ndarray
Rng = np.random.Generator

_SHIFT = 4  # sub-pixel bits of OpenCV's drawing functions
_ONE = 1 << _SHIFT


@lru_cache(maxsize=16)
def grid(size: int) -> tuple[Array, Array]:
    """Pixel coordinates x and y in [0, 1), read only. Each is ``(size, size)``."""
    axis = (np.arange(size, dtype=np.float32) + 0.5) / size
    x, y = np.meshgrid(axis, axis)
    x.setflags(write=False)
    y.setflags(write=False)
    return x, y


def chance(rng: Rng, probability: float) -> bool:
    """True with the given probability."""
    return bool(rng.random() < probability)


def log_uniform(rng: Rng, low: float, high: float) -> float:
    """A number between ``low`` and ``high``, uniform on the logarithmic scale."""
    return float(np.exp(rng.uniform(np.log(low), np.log(high))))


def smooth_noise(rng: Rng, size: int, cells: float, cells_y: float | None = None) -> Array:
    """Band-limited noise of unit variance with about ``cells`` bumps along x and ``cells_y`` along y."""
    nx = int(np.clip(round(cells), 1, size)) + 3
    ny = int(np.clip(round(cells if cells_y is None else cells_y), 1, size)) + 3
    coarse = rng.standard_normal((ny, nx), dtype=np.float32)
    if nx >= size and ny >= size:
        return coarse[:size, :size]
    # A margin of one cell on each side hides the replicated border of the enlargement.
    step_x, step_y = size / (nx - 3), size / (ny - 3)
    matrix = np.array([[1 / step_x, 0, 1.0], [0, 1 / step_y, 1.0]], np.float32)
    flags = cv2.INTER_CUBIC | cv2.WARP_INVERSE_MAP
    field = cv2.warpAffine(coarse, matrix, (size, size), flags=flags, borderMode=cv2.BORDER_REFLECT_101)
    return field * 1.35


def fractal(
    rng: Rng, size: int, cells: float = 3, roughness: float = 0.55, octaves: int = 4, ratio: float = 1.0
) -> Array:
    """Sum of octaves of noise, unit variance. ``ratio`` stretches it: ``cells_y = cells * ratio``."""
    total = np.zeros((size, size), np.float32)
    weight, energy = 1.0, 0.0
    for _ in range(octaves):
        total += weight * smooth_noise(rng, size, cells, cells * ratio)
        energy += weight * weight
        weight *= roughness
        cells *= 2.1
    return total / np.sqrt(energy)


def unit(field: Array) -> Array:
    """Stretch a field to [0, 1]."""
    low, high = float(field.min()), float(field.max())
    return (field - low) / max(high - low, 1e-6)


def step(field: Array, edge: float, width: float) -> Array:
    """Soft step from 0 to 1 around ``edge``."""
    return np.clip((field - edge) / max(width, 1e-6) + 0.5, 0, 1)


def rotated(size: int, angle: float, shift: tuple[float, float] = (0.0, 0.0)) -> tuple[Array, Array]:
    """Coordinates of a plane turned by ``angle`` (radians) about the image centre."""
    x, y = grid(size)
    c, s = np.cos(angle), np.sin(angle)
    u = c * (x - 0.5) + s * (y - 0.5) + 0.5 + shift[0]
    v = -s * (x - 0.5) + c * (y - 0.5) + 0.5 + shift[1]
    return u.astype(np.float32), v.astype(np.float32)


def cells(rng: Rng, size: int, count: int, jitter: float = 1.0) -> tuple[Array, Array]:
    """Voronoi cells: distance to the nearest seed (in units of the cell size) and a random value per cell."""
    side = max(round(float(np.sqrt(count))), 1)
    axis = (np.arange(side + 2) - 0.5) / side
    points = np.stack(np.meshgrid(axis, axis), -1).reshape(-1, 2)
    points = points + rng.uniform(-0.5, 0.5, points.shape) * jitter / side
    pixels = np.round(points * size).astype(int)
    pixels = pixels[((pixels >= 0) & (pixels < size)).all(1)]
    board = np.ones((size, size), np.uint8)
    board[pixels[:, 1], pixels[:, 0]] = 0
    distance, labels = cv2.distanceTransformWithLabels(board, cv2.DIST_L2, 5, labelType=cv2.DIST_LABEL_PIXEL)
    values = rng.random(int(labels.max()) + 1, dtype=np.float32)
    return distance * (side / size), values[labels]


def cell_edges(values: Array, width: float) -> Array:
    """1 on the borders between cells of :func:`cells`, 0 inside, about ``width`` pixels wide."""
    edge = np.zeros(values.shape, np.uint8)
    edge[:, 1:] |= values[:, 1:] != values[:, :-1]
    edge[1:, :] |= values[1:, :] != values[:-1, :]
    distance = cv2.distanceTransform(1 - edge, cv2.DIST_L2, 3)
    return np.clip(width + 0.5 - distance, 0, 1)


def warp(image: Array, dx: Array, dy: Array, border: int = cv2.BORDER_REFLECT_101) -> Array:
    """Move the content of an image by a field of displacements in pixels."""
    size_y, size_x = image.shape[:2]
    yy, xx = np.mgrid[0:size_y, 0:size_x].astype(np.float32)
    return cv2.remap(image, xx + dx.astype(np.float32), yy + dy.astype(np.float32), cv2.INTER_LINEAR, borderMode=border)


def relief(height: Array, angle: float, strength: float) -> Array:
    """Light and shade of a height field (in pixels) lit from ``angle``; zero on flat ground."""
    height = np.asarray(height, np.float32)
    gx = cv2.Sobel(height, cv2.CV_32F, 1, 0, ksize=3) * 0.125
    gy = cv2.Sobel(height, cv2.CV_32F, 0, 1, ksize=3) * 0.125
    return np.clip(strength * (np.cos(angle) * gx + np.sin(angle) * gy), -0.6, 0.6)


def blur(field: Array, sigma: float) -> Array:
    """Gaussian blur; a no-op below a third of a pixel."""
    return cv2.GaussianBlur(field, (0, 0), sigma) if sigma > 0.3 else field


def colour(rng: Rng, grey: float = 0.3, low: float = 0.1, high: float = 0.92) -> Array:
    """A random colour, RGB: grey, muted or saturated."""
    value = rng.uniform(low, high)
    kind = rng.random()
    hue = rng.random()
    if kind < grey:
        saturation = rng.uniform(0, 0.06)
    elif kind < grey + 0.6 * (1 - grey):
        saturation = rng.uniform(0.08, 0.45)
    else:
        saturation = rng.uniform(0.45, 0.95)
    return np.array(colorsys.hsv_to_rgb(hue, saturation, value), np.float32)


def earthy(rng: Rng) -> Array:
    """A brown, tan or ochre colour, as of wood, leather, cork and cardboard."""
    hue = rng.uniform(0.02, 0.12)
    return np.array(colorsys.hsv_to_rgb(hue, rng.uniform(0.2, 0.7), rng.uniform(0.25, 0.9)), np.float32)


def near(rng: Rng, base: Array, spread: float) -> Array:
    """A colour close to ``base``: brightness and tint vary by about ``spread``."""
    return np.clip(
        base * (1 + spread * rng.standard_normal()) + 0.3 * spread * rng.standard_normal(3), 0.02, 0.98
    ).astype(np.float32)


def contrasting(rng: Rng, base: Array, minimum: float = 0.25) -> Array:
    """A colour that differs visibly from ``base``."""
    for _ in range(8):
        other = colour(rng)
        if float(np.abs(other - base).mean()) >= minimum:
            return other
    return np.clip(1.0 - base, 0.02, 0.98).astype(np.float32)


def blend(first: Array, second: Array, weight: Array | float) -> Array:
    """``first`` where weight is 0, ``second`` where it is 1. Colours, fields and images mix freely."""
    if isinstance(weight, np.ndarray) and weight.ndim == 2:
        weight = weight[..., None]
    return (first + (second - first) * weight).astype(np.float32)


def paint(base: Array, field: Array) -> Array:
    """An image of one colour whose brightness follows a field around 1."""
    return (base * field[..., None]).astype(np.float32)


# Shapes: anti-aliased masks, float32 in [0, 1]. Coordinates are in units of the image side.


def _canvas(size: int) -> Array:
    return np.zeros((size, size), np.uint8)


def disc(size: int, cx: float, cy: float, rx: float, ry: float | None = None, angle: float = 0.0) -> Array:
    """A filled ellipse; ``angle`` in radians."""
    canvas = _canvas(size)
    ry = rx if ry is None else ry
    centre = (int(cx * size * _ONE), int(cy * size * _ONE))
    axes = (max(int(rx * size * _ONE), 1), max(int(ry * size * _ONE), 1))
    cv2.ellipse(canvas, centre, axes, np.degrees(angle), 0, 360, 255, -1, cv2.LINE_AA, _SHIFT)
    return canvas.astype(np.float32) / 255


def polygon(size: int, points: Array) -> Array:
    """A filled polygon, ``points`` of shape ``(n, 2)``."""
    canvas = _canvas(size)
    cv2.fillPoly(canvas, [np.round(points * size * _ONE).astype(np.int32)], 255, cv2.LINE_AA, _SHIFT)
    return canvas.astype(np.float32) / 255


def polyline(size: int, points: Array, width: float, closed: bool = False) -> Array:
    """A line of ``width`` pixels through ``points`` of shape ``(n, 2)``; thin lines fade instead of vanishing."""
    canvas = _canvas(size)
    thickness = max(round(float(width)), 1)
    path = [np.round(points * size * _ONE).astype(np.int32)]
    cv2.polylines(canvas, path, closed, 255, thickness, cv2.LINE_AA, _SHIFT)
    return canvas.astype(np.float32) * (min(width, 1.0) / 255)


def turn(points: Array, angle: float, cx: float, cy: float, scale: float = 1.0) -> Array:
    """Points given around the origin, scaled, turned and moved to ``(cx, cy)``."""
    c, s = np.cos(angle), np.sin(angle)
    return points @ np.array([[c, s], [-s, c]]) * scale + np.array([cx, cy])


def box(width: float, height: float, corner: float = 0.0) -> Array:
    """Outline of a rectangle around the origin with rounded corners."""
    w, h = width / 2, height / 2
    if corner <= 0:
        return np.array([[-w, -h], [w, -h], [w, h], [-w, h]])
    corner = min(corner, w, h)
    arcs = []
    for k, (sx, sy) in enumerate([(1, 1), (-1, 1), (-1, -1), (1, -1)]):
        t = np.linspace(0, np.pi / 2, 6) + k * np.pi / 2
        arcs.append(np.stack([sx * (w - corner) + corner * np.cos(t), sy * (h - corner) + corner * np.sin(t)], 1))
    return np.concatenate(arcs)


def regular(n: int, radius: float, inner: float | None = None, phase: float = 0.0) -> Array:
    """A regular polygon, or a star when ``inner`` is given, around the origin."""
    if inner is None:
        t = np.arange(n) * 2 * np.pi / n + phase
        return radius * np.stack([np.cos(t), np.sin(t)], 1)
    t = np.arange(2 * n) * np.pi / n + phase
    r = np.where(np.arange(2 * n) % 2 == 0, radius, inner)
    return r[:, None] * np.stack([np.cos(t), np.sin(t)], 1)


def gear_outline(teeth: int, radius: float, depth: float) -> Array:
    """A gear wheel around the origin."""
    t = np.arange(4 * teeth) * 2 * np.pi / (4 * teeth)
    r = np.where((np.arange(4 * teeth) // 2) % 2 == 0, radius, radius * (1 - depth))
    return r[:, None] * np.stack([np.cos(t), np.sin(t)], 1)


def blob_outline(rng: Rng, radius: float, wobble: float = 0.25, terms: int = 4, points: int = 40) -> Array:
    """A smooth random closed curve around the origin."""
    t = np.linspace(0, 2 * np.pi, points, endpoint=False)
    r = np.ones(points)
    for k in range(2, 2 + terms):
        r += wobble / k * rng.standard_normal() * np.cos(k * t + rng.uniform(0, 2 * np.pi))
    return radius * np.clip(r, 0.3, 2.0)[:, None] * np.stack([np.cos(t), np.sin(t)], 1)


def rough_blob(rng: Rng, size: int, cx: float, cy: float, radius: float, roughness: float = 0.5) -> Array:
    """A blob with a ragged edge, as a field that falls from 1 at the centre; positive inside."""
    x, y = grid(size)
    ratio, angle = log_uniform(rng, 0.5, 1.0), rng.uniform(0, np.pi)
    c, s = np.cos(angle), np.sin(angle)
    u, v = (x - cx) * c + (y - cy) * s, (-(x - cx) * s + (y - cy) * c) / ratio
    distance = np.sqrt(u * u + v * v) / radius
    return 1 - distance + roughness * 0.45 * fractal(rng, size, 1.2 / max(radius, 0.02), 0.6, 3)


def bevel(mask: Array, width: float) -> Array:
    """Height of a solid with rounded rims: 0 outside, rising to 1 at ``width`` pixels from the border."""
    distance = cv2.distanceTransform((mask > 0.5).astype(np.uint8), cv2.DIST_L2, 3)
    t = np.clip(distance / max(width, 1.0), 0, 1)
    return blur(np.sqrt(1 - (1 - t) ** 2), 0.5 + 0.08 * width)
