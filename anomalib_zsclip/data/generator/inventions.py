# Copyright (C) 2026 anomalib-zsclip contributors
# SPDX-License-Identifier: Apache-2.0

"""Invented families: textures and objects that no catalogue lists, each product another one.

The families of :mod:`textures` and :mod:`objects` are things with a name. A detector that has seen only those learns
what *they* look like when they are whole. Here the structure itself is drawn at random (spectra, lattices, outlines,
symmetries, layers), so that what is left to learn is what sets a defect apart from any structure.

The functions have the signatures of their neighbours: ``(style, rng, size)`` for textures, ``(style, rng, canvas)``
for objects.
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np

from . import fields as f
from . import objects, textures
from .fields import Array, Rng
from .objects import Canvas

TAU = 2 * np.pi

Texture = Callable[[Rng, Rng, int], Array]

#: Named textures that may appear inside an invention. Those held out of the training are not among them.
INGREDIENTS: tuple[Texture, ...] = (
    textures.surface, textures.plain, textures.brushed_metal, textures.cast_metal, textures.granite, textures.concrete,
    textures.wood, textures.leather, textures.woven, textures.twill, textures.carpet, textures.corduroy, textures.plaid,
    textures.tiles, textures.marble, textures.gravel, textures.foam, textures.perforated, textures.wire_grid,
    textures.bricks, textures.honeycomb, textures.cork, textures.printed, textures.noise_field, textures.turned_metal,
    textures.fur, textures.circuit,
)  # fmt: skip


def _palette(style: Rng, count: int) -> Array:
    """``(count, 3)`` colours that go together: shades of one, or unrelated."""
    base = f.colour(style)
    if f.chance(style, 0.55):
        spread = f.log_uniform(style, 0.05, 0.5)
        return np.stack([base] + [f.near(style, base, spread) for _ in range(count - 1)])
    return np.stack([base] + [f.colour(style) for _ in range(count - 1)])


def _coloured(palette: Array, field: Array) -> Array:
    """An image from a field in [0, 1] by interpolation in the palette."""
    stops = np.linspace(0, 1, len(palette))
    return np.stack([np.interp(field, stops, palette[:, k]) for k in range(3)], -1).astype(np.float32)


def spectrum(style: Rng, rng: Rng, size: int) -> Array:
    """Random noise with a random spectrum, bent by a random curve and coloured."""
    freq = np.fft.fftfreq(size, 1 / size).astype(np.float32)
    fx, fy = np.meshgrid(np.abs(freq[: size // 2 + 1]), freq)
    radius, angle = np.hypot(fx, fy) + 1e-3, np.arctan2(fy, fx)
    power = style.uniform(0, 0.3) * radius ** -style.uniform(0.5, 2.5)
    for _ in range(int(style.integers(1, 4))):
        centre, width = f.log_uniform(style, 1.5, size / 4), style.uniform(0.05, 0.6)
        lobe = np.exp(-((np.log(radius / centre) / width) ** 2)) / centre
        if f.chance(style, 0.6):  # oriented
            turn, sharp = style.uniform(0, np.pi), f.log_uniform(style, 1, 60)
            lobe = lobe * np.exp(sharp * (np.cos(2 * (angle - turn)) - 1))
        power = power + style.uniform(0.3, 1) * lobe
    power[0, 0] = 0
    phase = rng.standard_normal(radius.shape, dtype=np.float32) + 1j * rng.standard_normal(
        radius.shape, dtype=np.float32
    )
    field = np.fft.irfft2(phase * power, (size, size)).astype(np.float32)
    field /= field.std() + 1e-9
    curve, gain = int(style.integers(5)), f.log_uniform(style, 0.6, 4)
    field = [field / 5, np.tanh(gain * field) / 2, np.abs(field) / 3 - 0.5, np.sin(gain * field) / 2, field / 8][curve]
    image = _coloured(_palette(style, int(style.integers(2, 5))), np.clip(field + 0.5, 0, 1))
    if f.chance(style, 0.4):
        image = image * (1 + f.relief(field * f.log_uniform(style, 1, 8), style.uniform(0, TAU), 0.5))[..., None]
    depth = f.log_uniform(style, 0.15, 1)  # from hardly there to full contrast
    return f.blend(image.mean((0, 1)), image, depth)


def _element(style: Rng) -> Callable[[Array, Array], Array]:
    """A random small shape as an implicit function of cell coordinates in [-0.5, 0.5]: positive inside."""
    kind, radius = int(style.integers(6)), style.uniform(0.12, 0.46)
    power, ratio, count = f.log_uniform(style, 0.7, 6), f.log_uniform(style, 0.35, 1), int(style.integers(2, 8))
    wobble, inner = style.uniform(0.1, 0.5), style.uniform(0.4, 0.85)
    turn = style.choice([0.0, style.uniform(0, TAU)])
    c, s = np.cos(turn), np.sin(turn)

    def shape(x: Array, y: Array) -> Array:
        u, v = c * x + s * y, (-s * x + c * y) / ratio
        if kind == 0:  # superellipse
            return 1 - (np.abs(u / radius) ** power + np.abs(v / radius) ** power) ** (1 / power)
        if kind == 1:  # ring
            return (1 - inner) / 2 - np.abs(np.hypot(u, v) / radius - (1 + inner) / 2)
        if kind == 2:  # flower or star
            return 1 - np.hypot(u, v) / (radius * (1 + wobble * np.cos(count * np.arctan2(v, u))))
        if kind == 3:  # bar
            return 1 - np.abs(v) / (0.5 * radius)
        if kind == 4:  # cross
            return 1 - np.minimum(np.abs(u), np.abs(v)) / (0.4 * radius)
        return 1 - (np.abs(u) + np.abs(v)) / radius  # rhombus

    return shape


def lattice(style: Rng, rng: Rng, size: int) -> Array:
    """A random motif on a random lattice, more or less regular, flat or embossed."""
    pitch = f.log_uniform(style, 4, 24)
    angle = textures.orientation(style, rng)
    u, v = f.rotated(size, angle, (rng.random(), rng.random()))
    bend = style.uniform(0, 0.25) if f.chance(style, 0.5) else 0.0
    u = pitch * u + bend * f.smooth_noise(rng, size, 3)
    v = pitch * v * f.log_uniform(style, 0.6, 1.6) + bend * f.smooth_noise(rng, size, 3)
    skew = float(style.choice([0, 0.5, style.uniform(0, 1)], p=[0.4, 0.35, 0.25]))
    row = np.floor(v).astype(int)
    u = u + skew * (row % 2 if f.chance(style, 0.6) else row)
    column = np.floor(u).astype(int)
    cells = rng.random((5, 64, 64), dtype=np.float32)[:, row % 64, column % 64]
    jitter = style.uniform(0, 0.25) if f.chance(style, 0.5) else 0.0
    x = u - column - 0.5 + jitter * (cells[0] - 0.5)
    y = v - row - 0.5 + jitter * (cells[1] - 0.5)
    if f.chance(style, 0.15):  # every cell turned its own way
        t = TAU * cells[2]
        x, y = np.cos(t) * x + np.sin(t) * y, -np.sin(t) * x + np.cos(t) * y
    ground = _sheet(style, rng, size)
    image, soft = ground, pitch / size * f.log_uniform(style, 1.0, 4)
    for _ in range(int(style.integers(1, 4))):
        inside = np.clip(_element(style)(x, y) / soft * 0.7 + 0.5, 0, 1).astype(np.float32)
        tone = f.near(style, ground.mean((0, 1)), 0.35) if f.chance(style, 0.6) else f.colour(style)
        varied = 1 + (style.uniform(0, 0.3) if f.chance(style, 0.3) else 0.02) * (cells[3] - 0.5)
        image = f.blend(image, f.paint(tone, varied), inside * style.uniform(0.3, 1))
        if f.chance(style, 0.4):
            height = f.blur(inside, style.uniform(0.4, 1.2)) * style.uniform(1, 5)
            image = image * (1 + f.relief(height, style.uniform(0, TAU), style.uniform(0.2, 0.6)))[..., None]
    return image


def waves(style: Rng, rng: Rng, size: int) -> Array:
    """Sums, products and maxima of warped waves."""
    x, y = f.grid(size)
    fields = []
    for _ in range(int(style.integers(2, 5))):
        turn, count = style.uniform(0, TAU), f.log_uniform(style, 1, 20)
        along = (np.cos(turn) * x + np.sin(turn) * y) * count + rng.random()
        if f.chance(style, 0.3):  # rings about a centre that may lie outside
            cx, cy = style.uniform(-0.6, 1.6, 2) + rng.normal(0, 0.02, 2)
            along = np.hypot(x - cx, y - cy) * count
        along = along + style.uniform(0, 0.5) * f.smooth_noise(rng, size, f.log_uniform(style, 1, 6))
        wave = np.sin(TAU * along)
        fields.append(np.sign(wave) * np.abs(wave) ** f.log_uniform(style, 0.15, 2))
    rule = int(style.integers(4))
    stack = np.stack(fields)
    field = [stack.mean(0), stack.prod(0), stack.max(0), stack[0] * (stack[1:].mean(0) > 0)][rule]
    image = _coloured(_palette(style, int(style.integers(2, 4))), np.clip(0.5 + 0.5 * field, 0, 1))
    image = f.blend(image.mean((0, 1)), image, f.log_uniform(style, 0.12, 1))
    return image * (1 + style.uniform(0, 0.06) * f.fractal(rng, size, f.log_uniform(style, 3, 40), 0.7, 3))[..., None]


def mixture(style: Rng, rng: Rng, size: int) -> Array:
    """Two materials in one surface: side by side, in stripes or patches, or one seen through the other."""
    first, second = (_any_texture(style, rng, size) for _ in range(2))
    kind = int(style.integers(5))
    u, _ = f.rotated(size, textures.orientation(style, rng))
    if kind == 0:
        weight = f.step(u - 0.5, style.uniform(-0.3, 0.3), style.uniform(0.005, 0.1))
    elif kind == 1:
        weight = f.step(
            np.sin(TAU * (f.log_uniform(style, 1.5, 10) * u + rng.random())), style.uniform(-0.6, 0.6), 0.25
        )
    elif kind == 2:
        weight = f.step(
            f.fractal(rng, size, f.log_uniform(style, 2, 14)), style.uniform(-0.6, 0.6), style.uniform(0.1, 1)
        )
    elif kind == 3:
        return np.clip(first * (0.4 + 0.6 * second / (second.mean() + 1e-3)), 0, 1).astype(np.float32)
    else:
        weight = np.full((size, size), style.uniform(0.25, 0.75), np.float32)
    return f.blend(first, second, weight.astype(np.float32))


def _any_texture(style: Rng, rng: Rng, size: int) -> Array:
    """A named or an invented texture."""
    drawn = (spectrum, waves) if f.chance(style, 0.35) else INGREDIENTS
    return drawn[int(style.integers(len(drawn)))](style, rng, size)


def _sheet(style: Rng, rng: Rng, size: int) -> Array:
    """A material for a part: mostly plain, often a texture, toned so that it does not shout."""
    if f.chance(style, 0.55):
        return objects.material(style, rng, size)[1]
    image = _any_texture(style, rng, size)
    return f.blend(image, image.mean((0, 1)), float(style.uniform(0, 0.85)))


def _outline(style: Rng) -> Array:
    """A random closed outline about the origin that reaches out to about 1."""
    kind = int(style.integers(7))
    t = np.linspace(0, TAU, 96, endpoint=False)
    if kind == 0:  # waves around a circle, with rotational symmetry
        order, r = int(style.integers(2, 9)), np.ones_like(t)
        for k in (1, 2, 3):
            r = r + style.uniform(-0.22, 0.22) / k * np.cos(k * order * t + style.choice([0, np.pi / 2]))
        return (r / r.max())[:, None] * np.stack([np.cos(t), np.sin(t)], 1)
    if kind == 1:  # superellipse
        power, ratio = f.log_uniform(style, 0.6, 6), style.uniform(0.35, 1)
        c, s = np.cos(t), np.sin(t)
        return np.stack([np.sign(c) * np.abs(c) ** (1 / power), ratio * np.sign(s) * np.abs(s) ** (1 / power)], 1)
    if kind == 2:
        return f.box(2, 2 * style.uniform(0.25, 1), style.uniform(0, 0.5))
    if kind == 3:
        inner = style.uniform(0.5, 0.95) if f.chance(style, 0.5) else None
        return f.regular(int(style.integers(3, 11)), 1.0, inner, style.uniform(0, TAU))
    if kind == 4:  # the profile of something turned on a lathe
        n = int(style.integers(3, 9))
        x = np.sort(style.uniform(-1, 1, n))
        x[0], x[-1] = -1, 1
        y = style.uniform(0.12, 0.7) * style.uniform(0.35, 1, n)
        if f.chance(style, 0.4):
            fine = np.linspace(-1, 1, 40)
            x, y = fine, np.interp(fine, x, y)
            y = np.convolve(np.pad(y, 3, mode="edge"), np.ones(7) / 7, "valid")
        return np.concatenate([np.stack([x, -y], 1), np.stack([x, y], 1)[::-1]])
    if kind == 5:  # mirror-symmetric polygon
        n = int(style.integers(3, 8))
        angle, r = np.sort(style.uniform(0.1, np.pi - 0.1, n)), style.uniform(0.4, 1, n)
        half = r[:, None] * np.stack([np.cos(angle), np.sin(angle)], 1)
        return np.concatenate([half, (half * [1, -1])[::-1]])
    return f.blob_outline(style, 0.8, style.uniform(0.1, 0.5), int(style.integers(2, 6)))


def _places(style: Rng) -> tuple[Array, float]:
    """Where the members of a group of equal features sit, ``(n, 3)`` as x, y, angle; and how large they may be."""
    kind = int(style.integers(5))
    if kind == 0:  # around the centre
        n, radius = int(style.integers(2, 13)), style.uniform(0.3, 0.8)
        t = np.arange(n) * TAU / n + style.uniform(0, TAU)
        return np.stack([radius * np.cos(t), radius * np.sin(t), t], 1), 0.8 * radius * TAU / n / 2
    if kind == 1:  # mirrored
        x, y = style.uniform(0.15, 0.75), style.uniform(-0.6, 0.6)
        return np.array([[x, y, 0], [-x, y, np.pi]]), 0.8 * x
    if kind == 2:  # a grid
        nx, ny = (int(n) for n in style.integers(1, 7, 2))
        step = style.uniform(0.8, 1.5) / max(nx, ny)
        x, y = np.meshgrid((np.arange(nx) - (nx - 1) / 2) * step, (np.arange(ny) - (ny - 1) / 2) * step)
        return np.stack([x.ravel(), y.ravel(), 0 * x.ravel()], 1), 0.45 * step
    if kind == 3:  # the four corners
        x, y = style.uniform(0.3, 0.75, 2)
        return np.array([[x, y, 0], [-x, y, 0], [x, -y, 0], [-x, -y, 0]]), 0.3
    return np.array([[*style.uniform(-0.5, 0.5, 2), style.uniform(0, TAU)]]), 0.45


def _mean_colour(canvas: Canvas, body: Array) -> Array:
    """Mean colour ``(3,)`` of what lies under a mask; grey where it is empty."""
    inside = body > 0.5
    return canvas.image[inside].mean(0) if inside.any() else np.full(3, 0.5, np.float32)


def _features(style: Rng, rng: Rng, canvas: Canvas, body: Array, groups: int) -> None:
    """Groups of equal features on a body: bosses, recesses, holes, grooves, print. ``body`` is its mask."""
    for _ in range(groups):
        places, room = _places(style)
        radius = room * style.uniform(0.35, 1.0)
        shape, action, bevel = _outline(style), style.random(), style.uniform(0, 0.02)
        base = _mean_colour(canvas, body)
        tone = f.near(style, base, 0.35) if f.chance(style, 0.6) else f.colour(style)
        width = style.uniform(0.02, 0.06)
        union = np.zeros_like(body)
        for x, y, angle in places:
            part = f.turn(shape, angle, x, y, radius)
            if 0.5 <= action < 0.75:
                union = np.maximum(union, canvas.line(part, width, closed=True))
            else:
                union = np.maximum(union, canvas.mask(part))
        union = union * body
        if action < 0.5:
            canvas.add(union, tone, bevel, 0.45, solid=False)
        elif action < 0.75:
            canvas.add(union * 0.85, tone, solid=False)
        elif action < 0.88:
            canvas.cut(union)
        else:
            canvas.add(union, _sheet(style, rng, canvas.size), bevel, 0.4, solid=False)
    if f.chance(style, 0.25):
        base = _mean_colour(canvas, body)
        x, y = style.uniform(-0.3, 0.3, 2)
        objects.imprint(style, canvas, x, y, style.uniform(0.12, 0.35), f.contrasting(style, base, 0.2))


def contrivance(style: Rng, rng: Rng, canvas: Canvas) -> None:
    """One part of a random outline and material, in layers, with symmetric features."""
    canvas.place(style, rng, turn=None if f.chance(style, 0.6) else 0.03, scale=(0.28, 0.48))
    outline = _outline(style)
    body = canvas.mask(outline)
    canvas.shadow(body, style.uniform(0, 0.5))
    canvas.add(body, _sheet(style, rng, canvas.size), f.log_uniform(style, 0.005, 0.15), style.uniform(0.2, 0.6))
    scale = 1.0
    for _ in range(int(style.choice([0, 0, 1, 2, 3]))):
        scale *= style.uniform(0.55, 0.92)
        inner = f.regular(40, 1.0) if f.chance(style, 0.3) else outline
        layer = canvas.mask(inner * scale) * body
        canvas.add(layer, _sheet(style, rng, canvas.size), style.uniform(0, 0.04), 0.45, solid=False)
    _features(style, rng, canvas, body, int(style.integers(0, 4)))
    if f.chance(style, 0.3):  # gloss
        x, y = f.grid(canvas.size)
        t = np.arctan2(y - canvas.cy, x - canvas.cx) - canvas.light
        canvas.image *= (1 + style.uniform(0, 0.25) * np.cos(2 * t) * canvas.silhouette)[..., None].astype(np.float32)


def assortment(style: Rng, rng: Rng, canvas: Canvas) -> None:
    """Several equal pieces, in rows or strewn, as on a tray or a belt."""
    outline, ordered = _outline(style), f.chance(style, 0.5)
    sheet = _sheet(style, rng, canvas.size)
    bevel, varied, shade = f.log_uniform(style, 0.005, 0.06), style.uniform(0, 0.12), style.uniform(0, 0.4)
    if ordered:
        nx, ny = (int(n) for n in style.integers(1, 5, 2))
        pitch = style.uniform(0.75, 0.95) / max(nx, ny)
        spots = [
            (0.5 + (i - (nx - 1) / 2) * pitch, 0.5 + (j - (ny - 1) / 2) * pitch) for i in range(nx) for j in range(ny)
        ]
        radius = pitch * style.uniform(0.3, 0.46)
    else:
        count = int(style.integers(2, 9))
        radius = style.uniform(0.5, 0.85) * 0.5 / np.sqrt(count)
        spots = [tuple(rng.uniform(0.12, 0.88, 2)) for _ in range(count)]
    turned = not ordered or f.chance(style, 0.3)
    groups, seed = int(style.integers(0, 2)), int(style.integers(2**31))
    for x, y in spots:
        canvas.pose(
            float(x + rng.normal(0, 0.006)), float(y + rng.normal(0, 0.006)), float(radius * (1 + rng.normal(0, 0.02))),
            float(rng.uniform(0, TAU) if turned else rng.normal(0, 0.03)),
        )  # fmt: skip
        body = canvas.mask(outline)
        canvas.shadow(body, shade, 0.015)
        canvas.add(body, sheet * (1 + rng.normal(0, varied)), bevel, 0.45)
        if groups:
            _features(np.random.default_rng(seed), rng, canvas, body, groups)


def strands(style: Rng, rng: Rng, canvas: Canvas) -> None:
    """Bent tubes and wires, alone or as a bundle."""
    count, width = int(style.integers(1, 7)), f.log_uniform(style, 0.05, 0.3)
    canvas.place(style, rng, turn=0.04, scale=(0.4, 0.5))
    thickness = min(width, 1.4 / count)
    bend, play = style.uniform(0, 0.5), style.uniform(0, 0.03)
    base = f.colour(style)
    for k in range(count):
        tone = f.near(style, base, 0.2) if f.chance(style, 0.5) else f.colour(style)
        offset = 0.0 if count == 1 else (k - (count - 1) / 2) * 1.6 / count
        x = np.linspace(-1.3, 1.3, 40)
        y = offset + bend * np.sin(style.uniform(1, 4) * x + style.uniform(0, TAU)) * style.uniform(0.2, 1)
        path = np.stack([x, y + play * np.cumsum(rng.standard_normal(40)) / 6], 1)
        body = canvas.line(path, thickness)
        canvas.shadow(body, style.uniform(0, 0.4), 0.02)
        canvas.add(body, tone, thickness * canvas.scale * 0.5, 0.7)
        if f.chance(style, 0.3):  # rings, stripes or windings along it
            for j in range(2, 38, int(style.integers(2, 7))):
                normal = np.array([-(path[j + 1] - path[j - 1])[1], (path[j + 1] - path[j - 1])[0]])
                normal = normal / (np.linalg.norm(normal) + 1e-9) * width * 0.6
                mark = canvas.line(np.stack([path[j] - normal, path[j] + normal]), 0.03) * body
                canvas.add(mark * 0.7, tone * 0.6, solid=False)
