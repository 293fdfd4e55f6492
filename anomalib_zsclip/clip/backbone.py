"""The frozen CLIP that every detector shares."""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence
from functools import cached_property
from pathlib import Path

import open_clip
import torch
from torch import Tensor, nn
from tqdm.auto import tqdm

from anomalib_zsclip.errors import ArgumentError, BackboneError, check_path

from . import loading
from .architectures import AUTO, BUILTIN, build_model, infer_config
from .identity import BackboneIdentity, fingerprint
from .image_tower import (
    FeatureRequest,
    ImageFeatures,
    OpenClipModule,
    forward_image_tower,
    project_tokens,
    resize_positional_embedding,
    run_blocks,
)
from .published import OPENAI_MEAN, OPENAI_STD
from .text_tower import forward_text_tower

logger = logging.getLogger(__name__)

POSITION_MODES = ("bicubic", "bicubic_plain", "bilinear")
PRECISIONS = {"float32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}


class ClipBackbone(nn.Module):
    """A frozen CLIP: one pass of the image tower with its intermediates, and the text tower.

    It never has gradients of its own and is always in ``eval`` mode. Make one with :meth:`load` or
    :meth:`from_state_dict`.

    Args:
        model: An open_clip model with a plain ViT. Its parameters are read; its own forward is not used.
        name: Architecture, for the identity.
        pretrained: Tag or file of the weights, for the identity.
        mean: Channel means that its images are normalised with.
        std: Channel standard deviations that its images are normalised with.
        position_mode: How the positional embedding is brought to other image sizes: ``"bicubic"`` (with antialias, as
            open_clip), ``"bicubic_plain"`` (without, as MuSc's published code) or ``"bilinear"`` (as AnomalyCLIP's). The
            weights are never overwritten.
    """

    def __init__(
        self,
        model: nn.Module,
        name: str = "custom",
        pretrained: str = "",
        mean: Sequence[float] = OPENAI_MEAN,
        std: Sequence[float] = OPENAI_STD,
        position_mode: str = "bicubic",
    ) -> None:
        super().__init__()
        if position_mode not in POSITION_MODES:
            msg = f"position_mode={position_mode!r} must be one of {', '.join(POSITION_MODES)}."
            raise ArgumentError(msg)
        self.clip: OpenClipModule = model.eval().requires_grad_(requires_grad=False)
        self.name = name
        self.pretrained = pretrained
        self.mean = tuple(mean)
        self.std = tuple(std)
        self.position_mode = position_mode
        self._positions: dict[tuple[object, ...], Tensor] = {}
        self._warned_sizes: set[tuple[int, int]] = set()
        self.fingerprint = fingerprint(self.clip)

    @classmethod
    def load(
        cls,
        name: str = AUTO,
        pretrained: str | Path | None = None,
        *,
        auto: tuple[str, str] = ("ViT-B-16-plus-240", "laion400m_e31"),
        position_mode: str = "bicubic",
    ) -> ClipBackbone:
        """Load a backbone.

        Args:
            name: An open_clip architecture such as ``"ViT-L-14-336"``; ``"builtin"`` for the tiny CLIP of this package;
                ``"auto"`` for the published weights in ``auto`` where they are in the cache or can be downloaded, and
                the built-in model, with a warning, where they are not.
            pretrained: A tag of open_clip, or the path of a local ``.safetensors``, ``.pt`` or ``.bin`` file.
            auto: Architecture and tag that ``"auto"`` stands for.
            position_mode: See the class.

        Raises:
            BackboneError: If the name, the tag or the file is wrong; the message says what to do. A backbone that was
                named never falls back to another one.
        """
        check_path("pretrained", pretrained)
        if not isinstance(name, str):
            msg = (
                f"backbone={name!r} must be a name: 'auto', 'builtin' or one of open_clip's; a file of weights is for "
                "pretrained=."
            )
            raise BackboneError(msg)
        pretrained = None if pretrained is None else str(pretrained)
        return cls(*loading.load_clip(name, pretrained, auto), position_mode=position_mode)

    @classmethod
    def from_state_dict(
        cls,
        state_dict: Mapping[str, Tensor],
        quick_gelu: bool = False,
        heads: int | tuple[int, int] | None = None,
        *,
        name: str = "custom",
        pretrained: str = "",
        position_mode: str = "bicubic",
    ) -> ClipBackbone:
        """Make a backbone from parameters alone; the architecture is read off their shapes.

        Args:
            state_dict: Parameters with OpenAI's names.
            quick_gelu: Whether its MLPs use QuickGELU (OpenAI's weights do).
            heads: Attention heads of the image tower, or of (image tower, text tower). Default: ``width // 64``.
            name: Name for the identity.
            pretrained: Origin of the weights for the identity.
            position_mode: See the class.

        Raises:
            BackboneError: If the parameters are not those of a plain CLIP.
        """
        tensors = {key: torch.as_tensor(value).float() for key, value in state_dict.items()}
        config = infer_config(tensors, quick_gelu, heads)
        return cls(build_model(config, tensors, "The state dict"), name, pretrained, position_mode=position_mode)

    @property
    def identity(self) -> BackboneIdentity:
        """Name, weights and fingerprint, as a checkpoint keeps them."""
        return BackboneIdentity(self.name, self.pretrained, self.fingerprint)

    @property
    def device(self) -> torch.device:
        """Where the parameters are."""
        return self.clip.logit_scale.device

    @property
    def layers(self) -> int:
        """Number of blocks of the image tower."""
        return len(self.clip.visual.transformer.resblocks)

    @property
    def text_layers(self) -> int:
        """Number of blocks of the text tower."""
        return len(self.clip.transformer.resblocks)

    @property
    def width(self) -> int:
        """Width of the image tower's tokens."""
        return self.clip.visual.conv1.out_channels

    @property
    def text_width(self) -> int:
        """Width of the text tower's tokens."""
        return self.clip.token_embedding.embedding_dim

    @property
    def embed_dim(self) -> int:
        """Dimensions of the joint space of images and texts."""
        return self.clip.visual.proj.shape[1]

    @property
    def patch_size(self) -> int:
        """Side of a patch in pixels."""
        return self.clip.visual.conv1.kernel_size[0]

    @property
    def image_size(self) -> int:
        """Native side of an image in pixels."""
        return int((len(self.clip.visual.positional_embedding) - 1) ** 0.5) * self.patch_size

    @property
    def default_size(self) -> int:
        """Side in pixels that images are resized to unless told otherwise: native, but larger for the built-in model."""
        return loading.BUILTIN_SIZE if self.name == BUILTIN else self.image_size

    @property
    def logit_scale(self) -> float:
        """CLIP's learned inverse temperature."""
        return float(self.clip.logit_scale.exp())

    @cached_property
    def tokenizer(self) -> open_clip.SimpleTokenizer:
        """CLIP's BPE tokenizer, which open_clip ships: no network."""
        return open_clip.SimpleTokenizer(context_length=self.clip.context_length)

    def train(self, mode: bool = True) -> ClipBackbone:
        """Stay in ``eval`` mode: the backbone is frozen."""
        del mode
        return super().train(mode=False)

    def set_precision(self, precision: str) -> ClipBackbone:
        """Compute the image tower's matrix products in ``"float32"``, ``"bf16"`` or ``"fp16"``.

        Residual streams, layer norms and everything that leaves the tower stay in float32. So does the text tower, which
        runs once. The change is for good: weights that were rounded stay rounded.
        """
        if precision not in PRECISIONS:
            msg = f"precision={precision!r} must be one of {', '.join(PRECISIONS)}."
            raise ArgumentError(msg)
        self.clip.visual.to(PRECISIONS[precision])
        return self

    def forward(self, images: Tensor) -> Tensor:
        """Image embeddings, not normalised: ``[B, 3, H, W]`` -> ``[B, E]``."""
        return self.forward_intermediates(images).image_embedding

    def forward_intermediates(self, images: Tensor, request: FeatureRequest | None = None) -> ImageFeatures:
        """Run the image tower once.

        Args:
            images: Images normalised with ``mean`` and ``std``, ``[B, 3, H, W]``, of any size of at least one patch.
                A remainder at the right and bottom is dropped, as the strided convolution does.
            request: Intermediate features to keep besides the image embedding.

        Returns:
            Features in float32.

        Raises:
            ArgumentError: If the images are smaller than a patch or not of this form, or the request leaves the tower.
        """
        if images.ndim != 4 or images.shape[1] != 3:
            msg = f"images must have the shape [B, 3, H, W], not {list(images.shape)}."
            raise ArgumentError(msg)
        request = request or FeatureRequest()
        request.check(self.layers)
        return forward_image_tower(self.clip.visual, images, self.positional_embedding(images.shape[-2:]), request)

    def project_tokens(self, tokens: Tensor, *, normalize_first: bool = True) -> Tensor:
        """Map tokens of the image tower to the joint space: ``[..., W]`` -> ``[..., E]``.

        Args:
            tokens: Tokens of a residual stream.
            normalize_first: Apply ``ln_post`` first, as CLIP does to its class token.
        """
        return project_tokens(self.clip.visual, tokens, normalize_first=normalize_first)

    def embed_windows(self, stream: Tensor, windows: Tensor, chunk: int = 256) -> Tensor:
        """Image embeddings of windows of patches: the blocks run on the class token and a window's patches alone.

        Args:
            stream: Tokens that enter the first block (``tokens[0]`` of a pass), ``[B, 1 + L, W]``.
            windows: Patch indices of the windows, ``[K, n]``.
            chunk: Windows that run through the blocks at a time, which bounds the memory.

        Returns:
            Embeddings, not normalised, ``[B, K, E]``.
        """
        class_token = torch.zeros(len(windows), 1, dtype=windows.dtype, device=windows.device)
        indices = torch.cat([class_token, windows + 1], dim=1)  # [K, 1 + n]
        batch, count = len(stream), len(windows)
        rows = [
            run_blocks(self.clip.visual, stream[:, part].flatten(0, 1), FeatureRequest()).image_embedding.unflatten(
                0, (batch, -1)
            )
            for part in indices.split(max(1, min(count, chunk // max(1, batch))))
        ]
        return torch.cat(rows, dim=1)

    def positional_embedding(self, size: Sequence[int]) -> Tensor:
        """Positional embedding for images of ``size`` = (height, width), ``[1 + L, W]``; made once per grid.

        Raises:
            ArgumentError: If a side is smaller than a patch.
        """
        height, width = int(size[0]), int(size[1])
        patch = self.patch_size
        if min(height, width) < patch:
            msg = f"The image of {height}x{width} pixels is smaller than one patch of {patch}x{patch}: enlarge it."
            raise ArgumentError(msg)
        self._warn_of_remainder(height, width)
        weights = self.clip.visual.positional_embedding
        grid = (height // patch, width // patch)
        key = (grid, self.position_mode, weights.device, weights.dtype)
        if key not in self._positions:
            # Made outside inference mode, so that it can be used in every mode.
            with torch.inference_mode(False), torch.no_grad():
                self._positions[key] = resize_positional_embedding(weights.detach(), grid, self.position_mode)
        return self._positions[key]

    def _warn_of_remainder(self, height: int, width: int) -> None:
        patch = self.patch_size
        if not (height % patch or width % patch) or (height, width) in self._warned_sizes:
            return
        self._warned_sizes.add((height, width))
        below = (height // patch * patch, width // patch * patch)
        above = (-(-height // patch) * patch, -(-width // patch) * patch)
        logger.warning(
            "The image size %dx%d is not a multiple of the patch of %d pixels: %d rows at the bottom and %d columns at "
            "the right are not looked at. The nearest sizes without loss are %dx%d and %dx%d.",
            *(height, width, patch, height - below[0], width - below[1], *below, *above),
        )

    def tokenize(self, texts: Sequence[str]) -> Tensor:
        """Token ids of sentences, ``[P, context_length]``; too long ones are cut and still end with the end token."""
        return self.tokenizer(list(texts))

    @torch.no_grad()
    def encode_text(
        self, texts: Sequence[str], *, normalize: bool = False, batch_size: int = 256, progress: bool = False
    ) -> Tensor:
        """Embed sentences.

        Args:
            texts: The sentences.
            normalize: Divide each embedding by its norm.
            batch_size: Sentences per pass of the tower.
            progress: Show a progress bar.

        Returns:
            Text embeddings in float32, ``[P, E]``, on the backbone's device.

        Raises:
            ArgumentError: If there is no sentence.
        """
        if isinstance(texts, str) or not texts:
            msg = f"texts must be a list with at least one sentence, not {texts!r}."
            raise ArgumentError(msg)
        ids = self.tokenize(texts)
        ends = ids.argmax(dim=-1)
        # Sentences of like length together: the tower runs only as far as the longest of a batch.
        order = ends.argsort(stable=True)
        embeddings = torch.empty(len(texts), self.embed_dim, device=self.device)
        for batch in tqdm(order.split(batch_size), desc="Text embeddings", disable=not progress, leave=False):
            embeddings[batch] = self.encode_prompts(self.embed_tokens(ids[batch]), ends[batch])
        return nn.functional.normalize(embeddings, dim=-1) if normalize else embeddings

    def embed_tokens(self, ids: Tensor) -> Tensor:
        """Token embeddings ``[P, T, W]`` of token ids ``[P, T]``, without positional embedding."""
        return self.clip.token_embedding(ids.to(self.device))

    def encode_prompts(
        self, embeddings: Tensor, end_positions: Tensor | int, deep_prompts: Sequence[Tensor] = ()
    ) -> Tensor:
        """Encode prompt embeddings, learned ones for example; gradients flow back to them and to the deep prompts.

        Args:
            embeddings: Token embeddings without positional embedding, ``[P, T, W]``.
            end_positions: Position of each prompt's end-of-text token, ``[P]``, or the one of all.
            deep_prompts: Learned tokens, ``[t, W]`` for all prompts or ``[P, t, W]``, that replace positions ``1 .. t``
                before blocks 1, 2, ... (counted from 0).

        Returns:
            Text embeddings, not normalised, ``[P, E]``.
        """
        if len(deep_prompts) >= self.text_layers:
            msg = f"{len(deep_prompts)} deep prompts do not fit a text tower of {self.text_layers} blocks."
            raise ArgumentError(msg)
        return forward_text_tower(self.clip, embeddings, end_positions, deep_prompts)
