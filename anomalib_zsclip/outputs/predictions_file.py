"""A table of all scores beside the pictures."""

from __future__ import annotations

import csv
from collections.abc import Sequence
from pathlib import Path
from typing import Any, TextIO

from lightning.pytorch import Callback, LightningModule, Trainer

from anomalib_zsclip.errors import is_command
from anomalib_zsclip.images import unreadable_of
from anomalib_zsclip.images.data_files import PREDICT, image_files

from .batches import per_image

COLUMNS = ("path", "pred_score", "pred_label", "explanation", "error")

Row = tuple[str, str, str, str, str]
"""Cells in the order of :data:`COLUMNS`."""


class PredictionsFile(Callback):
    """Writes path, score, label (1 for anomalous) and explanation of every image to ``predictions.csv``.

    An image of a prediction that could not be read has a row with its path and the reason as ``error``, and no score.

    The file lies in the trainer's root folder, beside ``images``. It grows batch by batch, so that it is whole up to the
    last batch where a run is interrupted. Of several processes each writes its own: the first ``predictions.csv``, the
    others ``predictions_rank1.csv`` and so on.

    Python code gets all predictions, with maps and images, from ``Engine.predict``, which keeps them in memory. The
    ``anomalib`` command has nobody to give them to, so there they are dropped, and memory does not grow with a folder.
    """

    def __init__(self) -> None:
        self._file: TextIO | None = None
        self._errors = 0  # rows of unreadable images so far
        self._order: dict[str, int] = {}  # image -> its place in the folder

    def on_predict_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Start a new file."""
        del pl_module
        self._open(trainer)
        if is_command():
            trainer.predict_loop.return_predictions = False

    def on_test_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Start a new file."""
        del pl_module
        self._open(trainer)

    def on_predict_batch_end(self, trainer: Trainer, pl_module: LightningModule, outputs: Any, *args: object) -> None:  # noqa: ANN401
        """Write a batch, after the post-processor, and the images that could not be read by now, in their order."""
        del pl_module, args
        if not self._order:
            self._order = {harmless_path(file): place for place, file in enumerate(image_files(trainer, PREDICT))}
        table = [*self._unreadable(trainer), *rows(outputs)]
        self._write(sorted(table, key=lambda row: self._order.get(row[0], 0)))

    def on_predict_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Write the last images that could not be read."""
        del pl_module
        self._write(self._unreadable(trainer))

    def on_test_batch_end(self, trainer: Trainer, pl_module: LightningModule, outputs: Any, *args: object) -> None:  # noqa: ANN401
        """Write a batch, after the post-processor."""
        del trainer, pl_module, args
        self._write(rows(outputs))

    def teardown(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        """Close the file."""
        del trainer, pl_module, stage
        self._close()

    def on_exception(self, trainer: Trainer, pl_module: LightningModule, exception: BaseException) -> None:
        """Close the file."""
        del trainer, pl_module, exception
        self._close()

    def _open(self, trainer: Trainer) -> None:
        self._close()
        self._errors, self._order = 0, {}
        rank = trainer.global_rank
        path = Path(trainer.default_root_dir) / (f"predictions_rank{rank}.csv" if rank else "predictions.csv")
        path.parent.mkdir(parents=True, exist_ok=True)
        # File names need not be valid Unicode.
        self._file = path.open("w", encoding="utf-8", errors="surrogateescape", newline="")
        csv.writer(self._file).writerow(COLUMNS)
        self._file.flush()

    def _unreadable(self, trainer: Trainer) -> list[Row]:
        new = unreadable_of(trainer)[self._errors :]
        self._errors += len(new)
        return [(harmless_path(file.path), "", "", "", _harmless_text(file.reason)) for file in new]

    def _write(self, table: Sequence[Row]) -> None:
        if self._file is None or not table:
            return
        csv.writer(self._file).writerows(table)
        self._file.flush()

    def _close(self) -> None:
        if self._file is not None:
            self._file.close()
        self._file = None


def rows(batch: Any) -> list[Row]:  # noqa: ANN401
    """Rows of a batch of anomalib, as text."""
    return [
        (
            harmless_path(path or ""),
            "" if score is None else f"{score:.6f}",
            "" if label is None else str(int(label)),
            _harmless_text(explanation),
            "",
        )
        for path, score, label, explanation in per_image(batch, "image_path", "pred_score", "pred_label", "explanation")
    ]


def harmless_path(path: str | Path) -> str:
    """A path as a cell: a spreadsheet would run one that starts like a formula; with "./" it is the same file."""
    text = str(path)
    return f"./{text}" if text.startswith(("=", "+", "-", "@", "\t", "\r")) else text


def _harmless_text(text: str | None) -> str:
    text = text or ""
    return f"'{text}" if text.startswith(("=", "+", "-", "@", "\t", "\r")) else text
