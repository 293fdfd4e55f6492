"""Thresholds and normalisation that leave every ranking as it was."""

from __future__ import annotations

import warnings
from typing import Any

import torch
from anomalib.data import Batch
from anomalib.models.components import DynamicBufferMixin
from anomalib.post_processing import PostProcessor
from lightning.pytorch import LightningModule, Trainer
from torch import Tensor

from anomalib_zsclip.errors import ArgumentError, check_share, is_number

from .thresholds import DEFAULT_FALSE_ALARMS, threshold_from_folder, threshold_from_normal

NO_DATA, NORMAL_IMAGES, LABELLED_DATA, FOLDER = 0, 1, 2, 3

FEW_PARTS = 10
"""Below this number of good parts the share of false alarms is a guess: the interval of one in ten goes from 0 to 0.45."""

SCALE = 4
"""Parts of the range from min to max that make one unit of ``x``: the ends of a symmetric range become 1/6 and 5/6."""

ROUNDING = 1e-5
"""How far above a good part's own score a threshold lies that is made of it: in another batch or with another number of
threads the same picture's score differs by up to 2e-6, and a part that was given as good must not be flagged for that."""

LEAST_REACH = 0.05
"""Least way from the lowest normal score to the threshold: equal scores would otherwise make a step of the normalisation."""


