"""How far a metric would move with other images: its standard deviation over bootstrap samples of the images.

An image is drawn with all its pixels, since pixels of one image are not independent. Of each image at most
:data:`PIXELS_OF_A_KIND` normal and as many anomalous pixels are kept, each with the weight of those that it stands for: that
is enough for a standard deviation, and 200 samples of 100 images take seconds.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import numpy as np
import torch
from torch import Tensor

from .metrics import Counts, region_weights

SAMPLES = 200
"""Bootstrap samples: their standard deviation is known to 5 % of itself."""

PIXELS_OF_A_KIND = 1024

INTERVAL = 1.96
"""Standard deviations to each side that hold 95 % of a normal distribution."""

Formula = Callable[[Counts, int], Any]
"""A metric of counts, and of the number of regions where they weigh regions."""


class ImageSamples:
    """Scored values of images, each with its image and its weight.

    Args:
        by_region: Whether an anomalous pixel weighs one over the size of its region, as in overlaps of regions.
    """

    def __init__(self, *, by_region: bool = False) -> None:
        self.by_region = by_region
        self._values: list[np.ndarray] = []
        self._weights: list[np.ndarray] = []  # rows of normal and anomalous weight
        self._regions: list[int] = []
        self._generator = np.random.default_rng(0)

    def add(self, values: Tensor, targets: Tensor) -> None:
        """Add the values of images, ``[B]`` or ``[B, ..., H, W]``, anomalous where ``targets`` is not 0."""
        for value, target in zip(values.detach().float().cpu(), targets.detach().cpu(), strict=True):
            weights, regions = (target != 0).float(), 0
            if self.by_region:
                weights, regions = region_weights(target)
            flat, anomalous = value.flatten().numpy(), weights.flatten().numpy()
            rows = np.stack([(anomalous == 0).astype(np.float64), anomalous.astype(np.float64)])
            kept = np.concatenate([self._some(rows, kind) for kind in (0, 1)])
            self._values.append(flat[kept])
            self._weights.append(rows[:, kept])
            self._regions.append(regions)

    def deviations(self, formulas: Mapping[str, Formula]) -> dict[str, float]:
        """Standard deviation of each metric over samples of the images; not a number for fewer than two images."""
        count = len(self._values)
        if count < 2:
            return dict.fromkeys(formulas, float("nan"))
        images = np.repeat(np.arange(count), [len(values) for values in self._values])
        values, weights = np.concatenate(self._values), np.concatenate(self._weights, axis=1)
        order = np.argsort(-values, kind="stable")
        images, values, weights = images[order], values[order], weights[:, order]
        starts = np.flatnonzero(np.append(True, values[1:] != values[:-1]))
        distinct = torch.from_numpy(values[starts])
        found: dict[str, list[float]] = {name: [] for name in formulas}
        for _ in range(SAMPLES):
            times = np.bincount(self._generator.integers(0, count, count), minlength=count)
            summed = np.add.reduceat(weights * times[images], starts, axis=1)
            counts = Counts(distinct, *torch.from_numpy(summed))
            if not all(float(part.sum()) for part in counts[1:]):
                continue  # a sample of one kind alone defines no metric
            for name, formula in formulas.items():
                found[name].append(float(formula(counts, int(times @ self._regions))))
        return {name: float(np.nanstd(numbers)) if numbers else float("nan") for name, numbers in found.items()}

    def _some(self, rows: np.ndarray, kind: int) -> np.ndarray:
        """Places of at most so many values of a kind; those that are kept take over the weight of the others."""
        places = np.flatnonzero(rows[kind])
        if len(places) <= PIXELS_OF_A_KIND:
            return places
        kept = self._generator.choice(places, PIXELS_OF_A_KIND, replace=False)
        rows[kind, kept] *= rows[kind, places].sum() / rows[kind, kept].sum()
        return kept
