"""Crane (arXiv 2504.11055): AnomalyCLIP's kind of prompts against self-correlation tokens; patches pooled by their anomaly.

Three things differ from AnomalyCLIP. The refined stream adds up query-query, key-key and value-value attention instead of
value-value alone. The image is judged by a mean of its own embedding and of its patches, pooled with their probability of
being anomalous as weights. And each sentence is learned with the embedding of the image among its tokens.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar

import torch
import torch.nn.functional as F
from torch import Tensor

from anomalib_zsclip.clip import ClipBackbone, FeatureRequest, ImageFeatures, loading
from anomalib_zsclip.errors import check_flag, check_share, check_whole_number, is_number
from anomalib_zsclip.prompts.learned import CRANE

from .base import HeadOutput
from .learned_prompts import LearnedPromptsHead, LearnedPromptsOptions, first_dual_block, require
from .losses import dice_loss, focal_loss, true_class
from .maps import smooth, tokens_to_grid, upsample, upsample_and_smooth
from .options import check_fields, combine_image_score
from .two_sentences import class_logits

BUILTIN_PROMPTS = loading.BUILTIN_FOLDER / "crane_prompts.safetensors"
"""Prompts for the built-in backbone, where this package ships some."""

UPSAMPLED = ("probabilities", "logits")
IMAGE_LOSS_WEIGHT = 0.2  # of the published program
IMAGE_LOSS_TEMPERATURE = 0.01  # of the published program: sharper than the 0.07 of scores and maps


@dataclass(frozen=True)
class CraneOptions(LearnedPromptsOptions):
    """Arguments of the head of Crane.

    Args:
        sigma: Gaussian smoothing of the map in pixels; default: 4 at 518 px, in proportion to the image size.
        image_score: Image score: "text" for the probability of the damaged sentence, of the image embedding mixed with the
            pooled patches (the paper), "map_max" for the maximum of the map, "mean" for the mean of both.
        n_ctx: Learned tokens of each sentence.
        depth: Blocks of the text tower that see learned tokens; all of them where it has fewer.
        t_n_ctx: Learned tokens before each of the blocks behind the first.
        self_correlation_blocks: Number of blocks, from the last one backwards, whose self-correlation attention makes up
            the refined stream; default: 19 of 24 as published (20 there, which counts one more), and the same share of
            other depths. 0 compares ordinary tokens.
        temperature: Temperature of the softmax over the two sentences.
        round_prompts: Round the deep prompts to float16 as the published program does; default: where published prompts
            are used as they are, so not in learning.
        image_tokens: Put the embedding of the image into both sentences when judging too, not in learning alone. The
            published numbers are made without. The text tower then runs for every image: two sentences, some 3 % of the
            pass of ViT-L/14 at 518 px.
        pooled_share: Share of the pooled patches in the embedding that judges the image, in [0, 1].
        upsampled: What is resized from patches to pixels: "probabilities", as in the published numbers, or "logits", whose
            softmax is taken per pixel.
        map_loss_weight: Weight of the loss of the map in learning. The published program has 2, and counts the last block
            once for each of the four layers it is told.
    """

    WITHOUT_EFFECT: ClassVar[tuple[str, ...]] = (*LearnedPromptsOptions.WITHOUT_EFFECT, "map_loss_weight")

    self_correlation_blocks: int | None = None
    image_tokens: bool = False
    pooled_share: float = 0.5
    upsampled: str = "probabilities"
    map_loss_weight: float = 8.0

    def __post_init__(self) -> None:
        """Refuse values that cannot work."""
        super().__post_init__()
        dual = self.self_correlation_blocks
        if dual is not None:
            check_whole_number("self_correlation_blocks", dual, 0)
        check_flag("image_tokens", self.image_tokens)
        check_share("pooled_share", self.pooled_share)
        require(self.upsampled in UPSAMPLED, f"upsampled={self.upsampled!r} must be one of {', '.join(UPSAMPLED)}.")
        weight = self.map_loss_weight
        require(is_number(weight) and weight >= 0, f"map_loss_weight={weight!r} must be finite and not negative.")


class CraneHead(LearnedPromptsHead):
    """Compares patches, and the image embedding mixed with pooled patches, with two learned sentences.

    See :class:`LearnedPromptsHead`.

    Args:
        prompts: File with learned prompts; default: those for the built-in backbone, where they are shipped.
        learn: The prompts will be learned.
        **options: Fields of :class:`CraneOptions`.

    Raises:
        ArgumentError: If an argument has a value that cannot work.
    """

    METHOD = "Crane"
    VARIANT = CRANE
    ADAM_BETAS = (0.6, 0.999)
    LONGEST_END = 6  # the image token is one more

    options: CraneOptions

    def __init__(self, prompts: str | Path | None = None, *, learn: bool = False, **options: Any) -> None:  # noqa: ANN401
        check_fields(CraneOptions, options)
        super().__init__(CraneOptions(**options), prompts, learn=learn)

    @property
    def shipped_prompts(self) -> Path:
        """See :class:`LearnedPromptsHead`."""
        return BUILTIN_PROMPTS

    def check_backbone(self, backbone: ClipBackbone) -> None:
        """Raise ``ArgumentError`` where images cannot be tokens of a sentence, but have to."""
        fits = backbone.embed_dim == backbone.text_width or not (self.learn or self.options.image_tokens)
        require(
            fits,
            f"Crane puts image embeddings into sentences, and those of {backbone.name!r} have {backbone.embed_dim} "
            f"dimensions where the text tower's tokens have {backbone.text_width}. Choose another backbone; published or "
            "other prompts can be used with image_tokens=False and learn=False.",
        )

    def request(self, backbone: ClipBackbone) -> FeatureRequest:
        """Stream where the refined one branches off, and the sum of self-correlation outputs up to the last block."""
        first = first_dual_block(self.options.self_correlation_blocks, backbone)
        span = [(first, backbone.layers)] if first <= backbone.layers else []
        return FeatureRequest.of(tokens=[first - 1], self_correlation=span)

    def refined_tokens(self, features: ImageFeatures, backbone: ClipBackbone) -> Tensor:
        """Refined stream after the last block, class token first, ``[B, 1 + L, W]``.

        The published program means to compare four layers, and compares this one four times.
        """
        first = first_dual_block(self.options.self_correlation_blocks, backbone)
        start = features.tokens[first - 1]
        return start if first > backbone.layers else start + features.self_correlation[first, backbone.layers]

    def patch_features(self, features: ImageFeatures, backbone: ClipBackbone) -> Tensor:
        """Patches of the refined stream in the joint space, not normalised, ``[B, L, E]``."""
        return backbone.project_tokens(self.refined_tokens(features, backbone)[:, 1:])

    def encode_text_for(self, backbone: ClipBackbone, image_embedding: Tensor) -> Tensor:
        """Unit embeddings of both sentences, each with the image among its tokens, ``[B, 2, E]``; with gradient.

        Args:
            backbone: The frozen CLIP.
            image_embedding: Unit image embeddings, ``[B, E]``.
        """
        embeddings = self.prompts.encode_for_images(backbone, image_embedding, round_prompts=self.rounds_prompts)
        return F.normalize(embeddings, dim=-1)

    def forward(self, features: ImageFeatures, backbone: ClipBackbone, size: tuple[int, int]) -> HeadOutput:
        """Score a batch.

        Raises:
            ArgumentError: If the head has no compiled prompts yet.
        """
        require(self.is_learned, "Crane has no learned prompts yet: set it up, learn, or load them.")
        options = self.options
        patches = F.normalize(self.patch_features(features, backbone), dim=-1)
        embedding = F.normalize(features.image_embedding, dim=-1)
        text = self.encode_text_for(backbone, embedding) if options.image_tokens else self.text_features
        logits = class_logits(patches, text, options.temperature)  # [B, L, 2]
        anomaly_map = self.map_of(logits, features.grid, size)
        fused = fuse_pooled(embedding, pool_patches(patches, logits), options.pooled_share)
        score = class_logits(fused[:, None], text, options.temperature).softmax(dim=-1)[:, 0, 1]
        return HeadOutput(combine_image_score(options.image_score, score, anomaly_map), anomaly_map)

    def map_of(self, logits: Tensor, grid: tuple[int, int], size: tuple[int, int]) -> Tensor:
        """Smooth map ``[B, H, W]`` of logits per patch ``[B, L, 2]``."""
        sigma = self.options.sigma_for(size)
        # The softmax over two classes is the sigmoid of their difference, and a difference is resized like its parts.
        difference = tokens_to_grid(logits[..., 1] - logits[..., 0], grid)
        if self.options.upsampled == "logits":
            anomaly_map = smooth(upsample(difference, size).sigmoid(), sigma)
        else:
            anomaly_map = upsample_and_smooth(difference.sigmoid(), size, sigma)
        return anomaly_map.clamp(0, 1)  # rounding can leave [0, 1] by an ulp

    @torch.no_grad()
    def learning_inputs(
        self, features: ImageFeatures, backbone: ClipBackbone, class_names: Sequence[str]
    ) -> dict[str, Tensor]:
        """Unit image embedding ``[B, E]`` and unit patch features on their grid ``[B, h, w, E]``."""
        del class_names  # The prompts are object-agnostic.
        patches = F.normalize(self.patch_features(features, backbone), dim=-1)
        return {
            "image_embedding": F.normalize(features.image_embedding, dim=-1),
            "patch_features": patches.unflatten(1, features.grid),
        }

    def learning_loss(
        self, backbone: ClipBackbone, inputs: dict[str, Tensor], masks: Tensor | None, labels: Tensor
    ) -> dict[str, Tensor]:
        """Weighted focal and dice loss of the map plus cross-entropy of the image; without masks the latter alone.

        Returns:
            ``loss``, and detached ``image`` and, with masks, ``focal`` and ``dice_anomalous``.
        """
        embedding, on_grid = inputs["image_embedding"], inputs["patch_features"]
        patches = on_grid.flatten(1, 2)
        text = self.encode_text_for(backbone, embedding)
        logits = class_logits(patches, text, self.options.temperature)  # [B, L, 2]
        # The gradient flows through the weights of the pooling too.
        fused = fuse_pooled(embedding, pool_patches(patches, logits), self.options.pooled_share)
        image_logits = class_logits(fused[:, None], text, IMAGE_LOSS_TEMPERATURE)[:, 0]
        image = F.cross_entropy(image_logits, labels.long())
        loss = IMAGE_LOSS_WEIGHT * image
        if masks is None:
            return {"loss": loss, "image": image.detach()}
        terms = map_losses(logits, (on_grid.shape[1], on_grid.shape[2]), masks)
        loss = loss + self.options.map_loss_weight * (terms["focal"] + terms["dice_anomalous"])
        return {"loss": loss, "image": image.detach()} | {name: value.detach() for name, value in terms.items()}


def pool_patches(patches: Tensor, logits: Tensor) -> Tensor:
    """Unit sum of unit patches ``[B, L, E]``, each weighted with its probability of being anomalous: ``[B, E]``.

    Args:
        patches: Unit patch features, ``[B, L, E]``.
        logits: Logits of normal and anomalous, ``[B, L, 2]``.
    """
    weights = logits.softmax(dim=-1)[..., 1]
    return F.normalize((weights[..., None] * patches).sum(dim=1), dim=-1)


def fuse_pooled(image_embedding: Tensor, pooled: Tensor, share: float) -> Tensor:
    """Unit vector of the weighted mean of unit image embeddings and unit pooled patches, all ``[B, E]``.

    Args:
        image_embedding: Unit image embeddings.
        pooled: Result of :func:`pool_patches`.
        share: Weight of the pooled patches, in [0, 1].
    """
    return F.normalize(share * pooled + (1 - share) * image_embedding, dim=-1)


def map_losses(logits: Tensor, grid: tuple[int, int], masks: Tensor) -> dict[str, Tensor]:
    """Focal loss, and dice loss of the anomalous channel alone, of maps resized by nearest neighbour as published.

    Args:
        logits: Logits of normal and anomalous, ``[B, L, 2]``.
        grid: Height and width of the patch grid.
        masks: Ground truth in {0, 1}, ``[B, H, W]``.

    Returns:
        ``focal`` and ``dice_anomalous``, scalars.
    """
    masks = masks.float()
    probabilities = tokens_to_grid(logits.softmax(dim=-1).transpose(1, 2), grid)  # [B, 2, h, w]
    maps = F.interpolate(probabilities, size=(masks.shape[-2], masks.shape[-1]), mode="nearest")
    return {"focal": focal_loss(true_class(maps, masks)), "dice_anomalous": dice_loss(maps[:, 1], masks)}
