# Copyright (C) 2026 anomalib-zsclip contributors
# SPDX-License-Identifier: Apache-2.0
# ruff: noqa: RUF005 - arrays are added here, not lists joined

"""Food, fittings, fasteners, and things put together."""

from __future__ import annotations

from itertools import pairwise

import numpy as np

from .. import fields as f
from .. import textures
from ..fields import Rng
from .canvas import Canvas, imprint, material

TAU = 2 * np.pi


def cookie(style: Rng, rng: Rng, canvas: Canvas) -> None:
    """Baked goods: irregular discs with chips."""
    canvas.place(style, rng)
    base = f.earthy(style)
    solid = canvas.mask(f.blob_outline(rng, 0.97, style.uniform(0.02, 0.12)))
    canvas.shadow(solid, style.uniform(0.1, 0.5))
    crumb = f.fractal(rng, canvas.size, 14, 0.8, 3)
    canvas.add(solid, f.paint(base, 1 + 0.1 * crumb), 0.08, 0.5)
    chip = base * style.uniform(0.25, 0.5)
    for _ in range(int(style.integers(0, 16))):
        t, r = rng.uniform(0, TAU), 0.8 * np.sqrt(rng.random())
        outline = f.blob_outline(rng, rng.uniform(0.06, 0.13)) + [r * np.cos(t), r * np.sin(t)]
        canvas.add(canvas.mask(outline), chip, 0.015, 0.5, solid=False)


def fruit(style: Rng, rng: Rng, canvas: Canvas) -> None:
    """Nuts, fruit, seeds and stones: rounded natural bodies."""
    canvas.place(style, rng)
    base = f.earthy(style) if f.chance(style, 0.6) else f.colour(style)
    outline = f.blob_outline(rng, 0.95, style.uniform(0.03, 0.2)) * [1.0, style.uniform(0.6, 1.0)]
    solid = canvas.mask(outline)
    canvas.shadow(solid, style.uniform(0.1, 0.5))
    skin = f.fractal(rng, canvas.size, f.log_uniform(style, 4, 25), 0.7, 3, f.log_uniform(style, 0.3, 3))
    canvas.add(solid, f.paint(base, 1 + style.uniform(0.03, 0.15) * skin), 0.3 * canvas.scale / 0.4, 0.5)
    if f.chance(style, 0.5):
        spot = canvas.mask(f.blob_outline(rng, 0.25) + [0.55, 0]) * canvas.silhouette
        canvas.add(f.blur(spot, 0.015 * canvas.size), base * style.uniform(0.5, 1.4), solid=False)


def connector(style: Rng, rng: Rng, canvas: Canvas) -> None:
    """Plugs, sockets and terminal blocks: rows of pins in a housing."""
    canvas.place(style, rng, turn=0.03, scale=(0.38, 0.48))
    body, metal = f.colour(style, grey=0.5), f.colour(style, grey=0.8, low=0.5)
    rows, columns = int(style.integers(1, 4)), int(style.integers(4, 10))
    height = 0.25 + 0.32 * rows
    housing = canvas.mask(f.box(1.9, height + 0.15, style.uniform(0, 0.12)))
    canvas.shadow(housing, style.uniform(0, 0.45))
    canvas.add(housing, body, 0.03, 0.4)
    canvas.add(canvas.mask(f.box(1.7, height, 0.05)), body * 0.55, solid=False)
    square, radius = f.chance(style, 0.5), style.uniform(0.05, 0.075)
    for r in range(rows):
        for c in range(columns):
            x, y = -0.72 + 1.44 * c / (columns - 1), (r + 0.5 - rows / 2) * 0.32
            pin = canvas.mask(f.box(2 * radius, 2 * radius) + [x, y]) if square else canvas.disc(radius, x, y)
            canvas.add(pin, metal, 0.01, 0.6, solid=False)


def zipper(style: Rng, rng: Rng, canvas: Canvas) -> None:
    """Zip fasteners: two rows of teeth on tape."""
    angle = float(style.choice([0, np.pi / 2, style.uniform(0, TAU)]) + rng.normal(0, 0.02))
    canvas.pose(0.5 + rng.normal(0, 0.01), 0.5 + rng.normal(0, 0.01), 0.5, angle)
    tape = f.colour(style)
    cloth = f.paint(
        tape, 1 + 0.12 * f.smooth_noise(rng, canvas.size, canvas.size * 0.4) + 0.05 * f.fractal(rng, canvas.size, 10)
    )
    canvas.add(canvas.mask(f.box(3.2, style.uniform(0.9, 1.6))), cloth)
    tooth = f.contrasting(style, tape, 0.2)
    pitch, width, shift = style.uniform(0.09, 0.17), style.uniform(0.22, 0.34), rng.random()
    for k in range(-int(1.6 / pitch), int(1.6 / pitch)):
        x, side = (k + shift) * pitch, 1 if k % 2 else -1
        part = canvas.mask(f.box(pitch * 0.8, width, pitch * 0.25) + [x, side * width * 0.28])
        canvas.add(part, tooth, 0.008, 0.6, solid=False)


