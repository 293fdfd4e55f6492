"""Tables of a leaderboard, with texts in their cells: each data set as a whole, then each category."""

from __future__ import annotations

import math
import re
from collections.abc import Sequence
from typing import NamedTuple

import pandas as pd

from .noise import INTERVAL
from .published_results import CATEGORIES, PUBLISHED, is_whole
from .results import COSTS, DEVIATION, METRICS, deviation_columns, metric_columns

MARGIN = 0.5
"""Points in per cent within which a number counts as reproduced: the papers round to 0.1, and other libraries and GPUs move
scores by rounding alone; a wrong file of weights or another resize moves them by more."""

WITHIN_NOISE = "≈"
"""Mark of numbers that cannot be told from the best one of their column."""


class Table(NamedTuple):
    """A table with texts in its cells.

    Attributes:
        heading: What it shows.
        columns: Headings of the columns.
        rows: Cells of each row; empty where there is nothing.
        published: Whether each row is of a paper and not measured.
    """

    heading: str
    columns: list[str]
    rows: list[list[str]]
    published: list[bool]


def tables(results: pd.DataFrame) -> list[Table]:
    """For each data set the means over its categories, with the papers' numbers where it is whole, and each category."""
    made = []
    shown = _shown_columns(results)
    measured = list(dict.fromkeys(results["dataset"]))
    beside = []
    for dataset in measured:
        rows = results[results["dataset"] == dataset]
        whole = [model for model, own in rows.groupby("model", sort=False) if is_whole(dataset, own["category"])]
        means = rows.groupby("model", sort=False)[shown].mean()
        for column in deviation_columns(results):  # categories are independent of each other
            means[column] = rows.groupby("model", sort=False)[column].agg(_deviation_of_mean)
        means.insert(0, "categories", rows.groupby("model", sort=False)["category"].nunique())
        means = means.sort_values(shown[0], ascending=False)
        body = _marked(means, [str(model) for model in means.index], ["categories", *shown])
        papers = _paper_rows(dataset, ["categories", *shown]) if whole else []
        if papers:
            beside.append(dataset)
        made.append(
            Table(
                f"{dataset}: mean over the categories",
                ["model", "categories", *map(_heading, shown)],
                body + papers,
                [False] * len(body) + [True] * len(papers),
            )
        )
        compared = reproduction(rows, dataset)
        if compared:
            made.append(compared)
        cells: list[list[str]] = []
        for category, own in rows.groupby("category"):
            own = own.sort_values(shown[0], ascending=False)  # noqa: PLW2901
            names = own["model"].astype(str)
            cells += [[str(category), *row] for row in _marked(own, list(names), shown)]
        made.append(
            Table(
                f"{dataset}: each category", ["category", "model", *map(_heading, shown)], cells, [False] * len(cells)
            )
        )
    metrics = list(METRICS)
    for dataset in dict.fromkeys(entry.dataset for entry in PUBLISHED):
        if dataset not in beside:
            papers = _paper_rows(dataset, metrics)
            what = f"means over all {len(CATEGORIES[dataset])} categories, which are not measured here"
            heading = f"{dataset}: published {what}"
            made.append(Table(heading, ["model", *map(_heading, metrics)], papers, [True] * len(papers)))
    return made


def reproduction(rows: pd.DataFrame, dataset: str) -> Table | None:
    """Measured means beside published ones of the same protocol and the whole data set; ``None`` where there are none."""
    body = []
    for entry in PUBLISHED:
        for model, own in rows.groupby("model", sort=False):
            same = entry.dataset == dataset and entry.model and re.fullmatch(entry.model, str(model))
            if not same or not is_whole(dataset, own["category"]):
                continue
            for metric, published in entry.metrics.items():
                measured = 100 * own[metric].mean() if metric in own else float("nan")
                if pd.isna(measured):
                    continue
                difference = round(measured, 1) - published
                verdict = "reproduced" if abs(difference) <= MARGIN + 1e-9 else "not reproduced"
                body.append(
                    [str(model), _heading(metric), f"{measured:.1f}", f"{published:.1f}", f"{difference:+.1f}", verdict]
                )
    if not body:
        return None
    columns = ["model", "metric", "measured", "published", "difference", "verdict"]
    return Table(f"{dataset}: against the papers, within {MARGIN} points", columns, body, [False] * len(body))


def _shown_columns(results: pd.DataFrame) -> list[str]:
    costs = [name for name in COSTS if name in results and results[name].notna().any()]
    if "milliseconds_per_image" in costs:
        costs = [name for name in costs if name != "test_duration"]
    return [*metric_columns(results), *costs]


def _heading(column: str) -> str:
    return METRICS.get(column) or COSTS.get(column) or column.replace("_", " ")


def _marked(rows: pd.DataFrame, names: Sequence[str], columns: Sequence[str]) -> list[list[str]]:
    """Cells of measured rows, each with its name: numbers, their intervals, and marks of those that equal the best one."""
    cells = [[name] for name in names]
    for column in columns:
        deviations = rows[column + DEVIATION] if column + DEVIATION in rows else pd.Series(float("nan"), rows.index)
        best = rows[column].argmax() if rows[column].notna().any() and column in METRICS else None
        for index, (value, deviation) in enumerate(zip(rows[column], deviations, strict=True)):
            text = _number(column, value)
            if pd.notna(value) and pd.notna(deviation):
                text += f" ± {100 * INTERVAL * deviation:.1f}"
                noise = INTERVAL * math.hypot(deviation, deviations.iloc[best]) if best is not None else 0.0
                if best is not None and index != best and rows[column].iloc[best] - value <= noise:
                    text += f" {WITHIN_NOISE}"
            cells[index].append(text)
    return cells


def _deviation_of_mean(deviations: pd.Series) -> float:
    return float((deviations**2).sum(skipna=False) ** 0.5 / len(deviations))


def _number(column: str, value: float) -> str:
    if pd.isna(value):
        return ""
    if column == "categories":
        return str(int(value))
    return f"{value:.0f}" if column == "peak_memory_mb" else f"{value if column in COSTS else 100 * value:.1f}"


def _paper_rows(dataset: str, columns: Sequence[str]) -> list[list[str]]:
    return [
        [
            f"{entry.method} [published: {entry.source}]",
            *(f"{entry.metrics[column]:.1f}" if column in entry.metrics else "" for column in columns),
        ]
        for entry in PUBLISHED
        if entry.dataset == dataset
    ]


NOTES = (
    "Metrics are in per cent. Rows marked [published] repeat numbers of the papers; they were not measured here, and "
    "their backbones, image sizes and metrics' details may differ.",
    f"± is half of the 95 % interval over other test images of the same kind (bootstrap over images). {WITHIN_NOISE} marks "
    "numbers whose distance from the best one of their column is within the noise of both, taken as independent: the order "
    "of these says nothing. Differences between data sets and seeds come on top.",
    "pixel PRO (published) is the overlap of regions as the published programs compute it (200 thresholds, rescaled), which "
    "AnomalyCLIP, CLIP-AD and Crane report; pixel AUPRO (exact) is that of MVTec and anomalib, which WinCLIP reports. They "
    "differ by up to 0.2, and a number of one kind is not comparable with a number of the other.",
    "ms / image is the time of the model in the batches of the test, without loading, resizing and metrics. Peak memory "
    "is that of the GPU, or of the whole process on a CPU. Learning is the time of fit: for zero-shot models the "
    "preparation of the text side.",
)

TEXT_COLUMNS = ("model", "category", "metric", "verdict")
"""Columns that read from the left; all others hold numbers."""
