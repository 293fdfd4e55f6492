"""A run finds a clean place: nothing of an earlier one is overwritten, and nothing of anybody else is moved."""

from __future__ import annotations

from pathlib import Path

import pytest
from PIL import Image

from anomalib_zsclip.errors import ArgumentError
from anomalib_zsclip.images.own_results import note_own
from anomalib_zsclip.outputs.fresh_results import set_aside
from anomalib_zsclip.outputs.paths import ResultPaths


def write(*paths: Path) -> None:
    for path in paths:
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(path.name)


def run(folder: Path, *names: str) -> Path | None:
    moved = set_aside(folder)
    note_own(folder, ["images", "anomaly_maps"])
    write(*(folder / name for name in names))
    return moved


def files(folder: Path) -> set[str]:
    found = (path for path in folder.rglob("*") if path.is_file() and not path.name.startswith("."))
    return {path.relative_to(folder).as_posix() for path in found}


def test_each_run_keeps_its_pictures_beside_its_table(tmp_path: Path) -> None:
    write(tmp_path / "weights" / "model.ckpt", tmp_path / "config.yaml")
    assert run(tmp_path, "predictions.csv", "images/1.png", "anomaly_maps/1.tiff") is None
    assert run(tmp_path, "predictions.csv", "predictions_rank1.csv", "report.html", "images/2.png") is not None
    assert run(tmp_path, "predictions.csv") == tmp_path / "earlier_runs" / "2"
    assert files(tmp_path) == {
        *("weights/model.ckpt", "config.yaml", "predictions.csv"),
        *(f"earlier_runs/1/{name}" for name in ("predictions.csv", "images/1.png", "anomaly_maps/1.tiff")),
        *(
            f"earlier_runs/2/{name}"
            for name in ("predictions.csv", "predictions_rank1.csv", "report.html", "images/2.png")
        ),
    }


def test_a_folder_of_the_users_stays_where_it_is(tmp_path: Path) -> None:
    write(tmp_path / "images" / "own.png", tmp_path / "earlier_runs" / "7" / "x")
    run(tmp_path, "predictions.csv")
    assert run(tmp_path, "predictions.csv") == tmp_path / "earlier_runs" / "8"
    assert (tmp_path / "images" / "own.png").is_file()


def test_images_to_judge_are_never_moved(tmp_path: Path) -> None:
    run(tmp_path, "images/1.png")
    with pytest.raises(ArgumentError, match=r"1\.png lies in .*images.*default_root_dir"):
        set_aside(tmp_path, [tmp_path / "images" / "1.png"])
    assert (tmp_path / "images" / "1.png").is_file()


@pytest.mark.parametrize(("kind", "name"), [("picture", "images/1.png"), ("map", "anomaly_maps/1.tiff")])
def test_no_image_of_a_run_is_written_over(tmp_path: Path, kind: str, name: str) -> None:
    (tmp_path / name).parent.mkdir()
    Image.new("RGB", (4, 4)).save(tmp_path / name)
    with pytest.raises(ArgumentError, match=f"The {kind} of .* would be written over"):
        ResultPaths(tmp_path, [tmp_path / name]).check(kind)
    ResultPaths(tmp_path / "elsewhere", [tmp_path / name]).check(kind)
