"""Regions of every picture: on the batch for Python and for the pictures, and as files for the next machine."""

from __future__ import annotations

import csv
import json
import math
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

import numpy as np
import torch
from lightning.pytorch import Callback, LightningModule, Trainer

from anomalib_zsclip.heads.explanation import DefectNamer
from anomalib_zsclip.images import unreadable_of
from anomalib_zsclip.images.folder_data import rules_of

from .batches import per_image
from .gathering import file_of_process, gather
from .predictions_file import harmless_path
from .regions import (
    DEFAULT_MIN_REGION,
    GAP,
    PictureRegions,
    Standing,
    label_regions,
    measure_regions,
    share_boxes,
    standing_of,
    upright,
    with_names,
)

SCHEMA, VERSION = "anomalib-zsclip/regions", 1
"""Name and version of the form of ``regions.json``; the version rises when a reader of the old form would go wrong."""

COORDINATES = (
    "Pixels of the upright picture, as viewers, browsers and OpenCV show it, from its upper left corner. box is left, top, "
    "width, height; center is x, y. Where orientation is not 1, the pixels in the file lie turned, as EXIF defines it."
)

COLUMNS = ("path", "region", "left", "top", "width", "height", "center_x", "center_y", "area", "share", "peak", "mean",
           "name", "name_score")  # fmt: skip

DIGITS = 6
"""Digits after the point of shares and map values, as in ``predictions.csv``."""


class RegionFiles(Callback):
    """Finds the regions of every picture, puts them on the batch as ``batch.regions``, and writes them to files.

    ``batch.regions`` is a list of :class:`~anomalib_zsclip.outputs.regions.PictureRegions`, one per image. The files,
    ``regions.json`` and ``regions.csv``, lie in the trainer's root folder. They are written at the end, and where a run is
    interrupted, of what there is until then. Of several processes the first writes all regions.

    Args:
        min_region: Least share of the picture, or of a tile.
    """

    def __init__(self, min_region: float = DEFAULT_MIN_REGION) -> None:
        self.min_region = min_region
        self._rows: list[dict[str, Any]] = []
        self._threshold = 0.5

    def on_test_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Forget another run, and have the model keep what names are made of."""
        del trainer
        self._rows, self._threshold = [], pixel_threshold(pl_module)
        _keep_evidence(pl_module, True)

    def on_predict_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """As for a test."""
        self.on_test_start(trainer, pl_module)

    def on_test_batch_end(self, trainer: Trainer, pl_module: LightningModule, outputs: Any, *args: object) -> None:  # noqa: ANN401
        """Find the regions of a batch, after the post-processor."""
        del args
        if outputs.anomaly_map is None:
            return
        self._threshold = pixel_threshold(pl_module)
        # Where our own rules do not read, anomalib's reader leaves turned pictures as they lie.
        by_rules = rules_of(trainer) is not None
        outputs.regions = self._find(outputs, _namer(pl_module), read_upright=by_rules, view=_view(pl_module))
        for path, *rest in per_image(outputs, "image_path", "pred_score", "pred_label", "regions"):
            self._rows.append(_row(str(path or ""), *rest))

    def on_predict_batch_end(self, trainer: Trainer, pl_module: LightningModule, outputs: Any, *args: object) -> None:  # noqa: ANN401
        """As for a test."""
        self.on_test_batch_end(trainer, pl_module, outputs, *args)

    def on_test_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Write the files."""
        del pl_module
        rows = gather(trainer, [*self._rows, *_unreadable(trainer)])
        if rows is not None:
            self._write(trainer, rows, complete=True)

    def on_predict_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Write the files."""
        self.on_test_end(trainer, pl_module)

    def on_exception(self, trainer: Trainer, pl_module: LightningModule, exception: BaseException) -> None:
        """Write what there is, each process its own."""
        del exception
        _keep_evidence(pl_module, False)
        rows = [*self._rows, *_unreadable(trainer)]
        if rows:
            with suppress(OSError):  # the first exception is the one to show
                self._write(trainer, rows, complete=False)

    def teardown(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        """Let go of everything."""
        del trainer, stage
        self._rows = []
        _keep_evidence(pl_module, False)

    def _find(
        self,
        batch: Any,  # noqa: ANN401
        namer: DefectNamer | None,
        *,
        read_upright: bool,
        view: tuple[int, int] | None = None,
    ) -> list[PictureRegions]:
        maps = batch.anomaly_map.detach().float().cpu().numpy()
        maps = maps.reshape(-1, *maps.shape[-2:])
        evidence = namer.evidence if namer is not None else None
        views, others = divmod(len(evidence.tokens), len(maps)) if evidence is not None else (0, 0)
        if others:
            evidence = None
        found = []
        for index, ((path,), values) in enumerate(zip(per_image(batch, "image_path"), maps, strict=True)):
            standing = _standing(path, values)
            labels = label_regions(values, self._threshold, self.min_region, view)
            if not labels.any():
                found.append(PictureRegions(*standing[:3]))
                continue
            names = []
            if namer is not None and evidence is not None:
                masks = np.stack([labels == number for number in range(1, labels.max() + 1)])
                names = namer.name_regions(evidence, index * views, torch.from_numpy(masks * values))
            boxes = share_boxes(labels)
            if not read_upright:
                labels, values = upright(labels, standing.turn), upright(values, standing.turn)  # noqa: PLW2901
            regions = measure_regions(labels, values, (standing.width, standing.height))
            found.append(PictureRegions(*standing[:3], with_names(regions, names) if names else regions, boxes))
        if namer is not None:
            namer.evidence = None
        return found

    def _write(self, trainer: Trainer, rows: Sequence[dict[str, Any]], *, complete: bool) -> None:
        rows = list({row["path"] or index: row for index, row in enumerate(rows)}.values())  # processes may repeat some
        head = {
            "schema": SCHEMA,
            "version": VERSION,
            "coordinates": COORDINATES,
            "pixel_threshold": round(self._threshold, DIGITS),
            "min_region": self.min_region,
            "merged_below": GAP,
            "complete": complete,
        }
        file = file_of_process(trainer, "regions.json")
        file.parent.mkdir(parents=True, exist_ok=True)
        images = ",\n".join(json.dumps(row, allow_nan=False) for row in rows)
        file.write_text(f'{json.dumps(head, indent=0)[:-2]},\n"images": [\n{images}\n]}}\n', encoding="ascii")
        with file.with_suffix(".csv").open("w", encoding="utf-8", errors="surrogateescape", newline="") as table:
            writer = csv.writer(table)
            writer.writerow(COLUMNS)
            writer.writerows(line for row in rows for line in _lines(row))


def pixel_threshold(pl_module: Any) -> float:  # noqa: ANN401
    """The threshold of a model's maps, on the scale of the predictions."""
    value = float(getattr(pl_module.post_processor, "normalized_pixel_threshold", 0.5))
    return value if math.isfinite(value) else 0.5


