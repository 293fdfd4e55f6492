"""RandomWordClip: the random-word detector (Tamura, BMVC 2023) as an anomalib model."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from anomalib.metrics import Evaluator
from anomalib.models.components import AnomalibModule
from anomalib.visualization import Visualizer
from torch import nn

from anomalib_zsclip.heads.random_word import RandomWordHead
from anomalib_zsclip.prompts.random_words import ANOMALOUS_STATES, NORMAL_STATES, TEMPLATES

from .zero_shot_mixin import ZeroShotMixin, read_backbone_arguments, resolve_size, scaled_sigma

BACKBONE = ("ViT-B-16-plus-240", "laion400m_e31")


class RandomWordClip(ZeroShotMixin, AnomalibModule):  # type: ignore[misc] # the mixin narrows anomalib's hooks
    """Zero-shot detector that learns "damaged" from sentences about random words (arXiv 2308.11119).

    It needs no image, no category name and no prompt work: a small network learns at set-up, in seconds, from text
    alone, and is applied to CLIP's image embeddings. See :class:`~anomalib_zsclip.heads.random_word.RandomWordHead`
    for the method and its arguments.

    Args:
        backbone: ``"auto"``, ``"builtin"``, or an architecture of open_clip.
        pretrained: Tag of open_clip or path of a local weight file, for a named architecture.
        image_size: Side, or (height, width), that images are resized to. Default: native, 192 for ``"builtin"``.
        precision: Of the towers' matrix products: ``"float32"``, ``"bf16"``, ``"fp16"`` or ``"auto"``.
        prompts_per_class: See the head.
        words: See the head.
        letters: See the head.
        normal_states: See the head.
        anomalous_states: See the head.
        templates: See the head.
        hidden: See the head.
        text_noise: See the head.
        centering: See the head.
        localization: ``"value_value"`` or ``"window"``; see the head.
        blocks: See the head.
        scales: See the head.
        stride: See the head.
        window_chunk: See the head.
        sigma: Gaussian smoothing of the map in pixels. Default: 4 at 240 px, in proportion.
        image_score: ``"text"``, ``"map_max"`` or ``"mean"``; see the head.
        seed: See the head.
        text_cache: See the head.
        pre_processor: anomalib component, or whether to use the default one.
        post_processor: anomalib component, or whether to use the default one.
        evaluator: anomalib component, or whether to use the default one.
        visualizer: anomalib component, or whether to use the default one.

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
        prompts_per_class: int = 1000,
        words: tuple[int, int] = (1, 3),
        letters: tuple[int, int] = (3, 8),
        normal_states: Sequence[str] = NORMAL_STATES,
        anomalous_states: Sequence[str] = ANOMALOUS_STATES,
        templates: Sequence[str] = TEMPLATES,
        hidden: int = 256,
        text_noise: float = 1.0,
        centering: str = "none",
        localization: str = "value_value",
        blocks: tuple[int, int] | None = None,
        scales: Sequence[int] = (2, 3),
        stride: int = 2,
        window_chunk: int = 256,
        sigma: float | None = None,
        image_score: str = "text",
        seed: int = 0,
        text_cache: bool = True,
        pre_processor: nn.Module | bool = True,
        post_processor: nn.Module | bool = True,
        evaluator: Evaluator | bool = True,
        visualizer: Visualizer | bool = True,
    ) -> None:
        super().__init__(pre_processor, post_processor, evaluator, visualizer)
        clip = read_backbone_arguments(backbone, pretrained, BACKBONE, "bicubic")
        size = resolve_size(image_size, clip)
        head = RandomWordHead(
            clip.embed_dim,
            prompts_per_class=prompts_per_class,
            words=words,
            letters=letters,
            normal_states=normal_states,
            anomalous_states=anomalous_states,
            templates=templates,
            hidden=hidden,
            text_noise=text_noise,
            centering=centering,
            localization=localization,
            blocks=blocks,
            scales=scales,
            stride=stride,
            window_chunk=window_chunk,
            sigma=scaled_sigma(sigma, 4.0, 240, size),
            image_score=image_score,
            seed=seed,
            text_cache=text_cache,
        )
        self.assemble(
            clip,
            {"random_word": head},
            image_size=size,
            precision=precision,
            pre_processor=pre_processor,
        )
