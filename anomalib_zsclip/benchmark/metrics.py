"""The metrics of the zero-shot papers, exact on scores of any range, in bounded memory.

torchmetrics' curves send every batch with a value outside [0, 1] through a sigmoid, which makes distances ties, and keep
all values. Here a metric keeps counts of distinct values. Up to :data:`EXACT_PIXELS` values all digits count; from there on
values are binned by their first 16 significant bits, which moves a rate by the share of pixels in one bin at most: on six
recorded cases, binned from the first pixel on, AUROC by up to 5e-7, AP by 6e-5, F1-max by less than 1e-7, PRO by 1e-4.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import numpy as np
import torch
from anomalib.metrics import AnomalibMetric
from scipy import ndimage
from torch import Tensor
from torchmetrics import Metric

EXACT_PIXELS = 2**25
"""Values that a metric keeps with all digits: 125 maps of 518 px, in 270 MB. All images of most categories."""

LOST_BITS = 8
"""Bits of a float32 that binning drops: 15 of the mantissa stay, so that a bin is 3e-5 of its value wide."""

FALSE_POSITIVE_LIMIT = 0.3
"""Largest false positive rate that PRO looks at, in all papers."""

PRO_THRESHOLDS = 200
"""Thresholds of the published PRO, from the lowest value of all maps in equal steps."""


class Counts(NamedTuple):
    """Distinct values in descending order and what was counted at each.

    Attributes:
        values: The values, ``[n]``.
        normal: Normal images or pixels of each value, ``[n]``.
        anomalous: Weight of the anomalous ones of each value, ``[n]``.
    """

    values: Tensor
    normal: Tensor
    anomalous: Tensor

    def cumulated(self) -> tuple[Tensor, Tensor]:
        """Normal ones, and weight of anomalous ones, at or above each value."""
        return self.normal.cumsum(0), self.anomalous.cumsum(0)


class ValueCounts(Metric):
    """Counts of distinct values among normal and anomalous images or pixels: base of the metrics here.

    Args:
        **kwargs: Arguments of torchmetrics.

    Attributes:
        number: Values seen since the last reset, in this process.
    """

    is_differentiable = False
    higher_is_better = True
    full_state_update = False
    label: str | None = None
    """Name in tables, where it is not that of the class."""

    keys: list[Tensor]
    weights: list[Tensor]
    bins: list[Tensor]

    def __init__(self, **kwargs: Any) -> None:  # noqa: ANN401
        super().__init__(**kwargs)
        if self.label is not None:  # of anomalib's metrics, which begin with a prefix
            self.name = str(getattr(self, "name", "")).removesuffix(type(self).__name__) + self.label
        self.number = 0
        self.add_state("keys", default=[], dist_reduce_fx="cat")  # ordered bits of values with all digits, int32
        self.add_state("weights", default=[], dist_reduce_fx="cat")  # of these values: 0 for normal
        self.add_state("bins", default=[], dist_reduce_fx="cat")  # rows of key, normal, anomalous; float64

    def update(self, preds: Tensor, target: Tensor) -> None:
        """Count scores or maps, anomalous where ``target`` is not 0; shapes alike but for dimensions of size one.

        Raises:
            ValueError: If a value is not finite, or the numbers of values differ.
        """
        preds, weights = preds.detach().float(), self._weights(target)
        if preds.numel() != weights.numel():
            msg = f"{tuple(preds.shape)} predictions and {tuple(target.shape)} targets do not belong together."
            raise ValueError(msg)
        if not torch.isfinite(preds).all():
            msg = "Predictions have values that are not finite: no metric can rank them."
            raise ValueError(msg)
        self.number += preds.numel()
        self.keys.append(_ordered_bits(preds.flatten()))
        self.weights.append(weights.flatten())
        if sum(key.numel() for key in self.keys) > EXACT_PIXELS:
            self._bin()

    def _weights(self, target: Tensor) -> Tensor:
        """What each anomalous value counts, 0 for normal ones."""
        return (target != 0).float()

    def _bin(self) -> None:
        """Count the values at hand by their leading bits, and drop them."""
        self.bins = [self._rows(binned=True).to(self.keys[-1].device)]  # where processes exchange them
        self.keys, self.weights = [], []

    def _rows(self, *, binned: bool) -> Tensor:
        """Everything that was counted, as rows of key, normal, anomalous, by ascending key."""
        rows = [part.cpu() for part in (self.bins if isinstance(self.bins, list) else [self.bins])]
        if len(self.keys):
            keys, weights = (
                torch.cat([part.cpu() for part in parts]) if isinstance(parts, list) else parts.cpu()
                for parts in (self.keys, self.weights)
            )
            rows.append(_count(keys >> LOST_BITS << LOST_BITS if binned else keys, weights))
        return _merge(torch.cat(rows)) if len(rows) > 1 else rows[0]

    def reset(self) -> None:
        """Forget everything."""
        super().reset()
        self.number = 0

    def counts(self) -> Counts:
        """Everything that was counted: all values with all digits, or all of them in bins."""
        merged = self._rows(binned=len(self.bins) > 0).flip(0)
        return Counts(_values(merged[:, 0].long().int()), merged[:, 1], merged[:, 2])


class ExactAUROC(AnomalibMetric, ValueCounts):  # type: ignore[misc] # anomalib takes the values from a batch
    """Area under the ROC curve; ties count half."""

    label = "AUROC"

    def compute(self) -> Tensor:
        """The area; not a number without both kinds."""
        return _published(self, auroc)


class ExactAveragePrecision(AnomalibMetric, ValueCounts):  # type: ignore[misc] # anomalib takes the values from a batch
    """Average precision: the precisions at all distinct values, weighted by the recall that each adds."""

    label = "AveragePrecision"

    def compute(self) -> Tensor:
        """The average precision; not a number without both kinds."""
        return _published(self, average_precision)


class ExactF1Max(AnomalibMetric, ValueCounts):  # type: ignore[misc] # anomalib takes the values from a batch
    """Largest F1 score over all thresholds."""

    label = "F1Max"

    def compute(self) -> Tensor:
        """The score; not a number without both kinds."""
        return _published(self, f1_max)


class RegionCounts(ValueCounts):
    """Counts in which each anomalous pixel weighs one over the size of its region: the base of both overlaps of regions.

    Regions are the 8-connected components of a mask.
    """

    regions: Tensor

    def __init__(self, **kwargs: Any) -> None:  # noqa: ANN401
        super().__init__(**kwargs)
        self.add_state("regions", default=torch.tensor(0), dist_reduce_fx="sum")

    def _weights(self, target: Tensor) -> Tensor:
        weights, regions = region_weights(target)
        self.regions = self.regions + regions
        return weights


class OfficialPro(AnomalibMetric, RegionCounts):  # type: ignore[misc]
    """Per-region overlap as the published programs compute it, which is another number than anomalib's AUPRO.

    200 thresholds from the lowest value of all maps to just below the highest; a pixel is positive above a threshold. At
    each, the mean over all regions of the share of the region that is positive, against the rate of positives outside all
    masks. Rates below 0.3 are kept and rescaled so that the lowest becomes 0 and the highest 1, whatever it is; the area
    under that is the result.

    It is no metric of ranking: it changes with every monotone function of the maps that is not linear.
    """

    def compute(self) -> Tensor:
        """The area; not a number without a region or without pixels outside of all."""
        return _published(self, lambda counts: official_pro(counts, int(self.regions)))


class ExactAUPRO(AnomalibMetric, RegionCounts):  # type: ignore[misc]
    """Area under the per-region overlap up to a false positive rate of 0.3, over 0.3: anomalib's, and MVTec's own.

    All distinct values are thresholds, and the overlap at 0.3 is interpolated.
    """

    label = "AUPRO"

    def compute(self) -> Tensor:
        """The area; not a number without a region or without pixels outside of all."""
        return _published(self, lambda counts: exact_pro(counts, int(self.regions)))


def _published(metric: Any, formula: Any) -> Tensor:  # noqa: ANN401
    """The formula on the counts; nothing where a metric that may go without has seen no data, as anomalib's."""
    if metric._update_count == 0:
        return None if not metric.strict else torch.tensor(float("nan"))  # type: ignore[return-value]
    counts = metric.counts()
    if counts.normal.sum() == 0 or counts.anomalous.sum() == 0:
        return torch.tensor(float("nan"))
    return torch.as_tensor(formula(counts), dtype=torch.float32)


