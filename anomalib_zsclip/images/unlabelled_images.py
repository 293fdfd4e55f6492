"""Unlabelled images to compare with: a folder of the user's, or the very images that are to be judged."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from lightning.pytorch import Trainer

from .data_files import PREDICT, TEST, VALIDATE, datasets_of, files_of
from .normal_images import NormalImages, images_of_folder
from .reading import DEFAULT_RULES, ReadingRules


def find_unlabelled_images(
    unlabelled_dir: str | Path | None, trainer: Trainer | None, rules: ReadingRules = DEFAULT_RULES
) -> NormalImages | None:
    """The images of ``unlabelled_dir``, else those that the trainer is about to judge; their labels are never read.

    Those of ``unlabelled_dir`` are read by ``rules``, the others as the trainer's loaders read them.
    A data module's test images serve its validation as well, so that both judge by the same references.

    Raises:
        ArgumentError: If ``unlabelled_dir`` is no folder with images.
    """
    if unlabelled_dir is not None:
        return images_of_folder(Path(unlabelled_dir).expanduser(), "unlabelled_dir", rules)
    if trainer is None:
        return None
    for dataset in _judged(trainer):
        files = tuple(files_of(dataset))
        if files:
            return NormalImages(dataset, files, f"the {len(files)} images under judgement")
    return None


def _judged(trainer: Trainer) -> list[Any]:
    """Data sets in the order in which they are asked for images."""
    stage = {"predict": PREDICT, "test": TEST}.get(trainer.state.fn or "", VALIDATE)
    own = datasets_of(trainer, stage)
    whole = getattr(getattr(trainer, "datamodule", None), "test_data", None)
    return own if stage == PREDICT or whole is None else [whole, *own]
