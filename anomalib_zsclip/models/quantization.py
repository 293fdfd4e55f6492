"""INT8 arithmetic for OpenVINO: the tower's matrix products, and nothing else.

Quantising everything, as anomalib does, gives a file that OpenVINO cannot compile, or that ranks by noise: resize, softmax,
distances and normalisation have few operations and need their digits. The products of the tower with its weights are nearly
all of the time, so these alone are quantised here.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import torch
from anomalib.data import ImageBatch
from anomalib.deploy import CompressionType

from anomalib_zsclip.benchmark.metrics import ExactAUROC
from anomalib_zsclip.errors import ArgumentError, check_share
from anomalib_zsclip.images.checks import check_for_plain_reading
from anomalib_zsclip.images.data_files import files_of

logger = logging.getLogger(__name__)

CALIBRATION_IMAGES = 300
"""Most images that the ranges of activations are found on: NNCF's own recommendation."""

SMALLEST_SIDE = 64
"""Matrices with a smaller side are no layers of a tower: interpolation weights, a few text vectors."""

QUANTIZED = (CompressionType.INT8_PTQ, CompressionType.INT8_ACQ)


def check_arguments(compression: CompressionType, datamodule: Any, max_drop: float) -> None:  # noqa: ANN401
    """Look at the arguments of a quantisation before anything is exported.

    Raises:
        ArgumentError: If there is no data to calibrate on, or ``max_drop`` is no share.
    """
    if datamodule is None:
        msg = f"compression_type={compression.value!r} needs images to calibrate on: give a data module (--data)."
        raise ArgumentError(msg)
    check_share("max_drop", max_drop)


def quantize(
    model: Any,  # noqa: ANN401 - an OpenVINO model
    compression: CompressionType,
    datamodule: Any,  # noqa: ANN401 - anomalib's
    metric: Any = None,  # noqa: ANN401 - anomalib's
    max_drop: float = 0.01,
) -> Any:  # noqa: ANN401
    """Quantise the matrix products of a converted model.

    Args:
        model: What ``openvino.convert_model`` gives.
        compression: ``INT8_PTQ``, or ``INT8_ACQ``, which takes back layers that cost accuracy.
        datamodule: Images to find the ranges of activations on.
        metric: What must not drop, a metric of anomalib; ``INT8_ACQ`` alone. Default: image AUROC.
        max_drop: How far it may drop; ``INT8_ACQ`` alone.

    Raises:
        ArgumentError: If there is no data to calibrate on, or none to measure accuracy on.
    """
    datamodule.prepare_data()
    datamodule.setup()
    data = _data_of(datamodule)
    check_for_plain_reading(list(files_of(data)))
    import nncf

    images = nncf.Dataset(_images(data))
    common: dict[str, Any] = {
        "model_type": nncf.ModelType.TRANSFORMER,
        "subset_size": min(len(data), CALIBRATION_IMAGES),
        "ignored_scope": nncf.IgnoredScope(names=_all_but_products(model), validate=False),
    }
    if len(data) < CALIBRATION_IMAGES:
        logger.warning("INT8 is calibrated on %d images; %d or more are better.", len(data), CALIBRATION_IMAGES)
    with _quiet("nncf"):
        if compression == CompressionType.INT8_PTQ:
            return nncf.quantize(model, images, **common)
        labelled = _labelled(data)
        return nncf.quantize_with_accuracy_control(
            model, images, nncf.Dataset(labelled), _validation(metric), max_drop=max_drop, **common
        )


def _data_of(datamodule: Any) -> Any:  # noqa: ANN401
    """Validation images, else those of the test."""
    for name in ("val_data", "test_data"):
        data = getattr(datamodule, name, None)
        if data is not None and len(data):
            return data
    msg = f"{type(datamodule).__name__} has no validation or test images to calibrate INT8 on."
    raise ArgumentError(msg)


