"""The resize of 8-bit pictures that the published programs do, by Pillow's rules, on tensors and in exported models.

Pillow resizes along x, rounds to whole grey levels and clips them to 0..255, then does the same along y (tall pictures the
other way round, see :func:`is_vertical_first`). A resize of floats does neither: at edges it overshoots by up to 26 levels,
and scores of a model move by up to 0.017.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from torchvision import tv_tensors
from torchvision.transforms.v2 import InterpolationMode, Resize, functional

LEVELS = 255.0
"""Largest grey level of 8 bits."""


class PublishedResize(Resize):
    """Bicubic resize to a fixed size, antialiased, in whole grey levels: what Pillow makes of an 8-bit picture.

    Tensors are images in [0, 1] (or of 8 bits), ``[..., 3, H, W]``. Values between two levels are rounded first, so that
    an image is the same whether it was resized as a picture or as a tensor, here or before, and resizing it again to its own
    size changes nothing.

    Args:
        size: Height and width.
        published_masks: Resize masks as the published programs do for their metrics: bilinear, antialiased, in grey levels,
            and a pixel is anomalous above one half. Otherwise as anomalib: the nearest pixel.
    """

    def __init__(self, size: Sequence[int], *, published_masks: bool = False) -> None:
        super().__init__(size, interpolation=InterpolationMode.BICUBIC, antialias=True)
        self._published_masks = published_masks  # hidden from the repr, since no score depends on it

    @property
    def published_masks(self) -> bool:
        """Whether masks are resized as the published programs do."""
        return self._published_masks

    @published_masks.setter
    def published_masks(self, value: bool) -> None:
        self._published_masks = value

    @property
    def largest(self) -> tuple[int, int]:
        """Height and width of the largest result."""
        return (self.size[0], self.size[1])

    @property
    def is_uniform(self) -> bool:
        """Whether all results are of one size, and fit in one batch."""
        return True

    def apply(self, images: Tensor) -> Tensor:
        """Resize images ``[..., 3, H, W]``."""
        return resize_picture(images, (self.size[0], self.size[1]))

    def mask_size(self, mask: Tensor) -> tuple[int, int]:
        """Height and width that the mask ``[..., H, W]`` of an image gets."""
        del mask
        return (self.size[0], self.size[1])

    def transform(self, inpt: Any, params: dict[str, Any]) -> Any:  # noqa: ANN401 - as torchvision's
        """Resize an image or a mask; what is neither passes as in torchvision's resize."""
        if isinstance(inpt, tv_tensors.Mask):
            size = self.mask_size(inpt)
            if not self.published_masks:
                return functional.resize(inpt, list(size))  # the nearest pixel, where it is a mask
            return tv_tensors.wrap(resize_mask(inpt.as_subclass(Tensor), size), like=inpt)
        if isinstance(inpt, tv_tensors.Image):
            return tv_tensors.wrap(self.apply(inpt.as_subclass(Tensor)), like=inpt)
        return self.apply(inpt) if type(inpt) is Tensor else super().transform(inpt, params)


def resize_picture(images: Tensor, size: tuple[int, int]) -> Tensor:
    """Resize images ``[..., C, H, W]``, in [0, 1] or of 8 bits, to whole grey levels of ``size``; same kind of values."""
    if not images.is_floating_point():
        return _resize_levels(images.float(), size, "bicubic").to(images.dtype)
    return (_resize_levels(_round(LEVELS * images.float()), size, "bicubic") / LEVELS).to(images.dtype)


def resize_mask(masks: Tensor, size: tuple[int, int]) -> Tensor:
    """Resize masks ``[..., H, W]``, anomalous where not 0, as the published programs do; the result is 0 and 1."""
    levels = LEVELS * (masks != 0).float()
    return (_resize_levels(levels.unsqueeze(-3), size, "bilinear").squeeze(-3) > LEVELS / 2).to(masks.dtype)


def _resize_levels(levels: Tensor, size: tuple[int, int], kernel: str) -> Tensor:
    """Resize grey levels ``[..., C, H, W]`` along both axes, each time rounded and clipped."""
    leading = levels.shape[:-3]
    levels = levels if len(leading) == 1 else levels.reshape(-1, *levels.shape[-3:])
    height, width = levels.shape[-2:]
    along = _along_in_export if torch.compiler.is_exporting() else _along

    def resize(*axes: int) -> Tensor:
        resized = levels
        for axis in axes:
            resized = along(resized, axis, size[axis], kernel)
        return resized

    if isinstance(height, int) and isinstance(width, int):
        levels = resize(-2, -1) if is_vertical_first(height, width, size) else resize(-1, -2)
    else:  # dynamic dimensions of an export
        one = torch.ones(1, dtype=torch.int64, device=levels.device)
        levels = torch.where(is_vertical_first(one * height, one * width, size), resize(-2, -1), resize(-1, -2))
    return levels if len(leading) == 1 else levels.reshape(*leading, *levels.shape[-3:])


def is_vertical_first(height: Any, width: Any, size: tuple[int, int]) -> Any:  # noqa: ANN401 - numbers or tensors
    """Whether Pillow (from 13 on) resizes along y before x: where the height shrinks by more than twice what the width does.

    Found by comparing 3,000 resizes of random sizes with both orders. Earlier versions always begin with x; photographs of
    common formats are the same in both.
    """
    return (height > size[0]) & (height - size[0] > 2 * (width - size[1]))


def _along(levels: Tensor, axis: int, target: int, kernel: str) -> Tensor:
    """Resize along one axis, -1 or -2, and round."""
    between = list(levels.shape[-2:])
    if between[axis] == target:
        return levels
    between[axis] = target
    return _round(F.interpolate(levels, size=between, mode=kernel, antialias=True))


def _along_in_export(levels: Tensor, axis: int, target: int, kernel: str) -> Tensor:
    """The same as a matrix product, which every format has: antialiased interpolation is none of ONNX's operators."""
    source = levels.shape[axis]
    if isinstance(source, int) and source == target:
        return levels
    matrix = _matrix(source, target, kernel, levels)
    return _round(levels @ matrix.T if axis == -1 else matrix @ levels)


def _round(levels: Tensor) -> Tensor:
    # Halves go up, as in Pillow's fixed-point numbers; torch.round would take them to the even level.
    return (levels + 0.5).floor_().clamp_(0.0, LEVELS)


def _matrix(source: int, target: int, kernel: str, like: Tensor) -> Tensor:
    """Matrix ``[target, source]`` of an antialiased resize along one axis; ``source`` may be a dynamic dimension."""
    # The distance of each source pixel from each target pixel, in whole numbers up to the one division: OpenVINO
    # computes floats in bfloat16 where the machine can, which has too few digits for positions.
    sources = 2 * torch.arange(source, device=like.device) + 1
    targets = 2 * torch.arange(target, device=like.device) + 1
    distances = (sources[None, :] * target - targets[:, None] * source).abs()
    # The kernel is as wide as a target pixel where the image shrinks.
    widths = 2 * (torch.ones_like(targets[:1]) * source).clamp(min=target)
    x = distances.float() / widths.float()
    if kernel == "bilinear":
        weights = (1 - x).clamp(min=0)
    else:  # Keys' kernel with a = -0.5, as Pillow and torch with antialias
        near = (1.5 * x - 2.5) * x * x + 1
        far = ((-0.5 * x + 2.5) * x - 4) * x + 2
        weights = torch.where(x < 1, near, torch.where(x < 2, far, torch.zeros_like(x)))
    return (weights / weights.sum(dim=1, keepdim=True)).to(like)
