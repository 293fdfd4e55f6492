"""Command ``python -m anomalib_zsclip.leaderboard``: results of ``anomalib benchmark`` as Markdown and as a web page.

The page is one file without outside references: tables that sort by a click on a heading, a plot of accuracy against
time, and the numbers that the papers publish, marked as such.
"""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from pathlib import Path

import pandas as pd

from anomalib_zsclip.errors import ArgumentError

from .page import to_html
from .results import read_results
from .tables import NOTES, TEXT_COLUMNS, tables


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


def to_markdown(results: pd.DataFrame) -> str:
    """Tables as Markdown."""
    parts = ["# Leaderboard", *NOTES]
    for table in tables(results):
        rows = [
            [f"*{row[0]}*", *row[1:]] if published else row
            for row, published in zip(table.rows, table.published, strict=True)
        ]
        cells = [[cell.replace("|", "\\|").replace("\n", " ") for cell in row] for row in rows]
        sides = ["left" if column in TEXT_COLUMNS else "right" for column in table.columns]
        frame = pd.DataFrame(cells, columns=table.columns)
        parts += [f"## {table.heading}", frame.to_markdown(index=False, colalign=sides, disable_numparse=True)]
    return "\n\n".join(parts) + "\n"


if __name__ == "__main__":
    main()
