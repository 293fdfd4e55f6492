"""The text tower of CLIP: sentences, or learned prompt embeddings with deep prompts, to text embeddings."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from .image_tower import OpenClipModule, attend, layer_norm, project_heads


def forward_text_tower(
    text: OpenClipModule,
    embeddings: Tensor,
    end_positions: Tensor | int,
    deep_prompts: Sequence[Tensor] = (),
) -> Tensor:
    """Encode prompt embeddings.

    The tower is causal, so nothing behind the last end-of-text token can reach a result: the sequence is cut there,
    which is exact and several times faster for short prompts.

    Args:
        text: Module with open_clip's text parameters (``CLIP`` itself, or the ``text`` of a ``CustomTextCLIP``).
        embeddings: Token embeddings without positional embedding, ``[P, T, W]``.
        end_positions: Position of each prompt's end-of-text token, ``[P]``, or the one of all.
        deep_prompts: Learned tokens, ``[t, W]`` for all prompts or ``[P, t, W]``. The ``i``-th one replaces positions
            ``1 .. t`` just before block ``i + 1`` (counted from 0), as AnomalyCLIP does (ICLR 2024, section 3.3).

    Returns:
        Text embeddings, not normalised, float32, ``[P, E]``.
    """
    dtype = text.token_embedding.weight.dtype
    # A number is known to an export, whose tensors have no values yet.
    length = (end_positions if isinstance(end_positions, int) else int(end_positions.max())) + 1
    stream = embeddings[:, :length].float() + text.positional_embedding[:length].float()
    for index, block in enumerate(text.transformer.resblocks):
        if 0 < index <= len(deep_prompts):
            learned = deep_prompts[index - 1].float().expand(stream.shape[0], -1, -1)
            stream = torch.cat([stream[:, :1], learned, stream[:, 1 + learned.shape[1] :]], dim=1)
        query, key, value = project_heads(layer_norm(stream, block.ln_1).to(dtype), block.attn)
        stream = stream + attend(query, key, value, block.attn, causal=True)
        stream = stream + block.mlp(layer_norm(stream, block.ln_2).to(dtype))
    if isinstance(end_positions, int):
        ends = stream[:, end_positions]
    else:
        ends = stream[torch.arange(len(stream), device=stream.device), end_positions.to(stream.device)]
    ends = layer_norm(ends, text.ln_final).to(dtype)
    projection = text.text_projection
    return (projection(ends) if isinstance(projection, nn.Linear) else ends @ projection).float()
