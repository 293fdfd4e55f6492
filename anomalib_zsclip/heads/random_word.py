"""The random-word detector (Tamura, BMVC 2023, arXiv 2308.11119)."""

from __future__ import annotations

import copy
import logging
from collections.abc import Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from anomalib_zsclip.clip import BlockRange, ClipBackbone, FeatureRequest, ImageFeatures
from anomalib_zsclip.clip.text_cache import embed_texts
from anomalib_zsclip.errors import ArgumentError
from anomalib_zsclip.maps import enlarge_and_smooth, tokens_to_grid
from anomalib_zsclip.prompts.random_words import ANOMALOUS_STATES, NORMAL_STATES, TEMPLATES, random_word_prompts

from .base import IMAGE_SCORES, Head, HeadOutput, check_smoothing, combine_image_score

logger = logging.getLogger(__name__)

LOCALIZATIONS = ("value_value", "window")


class RandomWordHead(Head):
    """A feed-forward network that learned "damaged" from text alone, applied to image embeddings.

    At set-up, prompts that say of random words that they are perfect or damaged are embedded, and a small network learns
    to tell the two apart (section 3.2). Since the words are random, it can learn the state alone; no category name is
    ever needed. It is then applied to the image embedding for the image score, and to local embeddings for the map
    (section 3.3).

    Args:
        prompts_per_class: Prompts of each class.
        words: Fewest and most random words in a prompt.
        letters: Fewest and most letters of a random word.
        normal_states: Phrases of the normal class, each with one ``{}``.
        anomalous_states: Phrases of the anomalous class, each with one ``{}``.
        templates: Sentences, each with one ``{}`` for the phrase.
        hidden: Width of the network's hidden layer.
        text_noise: Expected norm of the Gaussian noise on the unit text embeddings in training. Texts and images lie apart
            in the joint space; noise keeps the network from relying on what only texts have. On procedural images of
            held-out families with the built-in backbone, 1.0 gave an image AUROC 0.03 above no noise, and more changed
            nothing.
        centering: ``"text"`` subtracts the mean of the prompts' embeddings from texts and images alike before
            normalising them; ``"none"`` does not, and was better by 0.03 to 0.04 in the same measurement.
        localization: Where local embeddings come from: ``"value_value"``, the value-value outputs of the last blocks of
            the one pass; or ``"window"``, the tower run on small windows of patches, as in WinCLIP and in the paper,
            which is many times slower.
        blocks: First and last block of the value-value sum. Default: the last quarter of the tower.
        scales: Sides of the windows in patches, for ``"window"``.
        stride: Step between windows in patches. WinCLIP takes 1. With 2 a third of the windows covers every patch all
            the same, in less than half the time; on real surface defects with the built-in backbone the pixel AUROC
            was 0.003 lower.
        window_chunk: Windows per pass of the tower, which bounds the memory.
        sigma: Gaussian smoothing of the map in pixels.
        image_score: ``"text"`` (image embedding), ``"map_max"`` (maximum of the map), or ``"mean"`` of both.
        seed: Seed of prompts, network and training.
        text_cache: Keep the prompts' embeddings on disk.
    """

    network: nn.Sequential
    center: Tensor
    is_ready: Tensor

    def __init__(
        self,
        embed_dim: int,
        prompts_per_class: int = 1000,
        words: tuple[int, int] = (1, 3),
        letters: tuple[int, int] = (3, 8),
        normal_states: Sequence[str] = NORMAL_STATES,
        anomalous_states: Sequence[str] = ANOMALOUS_STATES,
        templates: Sequence[str] = TEMPLATES,
        hidden: int = 256,
        text_noise: float = 1.0,
        centering: str = "none",
        localization: str = "value_value",
        blocks: BlockRange | None = None,
        scales: Sequence[int] = (2, 3),
        stride: int = 2,
        window_chunk: int = 256,
        sigma: float = 4.0,
        image_score: str = "text",
        seed: int = 0,
        *,
        text_cache: bool = True,
    ) -> None:
        super().__init__()
        if localization not in LOCALIZATIONS:
            msg = f"localization={localization!r} must be one of {', '.join(LOCALIZATIONS)}."
            raise ArgumentError(msg)
        if centering not in ("none", "text"):
            msg = f"centering={centering!r} must be 'none' or 'text'."
            raise ArgumentError(msg)
        check_smoothing(sigma)
        if not 0 <= text_noise < float("inf"):
            msg = f"text_noise={text_noise!r} must be 0 or a positive finite number."
            raise ArgumentError(msg)
        if not isinstance(seed, int):
            msg = f"seed={seed!r} must be a whole number."
            raise ArgumentError(msg)
        if hidden < 1 or window_chunk < 1 or stride < 1:
            msg = f"hidden={hidden!r}, stride={stride!r} and window_chunk={window_chunk!r} must be at least 1."
            raise ArgumentError(msg)
        if not scales or any(not isinstance(scale, int) or scale < 1 for scale in scales):
            msg = f"scales={scales!r} must be a list of at least one side of a window in patches."
            raise ArgumentError(msg)
        if image_score not in IMAGE_SCORES:
            msg = f"image_score={image_score!r} must be one of {', '.join(IMAGE_SCORES)}."
            raise ArgumentError(msg)
        self.recipe: dict[str, Any] = {
            "count": prompts_per_class,
            "words": tuple(words),
            "letters": tuple(letters),
            "normal_states": tuple(normal_states),
            "anomalous_states": tuple(anomalous_states),
            "templates": tuple(templates),
            "seed": seed,
        }
        self.prompts = random_word_prompts(**self.recipe)
        self.text_noise = text_noise
        self.centering = centering
        self.localization = localization
        self.blocks = blocks
        self.scales = tuple(scales)
        self.stride = stride
        self.window_chunk = window_chunk
        self.sigma = sigma
        self.image_score = image_score
        self.text_cache = text_cache
        self.seed = seed
        self.network = nn.Sequential(nn.Linear(embed_dim, hidden), nn.ReLU(), nn.Linear(hidden, 1))
        self.network.requires_grad_(requires_grad=False)
        self.register_buffer("center", torch.zeros(embed_dim))
        self.register_buffer("is_ready", torch.tensor(data=False))

    def request(self, backbone: ClipBackbone) -> FeatureRequest:
        """The value-value sum of the last blocks, or the tower's input for windows."""
        if self.localization == "window":
            return FeatureRequest.of(tokens=[0])
        return FeatureRequest.of(value_value=[self._blocks(backbone)])

    def _blocks(self, backbone: ClipBackbone) -> BlockRange:
        layers = backbone.layers
        return self.blocks or (layers - max(1, layers // 4) + 1, layers)

    def setup(self, backbone: ClipBackbone, class_name: str) -> None:
        """Embed the prompts and train the network; once, since no category name is involved."""
        del class_name
        if self.is_ready:
            return
        normal, anomalous = self.prompts
        embeddings = embed_texts(backbone, [*normal, *anomalous], cache=self.text_cache)
        labels = torch.cat([torch.zeros(len(normal)), torch.ones(len(anomalous))]).to(embeddings)
        if self.centering == "text":
            self.center.copy_(embeddings.mean(dim=0))
        accuracy = train_text_network(self.network, self._centered(embeddings), labels, self.text_noise, self.seed)
        logger.info("Random-word network: accuracy %.3f on held-out prompts.", accuracy)
        self.is_ready.fill_(value=True)

    def forward(self, features: ImageFeatures, backbone: ClipBackbone, size: tuple[int, int]) -> HeadOutput:
        """Score a batch; see :class:`Head`."""
        score = self.probability(features.image_embedding)
        if self.localization == "window":
            local = self._window_probabilities(features, backbone)
        else:
            tokens = features.value_value[self._blocks(backbone)][:, 1:]
            local = self.probability(backbone.project_tokens(tokens))  # [B, L]
        anomaly_map = enlarge_and_smooth(tokens_to_grid(local, features.grid), size, self.sigma).clamp(0, 1)
        return HeadOutput(combine_image_score(self.image_score, score, anomaly_map), anomaly_map)

    def probability(self, embeddings: Tensor) -> Tensor:
        """Probability of "damaged" for embeddings of the joint space: ``[..., E]`` -> ``[...]``."""
        return self.network(self._centered(F.normalize(embeddings, dim=-1))).squeeze(-1).sigmoid()

    def _centered(self, embeddings: Tensor) -> Tensor:
        return F.normalize(embeddings - self.center, dim=-1) if self.centering == "text" else embeddings

    def _window_probabilities(self, features: ImageFeatures, backbone: ClipBackbone) -> Tensor:
        """Probability per patch ``[B, L]`` from windows of all scales (WinCLIP, arXiv 2303.14814, section 4.2)."""
        stream = features.tokens[0]
        maps = []
        for scale in self.scales:
            windows = window_indices(features.grid, scale, self.stride).to(stream.device)  # [K, scale * scale]
            embeddings = backbone.embed_windows(stream, windows, self.window_chunk)  # [B, K, E]
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
    """Harmonic mean, per patch, of the scores of all windows that cover it (WinCLIP, section 4.2).

    Args:
        scores: Scores per window in (0, 1], ``[B, K]``.
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

    Every fifth pair of prompts is held out. The random generator of the process is left as it was.

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
        torch.manual_seed(seed)
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
