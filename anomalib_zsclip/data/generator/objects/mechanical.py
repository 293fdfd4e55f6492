# Copyright (C) 2026 anomalib-zsclip contributors
# SPDX-License-Identifier: Apache-2.0
# ruff: noqa: RUF005 - arrays are added here, not lists joined

"""Mechanical and electrical parts, packaging, and small metal goods."""

from __future__ import annotations

import numpy as np

from .. import fields as f
from ..fields import Rng
from .canvas import Canvas, imprint, material

TAU = 2 * np.pi


def washer(style: Rng, rng: Rng, canvas: Canvas) -> None:
    """Rings, washers and seals."""
    canvas.place(style, rng)
    _, sheet = material(style, rng, canvas.size)
    inner, rim = style.uniform(0.3, 0.75), style.uniform(0.02, 0.06)
    ring = canvas.disc(1.0) - canvas.disc(inner)
    canvas.shadow(ring, style.uniform(0, 0.5))
    canvas.add(np.clip(ring, 0, 1), sheet, rim, 0.4)


def nut(style: Rng, rng: Rng, canvas: Canvas) -> None:
    """Polygonal and flanged nuts with a threaded hole."""
    canvas.place(style, rng)
    _, sheet = material(style, rng, canvas.size)
    sides = int(style.choice([4, 5, 6, 6, 6, 8]))
    outline = f.regular(sides, 1.0) if f.chance(style, 0.7) else f.regular(sides, 1.0, style.uniform(0.72, 0.9))
    solid = canvas.mask(outline)
    canvas.shadow(solid, style.uniform(0, 0.5))
    canvas.add(solid, sheet, style.uniform(0.02, 0.06), 0.4)
    hole = style.uniform(0.35, 0.55)
    canvas.add(canvas.disc(hole * 1.2), sheet * style.uniform(0.7, 1.15), 0.015, 0.4)
    canvas.cut(canvas.disc(hole))
    canvas.add(np.clip(canvas.disc(hole * 1.06) - canvas.disc(hole), 0, 1), sheet * 0.55)


def gear(style: Rng, rng: Rng, canvas: Canvas) -> None:
    """Gear wheels."""
    canvas.place(style, rng)
    _, sheet = material(style, rng, canvas.size)
    wheel = canvas.mask(f.gear_outline(int(style.integers(8, 26)), 1.0, style.uniform(0.12, 0.25)))
    canvas.shadow(wheel, style.uniform(0, 0.5))
    canvas.add(wheel, sheet, 0.02, 0.4)
    inner = style.uniform(0.55, 0.72)
    canvas.add(canvas.disc(inner), sheet * style.uniform(0.7, 1.2), 0.02, 0.3)
    holes = int(style.choice([0, 3, 4, 5, 6]))
    for k in range(holes):
        t = TAU * k / holes
        canvas.cut(canvas.disc(0.12, 0.42 * np.cos(t), 0.42 * np.sin(t)))
    canvas.cut(canvas.disc(style.uniform(0.12, 0.24)))


def screw(style: Rng, rng: Rng, canvas: Canvas) -> None:
    """Screws and bolts from the side."""
    canvas.place(style, rng, scale=(0.4, 0.48))
    _, sheet = material(style, rng, canvas.size)
    head, shank, length = style.uniform(0.2, 0.36), style.uniform(0.09, 0.18), style.uniform(0.75, 0.95)
    body = canvas.mask(
        np.array([[-0.55, -shank], [length - 0.15, -shank], [length, 0], [length - 0.15, shank], [-0.55, shank]])
    )
    if f.chance(style, 0.5):
        top = canvas.mask(np.array([[-0.95, -head], [-0.55, -shank], [-0.55, shank], [-0.95, head]]))
    else:
        top = canvas.mask(f.box(0.4, 2 * head, style.uniform(0, 0.15)) + [-0.75, 0])
    canvas.shadow(np.maximum(body, top), style.uniform(0, 0.45))
    canvas.add(body, sheet, shank * 0.3, 0.5)
    canvas.add(top, sheet, 0.04, 0.4)
    start, count = style.uniform(-0.5, 0.0), int(style.integers(9, 22))
    for x in np.linspace(start, length - 0.12, count):
        groove = canvas.line(np.array([[x, -shank * 1.08], [x + 0.05, shank * 1.08]]), 0.028)
        canvas.add(groove * 0.7, sheet * 0.5, solid=False)


