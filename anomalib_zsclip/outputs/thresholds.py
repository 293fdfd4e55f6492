"""A threshold from the scores of good parts alone."""

from __future__ import annotations

import math

import torch
from scipy import stats
from torch import Tensor

DEFAULT_FALSE_ALARMS = 0.05
"""Share of good parts that may be flagged unless the user says another one: one in twenty."""

LEAST_SHARE = 1e-3
"""Smaller shares are taken for this one where few parts are extrapolated: the tail beyond it is not theirs to tell."""


def threshold_from_normal(scores: Tensor, false_alarms: float = DEFAULT_FALSE_ALARMS) -> Tensor:
    """Score that a good part not among the given ones exceeds with a probability of at most ``false_alarms``.

    With many parts it is an order statistic: of ``n`` exchangeable scores and one more, the new one exceeds the ``k``-th
    smallest with probability ``1 - k / (n + 1)``, whatever their distribution (conformal prediction). With few parts no
    order statistic promises that much: the largest of five is exceeded by one in six. There the threshold lies beyond the
    largest, at the upper prediction limit of a normal distribution with the mean and the spread of the scores.

    Args:
        scores: Scores of good parts, each judged without knowing itself, ``[n]`` with ``n >= 2``.
        false_alarms: The wanted share, in [0, 1); 0 takes the largest score itself.

    Returns:
        A scalar.
    """
    ordered = scores.sort().values
    count = len(ordered)
    rank = math.ceil((count + 1) * (1 - false_alarms) - 1e-9)
    if rank <= count:
        return ordered[max(rank, 1) - 1]
    if false_alarms == 0:
        return ordered[-1]
    reach = float(stats.t.ppf(1 - max(false_alarms, LEAST_SHARE), count - 1)) * math.sqrt(1 + 1 / count)
    return torch.maximum(ordered[-1], ordered.mean() + reach * ordered.std())
