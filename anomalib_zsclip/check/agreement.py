"""Whether every device, precision, export and number of processes gives what float32 on the processor gives."""

from __future__ import annotations

import csv
import os
import subprocess
import sys
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, redirect_stdout
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any, NamedTuple

import numpy as np
import torch
from anomalib.data import InferenceBatch
from anomalib.deploy import OpenVINOInferencer, TorchInferencer
from anomalib.models.components import AnomalibModule
from PIL import Image
from torch import Tensor

from anomalib_zsclip.clip import ClipBackbone
from anomalib_zsclip.data.generator import DEFECTS, generate
from anomalib_zsclip.heads.anomaly_clip import AnomalyClipHead
from anomalib_zsclip.heads.base import LearnableHead
from anomalib_zsclip.heads.crane import CraneHead
from anomalib_zsclip.heads.sdp import SdpHead
from anomalib_zsclip.heads.sdp_plus import SdpPlusHead
from anomalib_zsclip.models import AnomalyClip, ClipAd, MuSc, RandomWordClip, ZsClip

from .outcome import AGREEMENT, DIFFERENCE, Found, Outcome, guarded

IMAGES = 4
"""Of each kind: enough that a bank can leave one out and batches have more than one."""
LEARNING_STEPS = 6
LEARNED = 0.999
"""Largest last loss as a share of the first; the steps bring it to 0.7 to 0.97, and a gradient of zero leaves it at 1."""
LEARNING_DRIFT = 0.01
"""Largest relative difference of a loss after :data:`LEARNING_STEPS`. Adam turns rounding of small gradients into whole
steps, so that losses part slowly; a wrong gradient parts them by far more."""
F32 = {"INFERENCE_PRECISION_HINT": "f32"}
"""OpenVINO computes in bfloat16 by itself where the machine has it."""
TRUST = "TRUST_REMOTE_CODE"
"""Environment variable without which anomalib unpickles nothing."""

Judged = tuple[Tensor, Tensor]
"""Scores ``[B]`` and maps ``[B, H, W]``, on the processor."""


class Pictures(NamedTuple):
    """What is judged, and a folder of what it is compared with.

    Attributes:
        images: ``[B, 3, H, W]`` in [0, 1], the second half with defects.
        folder: PNG files of good parts.
    """

    images: Tensor
    folder: Path


def make_pictures(folder: Path, side: int) -> Pictures:
    """Procedural pictures of wood, the same ones every time."""
    rng = np.random.default_rng(0)
    kinds = [name for name, defect in DEFECTS.items() if defect.on in ("any", "texture")]
    good = [generate("wood", None, side, rng).image for _ in range(3 * IMAGES)]
    bad = [generate("wood", kinds[index], side, rng).image for index in range(IMAGES)]
    folder.mkdir(parents=True, exist_ok=True)
    for index, image in enumerate(good[IMAGES:]):
        Image.fromarray(image).save(folder / f"{index}.png")
    judged = np.stack(good[:IMAGES] + bad)
    return Pictures(torch.from_numpy(judged).permute(0, 3, 1, 2) / 255, folder)


def make_models(backbone: Mapping[str, Any], folder: Path) -> dict[str, Callable[..., AnomalibModule]]:
    """Every model of the package by what it computes: functions of further arguments."""
    shared = {**backbone, "visualizer": False}

    def model(cls: type[AnomalibModule], **own: Any) -> Callable[..., AnomalibModule]:  # noqa: ANN401
        return lambda **more: cls(**shared, **own, **more)

    references = {"normal_dir": folder, "k_shot": 4, "unlabelled_dir": folder, "unlabelled": 2 * IMAGES}
    return {
        "RandomWordClip": model(RandomWordClip),
        "ClipAd, SDP": model(ClipAd),
        "ClipAd, SDP+": model(ClipAd, variant="sdp+"),
        "AnomalyClip": model(AnomalyClip),
        "AnomalyClip, Crane": model(AnomalyClip, variant="crane"),
        "MuSc": model(MuSc, unlabelled_dir=folder, unlabelled=2 * IMAGES),
        "ZsClip": model(ZsClip),
        "ZsClip, tiles": model(ZsClip, tiles=2),
        "ZsClip, good parts and unlabelled images": model(ZsClip, **references),
    }


