"""A look at what own code hands to a model: a wrong range or layout would give a wrong score in silence."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from anomalib_zsclip.errors import ArgumentError

TOLERANCE = 0.05
"""How far values may leave [0, 1]: a bicubic resize overshoots at edges by a few grey levels."""

EXPECTED = "A model expects RGB images as a float tensor [B, 3, H, W] with values from 0 to 1"


def check_images(images: object) -> None:
    """Look at images that a model is called with; nothing where the call is exported or compiled.

    Raises:
        ArgumentError: If they are not float, RGB, channels first, and from 0 to 1.
    """
    if torch.compiler.is_compiling() or torch.jit.is_tracing():
        return
    problem = _problem(images)
    if problem:
        msg = f"{EXPECTED}, and got {problem}."
        raise ArgumentError(msg)


def _problem(images: object) -> str:
    """What is wrong, and what to do; empty where nothing is."""
    if not isinstance(images, Tensor):
        return (
            f"{type(images).__name__}: make a tensor of it (torchvision.transforms.v2.functional.to_image and to_dtype)"
        )
    shape = list(images.shape)
    if images.ndim != 4:
        return f"a tensor of shape {shape}: one image is images.unsqueeze(0)"
    if shape[1] != 3:
        if shape[3] in (3, 4):
            return f"shape {shape}, with the channels last: images.permute(0, 3, 1, 2)" + (
                ", without the alpha channel" if shape[3] == 4 else ""
            )
        kinds = {1: "grey images: images.expand(-1, 3, -1, -1)", 4: "images with an alpha channel: images[:, :3]"}
        return f"shape {shape}, {kinds.get(shape[1], f'{shape[1]} channels')}"
    if not images.is_floating_point():
        return f"{str(images.dtype).removeprefix('torch.')} values: images.float() / 255"
    if not images.numel():
        return f"no pixels (shape {shape})"
    low, high = (float(value) for value in torch.aminmax(images))
    if low >= -TOLERANCE and high <= 1 + TOLERANCE:
        return ""
    if not math.isfinite(low + high):
        return "values that are no finite numbers: look where they come from"
    found = f"values from {low:.4g} to {high:.4g}"
    if low >= 0:
        return f"{found}: divide by 255, or by the largest value of your camera"
    return f"{found}: do not normalise them, the model does that itself"
