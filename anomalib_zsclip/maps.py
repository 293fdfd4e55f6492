"""From values per patch to a smooth map per pixel.

Bilinear enlargement and Gaussian smoothing are linear and separable, so each is a multiplication by one small matrix per
axis: ``A_h M A_w^T``. That is exact for every border rule, costs next to nothing beside the tower, and exports to every
format.
"""

from __future__ import annotations

from functools import lru_cache

import torch
from torch import Tensor


def tokens_to_grid(values: Tensor, grid: tuple[int, int]) -> Tensor:
    """Lay values per patch ``[..., L]``, row by row, on their grid: ``[..., h, w]``."""
    return values.unflatten(-1, grid)


def enlarge(maps: Tensor, size: tuple[int, int], *, align_corners: bool = False) -> Tensor:
    """Resize maps ``[..., h, w]`` bilinearly, without antialias, to ``[..., H, W]``."""
    return enlarge_and_smooth(maps, size, sigma=0.0, align_corners=align_corners)


def smooth(maps: Tensor, sigma: float) -> Tensor:
    """Smooth maps ``[..., H, W]`` as ``scipy.ndimage.gaussian_filter`` does: cut at 4 sigma, borders mirrored."""
    if sigma <= 0:
        return maps
    rows = smoothing_matrix(maps.shape[-2], sigma).to(maps)
    columns = smoothing_matrix(maps.shape[-1], sigma).to(maps)
    return rows @ maps @ columns.T


def enlarge_and_smooth(
    maps: Tensor, size: tuple[int, int], sigma: float, *, align_corners: bool = False
) -> Tensor:
    """Resize maps ``[..., h, w]`` bilinearly to ``[..., H, W]``, then smooth them, in one step per axis."""
    rows = _axis_matrix(maps.shape[-2], size[0], float(sigma), align_corners).to(maps)
    columns = _axis_matrix(maps.shape[-1], size[1], float(sigma), align_corners).to(maps)
    return rows @ maps @ columns.T


@lru_cache(maxsize=64)
def _axis_matrix(source: int, target: int, sigma: float, align_corners: bool) -> Tensor:
    matrix = interpolation_matrix(source, target, align_corners=align_corners)
    return smoothing_matrix(target, sigma) @ matrix if sigma > 0 else matrix


@lru_cache(maxsize=64)
def interpolation_matrix(source: int, target: int, *, align_corners: bool = False) -> Tensor:
    """Matrix ``[target, source]`` of a bilinear resize along one axis, as ``torch.nn.functional.interpolate`` does it."""
    positions = torch.arange(target, dtype=torch.float64)
    if align_corners:
        positions = positions * ((source - 1) / max(target - 1, 1))
    else:
        positions = ((positions + 0.5) * (source / target) - 0.5).clamp(min=0)
    low = positions.floor().long().clamp(max=source - 1)
    high = (low + 1).clamp(max=source - 1)
    weight = (positions - low).unsqueeze(1)
    identity = torch.eye(source, dtype=torch.float64)
    return (identity[low] * (1 - weight) + identity[high] * weight).float()


@lru_cache(maxsize=64)
def smoothing_matrix(size: int, sigma: float) -> Tensor:
    """Matrix ``[size, size]`` of a Gaussian filter along one axis, border samples mirrored with the edge repeated."""
    radius = int(4 * sigma + 0.5)
    offsets = torch.arange(-radius, radius + 1, dtype=torch.float64)
    kernel = torch.exp(-(offsets**2) / (2 * sigma**2))
    kernel = kernel / kernel.sum()
    # Mirroring with the edge repeated has the period 2 * size.
    positions = (torch.arange(size).unsqueeze(1) + offsets.long()) % (2 * size)
    positions = torch.where(positions < size, positions, 2 * size - 1 - positions)
    matrix = torch.zeros(size, size, dtype=torch.float64)
    return matrix.scatter_add_(1, positions, kernel.expand(size, -1)).float()
