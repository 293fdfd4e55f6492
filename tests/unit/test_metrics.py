"""The papers' metrics: any range, ties, bounded memory, bad values, and raw maps where a model has normalised ones."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from anomalib.engine import Engine
from anomalib.metrics import AUPRO
from sklearn.metrics import average_precision_score, roc_auc_score

from anomalib_zsclip import ClipAd, SyntheticDefects
from anomalib_zsclip.benchmark import PapersEvaluator, metrics
from anomalib_zsclip.benchmark.metrics import (
    ExactAUPRO,
    ExactAUROC,
    ExactAveragePrecision,
    ExactF1Max,
    OfficialPro,
    region_weights,
)
from anomalib_zsclip.errors import ArgumentError
from tests.builtin_models import make_model

ALL = (ExactAUROC, ExactAveragePrecision, ExactF1Max, OfficialPro, ExactAUPRO)


def value(metric_class: type, predictions: torch.Tensor, targets: torch.Tensor, parts: int = 1) -> float:
    metric = metric_class(fields=["predictions", "targets"])
    for prediction, target in zip(predictions.chunk(parts), targets.chunk(parts), strict=True):
        metric.update(SimpleNamespace(predictions=prediction, targets=target))
    return float(metric.compute())


def make_maps(seed: int = 0) -> tuple[torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(seed)
    masks = torch.zeros(6, 20, 20, dtype=torch.uint8)
    masks[0, 2:6, 3:9], masks[1, 10:12, :5], masks[1, 15:, 15:] = 1, 1, 1
    return torch.rand(6, 20, 20, generator=generator) + 0.3 * masks, masks


@pytest.mark.parametrize(("scale", "shift"), [(1, 0), (100, 30), (0.001, -5), (1, -0.5)])
def test_values_of_any_range_and_sign(scale: float, shift: float) -> None:
    maps, masks = make_maps()
    maps = scale * maps + shift
    flat, labels = maps.flatten().numpy(), masks.flatten().numpy()
    assert value(ExactAUROC, maps, masks) == pytest.approx(roc_auc_score(labels, flat), abs=1e-6)
    assert value(ExactAveragePrecision, maps, masks) == pytest.approx(average_precision_score(labels, flat), abs=1e-6)


def test_zero_and_minus_zero_are_ties() -> None:
    assert value(ExactAUROC, torch.tensor([0.0, -0.0]), torch.tensor([1, 0])) == 0.5


@pytest.mark.parametrize("metric_class", ALL)
def test_batches_and_order_do_not_count(metric_class: type) -> None:
    maps, masks = make_maps()
    whole = value(metric_class, maps, masks)
    assert value(metric_class, maps.flip(0), masks.flip(0), parts=6) == pytest.approx(whole, abs=1e-7)


@pytest.mark.parametrize("metric_class", ALL)
def test_memory_is_bounded_by_bins(metric_class: type, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(metrics, "EXACT_PIXELS", 500)
    maps, masks = make_maps()
    metric = metric_class(fields=["predictions", "targets"])
    for _ in range(20):
        metric.update(SimpleNamespace(predictions=maps, targets=masks))
        assert sum(len(keys) for keys in metric.keys) <= 500
    assert len(metric.bins) == 1
    assert len(metric.bins[0]) <= maps.numel()
    assert float(metric.compute()) == pytest.approx(value(metric_class, maps, masks), abs=1e-3)
    metric.reset()
    assert metric.number == 0


def test_once_values_are_binned_all_are(monkeypatch: pytest.MonkeyPatch) -> None:
    """Otherwise the last values would be told apart from each other, and the first ones not."""
    monkeypatch.setattr(metrics, "EXACT_PIXELS", 4)
    metric = ExactAUROC(fields=["predictions", "targets"])
    predictions, targets = 1 + torch.arange(5) / 2**20, torch.tensor([0, 1, 0, 0, 1])
    for count in (5, 3):
        metric.update(SimpleNamespace(predictions=predictions[:count], targets=targets[:count]))
    assert [part.tolist() for part in metric.counts()] == [[1.0], [5.0], [3.0]]


@pytest.mark.parametrize("metric_class", ALL)
def test_one_kind_alone_gives_no_number(metric_class: type) -> None:
    maps, masks = make_maps()
    assert np.isnan(value(metric_class, maps, torch.zeros_like(masks)))
    assert np.isnan(value(metric_class, maps, torch.ones_like(masks)))


def test_values_that_no_metric_can_rank_are_refused() -> None:
    with pytest.raises(ValueError, match="not finite"):
        value(ExactAUROC, torch.tensor([0.5, float("nan")]), torch.tensor([0, 1]))
    with pytest.raises(ValueError, match="do not belong together"):
        value(ExactAUROC, torch.rand(3), torch.tensor([0, 1]))


def test_regions_touch_at_corners_too() -> None:
    mask = torch.tensor([[[1, 0, 0], [0, 1, 0], [0, 0, 0]], [[1, 0, 1], [0, 0, 0], [0, 1, 1]]])
    weights, regions = region_weights(mask)
    assert regions == 4
    assert weights[0, 0, 0] == weights[0, 1, 1] == 0.5
    assert weights[1].flatten().tolist() == [1, 0, 1, 0, 0, 0, 0, 0.5, 0.5]


@pytest.mark.parametrize("seed", range(4))
@pytest.mark.parametrize("digits", [1, 6])
def test_the_exact_overlap_is_anomalibs(seed: int, digits: int) -> None:
    maps, masks = make_maps(seed)
    maps = (maps / 2).round(decimals=digits)  # many ties, and hardly any
    reference = AUPRO(fields=["predictions", "targets"])
    reference.update(SimpleNamespace(predictions=maps, targets=masks))
    assert value(ExactAUPRO, maps, masks) == pytest.approx(float(reference.compute()), abs=1e-5)


def test_an_unknown_evaluator_is_named() -> None:
    with pytest.raises(ArgumentError, match="evaluator='paper' must be 'papers'"):
        ClipAd(backbone="builtin", evaluator="paper")


@pytest.mark.parametrize("name", ["ClipAd", "ClipAd sdp+", "AnomalyClip"])
def test_an_engine_gives_the_numbers_of_raw_maps_and_published_masks(name: str, tmp_path: Path) -> None:
    """The normalisation of scores moves the published overlap: the engine must not show it that."""
    data = SyntheticDefects(
        root=tmp_path, category="wood", image_size=96, num_train=2, num_test_good=3, num_test_per_defect=1
    )
    model = make_model(name, tmp_path, evaluator="papers", image_size=64, visualizer=False)
    engine = Engine(default_root_dir=tmp_path, accelerator="cpu", enable_progress_bar=False)
    (numbers,) = engine.test(model, datamodule=data)
    assert isinstance(model.evaluator, PapersEvaluator)
    assert set(numbers) == {
        *("image_AUROC", "image_AveragePrecision", "image_F1Max"),
        *("pixel_AUROC", "pixel_AveragePrecision", "pixel_F1Max", "pixel_OfficialPro"),
    }
    assert model.pre_processor.resize.published_masks
    head = next(iter(model.model.heads.values()))
    maps, masks, scores, labels = [], [], [], []
    for item in data.test_data:
        image, mask = model.pre_processor.transform(item.image[None], item.gt_mask[None])
        with torch.no_grad():
            features = model.model.features(image)
            if hasattr(head, "raw"):
                maps.append(head.raw(features, model.model.backbone, (64, 64)).map)
            else:
                maps.append(head(features, model.model.backbone, (64, 64)).anomaly_map)
            scores.append(model.model(image).pred_score)
        masks.append(torch.as_tensor(mask))
        labels.append(bool(item.gt_label))
    wanted = value(OfficialPro, torch.cat(maps), torch.cat(masks))
    assert numbers["pixel_OfficialPro"] == pytest.approx(wanted, abs=1e-4)
    assert numbers["pixel_AUROC"] == pytest.approx(value(ExactAUROC, torch.cat(maps), torch.cat(masks)), abs=1e-5)
    assert numbers["image_AUROC"] == pytest.approx(roc_auc_score(labels, torch.cat(scores)), abs=1e-5)
