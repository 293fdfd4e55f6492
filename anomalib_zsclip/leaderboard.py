"""Command ``python -m anomalib_zsclip.leaderboard``: results of ``anomalib benchmark`` as Markdown and as a web page.

The page is one file without outside references: tables that sort by a click on a heading, a plot of accuracy against
time, and the numbers that the papers publish, marked as such.
"""

from __future__ import annotations

import argparse
import ast
import html
import io
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

import matplotlib as mpl
import pandas as pd
from matplotlib.figure import Figure
from matplotlib.ticker import LogFormatter

from anomalib_zsclip.errors import ArgumentError

METRICS = {
    "image_AUROC": "image AUROC",
    "image_AveragePrecision": "image AP",
    "image_F1Max": "image F1-max",
    "pixel_AUROC": "pixel AUROC",
    "pixel_F1Max": "pixel F1-max",
    "pixel_AUPRO": "pixel AUPRO",
}
"""Metrics of the zero-shot papers in their order; others of a file follow. All are shown in per cent."""
COSTS = {
    "milliseconds_per_image": "ms / image",
    "peak_memory_mb": "peak memory (MB)",
    "fit_duration": "learning (s)",
    "test_duration": "test (s)",
}
DATASETS = {"mvtecad": "MVTecAD", "mvtec": "MVTecAD", "visa": "Visa"}
KEYS = ["model", "dataset", "category"]


class Published(NamedTuple):
    """Numbers of a paper in per cent, zero-shot, mean over the categories of a data set."""

    method: str
    dataset: str
    source: str
    metrics: dict[str, float]


def _published(method: str, dataset: str, source: str, **metrics: float) -> Published:
    return Published(method, dataset, source, metrics)


WINCLIP = "Jeong et al., CVPR 2023, arXiv 2303.14814"
ANOMALY_CLIP = "Zhou et al., ICLR 2024, arXiv 2310.18961"
CLIP_AD = "Chen et al., arXiv 2311.00453 (WinCLIP's numbers and the differences in the abstract)"
PUBLISHED = [
    _published("WinCLIP", "MVTecAD", WINCLIP, image_AUROC=91.8, pixel_AUROC=85.1, pixel_F1Max=31.7, pixel_AUPRO=64.6),
    _published("CLIP-AD SDP", "MVTecAD", CLIP_AD, pixel_F1Max=35.9, pixel_AUPRO=75.3),
    _published("CLIP-AD SDP+", "MVTecAD", CLIP_AD, pixel_F1Max=40.0, pixel_AUPRO=85.1),
    _published("AnomalyCLIP", "MVTecAD", ANOMALY_CLIP, image_AUROC=91.5, pixel_AUROC=91.1, pixel_AUPRO=81.4),
    _published("WinCLIP", "Visa", WINCLIP, image_AUROC=78.1, pixel_AUROC=79.6, pixel_AUPRO=56.8),
    _published("AnomalyCLIP", "Visa", ANOMALY_CLIP, image_AUROC=82.1, pixel_AUROC=95.5, pixel_AUPRO=87.0),
]


def main(arguments: Sequence[str] | None = None) -> None:
    """Write ``leaderboard.md`` and ``leaderboard.html``; mistakes end with their message and exit status 1."""
    parser = argparse.ArgumentParser(
        prog="python -m anomalib_zsclip.leaderboard",
        description="Turn results of `anomalib benchmark` into Markdown and a self-contained web page.",
    )
    parser.add_argument("results", nargs="+", type=Path, help="results.csv of anomalib benchmark; several are joined")
    parser.add_argument("--output", type=Path, default=Path(), help="folder for leaderboard.md and leaderboard.html")
    options = parser.parse_args(arguments)
    try:
        results = read_results(options.results)
        options.output.mkdir(parents=True, exist_ok=True)
        for name, text in (("leaderboard.md", to_markdown(results)), ("leaderboard.html", to_html(results))):
            (options.output / name).write_text(text, encoding="utf-8")
            print(options.output / name)
    except (ArgumentError, OSError) as error:
        parser.exit(1, f"{error}\n")


def read_results(paths: Sequence[str | Path]) -> pd.DataFrame:
    """Read and join result files.

    Args:
        paths: Files that ``anomalib benchmark`` wrote, of our configurations or any other.

    Returns:
        ``model``, ``dataset`` and ``category``, then metrics in [0, 1] and costs. Runs that differ in the seed alone are
        averaged.

    Raises:
        ArgumentError: If a file is missing, is no table, or has no metrics.
    """
    frames = [_read_file(Path(path)) for path in paths]
    joined = pd.concat(frames, ignore_index=True)
    columns = [*_metric_columns(joined), *(name for name in COSTS if name in joined)]
    return joined.groupby(KEYS, sort=False)[columns].mean().reset_index()


