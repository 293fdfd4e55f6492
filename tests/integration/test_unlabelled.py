"""The folder as its own reference, through anomalib's engine: MuSc, and ZsClip beside text."""

from __future__ import annotations

import logging
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from anomalib.data import PredictDataset
from anomalib.deploy import ExportType
from anomalib.engine import Engine
from PIL import Image

from anomalib_zsclip import MuSc, SyntheticDefects, ZsClip
from anomalib_zsclip.data.generator import generate
from anomalib_zsclip.errors import ArgumentError, CheckpointError
from anomalib_zsclip.models.verdicts import Verdicts
from anomalib_zsclip.outputs.post_processing import FOLDER, LABELLED_DATA

SIZE = 96
BAD = ("09", "10")


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Eleven pictures of one product, two of them defective."""
    path = tmp_path_factory.mktemp("folder")
    for index in range(11):
        bad = f"{index:02d}" in BAD
        sample = generate("solar_cell", "break" if bad else None, SIZE, np.random.default_rng(index), style=4, wild=0.3)
        Image.fromarray(sample.image).save(path / f"{index:02d}.png")
    return path


def make(kind: type, **arguments: Any) -> Any:
    if kind is ZsClip:
        arguments = {"heads": ["anomaly_clip"], "explain": False} | arguments
    return kind(backbone="builtin", image_size=SIZE, visualizer=False, evaluator=False, **arguments)


def engine(path: Path) -> Engine:
    return Engine(default_root_dir=path, logger=False, enable_progress_bar=False)


def scores(batches: list[Any]) -> dict[str, float]:
    return {
        Path(name).stem: float(score)
        for batch in batches
        for name, score in zip(batch.image_path, batch.pred_score, strict=True)
    }


@pytest.mark.parametrize("kind", [MuSc, ZsClip])
def test_a_folder_and_nothing_else(
    kind: type, folder: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    own = tmp_path / "pictures"
    shutil.copytree(folder, own)
    shutil.copy(own / "10.png", own / "copy.png")  # a second one must not excuse the first
    model = make(kind, unlabelled=12)
    judged: list[int] = []  # views that a second pass of the tower was made for
    see = model.model.features
    monkeypatch.setattr(model.model, "features", lambda images: (judged.append(len(images)), see(images))[1])
    with caplog.at_level(logging.INFO, logger="anomalib_zsclip"):
        found = scores(engine(tmp_path).predict(model, data_path=own))
    assert not judged, "all of them are references"
    assert model.verdicts is None, "kept for the stage alone"
    model.verdicts = Verdicts()  # a stage that ends with an exception has no teardown
    model.prepare()
    assert model.verdicts is None
    good = [score for name, score in found.items() if name not in (*BAD, "copy")]
    assert all(found[name] > max(good) for name in (*BAD, "copy"))
    assert int(model.post_processor.source) == FOLDER
    assert "1 copies left out" in caplog.text
    assert "Decisions from 11 unlabelled images" in caplog.text
    # A plain call afterwards judges by the same references.
    image = PredictDataset(own, image_size=(SIZE, SIZE))[0].image[None]
    assert float(model(image).pred_score) == pytest.approx(found[sorted(found)[0]], abs=1e-4)
    # So is a picture that comes alone, with which there is nothing else to compare.
    with caplog.at_level(logging.INFO, logger="anomalib_zsclip"):
        alone = scores(engine(tmp_path).predict(model, data_path=own / "10.png"))
    assert alone["10"] == pytest.approx(found["10"], abs=1e-4)
    assert "Compared with the 11 unlabelled images of before" in caplog.text
    assert sum(judged) == 2
    assert int(model.post_processor.source) == FOLDER
    # Another folder brings references of its own.
    before = model.model.memory_bank.unlabelled
    for name in BAD:
        (own / f"{name}.png").unlink()
    engine(tmp_path).predict(model, data_path=own)
    assert model.model.memory_bank.unlabelled is not before


def test_references_of_last_week_stay_with_the_model(folder: Path, tmp_path: Path) -> None:
    model = make(MuSc, unlabelled=10, unlabelled_dir=folder)
    first = engine(tmp_path)
    expected = scores(first.predict(model, data_path=folder / "09.png"))
    first.trainer.save_checkpoint(tmp_path / "model.ckpt")
    hidden = folder.rename(tmp_path / "elsewhere")
    try:
        loaded = make(MuSc, unlabelled=10, unlabelled_dir=folder)
        later = engine(tmp_path).predict(loaded, data_path=hidden / "09.png", ckpt_path=tmp_path / "model.ckpt")
        assert scores(later) == pytest.approx(expected, abs=1e-5)
        exported = torch.load(
            engine(tmp_path).export(loaded, ExportType.TORCH, export_root=tmp_path), weights_only=False
        )["model"]
        image = PredictDataset(hidden / "09.png", image_size=(SIZE, SIZE))[0].image[None]
        assert float(exported(image).pred_score) == pytest.approx(expected["09"], abs=1e-4)
        other = make(MuSc, unlabelled=8, unlabelled_dir=folder)
        with pytest.raises((ArgumentError, CheckpointError), match="unlabelled"):
            engine(tmp_path).predict(other, data_path=hidden / "09.png", ckpt_path=tmp_path / "model.ckpt")
        none = make(ZsClip)
        with pytest.raises(CheckpointError, match="MuSc"):
            engine(tmp_path).predict(none, data_path=hidden / "09.png", ckpt_path=tmp_path / "model.ckpt")
    finally:
        hidden.rename(folder)


def test_onnx_holds_the_references(folder: Path, tmp_path: Path) -> None:
    onnxruntime = pytest.importorskip("onnxruntime")
    model = make(MuSc, unlabelled=10, unlabelled_dir=folder)
    path = engine(tmp_path).export(model, ExportType.ONNX, export_root=tmp_path)
    session = onnxruntime.InferenceSession(path, providers=["CPUExecutionProvider"])
    for name in ("03.png", "09.png"):  # one of the folder's own, and a defect
        image = PredictDataset(folder / name, image_size=(SIZE, SIZE))[0].image[None]
        names = [output.name for output in session.get_outputs()]
        found = dict(zip(names, session.run(None, {session.get_inputs()[0].name: image.numpy()}), strict=True))
        expected = model(image)
        assert float(found["pred_score"].item()) == pytest.approx(float(expected.pred_score), abs=1e-3)
        assert np.abs(found["anomaly_map"].squeeze() - expected.anomaly_map.squeeze().numpy()).max() < 1e-3


@pytest.mark.parametrize("kind", [MuSc, ZsClip])
def test_too_few_pictures(kind: type, folder: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    own = tmp_path / "pictures"
    own.mkdir()
    for name in ("00", "01", "02", "09"):
        shutil.copy(folder / f"{name}.png", own)
    model = make(kind, unlabelled=12)
    if kind is MuSc:
        with pytest.raises(ArgumentError, match=r"4 different images.*unlabelled_dir="):
            engine(tmp_path).predict(model, data_path=own)
        return
    with caplog.at_level(logging.WARNING, logger="anomalib_zsclip"):
        found = scores(engine(tmp_path).predict(model, data_path=own))
    assert "4 different images" in caplog.text
    alone = make(ZsClip)
    assert found == pytest.approx(scores(engine(tmp_path).predict(alone, data_path=own)), abs=1e-6)


@pytest.mark.parametrize("kind", [MuSc, ZsClip])
def test_tiles_are_compared_too(kind: type, folder: Path, tmp_path: Path) -> None:
    model = make(kind, unlabelled=8, tiles=2)
    found = scores(engine(tmp_path).predict(model, data_path=folder))
    assert model.model.memory_bank.unlabelled.shape[1:3] == (8, 5)
    good = [score for name, score in found.items() if name not in BAD]
    assert all(found[name] > max(good) for name in BAD)
    # What the folder's own scores were fused of is what a picture gets when it is judged.
    image = PredictDataset(folder / "03.png", image_size=(2 * SIZE, 2 * SIZE))[0].image[None]
    raw = model.model(model.pre_processor(image))
    assert float((model.model.mutual.own_scores - raw.pred_score).abs().min()) < 0.05
    with pytest.raises(ArgumentError, match="auto"):
        engine(tmp_path).predict(make(kind, unlabelled=8, tiles="auto"), data_path=folder)


def test_no_images_at_all() -> None:
    with pytest.raises(ArgumentError, match="unlabelled_dir"):
        make(MuSc)(torch.zeros(1, 3, SIZE, SIZE))


def test_labels_decide_where_there_are_some_and_are_no_references(tmp_path: Path) -> None:
    data = SyntheticDefects(
        root=tmp_path, image_size=SIZE, num_train=2, num_test_good=6, num_test_per_defect=1, eval_batch_size=4
    )
    model = MuSc(backbone="builtin", image_size=SIZE, visualizer=False, unlabelled="all")
    (result,) = engine(tmp_path).test(model, datamodule=data)
    assert int(model.post_processor.source) == LABELLED_DATA
    assert model.model.memory_bank.unlabelled.shape[1] == 11
    assert result["image_AUROC"] > 0.8
    assert len(model.model.mutual.raw_scores) == 11


def test_a_checkpoint_with_references_needs_a_model_that_wants_them(folder: Path, tmp_path: Path) -> None:
    first = engine(tmp_path)
    first.predict(make(ZsClip, unlabelled=8), data_path=folder)
    first.trainer.save_checkpoint(tmp_path / "model.ckpt")
    with pytest.raises(CheckpointError, match="unlabelled=8"):
        engine(tmp_path).predict(make(ZsClip), data_path=folder, ckpt_path=tmp_path / "model.ckpt")
