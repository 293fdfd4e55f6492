"""Losses for learning from auxiliary images with masks (CLIP-AD, AnomalyCLIP, Crane)."""

from __future__ import annotations

import torch
from torch import Tensor


def true_class(probabilities: Tensor, masks: Tensor) -> Tensor:
    """Probability that each pixel has of the class it is of, ``[B, H, W]``.

    Args:
        probabilities: Probabilities of normal and anomalous, ``[B, 2, H, W]``.
        masks: Ground truth in {0, 1}, ``[B, H, W]``.
    """
    return torch.where(masks.bool(), probabilities[:, 1], probabilities[:, 0])


def focal_loss(true: Tensor, gamma: float = 2.0, smoothing: float = 1e-5) -> Tensor:
    """Focal loss of two-class probability maps (Lin et al. 2017), as the programs of all three use it.

    Args:
        true: Probability of the class that each pixel is of, see :func:`true_class`; that of the other class is the rest.
        gamma: Focus on hard pixels.
        smoothing: Label smoothing, and the summand that keeps the logarithm finite.

    Returns:
        Mean over all pixels, a scalar.
    """
    # (1 - smoothing) * true + smoothing * (1 - true) + smoothing, in one step over a map of every pixel.
    likelihood = (1 - 2 * smoothing) * true + 2 * smoothing
    return (-((1 - likelihood) ** gamma) * likelihood.log()).mean()


def dice_loss(probabilities: Tensor, masks: Tensor) -> Tensor:
    """Dice loss per image, averaged over the batch.

    Args:
        probabilities: Probability of the class that ``masks`` marks, ``[B, H, W]``.
        masks: Ground truth in {0, 1}, ``[B, H, W]``.

    Returns:
        A scalar in [0, 1].
    """
    dims = (-2, -1)
    overlap = (probabilities * masks).sum(dims)
    total = probabilities.sum(dims) + masks.sum(dims)
    return 1 - ((2 * overlap + 1) / (total + 1)).mean()
