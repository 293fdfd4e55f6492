"""The check of a machine: what it finds, how it goes on, and what it ends with."""

from __future__ import annotations

import json
import os
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import nn

from anomalib_zsclip import ClipAd
from anomalib_zsclip.check import agreement, speed
from anomalib_zsclip.check.__main__ import main
from anomalib_zsclip.check.outcome import AGREEMENT, Outcome, guarded
from anomalib_zsclip.errors import CheckpointError
from anomalib_zsclip.models.zero_shot_model import ZeroShotModel


@pytest.mark.parametrize(
    ("value", "limit", "skipped", "state"),
    [
        (0.1, 0.1, False, "passed"), (0.11, 0.1, False, "FAILED"), (9.0, None, False, "measured"),
        (float("nan"), None, False, "FAILED"), (float("nan"), 1.0, False, "FAILED"), (None, None, False, "FAILED"),
        (None, None, True, "skipped"),
    ],
)  # fmt: skip
def test_states(value: float | None, limit: float | None, skipped: bool, state: str) -> None:
    assert Outcome("agreement", "ZsClip", "cpu", value, limit=limit, skipped=skipped).state == state


@pytest.mark.parametrize(
    ("error", "state"),
    [
        (CheckpointError("no weights"), "skipped"),
        (ImportError("no onnx"), "skipped"),
        (RuntimeError("bad\nnews"), "FAILED"),
    ],
)
def test_a_check_that_breaks_off_keeps_what_it_found(error: Exception, state: str) -> None:
    def look() -> Iterator[tuple[float, str, float | None]]:
        yield 0.0, "first", 1.0
        raise error

    found, broken = guarded("export", "ZsClip", "cpu", look)
    assert (found.state, broken.state) == ("passed", state)
    assert str(error).split()[-1] in broken.note
    assert "\n" not in broken.note


@pytest.fixture
def _one_small_model(monkeypatch: pytest.MonkeyPatch) -> None:
    small = {"backbone": "builtin", "image_size": 64, "rvs": "mean", "visualizer": False}
    monkeypatch.setattr(agreement, "make_models", lambda *_: {"ClipAd": lambda **more: ClipAd(**small, **more)})


def check(folder: Path, *arguments: str) -> tuple[int, list[dict[str, Any]]]:
    status = main([*arguments, "--output", str(folder / "new" / "check.json")])
    content = json.loads((folder / "new" / "check.json").read_text())
    assert content["machine"]["torch"] == torch.__version__
    return status, content["checks"]


@pytest.mark.usefixtures("_one_small_model")
def test_a_machine_that_is_right(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    status, rows = check(tmp_path, "--checks", "agreement", "learning", "--precisions", "float32", "bf16", "fp16")
    assert status == 0
    agreed = {row["where"]: row["state"] for row in rows if row["check"] == "agreement"}
    assert agreed == {"cpu, float32, one by one": "passed", "cpu, bf16": "measured"}  # no processor has fp16
    assert 0 < next(row["value"] for row in rows if row["where"] == "cpu, bf16") < 0.1
    assert [row["state"] for row in rows if row["check"] == "learning"] == ["passed"] * 3
    assert "0 FAILED" in capsys.readouterr().out


@pytest.mark.usefixtures("_one_small_model")
def test_a_machine_that_computes_batches_otherwise(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    right = ZeroShotModel.forward

    def wrong(self: ZeroShotModel, images: torch.Tensor) -> Any:
        found = right(self, images)
        return found._replace(anomaly_map=found.anomaly_map + 2 * AGREEMENT * (len(images) == 1))

    monkeypatch.setattr(ZeroShotModel, "forward", wrong)
    status, rows = check(tmp_path, "--checks", "agreement", "--precisions", "float32")
    assert status == 1
    assert [row["state"] for row in rows] == ["FAILED"]


def test_a_head_that_does_not_learn_fails(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.optim.Adam, "step", lambda *_: None)
    status, rows = check(tmp_path, "--checks", "learning")
    by_head = {row["what"]: row["state"] for row in rows}
    assert status == 1
    assert by_head["AnomalyClip"] == by_head["Crane"] == "FAILED"


@pytest.mark.parametrize("factor", [1.0, 1.02])
def test_losses_of_another_device_are_compared_with_the_processors(factor: float) -> None:
    pictures = torch.rand(2 * agreement.IMAGES, 3, 64, 64, generator=torch.Generator().manual_seed(0))
    backbone = {"backbone": "builtin", "pretrained": None}
    wanted: list[list[float]] = []
    (shrunk,) = agreement._learn(lambda _: agreement.AnomalyClipHead(learn=True), backbone, "cpu", pictures, wanted)
    assert shrunk[0] < 1
    wanted[0] = [factor * loss for loss in wanted[0]]
    # The same device by another name: what is compared is what another one would have given.
    _, (apart, _, limit) = agreement._learn(
        lambda _: agreement.AnomalyClipHead(learn=True), backbone, "cpu:0", pictures, wanted
    )
    assert (apart <= limit) == (factor == 1)


def test_models_are_timed_beside_the_plain_tower(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(speed, "MODELS", ("AnomalyClip",))
    status, rows = check(tmp_path, "--checks", "speed", "--precisions", "float32", "--batches", "2", "--seconds", "0.1")
    assert status == 0
    assert [(row["what"], row["unit"]) for row in rows] == [
        ("plain tower", "images / s"), ("AnomalyClip", "images / s"), ("AnomalyClip", "x the plain tower"),
    ]  # fmt: skip
    plain, own, ratio = (row["value"] for row in rows)
    assert ratio > 1
    assert plain / own == pytest.approx(ratio, rel=0.5)


def test_what_compilation_changes_is_seen(monkeypatch: pytest.MonkeyPatch) -> None:
    def shifted(model: nn.Module, _: torch.Tensor) -> Any:
        return lambda images: model(images)._replace(pred_score=torch.full((1,), 2.0))

    (apart, _, limit), (times, unit, no_limit) = speed._compiled(shifted, "builtin", "cpu", 0.1)
    assert apart > limit
    assert 0.3 < times < 3
    assert (unit, no_limit) == ("x its time without", None)


@pytest.mark.parametrize("before", [None, "0", "1"])
def test_only_the_checks_own_file_is_trusted(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, before: str | None
) -> None:
    def load(*_: object, **__: object) -> Any:
        trusted.append(os.environ["TRUST_REMOTE_CODE"])
        raise RuntimeError

    trusted: list[str] = []
    monkeypatch.setattr(agreement, "TorchInferencer", load)
    monkeypatch.setenv("TRUST_REMOTE_CODE", before or "")
    if before is None:
        monkeypatch.delenv("TRUST_REMOTE_CODE")
    with pytest.raises(RuntimeError):
        agreement._run_torch(SimpleNamespace(to_torch=lambda folder: folder), tmp_path, torch.zeros(1))
    assert trusted == ["1"]
    assert os.environ.get("TRUST_REMOTE_CODE") == before


def test_a_torch_export_gives_what_the_model_gives(tmp_path: Path) -> None:
    images = torch.rand(2, 3, 96, 96, generator=torch.Generator().manual_seed(0))
    backbone = {"backbone": "builtin", "pretrained": None, "image_size": 64}
    ((apart, _, limit),) = agreement._export(agreement._run_torch, backbone, "cpu", images)
    assert apart <= limit


def test_a_gpu_that_is_not_there(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    with pytest.raises(SystemExit) as stop:
        main(["--devices", "cuda"])
    assert stop.value.code == 2
    assert "torch sees no GPU" in capsys.readouterr().err
