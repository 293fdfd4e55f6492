"""What the command says: each line once, and only of this run."""

from __future__ import annotations

import logging
import warnings
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from anomalib.callbacks import TilerConfigurationCallback
from lightning.pytorch.callbacks import TQDMProgressBar
from rich.logging import RichHandler

from anomalib_zsclip.errors import ArgumentError
from anomalib_zsclip.models.trainer_checks import check_trainer
from anomalib_zsclip.outputs import log
from anomalib_zsclip.outputs.progress import ImageProgress

ENGINE = "anomalib.engine.engine"


@pytest.fixture
def _clean() -> Any:
    """Loggers and warnings as they were."""
    loggers = [logging.getLogger(name) for name in (*log.NOISE, None)]
    before = [(found, list(found.filters), list(found.handlers)) for found in loggers]
    with warnings.catch_warnings():
        yield
    for found, filters, handlers in before:
        found.filters[:], found.handlers[:] = filters, handlers


@pytest.mark.usefixtures("_clean")
@pytest.mark.parametrize(("program", "quiet"), [("anomalib", True), ("script.py", False)])
def test_only_the_command_leaves_known_lines_out(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture, program: str, quiet: bool
) -> None:
    monkeypatch.setattr("sys.argv", [program])
    root = logging.getLogger()
    root.addHandler(RichHandler())
    log.quiet_command()
    log.quiet_command()
    assert len(logging.getLogger(ENGINE).filters) == quiet
    logging.getLogger(ENGINE).warning("ckpt_path is not provided. Model weights will not be loaded.")
    logging.getLogger(ENGINE).warning("The disk is full.")
    assert caplog.messages[-1] == "The disk is full."
    assert len(caplog.messages) == (1 if quiet else 2)
    assert any(isinstance(handler, RichHandler) for handler in root.handlers) != quiet


@pytest.mark.parametrize(("program", "own"), [("anomalib", True), ("script.py", False)])
def test_progress_counts_images_and_gives_lightnings_bar_back(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture, program: str, own: bool
) -> None:
    monkeypatch.setattr("sys.argv", [program])
    bar = TQDMProgressBar()
    loader = SimpleNamespace(dataset=list(range(12)))
    trainer: Any = SimpleNamespace(
        progress_bar_callback=bar, is_global_zero=True, world_size=1, predict_dataloaders=[loader]
    )
    progress = ImageProgress()
    progress.setup(trainer, None, "validate")
    assert bar.is_enabled
    progress.setup(trainer, None, "predict")
    assert bar.is_enabled != own
    for count in (8, 4):
        progress.on_predict_batch_start(trainer, None, None, 0)
        progress.on_predict_batch_end(trainer, None, SimpleNamespace(image=torch.zeros(count)))
    progress.on_predict_end(trainer, None)
    assert bar.is_enabled
    shown = capsys.readouterr().err
    assert ("12/12" in shown) == own


@pytest.mark.parametrize(
    ("trainer", "message"),
    [
        (SimpleNamespace(precision="bf16-true"), "model.precision='bf16'"),
        (SimpleNamespace(precision="16-true"), "model.precision='fp16'"),
        (SimpleNamespace(callbacks=[TilerConfigurationCallback(enable=True)]), "model.tiles=2"),
    ],
)
def test_settings_that_cannot_work_are_refused_with_what_to_do(trainer: Any, message: str) -> None:
    with pytest.raises(ArgumentError, match=message):
        check_trainer(trainer)


class TileCollater:
    """As anomalib's tiled ensemble puts into a data module."""


@pytest.mark.parametrize("given", [{"k_shot": 2}, {"unlabelled": "all"}, {"k_shot": 0, "unlabelled": 0}])
def test_the_tiled_ensemble_has_no_tiles_to_compare_with(given: dict[str, Any]) -> None:
    def check(collate: object) -> None:
        datamodule = SimpleNamespace(external_collate_fn=collate)
        check_trainer(SimpleNamespace(datamodule=datamodule, callbacks=[]), SimpleNamespace(**given))

    check(None)
    if any(given.values()):
        with pytest.raises(ArgumentError, match=r"model\.tiles"):
            check(TileCollater())
    else:
        check(TileCollater())


def test_other_settings_pass() -> None:
    check_trainer(None)
    check_trainer(SimpleNamespace(precision="bf16-mixed", callbacks=[TilerConfigurationCallback(enable=False)]))
