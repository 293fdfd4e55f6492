"""Looking at a folder in three lines: the engine's results, typed, with everything that belongs to a picture."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
from PIL import ExifTags, Image

import anomalib_zsclip
from anomalib_zsclip import ClipAd, Inspection
from anomalib_zsclip.errors import ArgumentError
from tests.builtin_models import FEW_PROMPTS
from tests.report_runs import read_page, read_table

SMALL = {
    "backbone": "builtin", "model": ClipAd, "image_size": 64, "prompts": FEW_PROMPTS, "rvs": "mean", "text_cache": False,
}  # fmt: skip


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Three pictures of noise, one of them turned, and a file that is none."""
    root, rng = tmp_path / "in", np.random.default_rng(0)
    (root / "line1").mkdir(parents=True)
    for name in ("line1/a.png", "line1/b.jpg", "turned.jpg"):
        exif = Image.Exif()
        exif[ExifTags.Base.Orientation] = 6 if name == "turned.jpg" else 1
        blocks = Image.fromarray(rng.integers(0, 255, (6, 9, 3), dtype=np.uint8))
        blocks.resize((90, 60)).save(root / name, exif=exif)
    (root / "line1" / "broken.png").write_bytes(b"none")
    return root


def test_three_lines_give_everything_about_every_picture(folder: Path, tmp_path: Path) -> None:
    quiet = anomalib_zsclip.inspect(folder, pixel_threshold=0.0, **SMALL)
    results = anomalib_zsclip.inspect(folder, pixel_threshold=0.0, output=tmp_path / "out", **SMALL)
    assert [result.path.relative_to(folder).as_posix() for result in results] == [
        "line1/a.png", "line1/b.jpg", "line1/broken.png", "turned.jpg",
    ]  # fmt: skip
    for one, other in zip(quiet, results, strict=True):
        assert isinstance(one, Inspection)
        assert (one.path, one.score, one.regions, one.error) == (other.path, other.score, other.regions, other.error)
    first, _, broken, turned = results
    assert first.is_anomalous is (first.score > 0.5)
    assert first.anomaly_map.shape == (64, 64)
    assert [region.box for region in first.regions] == [(0, 0, 90, 60)], "a threshold of 0 makes one region of all"
    assert [region.box for region in turned.regions] == [(0, 0, 60, 90)]
    assert (broken.score, broken.is_anomalous, broken.regions) == (None, None, None)
    assert broken.error

    out = next((tmp_path / "out").rglob("report.html")).parent
    table = {row["path"]: row for row in read_table(out)}
    content = {row["path"]: row for row in json.loads((out / "regions.json").read_text())["images"]}
    page = {row["path"]: row for row in read_page(out)["rows"]}
    for result in results:
        name = result.path.relative_to(folder).as_posix()
        assert page[name]["error"] == (content[str(result.path)]["error"] or "") == table[str(result.path)]["error"]
        if not result.error:
            assert f"{page[name]['score']:.6f}" == table[str(result.path)]["pred_score"] == f"{result.score:.6f}"
            assert (out / page[name]["picture"]).is_file()


def test_a_model_is_kept_for_several_calls_and_takes_no_more_arguments(folder: Path) -> None:
    arguments = {name: value for name, value in SMALL.items() if name != "model"}
    model = ClipAd(visualizer=False, report=False, regions=False, **arguments)
    assert anomalib_zsclip.inspect(folder / "turned.jpg", model=model)[0].regions is None
    with pytest.raises(ArgumentError, match=r"cannot take normal_dir, k_shot"):
        anomalib_zsclip.inspect(folder, "good", model=model, k_shot=2)


def test_a_folder_that_is_not_there_is_said_plainly(tmp_path: Path) -> None:
    with pytest.raises(ArgumentError, match="absent"):
        anomalib_zsclip.inspect(tmp_path / "absent", **SMALL)
