"""Models in one form for ``anomalib benchmark``, so that a table compares like with like.

``anomalib benchmark`` writes one table of all its jobs. That works only where all of them have the same columns: the same
arguments by name, and the same metrics. :func:`comparable` gives any model of anomalib this form; it stands in a
configuration where a class would:

.. code-block:: yaml

    model:
      grid:
        - class_path: anomalib_zsclip.benchmark.comparable
          init_args: {model: ZsClip, arguments: [backbone: builtin]}
        - class_path: anomalib_zsclip.benchmark.comparable
          init_args: {model: Patchcore, arguments: [pre_trained: false]}
"""

from __future__ import annotations

import sys
import time
from collections.abc import Iterable, Mapping
from typing import Any, ClassVar, cast

from anomalib import models as anomalib_models
from anomalib.models import WinClip
from anomalib.models.components import AnomalibModule
from anomalib.post_processing import PostProcessor
from lightning.pytorch import LightningModule, Trainer
from omegaconf import OmegaConf
from tqdm.auto import tqdm

from anomalib_zsclip.errors import ArgumentError, UnknownArgumentError

from .evaluator import PapersEvaluator
from .metrics import ExactAUPRO, auroc, average_precision, exact_pro, f1_max, official_pro
from .noise import Formula, ImageSamples
from .results import DEVIATION
from .timing import peak_memory, reset_peak_memory, synchronize

RANKING: dict[str, Formula] = {
    "AUROC": lambda counts, _: auroc(counts),
    "AveragePrecision": lambda counts, _: average_precision(counts),
    "F1Max": lambda counts, _: f1_max(counts),
}
FORMULAS: dict[str, dict[str, Formula]] = {
    "image": RANKING,
    "pixel": RANKING,
    "region": {"OfficialPro": official_pro, "AUPRO": exact_pro},
}
"""What is sampled -> metric -> its formula."""


def comparable(model: str, arguments: Iterable[Mapping[str, Any]] = ()) -> AnomalibModule:
    """Make a model for a comparison.

    It has the metrics of the zero-shot papers and the cost of the test among them, and draws no pictures. Models of
    anomalib do without normalisation of scores: theirs clamps before the metrics are computed, which changes them. Ours
    is strictly monotone and stays.

    Args:
        model: Name of a model class of anomalib or of this package, for example ``"Patchcore"``.
        arguments: Its arguments as mappings that are merged. A list, since anomalib would make a column of each key of
            a mapping, and models with different arguments would not fit in one table.

    Raises:
        ArgumentError: If there is no such model, or it has no arguments of these names. Everything else that goes wrong
            where it is made, such as weights that are missing, is raised by its jobs: the others go on.
    """
    cls = getattr(anomalib_models, model, None)
    if not (isinstance(cls, type) and issubclass(cls, AnomalibModule)):
        msg = f"model={model!r} must be the name of a model class of anomalib, for example 'ZsClip' or 'Patchcore'."
        raise ArgumentError(msg)
    merged: dict[str, Any] = {}
    for part in OmegaConf.to_container(OmegaConf.create(list(arguments))):  # type: ignore[union-attr]
        if not isinstance(part, dict):
            msg = f"arguments of {model}: {part!r} must be a mapping, as in 'arguments: [backbone: builtin]'."
            raise ArgumentError(msg)
        merged.update(part)
    components: dict[str, Any] = {"evaluator": CostEvaluator(), "visualizer": False}
    if not getattr(cls, "keeps_rankings", False):
        components["post_processor"] = PostProcessor(enable_normalization=False)
    cls = WinClipInBenchmark if cls is WinClip else cls
    try:
        return cls(**components, **merged)
    except (TypeError, UnknownArgumentError) as error:
        msg = f"arguments of {model}: {error}."
        raise ArgumentError(msg) from error
    except Exception as error:
        return cast("AnomalibModule", Unavailable(model, error))


