"""What tests of AnomalyCLIP's and Crane's heads share: a tiny CLIP, published prompt files, recorded learning."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import open_clip
import torch
from torch import Tensor, nn

from anomalib_zsclip.clip import ClipBackbone
from anomalib_zsclip.heads.base import HeadOutput
from anomalib_zsclip.heads.learned_prompts import LearnedPromptsHead

WIDTH, TEXT_LAYERS = 16, 3
TOLERANCE = 1e-4
CONTEXTS, DEEP = ("ctx_pos", "ctx_neg"), "compound_prompts_text"


# ---------------------------------------------------------------------- a tiny CLIP
def tiny_backbone(
    embed_dim: int = 24, text_layers: int = TEXT_LAYERS, text_width: int = WIDTH, seed: int = 0
) -> ClipBackbone:
    """A random CLIP with patches of 8 pixels and 6 image blocks."""
    torch.manual_seed(seed)
    vision = {"image_size": 32, "layers": 6, "width": 32, "head_width": 16, "patch_size": 8}
    text = {"context_length": 77, "vocab_size": 49408, "width": text_width, "heads": 2, "layers": text_layers}
    model = open_clip.model.CLIP(embed_dim, vision, text)
    for block in model.visual.transformer.resblocks:
        nn.init.normal_(block.attn.out_proj.bias, std=0.5)  # open_clip's start is 0, which hides how often it counts
    return ClipBackbone(model, name="tiny", position_mode="bilinear")


def random_images(*shape: int) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(1))


@torch.no_grad()
def run(head: LearnedPromptsHead, backbone: ClipBackbone, images: Tensor) -> HeadOutput:
    """What a head says of images, after a pass of its own."""
    features = backbone.forward_intermediates(images, head.request(backbone))
    return head(features, backbone, tuple(images.shape[-2:]))


# ---------------------------------------------------------------------- files of the published programs
def official_state_dict(
    variant: str = "anomaly_clip",
    n_ctx: int = 12,
    depth: int = TEXT_LAYERS,
    t_n_ctx: int = 4,
    width: int = WIDTH,
) -> dict[str, Tensor]:
    """State dict as a published program saves it, its buffers included; Crane's has no projections."""
    generator = torch.Generator().manual_seed(0)
    random = {name: torch.randn(1, 1, n_ctx, width, generator=generator) for name in CONTEXTS}
    for i in range(depth - 1):
        random[f"{DEEP}.{i}"] = torch.randn(t_n_ctx, width, generator=generator)
        if variant == "anomaly_clip":
            random[f"compound_prompt_projections.{i}.weight"] = torch.zeros(896, width)
            random[f"compound_prompt_projections.{i}.bias"] = torch.zeros(896)
    buffers = {"token_prefix_pos": torch.zeros(1, 1, 1, width), "tokenized_prompts_pos": torch.zeros(1, 1, 77).int()}
    return random | buffers


def official_file(path: Path, state_dict: Mapping[str, Tensor]) -> Path:
    """Write a state dict in the published layout."""
    torch.save({"prompt_learner": dict(state_dict)}, path)
    return path


# ---------------------------------------------------------------------- recorded learning
def published_names(prefix: str, values: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Our parameters, or their gradients, named and shaped as in fixtures: no deep prompts at depth 1."""
    named = {f"{prefix}.{name}": values[name][None, None] for name in CONTEXTS}
    if values.get("deep_prompts", torch.empty(0)).numel():
        named[f"{prefix}.{DEEP}"] = values["deep_prompts"]
    return named


def named_gradients(head: LearnedPromptsHead) -> dict[str, Tensor]:
    """Gradients of the first step, as :func:`published_names`."""
    gradients = {name: value.grad.clone() for name, value in head.prompts.named_parameters() if value.numel()}
    return published_names("grad1", gradients)


def recorded_optimizer(head: LearnedPromptsHead, adam: Mapping[str, Any]) -> torch.optim.Optimizer:
    """The head's optimiser, which has the recorded settings."""
    optimizer = head.configure_optimizer()
    assert optimizer.defaults["lr"] == adam["lr"]
    assert list(optimizer.defaults["betas"]) == adam["betas"]
    return optimizer


def check_parameters(
    results: Mapping[str, Tensor], arrays: Mapping[str, np.ndarray], config: Mapping[str, Any]
) -> None:
    """Compare the learned parameters after the last step."""
    names = [name for name in arrays if name.startswith("param")]
    assert names
    for name in names:
        distance = np.abs(results[name].detach().numpy() - arrays[name])
        # An entry with a vanishing gradient may go the other way because of a rounding.
        assert np.quantile(distance, 0.999) <= TOLERANCE, name
        assert distance.max() <= 2 * config["steps"] * config["adam"]["lr"], name
