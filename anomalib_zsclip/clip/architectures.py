"""Architectures of CLIP: which of open_clip's are a plain ViT, what a state dict tells, and the empty model to fill."""

from __future__ import annotations

import difflib
from collections.abc import Mapping
from typing import Any

import open_clip
import torch
from torch import Tensor, nn

from anomalib_zsclip.errors import BackboneError

Config = dict[str, Any]
"""A configuration as open_clip keeps them."""

BUILTIN = "builtin"
AUTO = "auto"

LARGEST_WEIGHT = 1e6
"""No CLIP has larger weights; those of published ones stay below 100."""


def supported_names() -> list[str]:
    """Names of open_clip whose image tower is a plain ViT and whose text tower is CLIP's own."""
    return [name for name in open_clip.list_models() if _unsupported_part(open_clip.get_model_config(name)) is None]


def model_config(name: str) -> Config:
    """open_clip's configuration of a supported architecture.

    Raises:
        BackboneError: If the name is unknown (near matches are listed) or its towers are not supported.
    """
    config = open_clip.get_model_config(name)
    if config is None:
        near = difflib.get_close_matches(name, [BUILTIN, AUTO, *supported_names()], n=5, cutoff=0.4)
        msg = (
            f"backbone={name!r} is no architecture of open_clip. "
            f"Near matches: {', '.join(near) or 'none'}. Also: 'builtin' and 'auto'."
        )
        raise BackboneError(msg)
    part = _unsupported_part(config)
    if part is not None:
        msg = (
            f"backbone={name!r} is not supported: {part}. The detectors read the tokens of a plain ViT. "
            f"Supported names: {', '.join(supported_names())}."
        )
        raise BackboneError(msg)
    return config


def _unsupported_part(config: Config) -> str | None:
    """Say which part of an open_clip configuration is not a plain CLIP with a ViT; ``None`` if all are."""
    vision, text = config["vision_cfg"], config["text_cfg"]
    if vision.get("timm_model_name"):
        return f"its image tower is timm's {vision['timm_model_name']}"
    if isinstance(vision.get("layers"), (list, tuple)):
        return "its image tower is a ResNet"
    if config.get("multimodal_cfg") or vision.get("attentional_pool"):
        return "its image embedding comes from an attentional pool (CoCa)"
    if vision.get("pool_type", "tok") != "tok" or vision.get("ls_init_value") or vision.get("final_ln_after_pool"):
        return "its image tower pools or scales in another way than CLIP"
    if not isinstance(vision.get("image_size"), int) or not isinstance(vision.get("patch_size"), int):
        return "its native image size or patch is not square"
    if text.get("hf_model_name") or text.get("hf_tokenizer_name"):
        return "its text tower or tokenizer is one of Hugging Face"
    plain = {"pool_type": "argmax", "embed_cls": False, "no_causal_mask": False, "vocab_size": 49408}
    if any(text.get(key, value) != value for key, value in plain.items()) or text.get("tokenizer_kwargs"):
        return "its text tower is not CLIP's causal one"
    return None


