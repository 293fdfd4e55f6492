"""Exported models give the scores and maps of the model in Python, for any batch size and image size."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from anomalib.deploy import CompressionType, OpenVINOInferencer, TorchInferencer
from anomalib.engine import Engine
from torch import Tensor

from tests.builtin_models import MODELS, make_model

pytest.importorskip("onnxscript")
onnxruntime = pytest.importorskip("onnxruntime")

EXPORTED = ("ZsClip", "RandomWordClip", "ClipAd", "AnomalyClip", "AnomalyClip crane")
"""ZsClip has the head of "ClipAd sdp+" too. An export takes seconds."""
TOLERANCE = 1e-3
F32 = {"INFERENCE_PRECISION_HINT": "f32"}
"""OpenVINO computes in bfloat16 by itself where the machine has it."""


@pytest.fixture(autouse=True)
def _own_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """OpenVINOInferencer leaves a cache in the working folder."""
    monkeypatch.chdir(tmp_path)


def make_validated(name: str, folder: Path, **arguments: Any) -> Any:
    """A model as after validation: with thresholds and a range of scores."""
    model = make_model(name, folder, **arguments).eval()
    statistics = model.post_processor
    for buffer, value in (
        ("_image_threshold", 0.48), ("image_min", 0.2), ("image_max", 0.9),
        ("_pixel_threshold", 0.55), ("pixel_min", 0.1), ("pixel_max", 0.8),
    ):  # fmt: skip
        getattr(statistics, buffer).fill_(value)
    return model


def make_images(*shape: int) -> Tensor:
    return torch.rand(*shape, generator=torch.Generator().manual_seed(1))


def drifts(outputs: dict[str, np.ndarray], wanted: Any) -> tuple[float, float]:
    """Largest differences of scores and maps; labels and masks may differ where a value is at its threshold."""
    for name, values in (("pred_label", wanted.pred_score), ("pred_mask", wanted.anomaly_map)):
        sure = (values - 0.5).abs().numpy() > TOLERANCE
        assert np.array_equal(outputs[name][sure].astype(bool), getattr(wanted, name).numpy()[sure])
    return tuple(
        float(np.abs(outputs[name] - getattr(wanted, name).numpy()).max()) for name in ("pred_score", "anomaly_map")
    )


def run_onnx(path: Path, images: Tensor) -> dict[str, np.ndarray]:
    session = onnxruntime.InferenceSession(str(path), providers=["CPUExecutionProvider"])
    names = [output.name for output in session.get_outputs()]
    return dict(zip(names, session.run(None, {"input": images.numpy()}), strict=True))


@pytest.fixture(scope="module", params=EXPORTED)
def exported(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> tuple[Any, Path]:
    """A model, and its ONNX file: dynamic images for one of them, the model's own size for the others."""
    folder = tmp_path_factory.mktemp("export")
    model = make_validated(request.param, folder)
    size = None if request.param == "ZsClip" else tuple(model.input_size)
    engine = Engine(default_root_dir=folder, accelerator="cpu")
    return model, engine.export(model, "onnx", export_root=folder, input_size=size)


@pytest.mark.parametrize("batch", [1, 3])
def test_onnx_gives_the_same(exported: tuple[Any, Path], batch: int) -> None:
    model, path = exported
    images = make_images(batch, 3, *model.input_size)
    with torch.no_grad():
        assert max(drifts(run_onnx(path, images), model(images))) < TOLERANCE


def test_openvino_gives_the_same(exported: tuple[Any, Path]) -> None:
    pytest.importorskip("openvino")
    model, path = exported
    images = make_images(2, 3, *model.input_size)
    outputs = OpenVINOInferencer(path, device="CPU", config=F32).predict(images)
    with torch.no_grad():
        wanted = model(images)
    assert max(drifts({name: getattr(outputs, name) for name in wanted._fields}, wanted)) < TOLERANCE


def test_text_is_compiled_in(exported: tuple[Any, Path]) -> None:
    """The embedding of the vocabulary is by far the largest tensor of the text tower."""
    onnx = pytest.importorskip("onnx")
    model, path = exported
    vocabulary = len(model.model.backbone.clip.token_embedding.weight)
    assert all(vocabulary not in tensor.dims for tensor in onnx.load(path, load_external_data=False).graph.initializer)


