"""Collects what the report shows, and writes it at the end of a run, whole or interrupted."""

from __future__ import annotations

import math
import os
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any
from urllib.parse import quote

from lightning.pytorch import Callback, LightningModule, Trainer

from anomalib_zsclip.images import unreadable_of
from anomalib_zsclip.images.folders import absolute
from anomalib_zsclip.outputs.batches import per_image
from anomalib_zsclip.outputs.gathering import file_of_process, gather
from anomalib_zsclip.outputs.paths import ResultPaths, common_folder
from anomalib_zsclip.outputs.regions import PictureRegions
from anomalib_zsclip.outputs.visualizer import panels_of

from .page import render
from .run_info import describe_run

Row = dict[str, Any]
"""One picture, in the short names that the page knows; see :func:`row_of`."""

NAME = "report.html"

FIELDS = ("image_path", "pred_score", "pred_label", "gt_label", "explanation", "regions")
"""Fields of a batch that a row is made of."""


class ReportPage(Callback):
    """Writes ``report.html`` into the trainer's root folder, after a test and after a prediction.

    It holds scores and decisions, no pictures: it shows those that the visualizer has drawn, by relative path, so that the
    folder can be moved, zipped and mailed. A run that is interrupted leaves a page of what is there. Of several processes
    the first writes the page, with the rows of all.
    """

    def __init__(self) -> None:
        self._rows: list[Row] = []
        self._paths: ResultPaths | None = None
        self._panels: list[str] = []

    def on_test_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Forget another run."""
        visualizer = getattr(pl_module, "visualizer", None)
        self._rows, self._panels = [], []
        self._paths = ResultPaths.of(trainer, getattr(visualizer, "output_dir", None)) if visualizer else None

    def on_predict_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """As for a test."""
        self.on_test_start(trainer, pl_module)

    def on_test_batch_end(self, trainer: Trainer, pl_module: LightningModule, outputs: Any, *args: object) -> None:  # noqa: ANN401
        """Keep the rows of a batch, after the post-processor and the regions."""
        del pl_module, args
        self._panels = panels_of(outputs)
        self._rows += rows_of(outputs, self._paths, Path(trainer.default_root_dir))

    def on_predict_batch_end(self, trainer: Trainer, pl_module: LightningModule, outputs: Any, *args: object) -> None:  # noqa: ANN401
        """As for a test."""
        self.on_test_batch_end(trainer, pl_module, outputs, *args)

    def on_test_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Write the page, once the visualizer has drawn its last picture."""
        rows = gather(trainer, [*self._rows, *unreadable_rows(trainer)])
        if rows is not None:
            self._write(trainer, pl_module, rows, complete=True)

    def on_predict_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """As for a test."""
        self.on_test_end(trainer, pl_module)

    def on_exception(self, trainer: Trainer, pl_module: LightningModule, exception: BaseException) -> None:
        """Write a page of what there is, each process its own."""
        del exception
        rows = [*self._rows, *unreadable_rows(trainer)]
        if rows:
            with suppress(Exception):  # the first exception is the one to show
                self._write(trainer, pl_module, rows, complete=False)

    def teardown(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        """Let go of the rows."""
        del trainer, pl_module, stage
        self._rows, self._paths = [], None

    def _write(self, trainer: Trainer, pl_module: LightningModule, rows: Sequence[Row], *, complete: bool) -> None:
        file = file_of_process(trainer, NAME)
        file.parent.mkdir(parents=True, exist_ok=True)
        visualizer = getattr(pl_module, "visualizer", None)
        rows, root = below_common_folder(unique(rows))
        folder = file.parent
        for row in rows:
            if row.get("picture") and not (folder / row["file"]).is_file():
                row["picture"] = None  # not drawn any more
            row.pop("file", None)
        content = {
            "run": describe_run(trainer, pl_module, complete=complete, root=root),
            "pictures": {"panel": list(getattr(visualizer, "field_size", None) or (1, 1)), "titles": self._panels},
            "rows": rows,
        }
        file.write_text(render(content), encoding="utf-8", errors="replace")


def rows_of(batch: Any, places: ResultPaths | None, folder: Path) -> list[Row]:  # noqa: ANN401
    """Rows of a batch of anomalib.

    Args:
        batch: Post-processed predictions.
        places: Where the pictures lie; ``None`` where none are drawn.
        folder: Of the page.

    Returns:
        For each image ``path``; ``score`` (``None`` where it is no number); ``flagged`` and ``truth`` (``None`` where not
        known); ``words``, the explanation; ``picture``, its address on the page, and ``file``, relative to the page;
        ``size`` and ``regions``; ``error``.
    """
    rows = []
    for path, score, label, truth, text, found in per_image(batch, *FIELDS):
        known = score is not None and math.isfinite(score)
        row: Row = {
            "path": str(path or ""),
            "score": float(f"{score:.9g}") if known else None,  # enough digits to tell one float32 from the next
            "flagged": int(label) if known and label is not None else None,
            "truth": None if truth is None else int(truth),
            "words": str(text or ""),
            "error": "",
        }
        if places is not None and path:
            with suppress(ValueError):  # pictures on another drive of Windows have no relative path
                row["file"] = os.path.relpath(places.picture(path), folder)
                row["picture"] = address(row["file"])
        if isinstance(found, PictureRegions):
            row["size"] = [found.width, found.height]
            row["regions"] = [
                [*(round(value, 5) for value in box), round(region.peak, 4), round(region.share, 6), region.name or "",
                 *region.box]
                for box, region in zip(found.judged_boxes, found, strict=True)
            ]  # fmt: skip
        rows.append(row)
    return rows


def unreadable_rows(trainer: Any) -> list[Row]:  # noqa: ANN401
    """Rows of the images that could not be read, in this process."""
    absent = {"score": None, "flagged": None, "truth": None, "words": ""}
    return [{"path": file.path, **absent, "error": file.reason} for file in unreadable_of(trainer)]


def unique(rows: Sequence[Row]) -> list[Row]:
    """The rows without repeated images: processes are dealt the same image twice where the number does not divide."""
    return list({row["path"] or index: row for index, row in enumerate(rows)}.values())


def below_common_folder(rows: Sequence[Row]) -> tuple[list[Row], str]:
    """Copies of the rows with their paths below the folder that they share, and that folder."""
    files = [absolute(row["path"]) for row in rows if row["path"]]
    root = common_folder(files) if files else None
    if root is None:
        return [dict(row) for row in rows], ""
    paths = [absolute(row["path"]).relative_to(root).as_posix() if row["path"] else "" for row in rows]
    return [{**row, "path": path} for row, path in zip(rows, paths, strict=True)], str(root)


def address(path: str) -> str:
    """A relative path as an address on a page; names of files need not be valid Unicode, nor free of ``#`` and ``?``."""
    return quote(os.fsencode(path.replace(os.sep, "/")))
