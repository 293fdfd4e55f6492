"""Pictures: one colour scale for all images; a good part stays cold."""

from __future__ import annotations

import threading
import time
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from anomalib.data import ImageBatch, ImageItem, NumpyImageItem
from PIL import Image

from anomalib_zsclip.outputs.regions import PictureRegions
from anomalib_zsclip.outputs.visualizer import CAPTION_HEIGHT, FixedScaleVisualizer


@pytest.fixture
def photo(tmp_path: Path) -> Path:
    path = tmp_path / "part.png"
    Image.fromarray(np.full((60, 80), 120, dtype=np.uint8)).save(path)
    return path


def heat_panel(photo: Path, values: torch.Tensor) -> np.ndarray:
    item = ImageItem(image=torch.zeros(3, 32, 32), image_path=str(photo), anomaly_map=values)
    strip = np.asarray(FixedScaleVisualizer(field_size=(64, 64)).visualize(item)).astype(int)
    return strip[32:64, 64:128]  # below the title


def test_a_good_part_keeps_its_own_colours(photo: Path) -> None:
    values = torch.rand(32, 32) * 0.05 + 0.2  # nothing there, but one pixel has to be the highest
    assert np.abs(heat_panel(photo, values) - 120).max() <= 1


def test_a_defect_glows_red_and_nothing_else_does(photo: Path) -> None:
    values = torch.full((32, 32), 0.2)
    values[16:28, 16:28] = 0.95
    panel = heat_panel(photo, values)
    inside, outside = panel[4:20, 40:50], panel[0:20, 0:20]
    assert (inside[..., 0] > inside[..., 2] + 60).all()
    assert np.abs(outside - 120).max() <= 1


def test_the_same_value_has_the_same_colour_in_every_picture(photo: Path) -> None:
    alone = torch.full((32, 32), 0.2)
    alone[16:28, 16:28] = 0.7
    beside = alone.clone()
    beside[16:28, 0:6] = 1.0
    assert np.array_equal(heat_panel(photo, alone)[10, 44], heat_panel(photo, beside)[10, 44])


def test_items_without_masks_labels_and_files_can_be_drawn() -> None:
    visualizer = FixedScaleVisualizer()
    batch = ImageBatch(image=torch.rand(2, 3, 32, 32), anomaly_map=torch.rand(2, 32, 32))
    assert [image.size for image in visualizer.visualize(batch)] == [(512, 280)] * 2
    assert visualizer.visualize(ImageBatch(image=torch.rand(1, 3, 32, 32))).size == (256, 280)


@pytest.mark.parametrize("shape", [(24, 32, 3), (24, 32), (24, 32, 1)])
def test_arrays_of_an_inferencer_can_be_drawn(shape: tuple[int, ...]) -> None:
    item = NumpyImageItem(image=np.random.default_rng(0).random(shape), anomaly_map=np.full((24, 32), 0.9))
    strip = FixedScaleVisualizer(field_size=(32, 24)).visualize(item)
    assert (strip.mode, strip.size) == ("RGB", (64, 24 + CAPTION_HEIGHT))


def test_values_that_are_no_numbers_do_not_break_the_picture(photo: Path) -> None:
    heat_panel(photo, torch.full((32, 32), torch.nan))


def test_pictures_of_a_run_are_all_there_at_its_end_and_no_thread_stays(photo: Path, tmp_path: Path) -> None:
    visualizer = FixedScaleVisualizer(output_dir=tmp_path / "images")
    trainer = SimpleNamespace(default_root_dir=str(tmp_path), datamodule=None)
    for index in range(6):  # more batches than may wait
        batch = ImageBatch(
            image=torch.rand(2, 3, 32, 32),
            anomaly_map=torch.rand(2, 32, 32),
            image_path=[str(photo.with_name(f"part{index}{side}.png")) for side in "ab"],
        )
        for path in batch.image_path:
            photo.with_name(Path(path).name).write_bytes(photo.read_bytes())
        visualizer.on_test_batch_end(trainer, None, None, batch, index)
    visualizer.on_test_end(trainer, None)
    assert len(list((tmp_path / "images").rglob("*.png"))) == 12
    assert not [thread for thread in threading.enumerate() if thread.name.startswith("pictures")]


def test_a_picture_that_cannot_be_drawn_is_not_lost_in_silence(tmp_path: Path) -> None:
    visualizer = FixedScaleVisualizer(output_dir=tmp_path / "images")
    trainer = SimpleNamespace(default_root_dir=str(tmp_path), datamodule=None)
    batch = ImageBatch(image=torch.rand(1, 3, 32, 32), image_path=[str(tmp_path / "absent" / "part.png")])
    visualizer.on_test_batch_end(trainer, None, None, batch, 0)
    with pytest.raises(FileNotFoundError, match=r"part\.png"):
        visualizer.on_test_end(trainer, None)


