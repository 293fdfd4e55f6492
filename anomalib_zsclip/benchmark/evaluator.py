"""The papers' protocol as an evaluator of anomalib: ``evaluator="papers"``, or a class for configuration files."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any, ClassVar

from anomalib.metrics import AnomalibMetric
from lightning.pytorch import LightningModule, Trainer
from torch import Tensor
from tqdm.auto import tqdm

from anomalib_zsclip.outputs import DefinedEvaluator

from .metrics import ExactAUROC, ExactAveragePrecision, ExactF1Max, OfficialPro

MANY_VALUES = 2**22
"""Values from which on computing the metrics takes seconds, and shows its progress."""


class PapersEvaluator(DefinedEvaluator):
    """Image AUROC, AP, F1-max; pixel AUROC, AP, F1-max and the published per-region overlap.

    They are computed on raw scores and maps, as long as the model says them (:meth:`keep_raw`): the published overlap has
    thresholds in equal steps of the map, which a normalisation would move. Our models then also resize masks as the
    published programs do. The memory is bounded, see :mod:`anomalib_zsclip.benchmark.metrics`.
    """

    PIXEL_METRICS: ClassVar[tuple[type[AnomalibMetric], ...]] = (
        ExactAUROC,
        ExactAveragePrecision,
        ExactF1Max,
        OfficialPro,
    )

    def __init__(self) -> None:
        image: dict[str, Any] = {"fields": ["pred_score", "gt_label"], "prefix": "image_"}
        pixel: dict[str, Any] = {"fields": ["anomaly_map", "gt_mask"], "prefix": "pixel_", "strict": False}
        super().__init__(
            val_metrics=[ExactAUROC(**image), ExactAUROC(**pixel)],
            test_metrics=[
                *(metric(**image) for metric in (ExactAUROC, ExactAveragePrecision, ExactF1Max)),
                *(metric(**pixel) for metric in self.PIXEL_METRICS),
            ],
        )
        self._raw: tuple[Tensor, Tensor] | None = None

    def keep_raw(self, score: Tensor, anomaly_map: Tensor) -> None:
        """Take scores and maps of a batch before they are normalised: these are compared with its labels and masks."""
        self._raw = score, anomaly_map

    def collect(self, values: Any) -> None:  # noqa: ANN401
        """Take what is counted of a batch, for more than the metrics; nothing here.

        Args:
            values: ``pred_score``, ``anomaly_map``, ``gt_label`` and ``gt_mask`` of the batch, ``None`` where there is none.
        """

    def on_test_batch_end(
        self,
        trainer: Trainer,
        pl_module: LightningModule,
        outputs: Any,  # noqa: ANN401
        batch: Any,  # noqa: ANN401
        batch_idx: int,
        dataloader_idx: int = 0,
    ) -> None:
        """Count the raw values of the batch, or those of the batch where the model says none."""
        raw, self._raw = self._raw, None
        fields = ("pred_score", "anomaly_map", "gt_label", "gt_mask")
        values = SimpleNamespace(**{name: getattr(batch, name, None) for name in fields})
        if raw is not None:
            values.pred_score, values.anomaly_map = raw
        self.collect(values)
        super().on_test_batch_end(trainer, pl_module, outputs, values, batch_idx, dataloader_idx)

    def on_test_epoch_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Compute the metrics one by one, with a progress bar where that takes long, and log them."""
        many = any(int(metric.number) >= MANY_VALUES for metric in self.test_metrics)  # type: ignore[arg-type]
        quiet = not many or trainer.progress_bar_callback is None
        for metric in tqdm(self.test_metrics, desc="Metrics", disable=quiet, leave=False):
            metric.compute()  # kept until the metric is logged
        super().on_test_epoch_end(trainer, pl_module)
