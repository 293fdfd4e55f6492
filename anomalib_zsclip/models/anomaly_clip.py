"""AnomalyClip: AnomalyCLIP (ICLR 2024) as an anomalib model."""

from __future__ import annotations

from pathlib import Path
from typing import Any, cast

from anomalib.metrics import Evaluator
from anomalib.models.components import AnomalibModule
from anomalib.visualization import Visualizer
from torch import nn

from anomalib_zsclip.heads.anomaly_clip import AnomalyClipHead
from anomalib_zsclip.heads.base import LearnableHead
from anomalib_zsclip.heads.published_weights import PUBLISHED, fits
from anomalib_zsclip.learning import LearningMixin
from anomalib_zsclip.outputs.thresholds import DEFAULT_FALSE_ALARMS

from .arguments import IN_CHECKPOINT, read_backbone_arguments, resolve_evaluator, resolve_size
from .hooks import ZeroShotMixin
from .pretrained_heads import take_published

BACKBONE = ("ViT-L-14-336", "openai")
PAPER_SIZE = 518


class AnomalyClip(LearningMixin, ZeroShotMixin, AnomalibModule):  # type: ignore[misc] # the mixin narrows anomalib's hooks
    """AnomalyCLIP: object-agnostic learned prompts, compared with tokens of value-value attention.

    The prompts come from a checkpoint, are shipped with the built-in backbone, or are learned on labelled auxiliary
    images (``learn=True`` with the data module :class:`~anomalib_zsclip.ZeroShotTransfer`). See
    :class:`~anomalib_zsclip.heads.anomaly_clip.AnomalyClipHead` for the method, and
    :class:`~anomalib_zsclip.heads.anomaly_clip.AnomalyClipOptions` for its arguments.

    Args:
        backbone: "auto", "builtin", or an architecture of open_clip.
        pretrained: Tag of open_clip or path of a local weight file, for a named architecture.
        image_size: Side, or (height, width), that images are resized to. Default: 518 for ViT-L/14@336, as published; 192
            for "builtin"; native otherwise.
        precision: Of the towers' matrix products: "float32", "bf16", "fp16", or "auto" for bf16 where the hardware has it.
        checkpoint: Learned prompts: ours (.safetensors), or the official {"prompt_learner": ...}; or "published" for the
            authors' own, learned on VisA for MVTec AD and on MVTec AD for everything else (the default with the paper's
            CLIP); "published-mvtec" or "published-visa" for one of them in any case.
        learn: Learn the prompts with fit; from the checkpoint, where one is given.
        epochs: Epochs of learning (15 in the paper).
        token_cache: Run the tower once per auxiliary image and learn from cached tokens.
        cache_budget_gb: Memory that cached tokens may take before they go to a file.
        normal_dir: Folder of good parts, from which the thresholds are made where there is no labelled validation data.
            Default: the training images of the data module, if all of them are good.
        normal_images: Most good parts that the thresholds are made from.
        false_alarms: Share of good parts that may be flagged, where the thresholds come from good parts.
        threshold: Your own threshold for image scores, from 0 to 1 on the scale of the scores in predictions.csv. Only
            decisions change, scores stay. It wins over every other source.
        pixel_threshold: The same for anomaly maps.
        save_maps: Write each anomaly map as a float32 TIFF of the image's own size to the folder anomaly_maps.
        pre_processor: Pre-processor of anomalib, or whether to use the default one.
        post_processor: Post-processor of anomalib, or whether to use the default one.
        evaluator: "papers" for the metrics of the zero-shot papers as their programs compute them; or an Evaluator of
            anomalib, or whether to use the default one.
        visualizer: Visualizer of anomalib, or whether to use the default one.
        **options: Fields of :class:`~anomalib_zsclip.heads.anomaly_clip.AnomalyClipOptions`.
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
        normal_dir: str | Path | None = None,
        normal_images: int = 32,
        false_alarms: float = DEFAULT_FALSE_ALARMS,
        threshold: float | None = None,
        pixel_threshold: float | None = None,
        save_maps: bool = False,
        pre_processor: nn.Module | bool = True,
        post_processor: nn.Module | bool = True,
        evaluator: Evaluator | bool | str = True,
        visualizer: Visualizer | bool = True,
        **options: Any,  # noqa: ANN401
    ) -> None:
        super().__init__(pre_processor, post_processor, resolve_evaluator(evaluator), visualizer)
        clip = read_backbone_arguments(backbone, pretrained, BACKBONE, "bilinear")
        if image_size is None and (clip.image_size, clip.patch_size) == (336, 14):
            image_size = PAPER_SIZE
        if checkpoint is None and not learn and fits("anomaly_clip", clip):
            checkpoint = PUBLISHED
        file, self.published = take_published("anomaly_clip", checkpoint, clip, learn=learn)
        head = AnomalyClipHead(None if file == IN_CHECKPOINT else file, learn=learn, **options)
        self.learn, self.epochs = learn, epochs
        self.token_cache, self.cache_budget_gb = token_cache, cache_budget_gb
        self.assemble(
            clip,
            {"anomaly_clip": head},
            image_size=resolve_size(image_size, clip),
            precision=precision,
            pre_processor=pre_processor,
            post_processor=post_processor,
            normal_dir=normal_dir,
            normal_images=normal_images,
            false_alarms=false_alarms,
            threshold=threshold,
            pixel_threshold=pixel_threshold,
            save_maps=save_maps,
        )

    @property
    def learning_head(self) -> LearnableHead:  # type: ignore[override]
        """The head that ``fit`` teaches."""
        return cast("LearnableHead", self.model.heads["anomaly_clip"])
