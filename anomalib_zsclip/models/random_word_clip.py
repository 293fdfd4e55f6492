"""RandomWordClip: the random-word detector (Tamura, BMVC 2023) as an anomalib model."""

from __future__ import annotations

from pathlib import Path
from typing import Any, Literal

from anomalib.metrics import Evaluator
from anomalib.models.components import AnomalibModule
from anomalib.visualization import Visualizer
from torch import nn

from anomalib_zsclip.heads.random_word import RandomWordHead
from anomalib_zsclip.images.reading import MAX_PIXELS, ReadingRules
from anomalib_zsclip.images.tiling import MAX_TILES, Tiles
from anomalib_zsclip.outputs.regions import DEFAULT_MIN_REGION
from anomalib_zsclip.outputs.thresholds import DEFAULT_FALSE_ALARMS

from .arguments import read_backbone_arguments, resolve_evaluator, resolve_size
from .hooks import ZeroShotMixin
from .views import TILE_SHARE, VIEW_CHUNK, Views

BACKBONE = ("ViT-B-16-plus-240", "laion400m_e31")


class RandomWordClip(ZeroShotMixin, AnomalibModule):  # type: ignore[misc] # the mixin narrows anomalib's hooks
    """Zero-shot detector that learns "damaged" from sentences about random words (arXiv 2308.11119).

    It needs no image, no category name and no prompt work: a small network learns at set-up, in seconds, from text
    alone, and is applied to CLIP's image embeddings. See :class:`~anomalib_zsclip.heads.random_word.RandomWordHead`
    for the method, and :class:`~anomalib_zsclip.heads.random_word.RandomWordOptions` for its arguments.

    Args:
        backbone: "auto", "builtin", or an architecture of open_clip.
        pretrained: Tag of open_clip or path of a local weight file, for a named architecture.
        image_size: Side, or (height, width), that images are resized to. Default: native, 192 for "builtin".
        precision: Of the towers' matrix products: "float32", "bf16", "fp16", or "auto" for bf16 where the hardware has it.
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
        **options: Fields of :class:`~anomalib_zsclip.heads.random_word.RandomWordOptions`.

    Raises:
        ZsClipError: If an argument has a value that cannot work, or weights cannot be read or obtained.

    Example:
        >>> from anomalib.engine import Engine
        >>> from anomalib_zsclip import RandomWordClip, SyntheticDefects
        >>> Engine().test(RandomWordClip(backbone="builtin"), datamodule=SyntheticDefects())  # doctest: +SKIP
    """

    def __init__(
        self,
        backbone: str = "auto",
        pretrained: str | Path | None = None,
        image_size: int | tuple[int, int] | None = None,
        precision: str = "float32",
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
        clip = read_backbone_arguments(backbone, pretrained, BACKBONE, "bicubic")
        head = RandomWordHead(clip.embed_dim, **options)
        self.assemble(
            clip,
            {"random_word": head},
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
            report=report,
            regions=regions,
            min_region=min_region,
            reading=ReadingRules(depth_range, max_pixels, on_unreadable),
            views=Views.of(tiles, max_tiles, tile_share, view_chunk),
        )
