"""The detector as plain PyTorch: one pass of the trunk, several heads, one verdict."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from anomalib.data import InferenceBatch
from torch import Tensor, nn

from anomalib_zsclip.clip import ClipBackbone, FeatureRequest
from anomalib_zsclip.errors import ArgumentError
from anomalib_zsclip.heads.base import Head, HeadOutput


class ZeroShotModel(nn.Module):
    """A frozen CLIP with heads on top.

    Args:
        backbone: The frozen CLIP.
        heads: The heads by name.
        weights: Weight of each head in the weighted mean of scores and maps. Default: all alike.
    """

    def __init__(
        self, backbone: ClipBackbone, heads: Mapping[str, Head], weights: Mapping[str, float] | None = None
    ) -> None:
        super().__init__()
        if not heads:
            msg = "A detector needs at least one head."
            raise ArgumentError(msg)
        self.backbone = backbone
        self.heads = nn.ModuleDict(heads)
        self.weights = dict.fromkeys(heads, 1.0) if weights is None else dict(weights)
        unknown = sorted(self.weights.keys() - heads.keys())
        if unknown or sum(self.weights.get(name, 0.0) for name in heads) <= 0 or min(self.weights.values()) < 0:
            msg = f"weights={self.weights} must give weights >= 0, not all 0, to the heads {', '.join(heads)}."
            raise ArgumentError(msg)

    @property
    def request(self) -> FeatureRequest:
        """Everything that the heads want from the one pass."""
        request = FeatureRequest()
        for head in self.heads.values():
            request |= head.request(self.backbone)
        return request

    def head_outputs(self, images: Tensor) -> dict[str, HeadOutput]:
        """Verdict of each head, from one pass of the image tower.

        Args:
            images: Pre-processed images, ``[B, 3, H, W]``.
        """
        size = (images.shape[-2], images.shape[-1])
        features = self.backbone.forward_intermediates(images, self.request)
        return {name: head(features, self.backbone, size) for name, head in self.heads.items()}

    def forward(self, images: Tensor) -> InferenceBatch:
        """Score pre-processed images ``[B, 3, H, W]``: scores ``[B]`` and maps ``[B, H, W]``, both in [0, 1]."""
        outputs = self.head_outputs(images)
        total = sum(self.weights.get(name, 0.0) for name in outputs)
        shares = {name: self.weights.get(name, 0.0) / total for name in outputs}
        score = torch.stack([output.score * shares[name] for name, output in outputs.items()]).sum(dim=0)
        anomaly_map = torch.stack([output.anomaly_map * shares[name] for name, output in outputs.items()]).sum(dim=0)
        return InferenceBatch(pred_score=score, anomaly_map=anomaly_map)
