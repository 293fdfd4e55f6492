"""Names for what was found: the most anomalous region against a list of defect words."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import torch
import torch.nn.functional as F
from anomalib.models.components import DynamicBufferMixin
from torch import Tensor

from anomalib_zsclip.clip import BlockRange, ClipBackbone, FeatureRequest, ImageFeatures
from anomalib_zsclip.clip.text_cache import embed_texts
from anomalib_zsclip.errors import ArgumentError, check_list

from .options import Recipe

DEFECT_WORDS = ("scratch", "crack", "hole", "stain", "dent", "contamination", "missing part", "wrong color", "bent part",
                "cut", "thread", "misprint", "broken edge", "blowhole", "fray", "uneven surface")  # fmt: skip
TEMPLATES = ("a {}", "an object with a {}", "a surface with a {}", "a photo of an object with a {}",
             "a close-up photo of a {}", "a photo of a {} on the surface")  # fmt: skip


@dataclass(frozen=True)
class Evidence:
    """What a batch of images, or views of images, says about the names of their defects, for naming regions later.

    Attributes:
        tokens: Patches in the joint space, of unit length, ``[B, L, D]``.
        image_embedding: Whole images, of unit length, ``[B, D]``.
        grid: Rows and columns of the patches.
        logit_scale: CLIP's inverse temperature.
    """

    tokens: Tensor
    image_embedding: Tensor
    grid: tuple[int, int]
    logit_scale: float

    def part(self, start: int, stop: int) -> Evidence:
        """That of some images of the batch, in memory of its own."""
        rows = slice(start, stop)
        return replace(self, tokens=self.tokens[rows].clone(), image_embedding=self.image_embedding[rows].clone())

    @staticmethod
    def join(parts: Sequence[Evidence]) -> Evidence:
        """One batch of several of one patch grid."""
        tokens = torch.cat([part.tokens for part in parts])
        return replace(parts[0], tokens=tokens, image_embedding=torch.cat([part.image_embedding for part in parts]))


class DefectNamer(DynamicBufferMixin):
    """Compares the tokens inside the most anomalous region, and the whole image, with defect words.

    The region is the share of the patches with the highest map values. What the words have in common is taken away before
    the comparison, and what is left of each is brought to one length, so that no word wins by being longer.

    Args:
        embed_dim: Dimensions of the joint space.
        words: Defect words, at least two.
        share: Share of the patches that makes up the region, in (0, 1]; at least one patch does.
        top: Words that are named in a text.

    Attributes:
        keeps_evidence: Whether what was seen is kept, for :meth:`name_regions`.
        evidence: What was seen first since somebody took it, and set it to ``None``: of a batch of whole pictures, or of a
            batch of views of which each picture's first is the whole one.

    Raises:
        ArgumentError: If there are fewer than two words.
    """

    text_features: Tensor
    keeps_evidence: bool = False
    evidence: Evidence | None = None

    def __init__(self, embed_dim: int, words: Sequence[str] = DEFECT_WORDS, share: float = 0.02, top: int = 2) -> None:
        super().__init__()
        check_list("defect_words", words, "at least two words", least=2)
        empty = [word for word in words if not isinstance(word, str) or not word.strip()]
        if empty:
            msg = f"defect_words={list(words)}: {empty[0]!r} is no word."
            raise ArgumentError(msg)
        self.words = tuple(words)
        self.share = share
        self.top = min(top, len(words))
        self.register_buffer("text_features", torch.zeros(len(words), embed_dim))

    def request(self, backbone: ClipBackbone) -> FeatureRequest:
        """Value-value outputs of the last quarter of the tower."""
        return FeatureRequest.of(value_value=[self._blocks(backbone)])

    @staticmethod
    def _blocks(backbone: ClipBackbone) -> BlockRange:
        layers = backbone.layers
        return (layers - max(1, layers // 4) + 1, layers)

    def recipe(self, class_name: str) -> Recipe:
        """What the embedded words depend on; the category is not named."""
        del class_name
        return {"words": list(self.words), "templates": list(TEMPLATES)}

    def setup(self, backbone: ClipBackbone, class_name: str = "") -> None:
        """Embed the words."""
        del class_name
        sentences = [template.format(word) for word in self.words for template in TEMPLATES]
        embeddings = embed_texts(backbone, sentences).unflatten(0, (len(self.words), len(TEMPLATES)))
        self.text_features = F.normalize(embeddings.mean(dim=1), dim=-1)

    @torch.no_grad()
    def forward(self, features: ImageFeatures, backbone: ClipBackbone, anomaly_map: Tensor) -> Tensor:
        """Probabilities of the words, ``[B, words]``, for maps ``[B, H, W]``."""
        evidence = self.see(features, backbone)
        if self.keeps_evidence and self.evidence is None:
            self.evidence = evidence
        return self.name(evidence, anomaly_map)

    def name(self, evidence: Evidence, anomaly_map: Tensor) -> Tensor:
        """Probabilities of the words, ``[B, words]``, for maps ``[B, H, W]`` of what was seen."""
        tokens = evidence.tokens
        patches = F.adaptive_avg_pool2d(anomaly_map.unsqueeze(1), evidence.grid).flatten(1)  # [B, L]
        count = max(1, round(self.share * patches.shape[1]))
        region = patches.topk(count, dim=1).indices.unsqueeze(-1).expand(-1, -1, tokens.shape[-1])
        return self._compare(tokens.gather(1, region).mean(dim=1), evidence.image_embedding, evidence.logit_scale)

    def see(self, features: ImageFeatures, backbone: ClipBackbone) -> Evidence:
        """What images, or views of them, say about the names of their defects."""
        tokens = F.normalize(backbone.project_tokens(features.value_value[self._blocks(backbone)][:, 1:]), dim=-1)
        return Evidence(tokens, F.normalize(features.image_embedding, dim=-1), features.grid, backbone.logit_scale)

    def _compare(self, tokens: Tensor, images: Tensor, logit_scale: float) -> Tensor:
        """Probabilities of the words, ``[N, words]``, for the mean tokens of regions and their images, ``[N, D]`` both."""
        evidence = (F.normalize(tokens, dim=-1) + images) / 2
        words = self.text_features - self.text_features.mean(dim=0)
        words = F.normalize(words, dim=-1) * words.norm(dim=-1).mean()
        return (logit_scale * evidence @ words.T).softmax(dim=-1)

    @torch.no_grad()
    def name_regions(self, evidence: Evidence, index: int, regions: Tensor) -> list[tuple[str, float]]:
        """The best word, and its probability, for each region of one image.

        Args:
            evidence: What was seen of the batch.
            index: Of the image in the batch.
            regions: How much of each pixel belongs to the region, ``[regions, H, W]``; 0 or 1, or the map's values there.
        """
        shares = F.adaptive_avg_pool2d(regions.unsqueeze(1).to(evidence.tokens), evidence.grid).flatten(
            1
        )  # [regions, L]
        tokens = shares @ evidence.tokens[index]
        best = self._compare(tokens, evidence.image_embedding[index].expand_as(tokens), evidence.logit_scale).max(
            dim=-1
        )
        return [
            (self.words[word], value) for word, value in zip(best.indices.tolist(), best.values.tolist(), strict=True)
        ]

    def explain(self, features: ImageFeatures, backbone: ClipBackbone, anomaly_map: Tensor) -> list[str]:
        """A text per image; see :meth:`texts`."""
        return self.texts(self(features, backbone, anomaly_map))

    def texts(self, probabilities: Tensor) -> list[str]:
        """A text per image, such as ``"crack (0.61), scratch (0.22)"``, for probabilities ``[B, words]``."""
        best = probabilities.topk(self.top, dim=-1)
        return [
            ", ".join(f"{self.words[index]} ({value:.2f})" for value, index in zip(row, indices, strict=True))
            for row, indices in zip(best.values.tolist(), best.indices.tolist(), strict=True)
        ]
