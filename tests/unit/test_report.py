"""The report holds what the run found, whatever the files are called and however the run ended."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any
from urllib.parse import unquote

import pytest
import torch
from scipy import stats

from anomalib_zsclip.outputs import MonotonePostProcessor
from anomalib_zsclip.outputs.false_alarms import SHARES, choices, interval, intervals
from anomalib_zsclip.outputs.report.page import embed
from tests.report_runs import make_batch, make_module, make_trainer, read_page, read_table, run_callbacks, save_pictures

HOSTILE = (
    'quote".png',
    "it's.png",
    "<script>alert(1)<",
    "</script><b>.png",
    "<!--.png",
    "Ümläut 瓶.png",
    "a&b;#?%41.png",
    "x" * 200 + ".png",
    "{{ 7*7 }}.png",
    "back\\slash.png",
    "line\u2028end.png",
    "bad\udcff.png",
)
"""Names of files that have broken pages."""


@pytest.mark.parametrize("text", HOSTILE)
def test_no_text_can_end_the_block_of_data(text: str) -> None:
    block = embed({"path": text})
    assert "<" not in block
    assert block.isascii()
    assert json.loads(block) == {"path": text}


def test_what_is_no_number_is_null() -> None:
    assert json.loads(embed([{"a": math.nan}, math.inf, (1.5, 2)])) == [{"a": None}, None, [1.5, 2]]


@pytest.mark.parametrize("name", HOSTILE)
def test_a_page_of_strange_names_links_to_their_pictures(tmp_path: Path, name: str) -> None:
    names = [f"{name}/{name[:60]}.png" if len(name) < 100 else name, "plain.png"]
    paths = save_pictures(tmp_path / "in", names)
    run_callbacks(tmp_path / "out", [make_batch(paths, [0.6, 0.2], words=[name, ""])])
    data = read_page(tmp_path / "out")
    row = data["rows"][0]
    assert row["path"] == names[0]
    assert row["words"] == name
    picture = tmp_path / "out" / unquote(row["picture"], errors="surrogateescape")
    assert picture.is_file()
    page = (tmp_path / "out" / "report.html").read_text(encoding="utf-8")
    assert page.count("</script>") == 2
    assert "alert(1)<" not in page


def test_rows_equal_the_table(tmp_path: Path) -> None:
    scores, labels = [0.1, 0.50000006, 0.5, 0.9], [0, 1, 0, 1]
    paths = save_pictures(tmp_path / "in", ["a/1.png", "a/2.png", "b/1.png", "b/2.png"])
    words = ["hole (0.50), cut (0.20)", "", "cut (0.90)", "hole (0.30)"]
    parts = [(paths[at], scores[at], labels[at], words[at]) for at in (slice(3), slice(3, 4))]
    run_callbacks(tmp_path / "out", [make_batch(*part) for part in parts])
    rows, table = read_page(tmp_path / "out")["rows"], read_table(tmp_path / "out")
    assert [row["path"] for row in rows] == ["a/1.png", "a/2.png", "b/1.png", "b/2.png"]
    assert [f"{row['score']:.6f}" for row in rows] == [line["pred_score"] for line in table]
    assert [str(row["flagged"]) for row in rows] == [line["pred_label"] for line in table]
    assert [row["words"] for row in rows] == [line["explanation"] for line in table]
    assert [row["truth"] for row in rows] == labels
    threshold = read_page(tmp_path / "out")["run"]["threshold"]
    decided = [int(torch.tensor(row["score"]) > torch.tensor(threshold)) for row in rows]
    assert decided == [row["flagged"] for row in rows], "scores have enough digits to decide again"
    assert [len(row["regions"]) for row in rows] == [0, 1, 0, 1]
    assert rows[3]["size"] == [24, 16]
    x, y, width, height, peak, share, name, *box = rows[3]["regions"][0]
    assert (x, y, width, height) == (0, 0, 0.375, 0.25)
    assert (peak, share, name, box) == (0.9, 24 / 256, "", [0, 0, 9, 4])


def test_scores_that_are_no_numbers_and_missing_labels(tmp_path: Path) -> None:
    paths = save_pictures(tmp_path / "in", ["1.png", "2.png"])
    run_callbacks(tmp_path / "out", [make_batch(paths, [math.nan, 0.7])])
    first, second = read_page(tmp_path / "out")["rows"]
    assert (first["score"], first["flagged"], first["truth"]) == (None, None, None)
    assert (second["flagged"], second["truth"]) == (1, None)


def test_one_picture_and_no_pictures_drawn(tmp_path: Path) -> None:
    paths = save_pictures(tmp_path / "in", ["1.png"])
    run_callbacks(tmp_path / "out", [make_batch(paths, [0.7])], pictures=False, regions=False)
    (row,) = read_page(tmp_path / "out")["rows"]
    assert row["path"] == "1.png"
    assert "picture" not in row
    assert "regions" not in row


def test_a_picture_that_was_not_drawn_is_not_linked(tmp_path: Path) -> None:
    paths = save_pictures(tmp_path / "in", ["1.png"])
    batches = [make_batch(paths, [0.7]), make_batch([tmp_path / "gone" / "2.png"], [0.8])]
    run_callbacks(tmp_path / "other", batches, interrupt=True)
    assert [bool(row["picture"]) for row in read_page(tmp_path / "other")["rows"]] == [True, False]


def test_an_interrupted_run_leaves_a_page_of_what_is_there(tmp_path: Path) -> None:
    paths = save_pictures(tmp_path / "in", ["1.png", "2.png"])
    run_callbacks(tmp_path / "out", [make_batch(paths[:1], [0.7])], interrupt=True)
    data = read_page(tmp_path / "out")
    assert [row["path"] for row in data["rows"]] == ["1.png"]
    assert data["run"]["complete"] is False
    run_callbacks(tmp_path / "out", [make_batch(paths, [0.7, 0.6])])
    assert read_page(tmp_path / "out")["run"]["complete"] is True


def test_a_run_that_ends_before_the_first_batch_leaves_the_page_of_the_run_before(tmp_path: Path) -> None:
    run_callbacks(tmp_path / "out", [], interrupt=True)
    assert not (tmp_path / "out" / "report.html").exists()


@pytest.mark.parametrize("name", ["report.html", "regions.json"])
def test_the_first_of_two_processes_writes_the_images_of_both_in_their_order(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str
) -> None:
    from anomalib_zsclip.outputs import gathering

    paths = save_pictures(tmp_path / "in", ["1.png", "2.png", "3.png"])
    dealt = {0: [paths[0], paths[2]], 1: [paths[1], paths[0]]}  # the first again, so that both have two
    seen: list[Any] = []

    def all_gather(found: list[Any], rows: list[Any]) -> None:
        seen.append(rows)
        found[:] = [rows, rows] if len(seen) <= 2 else [rows, seen[len(seen) - 3]]

    monkeypatch.setattr(gathering.distributed, "is_initialized", lambda: True)
    monkeypatch.setattr(gathering.distributed, "all_gather_object", all_gather)
    for rank in (1, 0):
        trainer = make_trainer(tmp_path / "out", global_rank=rank, world_size=2)
        run_callbacks(tmp_path / "out", [make_batch(dealt[rank], [0.7, 0.6])], trainer=trainer, pictures=False)
        assert (tmp_path / "out" / name).exists() is (rank == 0)
    if name == "report.html":
        rows = read_page(tmp_path / "out")["rows"]
    else:
        rows = json.loads((tmp_path / "out" / name).read_text())["images"]
    assert [Path(row["path"]).name for row in rows] == ["1.png", "2.png", "3.png"]
    assert not list((tmp_path / "out").glob("report_rank*"))


def test_an_interrupted_process_writes_a_page_of_its_own(tmp_path: Path) -> None:
    paths = save_pictures(tmp_path / "in", ["1.png"])
    trainer = make_trainer(tmp_path / "out", global_rank=1, world_size=2)
    run_callbacks(tmp_path / "out", [make_batch(paths, [0.7])], trainer=trainer, interrupt=True)
    assert {path.name for path in (tmp_path / "out").iterdir() if path.is_file()} == {
        "predictions_rank1.csv", "report_rank1.html", "regions_rank1.json", "regions_rank1.csv",
    }  # fmt: skip


def test_the_page_says_what_produced_it(tmp_path: Path) -> None:
    paths = save_pictures(tmp_path / "in", ["1.png"])
    trainer = make_trainer(
        tmp_path / "out", callback_metrics={"image_AUROC": torch.tensor(0.75), "x": torch.tensor(math.nan)}
    )
    module = make_module(hparams={"k_shot": 4, "heads": ["sdp", "crane"], "visualizer": True, "seed": None})
    module.post_processor = MonotonePostProcessor(threshold=0.63)
    run_callbacks(tmp_path / "out", [make_batch(paths, [0.7])], trainer=trainer, module=module)
    run = read_page(tmp_path / "out")["run"]
    assert run["metrics"] == {"image_AUROC": 0.75}
    assert run["arguments"] == {"k_shot": "4", "heads": "sdp, crane"}
    assert run["threshold"] == 0.63
    assert "the user" in run["decisions"]
    assert run["good"] is None
    assert run["versions"]["anomalib"]


# ---------------------------------------------------------------------- false alarms as the knob
def decided_from(scores: list[float]) -> MonotonePostProcessor:
    post_processor = MonotonePostProcessor(false_alarms=0.1)
    post_processor.decide_from_normal(torch.tensor(scores), torch.tensor(scores))
    return post_processor


def test_each_choice_is_the_threshold_that_the_argument_would_give() -> None:
    scores = torch.rand(40, generator=torch.Generator().manual_seed(0)).tolist()
    post_processor = decided_from(scores)
    table = choices(post_processor)
    assert [choice.false_alarms for choice in table] == list(SHARES)
    chosen = next(choice for choice in table if choice.false_alarms == 0.1)
    assert chosen.threshold == pytest.approx(0.5), "0.1 is what the scale was made with"
    assert chosen.exceeding == 40 - math.ceil(41 * 0.9)
    assert (chosen.low, chosen.high) == interval(chosen.exceeding, 40)
    assert [choice.threshold for choice in table] == sorted(choice.threshold for choice in table)
    raw = sorted(scores)[math.ceil(41 * 0.8) - 1]
    assert sum(score > raw for score in scores) == table[0].exceeding


def test_intervals_are_exact_and_wide_for_few_parts() -> None:
    low, high = interval(0, 5)
    assert (low, high) == (0, pytest.approx(1 - 0.025 ** (1 / 5)))
    low, high = interval(2, 30)
    assert stats.binom.sf(1, 30, low) == pytest.approx(0.025)
    assert stats.binom.cdf(2, 30, high) == pytest.approx(0.025)
    assert intervals(3) == [interval(count, 3) for count in range(4)]
    assert interval(0, 0) == (0, 1)


def test_the_page_has_the_good_parts_on_the_scale_of_the_scores(tmp_path: Path) -> None:
    paths = save_pictures(tmp_path / "in", ["1.png"])
    module = make_module(post_processor=decided_from([0.3, 0.1, 0.2, 0.25]))
    run_callbacks(tmp_path / "out", [make_batch(paths, [0.7])], module=module)
    good = read_page(tmp_path / "out")["run"]["good"]
    assert good["scores"] == sorted(good["scores"])
    assert len(good["scores"]) == 4
    assert max(good["scores"]) < 0.5, "the threshold lies beyond all of so few"
    assert len(good["intervals"]) == 5
    assert [choice["false_alarms"] for choice in good["choices"]] == list(SHARES)


@pytest.mark.parametrize("scores", [[], [0.3]])
def test_without_good_parts_there_is_no_table(scores: list[float]) -> None:
    post_processor = MonotonePostProcessor()
    if scores:
        post_processor.decide_from_normal(torch.tensor(scores), torch.tensor(scores))
    assert choices(post_processor) == []
    with pytest.raises(ValueError, match="at least two"):
        post_processor.threshold_for(0.1)


def test_unlabelled_images_are_not_shown_as_good_parts(tmp_path: Path) -> None:
    post_processor = MonotonePostProcessor()
    scores = torch.tensor([0.1, 0.12, 0.15, 0.2, 0.22, 0.9])
    post_processor.decide_from_folder(scores, scores, expected_defects=0.1)
    assert choices(post_processor) == []
    paths = save_pictures(tmp_path / "in", ["1.png"])
    run_callbacks(tmp_path / "out", [make_batch(paths, [0.7])], module=make_module(post_processor=post_processor))
    assert read_page(tmp_path / "out")["run"]["good"] is None
