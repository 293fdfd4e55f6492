"""Reading rules: pictures as people have them become the pictures that people see, or a reason is named."""

from __future__ import annotations

import logging
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from anomalib_zsclip.errors import ArgumentError, ImageReadError
from anomalib_zsclip.images.checks import check_for_plain_reading
from anomalib_zsclip.images.reading import ReadingRules, read_header, read_picture, read_tensor, size_of

ORIENTATION = 0x0112
TURNS = {3: Image.Transpose.ROTATE_180, 6: Image.Transpose.ROTATE_90, 8: Image.Transpose.ROTATE_270}
"""EXIF orientation -> what a camera that was held so does to the upright picture."""


@pytest.fixture
def upright() -> Image.Image:
    values = np.random.default_rng(0).integers(0, 255, (20, 30, 3), dtype=np.uint8)
    return Image.fromarray(values)


def turned(upright: Image.Image, path: Path, orientation: int) -> Path:
    exif = Image.Exif()
    exif[ORIENTATION] = orientation
    upright.transpose(TURNS[orientation]).save(path, exif=exif)
    return path


def pixels(path: Path, rules: ReadingRules | None = None) -> np.ndarray:
    return np.asarray(read_picture(path, rules or ReadingRules())[0]).astype(int)


@pytest.mark.parametrize("ending", ["png", "webp", "tif"])
@pytest.mark.parametrize("orientation", TURNS)
def test_turned_pictures_stand_upright(upright: Image.Image, tmp_path: Path, orientation: int, ending: str) -> None:
    if ending == "webp":
        upright = upright.resize((30, 20)).point(lambda value: 100)  # lossy: one colour survives
    path = turned(upright, tmp_path / f"a.{ending}", orientation)
    assert np.abs(pixels(path) - np.asarray(upright)).max() <= (2 if ending == "webp" else 0)
    assert size_of(path, upright=True) == upright.size
    assert read_header(path).is_turned == (ending != "tif"), "Pillow turns TIFF files itself"


@pytest.mark.parametrize(("ending", "kind"), [("png", np.uint16), ("tif", np.uint16), ("tif", np.float32)])
def test_deep_grey_is_scaled_by_the_range_of_its_type(tmp_path: Path, ending: str, kind: type) -> None:
    grey = np.arange(0, 250, dtype=np.uint8).reshape(10, 25)
    deep = grey.astype(kind) * (257 if kind is np.uint16 else kind(1 / 255))
    Image.fromarray(deep).save(tmp_path / f"a.{ending}")
    assert (pixels(tmp_path / f"a.{ending}") == grey[..., None]).all()


def test_depth_range_names_black_and_white(tmp_path: Path) -> None:
    Image.fromarray(np.array([[100, 1124, 2148, 4095]], dtype=np.uint16)).save(tmp_path / "a.png")
    found = pixels(tmp_path / "a.png", ReadingRules(depth_range=(100, 2148)))
    assert found[0, :, 0].tolist() == [0, 128, 255, 255]
    _, notes = read_picture(tmp_path / "a.png")
    assert [note.kind for note in notes] == ["faint"]
    assert "depth_range=[0, 4095]" in notes[0].text


@pytest.mark.parametrize("values", [np.full((2, 2), 812.0, np.float32), np.full((2, 2), 70_000, np.int32)])
def test_numbers_of_unknown_range_are_refused_with_what_to_do(tmp_path: Path, values: np.ndarray) -> None:
    Image.fromarray(values).save(tmp_path / "a.tif")
    with pytest.raises(ImageReadError, match=r"a\.tif has .* depth_range="):
        read_picture(tmp_path / "a.tif")
    assert pixels(tmp_path / "a.tif", ReadingRules(depth_range=(0, float(values.max())))).min() == 255


def test_what_hides_under_transparent_pixels_is_not_seen(upright: Image.Image, tmp_path: Path) -> None:
    alpha = np.zeros((20, 30), np.uint8)
    alpha[10:] = 255
    for name, under in (("a.png", 0), ("b.png", 200)):
        values = np.dstack([np.asarray(upright), alpha])
        values[:10, :, :3] = under
        Image.fromarray(values).save(tmp_path / name)
    found = pixels(tmp_path / "a.png")
    assert (found == pixels(tmp_path / "b.png")).all()
    assert (found[:10] == 255).all(), "white"
    assert (found[10:] == np.asarray(upright)[10:]).all()


