"""Weight files from anywhere, read without executing anything in them."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

import torch
from safetensors.torch import load_file
from torch import Tensor

from anomalib_zsclip.errors import BackboneError

from .archives import check_archive, reading
from .torchscript import read_torchscript

OPENAI_KEYS = ("input_resolution", "context_length", "vocab_size")
"""Buffers of OpenAI's TorchScript model. A state dict with them was taken from it, whatever form the file has."""


class WeightFile(NamedTuple):
    """Content of a weight file.

    Attributes:
        tensors: Parameters in float32 by their OpenAI-style keys.
        is_openai: Whether the file shows that it is one of OpenAI's, which were trained with QuickGELU.
    """

    tensors: dict[str, Tensor]
    is_openai: bool


def read_weights(path: Path) -> WeightFile:
    """Read a weight file without executing anything in it.

    Understands ``.safetensors``, ``.pt`` / ``.pth`` / ``.bin`` (tensors only; pickled classes are refused) and OpenAI's
    TorchScript archives, whose weights alone are taken.

    Raises:
        BackboneError: If the file is damaged, holds pickled code, or holds no state dict.
    """
    torchscript = False
    with reading(f"The weight file {path}", BackboneError, "Save the plain state dict, best as .safetensors."):
        if path.suffix == ".safetensors":
            raw: Any = load_file(path)
        else:
            raw, torchscript = _read_torch_file(path)
    for wrapper in ("state_dict", "model"):
        if isinstance(raw, Mapping) and isinstance(raw.get(wrapper), Mapping):
            raw = raw[wrapper]
    tensors = {
        str(key).removeprefix("module."): value.detach().float()
        for key, value in (raw.items() if isinstance(raw, Mapping) else ())
        if isinstance(value, Tensor)
    }
    if not tensors:
        msg = f"The weight file {path} holds no state dict of tensors."
        raise BackboneError(msg)
    # Nobody else publishes CLIPs as TorchScript archives of this form.
    return WeightFile(tensors, torchscript or any(key in tensors for key in OPENAI_KEYS))


def _read_torch_file(path: Path) -> tuple[Any, bool]:
    """Content, and whether it is a TorchScript archive."""
    check_archive(path)
    try:
        return torch.load(path, map_location="cpu", weights_only=True), False
    except RuntimeError as error:
        if "TorchScript" not in str(error):
            raise
    return read_torchscript(path), True
