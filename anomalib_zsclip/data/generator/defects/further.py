# Copyright (C) 2026 anomalib-zsclip contributors
# SPDX-License-Identifier: Apache-2.0
# ruff: noqa: RUF005 - arrays are added here, not lists joined

"""Further kinds of defects: wear, dirt, faults of printing and of handling."""

from __future__ import annotations

import cv2
import numpy as np

from .. import fields as f
from ..fields import Array, Rng
from .scene import Scene, _clip, _ink, _spread, _walk, locate

TAU = 2 * np.pi


def scuff(scene: Scene, rng: Rng, strength: float) -> tuple[Array, Array]:
    """Abrasion: a haze of fine parallel marks."""
    x, y = locate(scene, rng)
    radius = _spread(rng, strength, 0.08, 0.28)
    zone = f.step(f.rough_blob(rng, scene.size, x, y, radius, 0.5), 0, 0.5)
    noise = rng.standard_normal((scene.size, scene.size), dtype=np.float32)
    length = max(int(scene.size * 0.08), 3)
    marks = cv2.blur(noise, (length, 1)) * np.sqrt(length)
    matrix = cv2.getRotationMatrix2D((scene.size / 2, scene.size / 2), rng.uniform(0, 360), 1.0)
    marks = cv2.warpAffine(marks, matrix, (scene.size, scene.size), borderMode=cv2.BORDER_REFLECT_101)
    alpha = _clip(scene, zone)
    tone = _ink(scene, alpha, rng, 0.4 + 0.5 * strength, 0.35)
    return f.blend(scene.image, tone, alpha * (0.3 + 0.6 * strength) * f.step(marks, 0.2, 1.2)), f.step(
        alpha, 0.35, 0.3
    )


def rust(scene: Scene, rng: Rng, strength: float) -> tuple[Array, Array]:
    """Corrosion: a brown, scabby bloom."""
    x, y = locate(scene, rng)
    radius = _spread(rng, strength, 0.06, 0.22)
    field = f.rough_blob(rng, scene.size, x, y, radius, 1.2)
    alpha = _clip(scene, f.step(field, 0, 0.3))
    tone = np.array([0.5, 0.27, 0.12], np.float32) * rng.uniform(0.6, 1.3)
    sheet = f.paint(tone, 1 + 0.3 * f.fractal(rng, scene.size, 20, 0.8, 3))
    return f.blend(scene.image, sheet, alpha * (0.4 + 0.55 * strength)), alpha


def bubble(scene: Scene, rng: Rng, strength: float) -> tuple[Array, Array]:
    """Blisters and trapped air: round rims with a highlight."""
    x, y = locate(scene, rng, 0.03)
    radius, alpha = _spread(rng, strength, 0.025, 0.09), np.zeros_like(scene.silhouette)
    for k in range(1 + rng.poisson(1.2)):
        dx, dy = rng.normal(0, 3 * radius, 2) if k else (0.0, 0.0)
        alpha = np.maximum(alpha, f.disc(scene.size, x + dx, y + dy, radius * (rng.uniform(0.4, 1) if k else 1)))
    alpha = _clip(scene, alpha)
    height = f.bevel(alpha, radius * scene.size)
    shade = f.relief(height * radius * scene.size, rng.uniform(0, TAU), 0.35 + 0.6 * strength)
    return np.clip(scene.image * (1 + shade * alpha)[..., None] + 0.1 * (shade * alpha)[..., None], 0, 1), alpha


def patch(scene: Scene, rng: Rng, strength: float) -> tuple[Array, Array]:
    """An area of foreign material or wrong structure."""
    x, y = locate(scene, rng)
    radius = _spread(rng, strength, 0.06, 0.22)
    if f.chance(rng, 0.5):
        alpha = f.step(f.rough_blob(rng, scene.size, x, y, radius, rng.uniform(0, 0.9)), 0, 0.15)
    else:
        outline = f.box(2, rng.uniform(0.4, 2), rng.uniform(0, 0.5))
        alpha = f.polygon(scene.size, f.turn(outline, rng.uniform(0, TAU), x, y, radius))
    alpha = _clip(scene, alpha)
    donor = scene.donor()
    if f.chance(rng, 0.5):  # keep the tone of the surroundings: only the structure differs
        local = (scene.image * alpha[..., None]).sum((0, 1)) / (float(alpha.sum()) + 1e-6)
        donor = np.clip(donor - donor.mean((0, 1)) * 0.9 + local * 0.9, 0, 1)
    return f.blend(scene.image, donor.astype(np.float32), alpha * (0.4 + 0.6 * strength)), alpha


def smear(scene: Scene, rng: Rng, strength: float) -> tuple[Array, Array]:
    """Structure wiped, melted or pulled in a direction."""
    x, y = locate(scene, rng)
    radius = _spread(rng, strength, 0.1, 0.28)
    alpha = _clip(scene, f.step(f.rough_blob(rng, scene.size, x, y, radius, 0.4), 0, 0.3))
    length = max(int(scene.size * (0.06 + 0.12 * strength)), 3)
    wiped = cv2.blur(scene.image, (length, 1) if f.chance(rng, 0.5) else (1, length))
    if f.chance(rng, 0.4):
        wiped = f.blur(scene.image, scene.size * 0.04)
    tone = _ink(scene, alpha, rng, 0.3 * strength, 0.5)
    return f.blend(scene.image, f.blend(wiped, tone, 0.25), alpha), alpha


