"""What no paper fixes: constants and combinations that are our own. Each line here fails when the choice is changed."""

from __future__ import annotations

import math
from types import SimpleNamespace

import pytest
import torch
import torch.nn.functional as F
from anomalib.data import InferenceBatch
from torch import Tensor, nn

from anomalib_zsclip import AnomalyClip, ClipAd, RandomWordClip, ZsClip
from anomalib_zsclip.clip import ClipBackbone
from anomalib_zsclip.heads import random_word
from anomalib_zsclip.heads.anomaly_clip import AnomalyClipHead, AnomalyClipOptions
from anomalib_zsclip.heads.base import Head, HeadOutput
from anomalib_zsclip.heads.explanation import DefectNamer
from anomalib_zsclip.heads.memory_bank import MemoryBank
from anomalib_zsclip.heads.options import as_options
from anomalib_zsclip.heads.random_word import RandomWordHead, RandomWordOptions
from anomalib_zsclip.heads.sdp import SdpHead, SdpOptions
from anomalib_zsclip.heads.sdp_plus import SdpPlusHead
from anomalib_zsclip.models.arguments import size_of_papers
from anomalib_zsclip.models.zero_shot_model import ZeroShotModel
from anomalib_zsclip.outputs.post_processing import MonotonePostProcessor
from anomalib_zsclip.outputs.thresholds import threshold_from_normal
from anomalib_zsclip.outputs.visualizer import _caption
from tests.builtin_models import FEW_PROMPTS


# ---------------------------------------------------------------------- decisions
def test_normalisation_by_hand() -> None:
    """x = 4 (s - threshold) / (max - min); the score is 0.5 + 0.5 x / (1 + |x|)."""
    scores = torch.tensor([0.2, 0.3, 0.6])
    found = MonotonePostProcessor._normalize(scores, torch.tensor(0.1), torch.tensor(0.5), torch.tensor(0.3))
    torch.testing.assert_close(found, torch.tensor([0.25, 0.5, 0.5 + 0.5 * 3 / 4]))


def test_image_and_pixel_thresholds_are_not_exchanged() -> None:
    post_processor = MonotonePostProcessor()
    post_processor.decide_from_normal(torch.linspace(0.1, 0.2, 40), torch.linspace(0.6, 0.9, 40))
    assert float(post_processor._image_threshold) == pytest.approx(0.2, abs=0.01)
    assert float(post_processor._pixel_threshold) == pytest.approx(0.9, abs=0.02)
    assert (float(post_processor.image_min), float(post_processor.pixel_min)) == pytest.approx((0.1, 0.6))
    result = post_processor(InferenceBatch(pred_score=torch.tensor([0.5]), anomaly_map=torch.full((1, 2, 2), 0.5)))
    assert bool(result.pred_label)
    assert not result.pred_mask.any()


def test_own_thresholds_are_not_exchanged() -> None:
    post_processor = MonotonePostProcessor(threshold=0.2, pixel_threshold=0.9)
    result = post_processor(InferenceBatch(pred_score=torch.tensor([0.5]), anomaly_map=torch.full((1, 2, 2), 0.5)))
    assert bool(result.pred_label)
    assert not result.pred_mask.any()


def test_the_range_is_twice_the_way_from_the_lowest_score_to_the_threshold() -> None:
    post_processor = MonotonePostProcessor()
    post_processor.decide_from_normal(torch.linspace(0.1, 0.5, 99), torch.full((99,), 0.3))
    way = float(post_processor._image_threshold - post_processor.image_min)
    assert float(post_processor.image_max) == pytest.approx(0.1 + 2 * way)
    assert float(post_processor.pixel_max) == pytest.approx(0.3 + 2 * 0.05), "equal scores have a range all the same"


def test_a_good_part_is_not_flagged_for_a_rounding_error_of_its_own_score() -> None:
    scores = torch.linspace(0.2, 0.4, 40)
    post_processor = MonotonePostProcessor(false_alarms=0.0)
    post_processor.decide_from_normal(scores, scores)
    again = post_processor(InferenceBatch(pred_score=scores + 4e-6, anomaly_map=(scores + 4e-6).view(-1, 1, 1)))
    assert not again.pred_label.any()
    assert not again.pred_mask.any()