@pytest.mark.parametrize("exported", ["ZsClip"], indirect=True)
@pytest.mark.parametrize("size", [(97, 310), (128, 128), (64, 48)])
def test_images_of_any_size_give_the_same(exported: tuple[Any, Path], size: tuple[int, int]) -> None:
    model, path = exported
    images = make_images(2, 3, *size)
    with torch.no_grad():
        assert max(drifts(run_onnx(path, images), model(images))) < TOLERANCE


@pytest.mark.parametrize("exported", ["ZsClip"], indirect=True)
@pytest.mark.parametrize(
    ("compression", "score_drift", "map_drift"),
    [(None, TOLERANCE, TOLERANCE), (CompressionType.FP16, 2e-3, 2e-3), (CompressionType.INT8, 5e-2, 1e-1)],
)
def test_openvino_compresses(
    exported: tuple[Any, Path],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    compression: CompressionType | None,
    score_drift: float,
    map_drift: float,
) -> None:
    pytest.importorskip("openvino")
    if compression == CompressionType.INT8:
        pytest.importorskip("nncf")
    model, path = exported
    monkeypatch.setattr(model, "to_onnx", lambda *_args, **_kwargs: path)  # the slow part is done
    engine = Engine(default_root_dir=tmp_path, accelerator="cpu")
    xml = engine.export(model, "openvino", export_root=tmp_path, compression_type=compression)
    images = make_images(2, 3, 150, 200)
    outputs = OpenVINOInferencer(xml, device="CPU", config=F32).predict(images)
    with torch.no_grad():
        wanted = model(images)
    assert np.abs(outputs.pred_score - wanted.pred_score.numpy()).max() < score_drift
    assert np.abs(outputs.anomaly_map - wanted.anomaly_map.numpy()).max() < map_drift


def test_a_fixed_batch_and_a_size_of_ones_own_are_exported(tmp_path: Path) -> None:
    model = make_validated("RandomWordClip", tmp_path, localization="window", image_size=(32, 48))
    path = model.to_onnx(tmp_path, input_size=(80, 80), dynamic_axes=None)
    session = onnxruntime.InferenceSession(str(path), providers=["CPUExecutionProvider"])
    assert session.get_inputs()[0].shape == [1, 3, 80, 80]
    images = make_images(1, 3, 80, 80)
    with torch.no_grad():
        assert max(drifts(run_onnx(path, images), model(images))) < TOLERANCE


@pytest.mark.parametrize("name", MODELS)
def test_torch_inferencer_gives_the_same(name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TRUST_REMOTE_CODE", "1")
    model = make_validated(name, tmp_path)
    path = Engine(default_root_dir=tmp_path, accelerator="cpu").export(model, "torch", export_root=tmp_path)
    images = make_images(2, 3, 100, 140)
    with torch.no_grad():
        wanted = model(images)
        found = TorchInferencer(path, device="cpu").predict(images)
    assert torch.equal(found.pred_score, wanted.pred_score)
    assert torch.equal(found.anomaly_map, wanted.anomaly_map)
    assert torch.equal(found.pred_mask, wanted.pred_mask)


def test_photographs_of_any_size_give_the_same_in_onnx_and_openvino(tmp_path: Path) -> None:
    """Edges of full contrast, where a resize of floats is 26 levels away, and sizes that Pillow resizes along y first."""
    pytest.importorskip("openvino")
    model = make_validated("RandomWordClip", tmp_path, image_size=64)
    path = model.to_onnx(tmp_path)
    for size in ((97, 310), (310, 97), (64, 200), (200, 64), (40, 30)):
        generator = torch.Generator().manual_seed(size[0])
        blocks = torch.randint(0, 2, (1, 3, size[0] // 5 + 1, size[1] // 5 + 1), generator=generator).float()
        images = blocks.repeat_interleave(5, -1).repeat_interleave(5, -2)[..., : size[0], : size[1]].contiguous()
        with torch.no_grad():
            wanted = model(images)
        assert max(drifts(run_onnx(path, images), wanted)) < TOLERANCE
        outputs = OpenVINOInferencer(path, device="CPU", config=F32).predict(images)
        assert max(drifts({name: getattr(outputs, name) for name in wanted._fields}, wanted)) < TOLERANCE
