"""Mathematics of two sentences, one of a flawless and one of a damaged object, against tokens (AnomalyCLIP, ICLR 2024)."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from anomalib_zsclip.clip.precision import full_precision

from .losses import dice_loss, focal_loss, true_class
from .maps import tokens_to_grid, upsample, upsample_and_smooth


def class_logits(features: Tensor, text_features: Tensor, temperature: float) -> Tensor:
    """Cosine similarity with the normal and the anomalous sentence over temperature, ``[..., 2]``.

    Args:
        features: Embeddings of any length, ``[..., E]``.
        text_features: Unit embeddings of the normal and the anomalous sentence, ``[2, E]``, or of a pair per image, ``[B, 2,
            E]``; ``features`` are then ``[B, N, E]``.
        temperature: Divides the cosines.
    """
    with full_precision(features):
        return F.normalize(features.float(), dim=-1) @ text_features.float().transpose(-1, -2) / temperature


def class_probabilities(features: Tensor, text_features: Tensor, temperature: float) -> Tensor:
    """Probabilities of normal and anomalous, ``[..., 2]``: the softmax of :func:`class_logits`."""
    return class_logits(features, text_features, temperature).softmax(dim=-1)


def summed_map(probabilities: Tensor, grid: tuple[int, int], size: tuple[int, int], sigma: float) -> Tensor:
    """Anomaly map as published: ``(p_a + 1 - p_n) / 2``, upsampled, summed over the layers, smoothed.

    All of these steps are linear, so they are exchanged for speed.

    Args:
        probabilities: Probabilities of normal and anomalous per patch, ``[layers, B, L, 2]``.
        grid: Height and width of the patch grid.
        size: Height and width of the map.
        sigma: Standard deviation of the Gaussian filter in pixels; 0 for none.

    Returns:
        Map in [0, layers], ``[B, H, W]``.
    """
    normal, anomalous = probabilities.unbind(dim=-1)
    scores = ((anomalous + 1 - normal) / 2).sum(dim=0)  # [B, L]
    return upsample_and_smooth(tokens_to_grid(scores, grid), size, sigma)


def map_losses(patch_features: Tensor, text_features: Tensor, masks: Tensor, temperature: float) -> dict[str, Tensor]:
    """Focal loss and dice losses of both channels, per layer (section 3.3).

    Args:
        patch_features: Patch features on their grid, ``[B, layers, h, w, E]``.
        text_features: Unit embeddings of both sentences, ``[2, E]``.
        masks: Ground truth in {0, 1}, ``[B, H, W]``.
        temperature: Divides the cosines.

    Returns:
        ``focal``, ``dice_anomalous`` and ``dice_normal``, each ``[layers]``.
    """
    masks = masks.float()
    probabilities = class_probabilities(patch_features, text_features, temperature)  # [B, layers, h, w, 2]
    maps = upsample(probabilities.movedim(-1, 2), (masks.shape[-2], masks.shape[-1]))  # [B, layers, 2, H, W]
    layers = maps.unbind(dim=1)
    return {
        "focal": torch.stack([focal_loss(true_class(layer, masks)) for layer in layers]),
        "dice_anomalous": torch.stack([dice_loss(layer[:, 1], masks) for layer in layers]),
        "dice_normal": torch.stack([dice_loss(layer[:, 0], 1 - masks) for layer in layers]),
    }


def image_loss(image_embedding: Tensor, text_features: Tensor, labels: Tensor, temperature: float) -> Tensor:
    """Cross-entropy of the image embedding against the label, mean over the batch.

    Args:
        image_embedding: ``[B, E]``.
        text_features: Unit embeddings of both sentences, ``[2, E]``.
        labels: 1 for anomalous images, ``[B]``.
        temperature: Divides the cosines.

    Returns:
        A scalar.
    """
    return F.cross_entropy(class_logits(image_embedding, text_features, temperature), labels.long())
