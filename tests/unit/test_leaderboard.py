"""The leaderboard shows what its files say, the papers' numbers as such, and nothing else."""

from __future__ import annotations

import re
from collections.abc import Sequence
from html.parser import HTMLParser
from pathlib import Path

import pandas as pd
import pytest

from anomalib_zsclip.benchmark.leaderboard import main, to_markdown
from anomalib_zsclip.benchmark.page import to_html
from anomalib_zsclip.benchmark.published_results import CATEGORIES, PUBLISHED
from anomalib_zsclip.benchmark.results import read_results
from anomalib_zsclip.benchmark.tables import tables
from anomalib_zsclip.errors import ArgumentError

VOID = {"meta", "path", "use", "link", "br"}


class Page(HTMLParser):
    """Checks that elements nest, and collects tables and outside references."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.open: list[str] = []
        self.rows: list[list[str]] = []
        self.references: list[str] = []
        self.feed(text)
        self.close()
        assert not self.open

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.references += [value for key, value in attrs if key in ("src", "href", "xlink:href") and value]
        if tag not in VOID:
            self.open.append(tag)
        if tag == "tr":
            self.rows.append([])
        if tag in ("td", "th"):
            self.rows[-1].append("")

    def handle_endtag(self, tag: str) -> None:
        if tag not in VOID:
            assert self.open.pop() == tag

    def handle_data(self, data: str) -> None:
        if self.open and self.open[-1] in ("td", "th"):
            self.rows[-1][-1] += data


def write(
    path: Path,
    dataset: str = "MVTecAD",
    models: tuple[str, ...] = ("ZsClip", "Patchcore"),
    categories: Sequence[str] = ("bottle", "cable"),
    **columns: object,
) -> Path:
    rows = [
        {
            "model.class_path": "anomalib_zsclip.benchmark.comparable",
            "model.init_args.model": model,
            "model.init_args.arguments": "[{'backbone': 'builtin'}]" if model == "ZsClip" else "[]",
            "data.class_path": dataset,
            "data.init_args.category": category,
            "fit_duration": 2.0,
            "test_duration": 7.0,
            "image_AUROC": 0.9 - 0.1 * number - 0.02 * index,
            "pixel_AUPRO": 0.5,
            "milliseconds_per_image": 10.0 + 90 * number,
            "peak_memory_mb": 1000.4,
            **columns,
        }
        for number, model in enumerate(models)
        for index, category in enumerate(categories)
    ]
    pd.DataFrame(rows).to_csv(path, index=False)
    return path


def test_means_are_over_categories_and_sorted_by_the_first_metric(tmp_path: Path) -> None:
    means = tables(read_results([write(tmp_path / "results.csv")]))[0]
    assert means.columns == [
        "model", "categories", "image AUROC", "pixel AUPRO (exact)", "ms / image", "peak memory (MB)", "learning (s)",
    ]  # fmt: skip
    assert means.rows[0] == ["ZsClip (backbone=builtin)", "2", "89.0", "50.0", "10.0", "1000", "2.0"]
    assert means.rows[1] == ["Patchcore", "2", "79.0", "50.0", "100.0", "1000", "2.0"]


def test_published_rows_are_marked_and_cited_beside_the_whole_data_set(tmp_path: Path) -> None:
    means, _, *others = tables(
        read_results([write(tmp_path / "results.csv", categories=sorted(CATEGORIES["MVTecAD"]))])
    )
    papers = [row for row, published in zip(means.rows, means.published, strict=True) if published]
    assert len(papers) == sum(entry.dataset == "MVTecAD" for entry in PUBLISHED)
    assert papers[0][0] == "WinCLIP [published: Jeong et al., CVPR 2023, arXiv 2303.14814]"
    assert papers[0][1:4] == ["", "91.8", "64.6"]
    assert [table.heading for table in others] == [
        "Visa: published means over all 12 categories, which are not measured here"
    ]
    assert all(others[0].published)


@pytest.mark.parametrize("categories", [["bottle", "cable"], [f"own part {index}" for index in range(15)]])
def test_a_part_or_another_folder_gets_no_published_rows(tmp_path: Path, categories: list[str]) -> None:
    means, _, *others = tables(read_results([write(tmp_path / "results.csv", categories=categories)]))
    assert not any(means.published)
    assert [table.heading.split(":")[0] for table in others] == ["MVTecAD", "Visa"]
    assert all("not measured here" in table.heading for table in others)


def test_intervals_are_shown_and_differences_within_noise_are_marked(tmp_path: Path) -> None:
    path = write(tmp_path / "results.csv", models=("A", "B", "C"))  # image AUROC of 89, 79 and 69 %
    table = pd.read_csv(path)
    table["image_AUROC_sd"] = 0.05
    table.to_csv(path, index=False)
    means, categories, *_ = tables(read_results([path]))
    assert [row[2] for row in means.rows] == ["89.0 ± 6.9", "79.0 ± 6.9", "69.0 ± 6.9"]  # 1.96 * 5 / sqrt(2)
    assert "image AUROC sd" not in " ".join(means.columns)
    assert [row[2] for row in categories.rows[:3]] == ["90.0 ± 9.8", "80.0 ± 9.8 ≈", "70.0 ± 9.8"]
    page = to_html(read_results([path]))
    assert "parseFloat" in page
    assert "80.0 ± 9.8 ≈" in page


def test_each_category_has_its_row(tmp_path: Path) -> None:
    categories = tables(read_results([write(tmp_path / "results.csv")]))[1]
    assert [row[:3] for row in categories.rows] == [
        ["bottle", "ZsClip (backbone=builtin)", "90.0"],
        ["bottle", "Patchcore", "80.0"],
        ["cable", "ZsClip (backbone=builtin)", "88.0"],
        ["cable", "Patchcore", "78.0"],
    ]


def test_several_files_are_joined_and_seeds_averaged(tmp_path: Path) -> None:
    first = write(tmp_path / "a.csv", models=("ZsClip",))
    second = write(tmp_path / "b.csv", models=("ZsClip",), image_AUROC=0.7)
    other = write(tmp_path / "c.csv", dataset="anomalib.data.Visa")
    results = read_results([first, second, other])
    assert len(results) == 2 + 4
    assert results["image_AUROC"].iloc[0] == pytest.approx(0.8)
    assert set(results["dataset"]) == {"MVTecAD", "Visa"}


def test_results_of_an_ordinary_benchmark_are_read(tmp_path: Path) -> None:
    table = pd.DataFrame(
        {"model.class_path": ["anomalib.models.Padim"], "model.init_args.n_features": [100], "image_F1Score": [0.5]}
    )
    table.to_csv(tmp_path / "results.csv", index=False)
    results = read_results([tmp_path / "results.csv"])
    assert results.iloc[0].tolist() == ["Padim (n_features=100)", "unknown", "all", 0.5]
    assert "<svg" not in to_html(results)


def test_page_is_well_formed_self_contained_and_equals_the_markdown(tmp_path: Path) -> None:
    results = read_results([write(tmp_path / "results.csv")])
    text = to_html(results)
    page = Page(text)
    assert all(reference.startswith("#") for reference in page.references)
    assert "<svg" in text
    assert "<script>" in text
    lines = [line for line in to_markdown(results).splitlines() if line.startswith("| ") and "---" not in line]
    cells = [[cell.strip().strip("*") for cell in line.strip("|").split("|")] for line in lines]
    assert page.rows == cells


def test_names_cannot_break_page_or_table(tmp_path: Path) -> None:
    name = "<script>alert(1)</script>|$x$"
    results = read_results([write(tmp_path / "results.csv", models=(name,))])
    assert name not in to_html(results)
    assert any(row and row[0] == name for row in Page(to_html(results)).rows)
    assert re.search(r"\| <script>alert\(1\)</script>\\\|\$x\$ \|", to_markdown(results))


def test_missing_numbers_leave_empty_cells(tmp_path: Path) -> None:
    results = read_results([write(tmp_path / "a.csv"), write(tmp_path / "b.csv", "Own", image_AUROC=float("nan"))])
    assert [row[2] for row in tables(results)[2].rows] == ["", ""]


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (None, "There is no file"),
        ("", "not a table"),
        ("a,b\n1,2\n", "no results of anomalib benchmark"),
        ("image_AUROC\n", "no results of anomalib benchmark"),
        ('a\n"unfinished', "not a table"),
    ],
)
def test_wrong_files_are_named(tmp_path: Path, content: str | None, message: str) -> None:
    path = tmp_path / "results.csv"
    if content is not None:
        path.write_text(content)
    with pytest.raises(ArgumentError, match=message) as raised:
        read_results([path])
    assert str(path) in str(raised.value)


def test_command_writes_both_files(tmp_path: Path, capsys: pytest.CaptureFixture) -> None:
    main([str(write(tmp_path / "results.csv")), "--output", str(tmp_path / "new" / "folder")])
    folder = tmp_path / "new" / "folder"
    assert (folder / "leaderboard.md").read_text().startswith("# Leaderboard")
    assert (folder / "leaderboard.html").read_text().startswith("<!DOCTYPE html>")
    assert "leaderboard.html" in capsys.readouterr().out


def test_command_ends_with_the_message(tmp_path: Path, capsys: pytest.CaptureFixture) -> None:
    with pytest.raises(SystemExit) as ended:
        main([str(tmp_path / "missing.csv")])
    assert ended.value.code == 1
    assert "missing.csv" in capsys.readouterr().err


def published_run(path: Path, categories: int, **metrics: float) -> pd.DataFrame:
    """Results of AnomalyClip with the paper's CLIP and published weights."""
    rows = [
        {
            "model.init_args.model": "AnomalyClip",
            "model.init_args.arguments": "[{'backbone': 'ViT-L-14-336'}, {'checkpoint': 'published'}]",
            "data.class_path": "MVTecAD",
            "data.init_args.category": category,
            **metrics,
        }
        for category in sorted(CATEGORIES["MVTecAD"])[:categories]
    ]
    pd.DataFrame(rows).to_csv(path, index=False)
    return read_results([path])


