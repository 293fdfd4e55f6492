"""What holds for every input: the mathematics of trunk, heads, maps and post-processing."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from anomalib_zsclip.clip import ClipBackbone, FeatureRequest
from anomalib_zsclip.heads.anomaly_clip import AnomalyClipHead, class_probabilities, summed_map
from anomalib_zsclip.heads.maps import smooth, upsample, upsample_and_smooth
from anomalib_zsclip.heads.memory_bank import MemoryBank
from anomalib_zsclip.heads.random_word import RandomWordHead, harmonic_aggregation, window_indices
from anomalib_zsclip.heads.sdp import SdpHead, feature_surgery
from anomalib_zsclip.heads.sdp_plus import SdpPlusHead
from anomalib_zsclip.models.zero_shot_model import ZeroShotModel
from anomalib_zsclip.outputs.post_processing import MonotonePostProcessor
from tests.builtin_models import FEW_PROMPTS

some = settings(max_examples=8, deadline=None, derandomize=True)
many = settings(max_examples=40, deadline=None, derandomize=True)

seeds = st.integers(0, 2**31 - 1)
sides = st.integers(8, 52)
unit_values = st.floats(0, 1, width=32)


def random_images(seed: int, count: int, height: int, width: int, scale: float = 1.0) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    return scale * torch.randn(count, 3, height, width, generator=generator)


@pytest.fixture(scope="module")
def detector(tiny: ClipBackbone) -> ZeroShotModel:
    """All heads on a tower of random weights."""
    torch.manual_seed(0)
    sdp = {"prompts": FEW_PROMPTS, "rvs": "mean", "text_cache": False}
    heads = {
        "random_word": RandomWordHead(tiny.embed_dim, prompts_per_class=20, text_cache=False),
        "windows": RandomWordHead(tiny.embed_dim, prompts_per_class=20, localization="window", text_cache=False),
        "sdp": SdpHead(tiny, **sdp),
        "sdp_plus": SdpPlusHead(SdpHead(tiny, **sdp), tiny),
        "anomaly_clip": AnomalyClipHead(learn=True, depth=2),
    }
    for head in heads.values():
        head.setup(tiny, "object")
    heads["anomaly_clip"].finish_learning(tiny)
    return ZeroShotModel(tiny, heads, map_share=0.3).eval()


@torch.no_grad()
def outputs(detector: ZeroShotModel, images: Tensor) -> dict[str, tuple[Tensor, Tensor]]:
    """Score and map of every head, and of their fusion."""
    size = (images.shape[-2], images.shape[-1])
    features = detector.features(images)
    prediction = detector.predict(features, size)
    return {**detector.head_outputs(features, size), "fused": (prediction.pred_score, prediction.anomaly_map)}


# ---------------------------------------------------------------------- an image and its neighbours
@some
@given(seed=seeds, count=st.integers(2, 4), height=sides, width=sides)
def test_score_and_map_do_not_depend_on_the_other_images_of_the_batch(
    detector: ZeroShotModel, seed: int, count: int, height: int, width: int
) -> None:
    images = random_images(seed, count, height, width)
    together = outputs(detector, images)
    for index in range(count):
        for name, (score, anomaly_map) in outputs(detector, images[index : index + 1]).items():
            torch.testing.assert_close(together[name][0][index], score[0], rtol=0, atol=2e-5, msg=name)
            torch.testing.assert_close(together[name][1][index], anomaly_map[0], rtol=0, atol=2e-5, msg=name)


@some
@given(seed=seeds, order=st.permutations(range(4)))
def test_permuting_a_batch_permutes_its_verdicts(detector: ZeroShotModel, seed: int, order: list[int]) -> None:
    images = random_images(seed, 4, 32, 40)
    straight, permuted = outputs(detector, images), outputs(detector, images[order])
    for name, (score, anomaly_map) in straight.items():
        torch.testing.assert_close(permuted[name][0], score[order], rtol=0, atol=2e-5, msg=name)
        torch.testing.assert_close(permuted[name][1], anomaly_map[order], rtol=0, atol=2e-5, msg=name)


@some
@given(seed=seeds, height=sides, width=sides, scale=st.sampled_from([0.0, 1e-6, 1.0, 100.0]))
def test_scores_and_maps_are_probabilities_of_the_images_size(
    detector: ZeroShotModel, seed: int, height: int, width: int, scale: float
) -> None:
    for name, (score, anomaly_map) in outputs(detector, random_images(seed, 2, height, width, scale)).items():
        assert score.shape == (2,), name
        assert anomaly_map.shape == (2, height, width), name
        for values in (score, anomaly_map):
            assert values.dtype == torch.float32, name
            # The mean over heads is clamped; a head alone may leave [0, 1] by a rounding error.
            assert bool(((values >= -1e-6) & (values <= 1 + 1e-6)).all()), name


@some
@given(seed=seeds, dtype=st.sampled_from([torch.float64, torch.float16, torch.bfloat16]))
def test_type_of_the_images_does_not_matter_beyond_their_rounding(
    detector: ZeroShotModel, seed: int, dtype: torch.dtype
) -> None:
    rounded = random_images(seed, 2, 32, 32).to(dtype)
    for name, (score, anomaly_map) in outputs(detector, rounded).items():
        reference_score, reference_map = outputs(detector, rounded.float())[name]
        torch.testing.assert_close(score, reference_score, msg=name)
        torch.testing.assert_close(anomaly_map, reference_map, msg=name)


@some
@given(
    factor=st.floats(0.1, 50), weights=st.lists(st.floats(0, 5), min_size=5, max_size=5).filter(lambda w: sum(w) > 0.1)
)
def test_weights_of_the_heads_matter_up_to_a_factor(
    detector: ZeroShotModel, factor: float, weights: list[float]
) -> None:
    images = random_images(0, 1, 32, 32)
    given_weights = dict(zip(detector.heads, weights, strict=True))
    predictions = []
    for scale in (1, factor):
        model = ZeroShotModel(
            detector.backbone, detector.heads, {name: scale * weight for name, weight in given_weights.items()}
        )
        with torch.no_grad():
            predictions.append(model(images))
    torch.testing.assert_close(predictions[0].anomaly_map, predictions[1].anomaly_map)
    torch.testing.assert_close(predictions[0].pred_score, predictions[1].pred_score)


# ---------------------------------------------------------------------- the trunk
@some
@given(seed=seeds, first=st.integers(1, 4), length=st.integers(0, 3))
def test_value_value_sums_are_sums_of_single_blocks(tiny: ClipBackbone, seed: int, first: int, length: int) -> None:
    last = min(first + length, tiny.layers)
    singles = [(block, block) for block in range(first, last + 1)]
    request = FeatureRequest.of(value_value=[(first, last), *singles])
    with torch.no_grad():
        sums = tiny.forward_intermediates(random_images(seed, 2, 32, 24), request).value_value
    torch.testing.assert_close(sums[first, last], torch.stack([sums[single] for single in singles]).sum(dim=0))


@some
@given(seed=seeds, blocks=st.sets(st.integers(0, 4)), pairs=st.sets(st.sampled_from([(1, 2), (2, 4), (3, 3)])))
def test_what_is_asked_for_changes_nothing_else(
    tiny: ClipBackbone, seed: int, blocks: set[int], pairs: set[tuple[int, int]]
) -> None:
    images = random_images(seed, 1, 32, 32)
    with torch.no_grad():
        features = tiny.forward_intermediates(images, FeatureRequest.of(tokens=blocks, value_value=pairs))
        torch.testing.assert_close(features.image_embedding, tiny(images))
        for block in blocks:
            alone = tiny.forward_intermediates(images, FeatureRequest.of(tokens=[block])).tokens[block]
            torch.testing.assert_close(features.tokens[block], alone)
    assert features.tokens.keys() == blocks
    assert features.value_value.keys() == pairs


@some
@given(seed=seeds, count=st.integers(1, 3), chunk=st.integers(1, 40))
def test_chunks_bound_the_memory_of_windows_and_not_their_result(
    tiny: ClipBackbone, seed: int, count: int, chunk: int
) -> None:
    windows = window_indices((4, 4), 2)
    with torch.no_grad():
        stream = tiny.forward_intermediates(random_images(seed, count, 32, 32), FeatureRequest.of(tokens=[0])).tokens[0]
        torch.testing.assert_close(
            tiny.embed_windows(stream, windows, chunk), tiny.embed_windows(stream, windows, 10_000)
        )


# ---------------------------------------------------------------------- maps
grids = st.tuples(st.integers(1, 9), st.integers(1, 9))
sizes = st.tuples(st.integers(1, 40), st.integers(1, 40))
sigmas = st.floats(0, 6)


@many
@given(value=st.floats(-5, 5), grid=grids, size=sizes, sigma=sigmas, align=st.booleans())
def test_constant_maps_stay_as_they_are(
    value: float, grid: tuple[int, int], size: tuple[int, int], sigma: float, align: bool
) -> None:
    upsampled = upsample_and_smooth(torch.full(grid, value), size, sigma, align_corners=align)
    torch.testing.assert_close(upsampled, torch.full(size, value), rtol=1e-5, atol=1e-6)


@many
@given(seed=seeds, size=sizes, sigma=sigmas)
def test_smoothing_keeps_the_mean(seed: int, size: tuple[int, int], sigma: float) -> None:
    values = torch.rand(2, *size, generator=torch.Generator().manual_seed(seed))
    torch.testing.assert_close(smooth(values, sigma).mean(dim=(1, 2)), values.mean(dim=(1, 2)), rtol=1e-5, atol=1e-6)


@many
@given(seed=seeds, grid=grids, size=sizes, sigma=sigmas)
def test_maps_stay_between_the_extremes_of_the_patches(
    seed: int, grid: tuple[int, int], size: tuple[int, int], sigma: float
) -> None:
    patches = torch.rand(grid, generator=torch.Generator().manual_seed(seed))
    values = upsample_and_smooth(patches, size, sigma)
    assert patches.min() - 1e-5 <= values.min()
    assert values.max() <= patches.max() + 1e-5


@many
@given(seed=seeds, grid=grids, size=sizes, sigma=sigmas, a=st.floats(-3, 3), b=st.floats(-3, 3))
def test_enlarging_and_smoothing_are_linear(
    seed: int, grid: tuple[int, int], size: tuple[int, int], sigma: float, a: float, b: float
) -> None:
    x, y = torch.randn(2, *grid, generator=torch.Generator().manual_seed(seed))
    combined = upsample_and_smooth(a * x + b * y, size, sigma)
    separate = a * upsample_and_smooth(x, size, sigma) + b * upsample_and_smooth(y, size, sigma)
    torch.testing.assert_close(combined, separate, rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(
        upsample_and_smooth(x, size, sigma), smooth(upsample(x, size), sigma), rtol=1e-4, atol=1e-5
    )


# ---------------------------------------------------------------------- heads
@many
@given(seed=seeds, length=st.floats(1e-3, 1e3), temperature=st.floats(0.01, 1))
def test_length_of_a_feature_does_not_matter(seed: int, length: float, temperature: float) -> None:
    generator = torch.Generator().manual_seed(seed)
    features, text = torch.randn(5, 16, generator=generator), torch.randn(2, 16, generator=generator)
    text = F.normalize(text, dim=-1)
    probabilities = class_probabilities(features, text, temperature)
    torch.testing.assert_close(probabilities.sum(dim=-1), torch.ones(5))
    torch.testing.assert_close(
        class_probabilities(length * features, text, temperature), probabilities, atol=1e-4, rtol=0
    )


@many
@given(seed=seeds, layers=st.integers(1, 4))
def test_exchanging_the_two_sentences_turns_a_map_around(seed: int, layers: int) -> None:
    logits = torch.randn(layers, 2, 12, 2, generator=torch.Generator().manual_seed(seed))
    probabilities = logits.softmax(dim=-1)
    straight, swapped = (summed_map(p, (3, 4), (12, 16), 2.0) for p in (probabilities, probabilities.flip(-1)))
    torch.testing.assert_close(straight + swapped, torch.full_like(straight, layers))


@many
@given(seed=seeds, layers=st.integers(1, 4), count=st.integers(1, 6))
def test_similarities_of_a_token_add_up_to_nothing(seed: int, layers: int, count: int) -> None:
    cosines = torch.rand(layers, 2, count, 2, generator=torch.Generator().manual_seed(seed)) * 2 - 1
    torch.testing.assert_close(feature_surgery(cosines).sum(dim=-1), torch.zeros(2, count), rtol=0, atol=1e-5)


@many
@given(seed=seeds, grid=grids, scale=st.integers(1, 4), stride=st.integers(1, 5))
def test_harmonic_mean_of_windows_stays_between_their_scores(
    seed: int, grid: tuple[int, int], scale: int, stride: int
) -> None:
    windows = window_indices(grid, scale, stride)
    assert windows.unique().tolist() == list(range(grid[0] * grid[1]))
    assert len(windows.unique(dim=0)) == len(windows)
    scores = torch.rand(2, len(windows), generator=torch.Generator().manual_seed(seed)).clamp(min=0.01)
    patches = harmonic_aggregation(scores, windows, grid[0] * grid[1])
    assert bool((patches >= scores.amin(dim=1, keepdim=True) - 1e-5).all())
    assert bool((patches <= scores.amax(dim=1, keepdim=True) + 1e-5).all())


@some
@given(seed=seeds, shots=st.integers(1, 3))
def test_a_remembered_image_is_normal(tiny: ClipBackbone, seed: int, shots: int) -> None:
    memory = MemoryBank()
    images = random_images(seed, shots, 32, 32)
    with torch.no_grad():
        features = tiny.forward_intermediates(images, memory.request(tiny))
        memory.fill([features], tiny)
        maps = memory(features, tiny, (32, 32))
    torch.testing.assert_close(maps, torch.zeros(shots, 32, 32), rtol=0, atol=1e-3)


# ---------------------------------------------------------------------- decisions
@many
@given(
    low=st.floats(0, 0.5),
    span=st.floats(1e-3, 0.5),
    share=unit_values,
    values=st.lists(st.floats(0, 1, width=32), min_size=2, max_size=20, unique=True),
)
def test_normalisation_is_strictly_monotone_and_leaves_the_threshold_at_a_half(
    low: float, span: float, share: float, values: list[float]
) -> None:
    low_, high = torch.tensor(low), torch.tensor(low + span)
    threshold = low_ + share * (high - low_)
    scores = torch.tensor(sorted(values))
    normalized = MonotonePostProcessor._normalize(scores, low_, high, threshold)
    assert bool(((normalized >= 0) & (normalized <= 1)).all())
    clearly_apart = scores.diff() > 1e-3
    assert bool((normalized.diff()[clearly_apart] > 0).all())
    assert bool((normalized.diff() >= 0).all())
    half = MonotonePostProcessor._normalize(threshold.unsqueeze(0), low_, high, threshold)
    torch.testing.assert_close(half, torch.tensor([0.5]))


@many
@given(scores=st.lists(unit_values, min_size=2, max_size=60), false_alarms=st.floats(0, 0.5))
def test_at_most_the_named_share_of_normal_images_is_called_anomalous(scores: list[float], false_alarms: float) -> None:
    post_processor = MonotonePostProcessor(false_alarms)
    values = torch.tensor(scores)
    post_processor.decide_from_normal(values, values)
    above = (values > post_processor._image_threshold + 1e-6).float().mean()
    assert float(above) <= false_alarms + 1e-6
    assert post_processor.image_min < post_processor.image_max
