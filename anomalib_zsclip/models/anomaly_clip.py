"""AnomalyClip: AnomalyCLIP (ICLR 2024) and its successor Crane (arXiv 2504.11055) as an anomalib model."""

from __future__ import annotations

from pathlib import Path
from typing import Any, Literal, cast

from anomalib.metrics import Evaluator
from anomalib.models.components import AnomalibModule
from anomalib.visualization import Visualizer
from torch import nn

from anomalib_zsclip.errors import ArgumentError, CheckpointError
from anomalib_zsclip.heads.anomaly_clip import AnomalyClipHead
from anomalib_zsclip.heads.base import LearnableHead
from anomalib_zsclip.heads.crane import CraneHead
from anomalib_zsclip.heads.learned_prompts import LearnedPromptsHead
from anomalib_zsclip.heads.published_weights import PUBLISHED, fits
from anomalib_zsclip.images.reading import MAX_PIXELS, ReadingRules
from anomalib_zsclip.images.tiling import MAX_TILES, Tiles
from anomalib_zsclip.learning import LearningMixin
from anomalib_zsclip.outputs.regions import DEFAULT_MIN_REGION
from anomalib_zsclip.outputs.thresholds import DEFAULT_FALSE_ALARMS

from .arguments import IN_CHECKPOINT, read_backbone_arguments, resolve_evaluator, resolve_size, size_of_papers
from .hooks import ZeroShotMixin
from .pretrained_heads import take_published
from .views import TILE_SHARE, VIEW_CHUNK, Views

BACKBONE = ("ViT-L-14-336", "openai")
VARIANTS = ("anomaly_clip", "crane")
EPOCHS = {"anomaly_clip": 15, "crane": 5}  # of the papers