# ---------------------------------------------------------------------- formulas
def auroc(counts: Counts) -> Tensor:
    """Area under the ROC curve."""
    normal, anomalous = counts.cumulated()
    above = anomalous - counts.anomalous / 2
    return (counts.normal * above).sum() / (normal[-1] * anomalous[-1])


def average_precision(counts: Counts) -> Tensor:
    """Average precision."""
    normal, anomalous = counts.cumulated()
    return (counts.anomalous * anomalous / (normal + anomalous)).sum() / anomalous[-1]


def f1_max(counts: Counts) -> Tensor:
    """Largest F1 score."""
    normal, anomalous = counts.cumulated()
    return (2 * anomalous / (normal + anomalous + anomalous[-1])).max()


def official_pro(counts: Counts, regions: int) -> float:
    """The published per-region overlap; see :class:`OfficialPro`.

    Args:
        counts: Values of all maps; an anomalous pixel counts one over the size of its region.
        regions: Number of regions.
    """
    if counts.values[0] == counts.values[-1]:
        return float("nan")
    normal, anomalous = counts.cumulated()
    low, high = np.float32(counts.values[-1]), np.float32(counts.values[0])
    # In float32 and by NumPy's own steps, as published: far from zero, sums of other steps are 1e-4 of the area away.
    thresholds = np.arange(low, high, (high - low) / np.float32(PRO_THRESHOLDS))[:PRO_THRESHOLDS]
    # Number of values above each threshold; the values descend.
    positive = torch.searchsorted(-counts.values, -torch.from_numpy(thresholds))
    zero = torch.zeros(1, dtype=torch.float64)
    rates = (torch.cat([zero, normal])[positive] / normal[-1]).numpy()
    overlaps = (torch.cat([zero, anomalous])[positive] / regions).numpy()
    kept = rates < FALSE_POSITIVE_LIMIT
    rates, overlaps = rates[kept], overlaps[kept]
    if not len(rates) or rates.max() == rates.min():
        return float("nan")
    rates = (rates - rates.min()) / (rates.max() - rates.min())
    return float(np.trapezoid(overlaps[::-1], rates[::-1]))  # thresholds rise, so that rates fall


