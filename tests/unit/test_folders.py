"""Which names of a folder are images to judge."""

from __future__ import annotations

from pathlib import Path

import pytest

from anomalib_zsclip.errors import ArgumentError
from anomalib_zsclip.images.folders import list_images
from anomalib_zsclip.images.own_results import TEMPORARY, is_temporary, note_own


def touch(*paths: Path) -> None:
    for path in paths:
        path.parent.mkdir(parents=True, exist_ok=True)
        path.touch()


def test_images_are_found_each_once_and_what_is_left_out_is_counted(tmp_path: Path) -> None:
    data, other = tmp_path / "data", tmp_path / "other"
    touch(data / "b.PNG", data / "a" / "1.jpg", data / "a" / ".2.jpg", data / ".ipynb_checkpoints" / "1.jpg")
    touch(data / "notes.txt", data / "list.csv", other / "ä b.png")
    (data / "elsewhere").symlink_to(other)
    (data / "a" / "again").symlink_to(other)
    (data / "a" / "circle").symlink_to(data)
    (data / "lost.png").symlink_to(tmp_path / "nowhere.png")
    (data / "folder.png").mkdir()
    found = list_images(data)
    names = [file.relative_to(data).as_posix() for file in found.files]
    assert names == ["a/1.jpg", "a/again/ä b.png", "b.PNG", "lost.png"] or names == [
        "a/1.jpg", "b.PNG", "elsewhere/ä b.png", "lost.png",
    ]  # fmt: skip
    assert {why: len(names) for why, names in found.left_out.items()} == {
        "hidden": 2,
        "not named as images": 2,
        "folders that were seen before under another name": 2,
    }
    text = found.describe()
    assert text.startswith(f"4 images in {data}; left out: ")
    assert "2 hidden (" in text
    assert "\n" not in text


def test_a_folder_of_links_alone_is_judged(tmp_path: Path) -> None:
    touch(tmp_path / "real" / "1.png")
    (tmp_path / "data").mkdir()
    (tmp_path / "data" / "line").symlink_to(tmp_path / "real")
    assert list_images(tmp_path / "data").files == [tmp_path / "data" / "line" / "1.png"]


def test_pictures_that_were_drawn_are_not_judged(tmp_path: Path) -> None:
    note_own(tmp_path / "results", ["images"])
    touch(tmp_path / "results" / "images" / "1.png", tmp_path / "1.png", tmp_path / "images" / "2.png")
    found = list_images(tmp_path)
    assert [file.relative_to(tmp_path).as_posix() for file in found.files] == ["1.png", "images/2.png"]
    assert list(found.left_out) == ["results of an earlier run"]


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("absent", "no such folder or file"),
        ("*.png", "is a pattern, and no folder"),
        ("notes.txt", "is no image by its name"),
        ("empty", "holds no images: 0 images in .*; left out: 1 hidden"),
    ],
)
def test_what_holds_no_images_is_said_in_one_sentence(tmp_path: Path, name: str, message: str) -> None:
    touch(tmp_path / "notes.txt", tmp_path / "empty" / ".1.png")
    with pytest.raises(ArgumentError, match=message) as caught:
        list_images(tmp_path / name)
    assert str(caught.value).startswith("data=")
    assert "\n" not in str(caught.value)


def test_folders_that_are_deleted_after_the_run_are_known(tmp_path: Path) -> None:
    assert is_temporary(tmp_path / f"{TEMPORARY}abc" / "ZsClip" / "latest")
    assert not is_temporary(tmp_path / "results")
