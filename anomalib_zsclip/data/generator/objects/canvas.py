# Copyright (C) 2026 anomalib-zsclip contributors
# SPDX-License-Identifier: Apache-2.0


"""What objects are drawn on, and what they are made of and marked with."""

from __future__ import annotations

from collections.abc import Callable

import cv2
import numpy as np

from .. import fields as f
from .. import textures
from ..fields import Array, Rng

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
