"""Published weights in models: checked when a model is made, chosen when the data to be judged is known."""

from __future__ import annotations

import logging
from pathlib import Path
from typing import Any

from lightning.pytorch import Trainer

from anomalib_zsclip.clip import ClipBackbone
from anomalib_zsclip.clip.downloads import obtain
from anomalib_zsclip.errors import ArgumentError, check_path
from anomalib_zsclip.heads.published_weights import (
    DATA_MODULES,
    PUBLISHED,
    SOURCES,
    check_backbone,
    check_obtainable,
    is_published,
    source_for,
    weights_of,
)
from anomalib_zsclip.heads.sdp_plus import SdpPlusHead

from .detector import Detector

logger = logging.getLogger(__name__)


def take_published(
    head: str, value: str | Path | None, backbone: ClipBackbone, argument: str = "checkpoint", *, learn: bool = False
) -> tuple[str | Path | None, dict[str, str]]:
    """Part a file of learned weights from a name of published ones.

    Args:
        head: Head that the weights are for.
        value: The argument.
        backbone: The CLIP.
        argument: The argument's name.
        learn: Whether the head will learn.

    Returns:
        A file, or ``None``; and the choice of published weights by head, which :func:`bring_published` loads.

    Raises:
        ArgumentError: If the value is no path, they belong to another backbone, or a head that learns shall wait for its
            data.
        CheckpointError: If no file is there or can be downloaded.
    """
    check_path(argument, value)
    if not is_published(value):
        return value, {}
    choice = str(value)
    check_backbone(head, backbone, f"{argument}={choice!r}")
    if learn and choice == PUBLISHED:
        msg = f"learn=True needs to know what to start from: {argument}='published-mvtec' or 'published-visa'."
        raise ArgumentError(msg)
    check_obtainable(head, choice)
    return None, {head: choice}


def bring_published(module: Detector, trainer: Trainer | None) -> None:
    """Load the published weights that belong to the data at hand, where others or none are loaded.

    Without data, what is loaded stays. What a model learned or a checkpoint brought stays in any case.
    """
    datamodule = getattr(trainer, "datamodule", None)
    target = _target(datamodule)
    bound = module.bindings.published
    for name, choice in module.published.items():
        if name not in module.model.heads or (name in bound and (datamodule is None or module.learn)):
            continue
        source = source_for(choice, target)
        if bound.get(name) == source:
            continue
        path = obtain(weights_of(name, source).file)
        head: Any = module.model.heads[name]
        if isinstance(head, SdpPlusHead):
            head.load_linear_layers(path)
        else:
            head.prompts_file, head.prompts = path, None
        module.bindings.text.pop(name, None)  # it is compiled anew from these weights
        bound[name] = source
        tested = f", for {SOURCES[target]}" if target else ""
        logger.info("The published weights of %r learned on %s are used%s.", name, SOURCES[source], tested)
    for name, source in bound.items():
        if source == target and not module.learn and (name, source) not in module.not_zero_shot:
            module.not_zero_shot |= {(name, source)}  # said once
            logger.warning(
                "The weights of %r were learned on %s, which is tested here: the result is not zero-shot.",
                *(name, SOURCES[source]),
            )


def _target(datamodule: object) -> str | None:
    """The data set that is judged, a key of :data:`SOURCES`; ``None`` for any other."""
    datamodule = getattr(datamodule, "target", datamodule)
    return next((DATA_MODULES[cls.__name__] for cls in type(datamodule).__mro__ if cls.__name__ in DATA_MODULES), None)
