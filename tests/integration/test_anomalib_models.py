"""Our models inside anomalib: fit, train, validate, test, predict, with and without data to decide from."""

from __future__ import annotations

import logging
from pathlib import Path

import numpy as np
import pytest
import torch
from anomalib.data import Folder, MVTecAD
from anomalib.engine import Engine
from anomalib.models import AnomalibModule
from PIL import Image

from anomalib_zsclip import AnomalyClip, ClipAd, RandomWordClip, SyntheticDefects, ZsClip
from anomalib_zsclip.errors import ArgumentError, CheckpointError, ImageReadError
from anomalib_zsclip.outputs.post_processing import LABELLED_DATA, NO_DATA, NORMAL_IMAGES

METRICS = {"image_AUROC", "image_AveragePrecision", "image_F1Max", "pixel_AUROC", "pixel_F1Max", "pixel_AUPRO"}


def make(name: str) -> AnomalibModule:
    models = {
        "RandomWordClip": lambda: RandomWordClip(backbone="builtin", prompts_per_class=100),
        "RandomWordClip-window": lambda: RandomWordClip(
            backbone="builtin", prompts_per_class=100, localization="window"
        ),
        "ClipAd": lambda: ClipAd(backbone="builtin"),
        "ClipAd-plus": lambda: ClipAd(variant="sdp+", backbone="builtin"),
        "AnomalyClip": lambda: AnomalyClip(backbone="builtin"),
        "ZsClip": lambda: ZsClip(backbone="builtin", random_word={"prompts_per_class": 100}),
    }
    return models[name]()


ALL = ["RandomWordClip", "RandomWordClip-window", "ClipAd", "ClipAd-plus", "AnomalyClip", "ZsClip"]


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> SyntheticDefects:
    root = tmp_path_factory.mktemp("data")
    return SyntheticDefects(
        "wood", image_size=96, num_train=6, num_test_good=4, num_test_per_defect=1, root=root, eval_batch_size=4
    )


@pytest.fixture(scope="module")
def folder(data: SyntheticDefects) -> Path:
    data.prepare_data()
    return data.folder / data.category if (data.folder / data.category).is_dir() else data.folder


@pytest.fixture
def engine(tmp_path: Path) -> Engine:
    return Engine(default_root_dir=tmp_path / "results", accelerator="cpu", devices=1)


def files(engine: Engine, pattern: str) -> list[Path]:
    return sorted(Path(engine.trainer.default_root_dir).rglob(pattern))


@pytest.mark.parametrize("name", ALL)
def test_train_test_and_reload(name: str, data: SyntheticDefects, engine: Engine) -> None:
    model = make(name)
    (result,) = engine.train(model, datamodule=data)
    assert set(result) == METRICS
    assert all(0 <= value <= 1 for value in result.values())
    assert int(model.post_processor.source) == LABELLED_DATA
    assert len(files(engine, "*.png")) == 9
    (checkpoint,) = files(engine, "model.ckpt")
    assert checkpoint.stat().st_size < 5_000_000
    loaded = type(model).load_from_checkpoint(checkpoint)
    (again,) = engine.test(loaded, datamodule=data, ckpt_path=checkpoint)
    assert again == pytest.approx(result, abs=1e-6)


@pytest.mark.parametrize("name", ["RandomWordClip", "ZsClip"])
def test_a_folder_without_training_validation_or_checkpoint(name: str, folder: Path, engine: Engine) -> None:
    images = folder / "test" / "good"
    model = make(name)
    predictions = engine.predict(model, data_path=images)
    assert len(predictions) == 4
    assert int(model.post_processor.source) == NO_DATA
    for batch in predictions:
        assert batch.pred_score.shape == (1,)
        assert 0 <= float(batch.pred_score) <= 1
        assert bool(batch.pred_label) == bool(batch.pred_score > 0.5)
        assert batch.anomaly_map.isfinite().all()
    assert len(files(engine, "*.png")) == 4


