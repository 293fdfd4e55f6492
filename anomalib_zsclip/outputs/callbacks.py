"""Where the callbacks of regions and report stand among the others."""

from __future__ import annotations

from collections.abc import Sequence

from anomalib.post_processing import PostProcessor
from lightning.pytorch import Callback

from .region_files import RegionFiles
from .report import ReportPage


def with_results(callbacks: Sequence[Callback], min_region: float | None, *, report: bool) -> list[Callback]:
    """Callbacks with those of regions and report in their places.

    Regions come after the post-processor, which scales the maps, and before the visualizer, which draws the boxes. The
    report comes last: it shows what the others made.

    Args:
        callbacks: All others, in order.
        min_region: Least share of the picture that makes a region; ``None`` for no regions.
        report: Whether to write the report.
    """
    found = list(callbacks)
    if min_region is not None:
        after = [index for index, callback in enumerate(found) if isinstance(callback, PostProcessor)]
        found.insert(after[-1] + 1 if after else 0, RegionFiles(min_region))
    return [*found, *([ReportPage()] if report else [])]