def transistor(style: Rng, rng: Rng, canvas: Canvas) -> None:
    """Electronic parts with a body and legs."""
    canvas.place(style, rng, turn=0.03)
    body, metal = f.colour(style, grey=0.8, high=0.45), np.full(3, style.uniform(0.55, 0.85), np.float32)
    legs, width = int(style.integers(2, 6)), style.uniform(0.9, 1.7)
    for k in range(legs):
        x = (k + 0.5 - legs / 2) * width * 0.85 / legs
        leg = canvas.mask(f.box(0.09, 1.1) + [x, 0.45])
        canvas.shadow(leg, 0.2)
        canvas.add(leg, metal, 0.008, 0.6)
    case = canvas.mask(f.box(width, 0.95, style.uniform(0, 0.3)) + [0, -0.45])
    canvas.shadow(case, style.uniform(0, 0.4))
    canvas.add(case, body, 0.02, 0.5)
    imprint(style, canvas, 0, -0.45, 0.28, metal, int(style.integers(3, 5)))


def rod(style: Rng, rng: Rng, canvas: Canvas) -> None:
    """Pens, tubes, shafts and vials: long round bodies in sections."""
    canvas.place(style, rng, scale=(0.42, 0.49))
    half = style.uniform(0.12, 0.3)
    edges = np.concatenate([[-1], np.sort(style.uniform(-0.85, 0.85, int(style.integers(1, 5)))), [1]])
    canvas.shadow(canvas.mask(f.box(2, 2 * half)), style.uniform(0, 0.4))
    for left, right in pairwise(edges):
        _, sheet = material(style, rng, canvas.size)
        h = half * style.uniform(0.75, 1.0)
        part = canvas.mask(f.box(right - left, 2 * h, style.uniform(0, 0.05)) + [(left + right) / 2, 0])
        canvas.add(part, sheet, h * canvas.scale * 0.9, 0.5)


def tray(style: Rng, rng: Rng, canvas: Canvas) -> None:
    """Many equal pieces in rows: blisters, chocolates, candles, macaroni."""
    angle = float(style.choice([0, style.uniform(0, TAU)]) + rng.normal(0, 0.02))
    canvas.pose(0.5, 0.5, 0.47, angle)
    rows, columns = int(style.integers(2, 5)), int(style.integers(2, 5))
    if f.chance(style, 0.4):
        canvas.add(canvas.mask(f.box(1.98, 1.98, 0.08)), f.colour(style), 0.01, 0.3)
    base, shape = f.colour(style), int(style.integers(0, 5))
    radius, strength = 0.72 / max(rows, columns), style.uniform(0, 0.4)
    own_turn, hollow = f.chance(style, 0.4), f.chance(style, 0.35)
    outline = [
        f.regular(24, 1.0),
        f.box(1.8, 1.8, 0.3),
        f.blob_outline(style, 0.9),
        f.box(2, 1.0, 0.5),
        f.regular(int(style.integers(3, 8)), 1.0, 0.6),
    ][shape]
    for r in range(rows):
        for c in range(columns):
            x, y = (c + 0.5 - columns / 2) * 1.9 / columns, (r + 0.5 - rows / 2) * 1.9 / rows
            turn = rng.uniform(0, TAU) if own_turn else rng.normal(0, 0.03)
            piece = canvas.mask(f.turn(outline, turn, x + rng.normal(0, 0.01), y + rng.normal(0, 0.01), radius))
            canvas.shadow(piece, strength, 0.015)
            canvas.add(piece, f.near(rng, base, 0.02), radius * 0.25, 0.5)
            if hollow:
                canvas.add(canvas.disc(radius * 0.4, x, y), base * 0.45, 0.01, 0.4, solid=False)


def bearing(style: Rng, rng: Rng, canvas: Canvas) -> None:
    """Ball bearings: balls between two rings."""
    canvas.place(style, rng)
    base, sheet = material(style, rng, canvas.size)
    canvas.shadow(canvas.disc(1.0), style.uniform(0, 0.5))
    canvas.add(canvas.disc(1.0), sheet, 0.025, 0.5)
    canvas.add(canvas.disc(0.82), base * style.uniform(0.2, 0.5), 0.0)
    balls, phase = int(style.integers(6, 13)), rng.uniform(0, TAU)
    for k in range(balls):
        t = TAU * k / balls + phase
        canvas.add(canvas.disc(0.13, 0.66 * np.cos(t), 0.66 * np.sin(t)), base * 1.2, 0.045, 0.6)
    canvas.add(canvas.disc(0.5), sheet, 0.025, 0.5)
    canvas.cut(canvas.disc(style.uniform(0.25, 0.38)))


