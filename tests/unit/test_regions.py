"""Regions: where a map exceeds the threshold, in the coordinates of the picture, whatever its size and however it lies."""

from __future__ import annotations

import csv
import json
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from anomalib.data import ImageBatch
from PIL import ExifTags, Image, ImageOps

from anomalib_zsclip.clip import ClipBackbone
from anomalib_zsclip.errors import ArgumentError
from anomalib_zsclip.heads.explanation import DefectNamer, Evidence
from anomalib_zsclip.images.folder_data import Unreadable
from anomalib_zsclip.models.views import Views
from anomalib_zsclip.outputs import PictureRegions, RegionFiles
from anomalib_zsclip.outputs.callbacks import with_results
from anomalib_zsclip.outputs.region_files import COLUMNS
from anomalib_zsclip.outputs.regions import (
    Standing,
    check_min_region,
    label_regions,
    measure_regions,
    standing_of,
    upright,
)


def map_with(*patches: tuple[int, int, int, int, float], size: tuple[int, int] = (100, 100)) -> np.ndarray:
    """A map of 0.2 with patches: left, top, width, height, value."""
    values = np.full(size, 0.2, dtype=np.float32)
    for left, top, width, height, value in patches:
        values[top : top + height, left : left + width] = value
    return values


def regions_of(values: np.ndarray, size: tuple[int, int], threshold: float = 0.5, min_region: float = 0.0) -> Any:
    return measure_regions(label_regions(values, threshold, min_region), values, size)


def test_a_region_says_where_it_is_in_the_picture_and_how_large() -> None:
    values = map_with((20, 30, 10, 5, 0.6))
    values[32, 25] = 0.9
    (region,) = regions_of(values, (400, 50))  # four times as wide as the map, half as high
    assert region.box == (80, 15, 40, 3)  # rows 30 to 35 are 15 to 17.5: every touched pixel
    assert region.center == (100.0, 16.25)
    assert region.area == 100
    assert region.share == pytest.approx(50 / 10_000)
    assert region.peak == pytest.approx(0.9)
    assert region.mean == pytest.approx((49 * 0.6 + 0.9) / 50)


def test_a_box_never_vanishes_nor_leaves_the_picture() -> None:
    (region,) = regions_of(map_with((99, 99, 1, 1, 0.6)), (30, 7))
    left, top, width, height = region.box
    assert width >= 1
    assert height >= 1
    assert (left + width, top + height) == (30, 7)
    (whole,) = regions_of(map_with((0, 0, 100, 100, 0.6)), (333, 77))
    assert whole.box == (0, 0, 333, 77)
    assert whole.area == 333 * 77


def test_only_what_exceeds_the_threshold_counts() -> None:
    values = map_with((10, 10, 10, 10, 0.5), (60, 60, 10, 10, 0.7))
    assert [region.box for region in regions_of(values, (100, 100))] == [(60, 60, 10, 10)]
    assert len(regions_of(values, (100, 100), threshold=0.49)) == 2
    assert regions_of(values, (100, 100), threshold=0.7) == ()
    assert regions_of(np.full((10, 10), np.nan, dtype=np.float32), (100, 100)) == ()


def test_the_highest_peak_comes_first() -> None:
    values = map_with((10, 10, 30, 30, 0.6), (60, 60, 5, 5, 0.9), (80, 10, 9, 9, 0.7))
    assert [round(region.peak, 1) for region in regions_of(values, (100, 100))] == [0.9, 0.7, 0.6]


@pytest.mark.parametrize(("gap", "count"), [(1, 1), (4, 1), (5, 2), (10, 2)])
def test_close_regions_are_one_and_what_lies_between_does_not_count(gap: int, count: int) -> None:
    found = regions_of(map_with((10, 10, 10, 10, 0.6), (20 + gap, 10, 10, 10, 0.6)), (100, 100))
    assert len(found) == count
    assert sum(region.area for region in found) == 200
    if count == 1:
        assert found[0].box == (10, 10, 20 + gap, 10)


def test_corners_that_touch_connect() -> None:
    assert len(regions_of(map_with((2, 2, 2, 2, 0.6), (4, 4, 2, 2, 0.6), size=(8, 8)), (8, 8))) == 1


def test_small_regions_are_left_out_by_their_share_of_the_picture() -> None:
    values = map_with((10, 10, 5, 4, 0.9), (60, 60, 10, 10, 0.6))
    assert len(regions_of(values, (1000, 1000), min_region=0.002)) == 2
    (left,) = regions_of(values, (1000, 1000), min_region=0.0021)
    assert left.box == (600, 600, 100, 100)