def test_threshold_of_many_parts_is_an_order_statistic() -> None:
    scores = torch.arange(1.0, 100.0)  # 99 parts: the 95th is exceeded by 5 of 100
    assert float(threshold_from_normal(scores.flip(0), 0.05)) == 95
    assert float(threshold_from_normal(scores, 0.1)) == 90
    assert float(threshold_from_normal(scores[:19], 0.05)) == 19
    assert float(threshold_from_normal(scores, 0.0)) == 99


def test_threshold_of_few_parts_is_a_prediction_limit() -> None:
    scores = torch.tensor([0.30, 0.34, 0.32, 0.36, 0.33])
    student = 2.131847  # 95 % of Student's t with four degrees of freedom
    expected = scores.mean() + student * scores.std() * math.sqrt(1.2)
    torch.testing.assert_close(threshold_from_normal(scores, 0.05), expected, atol=1e-5, rtol=0)
    assert float(threshold_from_normal(scores, 0.3)) < float(expected), "a larger share is a lower threshold"
    outlier = torch.tensor([0.3, 0.3, 0.3, 0.9, 0.3, 0.3, 0.3, 0.3, 0.3])
    assert float(threshold_from_normal(outlier, 0.05)) >= 0.9 - 1e-6, "never below a part that is known to be good"


@pytest.mark.parametrize("count", [3, 5, 8, 12, 19, 40])
def test_the_share_of_false_alarms_is_what_was_asked_for(count: int) -> None:
    draws = torch.randn(4000, count + 1, generator=torch.Generator().manual_seed(count)) * 0.05 + 0.4
    flagged = [float(row[-1]) > float(threshold_from_normal(row[:-1], 0.05)) for row in draws]
    assert sum(flagged) / len(flagged) <= 0.05 + 3 * math.sqrt(0.05 * 0.95 / 4000)


# ---------------------------------------------------------------------- fusion
class Fixed(Head):
    """Gives one score and one map value for every image."""

    def __init__(self, score: float, value: float) -> None:
        super().__init__()
        self.values = score, value
        self.options = SdpOptions()

    def recipe(self, class_name: str) -> dict:
        return {}

    def request(self, backbone: ClipBackbone) -> object:
        from anomalib_zsclip.clip import FeatureRequest

        return FeatureRequest()

    def setup(self, backbone: ClipBackbone, class_name: str) -> None: ...

    def forward(self, features: object, backbone: ClipBackbone, size: tuple[int, int]) -> HeadOutput:
        return HeadOutput(torch.full((1,), self.values[0]), torch.full((1, *size), self.values[1]))


class FixedBank(MemoryBank):
    """A bank whose map is the same everywhere but at one pixel."""

    has_normal = True

    def forward(self, features: object, backbone: ClipBackbone, size: tuple[int, int], *_args: object) -> Tensor:
        maps = torch.full((1, *size), 0.2)
        maps[0, 3, 3] = 0.8
        return maps


def test_fusion_by_hand(tiny: ClipBackbone) -> None:
    model = ZeroShotModel(tiny, {"a": Fixed(0.2, 0.1), "b": Fixed(0.6, 0.5)}, {"a": 1, "b": 3}, map_share=0.25)
    features = tiny.forward_intermediates(torch.zeros(1, 3, 32, 32))
    prediction = model.predict(features, (8, 8))
    torch.testing.assert_close(prediction.anomaly_map, torch.full((1, 8, 8), 0.4))
    torch.testing.assert_close(prediction.pred_score, torch.tensor([0.75 * 0.5 + 0.25 * 0.4]))