def _standing(path: str | Path | None, values: np.ndarray) -> Standing:
    """How a picture stands; as its map does where there is no file."""
    try:
        return standing_of(path) if path else Standing(values.shape[1], values.shape[0])
    except OSError:
        return Standing(values.shape[1], values.shape[0])


def _row(path: str, score: float | None, label: float | None, picture: PictureRegions) -> dict[str, Any]:
    return {
        "path": path,
        "width": picture.width,
        "height": picture.height,
        "orientation": picture.orientation,
        "pred_score": _number(score),
        "pred_label": None if label is None else int(label),
        "error": None,
        "regions": [
            {
                "box": list(region.box),
                "center": list(region.center),
                "area": region.area,
                "share": round(region.share, DIGITS),
                "peak": _number(region.peak),
                "mean": _number(region.mean),
                "name": region.name,
                "name_score": _number(region.name_score),
            }
            for region in picture
        ],
    }


def _unreadable(trainer: Any) -> list[dict[str, Any]]:  # noqa: ANN401
    """Rows of the images that could not be read, in this process."""
    absent = dict.fromkeys(("width", "height", "orientation", "pred_score", "pred_label"))
    return [{"path": file.path, **absent, "error": file.reason, "regions": []} for file in unreadable_of(trainer)]


def _lines(row: dict[str, Any]) -> list[list[Any]]:
    return [
        [
            harmless_path(row["path"]), number, *region["box"], *region["center"],
            *("" if region[name] is None else region[name] for name in COLUMNS[8:]),
        ]
        for number, region in enumerate(row["regions"], start=1)
    ]  # fmt: skip


def _number(value: float | None) -> float | None:
    return None if value is None or not math.isfinite(value) else round(value, DIGITS)


def _view(pl_module: Any) -> tuple[int, int] | None:  # noqa: ANN401
    """Height and width of a tile; ``None`` where pictures are looked at as a whole alone."""
    views = getattr(getattr(pl_module, "model", None), "views", None)
    return views.tile if views is not None and views.tiling.is_on else None


def _namer(pl_module: Any) -> DefectNamer | None:  # noqa: ANN401
    return getattr(getattr(pl_module, "model", None), "namer", None)


def _keep_evidence(pl_module: Any, keep: bool) -> None:  # noqa: ANN401
    namer = _namer(pl_module)
    if namer is not None:
        namer.keeps_evidence, namer.evidence = keep, None
