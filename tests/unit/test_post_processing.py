"""Normalisation keeps rankings; thresholds come from one of three states."""

from __future__ import annotations

import pytest
import torch
from anomalib.data import ImageBatch, InferenceBatch
from anomalib.post_processing import PostProcessor
from torch import Tensor
from torchmetrics.functional.classification import binary_auroc, binary_average_precision

from anomalib_zsclip.errors import ArgumentError
from anomalib_zsclip.outputs.post_processing import LABELLED_DATA, NO_DATA, NORMAL_IMAGES, MonotonePostProcessor


def validate(post_processor: PostProcessor, scores: Tensor, labels: Tensor) -> None:
    maps = scores.view(-1, 1, 1).expand(-1, 4, 4).clone()
    batch = ImageBatch(
        image=torch.zeros(len(scores), 3, 4, 4),
        gt_label=labels,
        gt_mask=labels.bool().view(-1, 1, 1).expand(-1, 4, 4),
        pred_score=scores,
        anomaly_map=maps,
    )
    post_processor.on_validation_batch_end(None, None, batch)
    post_processor.on_validation_epoch_end(None, None)


@pytest.fixture
def data() -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(0)
    labels = torch.rand(400, generator=generator) < 0.4
    return (torch.randn(400, generator=generator) * 0.1 + 0.5 + 0.05 * labels).clamp(0, 1), labels.int()


def test_ranking_metrics_equal_those_of_the_raw_scores(data: tuple[Tensor, Tensor]) -> None:
    scores, labels = data
    ours, theirs = MonotonePostProcessor(), PostProcessor()
    # Ranges from other data than the test data, as in real life: values beyond them are where clamping makes ties.
    for post_processor in (ours, theirs):
        validate(post_processor, scores[:100] * 0.2 + 0.4, labels[:100])
    batch = InferenceBatch(pred_score=scores, anomaly_map=scores.view(-1, 1, 1))
    normalized, clamped = ours(batch).pred_score, theirs(batch).pred_score
    raw = binary_auroc(scores, labels)
    assert torch.allclose(binary_auroc(normalized, labels), raw, atol=1e-6)
    assert torch.allclose(
        binary_average_precision(normalized, labels), binary_average_precision(scores, labels), atol=1e-6
    )
    assert abs(binary_auroc(clamped, labels) - raw) > 1e-3, "anomalib's own normalisation changes it"
    assert len(normalized.unique()) == len(scores.unique())


def test_the_threshold_becomes_one_half(data: tuple[Tensor, Tensor]) -> None:
    post_processor = MonotonePostProcessor()
    validate(post_processor, *data)
    assert int(post_processor.source) == LABELLED_DATA
    threshold = post_processor.image_threshold
    result = post_processor(InferenceBatch(pred_score=threshold + torch.tensor([-0.01, 0.0, 0.01])))
    assert torch.allclose(result.pred_score[1], torch.tensor(0.5))
    assert result.pred_label.tolist() == [False, False, True]
    extremes = post_processor(InferenceBatch(pred_score=torch.tensor([0.0, 1.0]))).pred_score
    assert (extremes > 0).all()
    assert (extremes < 1).all()


def test_without_data_scores_pass_and_one_half_decides() -> None:
    post_processor = MonotonePostProcessor()
    scores = torch.tensor([0.1, 0.49, 0.51, 1.0])
    result = post_processor(InferenceBatch(pred_score=scores, anomaly_map=scores.view(-1, 1, 1)))
    assert int(post_processor.source) == NO_DATA
    assert torch.equal(result.pred_score, scores)
    assert result.pred_label.tolist() == [False, False, True, True]


def test_normal_images_alone_give_thresholds() -> None:
    post_processor = MonotonePostProcessor(false_alarms=0.1)
    scores = torch.linspace(0.2, 0.3, 101)
    validate(post_processor, scores, torch.zeros(101, dtype=torch.int))
    assert int(post_processor.source) == NORMAL_IMAGES
    # The 92nd of 101 scores: a new one exceeds it with a probability of 10 / 102.
    assert torch.allclose(post_processor.image_threshold, torch.tensor(0.291), atol=1e-4)
    labels = post_processor(InferenceBatch(pred_score=scores)).pred_label
    assert labels.sum() == 9
    assert "normal images" in post_processor.describe()


def test_labelled_data_comes_before_normal_images(data: tuple[Tensor, Tensor]) -> None:
    post_processor = MonotonePostProcessor()
    validate(post_processor, torch.rand(20), torch.zeros(20, dtype=torch.int))
    validate(post_processor, *data)
    assert int(post_processor.source) == LABELLED_DATA


def test_equal_scores_are_no_trouble() -> None:
    post_processor = MonotonePostProcessor()
    validate(post_processor, torch.full((10,), 0.3), torch.zeros(10, dtype=torch.int))
    assert post_processor(InferenceBatch(pred_score=torch.tensor([0.3, 0.9]))).pred_score.isfinite().all()


def test_state_survives_a_checkpoint() -> None:
    post_processor = MonotonePostProcessor(false_alarms=0.2)
    post_processor.decide_from_normal(torch.rand(20), torch.rand(20))
    other = MonotonePostProcessor()
    other.load_state_dict(post_processor.state_dict())
    other.load_checkpoint_config(post_processor.checkpoint_config())
    assert other.describe() == post_processor.describe()


@pytest.mark.parametrize("share", [-0.1, 1, 1.5, float("nan"), "5 %", True])
def test_a_share_of_false_alarms_outside_its_range_is_refused(share: object) -> None:
    with pytest.raises(ArgumentError, match="false_alarms="):
        MonotonePostProcessor(false_alarms=share)


def test_the_old_word_for_false_alarms_still_works() -> None:
    with pytest.warns(DeprecationWarning, match="false_alarms"):
        assert MonotonePostProcessor(normal_quantile=0.9).false_alarms == pytest.approx(0.1)
