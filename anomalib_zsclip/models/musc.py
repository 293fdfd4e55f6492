"""MuSc: unlabelled images judge each other (ICLR 2024), as an anomalib model."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Literal

from anomalib.metrics import Evaluator
from anomalib.models.components import AnomalibModule
from anomalib.visualization import Visualizer
from torch import nn

from anomalib_zsclip.errors import check_path
from anomalib_zsclip.heads.memory_bank import PublishedBank
from anomalib_zsclip.heads.mutual_scoring import MutualScoring
from anomalib_zsclip.images.reading import MAX_PIXELS, ReadingRules
from anomalib_zsclip.images.tiling import MAX_TILES, Tiles
from anomalib_zsclip.outputs.regions import DEFAULT_MIN_REGION
from anomalib_zsclip.outputs.thresholds import DEFAULT_EXPECTED_DEFECTS, DEFAULT_FALSE_ALARMS

from .arguments import read_backbone_arguments, resolve_evaluator, resolve_size, size_of_papers
from .folder_references import ALL, check_expected_defects, check_unlabelled
from .hooks import ZeroShotMixin
from .views import TILE_SHARE, VIEW_CHUNK, Views

BACKBONE = ("ViT-L-14-336", "openai")
WINDOWS = (1, 2, 3)
"""Images that a score is evened out among: the published choice for MVTec AD; for VisA it is 1, 8, 9."""


class MuSc(ZeroShotMixin, AnomalibModule):  # type: ignore[misc] # the mixin narrows anomalib's hooks
    """MuSc: no text, no labels, no training; the images under judgement are compared with each other.

    A good patch has its like in most images of the folder, a defect has not (arXiv 2401.16753). That is *transductive*: the
    folder is looked at as a whole before its first image is judged. Most of its images must be good, and of one product.

    ``unlabelled="all"`` is the published method: every image is compared with every other one, and image scores are evened
    out among images that look alike. The cost of an image then grows with the folder. With a number of references it is
    constant, and the references stay with the model: in checkpoints, in exports, and for later images.

    The published program runs OpenAI's CLIP with another activation than it was trained with (GELU) whenever images are not
    of CLIP's own size; here the activation is the weights' own. Scores and maps are half of the published ones, so that
    they lie in [0, 1]; evened-out image scores are as published.

    Args:
        backbone: "auto", "builtin", or an architecture of open_clip.
        pretrained: Tag of open_clip or path of a local weight file, for a named architecture.
        image_size: Side, or (height, width), that images are resized to. Default: 518 for ViT-L-14-336 as published, 192
            for "builtin"; native otherwise.
        precision: Of the tower's matrix products: "float32", "bf16", "fp16", or "auto" for bf16 where the hardware has it.
        unlabelled: Number of unlabelled images that others are compared with, at least 5, or "all". Unless unlabelled_dir
            names a folder they are a sample of the images that are judged, each leaving itself out; labels are never read.
        unlabelled_dir: Folder of unlabelled images to compare with, such as last week's.
        windows: Numbers of similar images that image scores are evened out among, with unlabelled="all" and no tiles:
            1, 2, 3 as published for MVTec AD, 1, 8, 9 for VisA; empty for none.
        layers: Blocks whose tokens are compared. Default: the ends of the four quarters of the tower, as published.
        degrees: Sides of the windows of patches that tokens are averaged over, odd.
        expected_defects: Share of defective parts among the unlabelled images, below 0.5, for thresholds where there are
            neither labels nor good parts.
        normal_dir: Folder of good parts, from which the thresholds are made where there is no labelled validation data.
            Default: the training images of the data module, if all of them are good.
        normal_images: Most good parts that the thresholds are made from.
        false_alarms: Share of good parts that may be flagged, where the thresholds come from good parts or the folder.
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

    Raises:
        ZsClipError: If an argument has a value that cannot work, or weights cannot be read or obtained.

    Example:
        >>> from anomalib.engine import Engine
        >>> from anomalib_zsclip import MuSc, SyntheticDefects
        >>> Engine().test(MuSc(backbone="builtin"), datamodule=SyntheticDefects())  # doctest: +SKIP
    """

    def __init__(
        self,
        backbone: str = "auto",
        pretrained: str | Path | None = None,
        image_size: int | tuple[int, int] | None = None,
        precision: str = "float32",
        unlabelled: int | str = 48,
        unlabelled_dir: str | Path | None = None,
        windows: Sequence[int] = WINDOWS,
        layers: Sequence[int] | None = None,
        degrees: Sequence[int] = (1, 3, 5),
        expected_defects: float = DEFAULT_EXPECTED_DEFECTS,
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
    ) -> None:
        super().__init__(pre_processor, post_processor, resolve_evaluator(evaluator), visualizer)
        clip = read_backbone_arguments(backbone, pretrained, BACKBONE, "bicubic_plain")
        check_path("unlabelled_dir", unlabelled_dir)
        self.unlabelled, self.unlabelled_dir = check_unlabelled(unlabelled, least=1), unlabelled_dir
        self.expected_defects = check_expected_defects(expected_defects)
        views = Views.of(tiles, max_tiles, tile_share, view_chunk)
        mutual = MutualScoring(windows=windows)
        if unlabelled != ALL or views.tiling.is_on:
            mutual = MutualScoring()  # the published evening out is of whole pictures, each among all the others
        self.assemble(
            clip,
            {},
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
            memory_bank=PublishedBank(layers, degrees),
            mutual=mutual,
            views=views,
        )