class Unavailable:
    """Stands for a model that cannot be made on this machine; whatever is asked of it, it raises the reason.

    anomalib makes models between the jobs of a benchmark, where an error ends all of them and loses the results. Raised by
    a job, it costs this job alone. The reason is said in one line, once.
    """

    said: ClassVar[set[str]] = set()

    def __init__(self, model: str, error: Exception) -> None:
        self.reason = f"{model} is left out: {type(error).__name__}: {' '.join(str(error).split())}"
        if self.reason not in self.said:
            self.said.add(self.reason)
            tqdm.write(self.reason, file=sys.stderr)

    def __getattr__(self, name: str) -> object:
        """Raise the reason."""
        if name.startswith("__") or name == "reason":  # Python's own questions, as when it is sent to another process
            raise AttributeError(name)
        raise UnavailableError(self.reason)


class UnavailableError(RuntimeError):
    """A job of a benchmark has no model."""


class CostEvaluator(PapersEvaluator):
    """Metrics of the zero-shot papers, both overlaps of regions among them, their noise, and what the test costs.

    ``image_AUROC_sd`` and so on are the standard deviations over bootstrap samples of the test images.

    ``milliseconds_per_image`` is the time of the model in the batches of the test, from pre-processed images to
    thresholded maps, without the first batch where there are several. ``peak_memory_mb`` is the largest memory during
    the test: of the GPU that the model is on, else of the whole process, Python and libraries included (Linux only).
    """

    PIXEL_METRICS = (*PapersEvaluator.PIXEL_METRICS, ExactAUPRO)
    leaves_out = False  # anomalib benchmark wants the same columns of all jobs

    def __init__(self) -> None:
        super().__init__()
        self._samples: dict[str, ImageSamples] = {}
        self._batches: list[tuple[float, int]] = []  # seconds, images
        self._start = 0.0

    def on_test_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Start to count."""
        super().on_test_start(trainer, pl_module)
        self._batches = []
        self._samples = {"image": ImageSamples(), "pixel": ImageSamples(), "region": ImageSamples(by_region=True)}
        reset_peak_memory(pl_module.device)

    def on_test_batch_start(self, trainer: Trainer, pl_module: LightningModule, *args: object) -> None:
        """Start the clock, after the pre-processor."""
        del trainer, args
        synchronize(pl_module.device)
        self._start = time.perf_counter()

    def on_test_batch_end(self, trainer: Trainer, pl_module: LightningModule, *args: Any) -> None:  # noqa: ANN401
        """Stop the clock, after the post-processor, and update the metrics."""
        synchronize(pl_module.device)
        batch = args[1]
        self._batches.append((time.perf_counter() - self._start, len(batch.image)))
        if batch.pred_score is not None:
            batch.pred_score = batch.pred_score.flatten()  # PaDiM's and others' are [B, 1], which some metrics refuse
        super().on_test_batch_end(trainer, pl_module, *args)

    def collect(self, values: Any) -> None:  # noqa: ANN401
        """Keep what the standard deviations are made of."""
        if values.pred_score is not None and values.gt_label is not None:
            self._samples["image"].add(values.pred_score.flatten(), values.gt_label.flatten())
        if values.anomaly_map is not None and values.gt_mask is not None:
            for name in ("pixel", "region"):
                self._samples[name].add(values.anomaly_map, values.gt_mask)

    def on_test_epoch_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Log the cost before the metrics are computed, which takes memory of its own."""
        batches = self._batches[1:] or self._batches
        seconds, images = (sum(values) for values in zip(*batches, strict=True))
        pl_module.log("milliseconds_per_image", 1000 * seconds / images)
        pl_module.log("peak_memory_mb", peak_memory(pl_module.device) / 2**20)
        super().on_test_epoch_end(trainer, pl_module)
        for name, samples in self._samples.items():
            prefix = "image" if name == "image" else "pixel"
            wanted = {f"{prefix}_{metric}{DEVIATION}": formula for metric, formula in FORMULAS[name].items()}
            for metric, deviation in samples.deviations(wanted).items():
                pl_module.log(metric, deviation)
        self._samples = {}


class WinClipInBenchmark(WinClip):
    """anomalib's WinCLIP where ``anomalib benchmark`` does not break it.

    The benchmark validates zero-shot models once without a data module. WinCLIP then fails for want of validation data,
    and would take "object" for its class name.
    """

    def setup(self, stage: str) -> None:
        """Wait for the data module, which knows the category."""
        if getattr(self.trainer, "datamodule", None) is not None:
            super().setup(stage)

    def val_dataloader(self) -> list[object]:
        """No data of the model's own; a data module's goes first."""
        return []
