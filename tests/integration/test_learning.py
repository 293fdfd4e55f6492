"""Learning through anomalib's engine: equal losses with and without the cache, resumable, honest on its data."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from anomalib.callbacks.checkpoint import ModelCheckpoint
from anomalib.engine import Engine
from lightning.pytorch import Callback

from anomalib_zsclip.data.zero_shot_transfer import ZeroShotTransfer
from anomalib_zsclip.errors import ArgumentError
from anomalib_zsclip.learning import TokenCache
from tests.transfer_data import (
    IMAGE_SIZE,
    Detector,
    folder_without_masks,
    make_category,
    make_transfer,
    mvtec,
    transfer,
)

CACHES = {"memory": {}, "file": {"cache_budget_gb": 0.0}, "none": {"token_cache": False}}
HEADS = ["sdp+", "anomaly_clip", "crane"]


def make_engine(tmp_path: Path, *callbacks: Callback) -> Engine:
    quiet = {"enable_progress_bar": False, "enable_model_summary": False}
    return Engine(list(callbacks), default_root_dir=tmp_path / "results", accelerator="cpu", **quiet)


def learn(tmp_path: Path, datamodule: ZeroShotTransfer, *callbacks: Callback, **arguments: Any) -> Detector:
    model = Detector(**arguments)
    make_engine(tmp_path, *callbacks).fit(model, datamodule=datamodule)
    return model


@pytest.mark.parametrize("kind", HEADS)
@pytest.mark.parametrize("seed", [0, None])
def test_losses_are_the_same_with_and_without_cache(tmp_path: Path, kind: str, seed: int | None) -> None:
    losses = {}
    for name, options in CACHES.items():
        model = learn(tmp_path, make_transfer(tmp_path, seed=seed), kind=kind, seed=3, epochs=3, **options)
        losses[name] = torch.tensor(model.losses)
    assert len(losses["none"]) == 9
    assert torch.equal(losses["memory"], losses["file"])
    torch.testing.assert_close(losses["memory"], losses["none"], rtol=2e-5, atol=1e-6)
    assert losses["none"][-3:].mean() < losses["none"][:3].mean()


def test_tower_sees_each_image_once(tmp_path: Path) -> None:
    assert learn(tmp_path, make_transfer(tmp_path), epochs=3).tower_images == 12
    assert learn(tmp_path, make_transfer(tmp_path), epochs=3, token_cache=False).tower_images == 36


def test_a_single_epoch_needs_no_cache(tmp_path: Path) -> None:
    class NoCache(Callback):
        def on_train_start(self, trainer: Any, pl_module: Any) -> None:
            assert not isinstance(trainer.datamodule.train_data, TokenCache)

    assert learn(tmp_path, make_transfer(tmp_path), NoCache(), epochs=1).tower_images == 12


class Spy(Callback):
    """Notes what is in the folder of results, and the metrics, while the model learns."""

    def __init__(self) -> None:
        self.files: set[str] = set()
        self.metrics: list[set[str]] = []
        self.cached: list[bool] = []

    def on_train_batch_start(self, trainer: Any, pl_module: Any, batch: Any, batch_idx: int) -> None:
        self.files |= {path.name for path in Path(trainer.default_root_dir).rglob("*")}
        self.cached.append(trainer.datamodule.train_data.is_on_disk)

    def on_train_epoch_end(self, trainer: Any, pl_module: Any) -> None:
        self.metrics.append(set(trainer.callback_metrics))


def test_cache_file_has_no_name_and_data_is_given_back(tmp_path: Path) -> None:
    spy, datamodule = Spy(), make_transfer(tmp_path)
    learn(tmp_path, datamodule, spy, cache_budget_gb=0.0)
    assert all(spy.cached)
    assert spy.files <= {"weights", "lightning", "model.ckpt"}
    assert len(datamodule.train_data.samples) == 12


def test_loss_and_its_parts_are_logged(tmp_path: Path) -> None:
    spy = Spy()
    learn(tmp_path, make_transfer(tmp_path), spy)
    assert len(spy.metrics) == 2
    assert all({"train_loss", "train_focal", "train_dice"} <= metrics for metrics in spy.metrics)


def test_metrics_of_the_target_are_logged_in_every_epoch(tmp_path: Path) -> None:
    spy = Spy()
    learn(tmp_path, make_transfer(tmp_path), spy)
    assert all({"image_AUROC", "pixel_AUROC"} <= metrics for metrics in spy.metrics)


@pytest.mark.parametrize("interruption", [RuntimeError, KeyboardInterrupt])
def test_data_is_given_back_after_an_interruption(tmp_path: Path, interruption: type[BaseException]) -> None:
    class Interrupt(Callback):
        def on_train_batch_end(self, *arguments: Any) -> None:
            raise interruption

    datamodule = make_transfer(tmp_path)
    with pytest.raises((RuntimeError, SystemExit)):
        learn(tmp_path, datamodule, Interrupt(), cache_budget_gb=0.0)
    assert len(datamodule.train_data.samples) == 12


@pytest.mark.parametrize("kind", HEADS)
def test_interrupted_learning_continues_as_if_it_had_not_been(tmp_path: Path, kind: str) -> None:
    whole = learn(tmp_path, make_transfer(tmp_path), kind=kind, epochs=4)

    keep = ModelCheckpoint(dirpath=tmp_path / "kept", filename="half")
    first = learn(tmp_path, make_transfer(tmp_path), keep, kind=kind, epochs=2)
    second = Detector(kind=kind, seed=9, epochs=4)
    make_engine(tmp_path).fit(second, datamodule=make_transfer(tmp_path), ckpt_path=tmp_path / "kept" / "half.ckpt")

    torch.testing.assert_close(torch.tensor(first.losses + second.losses), torch.tensor(whole.losses))
    for name, value in whole.learning_head.named_parameters():
        torch.testing.assert_close(second.learning_head.get_parameter(name), value)


@pytest.mark.parametrize("kind", HEADS)
def test_checkpoint_names_its_data_and_holds_what_was_learned_alone(tmp_path: Path, kind: str) -> None:
    keep = ModelCheckpoint(dirpath=tmp_path / "kept", filename="model")
    model = learn(tmp_path, make_transfer(tmp_path), keep, kind=kind)
    checkpoint = torch.load(tmp_path / "kept" / "model.ckpt", weights_only=True)
    assert checkpoint["zsclip_learned_from"] == [
        {"name": "MVTecAD", "category": "cup", "images": 6},
        {"name": "MVTecAD", "category": "metal_nut", "images": 6},
    ]
    assert not [key for key in checkpoint["state_dict"] if "backbone" in key]
    learned = dict(model.learning_head.named_parameters())
    assert len(checkpoint["optimizer_states"][0]["state"]) == len(learned)

    loaded = Detector.load_from_checkpoint(tmp_path / "kept" / "model.ckpt", learn=False)
    assert loaded.learned_from == checkpoint["zsclip_learned_from"]
    images = torch.rand(2, 3, 40, 40, generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        torch.testing.assert_close(loaded.eval()(images).anomaly_map, model.eval()(images).anomaly_map)


def test_learning_on_from_a_checkpoint_adds_the_new_data_to_the_old(tmp_path: Path) -> None:
    keep = ModelCheckpoint(dirpath=tmp_path / "kept", filename="model")
    learn(tmp_path, make_transfer(tmp_path, all_categories=False), keep, epochs=1)
    model = Detector.load_from_checkpoint(tmp_path / "kept" / "model.ckpt")
    make_engine(tmp_path).fit(model, datamodule=make_transfer(tmp_path))
    assert [part["category"] for part in model.learned_from] == ["cup", "metal_nut"]


@pytest.mark.parametrize("kind", HEADS)
def test_thresholds_of_good_parts_are_those_of_what_was_learned(tmp_path: Path, kind: str) -> None:
    make_transfer(tmp_path)
    datamodule = transfer(
        mvtec(tmp_path / "auxiliary", "cup"), mvtec(tmp_path / "target", "plate", val_split_mode="none")
    )
    model = Detector(kind=kind, epochs=1)
    model.normal_dir = tmp_path / "target" / "plate" / "train" / "good"
    seen = []
    for _ in range(2):
        make_engine(tmp_path).fit(model, datamodule=datamodule)
        model.eval().prepare()
        seen.append(model.post_processor.normal_scores)
        model.post_processor.reset()
        model.bindings.decisions = None
        model.prepare()
        torch.testing.assert_close(seen[-1], model.post_processor.normal_scores)
    assert (seen[0] - seen[1]).abs().max() > 1e-4, "it has learned more"


def test_learned_head_finds_the_defects_of_the_target(tmp_path: Path) -> None:
    datamodule = make_transfer(tmp_path)
    model = Detector(epochs=15)
    engine = make_engine(tmp_path)
    engine.fit(model, datamodule=datamodule)
    results = engine.test(model, datamodule=datamodule)[0]
    assert results["pixel_AUROC"] > 0.8


def test_images_of_odd_mask_sizes_reach_the_loss_at_the_models_size(tmp_path: Path) -> None:
    target = make_transfer(tmp_path).target
    make_category(tmp_path / "odd", "cup", size=(40, 60), mask_size=(80, 20), mask_value=3)

    class Masks(Callback):
        def on_train_batch_start(self, trainer: Any, pl_module: Any, batch: Any, batch_idx: int) -> None:
            assert batch.masks.shape[1:] == (IMAGE_SIZE, IMAGE_SIZE)
            assert batch.masks.flatten(1).sum(dim=1).tolist() == (batch.labels * IMAGE_SIZE**2 // 4).tolist()

    learn(tmp_path, transfer(mvtec(tmp_path / "odd", "cup"), target), Masks())


def test_data_with_normal_training_images_alone_is_refused_with_a_way_out(tmp_path: Path) -> None:
    make_transfer(tmp_path)
    with pytest.raises(
        ArgumentError, match=r"(?s)training images of MVTecAD are all normal.*ZeroShotTransfer.*auxiliary:"
    ):
        make_engine(tmp_path).fit(Detector(), datamodule=mvtec(tmp_path / "target", "plate"))


def test_loaders_without_a_data_module_are_refused(tmp_path: Path) -> None:
    datamodule = make_transfer(tmp_path)
    datamodule.setup()
    with pytest.raises(ArgumentError, match="needs a data module"):
        make_engine(tmp_path).fit(Detector(), datamodule.train_dataloader())


def test_head_that_needs_masks_refuses_data_without(tmp_path: Path) -> None:
    target = make_transfer(tmp_path).target
    datamodule = transfer(folder_without_masks(tmp_path / "auxiliary", "cup"), target)
    with pytest.raises(ArgumentError, match="learns from pixel masks"):
        learn(tmp_path, datamodule)


def test_head_that_needs_no_masks_learns_without(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    target = make_transfer(tmp_path).target
    losses = []
    for options in CACHES.values():
        datamodule = transfer(folder_without_masks(tmp_path / "auxiliary", "cup"), target)
        with caplog.at_level("INFO", logger="anomalib_zsclip"):
            losses.append(torch.tensor(learn(tmp_path, datamodule, kind="anomaly_clip", **options).losses))
    assert caplog.text.count("learns with its image loss alone") == len(CACHES)
    torch.testing.assert_close(losses[0], losses[1], rtol=0, atol=0)
    torch.testing.assert_close(losses[0], losses[2], rtol=2e-5, atol=1e-6)
