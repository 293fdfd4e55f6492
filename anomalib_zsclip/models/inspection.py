"""Look at a folder in three lines of Python; everything is done by anomalib's engine."""

from __future__ import annotations

import tempfile
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from anomalib.models.components import AnomalibModule

from anomalib_zsclip.errors import ArgumentError, check_path
from anomalib_zsclip.images import unreadable_of
from anomalib_zsclip.images.own_results import TEMPORARY
from anomalib_zsclip.outputs import PictureRegions

from .zs_clip import ZsClip


@dataclass(frozen=True)
class Inspection:
    """What was found out about one picture.

    Attributes:
        path: Its file.
        score: How anomalous it is, in [0, 1]; ``None`` where it could not be judged.
        is_anomalous: Whether the score exceeds the threshold; ``None`` where it could not be judged.
        anomaly_map: How anomalous each place is, in [0, 1], float32 ``[h, w]``, in the size of the model.
        regions: Where the defects are, in pixels of the upright picture.
        explanation: What the defect looks like, where the model names defects.
        error: Why it could not be judged; empty where it was.
    """

    path: Path
    score: float | None = None
    is_anomalous: bool | None = None
    anomaly_map: np.ndarray | None = None
    regions: PictureRegions | None = None
    explanation: str = ""
    error: str = ""


def inspect(
    images: str | Path,
    normal_dir: str | Path | None = None,
    *,
    output: str | Path | None = None,
    model: type[AnomalibModule] | AnomalibModule = ZsClip,
    progress: bool = False,
    **arguments: Any,  # noqa: ANN401
) -> list[Inspection]:
    """Judge the pictures of a folder.

    Args:
        images: Folder, with its folders below, or one picture.
        normal_dir: Folder of good parts, from which the threshold is made.
        output: Folder for all that ``anomalib predict`` writes: pictures, report, tables. Default: nothing is written.
        model: Class of the model, or a model that is kept for several calls; such a one writes what it was made to write.
        progress: Show a progress bar.
        **arguments: Arguments of the model.

    Returns:
        A result per picture, in the order of their names.

    Raises:
        ArgumentError: If there are arguments for a model that is made already, or one of them is wrong.
        ImageReadError: If a picture cannot be read, and ``on_unreadable="stop"`` is among the arguments.

    Example:
        >>> import anomalib_zsclip
        >>> for part in anomalib_zsclip.inspect("parts", backbone="builtin"):  # doctest: +SKIP
        ...     print(part.path, part.score, part.is_anomalous, [region.box for region in part.regions])
    """
    from anomalib.engine import Engine  # imports anomalib.models, during which this module is imported

    if images is None:
        msg = "images=None must be the path of a folder or of a picture."
        raise ArgumentError(msg)
    check_path("images", images)
    check_path("output", output)
    if not isinstance(model, AnomalibModule) and not (isinstance(model, type) and issubclass(model, AnomalibModule)):
        msg = f"model={model!r} must be a model or its class, such as model=anomalib_zsclip.AnomalyClip."
        raise ArgumentError(msg)
    if isinstance(model, AnomalibModule):
        if normal_dir is not None or arguments:
            given = ", ".join([*(["normal_dir"] if normal_dir is not None else []), *arguments])
            msg = f"The model is made already, so that it cannot take {given}: give them where you make it."
            raise ArgumentError(msg)
        detector = model
    else:
        written = {} if output is not None else {"visualizer": False, "report": False}
        detector = model(**({"normal_dir": normal_dir} | written | arguments))
    with nullcontext(str(output)) if output is not None else _nowhere() as folder:
        engine = Engine(default_root_dir=folder, devices=1, logger=False, enable_progress_bar=progress)
        batches = engine.predict(detector, data_path=Path(images).expanduser(), return_predictions=True)
        results = [result for batch in batches or [] for result in results_of(batch)]
        results += [Inspection(Path(file.path), error=file.reason) for file in unreadable_of(engine.trainer)]
    return sorted(results, key=lambda result: result.path)


@contextmanager
def _nowhere() -> Iterator[str]:
    with tempfile.TemporaryDirectory(prefix=TEMPORARY, ignore_cleanup_errors=True) as folder:
        yield folder


def results_of(batch: Any) -> Iterator[Inspection]:  # noqa: ANN401 - anomalib's batch
    """Results of a batch of post-processed predictions."""
    regions = getattr(batch, "regions", None)
    for index, item in enumerate(batch):
        anomaly_map = item.anomaly_map
        yield Inspection(
            path=Path(item.image_path),
            score=None if item.pred_score is None else float(item.pred_score),
            is_anomalous=None if item.pred_label is None else bool(item.pred_label),
            anomaly_map=None if anomaly_map is None else anomaly_map.detach().float().cpu().numpy().squeeze(),
            regions=None if regions is None else regions[index],
            explanation=item.explanation or "",
        )