@pytest.mark.parametrize(("tiles", "boxes"), [(1, []), ("auto", [(500, 500, 20, 20), (540, 500, 20, 20)])])
def test_with_tiles_small_and_near_are_measured_against_a_tile(tmp_path: Path, tiles: Any, boxes: list[Any]) -> None:
    values = map_with((500, 500, 20, 20, 0.9), (540, 500, 20, 20, 0.7), size=(1000, 2000))
    views = replace(Views.of(tiles), tile=(200, 200))
    module = SimpleNamespace(post_processor=None, model=SimpleNamespace(namer=None, views=views))
    batch = make_batch([save_picture(tmp_path / "a.png", (2000, 1000))], [values])
    trainer = SimpleNamespace(default_root_dir=str(tmp_path), global_rank=0, world_size=1)
    RegionFiles().on_test_batch_end(trainer, module, batch)
    assert [region.box for region in batch.regions[0]] == boxes


@pytest.mark.parametrize("value", [-0.1, 1, 1.5, "a", None, True, float("nan")])
def test_a_share_that_cannot_be_is_refused(value: Any) -> None:
    with pytest.raises(ArgumentError, match="min_region"):
        check_min_region(value)


# ---------------------------------------------------------------------- files
def save_picture(path: Path, size: tuple[int, int], orientation: int = 1) -> Path:
    exif = Image.Exif()
    exif[ExifTags.Base.Orientation] = orientation
    Image.fromarray(np.zeros((size[1], size[0]), dtype=np.uint8)).save(path, exif=exif)
    return path


@pytest.mark.parametrize("orientation", range(1, 9))
def test_values_are_turned_as_viewers_turn_the_picture(tmp_path: Path, orientation: int) -> None:
    stored = np.arange(12, dtype=np.uint8).reshape(3, 4)
    exif = Image.Exif()
    exif[ExifTags.Base.Orientation] = orientation
    Image.fromarray(stored).save(tmp_path / "turned.png", exif=exif)
    with Image.open(tmp_path / "turned.png") as picture:
        assert np.array_equal(upright(stored, orientation), np.asarray(ImageOps.exif_transpose(picture)))


@pytest.mark.parametrize(("kind", "turn"), [("png", 6), ("jpg", 6), ("tiff", 1)])
def test_pillow_turns_tiff_files_itself(tmp_path: Path, kind: str, turn: int) -> None:
    path = save_picture(tmp_path / f"turned.{kind}", (200, 100), orientation=6)
    assert standing_of(path) == Standing(100, 200, 6, turn)


def make_batch(paths: list[Path], maps: list[np.ndarray]) -> ImageBatch:
    return ImageBatch(
        image=torch.zeros(len(maps), 3, 8, 8),
        image_path=[str(path) for path in paths],
        anomaly_map=torch.from_numpy(np.stack(maps)),
        pred_score=torch.linspace(0.3, 0.8, len(maps)),
        pred_label=torch.linspace(0.3, 0.8, len(maps)) > 0.5,
    )


def run(
    folder: Path, *batches: ImageBatch, threshold: float = 0.5, interrupt: bool = False, **arguments: Any
) -> RegionFiles:
    callback = RegionFiles(**arguments)
    trainer = SimpleNamespace(default_root_dir=str(folder), global_rank=0, world_size=1)
    post_processor = SimpleNamespace(normalized_pixel_threshold=torch.tensor(threshold))
    module = SimpleNamespace(post_processor=post_processor, model=SimpleNamespace(namer=None))
    callback.on_predict_start(trainer, module)
    for number, batch in enumerate(batches):
        callback.on_predict_batch_end(trainer, module, batch, None, number)
    if interrupt:
        callback.on_exception(trainer, module, KeyboardInterrupt())
    else:
        callback.on_predict_end(trainer, module)
    callback.teardown(trainer, module, "predict")
    return callback


