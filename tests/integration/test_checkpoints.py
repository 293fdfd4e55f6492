"""A checkpoint holds what was learned and decided, not the CLIP, and goes with no other CLIP."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import open_clip
import pytest
import torch
from anomalib.data import MVTecAD
from anomalib.engine import Engine
from anomalib.models.components import AnomalibModule

from anomalib_zsclip.clip import ClipBackbone
from anomalib_zsclip.errors import CheckpointError
from anomalib_zsclip.models import anomaly_clip, zs_clip
from anomalib_zsclip.models.checkpoints import BACKBONE_PREFIX
from tests.builtin_models import MODELS, make_model, save
from tests.transfer_data import make_category

STATISTICS = ("_image_threshold", "_pixel_threshold", "image_min", "image_max", "pixel_min", "pixel_max")


def make_data(folder: Path) -> MVTecAD:
    make_category(folder, "tile", size=(64, 64))
    return MVTecAD(root=folder, category="tile", num_workers=0, eval_batch_size=6)


def make_engine(folder: Path) -> Engine:
    quiet = {"enable_progress_bar": False, "enable_model_summary": False}
    return Engine(default_root_dir=folder / "results", accelerator="cpu", devices=1, **quiet)


def fit(model: AnomalibModule, folder: Path) -> Path:
    """Validate, which is all the training of a zero-shot model, and give the checkpoint."""
    engine = make_engine(folder)
    engine.fit(model, datamodule=make_data(folder))
    (checkpoint,) = (folder / "results").rglob("v0/**/model.ckpt")
    return checkpoint


def statistics(model: AnomalibModule) -> list[float]:
    return [float(getattr(model.post_processor, name)) for name in STATISTICS]


def score(model: AnomalibModule) -> tuple[torch.Tensor, torch.Tensor]:
    images = torch.rand(2, 3, 64, 64, generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        result = model.eval()(images)
    return result.pred_score, result.anomaly_map


@pytest.mark.parametrize("name", MODELS)
def test_a_checkpoint_brings_everything_back(name: str, tmp_path: Path) -> None:
    model = make_model(name, tmp_path)
    checkpoint = fit(model, tmp_path)
    assert not torch.isnan(torch.tensor(statistics(model))).any()

    content = torch.load(checkpoint, weights_only=True)
    assert not [key for key in content["state_dict"] if key.startswith(BACKBONE_PREFIX)]
    assert content["zsclip_backbone"] == model.model.backbone.identity.as_dict()
    assert checkpoint.stat().st_size < 5_000_000

    loaded = type(model).load_from_checkpoint(checkpoint)
    assert statistics(loaded) == statistics(model)
    assert all(torch.equal(found, wanted) for found, wanted in zip(score(loaded), score(model), strict=True))


def test_ckpt_path_takes_thresholds_and_category_from_the_checkpoint(tmp_path: Path) -> None:
    model = make_model("ClipAd", tmp_path)
    checkpoint = fit(model, tmp_path)
    fresh = make_model("ClipAd", tmp_path)
    (batch,) = make_engine(tmp_path).predict(
        fresh, data_path=tmp_path / "tile" / "test" / "bad" / "000.png", ckpt_path=checkpoint
    )
    assert statistics(fresh) == statistics(model)
    assert torch.equal(fresh.model.heads["sdp"].text_features, model.model.heads["sdp"].text_features)
    assert bool(batch.pred_label) == bool(batch.pred_score > 0.5)


def test_an_export_from_a_checkpoint_has_its_thresholds(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TRUST_REMOTE_CODE", "1")
    model = make_model("RandomWordClip", tmp_path)
    checkpoint = fit(model, tmp_path)
    fresh = make_model("RandomWordClip", tmp_path)
    path = make_engine(tmp_path).export(fresh, "torch", export_root=tmp_path, ckpt_path=checkpoint)
    exported = torch.load(path, weights_only=False)["model"]
    assert statistics(exported) == statistics(model)
    assert all(torch.equal(found, wanted) for found, wanted in zip(score(exported), score(model), strict=True))


def wide_clip(seed: int = 0) -> ClipBackbone:
    """The widths of ViT-L/14, which the heads depend on, with few blocks."""
    torch.manual_seed(seed)
    vision = {"image_size": 56, "layers": 4, "width": 1024, "head_width": 64, "patch_size": 14}
    text = {"context_length": 77, "vocab_size": 49408, "width": 768, "heads": 12, "layers": 2}
    return ClipBackbone(open_clip.model.CLIP(768, vision, text), name="wide", pretrained=f"seed {seed}")


@pytest.fixture(scope="module")
def wide() -> ClipBackbone:
    return wide_clip()


def test_checkpoints_on_a_large_clip_are_small(
    wide: ClipBackbone, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for module in (zs_clip, anomaly_clip):
        monkeypatch.setattr(module, "read_backbone_arguments", lambda *_args: wide)
    for model in (zs_clip.ZsClip(heads=["random_word", "sdp"]), anomaly_clip.AnomalyClip(learn=True)):
        if isinstance(model, anomaly_clip.AnomalyClip):
            model.model.heads["anomaly_clip"].setup(wide, "object")
            model.model.heads["anomaly_clip"].finish_learning(wide)
        assert save(model, tmp_path / "model.ckpt").stat().st_size < 5_000_000


def test_another_backbone_is_refused_by_name(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, tiny: ClipBackbone
) -> None:
    path = save(make_model("ClipAd", tmp_path), tmp_path / "model.ckpt")
    monkeypatch.setattr(zs_clip, "read_backbone_arguments", lambda *_args: tiny)
    other = zs_clip.ZsClip(heads=["sdp"])
    with pytest.raises(
        CheckpointError, match=r"made with the backbone 'builtin'.*model has 'tiny'.*backbone='builtin'"
    ):
        other.on_load_checkpoint(torch.load(path, weights_only=True))


def test_a_checkpoint_of_somebody_else_is_refused(tmp_path: Path) -> None:
    model = make_model("ClipAd", tmp_path)
    with pytest.raises(CheckpointError, match="not made by a model of anomalib-zsclip"):
        model.on_load_checkpoint({"state_dict": {}})


def test_nothing_in_a_checkpoint_is_executed(tmp_path: Path) -> None:
    class Evil:
        def __reduce__(self) -> tuple[Any, ...]:
            return (Path.touch, (tmp_path / "executed",))

    path = save(make_model("ClipAd", tmp_path), tmp_path / "model.ckpt")
    content = torch.load(path, weights_only=True)
    torch.save({**content, "extra": Evil()}, path)
    with pytest.raises(CheckpointError, match="pickled Python objects"):
        type(make_model("ClipAd", tmp_path)).load_from_checkpoint(path)
    assert not (tmp_path / "executed").exists()