def test_one_image(folder: Path, engine: Engine) -> None:
    image = next((folder / "test" / "good").iterdir())
    (batch,) = engine.predict(make("ClipAd"), data_path=image)
    assert batch.anomaly_map.shape[-2:] == (192, 192), "the default size of the built-in backbone"


def test_validate_and_fit_and_the_positional_datamodule_of_the_benchmark(
    data: SyntheticDefects, engine: Engine
) -> None:
    model = make("RandomWordClip")
    (result,) = engine.validate(model, datamodule=data)
    assert set(result) == {"image_AUROC", "pixel_AUROC"}
    engine.fit(model, data)
    (result,) = engine.test(model, data)
    assert set(result) == METRICS


def test_the_category_goes_into_the_prompts_and_stays_in_the_checkpoint(
    data: SyntheticDefects, engine: Engine, caplog: pytest.LogCaptureFixture
) -> None:
    model = make("ClipAd")
    with caplog.at_level(logging.INFO):
        engine.train(model, datamodule=data)
    expected = model.model.heads["sdp"].compile_text(model.model.backbone, "wood")
    assert torch.allclose(model.model.heads["sdp"].text_features, expected)
    assert caplog.text.count("Decisions from labelled validation data") == 1


def test_explanations_reach_the_predictions(folder: Path, engine: Engine) -> None:
    words = ["crack", "hole"]
    model = ZsClip(backbone="builtin", heads=["sdp"], defect_words=words)
    for batch in engine.predict(model, data_path=folder / "test" / "good"):
        assert batch.explanation[0].split(" ")[0] in words
    silent = ZsClip(backbone="builtin", heads=["sdp"], explain=False)
    assert engine.predict(silent, data_path=folder / "test" / "good")[0].explanation is None


def test_one_pass_of_the_tower_serves_all_heads(monkeypatch: pytest.MonkeyPatch) -> None:
    from anomalib_zsclip.clip import image_tower

    model = make("ZsClip")
    model.prepare()
    calls = []
    original = image_tower.run_blocks
    monkeypatch.setattr(image_tower, "run_blocks", lambda *args: calls.append(1) or original(*args))
    model.model.explain(torch.rand(2, 3, 128, 128))
    assert len(model.model.heads) >= 2
    assert len(calls) == 1


def test_few_shot_from_the_training_images(data: SyntheticDefects, engine: Engine) -> None:
    model = ZsClip(backbone="builtin", heads=["sdp"], k_shot=2)
    engine.train(model, datamodule=data)
    assert model.model.memory_bank.patches.shape[1] == 2
    (checkpoint,) = files(engine, "model.ckpt")
    loaded = ZsClip.load_from_checkpoint(checkpoint)
    assert torch.equal(loaded.model.memory_bank.patches, model.model.memory_bank.patches)
    assert loaded.k_shot == 2


def test_few_shot_without_normal_images_says_what_to_do(folder: Path, engine: Engine) -> None:
    with pytest.raises(ArgumentError, match=r"k_shot=3 needs as many normal images.*normal_dir"):
        engine.predict(ZsClip(backbone="builtin", heads=["sdp"], k_shot=3), data_path=folder / "test" / "good")


def test_decisions_from_a_folder_of_good_parts(folder: Path, engine: Engine) -> None:
    model = ZsClip(backbone="builtin", heads=["sdp"], normal_dir=folder / "train" / "good", false_alarms=0.0)
    predictions = engine.predict(model, data_path=folder / "train" / "good")
    assert int(model.post_processor.source) == NORMAL_IMAGES
    assert not any(bool(batch.pred_label) for batch in predictions)


def test_fit_on_normal_images_alone(folder: Path, engine: Engine) -> None:
    model = ZsClip(backbone="builtin", heads=["sdp"])
    normal = Folder("parts", root=folder, normal_dir="train/good", num_workers=0)
    engine.fit(model, datamodule=normal)
    assert int(model.post_processor.source) == NORMAL_IMAGES