@torch.no_grad()
def _judge(model: AnomalibModule, images: Tensor, batch: int = IMAGES) -> Judged:
    outputs = [model(part) for part in images.split(batch)]
    return tuple(  # type: ignore[return-value]
        torch.cat([getattr(output, name) for output in outputs]).float().cpu() for name in ("pred_score", "anomaly_map")
    )


def _difference(found: Judged, wanted: Judged) -> float:
    return max(float((one - other).abs().max()) for one, other in zip(found, wanted, strict=True))


def check_models(
    backbone: Mapping[str, Any], precisions: Mapping[str, list[str]], pictures: Pictures
) -> Iterator[Outcome]:
    """Every model on every device, in the precisions for it, against float32 on the processor."""
    others = [(device, precision) for device, names in precisions.items() for precision in names]
    others = [pair for pair in others if pair != ("cpu", "float32")]
    for name, make in make_models(backbone, pictures.folder).items():
        wanted: list[Judged] = []
        yield from guarded("agreement", name, "cpu, float32, one by one", _one_by_one, make, pictures, wanted)
        for device, precision in others if wanted else ():
            where = f"{device}, {precision}"
            yield from guarded("agreement", name, where, _elsewhere, make, device, precision, pictures, wanted[0])


def _one_by_one(make: Callable[..., AnomalibModule], pictures: Pictures, wanted: list[Judged]) -> Found:
    model = make().eval()
    wanted.append(_judge(model, pictures.images))
    yield _difference(_judge(model, pictures.images, 1), wanted[0]), DIFFERENCE, AGREEMENT


def _elsewhere(
    make: Callable[..., AnomalibModule], device: str, precision: str, pictures: Pictures, wanted: Judged
) -> Found:
    model = make(precision=precision).eval().to(device)
    found = _judge(model, pictures.images.to(device))
    yield _difference(found, wanted), DIFFERENCE, AGREEMENT if precision == "float32" else None


def check_learning(backbone: Mapping[str, Any], devices: list[str], pictures: Pictures) -> Iterator[Outcome]:
    """Losses of a few steps on each device against the processor's, from the same start."""
    heads: dict[str, Callable[[ClipBackbone], LearnableHead]] = {
        "SDP+": lambda clip: SdpPlusHead(SdpHead(clip), clip),
        "AnomalyClip": lambda _: AnomalyClipHead(learn=True),
        "Crane": lambda _: CraneHead(learn=True),
    }
    for name, make in heads.items():
        wanted: list[list[float]] = []
        for device in dict.fromkeys(["cpu", *devices]):
            yield from guarded("learning", name, device, _learn, make, backbone, device, pictures.images, wanted)


def _learn(
    make: Callable[[ClipBackbone], LearnableHead],
    backbone: Mapping[str, Any],
    device: str,
    images: Tensor,
    wanted: list[list[float]],
) -> Found:
    clip = ClipBackbone.load(backbone["backbone"], backbone["pretrained"]).to(device)
    losses = _losses(make, clip, images.to(device))
    wanted.append(losses)
    yield losses[-1] / losses[0], "last loss / first", LEARNED
    if device != "cpu":
        apart = max(abs(one - other) / other for one, other in zip(losses, wanted[0], strict=True))
        yield apart, "of the processor's loss", LEARNING_DRIFT