def test_the_memory_bank_has_its_share_of_score_and_map(tiny: ClipBackbone) -> None:
    model = ZeroShotModel(tiny, {"a": Fixed(0.3, 0.4)}, memory_bank=FixedBank(), memory_share=0.25)
    prediction = model.predict(tiny.forward_intermediates(torch.zeros(1, 3, 32, 32)), (8, 8))
    torch.testing.assert_close(prediction.pred_score, torch.tensor([0.75 * 0.3 + 0.25 * 0.8]))
    assert float(prediction.anomaly_map[0, 0, 0]) == pytest.approx(0.75 * 0.4 + 0.25 * 0.2)
    assert float(prediction.anomaly_map[0, 3, 3]) == pytest.approx(0.75 * 0.4 + 0.25 * 0.8)


# ---------------------------------------------------------------------- the memory bank
class Bank(MemoryBank):
    """A bank whose distances are given."""

    def __init__(self, distances: Tensor) -> None:
        super().__init__(sigma=0)
        self.given = distances

    def patches_of(self, features: object, backbone: ClipBackbone) -> Tensor:
        return torch.zeros(len(self.patches), 1, 4, 2)

    def _distances(self, *_args: object, **_keywords: object) -> Tensor:
        return self.given


def test_distances_become_probabilities_by_their_squares(tiny: ClipBackbone) -> None:
    bank = Bank(torch.tensor([[0.0, 0.1, 0.2, 0.6]]))
    bank.patches, bank.reference = torch.zeros(1, 1, 4, 2), torch.tensor(0.2)
    features = tiny.forward_intermediates(torch.zeros(1, 3, 16, 16))
    found = bank(features, tiny, (2, 2))
    torch.testing.assert_close(found, torch.tensor([[[0.0, 0.2], [0.5, 0.9]]]), atol=1e-6, rtol=0)


@torch.no_grad()
def test_the_reference_is_the_distance_that_one_in_a_hundred_normal_patches_exceeds(tiny: ClipBackbone) -> None:
    images = torch.randn(3, 3, 32, 32, generator=torch.Generator().manual_seed(0))
    bank = MemoryBank(layers=[2], scales=[1])
    features = tiny.forward_intermediates(images, bank.request(tiny))
    bank.fill([features], tiny)
    tokens = F.normalize(features.tokens[2][:, 1:], dim=-1)  # [3, 16, W]
    nearest = []
    for index in range(3):
        others = torch.cat([tokens[other] for other in range(3) if other != index])
        nearest.append(1 - (tokens[index] @ others.T).amax(dim=1))
    torch.testing.assert_close(bank.reference, torch.quantile(torch.cat(nearest), 0.99), atol=1e-5, rtol=1e-4)


@torch.no_grad()
def test_a_substitute_takes_the_place_of_the_image_left_out(tiny: ClipBackbone) -> None:
    images = torch.randn(4, 3, 32, 32, generator=torch.Generator().manual_seed(0))
    bank, swapped = MemoryBank(), MemoryBank()
    features = [tiny.forward_intermediates(image[None], bank.request(tiny)) for image in images]
    bank.fill(features[:3], tiny)
    swapped.fill([features[0], features[3], features[2]], tiny)
    swapped.reference = bank.reference
    found = bank(features[1], tiny, (32, 32), leave_out=1, substitute=bank.patches_of(features[3], tiny))
    torch.testing.assert_close(found, swapped(features[1], tiny, (32, 32)))


# ---------------------------------------------------------------------- calibration and smoothing
def test_sdp_is_calibrated_at_clips_own_temperature(tiny: ClipBackbone) -> None:
    head = SdpHead(tiny, prompts=FEW_PROMPTS, rvs="mean", text_cache=False, layers=[2, 4])
    maps = torch.full((1, 2, 2), 0.004)  # a sum over two layers of half a difference of cosines
    found = head.calibrate(torch.tensor([0.3]), maps).anomaly_map
    torch.testing.assert_close(found, torch.sigmoid(100 * torch.full((1, 2, 2), 0.004)))


def test_sdp_plus_is_bounded_by_the_sigmoid_that_touches_the_identity(tiny: ClipBackbone) -> None:
    head = SdpPlusHead(SdpHead(tiny, prompts=FEW_PROMPTS, rvs="mean", text_cache=False, layers=[2, 4]), tiny)
    head.sdp.setup(tiny, "object")
    features = tiny.forward_intermediates(torch.randn(1, 3, 32, 32), head.request(tiny))
    raw = head.raw(features, tiny, (32, 32))
    expected = torch.sigmoid(4 * (raw.map / 2 - 0.5))
    torch.testing.assert_close(head(features, tiny, (32, 32)).anomaly_map, expected)


