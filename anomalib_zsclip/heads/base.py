"""What every head has in common."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor, nn

from anomalib_zsclip.clip import ClipBackbone, FeatureRequest, ImageFeatures

from .options import HeadOptions, Recipe


class HeadOutput(NamedTuple):
    """A head's prediction, as probabilities.

    Attributes:
        score: Image score in [0, 1], 0.5 being undecided. Shape ``[B]``.
        anomaly_map: Score per pixel in [0, 1], 0.5 being undecided. Shape ``[B, H, W]``.
    """

    score: Tensor
    anomaly_map: Tensor


class Head(nn.Module, ABC):
    """Turns the features of one pass of the image tower into a score and a map.

    Life of a head: it is made with its arguments; :meth:`setup` compiles all text into buffers; from then on
    :meth:`forward` needs no text tower. :meth:`recipe` says what those buffers depend on. Whoever keeps the recipe beside
    them knows whether they are still the right ones; the head itself does not.

    Attributes:
        options: Arguments of the head. Replace the object to change them; :meth:`recipe` then changes with it.
    """

    options: HeadOptions

    @abstractmethod
    def recipe(self, class_name: str) -> Recipe:
        """What the result of :meth:`setup` depends on, besides the backbone.

        Args:
            class_name: What the images show. Heads whose prompts do not name it leave it out.
        """

    @abstractmethod
    def request(self, backbone: ClipBackbone) -> FeatureRequest:
        """Intermediate features that this head reads."""

    @abstractmethod
    def setup(self, backbone: ClipBackbone, class_name: str) -> None:
        """Compile the text side into buffers, whatever they held before.

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

    def paper_map(self, anomaly_map: Tensor) -> Tensor:
        """A map of :meth:`forward` on the paper's scale, but for a factor and a constant: for metrics that depend on it."""
        return anomaly_map


class LearnableHead(Head):
    """A head with parameters that are learned on labelled auxiliary images, on top of the frozen tower.

    The tower's features do not change while the head learns. So learning has two parts: :meth:`learning_inputs` turns
    the features of an image into the tensors that the loss needs, once; :meth:`learning_loss` runs on those in every
    epoch.

    Attributes:
        needs_masks: Whether the loss cannot do without ground-truth masks.
    """

    needs_masks: bool = False

    @abstractmethod
    def learned_recipe(self) -> Recipe:
        """Arguments that the learned parameters belong to, by their names: with others, those mean nothing."""

    @abstractmethod
    def learned_state(self) -> dict[str, Tensor]:
        """Learned parameters that the head has, or would take from its file, by their names in the state dict."""

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
        """The paper's optimiser over the learned parameters, which require a gradient from now on."""

    def finish_learning(self, backbone: ClipBackbone) -> None:
        """Compile what was learned into buffers; called before every validation and at the end of learning."""
        del backbone
