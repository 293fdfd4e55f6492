"""False alarms as the knob: what good parts say about each threshold."""

from __future__ import annotations

from dataclasses import dataclass

from scipy import stats

from .post_processing import MonotonePostProcessor

SHARES = (0.2, 0.1, 0.05, 0.02, 0.01, 0.005, 0.001)
"""Shares of false alarms that the table has a threshold for: from "rather look twice" to "stop the line"."""

CONFIDENCE = 0.95
"""Of the intervals."""


@dataclass(frozen=True)
class Choice:
    """One row of the table: a share to ask for, and what it leads to.

    Attributes:
        false_alarms: The share of good parts that may be flagged.
        threshold: The threshold that it gives, on the scale of the predictions.
        exceeding: Good parts at hand whose score exceeds it.
        low: Lower end of the interval of the share of all good parts that exceed it.
        high: Upper end.
    """

    false_alarms: float
    threshold: float
    exceeding: int
    low: float
    high: float


def interval(exceeding: int, count: int) -> tuple[float, float]:
    """Interval of a share, of which ``exceeding`` of ``count`` were seen (Clopper and Pearson: never too narrow)."""
    if not count:
        return (0.0, 1.0)
    found = stats.binomtest(exceeding, count).proportion_ci(CONFIDENCE, method="exact")
    return (float(found.low), float(found.high))


def choices(post_processor: MonotonePostProcessor) -> list[Choice]:
    """What each share of :data:`SHARES` would lead to; empty where there are fewer than two good parts."""
    scores = post_processor.good_scores.tolist()
    rows = []
    for share in SHARES if len(scores) > 1 else ():
        threshold = post_processor.threshold_for(share)
        exceeding = sum(score > threshold for score in scores)
        rows.append(Choice(share, threshold, exceeding, *interval(exceeding, len(scores))))
    return rows


def intervals(count: int) -> list[tuple[float, float]]:
    """The interval for each number from 0 to ``count`` of ``count`` good parts that exceed a threshold."""
    return [interval(exceeding, count) for exceeding in range(count + 1)]
