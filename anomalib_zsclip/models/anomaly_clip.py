"""AnomalyClip: AnomalyCLIP (ICLR 2024) as an anomalib model."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import cast

from anomalib.metrics import Evaluator
from anomalib.models.components import AnomalibModule
from anomalib.visualization import Visualizer
from torch import nn

from anomalib_zsclip.heads.anomaly_clip import AnomalyClipHead
from anomalib_zsclip.heads.base import LearnableHead
from anomalib_zsclip.learning import LearningMixin

from .zero_shot_mixin import IN_CHECKPOINT, ZeroShotMixin, read_backbone_arguments, resolve_size, scaled_sigma

BACKBONE = ("ViT-L-14-336", "openai")
PAPER_SIZE = 518


class AnomalyClip(LearningMixin, ZeroShotMixin, AnomalibModule):  # type: ignore[misc] # the mixin narrows anomalib's hooks
    """AnomalyCLIP: object-agnostic learned prompts, compared with tokens of value-value attention.

    The prompts come from a checkpoint, are shipped with the built-in backbone, or are learned on labelled auxiliary
    images (``learn=True`` with the data module :class:`~anomalib_zsclip.ZeroShotTransfer`). See
    :class:`~anomalib_zsclip.heads.anomaly_clip.AnomalyClipHead` for the method.

    Args:
        backbone: ``"auto"``, ``"builtin"``, or an architecture of open_clip.
        pretrained: Tag of open_clip or path of a local weight file, for a named architecture.
        image_size: Side, or (height, width), that images are resized to. Default: 518 for ViT-L/14@336, as published;
            192 for ``"builtin"``; native otherwise.
        precision: Of the towers' matrix products: ``"float32"``, ``"bf16"``, ``"fp16"`` or ``"auto"``.
        checkpoint: Learned prompts: ours (``.safetensors``), or the official ``{"prompt_learner": ...}``.
        learn: Learn the prompts with ``fit``; from ``checkpoint``, where one is given.
        epochs: Epochs of learning (15 in the paper).
        token_cache: Run the tower once per auxiliary image and learn from cached tokens.
        cache_budget_gb: Memory that cached tokens may take before they go to a file.
        n_ctx: Learned tokens of each sentence.
        depth: Blocks of the text tower that see learned tokens.
        t_n_ctx: Learned tokens before each of the blocks behind the first.
        layers: Blocks whose patches are compared. Default: the last one.
        value_value_blocks: Blocks, from the last backwards, of the refined stream. Default: 19 of 24, in proportion.
        temperature: Temperature of the softmax over the two sentences.
        sigma: Gaussian smoothing of the map in pixels. Default: 4 at 518 px, in proportion.
        image_score: ``"text"`` (paper), ``"map_max"`` or ``"mean"``; see the head.
        round_prompts: Round deep prompts to float16 as the published program; default: for published prompts.
        pre_processor: anomalib component, or whether to use the default one.
        post_processor: anomalib component, or whether to use the default one.
        evaluator: anomalib component, or whether to use the default one.
        visualizer: anomalib component, or whether to use the default one.
    """

    def __init__(
        self,
        backbone: str = "auto",
        pretrained: str | Path | None = None,
        image_size: int | tuple[int, int] | None = None,
        precision: str = "float32",
        checkpoint: str | Path | None = None,
        learn: bool = False,
        epochs: int = 15,
        token_cache: bool = True,
        cache_budget_gb: float = 4.0,
        n_ctx: int = 12,
        depth: int = 9,
        t_n_ctx: int = 4,
        layers: Sequence[int] | None = None,
        value_value_blocks: int | None = None,
        temperature: float = 0.07,
        sigma: float | None = None,
        image_score: str = "text",
        round_prompts: bool | None = None,
        pre_processor: nn.Module | bool = True,
        post_processor: nn.Module | bool = True,
        evaluator: Evaluator | bool = True,
        visualizer: Visualizer | bool = True,
    ) -> None:
        super().__init__(pre_processor, post_processor, evaluator, visualizer)
        clip = read_backbone_arguments(backbone, pretrained, BACKBONE, "bilinear")
        if image_size is None and (clip.image_size, clip.patch_size) == (336, 14):
            image_size = PAPER_SIZE
        size = resolve_size(image_size, clip)
        head = AnomalyClipHead(
            None if checkpoint == IN_CHECKPOINT else checkpoint,
            learn=learn,
            n_ctx=n_ctx,
            depth=depth,
            t_n_ctx=t_n_ctx,
            layers=layers,
            value_value_blocks=value_value_blocks,
            temperature=temperature,
            sigma=scaled_sigma(sigma, 4.0, PAPER_SIZE, size),
            image_score=image_score,
            round_prompts=round_prompts,
        )
        self.learn, self.epochs = learn, epochs
        self.token_cache, self.cache_budget_gb = token_cache, cache_budget_gb
        self.assemble(
            clip,
            {"anomaly_clip": head},
            image_size=size,
            precision=precision,
            pre_processor=pre_processor,
        )

    @property
    def learning_head(self) -> LearnableHead:  # type: ignore[override]
        """The head that ``fit`` teaches."""
        return cast("LearnableHead", self.model.heads["anomaly_clip"])
