# Copyright (C) 2026 anomalib-zsclip contributors
# SPDX-License-Identifier: Apache-2.0
# ruff: noqa: RUF005 - arrays are added here, not lists joined

"""Object families: things on a background.

A family is a function ``(style, rng, canvas)`` that draws one specimen on a :class:`Canvas`. ``style`` fixes the
product, ``rng`` the specimen, as for the textures. The canvas keeps the silhouette, so that defects know where the
object is, and the background, so that a missing part shows it.
"""

from __future__ import annotations

from collections.abc import Callable
from itertools import pairwise

import cv2
import numpy as np

from . import fields as f
from . import textures
from .fields import Array, Rng

TAU = 2 * np.pi

BACKGROUNDS: tuple[Callable[[Rng, Rng, int], Array], ...] = (
    textures.surface,
    textures.brushed_metal,
    textures.concrete,
    textures.woven,
    textures.wood,
    textures.carpet,
    textures.cardboard,
    textures.granite,
)


def background(style: Rng, rng: Rng, size: int) -> Array:
    """What lies behind the object: mostly plain, sometimes a texture. ``(size, size, 3)``."""
    kind = style.random()
    if kind < 0.22:
        return f.paint(np.full(3, style.uniform(0.0, 0.12), np.float32), np.ones((size, size), np.float32))
    if kind < 0.42:
        return f.paint(np.full(3, style.uniform(0.85, 1.0), np.float32), np.ones((size, size), np.float32))
    if kind < 0.75:
        return textures.plain(style, rng, size)
    return BACKGROUNDS[int(style.integers(len(BACKGROUNDS)))](style, rng, size)


class Canvas:
    """An image under construction, drawn in the coordinates of the object.

    The object's frame has its origin at the centre and unit half-width; ``pose`` places it in the image.

    Args:
        image: background, ``(size, size, 3)``; drawn upon in place of a copy.
        light: direction of the light in radians, shared by all bevels.
    """

    def __init__(self, image: Array, light: float) -> None:
        self.size = image.shape[0]
        self.image = np.array(image, np.float32)
        self.backdrop = image
        self.silhouette = np.zeros(image.shape[:2], np.float32)
        self.light = light
        self.pose(0.5, 0.5, 0.38, 0.0)

    def pose(self, cx: float, cy: float, scale: float, angle: float) -> None:
        """Place the object's frame: centre, half-width (both in image sides) and angle."""
        self.cx, self.cy, self.scale, self.angle = cx, cy, scale, angle

    def place(self, style: Rng, rng: Rng, turn: float | None = None, scale: tuple[float, float] = (0.3, 0.46)) -> None:
        """A pose that is the product's own up to a small play; ``turn`` bounds the random rotation (default free)."""
        free = f.chance(style, 0.5) if turn is None else False
        base = (
            style.uniform(0, TAU)
            if turn is None
            else style.choice([0, np.pi / 2, style.uniform(0, TAU)], p=[0.5, 0.2, 0.3])
        )
        angle = rng.uniform(0, TAU) if free else base + rng.normal(0, 0.04 if turn is None else turn)
        shift = rng.normal(0, 0.012, 2) + style.uniform(-0.05, 0.05, 2)
        self.pose(0.5 + shift[0], 0.5 + shift[1], style.uniform(*scale) * (1 + rng.normal(0, 0.01)), float(angle))

    def points(self, outline: Array) -> Array:
        """Outline from the object's frame into image coordinates."""
        return f.turn(outline, self.angle, self.cx, self.cy, self.scale)

    def mask(self, outline: Array) -> Array:
        """Mask of an outline given in the object's frame."""
        return f.polygon(self.size, self.points(outline))

    def disc(self, radius: float, x: float = 0.0, y: float = 0.0, ry: float | None = None, angle: float = 0.0) -> Array:
        """Mask of an ellipse given in the object's frame."""
        centre = self.points(np.array([[x, y]]))[0]
        second = None if ry is None else ry * self.scale
        return f.disc(self.size, centre[0], centre[1], radius * self.scale, second, self.angle + angle)

    def line(self, path: Array, width: float, closed: bool = False) -> Array:
        """Mask of a line in the object's frame; ``width`` in its units."""
        return f.polyline(self.size, self.points(path), width * self.scale * self.size, closed)

    def shadow(self, mask: Array, strength: float, offset: float = 0.03) -> None:
        """Darken the ground beside a part, away from the light."""
        d = offset * self.size
        matrix = np.array([[1, 0, -d * np.cos(self.light)], [0, 1, -d * np.sin(self.light)]], np.float32)
        soft = f.blur(cv2.warpAffine(mask, matrix, (self.size, self.size)), 0.6 * d)
        self.image *= (1 - strength * soft)[..., None]

    def add(self, mask: Array, paint: Array, bevel: float = 0.0, gloss: float = 0.35, solid: bool = True) -> None:
        """Draw a part: colour ``(3,)`` or image, with shading over a rim of ``bevel`` image sides.

        Parts that are not ``solid`` (print, grooves) do not extend the silhouette.
        """
        if paint.ndim == 1:
            paint = np.broadcast_to(paint, self.image.shape)
        if bevel > 0:
            height = f.bevel(mask, bevel * self.size)
            shade = f.relief(height * bevel * self.size, self.light, gloss)
            paint = paint * (1 + shade)[..., None]
        self.image = f.blend(self.image, paint.astype(np.float32), mask)
        if solid:
            self.silhouette = np.maximum(self.silhouette, mask)

    def cut(self, mask: Array) -> None:
        """Open a hole that shows the background."""
        self.image = f.blend(self.image, self.backdrop, mask)
        self.silhouette = self.silhouette * (1 - mask)


