# Copyright (C) 2026 anomalib-zsclip contributors
# SPDX-License-Identifier: Apache-2.0


"""Kinds of defects of every catalogue, from scratches to uneven surfaces."""

from __future__ import annotations

import cv2
import numpy as np

from .. import fields as f
from ..fields import Array, Rng
from .scene import Scene, _clip, _cover, _ink, _spread, _walk, locate, rim

TAU = 2 * np.pi


def scratch(scene: Scene, rng: Rng, strength: float) -> tuple[Array, Array]:
    """Thin straight or slightly bent marks, often several in parallel."""
    x, y = locate(scene, rng)
    length, width = _spread(rng, strength, 0.12, 0.8), scene.size * _spread(rng, strength, 0.005, 0.02)
    path = _walk(rng, x, y, length, rng.uniform(0, 0.12), 8)
    alpha = f.polyline(scene.size, path, width)
    for _ in range(rng.poisson(0.6)):
        alpha = np.maximum(alpha, f.polyline(scene.size, path + rng.normal(0, 0.03, 2), width * rng.uniform(0.5, 1)))
    alpha = _clip(scene, alpha)
    ink = _ink(scene, alpha, rng, min(1.0, strength + 0.25), 0.4)
    fade = np.clip(0.8 + 0.4 * f.smooth_noise(rng, scene.size, 8), 0.3, 1)
    image = f.blend(scene.image, ink, alpha * fade)
    if f.chance(rng, 0.4):
        beside = np.roll(alpha, (1, 1), (0, 1)) * (1 - alpha)
        image = f.blend(image, 1 - ink, 0.4 * strength * beside)
    return image, alpha


def crack(scene: Scene, rng: Rng, strength: float) -> tuple[Array, Array]:
    """Jagged dark lines that fork."""
    x, y = locate(scene, rng) if f.chance(rng, 0.6) else rim(scene, rng)
    length, width = _spread(rng, strength, 0.2, 0.95), scene.size * _spread(rng, strength, 0.006, 0.022)
    trunk = _walk(rng, x, y, length, rng.uniform(0.3, 0.7), 16)
    alpha = np.zeros_like(scene.silhouette)
    for k in range(15):  # tapering towards the tip
        alpha = np.maximum(alpha, f.polyline(scene.size, trunk[k : k + 2], width * (1.3 - k / 16)))
    for _ in range(rng.poisson(1.5)):
        start = trunk[int(rng.integers(2, 14))]
        branch = _walk(rng, 0, 0, length * rng.uniform(0.15, 0.45), 0.6, 8)
        alpha = np.maximum(alpha, f.polyline(scene.size, branch - branch[0] + start, width * 0.6))
    alpha = _clip(scene, alpha)
    ink = _ink(scene, alpha, rng, min(1.0, strength + 0.35), 0.88)
    return _cover(scene, alpha, ink)


def hole(scene: Scene, rng: Rng, strength: float) -> tuple[Array, Array]:
    """A hole with an irregular edge: dark, or open to the background."""
    radius = _spread(rng, strength, 0.03, 0.14)
    x, y = locate(scene, rng, radius * 0.5)
    alpha = _clip(scene, f.step(f.rough_blob(rng, scene.size, x, y, radius, rng.uniform(0.1, 0.7)), 0, 0.2))
    inner = (
        scene.backdrop if not scene.silhouette.all() and f.chance(rng, 0.5) else scene.image * rng.uniform(0.05, 0.4)
    )
    image = f.blend(scene.image, inner, alpha)
    height = f.blur(alpha, 0.012 * scene.size)
    shade = f.relief(height * scene.size * 0.04, rng.uniform(0, TAU), 0.6)
    return image * (1 + shade * scene.silhouette)[..., None], alpha


