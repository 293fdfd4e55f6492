"""Under Lightning's mixed precision the tower alone is computed in less than float32."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from anomalib_zsclip.clip import ClipBackbone
from anomalib_zsclip.heads.anomaly_clip import AnomalyClipHead
from anomalib_zsclip.heads.base import Head
from anomalib_zsclip.heads.crane import CraneHead
from anomalib_zsclip.heads.explanation import DefectNamer
from anomalib_zsclip.heads.maps import smooth, upsample, upsample_and_smooth
from anomalib_zsclip.heads.memory_bank import MemoryBank
from anomalib_zsclip.heads.mutual_scoring import MutualScoring
from anomalib_zsclip.heads.random_word import RandomWordHead
from anomalib_zsclip.heads.sdp import SdpHead
from anomalib_zsclip.heads.sdp_plus import SdpPlusHead
from anomalib_zsclip.heads.two_sentences import class_logits, image_loss
from anomalib_zsclip.models.zero_shot_model import ZeroShotModel
from tests.builtin_models import FEW_PROMPTS

HEADS = ("random_word", "sdp", "sdp_plus", "anomaly_clip", "crane")
OTHERS = ("good parts", "unlabelled images")


def random(*shape: int) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(0))


def make_head(name: str, backbone: ClipBackbone) -> Head:
    """A head with made-up text."""
    torch.manual_seed(0)
    if name == "random_word":
        return RandomWordHead(backbone.embed_dim, prompts_per_class=1)
    if name in ("anomaly_clip", "crane"):
        learned = AnomalyClipHead() if name == "anomaly_clip" else CraneHead()
        learned.text_features = F.normalize(random(2, backbone.embed_dim), dim=-1)
        return learned
    sdp = SdpHead(backbone, prompts=FEW_PROMPTS, rvs="mean")
    sdp.text_features.copy_(F.normalize(random(backbone.embed_dim, 2), dim=0))
    return sdp if name == "sdp" else SdpPlusHead(sdp, backbone)


def make_detector(name: str, backbone: ClipBackbone) -> ZeroShotModel:
    """A detector of one head, or of what other images say."""
    namer = DefectNamer(backbone.embed_dim)
    namer.text_features = F.normalize(random(*namer.text_features.shape), dim=-1)
    if name in HEADS:
        return ZeroShotModel(backbone, {name: make_head(name, backbone)}, namer=namer)
    bank = MemoryBank()
    features = backbone.forward_intermediates(random(5, 3, 32, 32), bank.request(backbone))
    if name == "good parts":
        bank.fill([features], backbone)
        heads = {"random_word": make_head("random_word", backbone)}
        return ZeroShotModel(backbone, heads, memory_bank=bank, memory_share=1.0, namer=namer)
    bank.remember_unlabelled(bank.patches_of(features, backbone)[:, :, None])
    return ZeroShotModel(backbone, {}, memory_bank=bank, mutual=MutualScoring(), namer=namer)


@torch.no_grad()
@pytest.mark.parametrize("name", [*HEADS, *OTHERS])
def test_what_follows_the_tower_is_computed_in_float32(name: str, tiny: ClipBackbone) -> None:
    model, images = make_detector(name, tiny), random(6, 3, 32, 32)[4:]
    with torch.autocast("cpu", torch.bfloat16):
        features, (found, words) = model.features(images), model.explain(images)
    wanted = model.predict(features, (32, 32))
    assert found.anomaly_map.dtype == torch.float32
    assert torch.equal(found.anomaly_map, wanted.anomaly_map)
    assert torch.equal(found.pred_score, wanted.pred_score)
    assert words == model.namer.explain(features, tiny, found.anomaly_map)
    assert not torch.equal(found.anomaly_map, model(images).anomaly_map), "the tower is not"


MAPS = random(2, 6, 5)
VECTORS = F.normalize(random(2, 48), dim=-1)


@pytest.mark.parametrize(
    "compute",
    [
        lambda: upsample(MAPS, (20, 30)),
        lambda: upsample_and_smooth(MAPS, (20, 30), 2.0),
        lambda: smooth(MAPS, 1.0),
        lambda: class_logits(random(4, 48), VECTORS, 0.07),
        lambda: image_loss(random(4, 48), VECTORS, torch.tensor([0, 1, 1, 0]), 0.07),
    ],
    ids=["upsample", "upsample_and_smooth", "smooth", "class_logits", "image_loss"],
)
def test_logits_and_maps_are_float32_in_learning_too(compute: Callable[[], Tensor]) -> None:
    wanted = compute()
    with torch.autocast("cpu", torch.bfloat16):
        assert torch.equal(compute(), wanted)
