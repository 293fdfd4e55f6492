"""ZsClip: every head, one pass of the image tower."""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from anomalib.metrics import Evaluator
from anomalib.models.components import AnomalibModule
from anomalib.visualization import Visualizer
from torch import nn

from anomalib_zsclip.clip import ClipBackbone
from anomalib_zsclip.clip.loading import BUILTIN, shipped_head
from anomalib_zsclip.errors import ArgumentError
from anomalib_zsclip.heads.anomaly_clip import AnomalyClipHead
from anomalib_zsclip.heads.base import Head
from anomalib_zsclip.heads.explanation import DEFECT_WORDS, DefectNamer
from anomalib_zsclip.heads.few_shot import FewShotMemory
from anomalib_zsclip.heads.random_word import RandomWordHead
from anomalib_zsclip.heads.sdp import SdpHead
from anomalib_zsclip.heads.sdp_plus import SdpPlusHead
from anomalib_zsclip.post_processing import MonotonePostProcessor

from .zero_shot_mixin import IN_CHECKPOINT, ZeroShotMixin, read_backbone_arguments, resolve_size, scaled_sigma

logger = logging.getLogger(__name__)

BACKBONE = ("ViT-B-16-plus-240", "laion400m_e31")
HEADS = ("random_word", "sdp", "sdp_plus", "anomaly_clip")


class ZsClip(ZeroShotMixin, AnomalibModule):  # type: ignore[misc] # the mixin narrows anomalib's hooks
    """The detector to start with: several zero-shot heads on one pass of the image tower, fused.

    Args:
        heads: Any of ``"random_word"``, ``"sdp"``, ``"sdp_plus"`` (or ``"sdp+"``) and ``"anomaly_clip"``. Default: those
            that need no auxiliary image, ``random_word`` and ``sdp``, and those whose weights are given or shipped for
            the backbone.
        weights: Weight of each head in the mean of scores and maps. Default: all alike.
        backbone: ``"auto"``, ``"builtin"``, or an architecture of open_clip.
        pretrained: Tag of open_clip or path of a local weight file, for a named architecture.
        image_size: Side, or (height, width), that images are resized to. Default: native, 192 for ``"builtin"``.
        precision: Of the towers' matrix products: ``"float32"``, ``"bf16"``, ``"fp16"`` or ``"auto"``.
        class_name: What the images show, for SDP's prompts. Default: the data module's category, else "object".
        map_share: Share of the map's maximum in the image score, in [0, 1].
        explain: Name the defect: a text such as ``"crack (0.61), scratch (0.22)"`` with each prediction.
        defect_words: Words to name defects with.
        k_shot: Number of normal images whose patches are remembered and compared with; 0 is pure zero-shot.
        normal_dir: Folder of normal images, for ``k_shot`` and for the thresholds where there is no labelled validation
            data. Default: the training images of the data module, if it has some.
        normal_images: Most normal images that the thresholds are made from.
        normal_quantile: Share of the normal images that shall stay below the threshold.
        memory_share: Share of the few-shot comparison in score and map, in [0, 1].
        sdp_plus_checkpoint: Linear layers for the head ``sdp_plus``.
        anomaly_clip_checkpoint: Learned prompts for the head ``anomaly_clip``.
        random_word: Arguments of :class:`~anomalib_zsclip.heads.random_word.RandomWordHead`.
        sdp: Arguments of :class:`~anomalib_zsclip.heads.sdp.SdpHead`, also for ``sdp_plus``.
        anomaly_clip: Arguments of :class:`~anomalib_zsclip.heads.anomaly_clip.AnomalyClipHead`.
        pre_processor: anomalib component, or whether to use the default one.
        post_processor: anomalib component, or whether to use the default one.
        evaluator: anomalib component, or whether to use the default one.
        visualizer: anomalib component, or whether to use the default one.

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
        normal_dir: str | Path | None = None,
        normal_images: int = 32,
        normal_quantile: float = 0.95,
        memory_share: float = 0.5,
        sdp_plus_checkpoint: str | Path | None = None,
        anomaly_clip_checkpoint: str | Path | None = None,
        random_word: dict[str, Any] | None = None,
        sdp: dict[str, Any] | None = None,
        anomaly_clip: dict[str, Any] | None = None,
        pre_processor: nn.Module | bool = True,
        post_processor: nn.Module | bool = True,
        evaluator: Evaluator | bool = True,
        visualizer: Visualizer | bool = True,
    ) -> None:
        super().__init__(pre_processor, post_processor, evaluator, visualizer)
        names = _head_names(heads)
        clip = read_backbone_arguments(backbone, pretrained, BACKBONE, "bicubic")
        size = resolve_size(image_size, clip)
        # The papers' smoothing, in proportion to the image size.
        random_word = {"sigma": scaled_sigma(None, 4.0, 240, size)} | (random_word or {})
        sdp = {"sigma": scaled_sigma(None, 8.0, 240, size)} | (sdp or {})
        anomaly_clip = {"sigma": scaled_sigma(None, 4.0, 518, size)} | (anomaly_clip or {})
        files = {
            "sdp_plus": sdp_plus_checkpoint or _shipped(clip, "sdp_plus.safetensors"),
            "anomaly_clip": anomaly_clip_checkpoint or _shipped(clip, "anomaly_clip_prompts.safetensors"),
        }
        absent = [name for name in names if name in files and files[name] is None]
        if absent:
            logger.info("Heads without weights for the backbone %r are left out: %s.", clip.name, ", ".join(absent))
        made: dict[str, Head] = {}
        for name in names:
            if name in absent:
                continue
            if name == "random_word":
                made[name] = RandomWordHead(clip.embed_dim, **random_word)
            elif name == "sdp":
                made[name] = SdpHead(clip, **sdp)
            elif name == "sdp_plus":
                made[name] = plus = SdpPlusHead(SdpHead(clip, **sdp), clip)
                file = files[name]
                if file is not None and file != IN_CHECKPOINT:
                    plus.load_linear_layers(file)
            else:
                made[name] = AnomalyClipHead(None if files[name] == IN_CHECKPOINT else files[name], **anomaly_clip)
        if k_shot < 0 or normal_images < 1:
            msg = f"k_shot={k_shot} must not be negative, and normal_images={normal_images} must be at least 1."
            raise ArgumentError(msg)
        self.k_shot, self.normal_dir, self.normal_images = k_shot, normal_dir, normal_images
        if post_processor is True:
            self.post_processor = MonotonePostProcessor(normal_quantile)
        self.assemble(
            clip,
            made,
            image_size=size,
            precision=precision,
            pre_processor=pre_processor,
            class_name=class_name,
            map_share=map_share,
            memory=FewShotMemory(sigma=scaled_sigma(None, 4.0, 240, size)) if k_shot else None,
            memory_share=memory_share,
            namer=DefectNamer(clip.embed_dim, defect_words) if explain else None,
            weights=_head_weights(weights),
        )


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


def _head_names(heads: Sequence[str] | None) -> list[str]:
    if heads is None:
        return list(HEADS)
    if isinstance(heads, str) or not heads:
        msg = f"heads={heads!r} must be a list of at least one of {', '.join(HEADS)}."
        raise ArgumentError(msg)
    return list(dict.fromkeys(_head_name(name) for name in heads))


def _shipped(clip: ClipBackbone, file: str) -> Path | None:
    return shipped_head(file) if clip.name == BUILTIN else None
