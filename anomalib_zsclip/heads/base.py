"""What every head has in common."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor, nn

from anomalib_zsclip.clip import ClipBackbone, FeatureRequest, ImageFeatures
from anomalib_zsclip.errors import ArgumentError


class HeadOutput(NamedTuple):
    """A head's verdict, as probabilities.

    Attributes:
        score: Image score in [0, 1], 0.5 being undecided. Shape ``[B]``.
        anomaly_map: Score per pixel in [0, 1], 0.5 being undecided. Shape ``[B, H, W]``.
    """

    score: Tensor
    anomaly_map: Tensor


IMAGE_SCORES = ("text", "map_max", "mean")
LARGEST_SIGMA = 1000.0


def check_smoothing(sigma: float) -> None:
    """Raise ``ArgumentError`` if ``sigma`` is no width of a Gaussian in pixels; 0 is for no smoothing."""
    if not 0 <= sigma <= LARGEST_SIGMA:
        msg = f"sigma={sigma!r} must be a number of pixels from 0 (no smoothing) to {LARGEST_SIGMA:g}."
        raise ArgumentError(msg)


def combine_image_score(kind: str, score: Tensor, anomaly_map: Tensor) -> Tensor:
    """Image score of a head.

    Args:
        kind: ``"text"``, the image embedding against the text side; ``"map_max"``, the maximum of the map; ``"mean"`` of
            both.
        score: Score of the image embedding, ``[B]``.
        anomaly_map: Map, ``[B, H, W]``.

    Raises:
        ArgumentError: If ``kind`` is none of these.
    """
    if kind not in IMAGE_SCORES:
        msg = f"image_score={kind!r} must be one of {', '.join(IMAGE_SCORES)}."
        raise ArgumentError(msg)
    if kind == "text":
        return score
    peak = anomaly_map.amax(dim=(-2, -1))
    return peak if kind == "map_max" else (score + peak) / 2


class Head(nn.Module, ABC):
    """Turns the features of one pass of the image tower into a score and a map.

    Life of a head: it is made with its arguments; :meth:`setup` runs once with the backbone and compiles all text into
    buffers; from then on :meth:`forward` needs no text tower. ``is_ready`` is kept in the state dict, so that a head
    that comes from a checkpoint is not set up again.
    """

    @abstractmethod
    def request(self, backbone: ClipBackbone) -> FeatureRequest:
        """Intermediate features that this head reads."""

    @abstractmethod
    def setup(self, backbone: ClipBackbone, class_name: str) -> None:
        """Compile the text side into buffers.

        Args:
            backbone: The frozen CLIP.
            class_name: What the images show, for heads whose prompts name it.
        """

    @abstractmethod
    def forward(self, features: ImageFeatures, backbone: ClipBackbone, size: tuple[int, int]) -> HeadOutput:
        """Score a batch.

        Args:
            features: Result of the pass, with at least what :meth:`request` names.
            backbone: The frozen CLIP, for its projection to the joint space.
            size: Height and width of the map.
        """


class LearnableHead(Head):
    """A head with parameters that are learned on labelled auxiliary images, on top of the frozen tower.

    The tower's features do not change while the head learns. So learning has two parts: :meth:`learning_inputs` turns
    the features of an image into the tensors that the loss needs, once; :meth:`learning_loss` runs on those in every
    epoch.

    Attributes:
        needs_masks: Whether the loss cannot do without ground-truth masks.
    """

    needs_masks: bool = False

    @property
    @abstractmethod
    def is_learned(self) -> bool:
        """Whether the head has learned parameters (from learning, or from a checkpoint)."""

    @abstractmethod
    def learning_inputs(
        self, features: ImageFeatures, backbone: ClipBackbone, class_names: Sequence[str]
    ) -> dict[str, Tensor]:
        """Tensors to keep per image, batch first, without gradient.

        Args:
            features: Result of the pass.
            backbone: The frozen CLIP.
            class_names: What each of the images shows.
        """

    @abstractmethod
    def learning_loss(
        self, backbone: ClipBackbone, inputs: dict[str, Tensor], masks: Tensor | None, labels: Tensor
    ) -> dict[str, Tensor]:
        """Loss of a batch.

        Args:
            backbone: The frozen CLIP.
            inputs: A batch of what :meth:`learning_inputs` gave.
            masks: Ground truth in {0, 1}, ``[B, H, W]``, or ``None`` where the auxiliary data has none.
            labels: 1 for anomalous images, ``[B]``.

        Returns:
            The loss under ``"loss"``, and its parts, detached, under their names.
        """

    @abstractmethod
    def configure_optimizer(self) -> torch.optim.Optimizer:
        """The paper's optimiser over the learned parameters."""

    def finish_learning(self, backbone: ClipBackbone) -> None:
        """Compile what was learned into buffers; called before every validation and at the end of learning."""
        del backbone