def _read_file(path: Path) -> pd.DataFrame:
    if not path.is_file():
        msg = f"There is no file {path}. anomalib benchmark writes runs/benchmark/<date>/results.csv."
        raise ArgumentError(msg)
    try:
        table = pd.read_csv(path)
    except (ValueError, UnicodeDecodeError) as error:  # pandas' own errors are ValueErrors
        msg = f"{path} is not a table of comma-separated values: {error}."
        raise ArgumentError(msg) from error
    metrics = _metric_columns(table)
    if not metrics or not len(table):
        msg = f"{path} has no results of anomalib benchmark: no row, or no column image_... or pixel_... with numbers."
        raise ArgumentError(msg)
    names = pd.DataFrame(
        {
            "model": [_model_name(row) for _, row in table.iterrows()],
            "dataset": [_dataset_name(row) for _, row in table.iterrows()],
            "category": [_text(row.get("data.init_args.category")) or "all" for _, row in table.iterrows()],
        }
    )
    costs = [name for name in COSTS if name in table and pd.api.types.is_numeric_dtype(table[name])]
    return pd.concat([names, table[[*metrics, *costs]]], axis=1)


def _metric_columns(table: pd.DataFrame) -> list[str]:
    found = [
        str(name)
        for name in table
        if str(name).startswith(("image_", "pixel_")) and pd.api.types.is_numeric_dtype(table[name])
    ]
    return [name for name in METRICS if name in found] + [name for name in found if name not in METRICS]


def _model_name(row: pd.Series) -> str:
    """Class and arguments, as ``Patchcore (backbone=resnet18)``."""
    arguments: dict[str, object] = {}
    name = _text(row.get("model.init_args.model"))
    for column, value in row.items():
        key = str(column).removeprefix("model.init_args.")
        if key != column and key not in ("model", "arguments") and _text(value):
            arguments[key] = value
    if name:
        arguments.update(_merged(row.get("model.init_args.arguments")))
    else:
        name = (_text(row.get("model.class_path")) or _text(row.get("model")) or "unknown").split(".")[-1]
    settings = ", ".join(f"{key}={value}" for key, value in arguments.items())
    return f"{name} ({settings})" if settings else name


def _merged(arguments: object) -> dict[str, object]:
    """Arguments of :func:`anomalib_zsclip.comparison.comparable` from their text, a list of mappings."""
    try:
        parts = ast.literal_eval(_text(arguments) or "[]")
        return {str(key): value for part in parts for key, value in part.items()}
    except (ValueError, SyntaxError, TypeError, AttributeError):
        return {"arguments": arguments}


def _dataset_name(row: pd.Series) -> str:
    name = (_text(row.get("data.class_path")) or _text(row.get("data")) or "unknown").split(".")[-1]
    return DATASETS.get(name.lower(), name)


def _text(value: object) -> str:
    return "" if value is None or (isinstance(value, float) and pd.isna(value)) else str(value)


# ---------------------------------------------------------------------- tables
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


def _shown_columns(results: pd.DataFrame) -> list[str]:
    costs = [name for name in COSTS if name in results and results[name].notna().any()]
    if "milliseconds_per_image" in costs:
        costs = [name for name in costs if name != "test_duration"]
    return [*_metric_columns(results), *costs]


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


TEXT_COLUMNS = ("model", "category")
"""Columns that read from the left; all others hold numbers."""


def to_markdown(results: pd.DataFrame) -> str:
    """Tables as Markdown."""
    parts = ["# Leaderboard", *NOTES]
    for table in tables(results):
        lines = [
            _markdown_row(table.columns),
            _markdown_row(["---" if column in TEXT_COLUMNS else "---:" for column in table.columns]),
        ]
        lines += [
            _markdown_row([f"*{row[0]}*", *row[1:]] if published else row)
            for row, published in zip(table.rows, table.published, strict=True)
        ]
        parts += [f"## {table.heading}", "\n".join(lines)]
    return "\n\n".join(parts) + "\n"


def _markdown_row(cells: Sequence[str]) -> str:
    return "| " + " | ".join(cell.replace("|", "\\|").replace("\n", " ") for cell in cells) + " |"


