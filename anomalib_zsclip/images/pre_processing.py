"""Images as CLIP wants them."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from anomalib.pre_processing import PreProcessor
from anomalib.pre_processing.utils.transform import get_exportable_transform
from torch import Tensor
from torchvision.transforms.v2 import Compose, InterpolationMode, Normalize, Resize, Transform


class ClipPreProcessor(PreProcessor):
    """Resize to a fixed size (bicubic, antialiased, aspect ratio not kept, as all papers here do), then normalise.

    anomalib takes the antialiasing away from every forward outside the engine, since ONNX has no such operator. Here
    every forward has it, in an exported graph as two matrix products: scores are the same everywhere.
    """

    @classmethod
    def for_size(cls, size: tuple[int, int], mean: Sequence[float], std: Sequence[float]) -> ClipPreProcessor:
        """Make the pre-processor for images of ``size`` = (height, width)."""
        resize = Resize(size, interpolation=InterpolationMode.BICUBIC, antialias=True)
        return cls(Compose([resize, Normalize(mean=list(mean), std=list(std))]))

    @property
    def resize(self) -> Resize | None:
        """The transform's resize to a fixed size, where it begins with one."""
        steps = self._steps()
        return steps[0] if steps and _is_exact(steps[0]) else None

    def forward(self, batch: Tensor) -> Tensor:
        """Transform images in [0, 1], ``[B, 3, H, W]``."""
        if self.transform is None:
            return batch
        if not torch.compiler.is_exporting():
            return self.transform(batch)
        for step in self._steps():
            batch = resize_antialiased(batch, tuple(step.size)) if _is_exact(step) else _exportable(step, batch)
        return batch

    def _steps(self) -> list[Transform]:
        """The transform's steps, in order; none without a transform."""
        if self.transform is None:
            return []
        return list(self.transform.transforms) if isinstance(self.transform, Compose) else [self.transform]


def resize_antialiased(images: Tensor, size: tuple[int, ...]) -> Tensor:
    """Bicubic resize with antialias, as torch's ``interpolate``, of matrix products alone: it exports to every format.

    Args:
        images: ``[B, C, H, W]``; height and width may be dynamic dimensions of an export.
        size: Wanted height and width.
    """
    height, width = images.shape[-2:]
    if isinstance(height, int) and isinstance(width, int) and (height, width) == size:
        return images
    rows, columns = _bicubic_matrix(height, size[0], images), _bicubic_matrix(width, size[1], images)
    return rows @ images @ columns.T


def _bicubic_matrix(source: int, target: int, like: Tensor) -> Tensor:
    """Matrix ``[target, source]`` of an antialiased bicubic resize along one axis."""
    # The distance of each source pixel from each target pixel, in whole numbers up to the one division: OpenVINO
    # computes floats in bfloat16 where the machine can, which has too few digits for positions.
    sources = 2 * torch.arange(source, device=like.device) + 1
    targets = 2 * torch.arange(target, device=like.device) + 1
    distances = (sources[None, :] * target - targets[:, None] * source).abs()
    # Keys' kernel with a = -0.5, as wide as a target pixel where the image shrinks.
    widths = 2 * (torch.ones_like(targets[:1]) * source).clamp(min=target)
    x = distances.float() / widths.float()
    near = (1.5 * x - 2.5) * x * x + 1
    far = ((-0.5 * x + 2.5) * x - 4) * x + 2
    weights = torch.where(x < 1, near, torch.where(x < 2, far, torch.zeros_like(x)))
    return (weights / weights.sum(dim=1, keepdim=True)).to(like)


def _is_exact(step: Transform) -> bool:
    """Whether a step is a resize that :func:`resize_antialiased` does."""
    bicubic = isinstance(step, Resize) and step.interpolation == InterpolationMode.BICUBIC and step.antialias
    return bool(bicubic and isinstance(step.size, Sequence) and len(step.size) == 2)


def _exportable(step: Transform, batch: Tensor) -> Tensor:
    transform = get_exportable_transform(step)
    return batch if transform is None else transform(batch)