def capsule(style: Rng, rng: Rng, canvas: Canvas) -> None:
    """Two-coloured capsules with print."""
    canvas.place(style, rng, scale=(0.36, 0.46))
    first, second = f.colour(style), f.colour(style)
    half = style.uniform(0.26, 0.42)
    whole = canvas.mask(f.box(2, 2 * half, half))
    canvas.shadow(whole, style.uniform(0, 0.45))
    canvas.add(whole, first, half * canvas.scale * 0.9, 0.6)
    cap = whole * canvas.mask(f.box(1.2, 2) + [0.6 + style.uniform(-0.1, 0.2), 0])
    canvas.add(cap, second, half * canvas.scale * 0.9, 0.6)
    if f.chance(style, 0.7):
        imprint(style, canvas, -0.4, 0, half * 0.7, f.contrasting(style, first, 0.3), 3)
    glint = canvas.line(np.array([[-0.7, -half * 0.5], [0.7, -half * 0.5]]), 0.05)
    canvas.add(f.blur(glint, 0.006 * canvas.size) * style.uniform(0, 0.6), np.ones(3, np.float32), solid=False)


def pill(style: Rng, rng: Rng, canvas: Canvas) -> None:
    """Tablets: round or oval, plain or speckled, scored or printed."""
    canvas.place(style, rng)
    base = f.colour(style, low=0.5)
    ratio = style.uniform(0.5, 1.0)
    sheet = f.paint(base, 1 + style.uniform(0.0, 0.03) * f.fractal(rng, canvas.size, 20, 0.8, 2))
    if f.chance(style, 0.4):
        speckle = f.step(f.smooth_noise(rng, canvas.size, 36), style.uniform(1.4, 2.2), 0.3)
        sheet = f.blend(sheet, f.contrasting(style, base, 0.2), speckle * 0.8)
    tablet = canvas.disc(1.0, ry=ratio)
    canvas.shadow(tablet, style.uniform(0, 0.45))
    canvas.add(tablet, sheet, style.uniform(0.04, 0.12), 0.45)
    if f.chance(style, 0.5):
        canvas.add(canvas.line(np.array([[0, -0.85 * ratio], [0, 0.85 * ratio]]), 0.05) * 0.6, base * 0.6, solid=False)
    else:
        imprint(style, canvas, 0, 0, 0.42 * ratio, base * 0.6, int(style.integers(2, 4)))


def bottle_top(style: Rng, rng: Rng, canvas: Canvas) -> None:
    """The mouth of a bottle or jar from above: concentric rings."""
    canvas.place(style, rng)
    radius, base = 1.0, f.colour(style)
    canvas.shadow(canvas.disc(1.0), style.uniform(0, 0.5))
    for _ in range(int(style.integers(3, 7))):
        _, sheet = material(style, rng, canvas.size)
        tone = f.near(style, base, 0.35) if f.chance(style, 0.7) else f.colour(style)
        paint = f.blend(sheet, tone, 0.75)
        canvas.add(canvas.disc(radius), paint, style.uniform(0.01, 0.05), 0.5)
        radius *= style.uniform(0.6, 0.93)
    x, y = f.grid(canvas.size)
    angle = np.arctan2(y - canvas.cy, x - canvas.cx) - canvas.light
    canvas.image *= (1 + 0.18 * style.random() * np.cos(2 * angle) * canvas.silhouette)[..., None]