class _images:  # noqa: N801 - an iterable that can be passed more than once
    """Images one by one, each of its own size, ``[1, 3, H, W]``."""

    def __init__(self, data: Any) -> None:  # noqa: ANN401
        self.data = data

    def __iter__(self) -> Iterator[np.ndarray]:
        for index in range(min(len(self.data), CALIBRATION_IMAGES)):
            yield self.data[index].image[None].numpy()

    def __len__(self) -> int:
        return min(len(self.data), CALIBRATION_IMAGES)


def _labelled(data: Any) -> list[ImageBatch]:  # noqa: ANN401
    items = [data[index] for index in range(len(data))]
    batches: list[Any] = [ImageBatch.collate([item]) for item in items if item.gt_label is not None]
    if len({bool(batch.gt_label) for batch in batches}) < 2:
        msg = (
            "compression_type='int8_acq' measures accuracy, and needs good and anomalous images with labels among the "
            "validation images (or the test images, where there are no others). 'int8_ptq' does without labels."
        )
        raise ArgumentError(msg)
    return batches


def _validation(metric: Any) -> Callable[[Any, Any], float]:  # noqa: ANN401
    metric = metric if metric is not None else ExactAUROC(fields=["pred_score", "gt_label"])

    def measure(compiled: Any, batches: Any) -> float:  # noqa: ANN401
        metric.reset()
        for batch in batches:
            outputs = compiled(batch.image.numpy())
            predicted: dict[str, Any] = {
                name: torch.from_numpy(np.array(outputs[name]))
                for name in ("pred_score", "pred_label", "anomaly_map", "pred_mask")
            }
            metric.update(ImageBatch(image=batch.image, gt_label=batch.gt_label, gt_mask=batch.gt_mask, **predicted))
        return float(metric.compute())

    return measure


def _all_but_products(model: Any) -> list[str]:  # noqa: ANN401
    """Names of all operations but products with matrices of weights."""
    others = ("Constant", "Parameter", "Result")
    return [
        operation.get_friendly_name()
        for operation in model.get_ordered_ops()
        if operation.get_type_name() not in others and not _is_product(operation)
    ]


def _is_product(operation: Any) -> bool:  # noqa: ANN401
    if operation.get_type_name() != "MatMul":
        return False
    source = operation.input_value(1).get_node()
    while source.get_type_name() in ("Convert", "Transpose", "Reshape"):
        source = source.input_value(0).get_node()
    shape = list(source.output(0).shape) if source.get_type_name() == "Constant" else []
    return len(shape) == 2 and min(shape) >= SMALLEST_SIDE


@contextmanager
def _quiet(name: str) -> Iterator[None]:
    """Without a logger's hundreds of lines about single operations."""
    found = logging.getLogger(name)
    level = found.level
    found.setLevel(logging.ERROR)
    try:
        yield
    finally:
        found.setLevel(level)


def _any_image(model: Any) -> np.ndarray:  # noqa: ANN401
    """An image of a size that a model takes: what it cannot do may show only when it does it."""
    sides = zip(model.input(0).partial_shape, (1, 3, 64, 64), strict=True)
    return np.zeros([side.get_length() if side.is_static else default for side, default in sides], np.float32)


def save_quantized(onnx: Path, target: Path, compression: CompressionType, **arguments: Any) -> Path:  # noqa: ANN401
    """Convert an ONNX file, quantise it, see that OpenVINO can compile it, and save it.

    Raises:
        ArgumentError: If it cannot be quantised, with the reason.
    """
    import openvino

    model = openvino.convert_model(onnx)
    try:
        quantized = quantize(model, compression, **arguments)
        openvino.Core().compile_model(quantized, "CPU")(_any_image(quantized))
    except ArgumentError:
        raise
    except Exception as error:
        msg = (
            f"compression_type={compression.value!r} does not work for this model with the OpenVINO and NNCF at hand "
            f"({type(error).__name__}: {str(error).strip().splitlines()[-1]}). Take 'int8' (weights only) or 'fp16'."
        )
        raise ArgumentError(msg) from error
    openvino.save_model(quantized, target, compress_to_fp16=False)
    return target