def dial(style: Rng, rng: Rng, canvas: Canvas) -> None:
    """Gauges, clocks and scales: ticks, figures and a hand."""
    canvas.place(style, rng, turn=0.03)
    face = f.colour(style, grey=0.6)
    ink = f.contrasting(style, face, 0.35)
    canvas.shadow(canvas.disc(1.0), style.uniform(0, 0.4))
    canvas.add(canvas.disc(1.0), f.colour(style, grey=0.7), 0.03, 0.5)
    canvas.add(canvas.disc(0.88), face)
    ticks = int(style.choice([8, 10, 12, 20, 24]))
    for k in range(ticks):
        t = TAU * k / ticks
        ray = np.array([[np.cos(t), np.sin(t)]])
        canvas.add(canvas.line(np.concatenate([0.7 * ray, 0.82 * ray]), 0.035), ink, solid=False)
    imprint(style, canvas, 0, 0.35, 0.22, ink, 3)
    t = rng.uniform(0, TAU)
    canvas.add(
        canvas.line(np.array([[0, 0], [0.62 * np.cos(t), 0.62 * np.sin(t)]]), 0.05), f.colour(style), solid=False
    )
    canvas.add(canvas.disc(0.09), ink, 0.01, 0.4, solid=False)


def bottle(style: Rng, rng: Rng, canvas: Canvas) -> None:
    """Bottles, vases, bulbs and pins from the side: a turned profile."""
    canvas.place(style, rng, turn=0.03, scale=(0.42, 0.49))
    y = np.linspace(-1, 1, 30)
    profile = np.interp(y, np.linspace(-1, 1, 7), style.uniform(0.15, 0.55, 7))
    profile = np.convolve(np.pad(profile, 2, mode="edge"), np.ones(5) / 5, "valid")
    outline = np.concatenate([np.stack([profile, y], 1), np.stack([-profile, y], 1)[::-1]])
    solid = canvas.mask(outline)
    _, sheet = material(style, rng, canvas.size)
    canvas.shadow(solid, style.uniform(0, 0.4))
    canvas.add(solid, sheet, 0.14, 0.5)
    if f.chance(style, 0.6):
        band = solid * canvas.mask(f.box(2, style.uniform(0.3, 0.7)) + [0, style.uniform(-0.2, 0.5)])
        paper = f.colour(style, low=0.5)
        canvas.add(band, paper, 0.14, 0.35, solid=False)
        imprint(style, canvas, 0, 0.25, 0.22, f.contrasting(style, paper), 3)


def leaf(style: Rng, rng: Rng, canvas: Canvas) -> None:
    """Leaves and feathers: a pointed blade with veins."""
    canvas.place(style, rng, scale=(0.42, 0.48))
    base = f.colour(style, grey=0.15)
    x = np.linspace(-1, 1, 24)
    width = style.uniform(0.3, 0.6) * np.power(1 - x * x, style.uniform(0.6, 1.2)) * (1 - 0.3 * style.random() * x)
    ragged = 1 + 0.03 * rng.standard_normal(24)
    blade = canvas.mask(
        np.concatenate([np.stack([x, width * ragged], 1), np.stack([x, -width * ragged[::-1]], 1)[::-1]])
    )
    canvas.shadow(blade, style.uniform(0, 0.4))
    canvas.add(blade, f.paint(base, 1 + 0.1 * f.fractal(rng, canvas.size, 8)), 0.03, 0.3)
    vein = f.near(style, base, 0.4)
    canvas.add(canvas.line(np.array([[-1, 0], [0.98, 0]]), 0.035), vein, solid=False)
    for v in np.linspace(-0.75, 0.7, int(style.integers(5, 10))):
        for side in (1, -1):
            path = np.array([[v, 0], [v + 0.22, side * 0.4]])
            canvas.add(canvas.line(path, 0.02) * canvas.silhouette * 0.8, vein, solid=False)


def spring(style: Rng, rng: Rng, canvas: Canvas) -> None:
    """Coil springs, chains and wound wire."""
    canvas.place(style, rng, scale=(0.42, 0.49))
    wire = f.colour(style, grey=0.7, low=0.3)
    turns, half, thick = int(style.integers(6, 14)), style.uniform(0.22, 0.5), style.uniform(0.05, 0.1)
    t = np.linspace(0, TAU * turns, 24 * turns)
    front = np.stack([np.linspace(-0.95, 0.95, t.size), half * np.sin(t)], 1)
    mask = canvas.line(front, thick)
    canvas.shadow(mask, style.uniform(0, 0.4), 0.02)
    canvas.add(mask, wire, thick * canvas.scale * 0.5, 0.7)
    if f.chance(style, 0.4):
        back = np.stack([np.linspace(-0.95, 0.95, t.size), -half * np.sin(t)], 1)
        canvas.add(canvas.line(back, thick), wire * 0.75, thick * canvas.scale * 0.5, 0.7)


