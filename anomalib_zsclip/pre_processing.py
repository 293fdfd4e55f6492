"""Images as CLIP wants them."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from anomalib.pre_processing import PreProcessor
from torch import Tensor
from torchvision.transforms.v2 import Compose, InterpolationMode, Normalize, Resize


class ClipPreProcessor(PreProcessor):
    """Resize to a fixed size (bicubic, antialiased, aspect ratio not kept, as all papers here do), then normalise.

    anomalib takes the antialiasing away from every forward outside the engine, since it cannot be exported. Here it is
    left out in an exported graph alone, so that inference in Python equals the engine's.
    """

    @classmethod
    def for_size(cls, size: tuple[int, int], mean: Sequence[float], std: Sequence[float]) -> ClipPreProcessor:
        """Make the pre-processor for images of ``size`` = (height, width)."""
        resize = Resize(size, interpolation=InterpolationMode.BICUBIC, antialias=True)
        return cls(Compose([resize, Normalize(mean=list(mean), std=list(std))]))

    def forward(self, batch: Tensor) -> Tensor:
        """Transform images in [0, 1], ``[B, 3, H, W]``."""
        transform = self.export_transform if torch.compiler.is_exporting() else self.transform
        return transform(batch) if transform else batch
