"""The metrics of the zero-shot papers, for anomalib's evaluator, which leaves out what is not defined."""

from __future__ import annotations

import logging
from collections.abc import Iterable
from typing import Any, ClassVar

import torch.nn.functional as F
from anomalib import metrics as anomalib_metrics
from anomalib.metrics import AUROC, AnomalibMetric, Evaluator, F1Max
from lightning.pytorch import LightningModule, Trainer
from torch import Tensor
from torchmetrics.classification import BinaryAveragePrecision

logger = logging.getLogger(__name__)

TARGETS = {"gt_label": "image", "gt_mask": "pixel"}
"""What metrics compare with, and what each of its values belongs to."""


class AveragePrecision(AnomalibMetric, BinaryAveragePrecision):  # type: ignore[misc]
    """Average precision of torchmetrics, for anomalib's batches."""


class DefinedEvaluator(Evaluator):
    """anomalib's evaluator without metrics that are not defined: they compare good with anomalous images or pixels.

    Where there is one kind alone, torchmetrics gives 0 for them, which reads as a bad model. Here they are left out, and one
    line says which and why.

    Attributes:
        leaves_out: Whether undefined metrics are left out; else they are logged as the metric has them.
    """

    leaves_out: ClassVar[bool] = True

    def __init__(self, *args: Any, **kwargs: Any) -> None:  # noqa: ANN401 - anomalib's
        super().__init__(*args, **kwargs)
        self._kinds: dict[str, set[bool]] = {}  # target -> kinds that were seen: anomalous or not

    def on_validation_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Forget another run."""
        del trainer, pl_module
        self._kinds = {}

    def on_test_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Forget another run."""
        del trainer, pl_module
        self._kinds = {}

    def on_validation_batch_end(self, *args: Any, **kwargs: Any) -> None:  # noqa: ANN401
        """Update the metrics, and note the kinds."""
        self._note(args[3] if len(args) > 3 else kwargs["batch"])
        super().on_validation_batch_end(*args, **kwargs)

    def on_test_batch_end(self, *args: Any, **kwargs: Any) -> None:  # noqa: ANN401
        """Update the metrics, and note the kinds."""
        self._note(args[3] if len(args) > 3 else kwargs["batch"])
        super().on_test_batch_end(*args, **kwargs)

    def on_validation_epoch_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Log what is defined."""
        del pl_module
        self._log_defined(trainer, self.val_metrics, "validation")

    def on_test_epoch_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Log what is defined."""
        del pl_module
        self._log_defined(trainer, self.test_metrics, "test")

    def _note(self, batch: Any) -> None:  # noqa: ANN401
        for target in TARGETS:
            values = getattr(batch, target, None)
            if values is not None and len(self._kinds.get(target, ())) < 2:
                anomalous = values != 0
                seen = {True} if bool(anomalous.any()) else set()
                seen |= {False} if not bool(anomalous.all()) else set()
                self._kinds.setdefault(target, set()).update(seen)

    def _log_defined(self, trainer: Trainer, metrics: Iterable[Any], stage: str) -> None:
        metrics = list(metrics)
        if not metrics:
            return
        kinds = {target: _of_all_processes(trainer, self._kinds.get(target, set())) for target in TARGETS}
        left_out: dict[str, list[str]] = {}
        for metric in metrics:
            target = metric.fields[-1]
            if self.leaves_out and target in kinds and len(kinds[target]) < 2:
                left_out.setdefault(target, []).append(metric.name)
                metric.reset()
                continue
            self.log(metric.name, metric)  # type: ignore[operator]
            if trainer.barebones:  # nothing is logged there; as anomalib's
                value = metric.compute()
                trainer.callback_metrics[metric.name] = value
                trainer.logged_metrics[metric.name] = value
        reasons = [
            f"{', '.join(names)} ({_reason(target, kinds[target], stage)})"
            for target, names in left_out.items()
            if kinds[target]  # what nobody has labelled, nobody expects to be counted
        ]
        if reasons:
            logger.warning("Not defined, and left out: %s.", "; ".join(reasons))


def _reason(target: str, kinds: set[bool], stage: str) -> str:
    kind = "anomalous" if True in kinds else "good"
    return f"all {stage} {TARGETS[target]}s are {kind}, and there is nothing to tell them from"


def _of_all_processes(trainer: Trainer, kinds: set[bool]) -> set[bool]:
    if trainer.world_size == 1:
        return kinds
    return {kind for kind in (False, True) if trainer.strategy.reduce_boolean_decision(kind in kinds, all=False)}


class AUPRO(anomalib_metrics.AUPRO):
    """anomalib's, also for maps of several sizes, as pictures with a grid of tiles each have them.

    All are brought to the size of the first; anomalib's own has to stack them.
    """

    def compute(self) -> Tensor:
        """The area under the overlap."""
        size = tuple(self.preds[0].shape[-2:]) if self.preds else ()
        if any(tuple(maps.shape[-2:]) != size for maps in self.preds):
            self.preds = [F.interpolate(maps.unsqueeze(1), size, mode="bilinear").squeeze(1) for maps in self.preds]
            masks = [F.interpolate(mask.float().unsqueeze(1), size).squeeze(1) for mask in self.target]
            self.target = [mask.to(self.target[0].dtype) for mask in masks]
        return super().compute()


def default_evaluator() -> Evaluator:
    """Metrics of the zero-shot papers: image AUROC, AP, F1-max; pixel AUROC, F1-max, AUPRO."""
    image: dict[str, Any] = {"fields": ["pred_score", "gt_label"], "prefix": "image_"}
    pixel: dict[str, Any] = {"fields": ["anomaly_map", "gt_mask"], "prefix": "pixel_", "strict": False}
    return DefinedEvaluator(
        val_metrics=[AUROC(**image), AUROC(**pixel)],
        test_metrics=[
            AUROC(**image),
            AveragePrecision(**image),
            F1Max(**image),
            AUROC(**pixel),
            F1Max(**pixel),
            AUPRO(**pixel),
        ],
    )