# ---------------------------------------------------------------------- web page
STYLE = """
body { font: 15px/1.5 system-ui, sans-serif; margin: 2rem auto; max-width: 96rem; padding: 0 1rem; color: #1b1f24; }
table { border-collapse: collapse; margin: 0.5rem 0 2rem; } .scroll { overflow-x: auto; }
th, td { padding: 0.3rem 0.7rem; border-bottom: 1px solid #d8dee4; text-align: right; white-space: nowrap; }
th:first-child, td:first-child, .text { text-align: left; white-space: normal; }
th { cursor: pointer; background: #f6f8fa; position: sticky; top: 0; } th:hover { background: #eaeef2; }
th[aria-sort=ascending]::after { content: " ▲"; } th[aria-sort=descending]::after { content: " ▼"; }
tr.published { color: #57606a; font-style: italic; background: #fff8e5; } svg { max-width: 100%; height: auto; }
"""
SCRIPT = """
for (const table of document.querySelectorAll("table")) {
  table.tHead.addEventListener("click", (event) => {
    const head = event.target.closest("th");
    if (!head) return;
    const up = head.getAttribute("aria-sort") === "descending";
    for (const other of head.parentNode.cells) other.removeAttribute("aria-sort");
    head.setAttribute("aria-sort", up ? "ascending" : "descending");
    const value = (row) => row.cells[head.cellIndex].textContent;
    const rows = [...table.tBodies[0].rows].sort((a, b) => {
      const [x, y] = [value(a), value(b)];
      if (x === "" || y === "") return (x === "") - (y === "");
      const order = isNaN(x) || isNaN(y) ? x.localeCompare(y) : x - y;
      return up ? order : -order;
    });
    table.tBodies[0].append(...rows);
  });
}
"""


def to_html(results: pd.DataFrame) -> str:
    """A web page in one file."""
    parts = [f"<p>{html.escape(note)}</p>" for note in NOTES]
    parts.append(speed_accuracy_plot(results))
    parts += [_html_table(table) for table in tables(results)]
    return (
        '<!DOCTYPE html>\n<html lang="en">\n<head>\n<meta charset="utf-8">\n'
        '<meta name="viewport" content="width=device-width, initial-scale=1">\n'
        f"<title>Leaderboard</title>\n<style>{STYLE}</style>\n</head>\n<body>\n<h1>Leaderboard</h1>\n"
        + "\n".join(parts)
        + f"\n<script>{SCRIPT}</script>\n</body>\n</html>\n"
    )


def _html_table(table: Table) -> str:
    classes = {column: ' class="text"' if column in TEXT_COLUMNS else "" for column in table.columns}
    head = "".join(f'<th scope="col"{classes[column]}>{html.escape(column)}</th>' for column in table.columns)
    lines = []
    for row, published in zip(table.rows, table.published, strict=True):
        cells = "".join(
            _element("td", html.escape(cell), "text" if column in TEXT_COLUMNS else "")
            for column, cell in zip(table.columns, row, strict=True)
        )
        lines.append(_element("tr", cells, "published" if published else ""))
    body = "\n".join(lines)
    return (
        f'<h2>{html.escape(table.heading)}</h2>\n<div class="scroll"><table>\n<thead><tr>{head}</tr></thead>\n'
        f"<tbody>\n{body}\n</tbody></table></div>"
    )


def _element(tag: str, content: str, css_class: str) -> str:
    return f'<{tag} class="{css_class}">{content}</{tag}>' if css_class else f"<{tag}>{content}</{tag}>"


def speed_accuracy_plot(results: pd.DataFrame) -> str:
    """Image and pixel AUROC against time per image as SVG, each point the mean of a model over all categories.

    Returns:
        An ``svg`` element; empty where the results have no time per image or no AUROC.
    """
    metrics = [name for name in ("image_AUROC", "pixel_AUROC") if name in results]
    if "milliseconds_per_image" not in results or not metrics:
        return ""
    points = results.groupby("model", sort=False)[["milliseconds_per_image", *metrics]].mean()
    figure = Figure(figsize=(5.5 * len(metrics), 4.2), layout="constrained")
    axes = figure.subplots(1, len(metrics), squeeze=False)[0]
    for axis, metric in zip(axes, metrics, strict=True):
        for model, point in points.iterrows():
            axis.scatter(
                point["milliseconds_per_image"], 100 * point[metric], s=60, label=str(model).replace("$", r"\$")
            )
        axis.set(xscale="log", xlabel="time per image (ms)", ylabel=f"{METRICS[metric]} (%)")
        for ticks in (axis.xaxis.set_major_formatter, axis.xaxis.set_minor_formatter):
            ticks(LogFormatter(labelOnlyBase=False, minor_thresholds=(2, 0.5)))
        axis.grid(visible=True, alpha=0.3)
    figure.legend(*axes[0].get_legend_handles_labels(), loc="outside lower center", fontsize=8, ncols=2, frameon=False)
    drawn = io.StringIO()
    with mpl.rc_context({"svg.hashsalt": "leaderboard"}):  # the same input gives the same file
        figure.savefig(drawn, format="svg", metadata={"Date": None})
    text = drawn.getvalue()
    return text[text.index("<svg") :]


if __name__ == "__main__":
    main()