@pytest.mark.parametrize(
    ("options", "expected"),
    [(RandomWordOptions(), 4 * 120 / 240), (SdpOptions(), 8 * 120 / 240), (AnomalyClipOptions(), 4 * 120 / 518)],
)
def test_smoothing_is_the_papers_in_proportion_to_the_shorter_side(options: object, expected: float) -> None:
    assert options.sigma_for((120, 300)) == pytest.approx(expected)
    assert options.sigma_for((300, 120)) == pytest.approx(expected)
    assert type(options)(sigma=3.0).sigma_for((120, 120)) == 3.0


@torch.no_grad()
def test_every_head_smooths_its_map_with_it(tiny: ClipBackbone, monkeypatch: pytest.MonkeyPatch) -> None:
    few = {"prompts": FEW_PROMPTS, "rvs": "mean", "text_cache": False}
    heads = {
        "random_word": lambda **own: RandomWordHead(tiny.embed_dim, prompts_per_class=5, text_cache=False, **own),
        "sdp": lambda **own: SdpHead(tiny, **few, **own),
        "sdp_plus": lambda **own: SdpPlusHead(SdpHead(tiny, **few, **own), tiny),
        "anomaly_clip": lambda **own: AnomalyClipHead(learn=True, depth=2, **own),
    }
    images = torch.randn(1, 3, 64, 64, generator=torch.Generator().manual_seed(0))
    for name, make in heads.items():
        rough = []
        for own in ({}, {"sigma": 0}):
            torch.manual_seed(0)
            head = make(**own)
            head.setup(tiny, "object")
            if name == "anomaly_clip":
                head.finish_learning(tiny)
            maps = head(tiny.forward_intermediates(images, head.request(tiny)), tiny, (64, 64)).anomaly_map
            rough.append(float(maps.diff(dim=-1).abs().mean()))
        assert rough[0] < rough[1], name


# ---------------------------------------------------------------------- names of defects
@torch.no_grad()
def test_the_namer_hears_the_whole_image_too(tiny: ClipBackbone) -> None:
    namer = DefectNamer(tiny.embed_dim, ["crack", "hole"])
    features = tiny.forward_intermediates(torch.randn(1, 3, 32, 32), namer.request(tiny))
    whole = F.normalize(features.image_embedding[0], dim=-1)
    tokens = F.normalize(tiny.project_tokens(features.value_value[4, 4][:, 1:]), dim=-1)[0]
    direction = F.normalize(whole - tokens[0] * (whole @ tokens[0]), dim=-1)  # what the region does not have
    namer.text_features = torch.stack([direction, -direction])
    maps = torch.zeros(1, 32, 32)
    maps[:, :8, :8] = 1  # the first patch
    evidence = float(whole @ direction) / 2
    expected = torch.sigmoid(torch.tensor(2 * tiny.logit_scale * evidence))
    torch.testing.assert_close(namer(features, tiny, maps)[0, 0], expected, atol=1e-4, rtol=1e-3)


class Item:
    """A prediction as the visualizer sees it."""

    def __init__(self, label: bool | None, explanation: str | None = "crack (0.61)") -> None:
        self.pred_label = None if label is None else torch.tensor(label)
        self.pred_score, self.gt_label, self.explanation = torch.tensor(0.734), torch.tensor(1), explanation


def test_captions_say_what_was_found() -> None:
    assert _caption(Item(label=True)) == "anomalous  |  score 0.73  |  truth: anomalous  |  crack (0.61)"
    assert _caption(Item(label=False)) == "normal  |  score 0.73  |  truth: anomalous"
    assert "crack" in _caption(Item(label=None))
    assert _caption(Item(label=True, explanation=None)).endswith("truth: anomalous")