@pytest.mark.parametrize("mode", ["L", "1", "P", "LA", "RGBA", "CMYK"])
def test_other_colours_become_rgb(upright: Image.Image, tmp_path: Path, mode: str) -> None:
    path = tmp_path / ("a.tif" if mode == "CMYK" else "a.png")
    upright.convert(mode).save(path)
    assert (pixels(path) == np.asarray(upright.convert(mode).convert("RGB"))).all()


def test_further_pages_are_said(upright: Image.Image, tmp_path: Path) -> None:
    upright.save(tmp_path / "a.tif", save_all=True, append_images=[upright.transpose(Image.Transpose.ROTATE_180)])
    picture, notes = read_picture(tmp_path / "a.tif")
    assert (np.asarray(picture) == np.asarray(upright)).all()
    assert [(note.kind, "2 pages" in note.text) for note in notes] == [("pages", True)]


def test_too_many_pixels_are_said_as_that(upright: Image.Image, tmp_path: Path) -> None:
    upright.save(tmp_path / "a.png")
    with pytest.raises(ImageReadError, match=r"30 x 20 = 600 pixels, more than max_pixels=599.* max_pixels=600"):
        read_picture(tmp_path / "a.png", ReadingRules(max_pixels=599))
    read_picture(tmp_path / "a.png", ReadingRules(max_pixels=600))


def test_more_pixels_than_pillow_allows_can_be_asked_for(
    upright: Image.Image, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    upright.save(tmp_path / "a.png")
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 10)
    read_picture(tmp_path / "a.png")
    assert Image.MAX_IMAGE_PIXELS == 10


def test_tensors_are_those_of_anomalib(upright: Image.Image, tmp_path: Path) -> None:
    from anomalib.data.utils import read_image

    upright.save(tmp_path / "a.png")
    assert (read_tensor(tmp_path / "a.png")[0] == read_image(tmp_path / "a.png", as_tensor=True)).all()


@pytest.mark.parametrize(
    "arguments",
    [{"depth_range": (5, 5)}, {"depth_range": (9, 1)}, {"depth_range": (0,)}, {"depth_range": "ab"},
     {"depth_range": (0, float("inf"))}, {"max_pixels": 0}, {"max_pixels": True}, {"on_unreadable": "warn"}],
    ids=str,
)  # fmt: skip
def test_impossible_rules_are_refused(arguments: dict) -> None:
    with pytest.raises(ArgumentError, match=next(iter(arguments))):
        ReadingRules(**arguments)


# ---------------------------------------------------------------------- where anomalib reads
def test_what_anomalib_would_read_wrongly_is_said_or_refused(
    upright: Image.Image, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.WARNING)
    upright.save(tmp_path / "fine.png")
    upright.convert("RGBA").save(tmp_path / "opaque.png")
    check_for_plain_reading([tmp_path / "fine.png", tmp_path / "opaque.png", tmp_path / "absent.png"])
    assert not caplog.messages

    hidden = upright.convert("RGBA")
    hidden.putalpha(7)
    hidden.save(tmp_path / "hidden.png")
    upright.save(tmp_path / "pages.tif", save_all=True, append_images=[upright])
    files = [turned(upright, tmp_path / "turned.png", 6), tmp_path / "hidden.png", tmp_path / "pages.tif"]
    check_for_plain_reading(files)
    assert len(caplog.messages) == 3
    for text, file in zip(("1 of 3 images are turned", "several pages", "transparent"), (0, 2, 1), strict=True):
        assert any(text in message and files[file].name in message for message in caplog.messages), text

    Image.new("I;16", (4, 4)).save(tmp_path / "deep.png")
    with pytest.raises(ImageReadError, match=r"1 image file\(s\) have one channel of more than 8 bits.*deep\.png"):
        check_for_plain_reading([*files, tmp_path / "deep.png"])
    with pytest.raises(ImageReadError, match=r"max_pixels=599 pixels.*give max_pixels=600"):
        check_for_plain_reading(files, ReadingRules(max_pixels=599))
