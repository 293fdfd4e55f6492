"""INT8 for OpenVINO: products with weights alone, with the data that it needs, or a reason."""

from __future__ import annotations

from collections import Counter
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from anomalib.data import ImageItem
from anomalib.deploy import CompressionType
from torch import Tensor, nn

from anomalib_zsclip.errors import ArgumentError
from anomalib_zsclip.models import quantization
from anomalib_zsclip.models.quantization import check_arguments, quantize, save_quantized

openvino = pytest.importorskip("openvino")
pytest.importorskip("nncf")


class Small(nn.Module):
    """Two layers of a tower, and a product that is none."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.layers = nn.Sequential(nn.Linear(64, 128), nn.GELU(), nn.Linear(128, 64))
        self.register_buffer("text", torch.randn(64, 2))

    def forward(self, images: Tensor) -> Tensor:
        return (self.layers(images.flatten(2).transpose(1, 2)[..., :64].mean(1)) @ self.text).softmax(-1)


class Data(SimpleNamespace):
    """A data module with eight images, of which some are anomalous."""

    def __init__(self, anomalous: int = 4) -> None:
        rng = torch.Generator().manual_seed(0)
        items = [
            ImageItem(image=torch.rand(3, 8, 8, generator=rng), gt_label=torch.tensor(index < anomalous))
            for index in range(8)
        ]
        super().__init__(val_data=items, prepare_data=lambda: None, setup=lambda: None)


@pytest.fixture(scope="module")
def model() -> Any:
    class Tokens(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.small = Small()

        def forward(self, images: Tensor) -> Tensor:
            return self.small(images.flatten(2).repeat(1, 64, 1))

    return openvino.convert_model(Tokens(), example_input=torch.rand(1, 3, 8, 8), input=[1, 3, 8, 8])


def test_products_with_weights_become_int8_and_nothing_else(
    model: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    image = np.random.default_rng(0).random((1, 3, 8, 8), dtype=np.float32)
    wanted = openvino.compile_model(model, "CPU")(image)[0]
    monkeypatch.setattr(openvino, "convert_model", lambda path: model)
    path = save_quantized(
        tmp_path, tmp_path / "m.xml", CompressionType.INT8_PTQ, datamodule=Data(), metric=None, max_drop=0.01
    )
    read = openvino.Core().read_model(path)
    kinds = Counter(operation.get_type_name() for operation in read.get_ordered_ops())
    assert kinds["FakeQuantize"] == 2, "the inputs of the two layers"
    np.testing.assert_allclose(openvino.compile_model(read, "CPU")(image)[0], wanted, atol=0.05)


def test_what_openvino_cannot_do_is_refused_in_words(
    model: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(*args: Any, **kwargs: Any) -> None:
        msg = "Exception from core.cpp:132:\nCheck 'scale.size()' failed"
        raise RuntimeError(msg)

    monkeypatch.setattr(openvino, "convert_model", lambda path: model)
    monkeypatch.setattr(quantization, "quantize", fail)
    with pytest.raises(ArgumentError, match=r"int8_ptq' does not work .*Check 'scale.size\(\)' failed.*Take 'int8'"):
        save_quantized(tmp_path, tmp_path / "m.xml", CompressionType.INT8_PTQ, datamodule=Data())
    assert not (tmp_path / "m.xml").exists()


def test_arguments_that_cannot_work_are_refused_before_anything_is_exported(model: Any) -> None:
    with pytest.raises(ArgumentError, match="int8_ptq' needs images to calibrate on"):
        check_arguments(CompressionType.INT8_PTQ, None, 0.01)
    with pytest.raises(ArgumentError, match="max_drop=2"):
        check_arguments(CompressionType.INT8_ACQ, Data(), 2)
    with pytest.raises(ArgumentError, match="needs good and anomalous images"):
        quantize(model, CompressionType.INT8_ACQ, Data(anomalous=0))
    empty = SimpleNamespace(prepare_data=lambda: None, setup=lambda: None, val_data=[])
    with pytest.raises(ArgumentError, match="no validation or test images"):
        quantize(model, CompressionType.INT8_PTQ, empty)
