"""Progress of a prediction, counted in images."""

from __future__ import annotations

import sys
from typing import Any

from lightning.pytorch import Callback, LightningModule, Trainer
from tqdm.auto import tqdm

from anomalib_zsclip.errors import is_command
from anomalib_zsclip.images.data_files import PREDICT, datasets_of

SECONDS_IN_A_FILE = 30.0
"""Time between two states of the bar where it is written to a file or a pipe, and each becomes a line."""


class ImageProgress(Callback):
    """Shows how many images of a folder are done where the ``anomalib`` command predicts, in place of batches.

    Lightning's bar comes back afterwards; where it is switched off, so is this one.
    """

    def __init__(self) -> None:
        self._bar: Any = None
        self._is_on = False  # in place of Lightning's

    def setup(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        """Take the place of Lightning's bar before it is drawn."""
        del pl_module
        shown = trainer.progress_bar_callback
        if stage == "predict" and is_command() and getattr(shown, "is_enabled", False):
            shown.disable()  # type: ignore[union-attr]
            self._is_on = True

    def on_predict_batch_start(self, trainer: Trainer, *args: object) -> None:
        """Draw the bar once the model is ready and has said so."""
        del args
        if self._is_on and self._bar is None:
            images = sum(len(dataset) for dataset in datasets_of(trainer, PREDICT))
            self._bar = tqdm(
                total=round(images / trainer.world_size),
                desc="Predicting",
                unit="image",
                disable=not trainer.is_global_zero,
                mininterval=0.1 if sys.stderr.isatty() else SECONDS_IN_A_FILE,
            )

    def on_predict_batch_end(self, trainer: Trainer, pl_module: LightningModule, outputs: Any, *args: object) -> None:  # noqa: ANN401
        """Count a batch."""
        del trainer, pl_module, args
        if self._bar is not None:
            self._bar.update(len(outputs.image))

    def on_predict_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Leave the last state on the screen, and Lightning's bar as it was."""
        del pl_module
        self._close(trainer)

    def on_exception(self, trainer: Trainer, pl_module: LightningModule, exception: BaseException) -> None:
        """Leave Lightning's bar as it was."""
        del pl_module, exception
        self._close(trainer)

    def _close(self, trainer: Trainer) -> None:
        if self._bar is not None:
            self._bar.close()
        if self._is_on and trainer.progress_bar_callback is not None:
            trainer.progress_bar_callback.enable()
        self._bar, self._is_on = None, False
