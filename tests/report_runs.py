"""Runs without a model: batches of made-up scores and maps, passed to the callbacks that write results."""

from __future__ import annotations

import csv
import json
import re
from collections.abc import Sequence
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import torch
from anomalib.data import ImageBatch
from PIL import Image

from anomalib_zsclip.outputs import (
    FixedScaleVisualizer,
    MonotonePostProcessor,
    PredictionsFile,
    RegionFiles,
    ReportPage,
)


def make_trainer(folder: Path, **attributes: Any) -> SimpleNamespace:
    plain = {"global_rank": 0, "world_size": 1, "callback_metrics": {}, "predicting": False, "datamodule": None}
    return SimpleNamespace(default_root_dir=str(folder), **(plain | attributes))


def make_module(**attributes: Any) -> SimpleNamespace:
    plain = {"post_processor": MonotonePostProcessor(), "visualizer": None, "model": None, "hparams": {"k_shot": 0}}
    return SimpleNamespace(**(plain | attributes))


def save_pictures(folder: Path, names: Sequence[str]) -> list[Path]:
    paths = [folder / name for name in names]
    for path in paths:
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.new("L", (24, 16), 120).save(path)
    return paths


def make_batch(
    paths: Sequence[Path | str],
    scores: Sequence[float],
    labels: Sequence[int] | None = None,
    words: Sequence[str] | None = None,
    threshold: float = 0.5,
) -> ImageBatch:
    """Predictions whose maps have a hot corner where the score exceeds one half."""
    values = torch.tensor(scores)
    maps = torch.full((len(scores), 16, 16), 0.1)
    maps[:, :4, :6] = values.clamp(min=0.2)[:, None, None]
    return ImageBatch(
        image=torch.zeros(len(scores), 3, 16, 16),
        image_path=[str(path) for path in paths],
        pred_score=values,
        pred_label=values > threshold,
        anomaly_map=maps,
        pred_mask=maps > 0.5,
        gt_label=None if labels is None else torch.tensor(labels),
        explanation=list(words) if words is not None else None,
    )


def run_callbacks(
    folder: Path,
    batches: Sequence[ImageBatch],
    *,
    module: SimpleNamespace | None = None,
    trainer: SimpleNamespace | None = None,
    pictures: bool = True,
    regions: bool = True,
    interrupt: bool = False,
) -> None:
    """Have the callbacks of a test write their files, as Lightning calls them."""
    module = module or make_module()
    trainer = trainer or make_trainer(folder)
    module.visualizer = FixedScaleVisualizer(field_size=(48, 32)) if pictures else None
    callbacks: list[Any] = [RegionFiles()] if regions else []
    callbacks += [module.visualizer] if pictures else []
    callbacks += [PredictionsFile(), ReportPage()]
    for callback in callbacks:
        callback.on_test_start(trainer, module)
    for number, batch in enumerate(batches):
        for callback in callbacks:
            callback.on_test_batch_end(trainer, module, batch, batch, number)
    for callback in callbacks:
        if interrupt:
            callback.on_exception(trainer, module, KeyboardInterrupt())
        else:
            callback.on_test_end(trainer, module)
        callback.teardown(trainer, module, "test")


def read_page(folder: Path, name: str = "report.html") -> dict[str, Any]:
    """The data of a page."""
    page = (folder / name).read_text(encoding="utf-8")
    (found,) = re.findall(r'<script type="application/json" id="data">(.*?)</script>', page, re.DOTALL)
    return json.loads(found)


def read_table(folder: Path) -> list[dict[str, str]]:
    with (folder / "predictions.csv").open(newline="", encoding="utf-8", errors="surrogateescape") as file:
        return list(csv.DictReader(file))


def random_scores(count: int, seed: int = 0) -> tuple[list[float], list[int]]:
    """Scores that overlap, with ties, and labels."""
    rng = np.random.default_rng(seed)
    labels = (rng.random(count) < 0.3).astype(int)
    scores = np.clip(rng.normal(0.42 + 0.25 * labels, 0.12), 0.01, 0.99).astype(np.float32)
    scores[: count // 10] = scores[count // 10 : 2 * (count // 10)]
    return scores.tolist(), labels.tolist()