def test_test_sets_without_anomalies_and_without_masks(folder: Path, engine: Engine) -> None:
    no_masks = Folder(
        "parts",
        root=folder,
        normal_dir="train/good",
        abnormal_dir="test/scratch",
        normal_test_dir="test/good",
        num_workers=0,
    )
    (result,) = engine.test(make("RandomWordClip"), datamodule=no_masks)
    assert np.isfinite(result["image_AUROC"])
    no_anomalies = Folder("parts", root=folder, normal_dir="train/good", normal_test_dir="test/good", num_workers=0)
    engine.test(make("RandomWordClip"), datamodule=no_anomalies)


def test_odd_images_in_a_folder(tmp_path: Path, engine: Engine) -> None:
    folder = tmp_path / "odd"
    folder.mkdir()
    noise = np.random.default_rng(0)
    Image.fromarray(noise.integers(0, 255, (40, 61), dtype=np.uint8)).save(folder / "grey.png")
    Image.fromarray(noise.integers(0, 255, (40, 61, 4), dtype=np.uint8)).save(folder / "rgba.png")
    Image.fromarray(np.full((1, 1), 7, dtype=np.uint8)).save(folder / "pixel.png")
    Image.fromarray(noise.integers(0, 255, (3, 500), dtype=np.uint8)).save(folder / "long.png")
    for batch in engine.predict(make("ZsClip"), data_path=folder):
        assert batch.pred_score.isfinite().all()
        assert batch.anomaly_map.isfinite().all()


@pytest.mark.parametrize("content", [b"", b"no image at all", None])
def test_unreadable_images_are_named(content: bytes | None, tmp_path: Path, engine: Engine) -> None:
    folder = tmp_path / "images"
    folder.mkdir()
    Image.new("RGB", (64, 64)).save(folder / "a_good.png")
    if content is None:
        whole = (folder / "a_good.png").read_bytes()
        content = whole[: len(whole) // 2]
    (folder / "b_bad.png").write_bytes(content)
    with pytest.raises(ImageReadError, match=r"b_bad\.png"):
        engine.predict(ClipAd(backbone="builtin", on_unreadable="stop"), data_path=folder)


def test_checkpoints_of_other_backbones_are_refused(data: SyntheticDefects, engine: Engine, monkeypatch) -> None:
    engine.validate(make("ClipAd"), datamodule=data)
    (checkpoint,) = files(engine, "model.ckpt")
    content = torch.load(checkpoint, weights_only=True)
    content["zsclip_backbone"] = {"name": "ViT-B-16", "pretrained": "openai", "fingerprint": "0" * 32}
    torch.save(content, checkpoint)
    with pytest.raises(CheckpointError, match="made with the backbone 'ViT-B-16'"):
        ClipAd.load_from_checkpoint(checkpoint)


def test_sizes_and_precisions(folder: Path, engine: Engine) -> None:
    model = ClipAd(backbone="builtin", image_size=(96, 160), precision="bf16")
    (batch, *_) = engine.predict(model, data_path=folder / "test" / "good")
    assert batch.anomaly_map.shape[-2:] == (96, 160)
    assert batch.anomaly_map.dtype == torch.float32
    with pytest.raises(ArgumentError, match="at least one patch"):
        ClipAd(backbone="builtin", image_size=4)
    with pytest.raises(ArgumentError, match="precision='half'"):
        ClipAd(backbone="builtin", precision="half")


def test_real_images(real_images: Path, engine: Engine) -> None:
    data = MVTecAD(root=real_images, category="magnetic_tile", num_workers=0)
    (result,) = engine.test(ZsClip(backbone="builtin"), datamodule=data)
    assert set(result) == METRICS
    assert result["pixel_AUROC"] > 0.6
