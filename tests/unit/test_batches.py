"""A batch as plain values: what every file of results is written of."""

from __future__ import annotations

import csv
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from anomalib.data import ImageBatch, ImageItem
from PIL import Image

from anomalib_zsclip.outputs import MapFiles, PictureRegions, RegionFiles
from anomalib_zsclip.outputs.batches import per_image
from anomalib_zsclip.outputs.predictions_file import rows
from anomalib_zsclip.outputs.report.callback import rows_of

FIELDS = ("image_path", "pred_score", "pred_label", "explanation", "absent")


def make_batch(count: int, **fields: Any) -> ImageBatch:
    return ImageBatch(image=torch.zeros(count, 3, 8, 8), anomaly_map=torch.zeros(count, 8, 8), **fields)


def test_each_image_has_a_value_of_each_field() -> None:
    batch = make_batch(
        2,
        image_path=["a.png", "b.png"],
        pred_score=torch.tensor([0.25, 0.75]),
        pred_label=torch.tensor([False, True]),
        explanation=["", "hole"],
    )
    assert per_image(batch, *FIELDS) == [("a.png", 0.25, 0, "", None), ("b.png", 0.75, 1, "hole", None)]


def test_an_item_is_a_batch_of_one() -> None:
    item = ImageItem(
        image=torch.zeros(3, 8, 8),
        image_path="a.png",
        pred_score=torch.tensor(0.75),
        pred_label=torch.tensor(data=True),
        explanation="hole",
    )
    assert per_image(item, *FIELDS) == [("a.png", 0.75, 1, "hole", None)]
    item.explanation = None
    assert rows(item) == [("a.png", "0.750000", "1", "", "")]


@pytest.mark.parametrize("count", [1, 3])
def test_a_batch_without_anything_has_empty_rows(tmp_path: Path, count: int) -> None:
    batch, trainer = make_batch(count), SimpleNamespace(default_root_dir=str(tmp_path), global_rank=0, world_size=1)
    callbacks = RegionFiles(), MapFiles()
    module = SimpleNamespace(post_processor=None, model=None)
    for callback in callbacks:
        callback.on_test_start(trainer, module)
        callback.on_test_batch_end(trainer, module, batch, None, 0)
    callbacks[0].on_test_end(trainer, module)
    assert rows(batch) == [("", "", "", "", "")] * count
    assert [(row["path"], row["score"], row["flagged"], row["words"]) for row in rows_of(batch, None, tmp_path)] == [
        ("", None, None, "")
    ] * count
    assert batch.regions == [PictureRegions(8, 8)] * count
    assert {path.name for path in tmp_path.iterdir()} == {"regions.json", "regions.csv"}
    assert len(list(csv.reader((tmp_path / "regions.csv").open()))) == 1


@pytest.mark.parametrize("kind", [str, Path])
def test_a_path_is_a_text_or_a_path(tmp_path: Path, kind: type) -> None:
    files = [tmp_path / "a.png", tmp_path / "b.png"]
    for file in files:
        Image.new("RGB", (20, 10)).save(file)
    trainer = SimpleNamespace(default_root_dir=str(tmp_path / "out"), global_rank=0, world_size=1)
    batch = SimpleNamespace(
        batch_size=2, image_path=[kind(file) for file in files], anomaly_map=torch.zeros(2, 8, 8), pred_score=None
    )
    callback = MapFiles()
    callback.on_test_start(trainer, None)
    callback.on_test_batch_end(trainer, None, batch, None, 0)
    assert [row[0] for row in rows(batch)] == [str(file) for file in files]
    assert [path.name for path in sorted((tmp_path / "out").rglob("*.tiff"))] == ["a.tiff", "b.tiff"]
