"""Tables of a leaderboard, with texts in their cells: each data set as a whole, then each category."""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import NamedTuple

import pandas as pd

from .published_results import CATEGORIES, PUBLISHED
from .results import COSTS, METRICS, metric_columns

MARGIN = 0.5
"""Points in per cent within which a number counts as reproduced: the papers round to 0.1, and other libraries and GPUs move
scores by rounding alone; a wrong file of weights or another resize moves them by more."""


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
    """For each data set the means over its categories, with the papers' numbers, and the categories one by one."""
    made = []
    shown = _shown_columns(results)
    measured = list(dict.fromkeys(results["dataset"]))
    for dataset in measured:
        rows = results[results["dataset"] == dataset]
        means = rows.groupby("model", sort=False)[shown].mean()
        means.insert(0, "categories", rows.groupby("model", sort=False)["category"].nunique())
        means = means.sort_values(shown[0], ascending=False)
        body = [[str(model), *_cells(row, ["categories", *shown])] for model, row in means.iterrows()]
        papers = _paper_rows(dataset, ["categories", *shown])
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
        cells = [
            [str(row["category"]), str(row["model"]), *_cells(row, shown)]
            for _, row in rows.sort_values(["category", shown[0]], ascending=[True, False]).iterrows()
        ]
        made.append(
            Table(
                f"{dataset}: each category", ["category", "model", *map(_heading, shown)], cells, [False] * len(cells)
            )
        )
    metrics = list(METRICS)
    for dataset in dict.fromkeys(entry.dataset for entry in PUBLISHED):
        if dataset not in measured:
            papers = _paper_rows(dataset, metrics)
            heading = f"{dataset}: published numbers, nothing measured here"
            made.append(Table(heading, ["model", *map(_heading, metrics)], papers, [True] * len(papers)))
    return made


def reproduction(rows: pd.DataFrame, dataset: str) -> Table | None:
    """Measured means beside published ones of the same protocol, with a verdict; ``None`` where there is no such pair."""
    body = []
    for entry in PUBLISHED:
        for model, own in rows.groupby("model", sort=False):
            if entry.dataset != dataset or not entry.model or not re.fullmatch(entry.model, str(model)):
                continue
            count = own["category"].nunique()
            for metric, published in entry.metrics.items():
                measured = 100 * own[metric].mean() if metric in own else float("nan")
                if pd.isna(measured):
                    continue
                difference = round(measured, 1) - published
                if count < CATEGORIES[dataset]:
                    verdict = f"only {count} of {CATEGORIES[dataset]} categories"
                else:
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


def _cells(row: pd.Series, columns: Sequence[str]) -> list[str]:
    return [_number(column, row[column]) for column in columns]


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
    "ms / image is the time of the model in the batches of the test, without loading, resizing and metrics. Peak memory "
    "is that of the GPU, or of the whole process on a CPU. Learning is the time of fit: for zero-shot models the "
    "preparation of the text side.",
)

TEXT_COLUMNS = ("model", "category", "metric", "verdict")
"""Columns that read from the left; all others hold numbers."""
