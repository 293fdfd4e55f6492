"""Detectors on plain CLIPs, beside the plain image tower and anomalib's WinCLIP: what is timed against each other.

The weights are random where a size is not the built-in one: times do not depend on them.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial
from typing import Any
from unittest import mock

import open_clip
import torch

from anomalib_zsclip.clip import ClipBackbone
from anomalib_zsclip.clip.backbone import PRECISIONS
from anomalib_zsclip.heads.anomaly_clip import AnomalyClipHead
from anomalib_zsclip.heads.base import Head
from anomalib_zsclip.heads.crane import CraneHead
from anomalib_zsclip.heads.explanation import DefectNamer
from anomalib_zsclip.heads.random_word import RandomWordHead
from anomalib_zsclip.heads.sdp import SdpHead
from anomalib_zsclip.heads.sdp_plus import SdpPlusHead
from anomalib_zsclip.models.zero_shot_model import ZeroShotModel

SIZES = {
    "builtin": ("builtin", 192),
    "ViT-B-16-plus-240": ("ViT-B-16-plus-240", 240),
    "ViT-L-14-336": ("ViT-L-14-336", 518),
}
"""Size -> architecture and side of the images in pixels."""

PLAIN = "plain tower"
WINCLIP = "anomalib WinClip"
SLOW = ("RandomWordClip, windows", WINCLIP)
"""Run many passes per image: measured for one image at a time, and not at the largest size."""


def make_clip(size: str, pixels: int | None = None) -> Any:  # noqa: ANN401 - an open_clip model
    """An open_clip model in ``eval`` mode: the built-in one, or one of random weights for images of ``pixels``."""
    name, side = SIZES[size]
    if name == "builtin":
        backbone = ClipBackbone.load("builtin")
        # open_clip's own forward, of the plain tower, knows one size only.
        positions = backbone.positional_embedding((pixels or side,) * 2)
        backbone.clip.visual.positional_embedding = torch.nn.Parameter(positions, requires_grad=False)
        return backbone.clip
    return open_clip.create_model(name, force_image_size=pixels or side).eval()


def make_detector(model: str, clip: Any, window_chunk: int = 256) -> torch.nn.Module:  # noqa: ANN401
    """A detector by its name in the tables, on a CLIP."""
    backbone = ClipBackbone(clip)
    anomaly_clip = AnomalyClipHead(learn=True)
    crane = CraneHead(learn=True)
    for head in (anomaly_clip, crane):
        head.text_features = torch.nn.functional.normalize(torch.randn(2, backbone.embed_dim), dim=-1)
    random_word = RandomWordHead(
        backbone.embed_dim,
        localization="window" if "windows" in model else "value_value",
        window_chunk=window_chunk,
    )
    sdp = SdpHead(backbone)
    heads: dict[str, dict[str, Head]] = {
        "RandomWordClip": {"random_word": random_word},
        "RandomWordClip, windows": {"random_word": random_word},
        "ClipAd SDP": {"sdp": sdp},
        "ClipAd SDP+": {"sdp_plus": SdpPlusHead(sdp, backbone)},
        "AnomalyClip": {"anomaly_clip": anomaly_clip},
        "AnomalyClip crane": {"crane": crane},
        "ZsClip, two heads": {"random_word": random_word, "sdp": sdp},
    }
    everything: dict[str, Head] = {
        "random_word": random_word,
        "sdp": sdp,
        "sdp_plus": SdpPlusHead(SdpHead(backbone), backbone),
        "anomaly_clip": anomaly_clip,
    }
    namer = DefectNamer(backbone.embed_dim) if "defect names" in model else None
    return ZeroShotModel(backbone, heads.get(model, everything), namer=namer).eval()


DETECTORS = (
    "RandomWordClip",
    "ClipAd SDP",
    "ClipAd SDP+",
    "AnomalyClip",
    "AnomalyClip crane",
    "ZsClip, two heads",
    "ZsClip, all heads",
    "ZsClip, all heads, defect names",
    "RandomWordClip, windows",
)


def make_winclip(clip: Any) -> torch.nn.Module:  # noqa: ANN401
    """WinCLIP of anomalib on this CLIP, in place of the one that it would download."""
    from anomalib.models.image.winclip.torch_model import WinClipModel

    with mock.patch.object(open_clip, "create_model_and_transforms", return_value=(clip, None, None)):
        model = WinClipModel().eval()
    model._text_embeddings = torch.nn.functional.normalize(torch.randn(2, clip.visual.output_dim), dim=-1)
    return model


def make_candidates(
    size: str, models: Sequence[str], precision: str, batch: int, device: str
) -> dict[str, Callable[[], object]]:
    """Functions that score a batch once: the plain tower first, then the models."""
    dtype = PRECISIONS[precision]
    clip = make_clip(size).to(device)
    images = torch.rand(batch, 3, SIZES[size][1], SIZES[size][1], device=device)
    detectors = {}
    for name in models:
        if name == WINCLIP:
            # A CLIP of its own: WinCLIP changes what the image tower returns.
            detectors[name] = make_winclip(make_clip(size)).to(device)
        else:
            detectors[name] = make_detector(name, clip).to(device)
    clip.visual.to(dtype)
    rounded = images.to(dtype)
    candidates: dict[str, Callable[[], object]] = {PLAIN: lambda: clip.visual(rounded)}
    for name, detector in detectors.items():
        call: Callable[..., object] = detector.explain if "defect names" in name else detector  # type: ignore[assignment]
        candidates[name] = partial(call, images)
    return candidates