# ---------------------------------------------------------------------- the random-word network
def test_noisy_texts_are_brought_back_to_unit_length(monkeypatch: pytest.MonkeyPatch) -> None:
    lengths: list[float] = []

    class Spy(nn.Linear):
        def forward(self, x: Tensor) -> Tensor:
            lengths.extend(x.norm(dim=-1).tolist())
            return super().forward(x)

    network = nn.Sequential(Spy(16, 4), nn.ReLU(), nn.Linear(4, 1))
    embeddings = F.normalize(torch.randn(40, 16), dim=-1)
    labels = torch.cat([torch.zeros(20), torch.ones(20)])
    random_word.train_text_network(network, embeddings, labels, noise=1.0, seed=0, epochs=3)
    assert lengths == pytest.approx([1.0] * len(lengths), abs=1e-5)


@pytest.mark.parametrize("noise", [0.5, 2.0])
def test_the_noise_has_the_norm_that_was_asked_for(noise: float, monkeypatch: pytest.MonkeyPatch) -> None:
    seen: list[Tensor] = []
    normalize = F.normalize
    monkeypatch.setattr(random_word.F, "normalize", lambda x, dim: seen.append(x.detach()) or normalize(x, dim=dim))
    network = nn.Sequential(nn.Linear(256, 4), nn.ReLU(), nn.Linear(4, 1))
    embeddings = normalize(torch.randn(1, 256), dim=-1).repeat(400, 1)
    labels = torch.cat([torch.zeros(200), torch.ones(200)])
    random_word.train_text_network(network, embeddings, labels, noise=noise, seed=0, epochs=1)
    added = torch.cat(seen) - embeddings[0]
    assert float(added.norm(dim=-1).mean()) == pytest.approx(noise, rel=0.05)


# ---------------------------------------------------------------------- arguments
@pytest.mark.parametrize(
    ("argument", "value", "fields"),
    [
        ("random_word", {"promts_per_class": 5}, "prompts_per_class"),
        ("sdp", {"domian": "medical"}, "domain"),
        ("anomaly_clip", {"n_context": 4}, "n_ctx"),
    ],
)
def test_a_typo_in_the_arguments_of_a_head_lists_its_fields(argument: str, value: dict, fields: str) -> None:
    from anomalib_zsclip.errors import ArgumentError

    with pytest.raises(ArgumentError, match=rf"{next(iter(value))}.*has the fields .*{fields}"):
        ZsClip(backbone="builtin", **{argument: value})
    with pytest.raises(ArgumentError, match="must be a mapping from argument to value"):
        ZsClip(backbone="builtin", **{argument: "fast"})


@pytest.mark.parametrize(("model", "typo"), [(RandomWordClip, "seeed"), (ClipAd, "rsv"), (AnomalyClip, "temprature")])
def test_a_typo_in_the_arguments_of_a_model_lists_its_fields(model: type, typo: str) -> None:
    from anomalib_zsclip.errors import ArgumentError

    with pytest.raises(ArgumentError, match=rf"'{typo}': \w+ has the fields "):
        model(backbone="builtin", **{typo: 1})


def test_options_of_a_configuration_are_those_of_the_class() -> None:
    assert as_options(RandomWordOptions, {"words": [2, 4]}, "random_word") == RandomWordOptions(words=(2, 4))
    assert as_options(SdpOptions, None, "sdp") == SdpOptions()
    model = ZsClip(
        backbone="builtin", random_word=RandomWordOptions(prompts_per_class=7, seed=3), heads=["random_word"]
    )
    assert model.model.heads["random_word"].options.prompts_per_class == 7


@pytest.mark.parametrize(
    ("given", "native", "patch", "expected"),
    [
        (None, 336, 14, 518),
        (224, 336, 14, 224),
        (None, 224, 14, None),
        (None, 336, 16, None),
        ((96, 160), 336, 14, (96, 160)),
    ],
)
def test_the_papers_size_is_that_of_one_clip_and_of_nobody_who_names_another(
    given: object, native: int, patch: int, expected: object
) -> None:
    clip = SimpleNamespace(image_size=native, patch_size=patch)
    assert size_of_papers(given, clip) == expected  # type: ignore[arg-type]
