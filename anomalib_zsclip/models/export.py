"""Exports of a zero-shot detector: as anomalib's, of a model that is ready."""

from __future__ import annotations

from pathlib import Path
from typing import cast

import torch
from lightning.pytorch import LightningModule

from .arguments import resolve_size
from .detector import Detector
from .readiness import make_ready
from .zero_shot_model import ZeroShotModel


class ExportMixin(LightningModule):
    """The three exports; stands before ``AnomalibModule`` in the bases of a model.

    Attributes:
        frozen: Whether this is an exported model, which stays as it is wherever it is taken.
    """

    model: ZeroShotModel
    frozen: bool = False

    def to_torch(self, *args: object, **kwargs: object) -> Path:
        """Export as a torch file; see anomalib. It stays as it is wherever it is taken."""
        make_ready(cast("Detector", self))
        self.frozen = True
        try:
            return super().to_torch(*args, **kwargs)  # type: ignore[misc]
        finally:
            self.frozen = False

    def to_onnx(self, *args: object, **kwargs: object) -> Path:  # type: ignore[override]
        """Export as ONNX; see anomalib. Text, references and thresholds are compiled in."""
        make_ready(cast("Detector", self))
        self._warm_up()
        # torch's exporter writes opset 18; the conversion to anomalib's default of 14 fails, with a stack of frames.
        kwargs.setdefault("opset_version", 18)
        return super().to_onnx(*args, **kwargs)  # type: ignore[arg-type, return-value]

    def to_openvino(self, *args: object, **kwargs: object) -> Path:
        """Export for OpenVINO; see anomalib."""
        make_ready(cast("Detector", self))
        return super().to_openvino(*args, **kwargs)  # type: ignore[misc]

    def _warm_up(self) -> None:
        """Run once, so that what depends on the image size alone is made outside the exported graph."""
        height, width = self.input_size or resolve_size(None, self.model.backbone)  # type: ignore[misc]
        device = self.model.backbone.device
        with torch.no_grad():
            self.model(torch.zeros(1, 3, height, width, device=device))
