"""Staged Dual-Path model of CLIP-AD (arXiv 2311.00453, section 3.3): zero-shot, nothing is learned."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import NamedTuple

import torch
from torch import Tensor

from anomalib_zsclip.clip import BlockRange, ClipBackbone, FeatureRequest, ImageFeatures
from anomalib_zsclip.clip.text_cache import embed_texts
from anomalib_zsclip.errors import ArgumentError
from anomalib_zsclip.maps import enlarge, enlarge_and_smooth, tokens_to_grid
from anomalib_zsclip.precision import full_precision
from anomalib_zsclip.prompts import representative_vector, state_sentences
from anomalib_zsclip.prompts.representative import check_rvs

from .base import IMAGE_SCORES, Head, HeadOutput, check_smoothing, combine_image_score

LOGIT_SCALE = 100.0
STAGES = 4


class SdpRaw(NamedTuple):
    """The quantities of the paper, before they are brought to [0, 1].

    Attributes:
        similarity: Sum over the layers of the weighted, redundancy-free similarities to normal and anomalous, class
            token first. Shape ``[B, 1 + L, 2]``.
        map_raw: Similarity to anomalous, enlarged. Shape ``[B, H, W]``.
        map: The same, smoothed: the paper's anomaly map. Shape ``[B, H, W]``.
        score: Probability of anomalous from the class token of the last layer. Shape ``[B]``.
    """

    similarity: Tensor
    map_raw: Tensor
    map: Tensor
    score: Tensor


class SdpHead(Head):
    """Compares staged value-value tokens with one representative text vector per state.

    Args:
        backbone: The CLIP that the head is sized for. It is not kept.
        layers: Blocks whose tokens are compared, counted from 1. Default: the ends of the four stages.
        sigma: Standard deviation of the Gaussian that smooths the map, in pixels of the map. The paper takes 8 at 240
            pixels, and 2 for SDP+ on VisA.
        rvs: How the vector that represents a state's sentences is selected; see
            :func:`~anomalib_zsclip.prompts.representative_vector`. The published commands use ``"dbscan"``.
        rvs_params: Parameters of ``rvs`` where they differ from the paper's, for example
            ``{"eps": 1.5, "min_samples": 25}``, which the published program uses for VisA.
        domain: Prompt ensemble, ``"industrial"`` or ``"medical"``.
        prompts: YAML file with a prompt ensemble of one's own.
        image_score: ``"text"``, the probability of the class token; ``"map_max"``, the maximum of the map; ``"mean"``
            of both. The paper adds the two after rescaling each with the extremes of the whole test set, which one
            image does not know; the mean of the two probabilities takes its place.
        text_cache: Keep the sentences' embeddings on disk.

    Raises:
        ArgumentError: If an argument has a value that cannot work.
    """

    text_features: Tensor
    is_ready: Tensor

    def __init__(
        self,
        backbone: ClipBackbone,
        layers: Sequence[int] | None = None,
        sigma: float = 8.0,
        rvs: str = "dbscan",
        rvs_params: Mapping[str, float] | None = None,
        domain: str = "industrial",
        prompts: str | Path | None = None,
        image_score: str = "mean",
        *,
        text_cache: bool = True,
    ) -> None:
        super().__init__()
        self.depth = backbone.layers
        self.layers = _check_layers(layers, self.depth)
        check_smoothing(sigma)
        if image_score not in IMAGE_SCORES:
            msg = f"image_score={image_score!r} must be one of {', '.join(IMAGE_SCORES)}."
            raise ArgumentError(msg)
        check_rvs(rvs, rvs_params or {})
        state_sentences("object", domain, prompts)  # A wrong domain or file shows itself here, not at set-up.
        self.sigma = float(sigma)
        self.rvs = rvs
        self.rvs_params = dict(rvs_params or {})
        self.domain = domain
        self.prompts = prompts
        self.image_score = image_score
        self.text_cache = text_cache
        self.class_name: str | None = None
        self.register_buffer("text_features", torch.zeros(backbone.embed_dim, 2))
        self.register_buffer("is_ready", torch.tensor(data=False))

    def request(self, backbone: ClipBackbone) -> FeatureRequest:
        """Sums of value-value outputs over the stages, and the streams whose class tokens join them."""
        del backbone
        return FeatureRequest.of(
            # The class token after the last block comes with every pass.
            attention_tokens=(layer + 1 for layer in self.layers if layer < self.depth),
            value_value=(stage_of(layer, self.depth) for layer in self.layers),
        )

    def setup(self, backbone: ClipBackbone, class_name: str) -> None:
        """Compile the text features of ``class_name``; those of a checkpoint stay."""
        if self.is_ready and self.class_name in (None, class_name):
            return
        self.text_features.copy_(self.compile_text(backbone, class_name))
        self.class_name = class_name
        self.is_ready.fill_(value=True)

    def compile_text(self, backbone: ClipBackbone, class_name: str) -> Tensor:
        """Unit text vectors of ``class_name``, columns normal and anomalous: ``[E, 2]``."""
        normal, anomalous = state_sentences(class_name, self.domain, self.prompts)
        embeddings = embed_texts(backbone, [*normal, *anomalous], cache=self.text_cache)
        states = embeddings.split([len(normal), len(anomalous)])
        vectors = [representative_vector(rows, self.rvs, normalize=True, **self.rvs_params) for rows in states]
        return torch.stack(vectors, dim=1)

    def forward(self, features: ImageFeatures, backbone: ClipBackbone, size: tuple[int, int]) -> HeadOutput:
        """Score a batch; see :class:`Head`.

        The map is the probability that CLIP's own temperature gives to the mean similarity over the layers; it ranks
        pixels as the paper's map does.
        """
        raw = self.raw(features, backbone, size)
        return self.calibrate(raw.score, raw.map)

    def raw(
        self, features: ImageFeatures, backbone: ClipBackbone, size: tuple[int, int], text: Tensor | None = None
    ) -> SdpRaw:
        """Compute the quantities of the paper.

        Args:
            features: Result of the pass.
            backbone: The frozen CLIP.
            size: Height and width of the map.
            text: Text features ``[E, 2]``, or ``[B, E, 2]`` with those of each image, in place of the head's own.
        """
        similarity, score = self.similarity(features, backbone, text)
        with full_precision(similarity):
            patches = tokens_to_grid(similarity[:, 1:, 1], features.grid)  # [B, h, w]
            map_raw = enlarge(patches, size)
            return SdpRaw(similarity, map_raw, enlarge_and_smooth(patches, size, self.sigma), score)

    def similarity(
        self, features: ImageFeatures, backbone: ClipBackbone, text: Tensor | None = None
    ) -> tuple[Tensor, Tensor]:
        """Similarities ``[B, 1 + L, 2]`` and class-token score ``[B]`` of :class:`SdpRaw`; arguments as in ``raw``."""
        text = self.text_features if text is None else text
        cosines = []
        for layer in self.layers:
            embeddings = self.embeddings(features, backbone, layer)
            with full_precision(embeddings):
                cosines.append(cosine_similarity(embeddings, text))
        with full_precision(text):
            return feature_surgery(torch.stack(cosines)), anomaly_probability(cosines[-1][:, 0])

    def embeddings(self, features: ImageFeatures, backbone: ClipBackbone, layer: int) -> Tensor:
        """Tokens of one layer in the joint space, not normalised, class token first: ``[B, 1 + L, E]``."""
        last = layer == self.depth
        class_token = features.class_token if last else features.attention_tokens[layer + 1][:, 0]
        refined = features.value_value[stage_of(layer, self.depth)]
        return backbone.project_tokens(torch.cat([class_token.unsqueeze(1), refined[:, 1:]], dim=1))

    def calibrate(self, score: Tensor, maps: Tensor) -> HeadOutput:
        """Bring the paper's score and map to probabilities, without data and strictly monotone.

        The map is a sum over the layers of half the difference of two cosines. Its mean, times two, is a difference
        of cosines, and its sigmoid at CLIP's logit scale the softmax over normal and anomalous.
        """
        probabilities = torch.sigmoid(maps * (2 * LOGIT_SCALE / len(self.layers)))
        return HeadOutput(combine_image_score(self.image_score, score, probabilities), probabilities)


def default_layers(depth: int) -> tuple[int, ...]:
    """Last blocks of the four stages of a tower of ``depth`` blocks, rounded up where quarters are not whole."""
    return tuple(sorted({-(-depth * quarter // STAGES) for quarter in range(1, STAGES + 1)}))


def stage_of(layer: int, depth: int) -> BlockRange:
    """First and last block of the stage that a block belongs to, all counted from 1.

    The published program restarts the value-value path where the number of blocks passed is an exact multiple of a
    quarter of the depth. So a tower of 12 blocks has the stages 1-3, 4-6, 7-9 and 10-12; one of 18 has 1-9 and 10-18.
    """
    starts = [passed + 1 for passed in range(depth) if passed * STAGES % depth == 0]
    first = max(start for start in starts if start <= layer)
    last = min([start - 1 for start in starts if start > layer], default=depth)
    return first, last


def cosine_similarity(embeddings: Tensor, text: Tensor) -> Tensor:
    """Cosines of embeddings ``[B, N, E]`` and unit text vectors ``[E, 2]`` or ``[B, E, 2]``: ``[B, N, 2]``."""
    return embeddings @ text / embeddings.norm(dim=-1, keepdim=True).clamp_min(1e-12)


def feature_surgery(cosines: Tensor) -> Tensor:
    """Weigh the classes by the image, take away what they have in common, and add up the layers.

    Args:
        cosines: Cosines of each layer's tokens with the text of normal and anomalous, class token first,
            ``[layers, B, 1 + L, 2]``.

    Returns:
        Similarities ``[B, 1 + L, 2]``; the two of a token add up to zero.
    """
    weights = 2 * cosines[:, :, :1].softmax(dim=-1)  # The mean of the two weights is one.
    weighted = weights * cosines
    return (weighted - weighted.mean(dim=-1, keepdim=True)).sum(dim=0)


def anomaly_probability(cosines: Tensor) -> Tensor:
    """Probability of anomalous from the cosines with normal and anomalous: ``[..., 2]`` -> ``[...]``."""
    return torch.sigmoid(LOGIT_SCALE * (cosines[..., 1] - cosines[..., 0]))


def _check_layers(layers: Sequence[int] | None, depth: int) -> tuple[int, ...]:
    if layers is None:
        return default_layers(depth)
    if not layers or any(not isinstance(layer, int) or not 1 <= layer <= depth for layer in layers):
        msg = f"layers={list(layers)} must name at least one block of the image tower, which has blocks 1 to {depth}."
        raise ArgumentError(msg)
    return tuple(sorted(set(layers)))
