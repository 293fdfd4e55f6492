"""Anomaly maps as TIFF files: values, size, places."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace

import cv2
import numpy as np
import pytest
import torch
from anomalib.engine import Engine
from PIL import Image

from anomalib_zsclip import ClipAd, SyntheticDefects
from anomalib_zsclip.errors import ImageReadError
from anomalib_zsclip.outputs import MapFiles
from tests.builtin_models import make_model


def read(path: Path) -> np.ndarray:
    with Image.open(path) as picture:
        assert picture.format == "TIFF"
        values = np.asarray(picture)
    assert values.dtype == np.float32
    return values


def write(folder: Path, files: list[Path], maps: torch.Tensor, **trainer: object) -> None:
    callback = MapFiles()
    callback.on_test_start(None, None)
    for file, anomaly_map in zip(files, maps, strict=True):
        batch = SimpleNamespace(image_path=[str(file)], anomaly_map=anomaly_map[None])
        callback.on_test_batch_end(SimpleNamespace(default_root_dir=folder, **trainer), None, batch, None, 0)


def save_picture(path: Path, size: tuple[int, int] = (30, 20)) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.new("RGB", size).save(path)
    return path


def test_the_structure_of_the_data_set_is_kept(tmp_path: Path) -> None:
    root = tmp_path / "data" / "MVTecAD"
    files = [save_picture(root / f"bottle/test/{kind}/000.png") for kind in ("good", "broken_large")]
    maps = torch.rand(2, 20, 30)
    write(tmp_path / "out", files, maps, datamodule=SimpleNamespace(root=str(root)))
    for file, wanted in zip(files, maps, strict=True):
        place = tmp_path / "out" / "anomaly_maps" / file.relative_to(root).with_suffix(".tiff")
        assert np.array_equal(read(place), wanted.numpy())


def test_images_that_differ_in_their_ending_have_a_map_each(tmp_path: Path) -> None:
    files = [save_picture(tmp_path / f"data/{name}") for name in ("a.png", "a.bmp")]
    maps = torch.stack([torch.zeros(20, 30), torch.ones(20, 30)])
    write(tmp_path / "out", files, maps, datamodule=SimpleNamespace(root=tmp_path / "data"))
    folder = tmp_path / "out" / "anomaly_maps"
    assert read(folder / "a.tiff").max() == 0
    assert read(folder / "a.bmp.tiff").min() == 1


def test_an_image_outside_the_root_keeps_its_folder(tmp_path: Path) -> None:
    file = save_picture(tmp_path / "elsewhere/good/1.png")
    write(tmp_path / "out", [file], torch.rand(1, 4, 4), datamodule=SimpleNamespace(root=tmp_path / "data"))
    assert (tmp_path / "out/anomaly_maps/good/1.tiff").is_file()


def test_a_file_that_has_gone_is_named(tmp_path: Path) -> None:
    with pytest.raises(ImageReadError, match=r"gone\.png"):
        write(tmp_path, [tmp_path / "gone.png"], torch.rand(1, 4, 4))


def test_tests_and_predictions_write_maps_of_the_images_own_size(tmp_path: Path) -> None:
    data = SyntheticDefects(
        root=tmp_path / "data", category="wood", image_size=80, num_train=2, num_test_good=2, num_test_per_defect=1
    )
    model = make_model("ClipAd", tmp_path, save_maps=True, image_size=64, visualizer=False)
    engine = Engine(default_root_dir=tmp_path / "run", accelerator="cpu", enable_progress_bar=False)
    engine.test(model, datamodule=data)
    written = sorted((tmp_path / "run").rglob("anomaly_maps/**/*.tiff"))
    assert len(written) == len(data.test_data)
    assert {path.parent.name for path in written} == {Path(p).parent.name for p in data.test_data.samples.image_path}
    assert all(read(path).shape == (80, 80) for path in written)

    nested = tmp_path / "pictures"
    for index, size in enumerate(((40, 30), (90, 100))):
        rng = np.random.default_rng(index)
        picture = Image.fromarray(rng.integers(0, 255, (*size, 3), dtype=np.uint8))
        (nested / f"line{index}").mkdir(parents=True)
        picture.save(nested / f"line{index}" / "000.png")
    engine = Engine(default_root_dir=tmp_path / "predict", accelerator="cpu", enable_progress_bar=False)
    for batch in engine.predict(model, data_path=nested):
        file = Path(batch.image_path[0])
        (place,) = (tmp_path / "predict").rglob(f"anomaly_maps/{file.parent.name}/000.tiff")
        with Image.open(file) as picture:
            wanted = cv2.resize(batch.anomaly_map[0].numpy(), picture.size, interpolation=cv2.INTER_LINEAR)
        np.testing.assert_allclose(read(place), wanted, atol=1e-6)


def test_without_the_argument_there_are_none(tmp_path: Path) -> None:
    model = ClipAd(backbone="builtin", rvs="mean", text_cache=False)
    assert not any(isinstance(callback, MapFiles) for callback in model.configure_callbacks())
