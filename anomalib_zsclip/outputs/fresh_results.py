"""Every run finds a clean place: what the run before wrote there is set aside, and nothing is overwritten."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from pathlib import Path

from lightning.pytorch import Callback, LightningModule, Trainer

from anomalib_zsclip.errors import ArgumentError
from anomalib_zsclip.images.data_files import PREDICT, TEST, image_files
from anomalib_zsclip.images.folders import absolute
from anomalib_zsclip.images.own_results import MARK, note_own, own_names

from .paths import MAPS, PICTURES

logger = logging.getLogger(__name__)

FILES = ("predictions*.csv", "report*.html", "regions*.csv", "regions*.json*", "coco*.json")
"""Files of results, besides the folders that the mark names."""

EARLIER = "earlier_runs"
"""Folder that results of earlier runs are moved to, numbered in their order."""


class FreshResults(Callback):
    """Moves what an earlier run wrote to ``earlier_runs/1``, ``earlier_runs/2`` and so on, before anything is written.

    So the folder of results holds one run: its pictures beside its table. Files of others are never touched.
    """

    def on_test_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Clear the place."""
        del pl_module
        self._clear(trainer, TEST)

    def on_predict_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Clear the place."""
        del pl_module
        self._clear(trainer, PREDICT)

    @staticmethod
    def _clear(trainer: Trainer, loaders: str) -> None:
        if trainer.is_global_zero:
            folder = absolute(trainer.default_root_dir)
            moved = set_aside(folder, image_files(trainer, loaders))
            if moved is not None:
                logger.info("What an earlier run wrote to %s is now in %s.", folder, moved)
            note_own(folder, [PICTURES, MAPS])
        trainer.strategy.barrier("results of earlier runs")


def set_aside(folder: Path, files: Sequence[Path] = ()) -> Path | None:
    """Move the results in a folder to a new one below it.

    Args:
        folder: Folder of results.
        files: Images that are about to be judged.

    Returns:
        Where they are now; ``None`` where there were none.

    Raises:
        ArgumentError: If images to judge are among the results: they would be moved away before they are read.
    """
    names = [name for name in own_names(folder) if (folder / name).exists()]
    old = [*(folder / name for name in names), *(file for pattern in FILES for file in sorted(folder.glob(pattern)))]
    for file in files:
        place = absolute(file)
        inside = next((found for found in old if place.is_relative_to(found)), None)
        if inside is not None:
            msg = (
                f"{file} lies in {inside}, where the results of this run will be written. Give another folder for them "
                "(--default_root_dir, or Engine(default_root_dir=...)), or move the images."
            )
            raise ArgumentError(msg)
    if not old:
        return None
    target = folder / EARLIER
    number = 1 + max([int(path.name) for path in target.glob("*") if path.name.isdecimal()], default=0)
    target = target / str(number)
    target.mkdir(parents=True)
    for path in old:
        path.rename(target / path.name)
    mark = folder / MARK
    if mark.exists():
        mark.rename(target / MARK)
    return target
