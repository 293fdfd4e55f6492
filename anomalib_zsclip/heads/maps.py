"""From values per patch to a smooth map per pixel.

Bilinear enlargement and Gaussian smoothing are linear and separable, so each is a multiplication by one small matrix
per axis: ``A_h M A_w^T``. That is exact for every border rule, costs next to nothing beside the tower, and exports to
every format.
"""

from __future__ import annotations

from collections.abc import Callable, Hashable
from functools import lru_cache

import numpy as np
import torch
from torch import Tensor

from anomalib_zsclip.clip.precision import full_precision


def tokens_to_grid(values: Tensor, grid: tuple[int, int]) -> Tensor:
    """Lay values per patch ``[..., L]``, row by row, on their grid: ``[..., h, w]``."""
    return values.unflatten(-1, grid)


def upsample(maps: Tensor, size: tuple[int, int], *, align_corners: bool = False) -> Tensor:
    """Resize maps ``[..., h, w]`` bilinearly, without antialias, to ``[..., H, W]``."""
    return upsample_and_smooth(maps, size, sigma=0.0, align_corners=align_corners)


def smooth(maps: Tensor, sigma: float) -> Tensor:
    """Smooth maps ``[..., H, W]`` as ``scipy.ndimage.gaussian_filter`` does: cut at 4 sigma, borders mirrored."""
    if sigma <= 0:
        return maps
    height, width = maps.shape[-2:]
    rows, columns = (like(maps, smoothing_matrix, side, float(sigma)) for side in (height, width))
    with full_precision(maps):
        return rows @ maps @ columns.T


def upsample_and_smooth(maps: Tensor, size: tuple[int, int], sigma: float, *, align_corners: bool = False) -> Tensor:
    """Resize maps ``[..., h, w]`` bilinearly to ``[..., H, W]``, then smooth them, in one step per axis."""
    rows, columns = (
        like(maps, _axis_matrix, maps.shape[axis], size[axis], float(sigma), align_corners) for axis in (-2, -1)
    )
    with full_precision(maps):
        return rows @ maps @ columns.T


def like(tensor: Tensor, make: Callable[..., np.ndarray], *arguments: Hashable) -> Tensor:
    """The array that ``make`` gives for ``arguments``, as a constant of the device and type of ``tensor``.

    It is copied to a device once, not in each call: that would make the processor wait for a GPU, and a CUDA graph refuse.
    """
    if torch.compiler.is_compiling():  # also while exporting: a tensor of the tracer must not be kept
        return torch.from_numpy(make(*arguments)).to(tensor)
    return _kept(make, arguments, tensor.device, tensor.dtype)


@lru_cache(maxsize=64)
def _kept(
    make: Callable[..., np.ndarray], arguments: tuple[Hashable, ...], device: torch.device, dtype: torch.dtype
) -> Tensor:
    with torch.inference_mode(mode=False):  # a tensor of inference mode could not be used in learning
        return torch.from_numpy(make(*arguments)).to(device, dtype)


def _axis_matrix(source: int, target: int, sigma: float, align_corners: bool) -> np.ndarray:
    matrix = interpolation_matrix(source, target, align_corners=align_corners)
    return smoothing_matrix(target, sigma) @ matrix if sigma > 0 else matrix


def interpolation_matrix(source: int, target: int, *, align_corners: bool = False) -> np.ndarray:
    """Matrix ``[target, source]`` of a bilinear resize along one axis, as torch's ``interpolate`` does it."""
    positions = np.arange(target, dtype=np.float64)
    if align_corners:
        positions = positions * ((source - 1) / max(target - 1, 1))
    else:
        positions = ((positions + 0.5) * (source / target) - 0.5).clip(min=0)
    low = np.floor(positions).astype(int).clip(max=source - 1)
    high = (low + 1).clip(max=source - 1)
    weight = (positions - low)[:, None]
    identity = np.eye(source)
    return (identity[low] * (1 - weight) + identity[high] * weight).astype(np.float32)


def smoothing_matrix(size: int, sigma: float) -> np.ndarray:
    """Matrix ``[size, size]`` of a Gaussian filter along one axis, border samples mirrored with the edge repeated."""
    radius = int(4 * sigma + 0.5)
    offsets = np.arange(-radius, radius + 1)
    kernel = np.exp(-0.5 * (offsets / sigma) ** 2)
    # Mirroring with the edge repeated has the period 2 * size.
    positions = (np.arange(size)[:, None] + offsets) % (2 * size)
    positions = np.where(positions < size, positions, 2 * size - 1 - positions)
    matrix = np.zeros((size, size))
    np.add.at(matrix, (np.arange(size)[:, None], positions), kernel / kernel.sum())
    return matrix.astype(np.float32)
