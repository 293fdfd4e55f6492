"""The random-word detector (Tamura, BMVC 2023, arXiv 2308.11119).

Only the abstract and the introduction of the paper were at hand: what it says of random words and of a feed-forward network
on text embeddings is followed; sizes, noise, training and localisation are ours.
"""

from __future__ import annotations

import copy
import logging
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from anomalib_zsclip.clip import BlockRange, ClipBackbone, FeatureRequest, ImageFeatures
from anomalib_zsclip.clip.text_cache import embed_texts
from anomalib_zsclip.errors import ArgumentError, check_flag, check_list, check_whole_number, is_number
from anomalib_zsclip.prompts.random_words import ANOMALOUS_STATES, NORMAL_STATES, TEMPLATES, random_word_prompts

from .base import Head, HeadOutput
from .maps import tokens_to_grid, upsample_and_smooth
from .options import HeadOptions, Recipe, check_fields, combine_image_score, plain

logger = logging.getLogger(__name__)

LOCALIZATIONS = ("value_value", "window")


@dataclass(frozen=True)
class RandomWordOptions(HeadOptions):
    """Arguments of the random-word head.

    Args:
        sigma: Gaussian smoothing of the map in pixels; default: 4 at 240 px, in proportion to the image size.
        image_score: Image score: "text" from the image embedding, "map_max" the maximum of the map, "mean" of both.
        prompts_per_class: Prompts of each class, normal and anomalous, that the network learns from; 1 to 1,000,000.
        words: Fewest and most random words in a prompt, from 1 to 64.
        letters: Fewest and most letters of a random word, from 1 to 64.
        normal_states: Phrases of the normal class, each with one {} for the random words.
        anomalous_states: Phrases of the anomalous class, each with one {} for the random words.
        templates: Sentences, each with one {} for the phrase.
        hidden: Width of the network's hidden layer.
        text_noise: Expected norm of the Gaussian noise on the unit text embeddings in training. Texts and images lie apart
            in the joint space; noise keeps the network from relying on what only texts have. On procedural images of
            held-out families with the built-in backbone, 1.0 gave an image AUROC 0.03 above no noise, and more changed
            nothing.
        centering: "text" subtracts the mean of the prompts' embeddings from texts and images alike before normalising
            them; "none" does not, and was better by 0.03 to 0.04 in the same measurement.
        localization: Where local embeddings come from: "value_value", the value-value outputs of the last blocks of the
            one pass; or "window", the tower run on small windows of patches, as in WinCLIP, many times slower.
        blocks: First and last block of the value-value sum, counted from 1; default: the last quarter of the tower.
        scales: Sides of the windows in patches, for "window".
        stride: Step between windows in patches. WinCLIP takes 1. With 2 a third of the windows covers every patch all the
            same, in less than half the time; on real surface defects with the built-in backbone the pixel AUROC was
            0.003 lower.
        window_chunk: Windows per pass of the tower, which bounds the memory.
        seed: Seed of prompts, network and training.
        text_cache: Keep the prompts' embeddings on disk, so that the next start takes seconds.
    """

    prompts_per_class: int = 1000
    words: tuple[int, int] = (1, 3)
    letters: tuple[int, int] = (3, 8)
    normal_states: Sequence[str] = NORMAL_STATES
    anomalous_states: Sequence[str] = ANOMALOUS_STATES
    templates: Sequence[str] = TEMPLATES
    hidden: int = 256
    text_noise: float = 1.0
    centering: str = "none"
    localization: str = "value_value"
    blocks: tuple[int, int] | None = None
    scales: Sequence[int] = (2, 3)
    stride: int = 2
    window_chunk: int = 256
    seed: int = 0
    text_cache: bool = True

    def __post_init__(self) -> None:
        """Refuse values that cannot work."""
        super().__post_init__()
        if self.localization not in LOCALIZATIONS:
            msg = f"localization={self.localization!r} must be one of {', '.join(LOCALIZATIONS)}."
            raise ArgumentError(msg)
        if self.centering not in ("none", "text"):
            msg = f"centering={self.centering!r} must be 'none' or 'text'."
            raise ArgumentError(msg)
        if not is_number(self.text_noise) or self.text_noise < 0:
            msg = f"text_noise={self.text_noise!r} must be 0 or a positive finite number."
            raise ArgumentError(msg)
        if isinstance(self.seed, bool) or not isinstance(self.seed, int):
            msg = f"seed={self.seed!r} must be a whole number."
            raise ArgumentError(msg)
        for name in ("prompts_per_class", "hidden", "stride", "window_chunk"):
            check_whole_number(name, getattr(self, name), 1)
        check_list("scales", self.scales, "at least one side of a window in patches")
        for index, scale in enumerate(self.scales):
            check_whole_number(f"scales[{index}]", scale, 1)
        pair = self.blocks is None or (isinstance(self.blocks, tuple) and len(self.blocks) == 2)
        for index, block in enumerate(self.blocks or () if pair else ()):
            check_whole_number(f"blocks[{index}]", block, 1)
        if not pair or (self.blocks and self.blocks[0] > self.blocks[1]):
            msg = f"blocks={self.blocks!r} must be the first and the last block of a sum, such as (10, 12)."
            raise ArgumentError(msg)
        check_flag("text_cache", self.text_cache)

    def prompts(self) -> tuple[list[str], list[str]]:
        """Sentences of the normal and of the anomalous class."""
        return random_word_prompts(
            self.prompts_per_class,
            words=self.words,
            letters=self.letters,
            normal_states=self.normal_states,
            anomalous_states=self.anomalous_states,
            templates=self.templates,
            seed=self.seed,
        )


