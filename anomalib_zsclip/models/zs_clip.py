"""ZsClip: every head, one pass of the image tower."""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence
from dataclasses import fields
from pathlib import Path
from typing import Literal

from anomalib.metrics import Evaluator
from anomalib.models.components import AnomalibModule
from anomalib.visualization import Visualizer
from torch import nn

from anomalib_zsclip.clip import ClipBackbone
from anomalib_zsclip.clip.architectures import BUILTIN
from anomalib_zsclip.clip.loading import shipped_head
from anomalib_zsclip.errors import ArgumentError, CheckpointError, check_flag, check_list, check_path
from anomalib_zsclip.heads.anomaly_clip import AnomalyClipHead, AnomalyClipOptions
from anomalib_zsclip.heads.base import Head
from anomalib_zsclip.heads.crane import CraneHead, CraneOptions
from anomalib_zsclip.heads.explanation import DEFECT_WORDS, DefectNamer
from anomalib_zsclip.heads.memory_bank import MemoryBank
from anomalib_zsclip.heads.mutual_scoring import MutualScoring
from anomalib_zsclip.heads.options import HeadOptions, as_options
from anomalib_zsclip.heads.published_weights import PUBLISHED, fits, way_out
from anomalib_zsclip.heads.random_word import RandomWordHead, RandomWordOptions
from anomalib_zsclip.heads.sdp import SdpHead, SdpOptions
from anomalib_zsclip.heads.sdp_plus import SdpPlusHead
from anomalib_zsclip.images.reading import MAX_PIXELS, ReadingRules
from anomalib_zsclip.images.tiling import MAX_TILES, Tiles
from anomalib_zsclip.outputs.post_processing import false_alarms_of
from anomalib_zsclip.outputs.regions import DEFAULT_MIN_REGION
from anomalib_zsclip.outputs.thresholds import DEFAULT_EXPECTED_DEFECTS, DEFAULT_FALSE_ALARMS

from .arguments import IN_CHECKPOINT, read_backbone_arguments, resolve_evaluator, resolve_size
from .folder_references import check_expected_defects, check_unlabelled, refuse_without_unlabelled
from .hooks import ZeroShotMixin
from .pretrained_heads import take_published
from .views import TILE_SHARE, VIEW_CHUNK, Views

logger = logging.getLogger(__name__)

BACKBONE = ("ViT-B-16-plus-240", "laion400m_e31")
HEADS = ("random_word", "sdp", "sdp_plus", "anomaly_clip", "crane")
SHIPPED = {
    "sdp_plus": "sdp_plus.safetensors",
    "anomaly_clip": "anomaly_clip_prompts.safetensors",
    "crane": "crane_prompts.safetensors",
}
"""Heads with learned weights -> the file of them for the built-in backbone, where it is shipped."""
NAMED_ONLY = ("crane",)
"""Heads that do not join by their shipped weights alone: with Crane's ``ZsClip`` is no better on products that the built-in
backbone never saw (mean of 11, image AUROC 0.864 against 0.863, pixel AUROC 0.946 both), and takes three more attentions."""
WEIGHT_ARGUMENTS = {name: f"{name}_checkpoint" for name in SHIPPED}
RANDOM_WORD, SDP, ANOMALY_CLIP, CRANE = RandomWordOptions(), SdpOptions(), AnomalyClipOptions(), CraneOptions()