@pytest.mark.parametrize("interrupt", [False, True])
def test_files_hold_every_picture_and_every_region(tmp_path: Path, interrupt: bool) -> None:
    first = save_picture(tmp_path / "=a 'b' <ü>.png", (200, 50))
    second = save_picture(tmp_path / "good.png", (40, 40))
    batch = make_batch([first, second], [map_with((10, 20, 10, 10, 0.75), (60, 60, 20, 20, 0.6)), map_with()])
    run(tmp_path, batch, interrupt=interrupt)
    assert [len(picture) for picture in batch.regions] == [2, 0]
    content = json.loads((tmp_path / "regions.json").read_text())
    assert (content["schema"], content["version"]) == ("anomalib-zsclip/regions", 1)
    assert content["complete"] is not interrupt
    picture, good = content["images"]
    assert picture["path"] == str(first)
    assert (picture["width"], picture["height"], picture["orientation"]) == (200, 50, 1)
    assert (picture["pred_score"], picture["pred_label"]) == (0.3, 0)
    assert [region["box"] for region in picture["regions"]] == [[20, 10, 20, 5], [120, 30, 40, 10]]
    assert (good["path"], good["pred_label"], good["regions"]) == (str(second), 1, [])
    with (tmp_path / "regions.csv").open(newline="", encoding="utf-8") as file:
        head, *lines = list(csv.reader(file))
    assert head == list(COLUMNS)
    assert [line[1:6] for line in lines] == [["1", "20", "10", "20", "5"], ["2", "120", "30", "40", "10"]]
    assert lines[0][10:12] == ["0.75", "0.75"]
    assert lines[0][12:] == ["", ""]


def test_a_run_without_a_readable_picture_knows_nothing_of_the_run_before(tmp_path: Path) -> None:
    callback, unreadable = RegionFiles(), SimpleNamespace(unreadable=[Unreadable("cut.png", "it is cut.")])
    for folder, threshold in ((tmp_path / "before", 0.8), (tmp_path / "now", 0.6)):
        trainer = SimpleNamespace(default_root_dir=str(folder), global_rank=0, world_size=1)
        post_processor = SimpleNamespace(normalized_pixel_threshold=torch.tensor(threshold))
        module = SimpleNamespace(post_processor=post_processor, model=None)
        callback.on_predict_start(trainer, module)
        if threshold == 0.8:
            picture = save_picture(tmp_path / "a.png", (9, 9))
            callback.on_predict_batch_end(trainer, module, make_batch([picture], [map_with()]), None, 0)
        else:
            trainer.predict_dataloaders = [SimpleNamespace(dataset=unreadable)]
        callback.on_predict_end(trainer, module)
        callback.teardown(trainer, module, "predict")
    content = json.loads((tmp_path / "now" / "regions.json").read_text())
    assert content["pixel_threshold"] == 0.6
    assert [image["path"] for image in content["images"]] == ["cut.png"]


@pytest.mark.parametrize(("threshold", "written", "count"), [(0.6, 0.6, 1), (0.75, 0.75, 0), (float("nan"), 0.5, 1)])
def test_the_threshold_is_that_of_the_post_processor(
    tmp_path: Path, threshold: float, written: float, count: int
) -> None:
    batch = make_batch([save_picture(tmp_path / "a.png", (100, 100))], [map_with((10, 20, 10, 10, 0.7))])
    run(tmp_path, batch, threshold=threshold, min_region=0.01)
    content = json.loads((tmp_path / "regions.json").read_text())
    assert (content["pixel_threshold"], content["min_region"]) == (written, 0.01)
    assert len(content["images"][0]["regions"]) == len(batch.regions[0]) == count