TEXT_FIELDS = ("prompts_per_class", "words", "letters", "normal_states", "anomalous_states", "templates", "hidden",
               "text_noise", "centering", "seed")  # fmt: skip
"""Options that shape the network; the others only read it."""


class RandomWordHead(Head):
    """A feed-forward network that learned "damaged" from text alone, applied to image embeddings.

    At set-up, prompts that say of random words that they are perfect or damaged are embedded, and a small network learns
    to tell the two apart. Since the words are random, it can learn the state alone; no category name is ever needed. It
    is then applied to the image embedding for the image score, and to local embeddings for the map. The idea is the
    paper's; sizes, noise, training and localisation are our choices, since only its abstract and introduction were at
    hand.

    Args:
        embed_dim: Dimensions of the joint space.
        **options: Fields of :class:`RandomWordOptions`.

    Raises:
        ArgumentError: If an argument has a value that cannot work.
    """

    options: RandomWordOptions
    network: nn.Sequential
    center: Tensor

    def __init__(self, embed_dim: int, **options: Any) -> None:  # noqa: ANN401
        super().__init__()
        check_fields(RandomWordOptions, options)
        self.options = RandomWordOptions(**options)
        self.options.prompts()  # Phrases that cannot work show themselves here, not at set-up.
        self.network = self._make_network(embed_dim)
        self.register_buffer("center", torch.zeros(embed_dim))

    def _make_network(self, embed_dim: int) -> nn.Sequential:
        hidden = self.options.hidden
        network = nn.Sequential(nn.Linear(embed_dim, hidden), nn.ReLU(), nn.Linear(hidden, 1))
        return network.requires_grad_(requires_grad=False)

    def recipe(self, class_name: str) -> Recipe:
        """Everything that the prompts and the network's training depend on; see :class:`Head`."""
        del class_name  # The words are random.
        return {name: plain(getattr(self.options, name)) for name in TEXT_FIELDS}

    def request(self, backbone: ClipBackbone) -> FeatureRequest:
        """The value-value sum of the last blocks, or the tower's input for windows."""
        if self.options.localization == "window":
            return FeatureRequest.of(tokens=[0])
        return FeatureRequest.of(value_value=[self._blocks(backbone)])

    def _blocks(self, backbone: ClipBackbone) -> BlockRange:
        layers = backbone.layers
        return self.options.blocks or (layers - max(1, layers // 4) + 1, layers)

    def setup(self, backbone: ClipBackbone, class_name: str) -> None:
        """Embed the prompts and train the network."""
        del class_name
        options = self.options
        normal, anomalous = options.prompts()
        embeddings = embed_texts(backbone, [*normal, *anomalous], cache=options.text_cache)
        labels = torch.cat([torch.zeros(len(normal)), torch.ones(len(anomalous))]).to(embeddings)
        self.center.copy_(embeddings.mean(dim=0) if options.centering == "text" else torch.zeros_like(self.center))
        centered = self._centered(embeddings)
        if self.network[0].out_features != options.hidden:  # the options have changed
            with torch.inference_mode(mode=False):
                self.network = self._make_network(embeddings.shape[1]).to(self.center.device)
        accuracy = train_text_network(self.network, centered, labels, options.text_noise, options.seed)
        logger.info("Random-word network: accuracy %.3f on held-out prompts.", accuracy)

    def forward(self, features: ImageFeatures, backbone: ClipBackbone, size: tuple[int, int]) -> HeadOutput:
        """Score a batch; see :class:`Head`."""
        score = self.probability(features.image_embedding)
        if self.options.localization == "window":
            local = self._window_probabilities(features, backbone)
        else:
            tokens = features.value_value[self._blocks(backbone)][:, 1:]
            local = self.probability(backbone.project_tokens(tokens))  # [B, L]
        anomaly_map = upsample_and_smooth(
            tokens_to_grid(local, features.grid), size, self.options.sigma_for(size)
        ).clamp(0, 1)
        return HeadOutput(combine_image_score(self.options.image_score, score, anomaly_map), anomaly_map)

    def probability(self, embeddings: Tensor) -> Tensor:
        """Probability of "damaged" for embeddings of the joint space: ``[..., E]`` -> ``[...]``."""
        return self.network(self._centered(F.normalize(embeddings, dim=-1))).squeeze(-1).sigmoid()

    def _centered(self, embeddings: Tensor) -> Tensor:
        return F.normalize(embeddings - self.center, dim=-1) if self.options.centering == "text" else embeddings

    def _window_probabilities(self, features: ImageFeatures, backbone: ClipBackbone) -> Tensor:
        """Probability per patch ``[B, L]`` from windows of all scales (WinCLIP, arXiv 2303.14814)."""
        stream = features.tokens[0]
        maps = []
        for scale in self.options.scales:
            windows = window_indices(features.grid, scale, self.options.stride).to(stream.device)  # [K, scale * scale]
            embeddings = backbone.embed_windows(stream, windows, self.options.window_chunk)  # [B, K, E]
            maps.append(harmonic_aggregation(self.probability(embeddings), windows, stream.shape[1] - 1))
        return torch.stack(maps).mean(dim=0)


def window_indices(grid: tuple[int, int], scale: int, stride: int = 1) -> Tensor:
    """Patch indices of the windows of ``scale`` x ``scale`` patches, ``[K, n]``; small grids get one window.

    Args:
        grid: Height and width of the patch grid.
        scale: Side of a window in patches.
        stride: Step between windows. The last ones end at the border whatever the step, and no step leaves gaps.
    """
    side = (min(scale, grid[0]), min(scale, grid[1]))
    rows, columns = (
        torch.tensor([*range(0, size - length, min(stride, length)), size - length])[:, None] + torch.arange(length)
        for size, length in zip(grid, side, strict=True)
    )  # [windows along the axis, length]
    indices = rows[:, None, :, None] * grid[1] + columns[None, :, None, :]
    return indices.reshape(-1, side[0] * side[1])


def harmonic_aggregation(scores: Tensor, windows: Tensor, patches: int) -> Tensor:
    """Harmonic mean, per patch, of the scores of all windows that cover it (WinCLIP).

    Args:
        scores: Scores per window in [0, 1], ``[B, K]``; below 1e-6 they count as that.
        windows: Patch indices of the windows, ``[K, n]``.
        patches: Number of patches ``L``.

    Returns:
        Scores per patch, ``[B, L]``.
    """
    coverage = torch.zeros(len(windows), patches, device=scores.device).scatter_(1, windows, 1.0)  # [K, L]
    return coverage.sum(dim=0) / (scores.clamp(min=1e-6).reciprocal() @ coverage)


def train_text_network(
    network: nn.Sequential,
    embeddings: Tensor,
    labels: Tensor,
    noise: float,
    seed: int,
    epochs: int = 200,
    patience: int = 20,
    batch_size: int = 256,
) -> float:
    """Train the network on text embeddings, with early stopping on held-out prompts.

    Every fifth pair of prompts is held out. The random generators of the process are left as they were.

    Args:
        network: Changed in place.
        embeddings: Unit embeddings, the two classes one after the other, ``[2P, E]``.
        labels: 0 and 1, ``[2P]``.
        noise: Norm of the Gaussian noise on the embeddings.
        seed: Seed of initial weights, order and noise.
        epochs: Most passes over the prompts.
        patience: Passes without improvement before it stops.
        batch_size: Prompts per step.

    Returns:
        Accuracy on the held-out prompts (on all, if there are fewer than five pairs).
    """
    pairs = len(labels) // 2
    held_out = (torch.arange(len(labels), device=labels.device) % pairs) % 5 == 4
    if pairs < 5:
        held_out = torch.ones_like(held_out)
    training = ~held_out if pairs >= 5 else held_out
    x, y = embeddings[training], labels[training]
    x_held, y_held = embeddings[held_out], labels[held_out]

    with torch.random.fork_rng(devices=[]), torch.enable_grad(), torch.inference_mode(mode=False):
        # Not torch.manual_seed, which would seed the generators of GPUs too, and nobody puts those back.
        torch.default_generator.manual_seed(seed)
        for layer in network:
            if isinstance(layer, nn.Linear):
                layer.reset_parameters()
        # A copy on the CPU: learning takes a second or two there and gives the same numbers on every device.
        model = copy.deepcopy(network).cpu().requires_grad_(requires_grad=True)
        x, y, x_held, y_held = (tensor.detach().cpu().clone() for tensor in (x, y, x_held, y_held))
        optimizer = torch.optim.AdamW(model.parameters(), lr=1e-3, weight_decay=1e-2)
        best, best_state, waited = float("inf"), copy.deepcopy(model.state_dict()), 0
        for _ in range(epochs):
            for batch in torch.randperm(len(x)).split(batch_size):
                noisy = x[batch] + torch.randn_like(x[batch]) * (noise / x.shape[1] ** 0.5)
                loss = F.binary_cross_entropy_with_logits(model(F.normalize(noisy, dim=-1)).squeeze(-1), y[batch])
                optimizer.zero_grad()
                loss.backward()
                optimizer.step()
            with torch.no_grad():
                validation = F.binary_cross_entropy_with_logits(model(x_held).squeeze(-1), y_held).item()
            if validation < best - 1e-4:
                best, best_state, waited = validation, copy.deepcopy(model.state_dict()), 0
            else:
                waited += 1
                if waited >= patience:
                    break
        model.load_state_dict(best_state)
        with torch.no_grad():
            accuracy = ((model(x_held).squeeze(-1) > 0) == y_held.bool()).float().mean().item()
    network.load_state_dict(model.state_dict())
    return accuracy