class AnomalyClip(LearningMixin, ZeroShotMixin, AnomalibModule):  # type: ignore[misc] # the mixin narrows anomalib's hooks
    """AnomalyCLIP: object-agnostic learned prompts, compared with tokens of value-value attention; and Crane.

    ``variant="crane"`` compares prompts of the same kind with tokens of self-correlation attention, and judges the image by
    its embedding and its suspicious patches together. The prompts come from a checkpoint, may be shipped with the built-in
    backbone, or are learned on labelled auxiliary images (``learn=True`` with the data module
    :class:`~anomalib_zsclip.ZeroShotTransfer`). See :mod:`~anomalib_zsclip.heads.anomaly_clip` and
    :mod:`~anomalib_zsclip.heads.crane` for the methods and their arguments.

    Args:
        backbone: "auto", "builtin", or an architecture of open_clip.
        pretrained: Tag of open_clip or path of a local weight file, for a named architecture.
        image_size: Side, or (height, width), that images are resized to. Default: 518 for ViT-L/14@336, as published; 192
            for "builtin"; native otherwise.
        precision: Of the towers' matrix products: "float32", "bf16", "fp16", or "auto" for bf16 where the hardware has it.
        checkpoint: Learned prompts of the variant: ours (.safetensors), the official {"prompt_learner": ...}, or "published"
            for the authors' own, learned on VisA for MVTec AD and on MVTec AD for everything else (the default with the
            paper's CLIP); "published-mvtec" or "published-visa" for one of them in any case.
        learn: Learn the prompts with fit; from the checkpoint, where one is given.
        epochs: Epochs of learning. Default: those of the papers, 15 for AnomalyCLIP and 5 for Crane.
        token_cache: Run the tower once per auxiliary image and learn from cached tokens.
        cache_budget_gb: Memory that cached tokens may take before they go to a file.
        normal_dir: Folder of good parts, from which the thresholds are made where there is no labelled validation data.
            Default: the training images of the data module, if all of them are good.
        normal_images: Most good parts that the thresholds are made from.
        false_alarms: Share of good parts that may be flagged, where the thresholds come from good parts.
        threshold: Your own threshold for image scores, from 0 to 1 on the scale of the scores in predictions.csv. Only
            decisions change, scores stay. It wins over every other source.
        pixel_threshold: The same for anomaly maps.
        tiles: Look at a picture in overlapping tiles besides: n for n x n of them, (rows, columns), or "auto" for as many as
            show it near its own resolution. Default: as a whole alone. The cost grows with the number of views.
        max_tiles: Most tiles of a picture.
        tile_share: Share of the tiles in score and map, in [0, 1]; the rest is the whole picture's.
        view_chunk: Views that pass through the tower at a time, which bounds the memory.
        save_maps: Write each anomaly map as a float32 TIFF of the image's own size to the folder anomaly_maps.
        report: Write report.html, a page to look at the pictures and to choose a threshold by eye.
        regions: Find the regions of the maps above the pixel threshold, and write them to regions.json and regions.csv.
        min_region: Least share of the picture, or of a tile, that makes a region, at least 0 and below 1.
        on_unreadable: What a prediction does where an image of a folder cannot be read: "skip" judges the others, names it
            in the table and in the last line of the log; "stop" is an error.
        depth_range: Values of black and white in grey images of more than 8 bits that this package reads, such as [0, 4095]
            for a camera of 12 bits. Default: the full range of 16 bits; floats from 0 to 1.
        max_pixels: Most pixels of an image; larger ones count as unreadable. Default: Pillow's own limit.
        pre_processor: Pre-processor of anomalib, or whether to use the default one.
        post_processor: Post-processor of anomalib, or whether to use the default one.
        evaluator: "papers" for the metrics of the zero-shot papers as their programs compute them; or an Evaluator of
            anomalib, or whether to use the default one.
        visualizer: Visualizer of anomalib, or whether to use the default one.
        variant: "anomaly_clip" or "crane".
        **options: Fields of :class:`~anomalib_zsclip.heads.anomaly_clip.AnomalyClipOptions`, or of
            :class:`~anomalib_zsclip.heads.crane.CraneOptions`.

    Raises:
        ZsClipError: If an argument has a value that cannot work, or weights cannot be read or obtained.
    """

    def __init__(
        self,
        backbone: str = "auto",
        pretrained: str | Path | None = None,
        image_size: int | tuple[int, int] | None = None,
        precision: str = "float32",
        checkpoint: str | Path | None = None,
        learn: bool = False,
        epochs: int | None = None,
        token_cache: bool = True,
        cache_budget_gb: float = 4.0,
        normal_dir: str | Path | None = None,
        normal_images: int = 32,
        false_alarms: float = DEFAULT_FALSE_ALARMS,
        threshold: float | None = None,
        pixel_threshold: float | None = None,
        tiles: Tiles = 1,
        max_tiles: int = MAX_TILES,
        tile_share: float = TILE_SHARE,
        view_chunk: int = VIEW_CHUNK,
        save_maps: bool = False,
        report: bool = True,
        regions: bool = True,
        min_region: float = DEFAULT_MIN_REGION,
        on_unreadable: Literal["skip", "stop"] = "skip",
        depth_range: tuple[float, float] | None = None,
        max_pixels: int = MAX_PIXELS,
        pre_processor: nn.Module | bool = True,
        post_processor: nn.Module | bool = True,
        evaluator: Evaluator | bool | str = True,
        visualizer: Visualizer | bool = True,
        variant: str = "anomaly_clip",
        **options: Any,  # noqa: ANN401
    ) -> None:
        super().__init__(pre_processor, post_processor, resolve_evaluator(evaluator), visualizer)
        if variant not in VARIANTS:
            msg = f"variant={variant!r} must be one of {', '.join(VARIANTS)}."
            raise ArgumentError(msg)
        clip = read_backbone_arguments(backbone, pretrained, BACKBONE, "bilinear")
        if checkpoint is None and not learn and fits(variant, clip):
            checkpoint = PUBLISHED
        file, self.published = take_published(variant, checkpoint, clip, learn=learn)
        file = None if file == IN_CHECKPOINT else file
        if variant == "crane":
            head: LearnedPromptsHead = CraneHead(file, learn=learn, **options)
        else:
            head = AnomalyClipHead(file, learn=learn, **options)
        self.variant = variant
        epochs = EPOCHS[variant] if epochs is None else epochs
        self.set_up_learning(learn=learn, epochs=epochs, token_cache=token_cache, cache_budget_gb=cache_budget_gb)
        self.assemble(
            clip,
            {variant: head},
            image_size=resolve_size(size_of_papers(image_size, clip), clip),
            precision=precision,
            pre_processor=pre_processor,
            post_processor=post_processor,
            normal_dir=normal_dir,
            normal_images=normal_images,
            false_alarms=false_alarms,
            threshold=threshold,
            pixel_threshold=pixel_threshold,
            save_maps=save_maps,
            report=report,
            regions=regions,
            min_region=min_region,
            reading=ReadingRules(depth_range, max_pixels, on_unreadable),
            views=Views.of(tiles, max_tiles, tile_share, view_chunk),
        )

    @property
    def learning_head(self) -> LearnableHead:  # type: ignore[override]
        """The head that ``fit`` teaches."""
        return cast("LearnableHead", self.model.heads[self.variant])

    def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Refuse a checkpoint of the other variant.

        Raises:
            CheckpointError: If it is one; the message names both variants.
        """
        saved = [name for name in checkpoint.get("zsclip", {}).get("heads", ()) if name in VARIANTS]
        if saved and self.variant not in saved:
            msg = (
                f"The checkpoint was made with variant={saved[0]!r}, and this model has variant={self.variant!r}: prompts "
                f"of one method mean little to the other. Pass variant={saved[0]!r}."
            )
            raise CheckpointError(msg)
        super().on_load_checkpoint(checkpoint)