def board(style: Rng, rng: Rng, canvas: Canvas) -> None:
    """Populated circuit boards: traces, chips with pins, small parts, holes."""
    canvas.place(style, rng, turn=0.01, scale=(0.42, 0.5))
    size = canvas.size
    base = f.colour(style, grey=0.1, low=0.15, high=0.5)
    sheet = f.paint(base, 1 + 0.03 * f.fractal(rng, size, 8))
    canvas.add(canvas.mask(f.box(1.95, style.uniform(1.3, 1.95), 0.05)), sheet, 0.01, 0.3)
    copper = f.near(style, base, 0.5)
    for _ in range(int(style.integers(6, 14))):
        x, y = style.uniform(-0.85, 0.85), style.uniform(-0.6, 0.6)
        length = style.uniform(0.2, 0.7)
        t = style.integers(0, 4) * np.pi / 2
        path = np.array(
            [
                [x, y],
                [x + length * np.cos(t), y + length * np.sin(t)],
                [x + length * np.cos(t) + 0.15, y + length * np.sin(t) + 0.15],
            ]
        )
        canvas.add(canvas.line(path, 0.03) * canvas.silhouette * 0.8, copper, solid=False)
    metal = np.full(3, style.uniform(0.6, 0.85), np.float32)
    for _ in range(int(style.integers(3, 8))):
        x, y = style.uniform(-0.65, 0.65), style.uniform(-0.45, 0.45)
        w, h = style.uniform(0.15, 0.5), style.uniform(0.12, 0.4)
        pins = max(int(w / 0.08), 2)
        for px in np.linspace(x - w / 2 + 0.04, x + w / 2 - 0.04, pins):
            canvas.add(canvas.mask(f.box(0.035, h + 0.14) + [px, y]), metal, solid=False)
        body = f.colour(style, grey=0.7, high=0.4)
        part = canvas.mask(f.box(w, h, 0.02) + [x, y])
        canvas.add(part, body, 0.012, 0.4, solid=False)
        if f.chance(style, 0.4):
            imprint(style, canvas, x, y, 0.35 * h, metal, 3)
    for sx, sy in ((-0.85, -0.5), (0.85, 0.5), (-0.85, 0.5), (0.85, -0.5)):
        canvas.add(canvas.disc(0.08, sx, sy), metal, solid=False)
        canvas.add(canvas.disc(0.045, sx, sy), base * 0.2, solid=False)


def cable(style: Rng, rng: Rng, canvas: Canvas) -> None:
    """Cross-sections of cables: insulated strands in a sheath."""
    canvas.place(style, rng)
    sheath = f.colour(style)
    canvas.shadow(canvas.disc(1.0), style.uniform(0, 0.4))
    canvas.add(canvas.disc(1.0), sheath, 0.03, 0.35)
    canvas.add(canvas.disc(0.85), f.near(style, sheath, 0.4) * 0.6, 0.0)
    count = int(style.integers(2, 5))
    radius = {2: 0.4, 3: 0.38, 4: 0.33}[count]
    copper = np.array([0.75, 0.5, 0.3], np.float32) if f.chance(style, 0.6) else np.full(3, 0.7, np.float32)
    for k in range(count):
        t = TAU * k / count
        x, y = 0.45 * np.cos(t), 0.45 * np.sin(t)
        canvas.add(canvas.disc(radius, x, y), f.colour(style), 0.02, 0.35)
        inner = radius * 0.62
        for _ in range(int(8 * radius / 0.33)):
            a, r = rng.uniform(0, TAU), inner * np.sqrt(rng.random()) * 0.8
            strand = canvas.disc(inner * 0.3, x + r * np.cos(a), y + r * np.sin(a))
            canvas.add(strand, copper * rng.uniform(0.8, 1.1), 0.01, 0.5)


