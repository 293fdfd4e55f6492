"""The table of scores has a row for each image as soon as its batch is done, and no cell that a spreadsheet would run."""

from __future__ import annotations

import csv
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from anomalib.data import ImageBatch

from anomalib_zsclip.images.folder_data import Unreadable
from anomalib_zsclip.outputs.predictions_file import COLUMNS, PredictionsFile, rows


def make_batch(paths: list[str], *, explanation: list[str] | None = None, labelled: bool = True) -> ImageBatch:
    count = len(paths)
    return ImageBatch(
        image=torch.zeros(count, 3, 8, 8),
        image_path=paths,
        pred_score=torch.linspace(0.25, 0.75, count),
        pred_label=torch.linspace(0.25, 0.75, count) > 0.5 if labelled else None,
        explanation=explanation,
    )


def make_trainer(folder: Path, rank: int = 0) -> SimpleNamespace:
    return SimpleNamespace(
        default_root_dir=str(folder), global_rank=rank, predict_loop=SimpleNamespace(return_predictions=True)
    )


def read(path: Path) -> list[list[str]]:
    with path.open(newline="", encoding="utf-8", errors="surrogateescape") as file:
        return list(csv.reader(file))


def test_each_batch_is_on_disk_when_it_is_done(tmp_path: Path) -> None:
    callback, trainer = PredictionsFile(), make_trainer(tmp_path)
    callback.on_predict_start(trainer, None)
    file = tmp_path / "predictions.csv"
    assert read(file) == [list(COLUMNS)]
    callback.on_predict_batch_end(
        trainer, None, make_batch(["a.png", "b.png"], explanation=["fine", "a hole"]), None, 0
    )
    wanted = [list(COLUMNS), ["a.png", "0.250000", "0", "fine", ""], ["b.png", "0.750000", "1", "a hole", ""]]
    assert read(file) == wanted
    callback.on_exception(trainer, None, KeyboardInterrupt())
    assert read(file) == wanted


def test_a_second_run_starts_a_new_file(tmp_path: Path) -> None:
    callback, trainer = PredictionsFile(), make_trainer(tmp_path)
    for path in ("a.png", "b.png"):
        callback.on_test_start(trainer, None)
        callback.on_test_batch_end(trainer, None, make_batch([path]), None, 0)
        callback.teardown(trainer, None, "test")
    assert [row[0] for row in read(tmp_path / "predictions.csv")] == ["path", "b.png"]


def test_unreadable_images_have_a_row_with_the_reason_each_once(tmp_path: Path) -> None:
    callback, trainer = PredictionsFile(), make_trainer(tmp_path)
    data = SimpleNamespace(unreadable=[Unreadable("=cut.png", "it is cut.")])
    trainer.predict_dataloaders = [SimpleNamespace(dataset=data)]
    callback.on_predict_start(trainer, None)
    callback.on_predict_batch_end(trainer, None, make_batch(["a.png"]), None, 0)
    data.unreadable.append(Unreadable("z.png", "+no such file."))
    callback.on_predict_end(trainer, None)
    callback.teardown(trainer, None, "predict")
    assert read(tmp_path / "predictions.csv")[1:] == [
        ["./=cut.png", "", "", "", "it is cut."],
        ["a.png", "0.250000", "0", "", ""],
        ["z.png", "", "", "", "'+no such file."],
    ]


def test_processes_write_files_of_their_own(tmp_path: Path) -> None:
    for rank in range(2):
        callback, trainer = PredictionsFile(), make_trainer(tmp_path, rank)
        callback.on_predict_start(trainer, None)
        callback.teardown(trainer, None, "predict")
    assert {path.name for path in tmp_path.iterdir()} == {"predictions.csv", "predictions_rank1.csv"}


@pytest.mark.parametrize("start", ["=", "+", "-", "@", "\t", "\r"])
def test_no_cell_is_a_formula(start: str) -> None:
    dangerous = f'{start}HYPERLINK("x")'
    ((path, _, _, explanation, _),) = rows(make_batch([dangerous], explanation=[dangerous]))
    assert path == f"./{dangerous}"
    assert explanation == f"'{dangerous}"


@pytest.mark.parametrize("path", ["a,b.png", 'a"b.png', "a\nb.png", "ä 瓶.png", "bad\udcff.png"])
def test_strange_names_survive(tmp_path: Path, path: str) -> None:
    callback, trainer = PredictionsFile(), make_trainer(tmp_path)
    callback.on_predict_start(trainer, None)
    callback.on_predict_batch_end(trainer, None, make_batch([path]), None, 0)
    callback.teardown(trainer, None, "predict")
    assert read(tmp_path / "predictions.csv")[1][0] == path


def test_without_labels_the_cells_are_empty() -> None:
    assert rows(make_batch(["a.png"], labelled=False)) == [("a.png", "0.250000", "", "", "")]


@pytest.mark.parametrize(("program", "kept"), [("/usr/bin/anomalib", False), ("anomalib.exe", False), ("my.py", True)])
def test_only_the_command_drops_predictions(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, program: str, kept: bool
) -> None:
    monkeypatch.setattr("sys.argv", [program])
    callback, trainer = PredictionsFile(), make_trainer(tmp_path)
    callback.on_predict_start(trainer, None)
    callback.teardown(trainer, None, "predict")
    assert trainer.predict_loop.return_predictions is kept
