"""Staged Dual-Path model of CLIP-AD (arXiv 2311.00453, section 3.3): zero-shot, nothing is learned."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar, NamedTuple

import torch
from torch import Tensor

from anomalib_zsclip.clip import BlockRange, ClipBackbone, FeatureRequest, ImageFeatures
from anomalib_zsclip.clip.precision import full_precision
from anomalib_zsclip.clip.text_cache import embed_texts
from anomalib_zsclip.errors import check_path
from anomalib_zsclip.prompts import representative_vector, state_sentences
from anomalib_zsclip.prompts.representative import check_rvs

from .base import Head, HeadOutput
from .maps import tokens_to_grid, upsample, upsample_and_smooth
from .options import HeadOptions, Recipe, check_fields, check_layers, combine_image_score

LOGIT_SCALE = 100.0
STAGES = 4


class SdpRaw(NamedTuple):
    """The quantities of the paper, before they are brought to [0, 1].

    Attributes:
        similarity: Sum over the layers of the weighted, redundancy-free similarities to normal and anomalous, class
            token first. Shape ``[B, 1 + L, 2]``.
        map_raw: Similarity to anomalous, upsampled. Shape ``[B, H, W]``.
        map: The same, smoothed: the paper's anomaly map. Shape ``[B, H, W]``.
        score: Probability of anomalous from the class token of the last layer. Shape ``[B]``.
    """

    similarity: Tensor
    map_raw: Tensor
    map: Tensor
    score: Tensor


@dataclass(frozen=True)
class SdpOptions(HeadOptions):
    """Arguments of the head of CLIP-AD, for SDP and SDP+.

    Args:
        sigma: Gaussian smoothing of the map in pixels; default: 8 at 240 px, in proportion to the image size. The paper
            takes 2 for SDP+ on VisA.
        image_score: "text", the probability of the class token; "map_max", the maximum of the map; "mean" of both. The
            paper adds the two after rescaling each with the extremes of the whole test set, which one image does not
            know; the mean of the two probabilities takes its place.
        layers: Blocks whose tokens are compared, counted from 1; default: the ends of the four stages.
        rvs: How the vector that represents a state's sentences is selected: "mean", "pca", "kde", "dbscan" (as the
            published commands) or "mean_shift".
        rvs_params: Parameters of rvs where they differ from the paper's, for example {"eps": 1.5, "min_samples": 25},
            which the published program uses for VisA.
        domain: Prompt ensemble, "industrial" or "medical".
        prompts: YAML file with a prompt ensemble of one's own: the lists normal, anomalous and templates.
        text_cache: Keep the sentences' embeddings on disk, so that the next start takes seconds.
    """

    PAPER_SIGMA: ClassVar[float] = 8.0

    image_score: str = "mean"
    layers: Sequence[int] | None = None
    rvs: str = "dbscan"
    rvs_params: dict[str, float] | None = None
    domain: str = "industrial"
    prompts: str | Path | None = None
    text_cache: bool = True

    def __post_init__(self) -> None:
        """Refuse values that cannot work."""
        super().__post_init__()
        check_rvs(self.rvs, {} if self.rvs_params is None else self.rvs_params)
        check_path("prompts", self.prompts)
        self.sentences("object")  # A wrong domain or file shows itself here, not at set-up.

    def sentences(self, class_name: str) -> tuple[list[str], list[str]]:
        """Sentences of the normal and of the anomalous states of ``class_name``."""
        return state_sentences(class_name, self.domain, self.prompts)


class SdpHead(Head):
    """Compares staged value-value tokens with one representative text vector per state.

    Args:
        backbone: The CLIP that the head is sized for. It is not kept.
        **options: Fields of :class:`SdpOptions`.

    Raises:
        ArgumentError: If an argument has a value that cannot work.
    """

    options: SdpOptions
    text_features: Tensor

    def __init__(self, backbone: ClipBackbone, **options: Any) -> None:  # noqa: ANN401
        super().__init__()
        check_fields(SdpOptions, options)
        self.options = SdpOptions(**options)
        self.depth = backbone.layers
        check_layers(self.options.layers, self.depth)
        self.register_buffer("text_features", torch.zeros(backbone.embed_dim, 2))

    @property
    def layers(self) -> tuple[int, ...]:
        """Blocks whose tokens are compared, ascending."""
        return compared_layers(self.options, self.depth)

    def recipe(self, class_name: str) -> Recipe:
        """The sentences, by their content, and how they become one vector; see :class:`Head`."""
        sentences = repr(self.options.sentences(class_name)).encode("utf-8", "backslashreplace")
        return {
            "class_name": class_name,
            "domain": self.options.domain,
            "sentences": hashlib.sha256(sentences).hexdigest()[:16],
            "rvs": self.options.rvs,
            "rvs_params": check_rvs(self.options.rvs, self.options.rvs_params or {}),
        }

    def request(self, backbone: ClipBackbone) -> FeatureRequest:
        """Sums of value-value outputs over the stages, and the streams whose class tokens join them."""
        del backbone
        return FeatureRequest.of(
            # The class token after the last block comes with every pass.
            attention_tokens=(layer + 1 for layer in self.layers if layer < self.depth),
            value_value=(stage_of(layer, self.depth) for layer in self.layers),
        )

    def setup(self, backbone: ClipBackbone, class_name: str) -> None:
        """Compile the text features of ``class_name``."""
        self.text_features.copy_(self.compile_text(backbone, class_name))

    def compile_text(self, backbone: ClipBackbone, class_name: str) -> Tensor:
        """Unit text vectors of ``class_name``, columns normal and anomalous: ``[E, 2]``."""
        normal, anomalous = self.options.sentences(class_name)
        embeddings = embed_texts(backbone, [*normal, *anomalous], cache=self.options.text_cache)
        states = embeddings.split([len(normal), len(anomalous)])
        method, params = self.options.rvs, self.options.rvs_params or {}
        vectors = [representative_vector(rows, method, normalize=True, **params) for rows in states]
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
            map_raw = upsample(patches, size)
            return SdpRaw(similarity, map_raw, upsample_and_smooth(patches, size, self.options.sigma_for(size)), score)

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

        The map is a sum over the layers of half the difference of two weighted cosines. Its mean, times two, is a
        difference of cosines, and its sigmoid at CLIP's logit scale the softmax over normal and anomalous.
        """
        probabilities = torch.sigmoid(maps * (2 * LOGIT_SCALE / len(self.layers)))
        return HeadOutput(combine_image_score(self.options.image_score, score, probabilities), probabilities)

    def paper_map(self, anomaly_map: Tensor) -> Tensor:
        """Undo the sigmoid; see :class:`Head`. Values within 1e-7 of 0 and 1 are as good as there."""
        return anomaly_map.logit(eps=1e-7)


def default_layers(depth: int) -> tuple[int, ...]:
    """Last blocks of the four stages of a tower of ``depth`` blocks, rounded up where quarters are not whole."""
    return tuple(sorted({-(-depth * quarter // STAGES) for quarter in range(1, STAGES + 1)}))


def stage_of(layer: int, depth: int) -> BlockRange:
    """First and last block of the stage that a block belongs to, all counted from 1.

    The published program restarts the value-value path where the number of blocks passed is an exact multiple of a
    quarter of the depth. So a tower of 12 blocks has the stages 1-3, 4-6, 7-9 and 10-12; one of 18 has 1-9 and 10-18.
    What it keeps of a block is a reference to the sum, to which the later blocks of the stage add in place: the tokens of
    a block amid a stage are those of the whole stage.
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


def compared_layers(options: SdpOptions, depth: int) -> tuple[int, ...]:
    """Blocks whose tokens are compared, ascending, in a tower of ``depth`` blocks.

    Raises:
        ArgumentError: If ``options.layers`` are no blocks of it.
    """
    return check_layers(options.layers, depth) or default_layers(depth)