def material(style: Rng, rng: Rng, size: int) -> tuple[Array, Array]:
    """A base colour and a sheet of that material."""
    kind = style.random()
    if kind < 0.35:
        base = f.blend(np.full(3, style.uniform(0.3, 0.8), np.float32), f.colour(style), style.uniform(0, 0.2))
        grain = style.uniform(0.01, 0.08) * f.fractal(rng, size, f.log_uniform(style, 6, 50), 0.8, 2)
    elif kind < 0.5:
        base = f.earthy(style)
        grain = style.uniform(0.02, 0.1) * f.fractal(rng, size, f.log_uniform(style, 4, 30), 0.7, 3)
    else:
        base = f.colour(style)
        grain = style.uniform(0.0, 0.03) * f.fractal(rng, size, f.log_uniform(style, 2, 20), 0.5, 2)
    return base, f.paint(base, 1 + grain)


def imprint(style: Rng, canvas: Canvas, x: float, y: float, height: float, ink: Array, length: int = 0) -> None:
    """A few printed characters, always the same for a product."""
    letters = "ABCDEFGHKLMNPRSTUVXYZ0123456789"
    text = "".join(letters[i] for i in style.integers(0, len(letters), length or int(style.integers(2, 6))))
    pad = np.zeros((32, 22 * len(text) + 12), np.uint8)
    cv2.putText(pad, text, (4, 26), cv2.FONT_HERSHEY_SIMPLEX, 0.95, 255, int(style.integers(2, 4)), cv2.LINE_AA)
    scale = height * canvas.scale * canvas.size / 32
    c, s = np.cos(canvas.angle) * scale, np.sin(canvas.angle) * scale
    px, py = canvas.points(np.array([[x, y]]))[0] * canvas.size
    w, h = pad.shape[1] / 2, pad.shape[0] / 2
    matrix = np.array([[c, -s, px - c * w + s * h], [s, c, py - s * w - c * h]], np.float32)
    mask = cv2.warpAffine(pad, matrix, (canvas.size, canvas.size), flags=cv2.INTER_AREA).astype(np.float32) / 255
    canvas.add(mask * 0.9, ink, solid=False)


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
