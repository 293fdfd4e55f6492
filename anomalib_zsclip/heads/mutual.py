"""Mutual scoring of unlabelled images (MuSc, ICLR 2024): the mathematics, on plain tensors.

A good part has its like in most other images of the folder, a defect has not. Each patch is compared with the nearest patch
of every other image; its score is the mean of the lowest of those distances (section 3 of the paper, arXiv 2401.16753).

``N`` images, ``L`` patches each, width ``C``; ``B`` images are judged by ``R`` others.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor

from anomalib_zsclip.errors import ArgumentError

from .maps import tokens_to_grid

SHARE = (0.0, 0.3)
"""Part of the ascending distances to other images that is averaged (the paper's)."""

CHUNK_BYTES = 2**26
"""Similarities of patches that are held at once for one judged image: 64 MiB, beyond which larger products gain nothing."""


def normalize_image(tokens: Tensor) -> Tensor:
    """Patch tokens ``[N, L, C]`` less the one mean, over the one standard deviation, of all numbers of an image."""
    return F.layer_norm(tokens, tokens.shape[-2:], eps=1e-5)


def window_means(tokens: Tensor, grid: tuple[int, int], side: int, *, pad: bool) -> Tensor:
    """Means of patch tokens ``[N, L, C]`` over windows of ``side`` x ``side`` patches, of the same shape.

    Args:
        tokens: Patch tokens, row by row.
        grid: Height and width of the patch grid.
        side: Side of the windows, odd.
        pad: Whether the outside counts as zeros; else a window at the edge is smaller.
    """
    if side == 1:
        return tokens
    maps = tokens_to_grid(tokens.transpose(1, 2), grid)
    means = F.avg_pool2d(maps, side, stride=1, padding=side // 2, count_include_pad=pad)
    return means.flatten(2).transpose(1, 2)


def nearest_distances(own: Tensor, known: Tensor, chunk_bytes: int = CHUNK_BYTES) -> Tensor:
    """Euclidean distances ``[B, L, R]`` of unit vectors to the nearest patch of each known image.

    Args:
        own: Patches to judge, ``[B, L, C]``.
        known: Patches of the known images, ``[R, K, C]``.
        chunk_bytes: Bounds the memory: as many known images at a time as fit, for one judged image.
    """
    cosines = [
        # One product per chunk; the batch stays the first axis, so that an export leaves its size open.
        (own @ part.flatten(0, 1).T).unflatten(-1, part.shape[:2]).amax(dim=-1)
        for part in known.split(max(1, chunk_bytes // (4 * own.shape[1] * known.shape[1])))
    ]
    return (2 - 2 * torch.cat(cosines, dim=-1)).clamp(min=0).sqrt()


def interval(count: int, share: tuple[float, float] = SHARE) -> tuple[int, int]:
    """First (excluded) and last rank, in ascending order of ``count`` distances, of those that are averaged.

    Args:
        count: Number of other images.
        share: Ends of the interval: below 1 a share of ``count``, cut off to a whole number; else a number of images.

    Raises:
        ArgumentError: If an end is negative or more than ``count``.
    """
    low, high = sorted(int(count * end) if end < 1 else int(end) for end in share)
    if low < 0 or high > max(count, 0):
        msg = f"share={share} asks for {high} distances, and there are {count} other images."
        raise ArgumentError(msg)
    return low, high


def interval_means(distances: Tensor, share: tuple[float, float] = SHARE, left_out: Tensor | None = None) -> Tensor:
    """Means ``[B, L]`` of the lowest distances ``[B, L, R]``, as ``share`` has it; NaN where the share is of too few.

    With ``left_out`` at least the lowest distance counts, and 0 where all are left out: an empty tile has many copies.

    Args:
        distances: To the nearest patch of each other image.
        share: See :func:`interval`.
        left_out: Which images do not count for which, ``[B, R]``: an image itself, or its copies.
    """
    total = distances.shape[-1]
    if left_out is None:
        low, high = interval(total, share)
        return distances.sort(dim=-1).values[..., low:high].mean(dim=-1)
    # The ranks depend on how many others an image has, at most one row of the table for each possible number.
    table = torch.tensor([interval(count, share) for count in range(total + 1)], device=distances.device)
    first, last = table[total - left_out.sum(dim=1)].unsqueeze(1).unbind(-1)  # [B, 1] each
    ordered = distances.masked_fill(left_out.unsqueeze(1), torch.inf).sort(dim=-1).values
    ordered = ordered.masked_fill(ordered == torch.inf, 0)
    last = torch.maximum(last, first + 1)
    rank = torch.arange(total, device=distances.device)
    chosen = (rank >= first[..., None]) & (rank < last[..., None])  # [B, 1, R]
    return ordered.masked_fill(~chosen, 0).sum(dim=-1) / (last - first)


def mutual_scores(
    patches: Tensor, share: tuple[float, float] = SHARE, references: Sequence[int] | None = None
) -> Tensor:
    """Score ``[N, L]`` of every patch: its distance to those images that have most like it, itself left out.

    Args:
        patches: Unit vectors of all images, ``[N, L, C]``.
        share: See :func:`interval`.
        references: Images that others are compared with. Default: all.
    """
    listed = list(range(len(patches))) if references is None else list(references)
    known = patches[listed]
    scores = []
    for index, own in enumerate(patches):
        others = known if index not in listed else known[[place != index for place in listed]]
        scores.append(interval_means(nearest_distances(own[None], others), share))
    return torch.cat(scores)


def rescore(scores: Tensor, tokens: Tensor, windows: Sequence[int]) -> Tensor:
    """Image scores ``[N]`` evened out among images that look alike (RsCIN, section 3.3 of the paper).

    The scores are stretched to [0, 1]. For each window ``k`` an image's score becomes the mean over the ``k`` images most
    like it, itself among them, weighted by their similarity; the result is the mean over the windows.

    Args:
        scores: Image scores.
        tokens: Image embeddings ``[N, E]``, of unit length in the paper; nothing is normalised here.
        windows: Numbers of images. A 0 among them leaves the scores as they are.

    Raises:
        ArgumentError: If a window is larger than the number of images.
    """
    if 0 in windows or not len(windows):
        return scores
    if max(windows) > len(scores):
        msg = f"windows={list(windows)}: the largest is more than the {len(scores)} images."
        raise ArgumentError(msg)
    stretched = (scores - scores.min()) / (scores.max() - scores.min())
    similarities = tokens @ tokens.T
    kept, neighbours = similarities.topk(max(windows), dim=1)
    means = [
        (kept[:, :count] * stretched[neighbours[:, :count]]).sum(dim=1) / kept[:, :count].sum(dim=1)
        for count in windows
    ]
    return torch.stack(means).mean(dim=0)
