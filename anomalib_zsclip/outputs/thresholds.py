"""A threshold from the scores of good parts alone."""

from __future__ import annotations

import math

import torch
from scipy import stats
from torch import Tensor

from anomalib_zsclip.heads.mutual_scoring import MAD_TO_SIGMA

DEFAULT_FALSE_ALARMS = 0.05
"""Share of good parts that may be flagged unless the user says another one: one in twenty."""

DEFAULT_EXPECTED_DEFECTS = 0.1
"""Share of defective parts in an unlabelled folder unless the user says another one."""

LEAST_SHARE = 1e-3
"""Smaller shares are taken for this one where a normal distribution is fitted: few parts do not tell its tail beyond."""


def threshold_from_normal(scores: Tensor, false_alarms: float = DEFAULT_FALSE_ALARMS) -> Tensor:
    """Score that a good part not among the given ones exceeds with a probability of at most ``false_alarms``.

    With many parts it is an order statistic: of ``n`` exchangeable scores and one more, the new one exceeds the ``k``-th
    smallest with probability ``1 - k / (n + 1)``, whatever their distribution (conformal prediction). With few parts no
    order statistic promises that much: the largest of five is exceeded by one in six. There the threshold lies beyond the
    largest, at the upper prediction limit of a normal distribution with the mean and the spread of the scores.

    Args:
        scores: Scores of good parts, each judged without knowing itself, ``[n]`` with ``n >= 2``.
        false_alarms: The wanted share, in [0, 1); 0 takes the largest score itself, and beyond the largest score less than
            :data:`LEAST_SHARE` counts as that.

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


def threshold_from_folder(
    scores: Tensor, expected_defects: float, false_alarms: float = DEFAULT_FALSE_ALARMS
) -> Tensor:
    """Score that a good part of an unlabelled folder exceeds with a probability of about ``false_alarms``.

    Most parts are good, and defective ones score higher: the lower ``1 - expected_defects`` of the scores are taken for good
    ones. The threshold is that of a normal distribution with their median and their median absolute deviation, which a few
    more or fewer defects than expected hardly move.

    Args:
        scores: Scores of unlabelled parts, each judged without knowing itself, ``[n]``.
        expected_defects: Share of defective ones, in [0, 0.5).
        false_alarms: The wanted share, in [0, 1); less than :data:`LEAST_SHARE` counts as that.

    Returns:
        A scalar.
    """
    good = scores.sort().values[: math.ceil(len(scores) * (1 - expected_defects) - 1e-9)]
    centre = good.quantile(0.5)
    spread = (good - centre).abs().quantile(0.5) * MAD_TO_SIGMA
    return centre + float(stats.norm.ppf(1 - max(false_alarms, LEAST_SHARE))) * spread
