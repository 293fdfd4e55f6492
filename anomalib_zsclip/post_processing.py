"""Thresholds and normalisation that leave every ranking as it was."""

from __future__ import annotations

from typing import Any

import torch
from anomalib.data import Batch
from anomalib.post_processing import PostProcessor
from lightning.pytorch import LightningModule, Trainer
from torch import Tensor

from anomalib_zsclip.errors import ArgumentError

NO_DATA, NORMAL_IMAGES, LABELLED_DATA = 0, 1, 2


class MonotonePostProcessor(PostProcessor):
    """anomalib's post-processor with a strictly monotone normalisation, and decisions from normal images alone.

    anomalib maps scores linearly so that the threshold becomes 0.5, and clamps the result to [0, 1] before the metrics
    are computed. Clamping makes ties of all scores at the ends, which changes AUROC, average precision and AUPRO. Here

        s -> 0.5 + 0.5 x / (1 + |x|),   x = 4 (s - threshold) / (max - min)

    with the threshold and the range found on data: in (0, 1), 0.5 at the threshold, strictly rising, so that every
    ranking metric equals that of the raw scores.

    The threshold comes from one of three states, kept in the buffer ``source``:

    * no data: scores pass as they are, being probabilities already, and the threshold is 0.5;
    * normal images (validation data without anomalies, a folder of good parts, or the training images): a quantile of
      their image scores, and of the maxima of their maps for masks;
    * labelled validation data: anomalib's F1-optimal threshold.

    Args:
        normal_quantile: Share of the normal images that shall stay below the threshold.
        **kwargs: Arguments of anomalib's post-processor.
    """

    source: Tensor

    def __init__(self, normal_quantile: float = 0.95, **kwargs: Any) -> None:  # noqa: ANN401
        super().__init__(**kwargs)
        if not 0 < normal_quantile <= 1:
            msg = f"normal_quantile={normal_quantile} must be greater than 0 and at most 1."
            raise ArgumentError(msg)
        self.normal_quantile = normal_quantile
        self.register_buffer("source", torch.tensor(NO_DATA))
        self._normal_scores: list[Tensor] = []
        self._normal_peaks: list[Tensor] = []
        self._saw_anomalies = False

    @property
    def _checkpoint_config_keys(self) -> tuple[str, ...]:
        return (*super()._checkpoint_config_keys, "normal_quantile")

    def on_validation_batch_end(  # type: ignore[override]
        self,
        trainer: Trainer,
        pl_module: LightningModule,
        outputs: Batch,
        *args: Any,  # noqa: ANN401
        **kwargs: Any,  # noqa: ANN401
    ) -> None:
        """Collect what thresholds and ranges are made of."""
        super().on_validation_batch_end(trainer, pl_module, outputs, *args, **kwargs)
        labels, scores, maps = outputs.gt_label, outputs.pred_score, outputs.anomaly_map
        if labels is None or scores is None or maps is None:
            return
        self._saw_anomalies |= bool(labels.any())
        normal = ~labels.bool()
        self._normal_scores.append(scores[normal].detach().cpu())
        self._normal_peaks.append(maps[normal].detach().flatten(1).amax(dim=1).cpu())

    def on_validation_epoch_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Decide from labelled anomalies where there are some, else from the normal images."""
        scores, peaks = self._normal_scores, self._normal_peaks
        saw_anomalies, self._saw_anomalies = self._saw_anomalies, False
        self._normal_scores, self._normal_peaks = [], []
        several = trainer is not None and trainer.world_size > 1
        if several:  # all processes must decide alike: some may have seen normal images alone
            saw_anomalies = trainer.strategy.reduce_boolean_decision(saw_anomalies, all=False)
        if saw_anomalies:
            super().on_validation_epoch_end(trainer, pl_module)
            self.source.fill_(LABELLED_DATA)
            return
        for metric in (
            self._image_threshold_metric,
            self._pixel_threshold_metric,
            self._image_min_max_metric,
            self._pixel_min_max_metric,
        ):
            metric.reset()
        if scores and sum(map(len, scores)):
            values = torch.stack([torch.cat(scores), torch.cat(peaks)])  # [2, n]
            if several:  # all images are normal here, so that all processes have the same number of them
                gathered = pl_module.all_gather(values.to(pl_module.device))  # [processes, 2, n]
                values = torch.as_tensor(gathered).cpu().transpose(0, 1).flatten(1)  # [2, processes * n]
            self.decide_from_normal(*values)

    def decide_from_normal(self, scores: Tensor, peaks: Tensor) -> None:
        """Set thresholds and ranges from normal images.

        The range is taken twice as wide as the way from the lowest normal value to the threshold: how far anomalies
        reach beyond it is not known.

        Args:
            scores: Image scores of normal images, ``[n]``.
            peaks: Maxima of their maps, ``[n]``.
        """
        for prefix, values in (("image", scores), ("pixel", peaks)):
            threshold = torch.quantile(values.float(), self.normal_quantile)
            low = values.min()
            getattr(self, f"_{prefix}_threshold").copy_(threshold)
            getattr(self, f"{prefix}_min").copy_(low)
            getattr(self, f"{prefix}_max").copy_(low + 2 * (threshold - low).clamp(min=0.05))
        self.source.fill_(NORMAL_IMAGES)

    def describe(self) -> str:
        """One line on where the decisions come from."""
        state = int(self.source)
        if state == NO_DATA:
            return "no data: scores are probabilities, and the threshold is 0.5"
        values = f"image score {float(self._image_threshold):.4f}, pixel {float(self.pixel_threshold):.4f}"
        if state == NORMAL_IMAGES:
            return f"normal images: thresholds at their {self.normal_quantile:.0%} quantile ({values})"
        return f"labelled validation data: F1-optimal thresholds ({values})"

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
