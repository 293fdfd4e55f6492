"""The published programs' way from a picture file to the network's input, and from maps and scores to numbers.

A fixture is a pair ``NAME.npz`` and ``NAME.json``. The environment variable ``PROTOCOL_DIR`` points these tests at another
folder of the same form.
"""

from __future__ import annotations

import json
import os
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from PIL import Image
from torchvision import tv_tensors
from torchvision.transforms.v2.functional import pil_to_tensor

from anomalib_zsclip.benchmark.metrics import ExactAUROC, ExactAveragePrecision, ExactF1Max, OfficialPro
from anomalib_zsclip.images import ClipPreProcessor
from anomalib_zsclip.images.resize import PublishedResize, resize_mask, resize_picture

from .conftest import SHIPPED

FOLDER = Path(os.environ.get("PROTOCOL_DIR") or SHIPPED)


def cases(kind: str) -> list[object]:
    """Parameters ``(file, number of the case)``, for all fixtures whose name begins with ``kind``."""
    return [
        pytest.param(path.with_suffix(".npz"), index, id=f"{path.stem}-{index}")
        for path in sorted(FOLDER.glob(f"{kind}_*.json"))
        for index in range(len(json.loads(path.read_text())["cases"]))
    ]


@pytest.fixture(params=[False, True], ids=["eager", "export"])
def exporting(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> bool:
    """Run as in eager mode, and with the operations that an exported graph has."""
    monkeypatch.setattr("torch.compiler.is_exporting", lambda: request.param)
    return request.param


def assert_same_levels(found: np.ndarray, wanted: np.ndarray) -> None:
    distance = np.abs(found.astype(int) - wanted.astype(int))
    assert (distance <= 1).mean() >= 0.999
    assert (distance == 0).mean() >= 0.999


@pytest.mark.parametrize(("path", "case"), cases("preprocessing"))
def test_pictures_are_resized_as_published(path: Path, case: int, exporting: bool, tmp_path: Path) -> None:
    with np.load(path) as arrays:
        picture, wanted = arrays[f"picture{case}"], arrays[f"resized{case}"]
    Image.fromarray(picture).save(tmp_path / "picture.png")
    with Image.open(tmp_path / "picture.png") as image:
        tensor = pil_to_tensor(image.convert("RGB")).float() / 255
    mean, std = (0.48, 0.46, 0.41), (0.27, 0.26, 0.28)
    pre_processor = ClipPreProcessor.for_size(wanted.shape[:2], mean, std)
    normalized = pre_processor(tensor[None])[0]
    levels = 255 * (normalized * torch.tensor(std)[:, None, None] + torch.tensor(mean)[:, None, None])
    assert (levels - levels.round()).abs().max() < 1e-3
    assert_same_levels(levels.round().permute(1, 2, 0).numpy(), wanted)
    whole = resize_picture(torch.from_numpy(picture).permute(2, 0, 1), wanted.shape[:2])
    assert whole.dtype == torch.uint8
    assert_same_levels(whole.permute(1, 2, 0).numpy(), wanted)


@pytest.mark.parametrize(("path", "case"), cases("preprocessing"))
def test_masks_are_resized_as_published(path: Path, case: int, exporting: bool) -> None:
    with np.load(path) as arrays:
        mask, wanted = arrays[f"mask{case}"], arrays[f"mask_resized{case}"]
    for values in (mask, mask // 255):
        found = resize_mask(torch.from_numpy(values), wanted.shape)
        assert (found.numpy() != wanted).mean() <= 1e-3
    step = PublishedResize(wanted.shape, published_masks=True)
    assert torch.equal(torch.as_tensor(step(tv_tensors.Mask(mask))), found)


def test_masks_of_data_modules_stay_anomalibs() -> None:
    mask = torch.zeros(9, 9, dtype=torch.uint8)
    mask[:5, :5] = 1
    nearest = torch.nn.functional.interpolate(mask[None, None].float(), size=(4, 4), mode="nearest")[0, 0]
    assert torch.equal(torch.as_tensor(PublishedResize((4, 4))(tv_tensors.Mask(mask))).float(), nearest)


METRICS = {
    "auroc": (ExactAUROC, 1e-6),
    "ap": (ExactAveragePrecision, 1e-6),
    "f1max": (ExactF1Max, 1e-6),
    "pro_official": (OfficialPro, 1e-6),
}
BINNED = {"auroc": 1e-5, "ap": 1e-3, "f1max": 1e-3, "pro_official": 2e-4}
"""Allowed where 16 significant bits of a value count; with maps of a few thousand pixels, which are the worst case."""


@pytest.mark.parametrize("binned", [False, True], ids=["exact", "binned"])
@pytest.mark.parametrize(("path", "case"), cases("metrics"))
def test_metrics_are_the_published_ones(path: Path, case: int, binned: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    if binned:
        monkeypatch.setattr("anomalib_zsclip.benchmark.metrics.EXACT_PIXELS", 1000)
    wanted = json.loads(path.with_suffix(".json").read_text())["cases"][case]
    with np.load(path) as arrays:
        stored = {name: torch.from_numpy(arrays[f"{name}{case}"]) for name in ("maps", "masks", "labels", "scores")}
    compared = set()
    for name, (metric_class, tolerance) in METRICS.items():
        for level, predictions, targets in (("image", "scores", "labels"), ("pixel", "maps", "masks")):
            if f"{level}_{name}" not in wanted:
                continue
            metric = metric_class(fields=["predictions", "targets"], prefix=f"{level}_")
            for part in (slice(0, 3), slice(3, 4), slice(4, None)):
                metric.update(SimpleNamespace(predictions=stored[predictions][part], targets=stored[targets][part]))
            allowed = BINNED[name] if binned and level == "pixel" else tolerance
            assert float(metric.compute()) == pytest.approx(wanted[f"{level}_{name}"], abs=allowed), (level, name)
            compared.add(f"{level}_{name}")
    assert compared == set(wanted)
