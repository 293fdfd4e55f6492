"""AnomalyCLIP (ICLR 2024): learned object-agnostic prompts against the tokens of the refined (DPAM) stream."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from anomalib_zsclip.clip import BlockRange, ClipBackbone, FeatureRequest, ImageFeatures, loading
from anomalib_zsclip.errors import check_whole_number
from anomalib_zsclip.prompts.learned import ANOMALY_CLIP

from .base import HeadOutput
from .learned_prompts import LearnedPromptsHead, LearnedPromptsOptions, first_dual_block, require
from .options import check_fields, check_layers, combine_image_score
from .two_sentences import class_probabilities, image_loss, map_losses, summed_map

BUILTIN_PROMPTS = loading.BUILTIN_FOLDER / "anomaly_clip_prompts.safetensors"
"""Prompts that this package ships for the built-in backbone."""

MAP_LOSS_WEIGHT = 4.0  # of the published program


@dataclass(frozen=True)
class AnomalyClipOptions(LearnedPromptsOptions):
    """Arguments of the head of AnomalyCLIP.

    Args:
        sigma: Gaussian smoothing of the map in pixels; default: 4 at 518 px, in proportion to the image size.
        image_score: Image score: "text" for the image embedding's probability of the damaged sentence (the paper),
            "map_max" for the maximum of the map, "mean" for the mean of both.
        n_ctx: Learned tokens of each sentence.
        depth: Blocks of the text tower that see learned tokens; all of them where it has fewer.
        t_n_ctx: Learned tokens before each of the blocks behind the first.
        layers: Blocks of the image tower whose patches are compared, counted from 1, in any order; default: the last one
            alone, which gives the published numbers.
        value_value_blocks: Number of blocks, from the last one backwards, whose value-value attention makes up the
            refined stream; default: 19 of 24 as published (DPAM_layer=20 there), and the same share of other depths. 0
            compares ordinary tokens.
        temperature: Temperature of the softmax over the two sentences.
        round_prompts: Round the deep prompts to float16 as the published program does; default: where published prompts
            are used as they are, so not in learning.
    """

    layers: Sequence[int] | None = None
    value_value_blocks: int | None = None

    def __post_init__(self) -> None:
        """Refuse values that cannot work."""
        super().__post_init__()
        dual = self.value_value_blocks
        if dual is not None:
            check_whole_number("value_value_blocks", dual, 0)
        check_layers(self.layers)


class AnomalyClipHead(LearnedPromptsHead):
    """Compares image and patches with two learned sentences; see :class:`LearnedPromptsHead`.

    Args:
        prompts: File with learned prompts; default: the shipped ones where the backbone is the built-in one.
        learn: The prompts will be learned.
        **options: Fields of :class:`AnomalyClipOptions`.

    Raises:
        ArgumentError: If an argument has a value that cannot work.
    """

    METHOD = "AnomalyCLIP"
    VARIANT = ANOMALY_CLIP
    ADAM_BETAS = (0.5, 0.999)

    options: AnomalyClipOptions

    def __init__(self, prompts: str | Path | None = None, *, learn: bool = False, **options: Any) -> None:  # noqa: ANN401
        check_fields(AnomalyClipOptions, options)
        super().__init__(AnomalyClipOptions(**options), prompts, learn=learn)

    @property
    def shipped_prompts(self) -> Path:
        """See :class:`LearnedPromptsHead`."""
        return BUILTIN_PROMPTS

    def check_backbone(self, backbone: ClipBackbone) -> None:
        """Raise ``ArgumentError`` where ``layers`` do not fit the backbone."""
        self.blocks(backbone)

    def blocks(self, backbone: ClipBackbone) -> list[int]:
        """Blocks whose patches are compared, ascending.

        Raises:
            ArgumentError: If one is outside the image tower.
        """
        return list(check_layers(self.options.layers, backbone.layers) or [backbone.layers])

    def first_dual_block(self, backbone: ClipBackbone) -> int:
        """First block of the refined stream, counted from 1; one behind the last block where there is none."""
        return first_dual_block(self.options.value_value_blocks, backbone)

    def request(self, backbone: ClipBackbone) -> FeatureRequest:
        """Stream where the refined one branches off, and the sums of value-value outputs up to each block."""
        first = self.first_dual_block(backbone)
        blocks = self.blocks(backbone)
        refined = [block for block in blocks if block >= first]
        ordinary = [block for block in blocks if block < first]
        return FeatureRequest.of(
            tokens=[*ordinary, first - 1] if refined else ordinary,
            value_value=[(first, block) for block in refined],
        )

    def image_embedding(self, features: ImageFeatures, backbone: ClipBackbone) -> Tensor:
        """Class token of the ordinary stream in the joint space, without ``ln_post`` as published, ``[B, E]``."""
        return backbone.project_tokens(features.class_token, normalize_first=False)

    def patch_features(self, features: ImageFeatures, backbone: ClipBackbone) -> Tensor:
        """Tokens of the refined stream in the joint space (section 3.3), class token first.

        Returns:
            Not normalised, blocks ascending, ``[layers, B, 1 + L, E]``.
        """
        first = self.first_dual_block(backbone)
        tokens = [_refined_tokens(features, first, block) for block in self.blocks(backbone)]
        return torch.stack([backbone.project_tokens(stream) for stream in tokens])

    def forward(self, features: ImageFeatures, backbone: ClipBackbone, size: tuple[int, int]) -> HeadOutput:
        """Score a batch.

        The map is the mean over the layers, so that it is a probability; the published program adds them up.

        Raises:
            ArgumentError: If the head has no compiled prompts yet.
        """
        require(self.is_learned, "AnomalyCLIP has no learned prompts yet: set it up, learn, or load them.")
        embedding = self.image_embedding(features, backbone)
        patches = self.patch_features(features, backbone)[:, :, 1:]
        probabilities = class_probabilities(patches, self.text_features, self.options.temperature)  # [layers, B, L, 2]
        anomaly_map = summed_map(probabilities, features.grid, size, self.options.sigma_for(size)) / len(probabilities)
        # Rounding can leave [0, 1] by an ulp.
        anomaly_map = anomaly_map.clamp(0, 1)
        score = class_probabilities(embedding, self.text_features, self.options.temperature)[..., 1]
        return HeadOutput(combine_image_score(self.options.image_score, score, anomaly_map), anomaly_map)

    @torch.no_grad()
    def learning_inputs(
        self, features: ImageFeatures, backbone: ClipBackbone, class_names: Sequence[str]
    ) -> dict[str, Tensor]:
        """Unit image embedding ``[B, E]`` and unit patch features on their grid ``[B, layers, h, w, E]``."""
        del class_names  # The prompts are object-agnostic.
        patches = F.normalize(self.patch_features(features, backbone)[:, :, 1:], dim=-1)
        return {
            "image_embedding": F.normalize(self.image_embedding(features, backbone), dim=-1),
            "patch_features": patches.transpose(0, 1).unflatten(2, features.grid),
        }

    def learning_loss(
        self, backbone: ClipBackbone, inputs: dict[str, Tensor], masks: Tensor | None, labels: Tensor
    ) -> dict[str, Tensor]:
        """Weighted map losses plus cross-entropy of the image (section 3.3); without masks the cross-entropy alone.

        Returns:
            ``loss``, and detached ``image`` and, with masks, ``focal``, ``dice_anomalous`` and ``dice_normal``, each
            summed over the layers.
        """
        text_features = self.encode_text(backbone)
        image = image_loss(inputs["image_embedding"], text_features, labels, self.options.temperature)
        if masks is None:
            return {"loss": image, "image": image.detach()}
        terms = map_losses(inputs["patch_features"], text_features, masks, self.options.temperature)
        sums = {name: values.sum() for name, values in terms.items()}
        loss = MAP_LOSS_WEIGHT * torch.stack(list(sums.values())).sum() + image
        return {"loss": loss, "image": image.detach()} | {name: value.detach() for name, value in sums.items()}


def _refined_tokens(features: ImageFeatures, first: int, block: int) -> Tensor:
    """Refined stream after ``block``; the ordinary one before the first dual block."""
    if block < first:
        return features.tokens[block]
    span: BlockRange = (first, block)
    return features.tokens[first - 1] + features.value_value[span]
