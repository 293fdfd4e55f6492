# Copyright (C) 2026 anomalib-zsclip contributors
# SPDX-License-Identifier: Apache-2.0

"""Procedural images of textures and objects, with and without defects, with exact masks.

Needs numpy and OpenCV only. Everything is deterministic for the random generator that is passed in::

    >>> import numpy as np
    >>> sample = generate("wood", "scratch", 128, np.random.default_rng(0))
    >>> sample.image.shape, sample.mask.shape
    ((128, 128, 3), (128, 128))

A *style* is a product: its colours, proportions and studio. Samples that share a style look like one data set;
without one, every sample is a product of its own, which is what a training set of wide variety wants.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import TypeVar

import cv2
import numpy as np

from . import captions, defects, inventions, objects, textures
from .fields import Array, Rng, blend, blur, chance, log_uniform, smooth_noise
from .objects import Canvas, background
from .photography import Shot

__all__ = ["DEFECTS", "FAMILIES", "Defect", "Family", "Pair", "Sample", "captions", "generate", "generate_pair"]

#: Raised whenever the same seed makes other images than before: written data sets are then made anew.
RECIPE_VERSION = 1

#: Share of the invented families in images to learn from, so that the named ones are not learned by heart.
INVENTED_SHARE = 0.5


@dataclass(frozen=True)
class Family:
    """A kind of product.

    Args:
        name: key in :data:`FAMILIES`.
        kind: ``"texture"`` (fills the image) or ``"object"`` (on a background).
        nouns: what captions call it.
        draw: the drawing function of :mod:`textures` or :mod:`objects`.
        held_out: never shown in the training of the built-in CLIP, nor as a background of something else, so that results
            on it are honest.
        invented: from :mod:`inventions`: every product another structure, so it deserves more than a family's share.
    """

    name: str
    kind: str
    nouns: tuple[str, ...]
    draw: Callable
    held_out: bool = False
    invented: bool = False


@dataclass(frozen=True)
class Defect:
    """A kind of defect.

    Args:
        name: key in :data:`DEFECTS`.
        phrases: state phrases for captions, each with ``{}`` for the noun.
        apply: the function of :mod:`defects`.
        on: ``"any"``, ``"texture"`` or ``"object"``.
        held_out: never shown in the training of the built-in CLIP.
    """

    name: str
    phrases: tuple[str, ...]
    apply: Callable
    on: str = "any"
    held_out: bool = False


@dataclass(frozen=True)
class Sample:
    """One image: RGB uint8 ``(size, size, 3)`` and mask uint8 ``(size, size)``, 255 on the defect."""

    image: Array
    mask: Array
    family: str
    defect: str | None


@dataclass(frozen=True)
class Pair:
    """The same picture without and with a defect; shapes as in :class:`Sample`."""

    good: Array
    bad: Array
    mask: Array
    family: str
    defect: str


def _families() -> dict[str, Family]:
    texture, thing = partial(Family, kind="texture"), partial(Family, kind="object")
    t, o, i = textures, objects, inventions
    listed = (
        texture("surface", nouns=("surface", "painted surface", "plastic sheet", "panel"), draw=t.surface),
        texture("plain", nouns=("glass", "plastic", "sheet", "film"), draw=t.plain),
        texture("brushed_metal", nouns=("brushed metal", "steel", "metal sheet", "aluminium"), draw=t.brushed_metal),
        texture("cast_metal", nouns=("cast metal", "metal", "iron", "metal surface"), draw=t.cast_metal),
        texture("granite", nouns=("granite", "stone", "rock"), draw=t.granite),
        texture("concrete", nouns=("concrete", "plaster", "wall", "cement"), draw=t.concrete),
        texture("wood", nouns=("wood", "plank", "timber", "wooden board"), draw=t.wood),
        texture("leather", nouns=("leather", "hide", "skin"), draw=t.leather),
        texture("woven", nouns=("fabric", "canvas", "cloth", "linen", "textile"), draw=t.woven),
        texture("twill", nouns=("denim", "twill", "textile"), draw=t.twill),
        texture("carpet", nouns=("carpet", "felt", "rug"), draw=t.carpet),
        texture("knit", nouns=("knitwear", "wool", "knitted fabric"), draw=t.knit, held_out=True),
        texture("corduroy", nouns=("corduroy", "ribbed sheet", "grating"), draw=t.corduroy),
        texture("plaid", nouns=("checked cloth", "striped fabric", "tablecloth"), draw=t.plaid),
        texture("tiles", nouns=("tile", "ceramic tiles", "floor"), draw=t.tiles),
        texture("marble", nouns=("marble", "polished stone"), draw=t.marble),
        texture("terrazzo", nouns=("terrazzo", "stone floor"), draw=t.terrazzo, held_out=True),
        texture("gravel", nouns=("gravel", "pebbles", "asphalt", "grains"), draw=t.gravel),
        texture("foam", nouns=("foam", "sponge", "bread"), draw=t.foam),
        texture("perforated", nouns=("perforated sheet", "sieve", "dotted sheet"), draw=t.perforated),
        texture("wire_grid", nouns=("grid", "wire mesh", "fence", "grating"), draw=t.wire_grid),
        texture("bricks", nouns=("brick wall", "bricks", "paving"), draw=t.bricks),
        texture("cardboard", nouns=("cardboard", "paper", "carton"), draw=t.cardboard),
        texture("honeycomb", nouns=("honeycomb", "cobbles", "cell structure"), draw=t.honeycomb),
        texture("cork", nouns=("cork", "chipboard", "particle board"), draw=t.cork),
        texture("printed", nouns=("printed pattern", "wallpaper", "foil", "packaging"), draw=t.printed),
        texture("noise_field", nouns=("camouflage", "mottled surface", "moss", "coating"), draw=t.noise_field),
        texture("turned_metal", nouns=("turned metal", "machined surface", "disc face"), draw=t.turned_metal),
        texture("solar_cell", nouns=("solar cell", "wafer", "solar panel"), draw=t.solar_cell, held_out=True),
        texture("fur", nouns=("fur", "fibre mat", "straw", "felt"), draw=t.fur),
        texture("roof", nouns=("roof tiles", "shingles", "scales"), draw=t.roof, held_out=True),
        texture("circuit", nouns=("bare circuit board", "circuit traces", "printed wiring"), draw=t.circuit),
        texture("rubber", nouns=("rubber mat", "embossed sheet", "knurled surface"), draw=t.rubber, held_out=True),
        thing("washer", nouns=("washer", "ring", "seal", "gasket"), draw=o.washer),
        thing("nut", nouns=("nut", "metal nut", "hex nut"), draw=o.nut),
        thing("gear", nouns=("gear", "cog wheel", "sprocket"), draw=o.gear),
        thing("screw", nouns=("screw", "bolt", "fastener"), draw=o.screw),
        thing("capsule", nouns=("capsule", "medicine capsule"), draw=o.capsule, held_out=True),
        thing("pill", nouns=("pill", "tablet"), draw=o.pill),
        thing("bottle_top", nouns=("bottle top", "jar", "bottle"), draw=o.bottle_top, held_out=True),
        thing("board", nouns=("circuit board", "pcb", "electronic board"), draw=o.board),
        thing("cable", nouns=("cable", "cable section", "wires"), draw=o.cable),
        thing("can_lid", nouns=("can", "lid", "tin"), draw=o.can_lid),
        thing("label", nouns=("label", "tag", "sticker"), draw=o.label),
        thing("brush", nouns=("brush", "toothbrush", "brush head"), draw=o.brush),
        thing("coin", nouns=("coin", "medal", "token"), draw=o.coin),
        thing("button", nouns=("button", "knob", "socket"), draw=o.button),
        thing("bracket", nouns=("bracket", "plate", "stamped part"), draw=o.bracket),
        thing("cookie", nouns=("cookie", "biscuit", "snack"), draw=o.cookie),
        thing("fruit", nouns=("nut", "fruit", "seed", "hazelnut"), draw=o.fruit),
        thing("connector", nouns=("connector", "plug", "terminal block"), draw=o.connector),
        thing("zipper", nouns=("zipper", "zip fastener"), draw=o.zipper, held_out=True),
        thing("transistor", nouns=("transistor", "electronic part", "component"), draw=o.transistor),
        thing("rod", nouns=("rod", "pen", "tube", "shaft"), draw=o.rod),
        thing("tray", nouns=("tray", "blister pack", "candles", "pieces"), draw=o.tray),
        thing("bearing", nouns=("bearing", "ball bearing"), draw=o.bearing, held_out=True),
        thing("dial", nouns=("dial", "gauge", "clock"), draw=o.dial, held_out=True),
        thing("bottle", nouns=("bottle", "vase", "bulb"), draw=o.bottle),
        thing("leaf", nouns=("leaf", "feather", "plant"), draw=o.leaf, held_out=True),
        thing("spring", nouns=("spring", "coil", "chain"), draw=o.spring),
        thing("widget", nouns=("part", "assembly", "component", "device"), draw=o.widget),
        thing("slab", nouns=("slab", "bar", "tile", "swatch"), draw=o.plate_with_border),
        thing("panel", nouns=("panel", "cover", "housing", "front plate"), draw=o.sheet_with_fittings),
        texture("spectrum", nouns=("surface", "material", "texture", "coating"), draw=i.spectrum, invented=True),
        texture("lattice", nouns=("pattern", "regular surface", "sheet", "material"), draw=i.lattice, invented=True),
        texture("waves", nouns=("pattern", "wavy surface", "material", "texture"), draw=i.waves, invented=True),
        texture("mixture", nouns=("compound", "surface", "material", "lining"), draw=i.mixture, invented=True),
        thing("contrivance", nouns=("object", "part", "piece", "item", "product"), draw=i.contrivance, invented=True),
        thing("assortment", nouns=("pieces", "parts", "objects", "items"), draw=i.assortment, invented=True),
        thing("strands", nouns=("tube", "wire", "hose", "bundle"), draw=i.strands, invented=True),
    )
    return {family.name: family for family in listed}


def _defects() -> dict[str, Defect]:
    d = defects
    listed = (
        Defect("scratch", ("{} with a scratch", "scratched {}", "{} with scratches"), d.scratch),
        Defect("crack", ("{} with a crack", "cracked {}", "{} with cracks"), d.crack),
        Defect("hole", ("{} with a hole", "{} with holes", "pierced {}"), d.hole),
        Defect("blowhole", ("{} with a blowhole", "{} with pores", "{} with pits", "pitted {}"), d.blowhole),
        Defect("stain", ("{} with a stain", "stained {}", "dirty {}"), d.stain),
        Defect("dent", ("{} with a dent", "dented {}"), d.dent),
        Defect("missing", ("{} with a missing part", "incomplete {}"), d.missing_part),
        Defect("break", ("{} with a break", "chipped {}", "{} with a broken edge"), d.broken),
        Defect("contamination", ("{} with contamination", "contaminated {}", "{} with dirt"), d.contamination),
        Defect("colour", ("{} with a colour spot", "discoloured {}", "{} with wrong color"), d.colour_spot),
        Defect("bent", ("bent {}", "deformed {}"), d.bent, "object"),
        Defect("cut", ("{} with a cut", "cut {}"), d.cut),
        Defect("thread", ("{} with a thread", "{} with a hair", "{} with a loose fibre"), d.thread),
        Defect("misprint", ("{} with a misprint", "misprinted {}", "{} with a faulty imprint"), d.misprint),
        Defect("fray", ("frayed {}", "{} with fray", "worn {}"), d.fray),
        Defect("uneven", ("uneven {}", "{} with an uneven area"), d.uneven),
        Defect("scuff", ("scuffed {}", "{} with abrasion", "rough {}"), d.scuff),
        Defect("rust", ("rusty {}", "{} with corrosion", "{} with rust"), d.rust),
        Defect("bubble", ("{} with bubbles", "{} with a blister"), d.bubble, held_out=True),
        Defect("patch", ("{} with foreign material", "{} with a wrong patch"), d.patch),
        Defect("smear", ("smeared {}", "{} with a smear", "melted {}"), d.smear),
        Defect("distortion", ("distorted {}", "warped {}", "twisted {}"), d.distortion),
        Defect("line", ("{} with a line", "{} with a faulty stripe"), d.line_fault),
        Defect("fold", ("folded {}", "{} with a wrinkle", "creased {}"), d.fold, held_out=True),
        Defect("glue", ("{} with glue", "{} with liquid", "{} with residue"), d.glue, held_out=True),
        Defect("burn", ("burnt {}", "{} with a burn"), d.burn, held_out=True),
    )
    return {defect.name: defect for defect in listed}


T = TypeVar("T")
FAMILIES: dict[str, Family] = _families()
DEFECTS: dict[str, Defect] = _defects()
_DONORS = (
    textures.surface,
    textures.noise_field,
    textures.woven,
    textures.granite,
    textures.gravel,
    textures.fur,
    textures.cast_metal,
)


def _render(family: Family, style: Rng, rng: Rng, size: int) -> tuple[Array, Array, Array]:
    """Image, backdrop ``(size, size, 3)`` and silhouette ``(size, size)`` of one specimen."""
    if family.kind == "texture":
        image = np.clip(family.draw(style, rng, size), 0, 1).astype(np.float32)
        behind = np.float32(style.choice([0.02, 0.1, 0.95]))
        return image, np.full_like(image, behind), np.ones((size, size), np.float32)
    canvas = Canvas(background(style, rng, size), style.uniform(0, 2 * np.pi))
    family.draw(style, rng, canvas)
    return np.clip(canvas.image, 0, 1), canvas.backdrop, canvas.silhouette


def _natural_blemishes(image: Array, style: Rng, rng: Rng, wild: float) -> Array:
    """What good products show as well: grain, faint marks, dust, clouds. ``(size, size, 3)``."""
    size = image.shape[0]
    if chance(style, 0.35):
        depth, scale = log_uniform(style, 0.01, 0.07), log_uniform(style, 1, 6)
        image = image * (1 + depth * smooth_noise(rng, size, scale))[..., None]
    if chance(style, 0.35 * wild):  # dust and specks: small, weak and many, or it would be a defect
        count, tone = int(log_uniform(style, 4, 150)), np.float32(style.choice([0.0, 1.0]))
        specks = np.zeros((size, size), np.float32)
        at = rng.integers(0, size, (2, rng.poisson(count)))
        specks[at[0], at[1]] = rng.random(at.shape[1])
        specks = blur(specks, 0.004 * size)
        image = blend(image, np.full(3, tone, np.float32), np.clip(specks * style.uniform(0.1, 0.6), 0, 0.35))
    if chance(style, 0.2 * wild):  # faint handling marks over the whole piece
        count, strength = int(log_uniform(style, 3, 25)), log_uniform(style, 0.01, 0.06)
        marks = np.zeros((size, size), np.uint8)
        for x, y, t, length in rng.random((count, 4)):
            end = np.array([x, y]) + 0.4 * length * np.array([np.cos(6.28 * t), np.sin(6.28 * t)])
            cv2.line(
                marks, (int(x * size), int(y * size)), (int(end[0] * size), int(end[1] * size)), 255, 1, cv2.LINE_AA
            )
        image = image * (1 + style.choice([-1, 1]) * strength * marks.astype(np.float32) / 255)[..., None]
    return image.astype(np.float32)


def _streams(rng: Rng, style: int | None) -> tuple[list[Rng], list[Rng]]:
    """Independent streams for drawing, blemishes and camera: of the product and of the specimen."""
    own = [np.random.default_rng(int(rng.integers(2**63))) for _ in range(3)]
    seed = int(rng.integers(2**63)) if style is None else style
    return [np.random.default_rng([seed, k]) for k in range(3)], own


def _lookup(table: dict[str, T], name: str, what: str) -> T:
    if name not in table:
        msg = f"Unknown {what} {name!r}. Known: {', '.join(table)}."
        raise ValueError(msg)
    return table[name]


def _shoot(family: str, size: int, rng: Rng, style: int | None, wild: float) -> tuple[defects.Scene, Shot]:
    styles, own = _streams(rng, style)
    image, backdrop, silhouette = _render(_lookup(FAMILIES, family, "family"), styles[0], own[0], size)
    image = _natural_blemishes(image, styles[1], own[1], wild)
    bright = float(np.percentile(image[::4, ::4], 95))
    if bright < 0.3:  # nobody inspects in the dark
        image = image * (0.3 / max(bright, 0.02))
        backdrop = backdrop * (0.3 / max(bright, 0.02))

    def donor() -> Array:
        return _DONORS[int(rng.integers(len(_DONORS)))](rng, rng, size)

    return defects.Scene(image, backdrop, silhouette, donor), Shot(styles[2], own[2], size, wild)


def _mask(good: Array, bad: Array, alpha: Array) -> tuple[Array, float]:
    """Mask of the visible change and its mean contrast in grey levels."""
    size = good.shape[0]
    difference = cv2.absdiff(good, bad).max(2).astype(np.float32)
    visible = blur(difference, 0.008 * size) > 2.0
    mask = ((alpha > 0.35) & visible).astype(np.uint8)
    area = int(mask.sum())
    return mask * 255, float(difference[mask > 0].mean()) if area else 0.0


def generate_pair(
    family: str,
    defect: str,
    size: int,
    rng: Rng,
    style: int | None = None,
    wild: float = 1.0,
    strength: tuple[float, float] = (0.08, 1.0),
    scale: float = 1.0,
) -> Pair:
    """The same picture without and with a defect.

    Args:
        family: key of :data:`FAMILIES`.
        defect: key of :data:`DEFECTS`.
        size: side of the images in pixels.
        rng: source of all randomness.
        style: seed of the product; ``None`` takes a new product.
        wild: how far light and camera stray, 0 (a clean studio) to 1.
        strength: range of the defect's strength; 0 is hardly visible, 1 gross. A defect that cannot be seen at all is
            tried again elsewhere and stronger.
        scale: size of the defect against its usual one, in (0, 1]: it is made in a window of that share of the side.

    Returns:
        The pair and its mask.
    """
    scene, shot = _shoot(family, size, rng, style, wild)
    kind = _lookup(DEFECTS, defect, "defect")
    good = shot.take(scene.image)
    best: tuple[float, Array, Array] | None = None
    level = float(rng.uniform(*strength))
    window = (slice(None), slice(None)) if scale >= 1 else _window(scene, rng, scale)
    part = scene if scale >= 1 else scene.cut(window)
    for _ in range(5):
        image = scene.image.copy()
        image[window], alpha = kind.apply(part, rng, level)
        bad = shot.take(image)
        mask, contrast = _mask(good[window], bad[window], alpha)
        area = float((mask > 0).mean())
        quality = contrast if area > 0.0008 else 0.01 * contrast
        if best is None or quality > best[0]:
            best = (quality, bad, mask)
        if quality >= 9.0 and area < 0.55:
            break
        level = min(1.0, level + 0.2)
    assert best is not None
    whole = np.zeros(good.shape[:2], np.uint8)
    whole[window] = best[2]
    return Pair(good, best[1], whole, family, defect)


def _window(scene: defects.Scene, rng: Rng, scale: float) -> tuple[slice, slice]:
    """A square of ``scale`` of the side around a point on the object, inside the image."""
    side = max(16, round(scale * scene.size))
    x, y = defects.locate(scene, rng, scale / 2)
    left, top = (int(np.clip(at * scene.size - side / 2, 0, scene.size - side)) for at in (x, y))
    return slice(top, top + side), slice(left, left + side)


def generate(
    family: str,
    defect: str | None,
    size: int,
    rng: Rng,
    style: int | None = None,
    wild: float = 1.0,
    scale: float = 1.0,
) -> Sample:
    """One image, good where ``defect`` is ``None``. Arguments as in :func:`generate_pair`."""
    if defect is None:
        scene, shot = _shoot(family, size, rng, style, wild)
        return Sample(shot.take(scene.image), np.zeros((size, size), np.uint8), family, None)
    pair = generate_pair(family, defect, size, rng, style, wild, scale=scale)
    return Sample(pair.bad, pair.mask, family, defect)