def widget(style: Rng, rng: Rng, canvas: Canvas) -> None:
    """Made-up assemblies of random shapes: what no catalogue lists."""
    canvas.place(style, rng)
    symmetric = f.chance(style, 0.5)
    for index in range(int(style.integers(2, 8))):
        x, y = (0.0, 0.0) if index == 0 else style.uniform(-0.65, 0.65, 2)
        radius = style.uniform(0.6, 0.95) if index == 0 else style.uniform(0.1, 0.4)
        kind = style.integers(0, 6)
        outline = [
            f.regular(28, radius),
            f.box(2 * radius, 2 * radius * style.uniform(0.4, 1), radius * style.uniform(0, 0.6)),
            f.regular(int(style.integers(3, 9)), radius),
            f.regular(int(style.integers(4, 12)), radius, radius * style.uniform(0.5, 0.9)),
            f.blob_outline(style, radius),
            f.gear_outline(int(style.integers(6, 18)), radius, 0.2),
        ][kind]
        outline = f.turn(outline, style.uniform(0, TAU), x, y)
        _, sheet = material(style, rng, canvas.size)
        bevel, cut, outlined = style.uniform(0, 0.04), index > 0 and f.chance(style, 0.2), f.chance(style, 0.2)
        for side in (1, -1) if symmetric and index else (1,):
            part = canvas.mask(outline * [side, 1])
            if cut:
                canvas.cut(part)
            elif outlined and index:
                canvas.add(canvas.line(outline * [side, 1], 0.05, closed=True), sheet, solid=False)
            else:
                if index == 0:
                    canvas.shadow(part, style.uniform(0, 0.5))
                canvas.add(part, sheet, bevel, 0.45)


def plate_with_border(style: Rng, rng: Rng, canvas: Canvas) -> None:
    """A flat piece of a texture that ends inside the picture: slabs, bars, tiles, swatches."""
    sheets = (
        textures.cast_metal, textures.surface, textures.brushed_metal, textures.concrete, textures.wood,
        textures.leather, textures.granite, textures.noise_field, textures.woven, textures.turned_metal, textures.marble,
    )  # fmt: skip
    sheet = sheets[int(style.integers(len(sheets)))](style, rng, canvas.size)
    # Bars of any shape: sides may lie outside the picture, so only one or two borders show.
    w, h = style.uniform(1.2, 3.2), style.uniform(0.9, 3.2)
    canvas.pose(
        0.5 + rng.normal(0, 0.03),
        0.5 + rng.normal(0, 0.03),
        0.46,
        float(style.choice([0, style.uniform(0, TAU)], p=[0.7, 0.3]) + rng.normal(0, 0.02)),
    )
    piece = canvas.mask(f.box(w, h, style.choice([0, style.uniform(0, 0.4)])))
    canvas.shadow(piece, style.uniform(0, 0.4))
    canvas.add(piece, sheet, style.uniform(0.004, 0.02), 0.4)


def sheet_with_fittings(style: Rng, rng: Rng, canvas: Canvas) -> None:
    """A panel that fills the picture and carries screws, seams, lines or print."""
    _, sheet = material(style, rng, canvas.size)
    canvas.pose(0.5, 0.5, 0.5, float(rng.normal(0, 0.01)))
    canvas.add(np.ones_like(canvas.silhouette), sheet)
    base = sheet.mean((0, 1))
    for _ in range(int(style.integers(1, 4))):
        t, offset = style.choice([0, np.pi / 2]), style.uniform(-0.8, 0.8)
        path = f.turn(np.array([[-1.2, offset], [1.2, offset]]), t, 0, 0)
        seam = canvas.line(path, style.uniform(0.015, 0.05))
        canvas.add(seam * 0.8, base * style.uniform(0.4, 1.4), solid=False)
    for _ in range(int(style.integers(0, 6))):
        x, y = style.uniform(-0.85, 0.85, 2)
        radius = style.uniform(0.05, 0.13)
        canvas.add(canvas.disc(radius, x, y), base * style.uniform(0.6, 1.3), 0.015, 0.6, solid=False)
        slot = canvas.line(f.turn(np.array([[-radius, 0], [radius, 0]]), rng.uniform(0, TAU), x, y) * 0.999, 0.02)
        canvas.add(slot * 0.8, base * 0.3, solid=False)
    if f.chance(style, 0.5):
        imprint(
            style,
            canvas,
            style.uniform(-0.4, 0.4),
            style.uniform(-0.6, 0.6),
            style.uniform(0.2, 0.4),
            f.contrasting(style, base, 0.25),
        )