def infer_config(
    state_dict: Mapping[str, Tensor], quick_gelu: bool = False, heads: int | tuple[int, int] | None = None
) -> Config:
    """Read the architecture off the shapes of an OpenAI-style state dict.

    Args:
        state_dict: Parameters with OpenAI's names (``visual.conv1.weight``, ``transformer.resblocks.0...``).
        quick_gelu: Whether the MLPs use QuickGELU.
        heads: Attention heads of the image tower, or of (image tower, text tower). Default: ``width // 64``.

    Returns:
        A configuration as open_clip keeps them.

    Raises:
        BackboneError: If a key is missing.
    """
    try:
        width, _, patch, _ = state_dict["visual.conv1.weight"].shape
        side = int((len(state_dict["visual.positional_embedding"]) - 1) ** 0.5)
        embed_dim = state_dict["visual.proj"].shape[1]
        context_length, text_width = state_dict["positional_embedding"].shape
        vocab_size = len(state_dict["token_embedding.weight"])
        mlp_width = len(state_dict["visual.transformer.resblocks.0.mlp.c_fc.weight"])
        text_mlp_width = len(state_dict["transformer.resblocks.0.mlp.c_fc.weight"])
    except KeyError as error:
        msg = f"These are not the weights of a CLIP with a ViT in OpenAI's layout: the key {error} is missing."
        raise BackboneError(msg) from error
    image_heads, text_heads = heads if isinstance(heads, tuple) else (heads, None)
    image_heads, text_heads = image_heads or max(1, width // 64), text_heads or max(1, text_width // 64)
    for name, size, count in (("image", width, image_heads), ("text", text_width, text_heads)):
        if size % count:
            msg = f"heads={count} does not divide the width {size} of the {name} tower."
            raise BackboneError(msg)
    return {
        "embed_dim": embed_dim,
        "quick_gelu": quick_gelu,
        "vision_cfg": {
            "image_size": side * patch,
            "layers": _count_blocks(state_dict, "visual.transformer"),
            "width": width,
            "head_width": width // image_heads,
            "patch_size": patch,
            "mlp_ratio": mlp_width / width,
        },
        "text_cfg": {
            "context_length": context_length,
            "vocab_size": vocab_size,
            "width": text_width,
            "heads": text_heads,
            "layers": _count_blocks(state_dict, "transformer"),
            "mlp_ratio": text_mlp_width / text_width,
        },
    }


def _count_blocks(state_dict: Mapping[str, Tensor], prefix: str) -> int:
    start = f"{prefix}.resblocks."
    return 1 + max(int(key[len(start) :].split(".", 1)[0]) for key in state_dict if key.startswith(start))


def build_model(config: Config, state_dict: Mapping[str, Tensor], source: str) -> nn.Module:
    """Make open_clip's model of ``config`` with these parameters, frozen and in ``eval`` mode.

    Args:
        config: Architecture, as open_clip keeps them.
        state_dict: Parameters in float32.
        source: Where they come from, for error messages.

    Raises:
        BackboneError: If keys or shapes differ from the architecture's, or a value is not finite.
    """
    config = {key: value for key, value in config.items() if key != "custom_text"}
    # Parameters come from the file: on the meta device no time is lost with random ones (seconds for a ViT-L).
    with torch.device("meta"):
        model = open_clip.model.CLIP(**config)
    wanted = {key: tuple(value.shape) for key, value in model.state_dict().items()}
    given = {_without_text_prefix(key): value for key, value in state_dict.items()}
    missing = sorted(wanted.keys() - given.keys())
    if missing:
        msg = f"{source} lacks {len(missing)} parameters of the architecture, the first is {missing[0]!r}."
        raise BackboneError(msg)
    extra = sorted(key for key in given.keys() - wanted.keys() if "resblocks" in key)
    if extra:
        msg = f"{source} is of another architecture: it has {len(extra)} parameters too many, such as {extra[0]!r}."
        raise BackboneError(msg)
    for key, shape in wanted.items():
        if tuple(given[key].shape) != shape:
            msg = f"{source} is of another architecture: {key} is {tuple(given[key].shape)} instead of {shape}."
            raise BackboneError(msg)
        # A flipped bit can make a value finite and still so large that every score becomes NaN.
        if not (given[key].abs() <= LARGEST_WEIGHT).all():
            msg = f"{source} is damaged: {key} has values that are not finite or beyond {LARGEST_WEIGHT:g}."
            raise BackboneError(msg)
    model.load_state_dict({key: given[key] for key in wanted}, assign=True)
    # The only buffer outside the state dict: open_clip's own encode_text needs it.
    length = model.context_length
    model.attn_mask = torch.full((length, length), float("-inf")).triu_(1)
    return model.eval().requires_grad_(requires_grad=False)


def _without_text_prefix(key: str) -> str:
    """Bring open_clip's ``CustomTextCLIP`` layout (``text.transformer...``) to the plain one."""
    return key.removeprefix("text.")