def blowhole(scene: Scene, rng: Rng, strength: float) -> tuple[Array, Array]:
    """Small round pits, alone or in a cluster."""
    x, y = locate(scene, rng, 0.03)
    alpha = np.zeros_like(scene.silhouette)
    radius = _spread(rng, strength, 0.014, 0.05)
    for k in range(1 + rng.poisson(1.0)):
        dx, dy = rng.normal(0, 2.5 * radius, 2) if k else (0.0, 0.0)
        r = radius * (rng.uniform(0.4, 1) if k else 1)
        alpha = np.maximum(alpha, f.disc(scene.size, x + dx, y + dy, r, r * rng.uniform(0.6, 1), rng.uniform(0, TAU)))
    alpha = _clip(scene, alpha)
    depth = rng.uniform(0.5, 0.9) * (0.4 + 0.6 * strength)
    image = scene.image * (1 - depth * f.blur(alpha, 0.004 * scene.size))[..., None]
    light = np.roll(alpha, (max(scene.size // 90, 1),) * 2, (0, 1)) * (1 - alpha)
    return f.blend(image, np.ones(3, np.float32), 0.3 * rng.random() * light), alpha


def stain(scene: Scene, rng: Rng, strength: float) -> tuple[Array, Array]:
    """A soft blot that tints what lies under it."""
    x, y = locate(scene, rng)
    radius = _spread(rng, strength, 0.06, 0.25)
    field = f.rough_blob(rng, scene.size, x, y, radius, rng.uniform(0.1, 0.6))
    alpha = f.step(field, 0, rng.uniform(0.15, 0.8))
    if f.chance(rng, 0.3):  # a dried edge
        alpha = alpha * (0.5 + 0.5 * np.clip(1 - 4 * field, 0, 1))
    alpha = _clip(scene, alpha)
    tint = f.colour(rng, 0.4) * (1 - 0.55 * strength * rng.uniform(0.4, 1))
    wet = f.blend(scene.image * tint / max(float(tint.max()), 0.2), _ink(scene, alpha, rng, strength, 0.8), 0.35)
    return f.blend(scene.image, wet, alpha * (0.3 + 0.65 * strength)), alpha


def dent(scene: Scene, rng: Rng, strength: float) -> tuple[Array, Array]:
    """A hollow or bump seen by its light and shade."""
    x, y = locate(scene, rng, 0.03)
    radius = _spread(rng, strength, 0.05, 0.18)
    field = np.clip(f.rough_blob(rng, scene.size, x, y, radius, rng.uniform(0, 0.35)), 0, 1)
    height = field * field * (3 - 2 * field)
    angle = rng.uniform(0, TAU)
    shade = f.relief(height * scene.size * radius * 2.2, angle, 0.25 + 0.6 * strength)
    image = scene.image * (1 + _clip(scene, shade))[..., None] + 0.12 * _clip(scene, np.clip(shade, 0, 1))[..., None]
    push = height * scene.size * radius * 0.35
    image = f.warp(image, push * np.cos(angle), push * np.sin(angle))
    return image, _clip(scene, f.step(field, 0.12, 0.1))


def missing_part(scene: Scene, rng: Rng, strength: float) -> tuple[Array, Array]:
    """A piece of the object is not there; the background shows."""
    radius = _spread(rng, strength, 0.07, 0.25)
    x, y = rim(scene, rng) if f.chance(rng, 0.5) else locate(scene, rng)
    if f.chance(rng, 0.5):
        shape = f.polygon(scene.size, f.turn(f.box(2, rng.uniform(0.8, 2)), rng.uniform(0, TAU), x, y, radius))
    else:
        shape = f.step(f.rough_blob(rng, scene.size, x, y, radius, rng.uniform(0, 0.5)), 0, 0.1)
    alpha = _clip(scene, shape)
    return f.blend(scene.image, scene.backdrop, alpha), alpha


def broken(scene: Scene, rng: Rng, strength: float) -> tuple[Array, Array]:
    """A chip out of the border with a rough face of fracture."""
    x, y = rim(scene, rng)
    radius = _spread(rng, strength, 0.06, 0.22)
    outline = f.blob_outline(rng, 1.0, 0.5, 6, 14) * [1, rng.uniform(0.4, 1)]
    alpha = _clip(scene, f.polygon(scene.size, f.turn(outline, rng.uniform(0, TAU), x, y, radius)))
    rough = f.fractal(rng, scene.size, 14, 0.8, 3)
    tone = _ink(scene, alpha, rng, 0.3 + 0.5 * strength, 0.6)
    face = f.paint(tone, 1 + 0.25 * rough + f.relief(rough * 2, rng.uniform(0, TAU), 0.5))
    if f.chance(rng, 0.4):
        face = f.blend(face, scene.backdrop, f.step(rough, 0.2, 0.5))
    return _cover(scene, alpha, face)


def contamination(scene: Scene, rng: Rng, strength: float) -> tuple[Array, Array]:
    """Foreign particles lying on the surface."""
    x, y = locate(scene, rng)
    radius = _spread(rng, strength, 0.02, 0.08)
    alpha = np.zeros_like(scene.silhouette)
    for k in range(1 + rng.poisson(1.5)):
        dx, dy = rng.normal(0, 2.5 * radius, 2) if k else (0.0, 0.0)
        outline = f.blob_outline(rng, 1.0, 0.5, 5, 16)
        r = radius * (rng.uniform(0.3, 1) if k else 1.0)
        alpha = np.maximum(alpha, f.polygon(scene.size, f.turn(outline, rng.uniform(0, TAU), x + dx, y + dy, r)))
    alpha = _clip(scene, alpha)
    weight = float(alpha.sum()) + 1e-6
    local = (scene.image * alpha[..., None]).sum((0, 1)) / weight
    paint = f.blend(local.astype(np.float32), f.contrasting(rng, local, 0.2), 0.35 + 0.65 * strength)
    sheet = f.paint(paint, 1 + 0.12 * f.fractal(rng, scene.size, 20, 0.7, 2))
    height = f.bevel(alpha, 0.02 * scene.size)
    sheet = sheet * (1 + f.relief(height * scene.size * 0.02, rng.uniform(0, TAU), 0.5))[..., None]
    shade = np.roll(f.blur(alpha, 0.01 * scene.size), (scene.size // 64,) * 2, (0, 1))
    return f.blend(scene.image * (1 - 0.35 * shade * scene.silhouette)[..., None], sheet, alpha), alpha


def colour_spot(scene: Scene, rng: Rng, strength: float) -> tuple[Array, Array]:
    """A patch of the wrong colour; the structure under it stays."""
    x, y = locate(scene, rng)
    radius = _spread(rng, strength, 0.05, 0.22)
    if f.chance(rng, 0.6):
        alpha = f.step(f.rough_blob(rng, scene.size, x, y, radius, rng.uniform(0, 0.6)), 0, rng.uniform(0.1, 0.4))
    else:
        alpha = f.polyline(scene.size, _walk(rng, x, y, radius * 3, 0.3), scene.size * radius * 0.35)
    alpha = _clip(scene, alpha)
    grey = scene.image.mean(2)
    paint = f.colour(rng, grey=0.05, low=0.5)
    tinted = (grey[..., None] * 0.8 + 0.15) * paint / max(float(paint.mean()), 0.3)
    return f.blend(scene.image, tinted, alpha * (0.25 + 0.7 * strength)), alpha


def bent(scene: Scene, rng: Rng, strength: float) -> tuple[Array, Array]:
    """A part pushed out of shape."""
    radius = _spread(rng, strength, 0.12, 0.28)
    x, y = rim(scene, rng) if not scene.silhouette.all() else locate(scene, rng)
    gx, gy = f.grid(scene.size)
    bump = np.exp(-(((gx - x) ** 2 + (gy - y) ** 2) / (0.5 * radius * radius)))
    angle, push = rng.uniform(0, TAU), scene.size * radius * (0.25 + 0.4 * strength)
    image = f.warp(scene.image, push * np.cos(angle) * bump, push * np.sin(angle) * bump)
    changed = np.abs(image - scene.image).max(2)
    return image, f.step(f.blur(changed, 0.012 * scene.size), 0.03, 0.02) * (bump > 0.08)


def cut(scene: Scene, rng: Rng, strength: float) -> tuple[Array, Array]:
    """A straight slit that gapes in the middle."""
    x, y = locate(scene, rng, 0.02)
    length, gape = _spread(rng, strength, 0.12, 0.5), _spread(rng, strength, 0.012, 0.05)
    t = np.linspace(-0.5, 0.5, 12)
    open_by = gape * (1 - (2 * t) ** 2) * 0.5
    bow = rng.uniform(-0.1, 0.1) * (1 - 4 * t * t)
    upper, lower = np.stack([t * length, bow * length + open_by], 1), np.stack([t * length, bow * length - open_by], 1)
    outline = f.turn(np.concatenate([upper, lower[::-1]]), rng.uniform(0, TAU), x, y)
    alpha = _clip(scene, np.maximum(f.polygon(scene.size, outline), f.polyline(scene.size, outline, 1.0, True)))
    inner = (
        scene.image * rng.uniform(0.05, 0.45)
        if f.chance(rng, 0.75)
        else f.paint(_ink(scene, alpha, rng, 1.0, 0.2), np.ones_like(alpha))
    )
    image = f.blend(scene.image, inner, alpha)
    lip = np.clip(f.blur(alpha, 0.012 * scene.size) * 2 - alpha, 0, 1) * scene.silhouette
    return image * (1 + 0.35 * strength * lip)[..., None], alpha


def thread(scene: Scene, rng: Rng, strength: float) -> tuple[Array, Array]:
    """A loose fibre or hair lying across."""
    x, y = locate(scene, rng)
    length, width = _spread(rng, strength, 0.2, 0.9), scene.size * _spread(rng, strength, 0.006, 0.02)
    alpha = f.polyline(scene.size, _walk(rng, x, y, length, rng.uniform(0.15, 0.45), 24), width)
    weight = float(alpha.sum()) + 1e-6
    local = (scene.image * alpha[..., None]).sum((0, 1)) / weight
    paint = f.blend(local.astype(np.float32), f.contrasting(rng, local, 0.25), 0.45 + 0.55 * strength)
    shade = np.roll(alpha, (max(scene.size // 80, 1),) * 2, (0, 1)) * 0.3
    return f.blend(scene.image * (1 - shade)[..., None], paint, alpha), alpha


def misprint(scene: Scene, rng: Rng, strength: float) -> tuple[Array, Array]:
    """Print, pattern or structure doubled or shifted in a strip."""
    x, y = locate(scene, rng)
    radius = _spread(rng, strength, 0.1, 0.28)
    outline = f.turn(f.box(2, rng.uniform(0.5, 1.6)), rng.choice([0, np.pi / 2, rng.uniform(0, TAU)]), x, y, radius)
    alpha = _clip(scene, f.polygon(scene.size, outline))
    shift = rng.uniform(0.25, 0.6, 2) * rng.choice([-1, 1], 2) * radius * scene.size
    moved = np.roll(scene.image, tuple(int(s) for s in shift), (0, 1))
    if f.chance(rng, 0.4):
        moved = np.minimum(moved, scene.image)
    if f.chance(rng, 0.5):
        ink = f.contrasting(rng, scene.image.mean((0, 1)), 0.2)
        strokes = np.zeros_like(alpha)
        for _ in range(int(rng.integers(2, 6))):
            strokes = np.maximum(
                strokes,
                f.polyline(
                    scene.size,
                    _walk(rng, x, y, radius * 1.5, 0.6, 6) + rng.normal(0, radius * 0.4, 2),
                    scene.size * radius * 0.12,
                ),
            )
        alpha = _clip(scene, strokes)
        return f.blend(scene.image, ink, alpha * (0.4 + 0.6 * strength)), alpha
    return f.blend(scene.image, moved, alpha * (0.5 + 0.5 * strength)), alpha


def _worn(scene: Scene, rng: Rng, strength: float) -> tuple[Array, Array]:
    """An area without its structure: rubbed off, faded or never made."""
    x, y = rim(scene, rng) if f.chance(rng, 0.3) else locate(scene, rng)
    radius = _spread(rng, strength, 0.1, 0.4)
    field = f.rough_blob(rng, scene.size, x, y, radius, rng.uniform(0.05, 0.5))
    alpha = _clip(scene, f.step(field, 0, rng.uniform(0.05, 0.3)))
    flat = f.blur(scene.image, scene.size * rng.uniform(0.03, 0.08))
    tone = 1 + rng.choice([-1, 1]) * rng.uniform(0.05, 0.15 + 0.4 * strength)
    grain = 1 + rng.uniform(0, 0.08) * f.fractal(rng, scene.size, f.log_uniform(rng, 4, 40), 0.7, 2)
    sheet = np.clip(flat * (tone * grain)[..., None], 0, 1).astype(np.float32)
    return f.blend(scene.image, sheet, alpha * (0.6 + 0.4 * strength)), alpha


def fray(scene: Scene, rng: Rng, strength: float) -> tuple[Array, Array]:
    """A worn area or border, bare or with many short loose strands."""
    if f.chance(rng, 0.4):
        return _worn(scene, rng, strength)
    x, y = rim(scene, rng) if f.chance(rng, 0.5) else locate(scene, rng)
    radius = _spread(rng, strength, 0.07, 0.22)
    zone = f.step(f.rough_blob(rng, scene.size, x, y, radius, 0.5), 0, 0.3)
    strands = np.zeros_like(zone)
    direction, width = rng.uniform(0, TAU), scene.size * rng.uniform(0.005, 0.014)
    for _ in range(int(rng.integers(10, 30))):
        px, py = np.array([x, y]) + rng.normal(0, radius * 0.5, 2)
        t, length = direction + rng.normal(0, 0.5), radius * rng.uniform(0.3, 1.1)
        path = np.array([[px, py], [px + length * np.cos(t), py + length * np.sin(t)]])
        strands = np.maximum(strands, f.polyline(scene.size, path, width))
    tone = _ink(scene, zone, rng, 0.3 + 0.6 * strength, 0.4)
    smear = f.blend(scene.image, f.blur(scene.image, 0.02 * scene.size), _clip(scene, zone) * 0.8)
    image = f.blend(smear, tone, strands * zone * (0.4 + 0.6 * strength))
    return image, f.step(np.maximum(_clip(scene, zone), strands * zone), 0.3, 0.2)


def uneven(scene: Scene, rng: Rng, strength: float) -> tuple[Array, Array]:
    """A large area that is brighter, darker, rougher or smoother than the rest."""
    x, y = locate(scene, rng)
    radius = _spread(rng, strength, 0.15, 0.4)
    field = f.rough_blob(rng, scene.size, x, y, radius, rng.uniform(0.2, 0.8))
    alpha = _clip(scene, f.step(field, 0, rng.uniform(0.15, 0.5)))
    sign = rng.choice([-1, 1])
    if f.chance(rng, 0.3):  # worked in another way: the structure is that of another place, often with a clear border
        center = (scene.size / 2, scene.size / 2)
        turn = np.asarray(cv2.getRotationMatrix2D(center, rng.normal(0, 12), f.log_uniform(rng, 0.6, 1.6)), np.float64)
        turn[:, 2] += rng.uniform(-0.3, 0.3, 2) * scene.size
        other = cv2.warpAffine(scene.image, turn, (scene.size,) * 2, borderMode=cv2.BORDER_REFLECT_101)
        sheet = np.clip(other * (1 + sign * rng.uniform(0.03, 0.05 + 0.35 * strength)), 0, 1).astype(np.float32)
        alpha = _clip(scene, f.step(field, 0, f.log_uniform(rng, 0.03, 0.4)))
        return f.blend(scene.image, sheet, alpha), alpha
    if f.chance(rng, 0.4):  # the structure itself is stronger or weaker there
        mean = f.blur(scene.image, scene.size * rng.uniform(0.02, 0.06))
        depth = rng.uniform(1.4, 1.6 + strength) if sign > 0 else rng.uniform(0.1, 0.8 - 0.4 * strength)
        gain = 1 + rng.normal(0, 0.08)
        sheet = np.clip((mean + depth * (scene.image - mean)) * gain, 0, 1).astype(np.float32)
        return f.blend(scene.image, sheet, alpha), alpha
    gain = 1 + sign * (0.12 + 0.4 * strength)
    rough = 1 + rng.uniform(0, 0.15) * f.fractal(rng, scene.size, f.log_uniform(rng, 4, 40), 0.7, 2)
    return f.blend(
        scene.image, np.clip(scene.image * (gain * rough)[..., None] + sign * 0.05 * strength, 0, 1), alpha
    ), alpha
