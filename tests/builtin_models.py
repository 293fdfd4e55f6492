"""All models on the built-in backbone, with weights made up where a head needs learned ones."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from anomalib.models.components import AnomalibModule

from anomalib_zsclip import AnomalyClip, ClipAd, ClipBackbone, RandomWordClip, ZsClip
from anomalib_zsclip.heads.sdp import SdpHead
from anomalib_zsclip.heads.sdp_plus import SdpPlusHead
from anomalib_zsclip.prompts.learned import PromptLearner, save_prompts

FEW_PROMPTS = Path(__file__).parent / "few_prompts.yaml"
MODELS = ("ZsClip", "RandomWordClip", "ClipAd", "ClipAd sdp+", "AnomalyClip", "AnomalyClip crane")


def make_model(name: str, folder: Path, **arguments: Any) -> AnomalibModule:
    """Model by name; files with made-up weights go to ``folder``."""
    arguments = {"backbone": "builtin", **arguments}
    few = {"prompts": FEW_PROMPTS, "rvs": "mean", "text_cache": False}
    if name == "RandomWordClip":
        return RandomWordClip(prompts_per_class=50, text_cache=False, **arguments)
    if name == "ClipAd":
        return ClipAd(**few, **arguments)
    if name == "ClipAd sdp+":
        return ClipAd("sdp+", checkpoint=random_linear_layers(folder), **few, **arguments)
    if name == "AnomalyClip":
        return AnomalyClip(checkpoint=random_prompts(folder), **arguments)
    if name == "AnomalyClip crane":
        return AnomalyClip(variant="crane", checkpoint=random_prompts(folder, "crane"), **arguments)
    return ZsClip(
        sdp_plus_checkpoint=random_linear_layers(folder),
        anomaly_clip_checkpoint=random_prompts(folder),
        crane_checkpoint=random_prompts(folder, "crane"),
        random_word={"prompts_per_class": 50, "text_cache": False},
        sdp=few,
        **arguments,
    )


def random_prompts(folder: Path, variant: str = "anomaly_clip") -> Path:
    backbone = ClipBackbone.load("builtin")
    torch.manual_seed(0)
    learner = PromptLearner(backbone.text_width, depth=backbone.text_layers, variant=variant)
    save_prompts(learner, folder / f"{variant}_prompts.safetensors")
    return folder / f"{variant}_prompts.safetensors"


def random_linear_layers(folder: Path) -> Path:
    backbone = ClipBackbone.load("builtin")
    torch.manual_seed(0)
    head = SdpPlusHead(SdpHead(backbone, prompts=FEW_PROMPTS), backbone)
    head.save_linear_layers(folder / "linear_layers.safetensors")
    return folder / "linear_layers.safetensors"


def save(model: AnomalibModule, path: Path) -> Path:
    """Write a checkpoint without running anything."""
    content: dict[str, Any] = {
        "state_dict": model.state_dict(),
        "hyper_parameters": dict(model.hparams),
        "pytorch-lightning_version": "2.6.0",
    }
    model.on_save_checkpoint(content)
    torch.save(content, path)
    return path
