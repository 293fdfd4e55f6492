"""The metrics of the zero-shot papers, for anomalib's evaluator."""

from __future__ import annotations

from typing import Any

from anomalib.metrics import AUPRO, AUROC, AnomalibMetric, Evaluator, F1Max
from torchmetrics.classification import BinaryAveragePrecision


class AveragePrecision(AnomalibMetric, BinaryAveragePrecision):  # type: ignore[misc]
    """Average precision of torchmetrics, for anomalib's batches."""


def default_evaluator() -> Evaluator:
    """Metrics of the zero-shot papers: image AUROC, AP, F1-max; pixel AUROC, F1-max, AUPRO."""
    image: dict[str, Any] = {"fields": ["pred_score", "gt_label"], "prefix": "image_"}
    pixel: dict[str, Any] = {"fields": ["anomaly_map", "gt_mask"], "prefix": "pixel_", "strict": False}
    return Evaluator(
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