class MonotonePostProcessor(DynamicBufferMixin, PostProcessor):
    """anomalib's post-processor with a strictly monotone normalisation, and decisions from normal images alone.

    anomalib maps scores linearly so that the threshold becomes 0.5, and clamps the result to [0, 1] before the metrics
    are computed. Clamping makes ties of all scores at the ends, which changes AUROC, average precision and AUPRO. Here

        s -> 0.5 + 0.5 x / (1 + |x|),   x = 4 (s - threshold) / (max - min)

    with the threshold and the range found on data: in (0, 1), 0.5 at the threshold, strictly rising, so that every
    ranking metric equals that of the raw scores.

    The threshold comes from one of four states, kept in the buffer ``source``:

    * no data: scores pass as they are, being probabilities already, and the threshold is 0.5;
    * normal images (validation data without anomalies, a folder of good parts, or the training images): see
      :func:`~anomalib_zsclip.outputs.thresholds.threshold_from_normal`, on image scores, and on the maxima of the maps for
      masks;
    * a folder of unlabelled images, most of them good: see
      :func:`~anomalib_zsclip.outputs.thresholds.threshold_from_folder`, on the same two;
    * labelled validation data: anomalib's F1-optimal threshold.

    A threshold that the user gives wins over all of them. It is on the scale of the normalised scores, which it does not
    move: only decisions change.

    Args:
        false_alarms: Share of good parts that may be flagged, in [0, 1), where the threshold comes from normal images or
            from a folder.
        threshold: The user's own threshold for image scores, in [0, 1].
        pixel_threshold: The user's own threshold for maps, in [0, 1].
        normal_quantile: Deprecated: ``1 - false_alarms``.
        **kwargs: Arguments of anomalib's post-processor.

    Attributes:
        normal_scores: Image scores of the normal or unlabelled images that the threshold was made from, ``[n]``; raw, not
            normalised.
        normal_peaks: Maxima of their maps, ``[n]``.

    Raises:
        ArgumentError: If a value is out of range.
    """

    source: Tensor
    normal_scores: Tensor
    normal_peaks: Tensor

    def __init__(
        self,
        false_alarms: float = DEFAULT_FALSE_ALARMS,
        threshold: float | None = None,
        pixel_threshold: float | None = None,
        normal_quantile: float | None = None,
        **kwargs: Any,  # noqa: ANN401
    ) -> None:
        super().__init__(**kwargs)
        if normal_quantile is not None:
            false_alarms = false_alarms_of(normal_quantile)
        self.false_alarms = check_false_alarms(false_alarms)
        self.given_threshold = check_threshold("threshold", threshold)
        self.given_pixel_threshold = check_threshold("pixel_threshold", pixel_threshold)
        self.register_buffer("source", torch.tensor(NO_DATA))
        self.register_buffer("normal_scores", torch.empty(0))
        self.register_buffer("normal_peaks", torch.empty(0))
        self._validation: list[tuple[Tensor, Tensor]] = []  # scores and peaks of the normal images of each batch
        self._saw_anomalies = False

    @property
    def _checkpoint_config_keys(self) -> tuple[str, ...]:
        return (*super()._checkpoint_config_keys, "false_alarms", "given_threshold", "given_pixel_threshold")

    def load_checkpoint_config(self, config: dict[str, Any]) -> None:
        """Take the configuration of a checkpoint, but keep what the user gave: thresholds, and another ``false_alarms``."""
        given = {name: getattr(self, name) for name in ("given_threshold", "given_pixel_threshold")}
        if self.false_alarms != DEFAULT_FALSE_ALARMS:
            given["false_alarms"] = self.false_alarms
        super().load_checkpoint_config(config)
        for name, value in given.items():
            if value is not None:
                setattr(self, name, value)

    # ------------------------------------------------------------------ where thresholds come from
    def reset(self) -> None:
        """Forget all thresholds and ranges: the state of no data."""
        self._forget_thresholds()
        self._forget_validation()

    def _forget_thresholds(self) -> None:
        for name in ("_image_threshold", "_pixel_threshold", "image_min", "image_max", "pixel_min", "pixel_max"):
            getattr(self, name).fill_(float("nan"))
        self._keep_normal(torch.empty(0), torch.empty(0))
        self.source.fill_(NO_DATA)

    def _keep_normal(self, scores: Tensor, peaks: Tensor) -> None:
        # Validation runs in inference mode, whose tensors a checkpoint could not be loaded into later.
        with torch.inference_mode(mode=False):
            self.normal_scores, self.normal_peaks = (
                values.detach().float().clone().to(self.source.device) for values in (scores, peaks)
            )

    def on_validation_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Start anew: what an interrupted or another validation left behind does not count."""
        del trainer, pl_module
        self._forget_validation()

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
        peaks = maps[normal].detach().flatten(1).amax(dim=1)
        self._validation.append((scores[normal].detach().cpu(), peaks.cpu()))

    def on_validation_epoch_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Decide from labelled anomalies where there are some, else from the normal images."""
        saw_anomalies, parts = self._saw_anomalies, self._validation
        several = trainer is not None and trainer.world_size > 1
        if several:  # all processes must decide alike: some may have seen normal images alone
            saw_anomalies = trainer.strategy.reduce_boolean_decision(saw_anomalies, all=False)
        if saw_anomalies:
            # Without masks anomalib would leave the pixel threshold of an earlier validation in place.
            self._forget_thresholds()
            super().on_validation_epoch_end(trainer, pl_module)
            self.source.fill_(LABELLED_DATA)
        elif sum(len(scores) for scores, _ in parts):
            values = torch.stack([torch.cat([part[index] for part in parts]) for index in (0, 1)])  # [2, n]
            if several:  # all images are normal here, so that all processes have the same number of them
                gathered = pl_module.all_gather(values.to(pl_module.device))  # [processes, 2, n]
                values = torch.as_tensor(gathered).cpu().transpose(0, 1).flatten(1)  # [2, processes * n]
            self.decide_from_normal(*values)
        self._forget_validation()

    def _forget_validation(self) -> None:
        self._saw_anomalies, self._validation = False, []
        for metric in (
            self._image_threshold_metric,
            self._pixel_threshold_metric,
            self._image_min_max_metric,
            self._pixel_min_max_metric,
        ):
            metric.reset()

    def decide_from_normal(self, scores: Tensor, peaks: Tensor) -> None:
        """Set thresholds and ranges from normal images; one alone says nothing, and leaves the state of no data.

        The range is taken twice as wide as the way from the lowest normal value to the threshold: how far anomalies
        reach beyond it is not known.

        Args:
            scores: Image scores of normal images, ``[n]``.
            peaks: Maxima of their maps, ``[n]``.
        """
        self.reset()
        self._keep_normal(scores, peaks)
        if len(scores) < 2:
            return
        for prefix, values in (("image", self.normal_scores), ("pixel", self.normal_peaks)):
            self._set_threshold(prefix, values.min(), threshold_from_normal(values, self.false_alarms) + ROUNDING)
        self.source.fill_(NORMAL_IMAGES)

    def decide_from_folder(self, scores: Tensor, peaks: Tensor, expected_defects: float) -> None:
        """Set thresholds and ranges from unlabelled images, most of which are good.

        Args:
            scores: Image scores, ``[n]``, each image judged without knowing itself.
            peaks: Maxima of their maps, ``[n]``.
            expected_defects: Share of defective images among them, in [0, 0.5).
        """
        self.reset()
        self._keep_normal(scores, peaks)
        for prefix, values in (("image", self.normal_scores), ("pixel", self.normal_peaks)):
            threshold = threshold_from_folder(values, expected_defects, self.false_alarms)
            self._set_threshold(prefix, values.min(), threshold + ROUNDING)
        self.source.fill_(FOLDER)

    def _set_threshold(self, prefix: str, low: Tensor, threshold: Tensor) -> None:
        getattr(self, f"_{prefix}_threshold").copy_(threshold)
        getattr(self, f"{prefix}_min").copy_(low)
        getattr(self, f"{prefix}_max").copy_(low + 2 * (threshold - low).clamp(min=LEAST_REACH))

    # ------------------------------------------------------------------ what they are
    @property
    def normalized_image_threshold(self) -> Tensor:
        """Threshold on the scale of normalised image scores: the user's, else anomalib's."""
        given = self.given_threshold
        return super().normalized_image_threshold if given is None else torch.tensor(given)

    @property
    def normalized_pixel_threshold(self) -> Tensor:
        """Threshold on the scale of normalised maps: the user's, else anomalib's."""
        given = self.given_pixel_threshold
        return super().normalized_pixel_threshold if given is None else torch.tensor(given)

    @property
    def good_scores(self) -> Tensor:
        """Scores of the good parts that the threshold was made from, on the scale of the predictions, ``[n]``, rising.

        There are none where it was made from unlabelled images: some of those are defective.
        """
        known = self.normal_scores if int(self.source) != FOLDER else self.normal_scores[:0]
        return self._on_scale(known.sort().values)

    def threshold_for(self, false_alarms: float) -> float:
        """The threshold that a share of false alarms would give, on the scale of the predictions.

        Raises:
            ArgumentError: If ``false_alarms`` is no share.
            ValueError: If there are fewer than two good parts.
        """
        check_false_alarms(false_alarms)
        if len(self.good_scores) < 2:
            msg = f"A threshold needs at least two good parts, and there are {len(self.good_scores)}."
            raise ValueError(msg)
        return float(self._on_scale(threshold_from_normal(self.normal_scores, false_alarms) + ROUNDING))

    def _on_scale(self, scores: Tensor) -> Tensor:
        return self._normalize(scores, self.image_min, self.image_max, self._image_threshold)  # type: ignore[return-value]

    @property
    def is_guess(self) -> bool:
        """Whether the threshold comes from so few good parts that the share of false alarms is a guess."""
        few = int(self.source) != FOLDER and 0 < len(self.normal_scores) < FEW_PARTS
        return self.given_threshold is None and few

    def describe(self) -> str:
        """One line on where the decisions come from."""
        given = [
            f"{name}={value:g}"
            for name, value in (("threshold", self.given_threshold), ("pixel_threshold", self.given_pixel_threshold))
            if value is not None
        ]
        if given:
            source = "" if len(given) == 2 else f"; the other one from {self._describe_source()}"
            return f"the user: {' and '.join(given)} on the scale of the scores{source}"
        return self._describe_source()

    def _describe_source(self) -> str:
        state, count = int(self.source), len(self.normal_scores)
        if state == NO_DATA:
            why = "one good part alone says nothing about others" if count == 1 else "no data"
            return f"{why}: scores are probabilities, and the threshold is 0.5"
        values = f"image score {float(self._image_threshold):.4f}, pixel {float(self.pixel_threshold):.4f}"
        if state == LABELLED_DATA:
            return f"labelled validation data: F1-optimal thresholds ({values})"
        if state == FOLDER:
            return f"{count} unlabelled images, most of which are taken to be good ({values})"
        share = f"{self.false_alarms:.1%}".replace(".0%", "%")
        guess = f"; fewer than {FEW_PARTS}, so that the share is a guess" if count < FEW_PARTS else ""
        return f"{count} normal images: thresholds that at most {share} of good parts shall exceed ({values}{guess})"

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
        scale = ((norm_max - norm_min) / SCALE).clamp(min=1e-6)
        x = (preds - threshold) / scale
        normalized = 0.5 + 0.5 * x / (1 + x.abs())
        return torch.where(torch.isnan(norm_min) | torch.isnan(norm_max), preds, normalized)


def check_threshold(name: str, value: float | None) -> float | None:
    """A threshold of the user's, or ``None`` for none.

    Raises:
        ArgumentError: If it is not in [0, 1], where scores are.
    """
    if value is None or (is_number(value) and 0 <= value <= 1):
        return None if value is None else float(value)
    msg = f"{name}={value!r} must be a number from 0 to 1, as the scores in predictions.csv are."
    raise ArgumentError(msg)


def false_alarms_of(normal_quantile: float) -> float:
    """``false_alarms`` in place of the argument that it was once, with a warning to those who call the caller.

    Raises:
        ArgumentError: If it is no number between 0 and 1.
    """
    warnings.warn("normal_quantile is deprecated: use false_alarms = 1 - normal_quantile.", DeprecationWarning, 3)
    check_share("normal_quantile", normal_quantile)
    return 1 - normal_quantile


def check_false_alarms(value: float) -> float:
    """A share of good parts that may be flagged.

    Raises:
        ArgumentError: If it is not in [0, 1).
    """
    if is_number(value) and 0 <= value < 1:
        return float(value)
    msg = f"false_alarms={value!r} must be a share of good parts, at least 0 and below 1."
    raise ArgumentError(msg)