def exact_pro(counts: Counts, regions: int) -> float:
    """The area under the per-region overlap up to the limit of the false positive rate, over that limit."""
    normal, anomalous = counts.cumulated()
    rates = np.append(0.0, (normal / normal[-1]).numpy())
    overlaps = np.append(0.0, (anomalous / regions).numpy())
    kept = int(np.searchsorted(rates, FALSE_POSITIVE_LIMIT, side="right"))  # rates rise
    if kept < len(rates):
        share = (FALSE_POSITIVE_LIMIT - rates[kept - 1]) / (rates[kept] - rates[kept - 1])
        overlaps[kept] = overlaps[kept - 1] + share * (overlaps[kept] - overlaps[kept - 1])
        rates[kept] = FALSE_POSITIVE_LIMIT
        kept += 1
    return float(np.trapezoid(overlaps[:kept], rates[:kept]) / FALSE_POSITIVE_LIMIT)


# ---------------------------------------------------------------------- counting
def region_weights(masks: Tensor) -> tuple[Tensor, int]:
    """One over the size of its region for each pixel of masks ``[..., H, W]``, 0 outside, and the number of regions."""
    binary = (masks != 0).cpu().numpy().reshape(-1, *masks.shape[-2:])
    weights = np.zeros(binary.shape, np.float32)
    regions = 0
    for index in np.flatnonzero(binary.any(axis=(1, 2))):
        labels, number = ndimage.label(binary[index], structure=np.ones((3, 3)))
        sizes = np.bincount(labels.ravel(), minlength=number + 1).astype(np.float64)
        shares = 1 / sizes.clip(1)  # the background may be empty
        shares[0] = 0
        weights[index] = shares[labels]
        regions += number
    return torch.from_numpy(weights).to(masks.device).reshape(masks.shape), regions


def _ordered_bits(values: Tensor) -> Tensor:
    """The bits of float32 values as int32 numbers that have the order of the values."""
    bits = (values + 0.0).view(torch.int32)  # adding zero makes -0 and 0 the same
    return torch.where(bits >= 0, bits, bits ^ 0x7FFFFFFF)


def _values(keys: Tensor) -> Tensor:
    """The values of :func:`_ordered_bits`."""
    return torch.where(keys >= 0, keys, keys ^ 0x7FFFFFFF).view(torch.float32)


def _count(keys: Tensor, weights: Tensor) -> Tensor:
    """Rows of key, number of normal values, weight of anomalous ones, by ascending key; float64, which holds every key.

    NumPy sorts numbers ten times as fast as torch sorts them with their places, and places are needed for anomalous values
    alone, which are few.
    """
    distinct, numbers = np.unique(keys.numpy(), return_counts=True)
    anomalous = weights != 0
    places = np.searchsorted(distinct, keys[anomalous].numpy())
    rows = np.empty((len(distinct), 3))
    rows[:, 0] = distinct
    rows[:, 1] = numbers - np.bincount(places, minlength=len(distinct))
    rows[:, 2] = np.bincount(places, weights[anomalous].numpy(), minlength=len(distinct))
    return torch.from_numpy(rows)


def _merge(rows: Tensor) -> Tensor:
    """Rows of the same key added up."""
    distinct, places = rows[:, 0].unique(return_inverse=True)
    merged = torch.zeros(len(distinct), 3, dtype=torch.float64, device=rows.device)
    merged[:, 0] = distinct
    return merged.index_add_(0, places, torch.cat([torch.zeros_like(rows[:, :1]), rows[:, 1:]], dim=1))