@pytest.mark.parametrize("read_upright", [False, True])
def test_boxes_of_a_turned_picture_lie_where_people_see_the_defect(
    tmp_path: Path, read_upright: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("anomalib_zsclip.outputs.region_files.rules_of", lambda trainer: read_upright or None)
    path = save_picture(tmp_path / "turned.jpg", (200, 100), orientation=6)  # stands 100 wide and 200 high
    stored = map_with((0, 80, 10, 20, 0.9))  # lower left in the file is upper left upright
    batch = make_batch([path], [upright(stored, 6) if read_upright else stored])
    run(tmp_path, batch)
    (picture,) = batch.regions
    assert (picture.width, picture.height, picture.orientation) == (100, 200, 6)
    assert picture[0].box == (0, 0, 20, 20)
    assert picture.judged_boxes == ((0.0, 0.0, 0.2, 0.1) if read_upright else (0.0, 0.8, 0.1, 0.2),)


def test_a_file_that_has_gone_leaves_the_coordinates_of_the_map(tmp_path: Path) -> None:
    batch = make_batch([tmp_path / "gone.png"], [map_with((10, 10, 10, 10, 0.9))])
    run(tmp_path, batch)
    assert batch.regions[0] == PictureRegions(100, 100, 1, batch.regions[0].regions, ((0.1, 0.1, 0.1, 0.1),))


# ---------------------------------------------------------------------- names
class Two:
    """Words along the first two axes, and a batch whose left half says one and whose right half the other."""

    words = ("scratch", "hole", "stain")

    def __init__(self, tiny: ClipBackbone) -> None:
        self.namer = DefectNamer(4, self.words)
        self.namer.text_features = torch.eye(4)[:3]
        tokens = torch.zeros(2, 16, 4)
        for patch in range(16):
            tokens[:, patch, int(patch % 4 >= 2)] = 1  # a grid of 4 x 4
        tokens[0] = torch.eye(4)[2]  # the other image of the batch is a stain all over
        self.evidence = Evidence(tokens, torch.eye(4)[[3, 3]], (4, 4), 100.0)


def test_each_region_has_a_name_of_its_own(tiny: ClipBackbone, tmp_path: Path) -> None:
    two = Two(tiny)
    masks = np.stack([map_with((5, 5, 20, 20, 1.0)), map_with((70, 5, 20, 20, 1.0))]) > 0.5
    names = two.namer.name_regions(two.evidence, 1, torch.from_numpy(masks.astype(np.float32)))
    assert [name for name, _ in names] == ["scratch", "hole"]
    assert all(0.5 < score <= 1 for _, score in names)

    path = save_picture(tmp_path / "a.png", (100, 100))
    values = map_with((5, 5, 20, 20, 0.7), (70, 5, 20, 20, 0.8))
    batch = make_batch([path, path], [map_with(), values])
    callback = RegionFiles()
    trainer = SimpleNamespace(default_root_dir=str(tmp_path), global_rank=0, world_size=1)
    module = SimpleNamespace(post_processor=None, model=two)
    callback.on_test_start(trainer, module)
    assert two.namer.keeps_evidence
    two.namer.evidence = two.evidence
    callback.on_test_batch_end(trainer, module, batch, None, 0)
    assert [region.name for region in batch.regions[1]] == ["hole", "scratch"]
    assert two.namer.evidence is None, "no tokens stay behind"
    callback.teardown(trainer, module, "test")
    assert not two.namer.keeps_evidence


@pytest.mark.parametrize(("images", "name"), [(1, "stain"), (2, "stain"), (3, None)])
def test_the_first_view_of_a_picture_names_and_evidence_of_other_images_does_not(
    tiny: ClipBackbone, tmp_path: Path, images: int, name: str | None
) -> None:
    two = Two(tiny)
    two.namer.evidence = two.evidence
    path = save_picture(tmp_path / "a.png", (9, 9))
    batch = make_batch([path] * images, [map_with((5, 5, 20, 20, 0.7))] * images)
    first, *_ = RegionFiles()._find(batch, two.namer, read_upright=True)
    assert first[0].name == name


@pytest.mark.parametrize("keeps", [False, True])
def test_what_was_seen_first_is_kept_until_it_is_taken(tiny: ClipBackbone, keeps: bool) -> None:
    namer = DefectNamer(tiny.embed_dim, Two.words)
    namer.setup(tiny)
    namer.keeps_evidence = keeps
    images = torch.rand(3, 3, 32, 32, generator=torch.Generator().manual_seed(0))
    for part in (images[:2], images[2:]):
        features = tiny.forward_intermediates(part, namer.request(tiny))
        namer(features, tiny, torch.rand(len(part), 32, 32))
    assert (namer.evidence is not None) is keeps
    if keeps:
        assert namer.evidence.tokens.shape[0] == 2
        whole = torch.ones(1, 32, 32)
        ((word, score),) = namer.name_regions(namer.evidence, 1, whole)
        features = tiny.forward_intermediates(images[1:2], namer.request(tiny))
        namer.share = 1.0
        wanted = namer(features, tiny, torch.rand(1, 32, 32))[0]
        assert word == namer.words[int(wanted.argmax())]
        assert score == pytest.approx(float(wanted.max()), abs=1e-5), "a region of all patches is the picture's name"


# ---------------------------------------------------------------------- places
def test_regions_come_after_the_post_processor_and_before_the_pictures() -> None:
    from anomalib_zsclip.outputs import FixedScaleVisualizer, MonotonePostProcessor, PredictionsFile, ReportPage

    callbacks = [MonotonePostProcessor(), FixedScaleVisualizer(), PredictionsFile()]
    found = with_results(callbacks, 0.01, report=True)
    kinds = [type(callback) for callback in found]
    assert kinds == [MonotonePostProcessor, RegionFiles, FixedScaleVisualizer, PredictionsFile, ReportPage]
    assert found[1].min_region == 0.01
    assert with_results(callbacks, None, report=False) == callbacks
