"""The image tower of CLIP in one pass that keeps what zero-shot anomaly detection needs.

The methods of this package change the attention of CLIP in different ways, but all of their changes are sums of one
quantity. Let ``o_i`` be the ordinary residual stream after block ``i`` (counted from 1; ``o_0`` follows ``ln_pre``) and

    v_i = out_proj(concat over heads of softmax(V V^T / sqrt(d)) V),   [Q, K, V] = in_proj(LN1_i(o_{i-1}))

the value-value attention output of block ``i``. AnomalyCLIP's refined stream (DPAM, ICLR 2024, section 3.3) after block
``l`` is ``o_{f-1} + v_f + ... + v_l``; CLIP-AD's staged dual path (arXiv 2311.00453, section 3.3) is ``v_s + ... + v_l``
with ``s`` the first block of a stage. Crane (arXiv 2504.11055) adds up, in the same way, the self-correlation outputs

    s_i = out_proj(concat over heads of [softmax(Q Q^T / sqrt(d)) + softmax(K K^T / sqrt(d)) + softmax(V V^T / sqrt(d))] V)

None of them feeds back into the ordinary stream, so one pass serves all.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from anomalib_zsclip.errors import ArgumentError

OpenClipModule = Any
"""A module of open_clip, which has no types: its parameters are read by their names."""

BlockRange = tuple[int, int]
"""First and last block of a sum of attention outputs, both included, counted from 1."""


@dataclass
class ImageFeatures:
    """What one pass of the image tower yields. ``L = grid[0] * grid[1]`` patches, ``W`` width, ``E`` joint space.

    Attributes:
        image_embedding: CLIP's own image embedding, not normalised. Shape ``[B, E]``.
        class_token: Class token after the last block, before ``ln_post``. Shape ``[B, W]``.
        grid: Height and width of the patch grid.
        tokens: Block -> residual stream after that block, class token first. Shape ``[B, 1 + L, W]``.
        attention_tokens: Block -> residual stream inside that block, after its attention and before its MLP.
            Shape ``[B, 1 + L, W]``.
        value_value: Range of blocks -> sum of their value-value outputs. Shape ``[B, 1 + L, W]``.
        self_correlation: Range of blocks -> sum of their self-correlation outputs. Shape ``[B, 1 + L, W]``.
        views: Views of a picture, which stand together in the batch: ``B`` is then pictures times views.
    """

    image_embedding: Tensor
    class_token: Tensor
    grid: tuple[int, int]
    tokens: dict[int, Tensor] = field(default_factory=dict)
    attention_tokens: dict[int, Tensor] = field(default_factory=dict)
    value_value: dict[BlockRange, Tensor] = field(default_factory=dict)
    self_correlation: dict[BlockRange, Tensor] = field(default_factory=dict)
    views: int = 1


@dataclass(frozen=True)
class FeatureRequest:
    """Which intermediate features a head wants from the pass; requests of several heads are merged with ``|``.

    Attributes:
        tokens: Blocks whose output stream is kept. ``0`` is the stream that enters the first block.
        attention_tokens: Blocks whose stream after the attention is kept.
        value_value: Ranges of blocks whose value-value outputs are summed.
        self_correlation: Ranges of blocks whose self-correlation outputs are summed.
    """

    tokens: frozenset[int] = frozenset()
    attention_tokens: frozenset[int] = frozenset()
    value_value: frozenset[BlockRange] = frozenset()
    self_correlation: frozenset[BlockRange] = frozenset()

    @classmethod
    def of(
        cls,
        tokens: Iterable[int] = (),
        attention_tokens: Iterable[int] = (),
        value_value: Iterable[BlockRange] = (),
        self_correlation: Iterable[BlockRange] = (),
    ) -> FeatureRequest:
        """Build a request from any iterables."""
        return cls(frozenset(tokens), frozenset(attention_tokens), frozenset(value_value), frozenset(self_correlation))

    def __or__(self, other: FeatureRequest) -> FeatureRequest:
        """Return the union of two requests."""
        return FeatureRequest(
            self.tokens | other.tokens,
            self.attention_tokens | other.attention_tokens,
            self.value_value | other.value_value,
            self.self_correlation | other.self_correlation,
        )

    def check(self, layers: int) -> None:
        """Raise ``ArgumentError`` where the request leaves a tower of ``layers`` blocks."""
        for name, blocks, first in (
            ("tokens", self.tokens, 0),
            ("attention_tokens", self.attention_tokens, 1),
            ("value_value", {block for pair in self.value_value for block in pair}, 1),
            ("self_correlation", {block for pair in self.self_correlation for block in pair}, 1),
        ):
            outside = sorted(block for block in blocks if not first <= block <= layers)
            if outside:
                msg = f"{name}={outside} is outside the image tower, which has blocks {first} to {layers}."
                raise ArgumentError(msg)
        for name, pairs in (("value_value", self.value_value), ("self_correlation", self.self_correlation)):
            backwards = sorted(pair for pair in pairs if pair[0] > pair[1])
            if backwards:
                msg = f"{name}={backwards}: the first block of a range must not come after its last."
                raise ArgumentError(msg)


def forward_image_tower(
    visual: OpenClipModule,
    images: Tensor,
    positional_embedding: Tensor,
    request: FeatureRequest,
) -> ImageFeatures:
    """Run the tower once and collect what ``request`` names.

    The residual stream and all sums stay in float32 whatever the precision of the weights: 24 roundings to bf16 would
    cost more accuracy than the matrix products do, and the additions cost next to nothing.

    Args:
        visual: open_clip's ``VisionTransformer``; only its parameters are read.
        images: Normalised images ``[B, 3, H, W]``.
        positional_embedding: Positional embedding for the grid of ``images``, ``[1 + L, W]``.
        request: Intermediate features to keep.

    Returns:
        The features, all in float32.
    """
    stream, grid = embed_patches(visual, images, positional_embedding)
    features = run_blocks(visual, stream, request)
    features.grid = grid
    return features


def embed_patches(
    visual: OpenClipModule, images: Tensor, positional_embedding: Tensor
) -> tuple[Tensor, tuple[int, int]]:
    """Tokens that enter the first block, class token first, ``[B, 1 + L, W]``, and the patch grid."""
    dtype = visual.conv1.weight.dtype
    patches = F.conv2d(images.to(dtype), visual.conv1.weight, stride=visual.conv1.stride).float()  # [B, W, h, w]
    class_token = visual.class_embedding.float().expand(patches.shape[0], 1, -1)
    stream = torch.cat([class_token, patches.flatten(2).transpose(1, 2)], dim=1)  # [B, 1 + L, W]
    stream = stream + positional_embedding.float()
    if isinstance(visual.ln_pre, nn.LayerNorm):
        stream = layer_norm(stream, visual.ln_pre)
    return stream, (patches.shape[-2], patches.shape[-1])


def run_blocks(visual: OpenClipModule, stream: Tensor, request: FeatureRequest) -> ImageFeatures:
    """Run all blocks on the tokens ``[B, N, W]``, the class token first, and collect what ``request`` names."""
    dtype = visual.conv1.weight.dtype
    blocks = visual.transformer.resblocks
    features = ImageFeatures(stream, stream, (1, stream.shape[1] - 1))
    if 0 in request.tokens:
        features.tokens[0] = stream
    for number, block in enumerate(blocks, start=1):
        # When nobody asks for the patches that leave the last block, only the class token has to pass through it.
        class_only = number == len(blocks) and number not in request.tokens | request.attention_tokens
        query, key, value = project_heads(layer_norm(stream, block.ln_1).to(dtype), block.attn)
        value_value = _ranges_with(number, request.value_value)
        self_correlation = _ranges_with(number, request.self_correlation)
        if value_value or self_correlation:
            by_value = F.scaled_dot_product_attention(value, value, value)  # [B, heads, N, d], a part of both sums
            if value_value:
                _add(features.value_value, value_value, merge_heads(by_value, block.attn))
            if self_correlation:
                # Three fused attentions, though adding up the maps first would save a third of their arithmetic: measured
                # on CPUs with AVX2, added maps take longer at every size, whole or in strips of rows. One thread, 16 heads
                # of 64, 1370 tokens: 0.45 s against 0.39 s; 577 tokens: 0.08 against 0.07; 12 heads, 197 tokens: 10 ms
                # against 8. Two threads, 1370 tokens: 0.24 s against 0.21 s; halves of the symmetric products alone: 0.26
                # against 0.23. One call on a batch of three, or of queries in parts, is no faster either.
                others = (F.scaled_dot_product_attention(part, part, value) for part in (query, key))
                # Added before the projection, so that its bias counts once.
                _add(features.self_correlation, self_correlation, merge_heads(sum(others, by_value), block.attn))
        if class_only:
            query, stream = query[:, :, :1], stream[:, :1]
        stream = stream + attend(query, key, value, block.attn)
        if number in request.attention_tokens:
            features.attention_tokens[number] = stream
        stream = stream + feed_forward(layer_norm(stream, block.ln_2).to(dtype), block.mlp)
        if number in request.tokens:
            features.tokens[number] = stream

    features.class_token = stream[:, 0]
    features.image_embedding = project_tokens(visual, features.class_token)
    return features


def project_tokens(visual: OpenClipModule, tokens: Tensor, *, normalize_first: bool = True) -> Tensor:
    """Map tokens ``[..., W]`` to the joint space ``[..., E]`` as CLIP maps its class token: ``ln_post``, then ``proj``.

    AnomalyCLIP's image embedding leaves ``ln_post`` out (``normalize_first=False``).
    """
    normed = layer_norm(tokens, visual.ln_post) if normalize_first else tokens
    return (normed.to(visual.proj.dtype) @ visual.proj).float()


def layer_norm(x: Tensor, norm: nn.LayerNorm) -> Tensor:
    """Layer norm in float32, whatever the precision of the weights."""
    return F.layer_norm(x.float(), norm.normalized_shape, norm.weight.float(), norm.bias.float(), norm.eps)


def project_heads(x: Tensor, attention: nn.MultiheadAttention) -> tuple[Tensor, Tensor, Tensor]:
    """Queries, keys and values ``[B, heads, N, d]`` of tokens ``[B, N, W]``."""
    batch, length, width = x.shape
    qkv = F.linear(x, attention.in_proj_weight, attention.in_proj_bias)
    heads = qkv.view(batch, length, 3, attention.num_heads, width // attention.num_heads)
    query, key, value = heads.permute(2, 0, 3, 1, 4).unbind(0)
    return query, key, value


def attend(
    query: Tensor, key: Tensor, value: Tensor, attention: nn.MultiheadAttention, *, causal: bool = False
) -> Tensor:
    """Attention and output projection: ``[B, heads, N, d]`` -> ``[B, N, W]``."""
    return merge_heads(F.scaled_dot_product_attention(query, key, value, is_causal=causal), attention)


HIDDEN_BYTES = 2**21
"""Of a thread's share of the hidden layer of an MLP, unless one image has more: about a core's second cache."""


def feed_forward(x: Tensor, mlp: OpenClipModule) -> Tensor:
    """The block's MLP on tokens ``[B, N, W]``; on a processor few images at a time, at least one per thread.

    The hidden layer is four times as wide as the stream. Of a batch it does not fit into the cache, and its memory is
    fetched from the system and given back in each block: five images of 577 tokens and width 192 took 30 ms at once and
    26 ms one by one (one thread). Of small images, such as the windows of RandomWordClip, many go together.
    """
    image_bytes = x.shape[1] * mlp.c_fc.out_features * x.element_size()
    count = torch.get_num_threads() * max(1, HIDDEN_BYTES // max(image_bytes, 1))
    if torch.compiler.is_exporting() or not x.is_cpu or len(x) <= count:
        return mlp(x)
    return torch.cat([mlp(part) for part in x.split(count)])


def merge_heads(mixed: Tensor, attention: nn.MultiheadAttention) -> Tensor:
    """Output projection of what the heads give: ``[B, heads, N, d]`` -> ``[B, N, W]``."""
    return attention.out_proj(mixed.transpose(1, 2).flatten(2))


def _ranges_with(block: int, ranges: Iterable[BlockRange]) -> list[BlockRange]:
    return [pair for pair in ranges if pair[0] <= block <= pair[1]]


def _add(sums: dict[BlockRange, Tensor], ranges: list[BlockRange], output: Tensor) -> None:
    """Add the output of a block to the sums of these ranges, in float32."""
    for pair in ranges:
        total = sums.get(pair)
        sums[pair] = output.float() if total is None else total + output.float()


def resize_positional_embedding(embedding: Tensor, grid: tuple[int, int], mode: str) -> Tensor:
    """Interpolate a positional embedding to another patch grid; the class token's row is kept.

    Args:
        embedding: ``[1 + S * S, W]`` of a square native grid, class token first.
        grid: Height and width of the wanted grid.
        mode: ``"bicubic"`` with antialias, as open_clip resizes on loading (and CLIP-AD with it), ``"bicubic_plain"``
            without antialias, as MuSc does, or ``"bilinear"`` without it, as AnomalyCLIP does. All with
            ``align_corners=False``.

    Returns:
        ``[1 + grid[0] * grid[1], W]``; ``embedding`` itself where the grid is the native one.
    """
    side = int((embedding.shape[0] - 1) ** 0.5)
    if grid == (side, side):
        return embedding
    square = embedding[1:].float().T.reshape(1, -1, side, side)
    kernel = mode.removesuffix("_plain")
    resized = F.interpolate(square, size=grid, mode=kernel, align_corners=False, antialias=mode == "bicubic")
    return torch.cat([embedding[:1].float(), resized.flatten(2).squeeze(0).T]).to(embedding.dtype)