def test_the_last_pictures_are_read_as_the_first_ones_were(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    source = tmp_path / "turned.png"
    picture, exif = Image.new("RGB", (60, 60), "red"), Image.Exif()
    picture.paste("blue", (0, 0, 60, 30))
    exif[0x0112] = 6  # to be turned by a quarter; anomalib, which reads for a test, does not
    picture.save(source, exif=exif)
    visualizer = FixedScaleVisualizer(output_dir=tmp_path / "images", field_size=(60, 60))
    drawn_at_once = visualizer.draw

    def drawn_late(item: ImageItem) -> Image.Image:
        time.sleep(0.2)  # when the run is over already
        return drawn_at_once(item)

    monkeypatch.setattr(visualizer, "draw", drawn_late)
    trainer = SimpleNamespace(default_root_dir=str(tmp_path), datamodule=None)
    batch = ImageBatch(image=torch.rand(1, 3, 32, 32), image_path=[str(source)])
    visualizer.on_test_batch_end(trainer, None, None, batch, 0)
    visualizer.on_test_end(trainer, None)
    strip = Image.open(next((tmp_path / "images").rglob("turned.png")))
    upper_corners = [strip.getpixel((x, CAPTION_HEIGHT + 5)) for x in (5, 55)]
    assert upper_corners == [(0, 0, 255), (0, 0, 255)]


@pytest.mark.parametrize(("suffix", "tolerance"), [(".png", 0), (".bmp", 0), (".jpg", 12)])
def test_what_is_saved_is_what_was_drawn(tmp_path: Path, suffix: str, tolerance: float) -> None:
    source = tmp_path / f"part{suffix}"
    colours = np.linspace((250, 40, 10), (20, 90, 200), 80).astype(np.uint8)
    Image.fromarray(np.broadcast_to(colours, (60, 80, 3)).copy()).save(source)
    batch = ImageBatch(
        image=torch.rand(1, 3, 32, 32),
        anomaly_map=torch.linspace(0, 1, 32).expand(1, 32, 32),
        pred_mask=torch.linspace(0, 1, 32).expand(1, 32, 32) > 0.5,
        pred_score=torch.tensor([0.7]),
        image_path=[str(source)],
    )
    visualizer = FixedScaleVisualizer(output_dir=tmp_path / "images")
    trainer = SimpleNamespace(default_root_dir=str(tmp_path), datamodule=None)
    visualizer.on_test_batch_end(trainer, None, None, batch, 0)
    visualizer.on_test_end(trainer, None)
    saved = np.asarray(Image.open(next((tmp_path / "images").rglob(f"part{suffix}"))).convert("RGB")).astype(int)
    drawn = np.asarray(visualizer.visualize(batch)).astype(int)
    assert np.abs(saved - drawn).mean() <= tolerance
    assert saved[100, 20, 0] > saved[100, 20, 2] + 60  # red on the left stays red


def test_the_border_of_the_predicted_mask_is_marked_and_nothing_else(photo: Path) -> None:
    mask = torch.zeros(32, 32, dtype=torch.bool)
    mask[8:24, 8:24] = True
    item = ImageItem(image=torch.zeros(3, 32, 32), image_path=str(photo), pred_mask=mask)
    strip = np.asarray(FixedScaleVisualizer(field_size=(128, 128)).visualize(item))
    panel = strip[:128, 128:256]
    red = (panel == (255, 0, 0)).all(-1)
    ys, xs = np.nonzero(red)
    assert (ys.min(), ys.max(), xs.min(), xs.max()) == (32, 95, 32, 95)
    assert (panel[34:94, 34:94] == 120).all()
    assert (panel[97:] == 120).all()


def test_a_small_spot_of_a_large_map_is_seen_in_the_panel() -> None:
    values = np.zeros((2000, 3000), np.float32)
    values[1501:1504, 702:705] = 1
    visualizer = FixedScaleVisualizer(field_size=(300, 200))
    heat = np.asarray(visualizer._heat(Image.new("RGB", (300, 200)), values))
    assert heat[150, 70].max() > 60
    assert np.asarray(visualizer._mask(values)).max() == 255
    assert not heat[:100].any()


@pytest.mark.parametrize(
    "box", [(0.5, 0.25, 0.001, 0.3), (0.5, 0.25, 0.3, 0.001), (0.999, 0.999, 0.001, 0.001), (0, 0, 0, 0)]
)
def test_a_region_of_less_than_a_pixel_of_the_panel_has_a_box_that_is_seen(box: tuple[float, ...]) -> None:
    visualizer = FixedScaleVisualizer(field_size=(128, 64))
    drawn = visualizer._boxes(Image.new("RGB", (128, 64), "gray"), PictureRegions(6000, 4000, judged_boxes=(box,)))
    ys, xs = np.nonzero((np.asarray(drawn) == 255).all(axis=2))
    left, top, wide, high = box
    assert xs.min() - 4 <= left * 128 <= (left + wide) * 128 <= xs.max() + 4
    assert ys.min() - 4 <= top * 64 <= (top + high) * 64 <= ys.max() + 4
    assert np.ptp(xs) >= 2
    assert np.ptp(ys) >= 2
