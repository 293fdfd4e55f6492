"""What produced a report: model, backbone, arguments, versions, data, and where the decisions come from."""

from __future__ import annotations

import math
import platform
from collections.abc import Mapping
from datetime import datetime
from importlib.metadata import PackageNotFoundError, version
from typing import Any

from lightning.pytorch import LightningModule, Trainer

from anomalib_zsclip.outputs.false_alarms import choices, intervals
from anomalib_zsclip.outputs.post_processing import MonotonePostProcessor

PACKAGES = ("anomalib-zsclip", "anomalib", "lightning", "torch", "torchvision", "open_clip_torch")


def describe_run(trainer: Trainer, pl_module: LightningModule, *, complete: bool, root: str) -> dict[str, Any]:
    """Everything that the page says about a run, in plain values.

    Args:
        trainer: Its trainer, at the end of the run.
        pl_module: Its model.
        complete: Whether the run came to its end.
        root: Folder that the images share.
    """
    post_processor = getattr(pl_module, "post_processor", None)
    own = isinstance(post_processor, MonotonePostProcessor)
    threshold = float(getattr(post_processor, "normalized_image_threshold", 0.5))
    return {
        "model": type(pl_module).__name__,
        "data": _data_name(trainer),
        "root": root,
        "date": datetime.now().astimezone().strftime("%Y-%m-%d %H:%M %Z"),
        "complete": complete,
        "threshold": round(threshold, 6) if math.isfinite(threshold) else 0.5,
        "can_be_set": own,
        "decisions": post_processor.describe() if isinstance(post_processor, MonotonePostProcessor) else "",
        "metrics": _metrics(trainer),
        "good": _good_parts(post_processor),
        "about": _about(pl_module),
        "arguments": {name: plain_text(value) for name, value in _arguments(pl_module).items()},
        "versions": {**{name: _version(name) for name in PACKAGES}, "python": platform.python_version()},
    }


def plain_text(value: object) -> str:
    """A value of an argument as people read it."""
    if isinstance(value, (list, tuple)) and len(value) > 20:
        return f"{', '.join(map(str, value[:20]))}, ... ({len(value)})"
    return ", ".join(map(str, value)) if isinstance(value, (list, tuple)) else str(value)


def _data_name(trainer: Any) -> str:  # noqa: ANN401
    datamodule = getattr(trainer, "datamodule", None)
    if datamodule is None:
        return ""
    parts = [getattr(datamodule, "name", type(datamodule).__name__), getattr(datamodule, "category", None)]
    return " / ".join(str(part) for part in parts if part)


def _metrics(trainer: Any) -> dict[str, float]:  # noqa: ANN401
    """Numbers of the table in the log; what is not defined is left out."""
    logged = {name: float(value) for name, value in dict(getattr(trainer, "callback_metrics", {})).items()}
    return {name: value for name, value in logged.items() if math.isfinite(value)}


def _good_parts(post_processor: object) -> dict[str, Any] | None:
    if not isinstance(post_processor, MonotonePostProcessor) or len(post_processor.good_scores) < 2:
        return None
    scores = [float(f"{score:.9g}") for score in post_processor.good_scores.tolist()]
    return {
        "scores": scores,
        "intervals": [[round(end, 4) for end in ends] for ends in intervals(len(scores))],
        "choices": [vars(choice) | {"threshold": round(choice.threshold, 6)} for choice in choices(post_processor)],
        "false_alarms": post_processor.false_alarms,
    }


def _about(pl_module: Any) -> dict[str, str]:  # noqa: ANN401
    """Backbone and weights, as far as the model has them."""
    model = getattr(pl_module, "model", None)
    backbone = getattr(model, "backbone", None)
    found = {
        "backbone": getattr(backbone, "name", ""),
        "weights": getattr(backbone, "fingerprint", ""),
        "heads": ", ".join(getattr(model, "heads", {})),
        "published weights": ", ".join(f"{head}: {name}" for head, name in _published(pl_module).items()),
        "precision": getattr(pl_module, "precision_name", ""),
    }
    return {name: str(value) for name, value in found.items() if value}


def _published(pl_module: Any) -> Mapping[str, str]:  # noqa: ANN401
    return getattr(getattr(pl_module, "bindings", None), "published", None) or {}


def _arguments(pl_module: Any) -> dict[str, Any]:  # noqa: ANN401
    components = ("pre_processor", "post_processor", "evaluator", "visualizer")
    arguments = dict(getattr(pl_module, "hparams", {}) or {})
    return {name: value for name, value in arguments.items() if name not in components and value is not None}


def _version(package: str) -> str:
    try:
        return version(package)
    except PackageNotFoundError:
        return ""