def _losses(make: Callable[[ClipBackbone], LearnableHead], clip: ClipBackbone, images: Tensor) -> list[float]:
    torch.manual_seed(0)
    head = make(clip)
    head.setup(clip, "wood")
    head.to(clip.device)
    mean, std = (torch.tensor(values, device=clip.device).view(3, 1, 1) for values in (clip.mean, clip.std))
    with torch.no_grad():
        features = clip.forward_intermediates((images - mean) / std, head.request(clip))
        inputs = head.learning_inputs(features, clip, ["wood"] * len(images))
    labels = (torch.arange(len(images), device=clip.device) >= IMAGES).long()
    masks = torch.zeros(len(images), *images.shape[-2:], device=clip.device)
    masks[IMAGES:, : images.shape[-2] // 2] = 1
    optimizer = head.configure_optimizer()
    losses = []
    for _ in range(LEARNING_STEPS):
        loss = head.learning_loss(clip, inputs, masks, labels)["loss"]
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(float(loss.detach()))
    return losses


def check_exports(backbone: Mapping[str, Any], devices: list[str], pictures: Pictures) -> Iterator[Outcome]:
    """The three exports of a model that is on each device, run on the processor."""
    kinds = {"torch": _run_torch, "ONNX": _run_onnx, "OpenVINO": _run_openvino}
    for device in devices:
        for kind, run in kinds.items():
            yield from guarded(
                "export", f"ZsClip, {kind}", f"from {device}", _export, run, backbone, device, pictures.images[-2:]
            )


def _export(
    run: Callable[[AnomalibModule, Path, Tensor], Any], backbone: Mapping[str, Any], device: str, images: Tensor
) -> Found:
    model = ZsClip(**backbone, visualizer=False).eval()
    wanted = _judge(model, images)
    with TemporaryDirectory() as folder, redirect_stdout(sys.stderr):  # torch's exporter prints what it does
        outputs = run(model.to(device), Path(folder), images)
    found = [torch.as_tensor(output).float().cpu() for output in (outputs.pred_score, outputs.anomaly_map)]
    score, anomaly_map = (one.reshape(other.shape) for one, other in zip(found, wanted, strict=True))
    yield _difference((score, anomaly_map), wanted), DIFFERENCE, AGREEMENT


def _run_torch(model: AnomalibModule, folder: Path, images: Tensor) -> Any:  # noqa: ANN401 - anomalib's batch
    path = model.to_torch(folder)
    with _trusting():
        return TorchInferencer(path, device="cpu").predict(images)


@contextmanager
def _trusting() -> Iterator[None]:
    """Let anomalib's inferencer unpickle a file: this process's own."""
    before = os.environ.get(TRUST)
    os.environ[TRUST] = "1"
    try:
        yield
    finally:
        del os.environ[TRUST]
        if before is not None:
            os.environ[TRUST] = before


def _run_onnx(model: AnomalibModule, folder: Path, images: Tensor) -> Any:  # noqa: ANN401
    import onnxruntime

    session = onnxruntime.InferenceSession(str(model.to_onnx(folder)), providers=["CPUExecutionProvider"])
    names = [output.name for output in session.get_outputs()]
    return InferenceBatch(**dict(zip(names, session.run(None, {"input": images.numpy()}), strict=True)))


def _run_openvino(model: AnomalibModule, folder: Path, images: Tensor) -> Any:  # noqa: ANN401
    return OpenVINOInferencer(model.to_openvino(folder), device="CPU", config=F32).predict(images.numpy())


def check_processes(backbone: Mapping[str, Any], devices: list[str], pictures: Pictures) -> Iterator[Outcome]:
    """The ``anomalib`` command in as many processes as there are devices, and in two on the processor."""
    for device in devices:
        count = torch.cuda.device_count() if device == "cuda" else 2
        what = f"predict on {count} devices"
        if count > 1:
            yield from guarded("processes", what, device, _in_processes, backbone, device, count, pictures.folder)
        else:
            yield Outcome("processes", what, device, None, note="there is one of this kind", skipped=True)


def _in_processes(backbone: Mapping[str, Any], device: str, count: int, images: Path) -> Found:
    with TemporaryDirectory() as folder:
        one, many = (_predict(backbone, device, number, Path(folder), images) for number in (1, count))
    if one.keys() != many.keys():
        msg = f"{count} processes judged {len(many)} images, one judged {len(one)}"
        raise RuntimeError(msg)
    yield max(abs(one[path] - many[path]) for path in one), DIFFERENCE, AGREEMENT


def _predict(backbone: Mapping[str, Any], device: str, count: int, folder: Path, images: Path) -> dict[str, float]:
    """Scores by path, of the command's table."""
    results = folder / str(count)
    command = [str(Path(sys.executable).parent / "anomalib"), "predict", "--model", "ZsClip"]
    command += [f"--model.{name}={value}" for name, value in backbone.items() if value is not None]
    command += ["--model.visualizer=false", "--data", str(images), "--default_root_dir", str(results)]
    command += ["--trainer.accelerator", "gpu" if device == "cuda" else "cpu", "--trainer.devices", str(count)]
    command += ["--trainer.strategy", "ddp"] if count > 1 else []
    done = subprocess.run(command, check=False, capture_output=True, text=True, cwd=folder)  # noqa: S603 - our own words
    if done.returncode:
        raise RuntimeError(done.stderr.strip().splitlines()[-1] if done.stderr.strip() else "the command failed")
    rows = [row for path in results.rglob("predictions*.csv") for row in csv.DictReader(path.read_text().splitlines())]
    return {row["path"]: float(row["pred_score"]) for row in rows}
