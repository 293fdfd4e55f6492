"""What a check finds, and a check that breaks off."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from typing import Any, NamedTuple

from anomalib_zsclip.errors import ZsClipError

AGREEMENT = 1e-3
"""Largest difference of scores and maps, both in [0, 1], between two ways to compute the same in float32."""
DIFFERENCE = "largest difference"
"""Unit of a comparison of scores and maps."""
Found = Iterator[tuple[float, str, float | None]]
"""Values with their units and limits."""


class Outcome(NamedTuple):
    """One row of the table.

    Attributes:
        check: What was looked at.
        what: Model or part.
        where: Device and precision.
        value: What was found; ``None`` where nothing could be.
        unit: Of the value.
        limit: Largest value that is right; ``None`` for a measurement, which cannot be wrong.
        note: What else there is to say; the reason where there is no value.
        skipped: Whether there was nothing to look at, such as a model whose weights are not here.
    """

    check: str
    what: str
    where: str
    value: float | None
    unit: str = DIFFERENCE
    limit: float | None = None
    note: str = ""
    skipped: bool = False

    @property
    def state(self) -> str:
        """One of "passed", "FAILED", "measured" and "skipped"."""
        if self.skipped:
            return "skipped"
        if self.value is None or math.isnan(self.value):
            return "FAILED"
        if self.limit is None:
            return "measured"
        return "passed" if self.value <= self.limit else "FAILED"


def guarded(
    check: str,
    what: str,
    where: str,
    look: Callable[..., Found],
    *arguments: Any,  # noqa: ANN401
) -> Iterator[Outcome]:
    """Outcomes of ``look``; where it breaks off, one that says why, so that the other checks go on.

    What cannot be had here, such as weights, is skipped; every other error is a failure.

    Args:
        check: Of the outcomes; the next two likewise.
        what: See :class:`Outcome`.
        where: See :class:`Outcome`.
        look: Gives value, unit and limit of each outcome.
        arguments: Of ``look``.
    """
    try:
        for value, unit, limit in look(*arguments):
            yield Outcome(check, what, where, value, unit, limit)
    except (ZsClipError, ImportError) as error:
        yield Outcome(check, what, where, None, note=_in_one_line(error), skipped=True)
    except Exception as error:
        yield Outcome(check, what, where, None, note=f"{type(error).__name__}: {_in_one_line(error)}")


def _in_one_line(error: Exception) -> str:
    return " ".join(str(error).split())
