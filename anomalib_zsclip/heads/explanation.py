"""Names for what was found: the most anomalous region against a list of defect words."""

from __future__ import annotations

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from anomalib.models.components import DynamicBufferMixin
from torch import Tensor

from anomalib_zsclip.clip import BlockRange, ClipBackbone, FeatureRequest, ImageFeatures
from anomalib_zsclip.clip.text_cache import embed_texts
from anomalib_zsclip.errors import ArgumentError

from .options import Recipe

DEFECT_WORDS = ("scratch", "crack", "hole", "stain", "dent", "contamination", "missing part", "wrong color", "bent part",
                "cut", "thread", "misprint", "broken edge", "blowhole", "fray", "uneven surface")  # fmt: skip
TEMPLATES = ("a {}", "an object with a {}", "a surface with a {}", "a photo of an object with a {}",
             "a close-up photo of a {}", "a photo of a {} on the surface")  # fmt: skip


class DefectNamer(DynamicBufferMixin):
    """Compares the tokens inside the most anomalous region, and the whole image, with defect words.

    The region is the share of the patches with the highest map values. What the words have in common is taken away before
    the comparison, and what is left of each is brought to one length, so that no word wins by being longer.

    Args:
        embed_dim: Dimensions of the joint space.
        words: Defect words.
        share: Share of the patches that makes up the region.
        top: Words that are named.
    """

    text_features: Tensor

    def __init__(self, embed_dim: int, words: Sequence[str] = DEFECT_WORDS, share: float = 0.02, top: int = 2) -> None:
        super().__init__()
        if (
            isinstance(words, str)
            or len(words) < 2
            or not all(isinstance(word, str) and word.strip() for word in words)
        ):
            msg = f"defect_words={words!r} must be a list of at least two words."
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
        tokens = F.normalize(backbone.project_tokens(features.value_value[self._blocks(backbone)][:, 1:]), dim=-1)
        patches = F.adaptive_avg_pool2d(anomaly_map.unsqueeze(1), features.grid).flatten(1)  # [B, L]
        count = max(1, round(self.share * patches.shape[1]))
        region = patches.topk(count, dim=1).indices.unsqueeze(-1).expand(-1, -1, tokens.shape[-1])
        local = F.normalize(tokens.gather(1, region).mean(dim=1), dim=-1)
        evidence = (local + F.normalize(features.image_embedding, dim=-1)) / 2
        words = self.text_features - self.text_features.mean(dim=0)
        words = F.normalize(words, dim=-1) * words.norm(dim=-1).mean()
        return (backbone.logit_scale * evidence @ words.T).softmax(dim=-1)

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
