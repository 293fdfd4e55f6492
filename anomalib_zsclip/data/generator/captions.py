# Copyright (C) 2026 anomalib-zsclip contributors
# SPDX-License-Identifier: Apache-2.0

"""Captions: templates, states and nouns, in the wording of the prompt ensembles in use.

A caption is a photo template around a state phrase around a noun: ``a cropped photo of the {damaged {bottle}}``.
"""

from __future__ import annotations

from .fields import Rng, chance

TEMPLATES = (
    "{}",
    "a photo of a {}",
    "a photo of a {}.",
    "a photo of the {}",
    "a photo of the {}.",
    "a photo of one {}.",
    "a photo of my {}.",
    "a cropped photo of a {}.",
    "a cropped photo of the {}.",
    "a close-up photo of a {}.",
    "a close-up photo of the {}.",
    "a bright photo of a {}.",
    "a bright photo of the {}.",
    "a dark photo of a {}.",
    "a dark photo of the {}.",
    "a jpeg corrupted photo of a {}.",
    "a jpeg corrupted photo of the {}.",
    "a blurry photo of a {}.",
    "a blurry photo of the {}.",
    "a low resolution photo of a {}.",
    "a low resolution photo of the {}.",
    "a black and white photo of a {}.",
    "a black and white photo of the {}.",
    "a good photo of a {}.",
    "a bad photo of a {}.",
    "a photo of a small {}.",
    "a photo of the small {}.",
    "a photo of a large {}.",
    "a photo of the large {}.",
    "a photo of a {} for visual inspection.",
    "a photo of the {} for visual inspection.",
    "a photo of a {} for anomaly detection.",
    "a photo of the {} for anomaly detection.",
    "a picture of a {}",
    "an image of a {}",
    "there is a {} in the scene.",
    "there is the {} in the scene.",
    "this is a {} in the scene.",
    "this is one {} in the scene.",
)

NORMAL_STATES = (
    "flawless {}",
    "perfect {}",
    "unblemished {}",
    "{} without flaw",
    "{} without defect",
    "{} without damage",
    "{} without any defect",
    "normal {}",
    "good {}",
    "intact {}",
    "undamaged {}",
    "clean {}",
    "{} in good condition",
    "{} in perfect condition",
    "pristine {}",
    "immaculate {}",
    "{} with no defects",
)

ANOMALOUS_STATES = (
    "damaged {}",
    "broken {}",
    "{} with flaw",
    "{} with defect",
    "{} with damage",
    "{} with a defect",
    "{} with a flaw",
    "defective {}",
    "abnormal {}",
    "anomalous {}",
    "flawed {}",
    "imperfect {}",
    "blemished {}",
    "faulty {}",
    "{} in bad condition",
    "{} with defects",
    "{} with an anomaly",
    "{} with imperfection",
)

#: What a kind of defect is called after "with" and "without".
KIND_WORDS = {
    "scratch": ("scratch", "scratches"), "crack": ("crack", "cracks"), "hole": ("hole", "holes"),
    "blowhole": ("blowhole", "pores"), "stain": ("stain", "stains"), "dent": ("dent", "dents"),
    "missing": ("missing part",), "break": ("break", "chipping"), "contamination": ("contamination", "dirt"),
    "colour": ("color spot", "discoloration"), "bent": ("bend", "deformation"), "cut": ("cut", "cuts"),
    "thread": ("thread", "hair"), "misprint": ("misprint", "print error"), "fray": ("fray", "wear"),
    "uneven": ("unevenness", "uneven area"), "scuff": ("abrasion", "scuff"), "rust": ("rust", "corrosion"),
    "patch": ("foreign material", "patch"), "smear": ("smear", "smudge"), "distortion": ("distortion", "deformation"),
    "line": ("line", "stripe"), "bubble": ("bubble", "blister"), "fold": ("fold", "wrinkle"),
    "glue": ("glue", "liquid"), "burn": ("burn", "burn mark"),
}  # fmt: skip

GENERIC_NOUNS = (
    "object",
    "object",
    "object",
    "item",
    "product",
    "part",
    "thing",
    "surface",
    "texture",
    "material",
    "piece",
)

#: Nouns of no particular family: a caption's state must be understood whatever is named.
OTHER_NOUNS = (
    "bottle", "cable", "capsule", "carpet", "grid", "hazelnut", "leather", "metal nut", "pill", "screw", "tile",
    "toothbrush", "transistor", "wood", "zipper", "candle", "cashew", "chewing gum", "macaroni", "circuit board",
    "magnetic tile", "steel", "fabric", "glass", "plastic", "paper", "stone", "marble", "brick", "lamp", "wheel", "pipe",
    "car", "phone", "battery", "casting", "rail", "road", "wall", "textile", "ceramic", "mesh", "panel", "wafer", "lens",
    "food", "fruit", "medicine", "package", "label", "cap", "tube", "engine", "machine part", "tool", "metal plate",
)  # fmt: skip


def random_words(rng: Rng) -> str:
    """One to three words of random letters."""
    count = int(rng.integers(1, 4))
    lengths = (int(rng.integers(3, 9)) for _ in range(count))
    return " ".join("".join(chr(97 + int(c)) for c in rng.integers(0, 26, length)) for length in lengths)


def free_noun(rng: Rng) -> str:
    """A noun that says nothing about the picture: generic, of another thing, or random letters."""
    kind = rng.random()
    if kind < 0.45:
        return str(rng.choice(GENERIC_NOUNS))
    if kind < 0.75:
        return str(rng.choice(OTHER_NOUNS))
    return random_words(rng)


def template(rng: Rng) -> str:
    """A photo template; every fourth one is the bare phrase."""
    return "{}" if chance(rng, 0.25) else str(rng.choice(TEMPLATES))


def caption(rng: Rng, noun: str, phrases: tuple[str, ...]) -> str:
    """A caption of a noun in a state, in a random template."""
    return template(rng).format(str(rng.choice(phrases)).format(noun))


def state_pair(rng: Rng, noun: str, kind: str | None = None) -> tuple[str, str]:
    """A normal and an anomalous caption that differ in the state alone: of any defect, or of the named ``kind``."""
    frame = template(rng)
    if kind is not None:
        word = str(rng.choice(KIND_WORDS[kind]))
        without = str(rng.choice(("{} without ", "{} without ", "{} without any ", "{} with no "))) + word
        having = str(rng.choice(("{} with ", "{} with a ", "{} that has a "))) + word
        return frame.format(without.format(noun)), frame.format(having.format(noun))
    normal, anomalous = str(rng.choice(NORMAL_STATES)), str(rng.choice(ANOMALOUS_STATES))
    return frame.format(normal.format(noun)), frame.format(anomalous.format(noun))