def distortion(scene: Scene, rng: Rng, strength: float) -> tuple[Array, Array]:
    """The structure itself is warped: pulled mesh, crooked weave, swirl."""
    x, y = locate(scene, rng)
    radius = _spread(rng, strength, 0.12, 0.3)
    gx, gy = f.grid(scene.size)
    bump = np.exp(-(((gx - x) ** 2 + (gy - y) ** 2) / (0.5 * radius * radius)))
    push = scene.size * radius * (0.15 + 0.45 * strength)
    image = f.warp(
        scene.image,
        push * bump * f.smooth_noise(rng, scene.size, 0.8 / radius),
        push * bump * f.smooth_noise(rng, scene.size, 0.8 / radius),
    )
    changed = np.abs(image - scene.image).max(2)
    return image, f.step(f.blur(changed, 0.02 * scene.size), 0.03, 0.02) * (bump > 0.15)


def line_fault(scene: Scene, rng: Rng, strength: float) -> tuple[Array, Array]:
    """A stripe across the piece: a missing or thick thread, a roller mark, a broken bar."""
    x, y = locate(scene, rng)
    width = scene.size * _spread(rng, strength, 0.008, 0.05)
    t = rng.choice([0, np.pi / 2]) + rng.normal(0, 0.03)
    length = rng.uniform(0.25, 1.5)
    ray = 0.5 * length * np.array([np.cos(t), np.sin(t)])
    alpha = _clip(scene, f.polyline(scene.size, np.array([[x, y] - ray, [x, y] + ray]), width))
    if f.chance(rng, 0.4):
        paint = np.roll(scene.image, int(3 * width) + 2, 0 if abs(np.cos(t)) > 0.7 else 1)
        paint = f.blend(paint, _ink(scene, alpha, rng, strength, 0.5), 0.4)
    else:
        paint = f.paint(_ink(scene, alpha, rng, 0.2 + 0.7 * strength, 0.5), 1 + 0.05 * f.fractal(rng, scene.size, 20))
    return f.blend(scene.image, paint, alpha * (0.5 + 0.5 * strength)), alpha


def fold(scene: Scene, rng: Rng, strength: float) -> tuple[Array, Array]:
    """A crease: a bright and a dark flank side by side."""
    x, y = locate(scene, rng)
    length, width = _spread(rng, strength, 0.25, 0.9), scene.size * _spread(rng, strength, 0.012, 0.035)
    alpha = f.polyline(scene.size, _walk(rng, x, y, length, 0.08, 8), max(2.2 * width, 2.0))
    height = f.blur(alpha, width)
    shade = f.relief(height * scene.size * 0.12, rng.uniform(0, TAU), 0.3 + 0.7 * strength)
    alpha = _clip(scene, alpha)
    return np.clip(scene.image * (1 + 1.5 * shade * scene.silhouette)[..., None], 0, 1), alpha


def glue(scene: Scene, rng: Rng, strength: float) -> tuple[Array, Array]:
    """Transparent residue: glue, oil, water, with a gloss at its edge."""
    x, y = locate(scene, rng)
    radius = _spread(rng, strength, 0.05, 0.2)
    field = np.clip(f.rough_blob(rng, scene.size, x, y, radius, 0.5), 0, 1)
    alpha = _clip(scene, f.step(field, 0.05, 0.1))
    height = np.sqrt(np.clip(field, 0, 0.4) / 0.4)
    shade = f.relief(f.blur(height, 1.0) * scene.size * 0.06, rng.uniform(0, TAU), 0.4 + 0.5 * strength)
    body = f.blend(scene.image, np.full(3, rng.uniform(0.5, 0.95), np.float32), 0.12 + 0.35 * strength * rng.random())
    body = body * (1 + shade)[..., None] + (0.5 * np.clip(shade - 0.15, 0, 1))[..., None]
    return f.blend(scene.image, body, alpha), alpha


def burn(scene: Scene, rng: Rng, strength: float) -> tuple[Array, Array]:
    """A scorched spot: black heart, brown halo."""
    x, y = locate(scene, rng)
    radius = _spread(rng, strength, 0.06, 0.2)
    field = f.rough_blob(rng, scene.size, x, y, radius, 0.5)
    halo, heart = f.step(field, 0.1, 0.5), f.step(field, 0.5, 0.4)
    brown = np.array([0.3, 0.17, 0.08], np.float32)
    alpha = _clip(scene, halo)
    image = f.blend(scene.image, scene.image * 0.4 + brown * 0.4, alpha * (0.4 + 0.6 * strength))
    return f.blend(image, brown * 0.2, _clip(scene, heart) * (0.3 + 0.7 * strength)), alpha