class ZsClip(ZeroShotMixin, AnomalibModule):  # type: ignore[misc] # the mixin narrows anomalib's hooks
    """The detector to start with: several zero-shot heads on one pass of the image tower, fused.

    Args:
        heads: Any of "random_word", "sdp", "sdp_plus" (or "sdp+"), "anomaly_clip" and "crane". Default: those that need no
            auxiliary image, random_word and sdp, and those whose weights are given or shipped for the backbone; crane on
            "builtin" only where it is named or its weights are given. A head that is named and has no weights is an error.
        weights: Weight of each head in the mean of scores and maps. Default: all alike.
        backbone: "auto", "builtin", or an architecture of open_clip.
        pretrained: Tag of open_clip or path of a local weight file, for a named architecture.
        image_size: Side, or (height, width), that images are resized to. Default: native, 192 for "builtin".
        precision: Of the towers' matrix products: "float32", "bf16", "fp16", or "auto" for bf16 where the hardware has it.
        class_name: What the images show, for SDP's prompts. Default: the data module's category, else "object".
        map_share: Share of the map's maximum in the image score, in [0, 1].
        explain: Name the defect: a text such as "crack (0.61), scratch (0.22)" with each prediction.
        defect_words: Words to name defects with.
        k_shot: Number of good parts whose patches are remembered and compared with; 0 is pure zero-shot.
        memory_share: Share of the comparison with remembered parts in score and map, in [0, 1].
        unlabelled: Number of unlabelled images, most of them good, whose patches are remembered and compared with (mutual
            scoring, see MuSc), or "all"; 0 for none. Unless unlabelled_dir names a folder they are a sample of the very
            images that are judged, each leaving itself out; labels are never read.
        unlabelled_dir: Folder of unlabelled images to compare with, such as last week's.
        mutual_share: Share of that comparison in score and map, in [0, 1]. Default: as well as the folder's images fit
            together, see the models' README.
        expected_defects: Share of defective parts among the unlabelled images, below 0.5, for thresholds where there are
            neither labels nor good parts.
        normal_dir: Folder of good parts, for k_shot, and for the thresholds where there is no labelled validation data.
            Default: the training images of the data module, if all of them are good.
        normal_images: Most good parts, besides those of k_shot, that the thresholds are made from.
        false_alarms: Share of good parts that may be flagged, where the thresholds come from good parts or the folder.
        threshold: Your own threshold for image scores, from 0 to 1 on the scale of the scores in predictions.csv. Only
            decisions change, scores stay. It wins over every other source.
        pixel_threshold: The same for anomaly maps.
        sdp_plus_checkpoint: Linear layers for the head sdp_plus: a file, or "published", "published-mvtec" or
            "published-visa" as for ClipAd. Default: shipped for "builtin", published where they fit the backbone.
        anomaly_clip_checkpoint: Learned prompts for the head anomaly_clip: the same, as for AnomalyClip.
        crane_checkpoint: Learned prompts for the head crane: the same, as for AnomalyClip with variant="crane".
        random_word: Arguments of the head random_word.
        sdp: Arguments of the heads sdp and sdp_plus.
        anomaly_clip: Arguments of the head anomaly_clip.
        crane: Arguments of the head crane.
        normal_quantile: Deprecated: 1 - false_alarms.
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
        >>> from anomalib_zsclip import SyntheticDefects, ZsClip
        >>> Engine().test(ZsClip(backbone="builtin"), datamodule=SyntheticDefects())  # doctest: +SKIP
    """

    def __init__(
        self,
        heads: Sequence[str] | None = None,
        weights: dict[str, float] | None = None,
        backbone: str = "auto",
        pretrained: str | Path | None = None,
        image_size: int | tuple[int, int] | None = None,
        precision: str = "float32",
        class_name: str | None = None,
        map_share: float = 0.0,
        explain: bool = True,
        defect_words: Sequence[str] = DEFECT_WORDS,
        k_shot: int = 0,
        memory_share: float = 0.5,
        unlabelled: int | str = 0,
        unlabelled_dir: str | Path | None = None,
        mutual_share: float | None = None,
        expected_defects: float = DEFAULT_EXPECTED_DEFECTS,
        normal_dir: str | Path | None = None,
        normal_images: int = 32,
        false_alarms: float = DEFAULT_FALSE_ALARMS,
        threshold: float | None = None,
        pixel_threshold: float | None = None,
        sdp_plus_checkpoint: str | Path | None = None,
        anomaly_clip_checkpoint: str | Path | None = None,
        crane_checkpoint: str | Path | None = None,
        random_word: RandomWordOptions = RANDOM_WORD,
        sdp: SdpOptions = SDP,
        anomaly_clip: AnomalyClipOptions = ANOMALY_CLIP,
        crane: CraneOptions = CRANE,
        normal_quantile: float | None = None,
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
        if normal_quantile is not None:
            false_alarms = false_alarms_of(normal_quantile)
        names = _head_names(heads)
        clip = read_backbone_arguments(backbone, pretrained, BACKBONE, "bicubic")
        self.adopts_heads = heads is None
        self._options: dict[str, HeadOptions] = {
            "random_word": as_options(RandomWordOptions, random_word, "random_word"),
            "sdp": as_options(SdpOptions, sdp, "sdp"),
            "anomaly_clip": as_options(AnomalyClipOptions, anomaly_clip, "anomaly_clip"),
            "crane": as_options(CraneOptions, crane, "crane"),
        }
        given = {
            "sdp_plus": sdp_plus_checkpoint,
            "anomaly_clip": anomaly_clip_checkpoint,
            "crane": crane_checkpoint,
        }
        if heads is None and clip.name == BUILTIN:
            names = [name for name in names if name not in NAMED_ONLY or given[name]]
        _check_checkpoints(given, names)
        files = {name: given[name] or _shipped(clip, file) for name, file in SHIPPED.items()}
        self.published = {}
        for name in [name for name in names if name in files]:
            files[name], chosen = _published(name, files[name], clip, named=heads is not None)
            self.published |= chosen
        absent = [name for name in names if name in files and files[name] is None and name not in self.published]
        if absent and heads is not None:
            argument = WEIGHT_ARGUMENTS[absent[0]]
            msg = (
                f"heads={list(heads)} names {absent[0]!r}, for which there are no learned weights on the backbone "
                f"{clip.name!r}. Give {argument}=<file>, or {way_out(absent[0], clip, argument)}, or leave the head out"
                f"{_or_builtin(absent[0])}."
            )
            raise ArgumentError(msg)
        if absent:
            logger.info("Heads without weights for the backbone %r are left out: %s.", clip.name, ", ".join(absent))
        made = {name: self._make_head(name, clip, files.get(name)) for name in names if name not in absent}
        shares = _head_weights(weights)
        _check_weights(shares, list(made), named=heads is not None)
        check_flag("explain", explain)
        namer = DefectNamer(clip.embed_dim, defect_words)
        check_path("unlabelled_dir", unlabelled_dir)
        self.unlabelled, self.unlabelled_dir = check_unlabelled(unlabelled), unlabelled_dir
        refuse_without_unlabelled(self.unlabelled, unlabelled_dir=unlabelled_dir, mutual_share=mutual_share)
        self.expected_defects = check_expected_defects(expected_defects)
        self.assemble(
            clip,
            made,
            image_size=resolve_size(image_size, clip),
            precision=precision,
            pre_processor=pre_processor,
            class_name=class_name,
            k_shot=k_shot,
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
            map_share=map_share,
            memory_bank=MemoryBank(),
            memory_share=memory_share,
            mutual=MutualScoring(mutual_share),
            namer=namer if explain else None,
            weights=shares,
        )

    def _make_head(self, name: str, clip: ClipBackbone, file: str | Path | None) -> Head:
        """Make a head by its name; ``file`` holds learned weights, where it needs some."""
        file = None if file == IN_CHECKPOINT else file
        options = self._options["sdp" if name == "sdp_plus" else name]
        keywords = {field.name: getattr(options, field.name) for field in fields(options)}
        if name == "random_word":
            return RandomWordHead(clip.embed_dim, **keywords)
        if name == "anomaly_clip":
            return AnomalyClipHead(file, **keywords)
        if name == "crane":
            return CraneHead(file, **keywords)
        sdp = SdpHead(clip, **keywords)
        if name == "sdp":
            return sdp
        plus = SdpPlusHead(sdp, clip)
        if file is not None:
            plus.load_linear_layers(file)
        return plus

    def weight_argument(self, head: str) -> str:
        """Argument that names the file with the learned weights of a head."""
        return WEIGHT_ARGUMENTS[head]

    def adopt_head(self, name: str) -> None:
        """Make a head whose learned weights a checkpoint brings."""
        self.model.add_head(name, self._make_head(name, self.model.backbone, IN_CHECKPOINT))


def _published(
    name: str, file: str | Path | None, clip: ClipBackbone, *, named: bool
) -> tuple[str | Path | None, dict[str, str]]:
    """File of a head, or its published weights, which join by themselves where they fit and can be obtained."""
    if file is not None:
        return take_published(name, file, clip, WEIGHT_ARGUMENTS[name])
    if not fits(name, clip):
        return None, {}
    try:
        return take_published(name, PUBLISHED, clip, WEIGHT_ARGUMENTS[name])
    except CheckpointError as error:
        if named:
            raise
        logger.warning("The head %r is left out: %s", name, error)
        return None, {}


def _or_builtin(head: str) -> str:
    """Way out of missing weights, where it is one."""
    return ", or use backbone='builtin', for which they are shipped" if shipped_head(SHIPPED[head]) else ""


def _head_name(name: str) -> str:
    plain = str(name).replace("+", "_plus")
    if plain not in HEADS:
        msg = f"heads: {name!r} is unknown; it must be one of {', '.join(HEADS)}."
        raise ArgumentError(msg)
    return plain


def _head_weights(weights: Mapping[str, float] | None) -> dict[str, float] | None:
    if weights is None:
        return None
    if not isinstance(weights, Mapping):
        msg = f"weights={weights!r} must be a mapping from heads to numbers, such as {{sdp: 0.7, random_word: 0.3}}."
        raise ArgumentError(msg)
    return {_head_name(name): value for name, value in weights.items()}


def _check_weights(weights: dict[str, float] | None, made: list[str], *, named: bool) -> None:
    """Refuse weights of heads that are not there; where no heads are named, a checkpoint may bring them yet."""
    idle = [name for name in weights or {} if name not in made]
    if not idle:
        return
    msg = f"weights={weights} names {', '.join(map(repr, idle))}, and the model has the heads {', '.join(made)}."
    if named:
        raise ArgumentError(msg)
    logger.warning("%s Name them all with heads=[...].", msg)


def _check_checkpoints(given: Mapping[str, str | Path | None], names: list[str]) -> None:
    """Refuse files of learned weights that are no paths, or that no head would read."""
    for name, file in given.items():
        argument = WEIGHT_ARGUMENTS[name]
        check_path(argument, file)
        if file is not None and name not in names:
            msg = f"{argument}={str(file)!r} has no effect: the head {name!r} is not among heads={names}."
            raise ArgumentError(msg)


def _head_names(heads: Sequence[str] | None) -> list[str]:
    if heads is None:
        return list(HEADS)
    check_list("heads", heads, f"at least one of {', '.join(HEADS)}")
    return list(dict.fromkeys(_head_name(name) for name in heads))


def _shipped(clip: ClipBackbone, file: str) -> Path | None:
    return shipped_head(file) if clip.name == BUILTIN else None