def can_lid(style: Rng, rng: Rng, canvas: Canvas) -> None:
    """Lids of cans and jars with a ring-pull or an embossed mark."""
    canvas.place(style, rng)
    base, sheet = material(style, rng, canvas.size)
    canvas.shadow(canvas.disc(1.0), style.uniform(0, 0.5))
    for radius in (1.0, style.uniform(0.86, 0.94), style.uniform(0.7, 0.82)):
        canvas.add(canvas.disc(radius), sheet * style.uniform(0.85, 1.1), style.uniform(0.01, 0.03), 0.6)
    if f.chance(style, 0.6):
        tab = canvas.mask(f.box(0.7, 0.34, 0.17) + [0.2, 0])
        canvas.add(tab, sheet * 1.15, 0.02, 0.6, solid=False)
        canvas.add(canvas.mask(f.box(0.26, 0.18, 0.09) + [0.35, 0]), base * 0.5, solid=False)
        canvas.add(canvas.disc(0.06, -0.02, 0), base * 0.7, 0.01, 0.5, solid=False)
    else:
        imprint(style, canvas, 0, 0, 0.35, f.contrasting(style, base, 0.25), 4)


def label(style: Rng, rng: Rng, canvas: Canvas) -> None:
    """Printed labels and tags: lines of text, a bar code, a mark."""
    canvas.place(style, rng, turn=0.02, scale=(0.4, 0.48))
    paper = f.colour(style, low=0.6, high=0.98)
    ink = f.contrasting(style, paper, 0.35)
    height = style.uniform(0.9, 1.8)
    sheet = canvas.mask(f.box(1.9, height, style.uniform(0, 0.15)))
    canvas.shadow(sheet, style.uniform(0, 0.35))
    canvas.add(sheet, f.paint(paper, 1 + 0.015 * f.fractal(rng, canvas.size, 12)), 0.008, 0.2)
    y = -height / 2 + 0.2
    while y < height / 2 - 0.15:
        kind = style.random()
        if kind < 0.6:
            imprint(
                style, canvas, style.uniform(-0.15, 0.15), y, style.uniform(0.16, 0.3), ink, int(style.integers(4, 9))
            )
            y += 0.28
        elif kind < 0.8:
            x = -0.7
            while x < 0.7:
                w = style.uniform(0.015, 0.06)
                canvas.add(canvas.mask(f.box(w, 0.22) + [x, y]), ink, solid=False)
                x += w + style.uniform(0.02, 0.06)
            y += 0.34
        else:
            stripe = canvas.mask(f.box(1.6, style.uniform(0.05, 0.14)) + [0, y])
            canvas.add(stripe, f.colour(style), solid=False)
            y += 0.24


def brush(style: Rng, rng: Rng, canvas: Canvas) -> None:
    """Brush heads and bristle pads: tufts in rows."""
    canvas.place(style, rng, turn=0.03, scale=(0.38, 0.46))
    base = f.colour(style)
    half = style.uniform(0.35, 0.8)
    handle = canvas.mask(f.box(1.95, 2 * half, half * style.uniform(0.3, 1)))
    canvas.shadow(handle, style.uniform(0, 0.4))
    canvas.add(handle, base, 0.03, 0.4)
    rows, columns = max(int(half * 6), 2), int(style.integers(7, 12))
    palette = [f.contrasting(style, base, 0.2) for _ in range(3)]
    pattern = style.integers(0, 3, (rows, columns))
    for r in range(rows):
        for c in range(columns):
            x = -0.75 + 1.5 * c / (columns - 1) + rng.normal(0, 0.008)
            y = (r + 0.5 - rows / 2) * 1.5 * half / rows + rng.normal(0, 0.008)
            tuft = canvas.disc(0.062, x, y)
            canvas.add(tuft, palette[pattern[r, c]] * rng.uniform(0.85, 1.1), 0.01, 0.5, solid=False)


