"""The metrics of the zero-shot papers, for anomalib's evaluator."""

from __future__ import annotations

from typing import Any

import torch.nn.functional as F
from anomalib import metrics
from anomalib.metrics import AUROC, AnomalibMetric, Evaluator, F1Max
from torch import Tensor
from torchmetrics.classification import BinaryAveragePrecision


class AveragePrecision(AnomalibMetric, BinaryAveragePrecision):  # type: ignore[misc]
    """Average precision of torchmetrics, for anomalib's batches."""


class AUPRO(metrics.AUPRO):
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
