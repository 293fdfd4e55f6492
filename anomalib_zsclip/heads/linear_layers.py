"""Files of SDP+'s linear layers: ours (``.safetensors``) and the published ``{"linear_layers": state_dict}``."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors import safe_open
from torch import Tensor

from anomalib_zsclip.clip.archives import check_archive, reading
from anomalib_zsclip.errors import CheckpointError

PREFIX = "fc."


def read_linear_layers(path: Path) -> tuple[dict[str, Tensor], Mapping[str, str]]:
    """Tensors and metadata of a checkpoint file of SDP+.

    Raises:
        CheckpointError: If there is no such file, it is damaged, or it holds anything else.
    """
    if not path.is_file():
        msg = f"The SDP+ checkpoint {path} does not exist."
        raise CheckpointError(msg)
    advice = 'Save it as torch.save({"linear_layers": state_dict}) with tensors only.'
    with reading(f"The SDP+ checkpoint {path}", CheckpointError, advice):
        if path.suffix == ".safetensors":
            with safe_open(path, framework="pt") as file:
                return {key: file.get_tensor(key) for key in file.keys()}, file.metadata() or {}  # noqa: SIM118
        check_archive(path)
        content = torch.load(path, map_location="cpu", weights_only=True)
    tensors: Any = content.get("linear_layers") if isinstance(content, Mapping) else None
    entries = tensors.items() if isinstance(tensors, Mapping) else [(None, None)]
    if not all(isinstance(key, str) and isinstance(value, Tensor) for key, value in entries):
        found = f"the keys {', '.join(map(str, content))}" if isinstance(content, Mapping) else type(content).__name__
        msg = f'The SDP+ checkpoint {path} must hold {{"linear_layers": state_dict}} of tensors; it holds {found}.'
        raise CheckpointError(msg)
    return dict(tensors), {}


def check_linear_layers(tensors: Mapping[str, Tensor], wanted: Mapping[str, Tensor], path: str | Path) -> None:
    """Compare the layers of a file with those of the model, by number, names, shapes and values.

    Raises:
        CheckpointError: If they do not fit, or have values that are not finite.
    """
    count, expected = (len({key.split(".")[1] for key in keys if key.startswith(PREFIX)}) for keys in (tensors, wanted))
    if count != expected:
        msg = (
            f"The SDP+ checkpoint {path} has {count} linear layers, the model has {expected}: give layers= with the "
            f"{count} blocks it was learned on."
            if count
            else f"The SDP+ checkpoint {path} has no linear layers: its keys are {', '.join(tensors) or 'none'}."
        )
        raise CheckpointError(msg)
    differing = sorted(tensors.keys() ^ wanted.keys())
    if differing:
        state = "lacks" if differing[0] in wanted else "has the unknown key"
        msg = f"The SDP+ checkpoint {path} {state} {differing[0]!r}; its keys must be {', '.join(sorted(wanted))}."
        raise CheckpointError(msg)
    for key, value in wanted.items():
        if tensors[key].shape != value.shape:
            msg = (
                f"The SDP+ checkpoint {path} is of another backbone: {key} is {list(tensors[key].shape)} in the file "
                f"and {list(value.shape)} in the model (joint space x width of the image tower)."
            )
            raise CheckpointError(msg)
        if not torch.isfinite(tensors[key]).all():
            msg = f"The SDP+ checkpoint {path} is damaged: {key} has values that are not finite."
            raise CheckpointError(msg)
