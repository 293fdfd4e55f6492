"""Thresholds and normalisation that leave every ranking as it was."""

from __future__ import annotations

import torch
from anomalib.post_processing import PostProcessor
from torch import Tensor


class MonotonePostProcessor(PostProcessor):
    """anomalib's post-processor with a strictly monotone normalisation.

    anomalib maps scores linearly so that the threshold becomes 0.5, and clamps the result to [0, 1] before the metrics
    are computed. Clamping makes ties of all scores at the ends, which changes AUROC, average precision and AUPRO. Here

        s -> 0.5 + 0.5 x / (1 + |x|),   x = 4 (s - threshold) / (max - min)

    with the threshold and the range found on validation data: in (0, 1), 0.5 at the threshold, strictly rising, so that
    every ranking metric equals that of the raw scores. Without validation data scores pass as they are: they are
    probabilities already, and the threshold is 0.5.
    """

    @staticmethod
    def _normalize(
        preds: Tensor | None,
        norm_min: Tensor,
        norm_max: Tensor,
        threshold: Tensor,
    ) -> Tensor | None:
        if preds is None:
            return None
        threshold = torch.where(torch.isnan(threshold), (norm_max + norm_min) / 2, threshold)
        scale = ((norm_max - norm_min) / 4).clamp(min=1e-6)
        x = (preds - threshold) / scale
        normalized = 0.5 + 0.5 * x / (1 + x.abs())
        return torch.where(torch.isnan(norm_min) | torch.isnan(norm_max), preds, normalized)
