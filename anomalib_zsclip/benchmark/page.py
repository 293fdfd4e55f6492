"""A leaderboard as a web page in one file without outside references."""

from __future__ import annotations

import html
import io

import matplotlib as mpl
import pandas as pd
from matplotlib.figure import Figure
from matplotlib.ticker import LogFormatter

from .results import METRICS
from .tables import NOTES, TEXT_COLUMNS, Table, tables

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
    const rows = [...table.tBodies[0].rows].sort((one, other) => {
      const [x, y] = [value(one), value(other)];
      if (x === "" || y === "") return (x === "") - (y === "");
      const [a, b] = [parseFloat(x), parseFloat(y)]; // "91.5 ± 0.4" is 91.5
      const order = head.className === "text" || isNaN(a) || isNaN(b) ? x.localeCompare(y) : a - b;
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
