"""The detector as plain PyTorch: one pass of the trunk, several heads, one prediction."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from anomalib.data import InferenceBatch
from torch import Tensor, nn

from anomalib_zsclip.clip import ClipBackbone, FeatureRequest, ImageFeatures
from anomalib_zsclip.clip.precision import full_precision
from anomalib_zsclip.errors import ArgumentError, check_share, is_number
from anomalib_zsclip.heads.base import Head, HeadOutput
from anomalib_zsclip.heads.explanation import DefectNamer
from anomalib_zsclip.heads.memory_bank import MemoryBank
from anomalib_zsclip.heads.mutual_scoring import MutualScoring, unit_embeddings
from anomalib_zsclip.heads.options import Recipe

from .views import WHOLE, Seen, Views, join_features


class ZeroShotModel(nn.Module):
    """A frozen CLIP with heads on top.

    Args:
        backbone: The frozen CLIP.
        heads: The heads by name.
        weights: Weight of each head in the weighted mean of scores and maps. Default: all alike.
        map_share: Share of the map's maximum in the image score, in [0, 1].
        memory_bank: Patches of other images; takes part once it is filled.
        memory_share: Share of the good parts' comparison in score and map, in [0, 1].
        mutual: How the comparison with unlabelled images of the memory bank counts; without heads it is the prediction.
        namer: Names the defects.
        views: How pictures are looked at: as a whole, or in tiles besides.

    Raises:
        ArgumentError: If there is nothing to judge by, or a share or a weight is out of range.
    """

    def __init__(
        self,
        backbone: ClipBackbone,
        heads: Mapping[str, Head],
        weights: Mapping[str, float] | None = None,
        *,
        map_share: float = 0.0,
        memory_bank: MemoryBank | None = None,
        memory_share: float = 0.5,
        mutual: MutualScoring | None = None,
        namer: DefectNamer | None = None,
        views: Views | None = None,
    ) -> None:
        super().__init__()
        if not heads and (mutual is None or memory_bank is None):
            msg = "A detector needs at least one head."
            raise ArgumentError(msg)
        for name, share in (("map_share", map_share), ("memory_share", memory_share)):
            check_share(name, share)
        self.backbone = backbone
        self.heads = nn.ModuleDict(heads)
        self._given_weights = weights
        self.weights = _normalized(weights, list(heads))
        self.map_share = map_share
        self.memory_bank = memory_bank
        self.memory_share = memory_share
        self.mutual = mutual
        self.namer = namer
        self.views = views or Views()

    def add_head(self, name: str, head: Head) -> None:
        """Add a head to those that are fused; their weights are shared out anew."""
        self.heads[name] = head
        self.weights = _normalized(self._given_weights, list(self.heads))

    @property
    def text_parts(self) -> dict[str, Any]:
        """Everything that text is compiled for, by name: the heads, and the namer of defects where there is one."""
        return {**self.heads, **({} if self.namer is None else {"defect_words": self.namer})}

    def recipe(self) -> Recipe:
        """What scores and maps depend on, besides backbone, text and references: arguments in plain values."""
        fused = {name: round(weight, 6) for name, weight in self.weights.items()}
        recipe: Recipe = {"weights": fused, "map_share": self.map_share, **self.views.recipe()}
        for name, head in self.heads.items():
            recipe[name] = head.options.recipe()  # type: ignore[union-attr, operator]
        if self.memory_bank is not None and self.memory_bank.has_normal:
            recipe |= {"memory_share": self.memory_share, "memory_sigma": self.memory_bank.sigma}
        if self.mutual is not None and self.memory_bank is not None and self.memory_bank.has_unlabelled:
            recipe |= self.mutual.recipe()
        return recipe

    @property
    def request(self) -> FeatureRequest:
        """Everything that the heads and their companions want from the one pass."""
        request = FeatureRequest()
        bank = self.memory_bank if self.memory_bank is not None and self.memory_bank.is_filled else None
        for part in (*self.heads.values(), bank, self.namer):
            if part is not None:
                request |= part.request(self.backbone)  # type: ignore[operator]
        return request

    def features(self, images: Tensor) -> ImageFeatures:
        """The one pass of the image tower over views, or whole pictures, ``[B, 3, H, W]``."""
        return self.backbone.forward_intermediates(images, self.request)

    def view_features(self, images: Tensor, request: FeatureRequest) -> ImageFeatures:
        """Features of all views of pre-processed images; where these are sheets, there must be one alone."""
        if self.views.grid(images) == (1, 1):
            return self.backbone.forward_intermediates(images, request)
        return join_features([self.backbone.forward_intermediates(part, request) for part in self.views.chunks(images)])

    def head_outputs(self, features: ImageFeatures, size: tuple[int, int]) -> dict[str, HeadOutput]:
        """Score and map of each head."""
        return {name: head(features, self.backbone, size) for name, head in self.heads.items()}

    def predict(
        self,
        features: ImageFeatures,
        size: tuple[int, int],
        leave_out: int | None = None,
        substitute: Tensor | None = None,
        numbers: range = WHOLE,
    ) -> InferenceBatch:
        """Fuse the heads, the good parts of the memory bank and its unlabelled images, where it has some, for each view.

        Args:
            features: Result of the pass.
            size: Height and width of the map.
            leave_out: Image of the memory bank that does not count.
            substitute: What takes its place; see :meth:`MemoryBank.forward`.
            numbers: Which views of a picture these are.

        Returns:
            Scores ``[B]`` and maps ``[B, H, W]``, both in [0, 1].

        Raises:
            ArgumentError: If there are neither heads nor images to compare with.
            CheckpointError: If those were seen in another size, in other blocks or in other tiles.
        """
        text = self.predict_without_folder(features, size, leave_out, substitute)
        if self.mutual is None or self.memory_bank is None or not self.memory_bank.has_unlabelled:
            if text is None:
                msg = "There is nothing to compare with: the unlabelled images are missing."
                raise ArgumentError(msg)
            score, anomaly_map = text
        else:
            patches = self.memory_bank.patches_of(features, self.backbone)
            scores, left_out = self.memory_bank.mutual(patches, features.grid, numbers)
            embeddings = unit_embeddings(features.image_embedding)
            score, anomaly_map = self.mutual(scores, features.grid, size, embeddings, left_out, text)
        # Rounding may leave [0, 1] by an ulp.
        return InferenceBatch(pred_score=score.clamp(0, 1), anomaly_map=anomaly_map.clamp(0, 1))

    def predict_without_folder(
        self,
        features: ImageFeatures,
        size: tuple[int, int],
        leave_out: int | None = None,
        substitute: Tensor | None = None,
    ) -> HeadOutput | None:
        """Score and map of heads and good parts, arguments as of :meth:`predict`; ``None`` where there are no heads."""
        outputs = self.head_outputs(features, size)
        if not outputs:
            return None
        anomaly_map = torch.stack([self.weights[name] * output.anomaly_map for name, output in outputs.items()]).sum(0)
        score = torch.stack([self.weights[name] * output.score for name, output in outputs.items()]).sum(0)
        if self.map_share:
            score = (1 - self.map_share) * score + self.map_share * anomaly_map.amax(dim=(-2, -1))
        if self.memory_bank is not None and self.memory_bank.has_normal:
            distance_map = self.memory_bank(features, self.backbone, size, leave_out, substitute)
            anomaly_map = (1 - self.memory_share) * anomaly_map + self.memory_share * distance_map
            score = (1 - self.memory_share) * score + self.memory_share * distance_map.amax(dim=(-2, -1))
        return HeadOutput(score, anomaly_map)

    def paper_map(self, anomaly_map: Tensor) -> Tensor:
        """A map on the paper's scale where a single head made it, but for a factor and a constant; else as it is."""
        alone = len(self.heads) == 1 and (self.memory_bank is None or not self.memory_bank.is_filled)
        alone = alone and not self.views.tiling.is_on
        return next(iter(self.heads.values())).paper_map(anomaly_map) if alone else anomaly_map  # type: ignore[operator]

    def judge(self, images: Tensor, leave_out: int | None = None, substitute: Tensor | None = None) -> InferenceBatch:
        """Score pre-processed images: :meth:`predict` for each view, and the views of a picture fused.

        Args:
            images: Whole pictures ``[B, 3, h, w]``, or sheets with their tiles.
            leave_out: See :meth:`predict`.
            substitute: See :meth:`predict`.

        Returns:
            Scores ``[B]`` and maps ``[B, H, W]`` of the working size, both in [0, 1].
        """
        return self._look(images, leave_out, substitute)[0]

    def forward(self, images: Tensor) -> InferenceBatch:
        """Score pre-processed images ``[B, 3, H, W]``: scores ``[B]`` and maps ``[B, H, W]``, both in [0, 1]."""
        return self.judge(images)

    def explain(self, images: Tensor) -> tuple[InferenceBatch, list[str] | None]:
        """As ``forward``, and a text per image that names the defect, from the same pass."""
        prediction, words = self._look(images, explain=True)
        return prediction, None if words is None or self.namer is None else self.namer.texts(words)

    def _look(
        self,
        images: Tensor,
        leave_out: int | None = None,
        substitute: Tensor | None = None,
        *,
        explain: bool = False,
    ) -> tuple[InferenceBatch, Tensor | None]:
        def see(views: Tensor, numbers: range) -> Seen:
            features = self.features(views)
            with full_precision(views):  # Lightning's mixed precision is for the tower: maps in bf16 are full of ties
                found = self.predict(features, (views.shape[-2], views.shape[-1]), leave_out, substitute, numbers)
                name = explain and self.namer is not None
                words = self.namer(features, self.backbone, found.anomaly_map) if name else None  # type: ignore[misc]
            return Seen(found.pred_score, found.anomaly_map, words)  # type: ignore[arg-type]

        seen = self.views.look(images, see)
        return InferenceBatch(pred_score=seen.score, anomaly_map=seen.anomaly_map), seen.words


def _normalized(weights: Mapping[str, float] | None, names: list[str]) -> dict[str, float]:
    """Weights of the heads, adding up to one."""
    if weights is None or not names:
        return dict.fromkeys(names, 1 / max(len(names), 1))
    own = {name: weights.get(name, 0.0) for name in names}
    if not all(is_number(value) and value >= 0 for value in own.values()) or sum(own.values()) <= 0:
        msg = f"weights={dict(weights)} must give finite weights >= 0, not all 0, to the heads {', '.join(names)}."
        raise ArgumentError(msg)
    return {name: value / sum(own.values()) for name, value in own.items()}