def test_numbers_of_the_same_protocol_are_compared_with_the_papers(tmp_path: Path) -> None:
    results = published_run(tmp_path / "r.csv", 15, image_AUROC=0.9146, pixel_AUROC=0.899, pixel_OfficialPro=0.819)
    (compared,) = [table for table in tables(results) if "against the papers" in table.heading]
    name = "AnomalyClip (backbone=ViT-L-14-336, checkpoint=published)"
    assert compared.rows == [
        [name, "image AUROC", "91.5", "91.5", "+0.0", "reproduced"],
        [name, "pixel AUROC", "89.9", "91.1", "-1.2", "not reproduced"],
        [name, "pixel PRO (published)", "81.9", "81.4", "+0.5", "reproduced"],
    ]


def test_a_part_of_a_data_set_is_not_compared(tmp_path: Path) -> None:
    results = published_run(tmp_path / "r.csv", 14, image_AUROC=0.915)
    assert not [table for table in tables(results) if "against the papers" in table.heading]


@pytest.mark.parametrize("arguments", ["[{'backbone': 'builtin'}]", "[{'backbone': 'ViT-L-14-336'}]"])
def test_another_protocol_is_not_compared(tmp_path: Path, arguments: str) -> None:
    path = tmp_path / "results.csv"
    published_run(path, 15, image_AUROC=0.915)
    table = pd.read_csv(path)
    table["model.init_args.arguments"] = arguments
    table.to_csv(path, index=False)
    assert not [table for table in tables(read_results([path])) if "against the papers" in table.heading]