def coin(style: Rng, rng: Rng, canvas: Canvas) -> None:
    """Coins, medals and stamped discs in relief."""
    canvas.place(style, rng)
    _, sheet = material(style, rng, canvas.size)
    size = canvas.size
    solid = canvas.disc(1.0)
    canvas.shadow(solid, style.uniform(0, 0.4))
    height = f.bevel(solid, 0.02 * size) - 0.6 * f.bevel(canvas.disc(0.88), 0.015 * size)
    motif = np.zeros_like(solid)
    for _ in range(int(style.integers(2, 6))):
        t, r = style.uniform(0, TAU), style.uniform(0, 0.45)
        x, y, radius = r * np.cos(t), r * np.sin(t), style.uniform(0.12, 0.4)
        if f.chance(style, 0.5):
            motif = np.maximum(motif, canvas.mask(f.blob_outline(style, radius) + [x, y]))
        else:
            motif = np.maximum(motif, canvas.mask(f.regular(int(style.integers(3, 8)), radius, radius * 0.5) + [x, y]))
    height = height + 0.7 * f.blur(motif, 0.006 * size)
    shade = f.relief(height * size * 0.02, canvas.light, style.uniform(0.3, 0.7))
    canvas.add(solid, np.asarray(sheet * (1 + shade)[..., None]))


def button(style: Rng, rng: Rng, canvas: Canvas) -> None:
    """Buttons with sewing holes, rotary knobs, sockets."""
    canvas.place(style, rng)
    _, sheet = material(style, rng, canvas.size)
    solid = canvas.disc(1.0) if f.chance(style, 0.75) else canvas.mask(f.box(1.8, 1.8, style.uniform(0.2, 0.7)))
    canvas.shadow(solid, style.uniform(0, 0.5))
    canvas.add(solid, sheet, 0.05, 0.5)
    canvas.add(canvas.disc(style.uniform(0.6, 0.8)), sheet * style.uniform(0.8, 1.1), 0.03, 0.5)
    count, radius = int(style.choice([2, 3, 4, 4])), style.uniform(0.08, 0.15)
    for k in range(count):
        t = TAU * k / count + np.pi / 4
        canvas.add(canvas.disc(radius, 0.28 * np.cos(t), 0.28 * np.sin(t)), sheet * 0.2, solid=False)


def bracket(style: Rng, rng: Rng, canvas: Canvas) -> None:
    """Stamped plates: straight-sided outlines with holes and slots."""
    canvas.place(style, rng)
    _, sheet = material(style, rng, canvas.size)
    w, h, t = 1.8, style.uniform(0.9, 1.8), style.uniform(0.3, 0.6)
    kind = style.integers(0, 4)
    if kind == 0:
        outline = f.box(w, h, style.uniform(0, 0.3))
    elif kind == 1:
        outline = np.array(
            [[-0.9, -h / 2], [0.9, -h / 2], [0.9, -h / 2 + t], [-0.9 + t, -h / 2 + t], [-0.9 + t, h / 2], [-0.9, h / 2]]
        )
    elif kind == 2:
        outline = np.array(
            [
                [-0.9, -h / 2],
                [0.9, -h / 2],
                [0.9, -h / 2 + t],
                [t / 2, -h / 2 + t],
                [t / 2, h / 2],
                [-t / 2, h / 2],
                [-t / 2, -h / 2 + t],
                [-0.9, -h / 2 + t],
            ]
        )
    else:
        outline = f.regular(int(style.integers(3, 9)), 1.0)
    plate = canvas.mask(outline)
    canvas.shadow(plate, style.uniform(0, 0.45))
    canvas.add(plate, sheet, style.uniform(0.008, 0.03), 0.4)
    placed = 0
    for _ in range(12):
        x, y, r = style.uniform(-0.8, 0.8), style.uniform(-h / 2, h / 2), style.uniform(0.07, 0.16)
        hole = canvas.disc(r, x, y)
        if (hole * canvas.silhouette).sum() > 0.97 * hole.sum() and placed < 4:
            canvas.cut(hole)
            placed += 1
