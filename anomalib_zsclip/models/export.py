"""Exports of a zero-shot detector: as anomalib's, of a model that is ready."""

from __future__ import annotations

import logging
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any, cast

import torch
from lightning.pytorch import LightningModule

from .arguments import resolve_size
from .detector import Detector
from .readiness import make_ready
from .zero_shot_model import ZeroShotModel

logger = logging.getLogger(__name__)


class ExportMixin(LightningModule):
    """The three exports; stands before ``AnomalibModule`` in the bases of a model.

    Attributes:
        frozen: Whether this is an exported model, which stays as it is wherever it is taken.
    """

    model: ZeroShotModel
    frozen: bool = False

    def to_torch(self, *args: object, **kwargs: object) -> Path:
        """Export as a torch file; see anomalib. It stays as it is wherever it is taken."""
        self.model.views.check_exportable()
        make_ready(cast("Detector", self))
        self.frozen = True
        try:
            return super().to_torch(*args, **kwargs)  # type: ignore[misc]
        finally:
            self.frozen = False

    def to_onnx(self, *args: object, **kwargs: object) -> Path:  # type: ignore[override]
        """Export as ONNX; see anomalib. Text, references and thresholds are compiled in, and the tower is float32."""
        self.model.views.check_exportable()
        make_ready(cast("Detector", self))
        # torch's exporter writes opset 18; the conversion to anomalib's default of 14 fails, with a stack of frames.
        kwargs.setdefault("opset_version", 18)
        with self._in_float32():
            self._warm_up()
            return super().to_onnx(*args, **kwargs)  # type: ignore[arg-type, return-value]

    def to_openvino(
        self,
        export_root: Path | str,
        model_file_name: str = "model",
        input_size: tuple[int, int] | None = None,
        compression_type: Any = None,  # noqa: ANN401 - anomalib's CompressionType, or its value
        datamodule: Any = None,  # noqa: ANN401 - anomalib's
        metric: Any = None,  # noqa: ANN401 - anomalib's
        max_drop: float = 0.01,
        onnx_kwargs: dict[str, Any] | None = None,
        **kwargs: Any,  # noqa: ANN401
    ) -> Path:
        """Export for OpenVINO; see anomalib. ``INT8_PTQ`` and ``INT8_ACQ`` quantise the tower's matrix products alone."""
        from anomalib.deploy import CompressionType

        from .quantization import QUANTIZED, check_arguments, save_quantized

        self.model.views.check_exportable()
        compression = None if compression_type is None else CompressionType(compression_type)
        if compression not in QUANTIZED:
            given = {"compression_type": compression, "datamodule": datamodule, "metric": metric, "max_drop": max_drop}
            return super().to_openvino(  # type: ignore[misc]
                export_root, model_file_name, input_size, onnx_kwargs=onnx_kwargs, **given, **kwargs
            )
        check_arguments(compression, datamodule, max_drop)
        folder = Path(export_root) / "weights" / "openvino"  # as anomalib's
        folder.mkdir(parents=True, exist_ok=True)
        with TemporaryDirectory() as temporary:
            onnx = self.to_onnx(temporary, model_file_name, input_size, **(onnx_kwargs or {}))
            target = folder / f"{model_file_name}.xml"
            return save_quantized(onnx, target, compression, datamodule=datamodule, metric=metric, max_drop=max_drop)

    @contextmanager
    def _in_float32(self) -> Iterator[None]:
        """The tower in float32 for the time of an export: ONNX Runtime has no bf16 on a processor."""
        visual = self.model.backbone.clip.visual
        kind = next(visual.parameters()).dtype
        if kind != torch.float32:
            logger.info("The tower is exported in float32, with the weights as they were rounded for %s.", kind)
        self.frozen = True  # not made ready again, which would bring the precision back
        visual.float()
        try:
            yield
        finally:
            visual.to(kind)
            self.frozen = False

    def _warm_up(self) -> None:
        """Run once, so that what depends on the image size alone is made outside the exported graph."""
        height, width = self.input_size or resolve_size(None, self.model.backbone)  # type: ignore[misc]
        device = self.model.backbone.device
        with torch.no_grad():
            self.model(torch.zeros(1, 3, height, width, device=device))
