"""Whichever way pictures come in, they are judged rightly, or refused with their names."""

from __future__ import annotations

import csv
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from anomalib.data import Folder, PredictDataset
from anomalib.engine import Engine
from PIL import Image

from anomalib_zsclip import ClipAd, ZeroShotTransfer, ZsClip
from anomalib_zsclip.errors import ArgumentError, ImageReadError
from tests.builtin_models import FEW_PROMPTS

QUIET = {"enable_progress_bar": False, "enable_model_summary": False, "accelerator": "cpu", "devices": 1}


def make_model(**arguments: Any) -> ZsClip:
    arguments = {"visualizer": False, "explain": False, **arguments}
    return ZsClip(["sdp"], backbone="builtin", sdp={"rvs": "mean"}, image_size=64, **arguments)


def write_parts(folder: Path, count: int, seed: int = 0, depth: int = 8) -> list[Path]:
    folder.mkdir(parents=True, exist_ok=True)
    rng, files = np.random.default_rng(seed), []
    for index in range(count):
        grey = np.asarray(Image.fromarray(rng.integers(60, 200, (6, 8), dtype=np.uint8)).resize((80, 60)))
        image = Image.fromarray(grey if depth == 8 else grey.astype(np.uint16) * 257)
        files.append(folder / f"{index}.png")
        image.save(files[-1])
    return files


def cut(path: Path) -> None:
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])


def make_data(root: Path, **depths: int) -> Folder:
    for number, name in enumerate(("good", "bad", "masks", "fine")):
        write_parts(root / name, 4, number, depths.get(name, 8))
    arguments = {"num_workers": 0, "train_batch_size": 2, "eval_batch_size": 2, "val_split_mode": "same_as_test"}
    return Folder(
        "parts", root=root, normal_dir="good", abnormal_dir="bad", normal_test_dir="fine", mask_dir="masks", **arguments
    )


def run(door: str, model: ZsClip, data: Folder, folder: Path) -> Any:
    return getattr(Engine(default_root_dir=folder, **QUIET), door)(model, datamodule=data)


@pytest.mark.parametrize(
    ("door", "deep"), [("validate", "bad"), ("test", "bad"), ("validate", "good"), ("predict", "good")]
)
def test_deep_grey_is_refused_where_anomalib_reads(tmp_path: Path, door: str, deep: str) -> None:
    data = make_data(tmp_path / "data", **{deep: 16})
    with pytest.raises(ImageReadError, match=rf"more than 8 bits.*{deep}"):
        run(door, make_model(k_shot=1), data, tmp_path)


@pytest.mark.parametrize(
    ("spoiled", "message"), [("bad", "more than 8 bits.*bad"), ("masks", r"bad/.*\.png or its mask")]
)
def test_learning_names_what_it_cannot_read(tmp_path: Path, spoiled: str, message: str) -> None:
    auxiliary = make_data(tmp_path / "auxiliary", **({"bad": 16} if spoiled == "bad" else {}))
    if spoiled == "masks":
        for file in (tmp_path / "auxiliary" / "masks").iterdir():
            cut(file)
    data = ZeroShotTransfer(auxiliary, make_data(tmp_path / "target"), num_workers=0, allow_overlap=True)
    arguments = {"prompts": FEW_PROMPTS, "rvs": "mean", "text_cache": False, "visualizer": False, "image_size": 64}
    model = ClipAd("sdp+", backbone="builtin", learn=True, **arguments)
    with pytest.raises(ImageReadError, match=message):
        Engine(default_root_dir=tmp_path, **QUIET).fit(model, datamodule=data)


@pytest.mark.parametrize(
    ("door", "broken"), [("test", "bad/1.png"), ("test", "masks/2.png"), ("validate", "masks/2.png"), ("train", "good")]
)
def test_a_broken_image_or_mask_is_named(tmp_path: Path, door: str, broken: str) -> None:
    data = make_data(tmp_path / "data")
    place = tmp_path / "data" / broken
    for file in place.glob("*.png") if place.is_dir() else [place]:
        cut(file)
    with pytest.raises(ImageReadError, match=rf"{Path(broken).parts[0]}.*\.png"):
        run(door, make_model(k_shot=2), data, tmp_path)


def test_good_parts_of_16_bits_give_the_threshold_of_8_bits(tmp_path: Path) -> None:
    thresholds = []
    for depth in (8, 16):
        folder = tmp_path / str(depth)
        write_parts(folder, 4, depth=depth)
        model = make_model(normal_dir=folder)
        model.prepare()
        thresholds.append(float(model.post_processor.image_threshold))
    assert thresholds[1] == pytest.approx(thresholds[0], abs=1e-6)
    model = make_model(normal_dir=tmp_path / "16", depth_range=(0, 40_000))
    model.prepare()
    assert abs(float(model.post_processor.image_threshold) - thresholds[0]) > 1e-4


def test_a_broken_good_part_is_named(tmp_path: Path) -> None:
    cut(write_parts(tmp_path / "good", 3)[1])
    with pytest.raises(ImageReadError, match=r"One of normal_dir=.*1\.png cannot be read"):
        make_model(normal_dir=tmp_path / "good").prepare()


def test_anomalibs_own_data_set_is_read_by_our_rules(tmp_path: Path) -> None:
    files = write_parts(tmp_path / "a" / "x", 2) + write_parts(tmp_path / "b" / "x", 2)
    exif = Image.Exif()
    exif[0x0112] = 6
    with Image.open(files[0]) as image:
        image.transpose(Image.Transpose.ROTATE_90).save(files[1], exif=exif)
    cut(files[2])
    engine = Engine(default_root_dir=tmp_path / "out", **QUIET)
    model = make_model(visualizer=True, save_maps=True)
    data = PredictDataset(tmp_path / "a")
    data.image_filenames += PredictDataset(tmp_path / "b").image_filenames
    found = engine.predict(model, dataset=data)
    assert [float(batch.pred_score) for batch in found[:2]] == pytest.approx([float(found[0].pred_score)] * 2, abs=1e-5)
    with next(tmp_path.rglob("predictions.csv")).open(newline="") as file:
        rows = list(csv.DictReader(file))
    assert [bool(row["error"]) for row in rows] == [False, False, True, False]
    for kind in ("images", "anomaly_maps"):
        written = {
            path.relative_to(tmp_path / "out/ZsClip/latest").as_posix() for path in tmp_path.rglob(f"{kind}/**/*.*")
        }
        ending = "png" if kind == "images" else "tiff"
        assert written == {f"{kind}/{name}.{ending}" for name in ("a/x/0", "a/x/1", "b/x/1")}
    with Image.open(next(tmp_path.rglob("anomaly_maps/a/x/1.tiff"))) as anomaly_map:
        assert anomaly_map.size == (80, 60), "upright"


def test_a_wrong_path_is_one_sentence(tmp_path: Path) -> None:
    for path in (tmp_path / "absent", tmp_path / "*.png"):
        with pytest.raises(ArgumentError, match=r"^data="):
            Engine(default_root_dir=tmp_path, **QUIET).predict(make_model(), data_path=path)


def test_the_engine_of_other_models_is_as_it_was(tmp_path: Path) -> None:
    from anomalib.models import Padim

    make_model()
    with pytest.raises(FileNotFoundError, match="does not exist"):
        Engine(default_root_dir=tmp_path, **QUIET).predict(Padim(pre_trained=False), data_path=tmp_path / "absent")


def test_images_of_a_wrong_range_are_refused() -> None:
    import torch

    model = make_model().eval()
    with pytest.raises(ArgumentError, match="divide by 255"):
        model(torch.rand(1, 3, 64, 64) * 255)
