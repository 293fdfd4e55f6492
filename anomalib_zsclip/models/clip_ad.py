"""ClipAd: CLIP-AD's SDP and SDP+ (arXiv 2311.00453) as an anomalib model."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any, cast

from anomalib.metrics import Evaluator
from anomalib.models.components import AnomalibModule
from anomalib.visualization import Visualizer
from torch import nn

from anomalib_zsclip.clip.loading import BUILTIN, shipped_head
from anomalib_zsclip.errors import ArgumentError, CheckpointError
from anomalib_zsclip.heads.base import Head, LearnableHead
from anomalib_zsclip.heads.sdp import SdpHead
from anomalib_zsclip.heads.sdp_plus import SdpPlusHead
from anomalib_zsclip.learning import LearningMixin

from .zero_shot_mixin import IN_CHECKPOINT, ZeroShotMixin, read_backbone_arguments, resolve_size, scaled_sigma

BACKBONE = ("ViT-B-16-plus-240", "laion400m_e31")
VARIANTS = ("sdp", "sdp+")


class ClipAd(LearningMixin, ZeroShotMixin, AnomalibModule):  # type: ignore[misc] # the mixin narrows anomalib's hooks
    """CLIP-AD: a representative text vector per state, compared with staged value-value tokens.

    ``variant="sdp"`` needs no training. ``variant="sdp+"`` adds one linear layer per stage, which come from a checkpoint,
    are shipped with the built-in backbone, or are learned on labelled auxiliary images (``learn=True`` with the data
    module :class:`~anomalib_zsclip.ZeroShotTransfer`). See :class:`~anomalib_zsclip.heads.sdp.SdpHead` and
    :class:`~anomalib_zsclip.heads.sdp_plus.SdpPlusHead` for the method.

    Args:
        variant: ``"sdp"`` or ``"sdp+"``.
        backbone: ``"auto"``, ``"builtin"``, or an architecture of open_clip.
        pretrained: Tag of open_clip or path of a local weight file, for a named architecture.
        image_size: Side, or (height, width), that images are resized to. Default: native, 192 for ``"builtin"``.
        precision: Of the towers' matrix products: ``"float32"``, ``"bf16"``, ``"fp16"`` or ``"auto"``.
        class_name: What the images show. Default: the data module's category as it is written, else "object".
        checkpoint: Linear layers for SDP+: ours (``.safetensors``), or the official ``{"linear_layers": ...}``.
        learn: Learn the linear layers with ``fit``.
        epochs: Epochs of learning (5 in the paper).
        learning_rate: Of Adam, in learning (1e-4 in the paper).
        token_cache: Run the tower once per auxiliary image and learn from cached tokens.
        cache_budget_gb: Memory that cached tokens may take before they go to a file.
        layers: Blocks whose tokens are compared. Default: the ends of the four stages.
        sigma: Gaussian smoothing of the map in pixels. Default: 8 at 240 px, in proportion.
        rvs: Representative vector selection: ``"mean"``, ``"pca"``, ``"kde"``, ``"dbscan"`` or ``"mean_shift"``.
        rvs_params: Parameters of ``rvs``, for example ``{"eps": 1.5, "min_samples": 25}``.
        domain: Prompt ensemble: ``"industrial"`` or ``"medical"``.
        prompts: YAML file with states and templates of one's own.
        image_score: ``"text"``, ``"map_max"`` or ``"mean"``; see the head.
        text_cache: Keep the sentences' embeddings on disk.
        pre_processor: anomalib component, or whether to use the default one.
        post_processor: anomalib component, or whether to use the default one.
        evaluator: anomalib component, or whether to use the default one.
        visualizer: anomalib component, or whether to use the default one.
    """

    def __init__(
        self,
        variant: str = "sdp",
        backbone: str = "auto",
        pretrained: str | Path | None = None,
        image_size: int | tuple[int, int] | None = None,
        precision: str = "float32",
        class_name: str | None = None,
        checkpoint: str | Path | None = None,
        learn: bool = False,
        epochs: int = 5,
        learning_rate: float = 1e-4,
        token_cache: bool = True,
        cache_budget_gb: float = 4.0,
        layers: Sequence[int] | None = None,
        sigma: float | None = None,
        rvs: str = "dbscan",
        rvs_params: dict[str, float] | None = None,
        domain: str = "industrial",
        prompts: str | Path | None = None,
        image_score: str = "mean",
        text_cache: bool = True,
        pre_processor: nn.Module | bool = True,
        post_processor: nn.Module | bool = True,
        evaluator: Evaluator | bool = True,
        visualizer: Visualizer | bool = True,
    ) -> None:
        super().__init__(pre_processor, post_processor, evaluator, visualizer)
        if variant not in VARIANTS:
            msg = f"variant={variant!r} must be one of {', '.join(VARIANTS)}."
            raise ArgumentError(msg)
        if variant == "sdp" and (learn or checkpoint):
            msg = "variant='sdp' has nothing to learn or to load: use variant='sdp+' with learn=True or checkpoint=."
            raise ArgumentError(msg)
        clip = read_backbone_arguments(backbone, pretrained, BACKBONE, "bicubic")
        size = resolve_size(image_size, clip)
        sdp = SdpHead(
            clip,
            layers=layers,
            sigma=scaled_sigma(sigma, 8.0, 240, size),
            rvs=rvs,
            rvs_params=rvs_params,
            domain=domain,
            prompts=prompts,
            image_score=image_score,
            text_cache=text_cache,
        )
        head: Head = sdp
        if variant == "sdp+":
            head = plus = SdpPlusHead(sdp, clip, learning_rate=learning_rate)
            if checkpoint is None and not learn and clip.name == BUILTIN:
                checkpoint = shipped_head("sdp_plus.safetensors")
            if checkpoint not in (None, IN_CHECKPOINT):
                plus.load_linear_layers(checkpoint)
        self.learn, self.epochs = learn, epochs
        self.token_cache, self.cache_budget_gb = token_cache, cache_budget_gb
        self.assemble(
            clip,
            {variant.replace("+", "_plus"): head},
            image_size=size,
            precision=precision,
            pre_processor=pre_processor,
            class_name=class_name,
        )

    def prepare(self, trainer: Any = None) -> None:  # noqa: ANN401 - Lightning's Trainer
        """Compile the text side; SDP+ without linear layers is refused here, when a checkpoint had its chance."""
        if "sdp_plus" in self.model.heads and not self.learning_head.is_learned and not self.learn:
            msg = (
                f"SDP+ has no linear layers for the backbone {self.model.backbone.name!r}. Give checkpoint=<file>, or "
                "learn them (learn=True with the data module ZeroShotTransfer), or use backbone='builtin', which has "
                "shipped ones."
            )
            raise CheckpointError(msg)
        super().prepare(trainer)

    @property
    def learning_head(self) -> LearnableHead:  # type: ignore[override]
        """The head that ``fit`` teaches."""
        return cast("LearnableHead", self.model.heads["sdp_plus"])
