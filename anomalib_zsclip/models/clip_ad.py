"""ClipAd: CLIP-AD's SDP and SDP+ (arXiv 2311.00453) as an anomalib model."""

from __future__ import annotations

from pathlib import Path
from typing import Any, Literal, cast

from anomalib.metrics import Evaluator
from anomalib.models.components import AnomalibModule
from anomalib.visualization import Visualizer
from torch import nn

from anomalib_zsclip.clip.architectures import BUILTIN
from anomalib_zsclip.clip.loading import shipped_head
from anomalib_zsclip.errors import ArgumentError
from anomalib_zsclip.heads.base import Head, LearnableHead
from anomalib_zsclip.heads.sdp import SdpHead
from anomalib_zsclip.heads.sdp_plus import SdpPlusHead
from anomalib_zsclip.images.reading import MAX_PIXELS, ReadingRules
from anomalib_zsclip.images.tiling import MAX_TILES, Tiles
from anomalib_zsclip.learning import LearningMixin
from anomalib_zsclip.outputs.regions import DEFAULT_MIN_REGION
from anomalib_zsclip.outputs.thresholds import DEFAULT_FALSE_ALARMS

from .arguments import IN_CHECKPOINT, read_backbone_arguments, resolve_evaluator, resolve_size
from .hooks import ZeroShotMixin
from .pretrained_heads import take_published
from .views import TILE_SHARE, VIEW_CHUNK, Views

BACKBONE = ("ViT-B-16-plus-240", "laion400m_e31")
VARIANTS = ("sdp", "sdp+")


class ClipAd(LearningMixin, ZeroShotMixin, AnomalibModule):  # type: ignore[misc] # the mixin narrows anomalib's hooks
    """CLIP-AD: a representative text vector per state, compared with staged value-value tokens.

    ``variant="sdp"`` needs no training. ``variant="sdp+"`` adds one linear layer per stage, which come from a checkpoint,
    are shipped with the built-in backbone, or are learned on labelled auxiliary images (``learn=True`` with the data
    module :class:`~anomalib_zsclip.ZeroShotTransfer`). See :class:`~anomalib_zsclip.heads.sdp.SdpHead` and
    :class:`~anomalib_zsclip.heads.sdp_plus.SdpPlusHead` for the method, and
    :class:`~anomalib_zsclip.heads.sdp.SdpOptions` for its arguments.

    Args:
        variant: "sdp" or "sdp+".
        backbone: "auto", "builtin", or an architecture of open_clip.
        pretrained: Tag of open_clip or path of a local weight file, for a named architecture.
        image_size: Side, or (height, width), that images are resized to. Default: native, 192 for "builtin".
        precision: Of the towers' matrix products: "float32", "bf16", "fp16", or "auto" for bf16 where the hardware has it.
        class_name: What the images show. Default: the data module's category as it is written, else "object".
        checkpoint: Linear layers for SDP+: ours (.safetensors), or the official {"linear_layers": ...}; or "published" for
            the authors' own, learned on VisA for MVTec AD and on MVTec AD for everything else; "published-mvtec" or
            "published-visa" for one of them in any case.
        learn: Learn the linear layers with fit.
        epochs: Epochs of learning (5 in the paper).
        learning_rate: Of Adam, in learning (1e-4 in the paper).
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
        **options: Fields of :class:`~anomalib_zsclip.heads.sdp.SdpOptions`.

    Raises:
        ZsClipError: If an argument has a value that cannot work, or weights cannot be read or obtained.
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
        **options: Any,  # noqa: ANN401
    ) -> None:
        super().__init__(pre_processor, post_processor, resolve_evaluator(evaluator), visualizer)
        if variant not in VARIANTS:
            msg = f"variant={variant!r} must be one of {', '.join(VARIANTS)}."
            raise ArgumentError(msg)
        if variant == "sdp" and (learn or checkpoint):
            msg = "variant='sdp' has nothing to learn or to load: use variant='sdp+' with learn=True or checkpoint=."
            raise ArgumentError(msg)
        clip = read_backbone_arguments(backbone, pretrained, BACKBONE, "bicubic")
        sdp = SdpHead(clip, **options)
        head: Head = sdp
        if variant == "sdp+":
            head = plus = SdpPlusHead(sdp, clip, learning_rate=learning_rate)
            if checkpoint is None and not learn and clip.name == BUILTIN:
                checkpoint = shipped_head("sdp_plus.safetensors")
            file, self.published = take_published("sdp_plus", checkpoint, clip, learn=learn)
            if file is not None and file != IN_CHECKPOINT:
                plus.load_linear_layers(file)
        self.set_up_learning(learn=learn, epochs=epochs, token_cache=token_cache, cache_budget_gb=cache_budget_gb)
        self.assemble(
            clip,
            {variant.replace("+", "_plus"): head},
            image_size=resolve_size(image_size, clip),
            precision=precision,
            pre_processor=pre_processor,
            class_name=class_name,
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
        return cast("LearnableHead", self.model.heads["sdp_plus"])
