# Copyright (C) 2026 anomalib-zsclip contributors
# SPDX-License-Identifier: Apache-2.0

"""Train the built-in tiny CLIP from nothing on procedural images and captions.

Needs torch, open_clip, safetensors, numpy and OpenCV; anomalib is not needed. Examples::

    python tools/train_builtin_clip.py --out runs/tiny --minutes 70 --threads 1
    python tools/train_builtin_clip.py --out runs/tiny --steps 60000 --device cuda --workers 12
    python tools/train_builtin_clip.py --out runs/less --steps 900 --config tools/small_clip.json --side 64 --without patches
    python tools/train_builtin_clip.py --out runs/more --start runs/tiny/model.safetensors --steps 6500 --relit 1
    python tools/train_builtin_clip.py --out runs/taught --start runs/more/model.safetensors --steps 4000 --pairs runs/pairs

A run that was interrupted goes on from its last checkpoint when the same command is given again. With ``--steps`` the
result depends on the seed alone (on one machine); with ``--minutes`` the schedule follows the clock instead.

With ``--pairs`` the pictures come from the files of ``teacher_pairs.py``: on photographs of surfaces too, and with what a
teacher says of them. The tower then imitates the teacher, for the first share of the schedule (``--imitate``) alone,
afterwards along with everything else.

What is learned, in one step: B pictures, each with and without a defect, and captions.

* image against caption, both ways (InfoNCE; captions of the same product and state all count as right);
* image: normal or anomalous, by pairs of captions that differ in the state alone; the defective twin of a picture
  must score higher than the good one; which kind of defect, also against one learned anchor per kind later on;
* patch: normal or anomalous, and which kind, by the same text features. Read from the ordinary tokens of several
  blocks and from the two sums of value-value attention that AnomalyCLIP and CLIP-AD's SDP use.
"""

from __future__ import annotations

import argparse
import json
import math
import multiprocessing as mp
import os
import re
import sys
import time
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

ROOT = Path(__file__).resolve().parents[1]
# The generator is imported on its own: the package around it would import anomalib.
sys.path.insert(0, str(ROOT / "anomalib_zsclip" / "data"))
sys.path.insert(0, str(Path(__file__).resolve().parent))

import cv2  # noqa: E402
import generator as gen  # noqa: E402
from generator.photographs import NAME as PHOTOGRAPH  # noqa: E402
from generator.photographs import NOUNS as SURFACES  # noqa: E402
from generator.photographs import photograph_family  # noqa: E402
from imitation import Imitation, PairFeed  # noqa: E402

CONFIG = ROOT / "anomalib_zsclip" / "clip" / "builtin" / "config.json"
MEAN = (0.48145466, 0.4578275, 0.40821073)
STD = (0.26862954, 0.26130258, 0.27577711)
SIZE = 128  # side of the generated pictures, unless larger ones are asked for
SCALE = 50.0  # logit scale: fixed, so that probabilities stay away from 0 and 1 at the factor 100 that SDP uses
REFINED_FROM = 2  # AnomalyCLIP's refined stream starts after this block
PRECISIONS = {"bf16": torch.bfloat16, "float32": torch.float32}
STOP_AFTER = 0  # steps after which this process ends as if it had been stopped; 0: none
# What can be left out to see what it is worth, and the terms of the loss that go with it.
PARTS = {"patches": re.compile(r"block|refined|stage|layer|\w+_patch"), "twins": re.compile(r"pair|.* twin")}
SURFACES_PART = "surfaces"  # the same for the pairs on photographs; no term of the loss goes with them
CURRICULUM = 12_000  # pairs in which the weakest defects become weaker
ANCHORS_FROM, ANCHOR_SCALE = 0.45, 20.0  # share of the schedule after which kinds have anchors; their logit scale

FAMILIES = [name for name, family in gen.FAMILIES.items() if not family.held_out]
KINDS = [name for name, defect in gen.DEFECTS.items() if not defect.held_out]


# Data: pairs made ahead by other processes, in a ring that both sides share.


def draw_pair(
    seed: int, index: int, families: list[str] = FAMILIES, kinds: list[str] = KINDS, weakest: float = 0.08,
    size: int = SIZE,
) -> gen.Pair:  # fmt: skip
    """The pair number ``index``: a function of its arguments alone. ``weakest`` bounds the strength of the defect."""
    rng = np.random.default_rng([seed, index])
    kind = "texture" if rng.random() < 0.5 else "object"
    if not any(gen.FAMILIES[name].kind == kind for name in families):
        kind = gen.FAMILIES[families[0]].kind
    invented = rng.random() < gen.INVENTED_SHARE
    fits = [name for name in families if gen.FAMILIES[name].kind == kind]
    choice = [name for name in fits if gen.FAMILIES[name].invented == invented] or fits
    family = choice[int(rng.integers(len(choice)))]
    fitting = [name for name in kinds if gen.DEFECTS[name].on in ("any", kind)]
    return gen.generate_pair(family, fitting[int(rng.integers(len(fitting)))], size, rng, strength=(weakest, 1.0))


class Ring:
    """Shared memory for the last ``slots`` pairs of ``size`` pixels. Pair number p lies in slot p % slots."""

    def __init__(self, slots: int, workers: int, size: int = SIZE) -> None:
        self.slots, self.workers, self.size = slots, workers, size
        self._raw = [mp.RawArray("B", slots * size * size * n) for n in (3, 3, 1)]
        self._meta = mp.RawArray("i", slots * 2)
        self.made = mp.RawArray("q", workers)  # per worker: pairs below this number are done
        self.oldest = mp.RawValue("q", 0)  # pairs below this number may be overwritten

    def views(self) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
        """Good, bad, masks and (family, kind) as arrays over the slots."""
        shapes = [(self.slots, self.size, self.size, 3)] * 2 + [(self.slots, self.size, self.size)]
        arrays = [np.frombuffer(r, np.uint8).reshape(s) for r, s in zip(self._raw, shapes, strict=True)]
        return *arrays, np.frombuffer(self._meta, np.int32).reshape(self.slots, 2)

    def ready(self, count: int) -> bool:
        """Whether all pairs below ``count`` are there."""
        return all(made >= count for made in self.made)


def produce(ring: Ring, seed: int, worker: int, start: int) -> None:
    """Fill the ring with the pairs that are this worker's, for ever."""
    os.nice(5)
    cv2.setNumThreads(1)
    good, bad, mask, meta = ring.views()
    parent = os.getppid()
    index = start + (worker - start) % ring.workers
    while True:
        while index >= ring.oldest.value + ring.slots:
            time.sleep(0.01)
            if os.getppid() != parent:
                return
        # Gross defects first: what an anomaly is must be found before faint ones can teach anything.
        weakest = 0.08 + 0.5 * max(0.0, 1 - index / CURRICULUM)
        pair = draw_pair(seed, index, weakest=weakest, size=ring.size)
        slot = index % ring.slots
        good[slot], bad[slot], mask[slot] = pair.good, pair.bad, pair.mask
        meta[slot] = FAMILIES.index(pair.family), KINDS.index(pair.defect)
        index += ring.workers
        ring.made[worker] = index
        if os.getppid() != parent:
            return


class Feed:
    """Batches from the ring: every step draws from a window that moves on, so each pair is shown ``replay`` times.

    Args:
        ring: the ring, filled by :func:`produce`.
        seed: seed of the run.
        used: pairs that earlier batches were entitled to (for resuming).
        replay: how often a pair is shown, each time in another crop.
        window: pairs to choose from.
        twins: whether the good picture of a pair is the defective one without its defect; else it shows another
            product of the same family.
    """

    def __init__(
        self, ring: Ring, seed: int, used: int = 0, replay: float = 2.0, window: int = 1024, *, twins: bool = True
    ) -> None:
        self.ring, self.seed, self.used, self.replay, self.window = ring, seed, used, replay, window
        self.twins = twins
        self.good, self.bad, self.mask, self.meta = ring.views()
        self.waited = 0.0

    def batch(self, step: int, pairs: int, side: int) -> tuple[Tensor, Tensor, np.ndarray]:
        """Images uint8 ``[2B, side, side, 3]`` (good first), patch coverage ``[B, side/8, side/8]``, meta ``[B, 2]``."""
        rng = np.random.default_rng([self.seed, 1_000_003, step])
        self.used += pairs
        high = 1024 + math.ceil(self.used / self.replay)
        low = max(0, high - self.window)
        self.ring.oldest.value = low
        began = time.time()
        while not self.ring.ready(high):
            time.sleep(0.005)
        self.waited += time.time() - began
        images = np.empty((2, pairs, side, side, 3), np.uint8)
        cover = np.empty((pairs, side // 8, side // 8), np.float32)
        chosen = rng.choice(high - low, pairs, replace=False) + low
        meta = self.meta[chosen % self.ring.slots].copy()
        for row, index in enumerate(chosen):
            slot = index % self.ring.slots
            good = slot
            if not self.twins:
                alike = np.arange(low, high) % self.ring.slots
                alike = alike[(self.meta[alike, 0] == meta[row, 0]) & (alike != slot)]
                good = int(rng.choice(alike)) if alike.size else slot
            views = self._crop(rng, (self.good[good], self.bad[slot], self.mask[slot]))
            turn, flip = int(rng.integers(4)), rng.random() < 0.5
            resized = []
            for view in views:
                smaller = view.shape[0] > side
                method = cv2.INTER_AREA if smaller else cv2.INTER_LINEAR
                turned = np.rot90(cv2.resize(view, (side, side), interpolation=method), turn)
                resized.append(turned[:, ::-1] if flip else turned)
            images[0, row], images[1, row] = resized[0], resized[1]
            cover[row] = cv2.resize(np.ascontiguousarray(resized[2]), (side // 8,) * 2, interpolation=cv2.INTER_AREA)
        return torch.from_numpy(images.reshape(-1, side, side, 3)), torch.from_numpy(cover / 255), meta

    @staticmethod
    def _crop(rng: np.random.Generator, views: tuple[np.ndarray, ...]) -> tuple[np.ndarray, ...]:
        """The whole picture or a part of it that still shows most of the defect."""
        if rng.random() < 0.4:
            return views
        total, size = int(views[2].sum(dtype=np.int64)), len(views[2])
        for _ in range(3):
            side = int(rng.integers(size // 2, size))
            y, x = rng.integers(0, size - side + 1, 2)
            part = views[2][y : y + side, x : x + side]
            if 2 * int(part.sum(dtype=np.int64)) > total:
                return tuple(view[y : y + side, x : x + side] for view in views)
        return views


# The model: open_clip's parameters, a forward of our own that also yields the value-value outputs.


def attend(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    """Attention, ``[B*h, L, d]``: the fused kernel in float32, plain matrix products in bf16, as was faster on CPUs."""
    if q.dtype == torch.float32:
        return F.scaled_dot_product_attention(q[None], k[None], v[None])[0]
    return torch.softmax((q * q.shape[-1] ** -0.5) @ k.transpose(-1, -2), -1) @ v


def interpolate_positions(positions: Tensor, side: int) -> Tensor:
    """Positional embedding ``[1 + g*g, W]`` for a grid of ``side``: bicubic with antialias, as in open_clip."""
    old = int(math.sqrt(positions.shape[0] - 1))
    if old == side:
        return positions
    grid = positions[1:].reshape(1, old, old, -1).permute(0, 3, 1, 2)
    grid = F.interpolate(grid, (side, side), mode="bicubic", antialias=True, align_corners=False)
    return torch.cat([positions[:1], grid.permute(0, 2, 3, 1).reshape(side * side, -1)])


@dataclass
class Features:
    """What the image tower yields: streams ``[B, 1+L, W]`` after each block, and value-value outputs ``v_i``."""

    start: Tensor
    blocks: list[Tensor]
    values: list[Tensor]
    attended: list[Tensor]  # the stream in the middle of each block, after its attention


def encode_image(model: nn.Module, images: Tensor, dtype: torch.dtype, values: bool) -> Features:
    """One pass of the image tower.

    Args:
        model: an open_clip CLIP with a plain ViT.
        images: normalised, ``[B, 3, S, S]``.
        dtype: type of the computation.
        values: whether to compute the value-value outputs too.
    """
    visual = model.visual
    kernel = visual.conv1.weight
    width, patch = kernel.shape[0], kernel.shape[-1]
    heads = width // 64
    b, _, s, _ = images.shape
    g = s // patch
    x = images.reshape(b, 3, g, patch, g, patch).permute(0, 2, 4, 1, 3, 5).reshape(b, g * g, -1)
    x = x @ kernel.reshape(width, -1).T
    x = torch.cat([visual.class_embedding.expand(b, 1, width), x], 1) + interpolate_positions(
        visual.positional_embedding, g
    )
    x = F.layer_norm(x, (width,), visual.ln_pre.weight, visual.ln_pre.bias).to(dtype)
    length = x.shape[1]
    out = Features(x, [], [], [])
    for block in visual.transformer.resblocks:
        w = {name: p.to(dtype) for name, p in block.named_parameters()}
        u = F.layer_norm(x, (width,), w["ln_1.weight"], w["ln_1.bias"])
        qkv = F.linear(u, w["attn.in_proj_weight"], w["attn.in_proj_bias"])
        q, k, v = qkv.view(b, length, 3, heads, 64).permute(2, 0, 3, 1, 4).reshape(3, b * heads, length, 64)

        def project(a: Tensor, w: dict[str, Tensor] = w) -> Tensor:
            a = a.view(b, heads, length, 64).transpose(1, 2).reshape(b, length, width)
            return F.linear(a, w["attn.out_proj.weight"], w["attn.out_proj.bias"])

        if values:
            out.values.append(project(attend(v, v, v)))
        x = x + project(attend(q, k, v))
        out.attended.append(x)
        u = F.layer_norm(x, (width,), w["ln_2.weight"], w["ln_2.bias"])
        u = F.gelu(F.linear(u, w["mlp.c_fc.weight"], w["mlp.c_fc.bias"]))
        x = x + F.linear(u, w["mlp.c_proj.weight"], w["mlp.c_proj.bias"])
        out.blocks.append(x)
    return out


def join(model: nn.Module, tokens: Tensor, norm: bool = True) -> Tensor:
    """Tokens ``[..., W]`` into the joint space, unit length, float32 ``[..., E]``."""
    visual = model.visual
    tokens = tokens.float()
    if norm:
        tokens = F.layer_norm(tokens, tokens.shape[-1:], visual.ln_post.weight, visual.ln_post.bias)
    return F.normalize(tokens @ visual.proj, dim=-1)


def encode_text(model: nn.Module, tokens: Tensor) -> Tensor:
    """Text features ``[N, E]`` of token ids ``[N, 77]``, unit length; cut after the longest text, which is exact."""
    ends = tokens.argmax(-1)
    tokens = tokens[:, : int(ends.max()) + 1]
    n, length = tokens.shape
    x = model.token_embedding(tokens) + model.positional_embedding[:length]
    width = x.shape[-1]
    heads = width // 64
    mask = torch.full((length, length), float("-inf"), device=x.device).triu(1)
    for block in model.transformer.resblocks:
        u = block.ln_1(x)
        qkv = F.linear(u, block.attn.in_proj_weight, block.attn.in_proj_bias)
        q, k, v = qkv.view(n, length, 3, heads, 64).permute(2, 0, 3, 1, 4).reshape(3, n * heads, length, 64)
        a = torch.softmax(q @ k.transpose(-1, -2) / 8.0 + mask, -1) @ v
        a = a.view(n, heads, length, 64).transpose(1, 2).reshape(n, length, width)
        x = x + block.attn.out_proj(a)
        x = x + block.mlp(block.ln_2(x))
    x = model.ln_final(x)[torch.arange(n, device=x.device), ends]
    return F.normalize(x @ model.text_projection, dim=-1)


def paths(model: nn.Module, features: Features) -> dict[str, Tensor]:
    """Local features by the way they are read, each ``[B, L, E]``."""
    count = len(features.blocks)
    local = {f"block{i}": features.blocks[i - 1] for i in (count // 2, 3 * count // 4, count)}
    if features.values:
        before = features.blocks[REFINED_FROM - 1] if REFINED_FROM else features.start
        local["refined"] = before + sum(features.values[REFINED_FROM:])
        stage = count // 4
        for i in range(4):
            local[f"stage{i + 1}"] = sum(features.values[i * stage : (i + 1) * stage])
    return {name: join(model, tokens[:, 1:]) for name, tokens in local.items()}


def build_layers(model: nn.Module, texts: Texts) -> nn.ModuleList:
    """SDP+'s linear layers, one at the end of each quarter of the tower, that answer neither normal nor anomalous yet."""
    width, joint = model.visual.proj.shape
    states = gen.captions.NORMAL_STATES + gen.captions.ANOMALOUS_STATES
    tokens = texts.tokens([state.format("object") for state in states])
    with torch.no_grad():
        middle = F.normalize(encode_text(model, tokens.to(model.logit_scale.device)).mean(0), dim=0)
        layers = nn.ModuleList(nn.Linear(width, joint) for _ in range(4))
        for layer in layers:
            layer.weight.zero_()
            layer.bias.copy_(30 * middle)
    return layers


def layer_maps(layers: nn.ModuleList, features: Features, direction: Tensor) -> dict[str, Tensor]:
    """Logits ``[B, L]`` of SDP+'s layers, which read each quarter's end after the attention of the next block."""
    count = len(features.blocks)
    ends = [(i + 1) * count // 4 for i in range(4)]
    streams = [features.attended[end] for end in ends[:-1]] + [features.blocks[-1]]
    return {
        f"layer{i}": 2 * SCALE * (F.normalize(layer(stream[:, 1:].float()), dim=-1) @ direction)
        for i, (layer, stream) in enumerate(zip(layers, streams, strict=True), start=1)
    }


# Start: each choice below makes the first tens of thousands of images count.


def initialise(model: nn.Module, patches: Tensor) -> None:
    """Whitened patch embedding, sine-cosine positions, mimetic attention.

    Args:
        model: the open_clip model, changed in place.
        patches: normalised patches ``[N, 192]`` of training images.
    """
    visual = model.visual
    width = visual.conv1.weight.shape[0]
    with torch.no_grad():
        covariance = patches.T @ patches / patches.shape[0]
        values, vectors = torch.linalg.eigh(covariance.double())
        filters = (vectors / (values + 5e-3).sqrt()).T.flip(0).float()
        visual.conv1.weight.copy_(filters[:width].reshape_as(visual.conv1.weight))
        side = int(math.sqrt(visual.positional_embedding.shape[0] - 1))
        axis = (torch.arange(side) + 0.5) / side
        waves = axis[:, None] * 2 * math.pi * torch.logspace(-0.5, 0.6, width // 4)[None]
        code = torch.cat([waves.sin(), waves.cos()], 1)  # [side, W/2]
        grid = torch.cat([code[:, None].expand(-1, side, -1), code[None].expand(side, -1, -1)], -1)
        visual.positional_embedding.zero_()
        visual.positional_embedding[1:].copy_(0.5 * grid.reshape(side * side, width))
        visual.class_embedding.normal_(0, 0.5)
        # Attention starts as "what differs from the similar tokens around": values are near minus the identity, query and
        # key near the identity. The text tower keeps open_clip's start, in which the end token looks at all words alike.
        w, depth = width, len(visual.transformer.resblocks)
        for block in visual.transformer.resblocks:
            noise = torch.randn(w, w) / math.sqrt(w)
            u, s, vh = torch.linalg.svd(0.4 * noise - 0.4 * torch.eye(w))
            block.attn.in_proj_weight[2 * w :].copy_(s.sqrt()[:, None] * vh)
            block.attn.out_proj.weight.copy_(u * s.sqrt())
            for h in range(w // 64):
                noise = torch.randn(w, w) / math.sqrt(w)
                u, s, vh = torch.linalg.svd(0.3 * noise + 0.3 * torch.eye(w))
                rows = slice(64 * h, 64 * (h + 1))
                block.attn.in_proj_weight[:w][rows].copy_((u * s.sqrt()).T[:64])
                block.attn.in_proj_weight[w : 2 * w][rows].copy_((s.sqrt()[:, None] * vh)[:64])
            block.attn.in_proj_bias.zero_()
            block.attn.out_proj.bias.zero_()
            block.mlp.c_fc.weight.normal_(0, w**-0.5)
            block.mlp.c_proj.weight.normal_(0, (4 * w) ** -0.5 / math.sqrt(2 * depth))
        nn.init.normal_(visual.proj, std=width**-0.5)
        nn.init.normal_(model.text_projection, std=model.text_projection.shape[0] ** -0.5)
        model.logit_scale.fill_(math.log(SCALE))


class Muon(torch.optim.Optimizer):
    """Momentum whose update is made orthogonal by Newton-Schulz iterations; for the matrices of the blocks.

    Matrices of one shape are treated together. Stacked projections (query, key, value) are separate matrices.
    """

    def __init__(self, params: list[nn.Parameter], lr: float = 0.005, dtype: torch.dtype = torch.bfloat16) -> None:
        super().__init__(params, {"lr": lr, "momentum": 0.95, "decay": 0.05})
        self.dtype = dtype  # of the iterations; not in the state, so that a run may go on on another machine

    @torch.no_grad()
    def step(self) -> None:  # type: ignore[override]
        """One update."""
        for group in self.param_groups:
            buckets: dict[tuple[int, int], list[tuple[Tensor, Tensor]]] = {}
            for p in group["params"]:
                if p.grad is None:
                    continue
                state = self.state[p]
                if not state:
                    state["momentum"] = torch.zeros_like(p)
                state["momentum"].lerp_(p.grad, 1 - group["momentum"])
                update = p.grad.lerp(state["momentum"], group["momentum"])
                rows, columns = p.shape
                parts = 3 if rows == 3 * columns else 1
                for target, u in zip(p.chunk(parts), update.chunk(parts), strict=True):
                    buckets.setdefault(tuple(target.shape), []).append((target, u))
            for (rows, columns), members in buckets.items():
                stacked = self._orthogonal(torch.stack([u for _, u in members]).to(self.dtype))
                scale = group["lr"] * max(1.0, rows / columns) ** 0.5
                for (target, _), u in zip(members, stacked, strict=True):
                    target.mul_(1 - group["lr"] * group["decay"]).add_(u.to(target.dtype), alpha=-scale)

    @staticmethod
    def _orthogonal(x: Tensor) -> Tensor:
        """Nearest semi-orthogonal matrices of ``[n, rows, columns]``, roughly, in five iterations."""
        wide = x.shape[-2] > x.shape[-1]
        x = x.mT if wide else x
        x = x / (x.norm(dim=(-2, -1), keepdim=True) + 1e-7)
        for _ in range(5):
            a = x @ x.mT
            x = 3.4445 * x + (-4.7750 * a + 2.0315 * (a @ a)) @ x
        return x.mT if wide else x


# Losses.


def relight(rng: np.random.Generator, images: Tensor, share: float = 1.0) -> Tensor:
    """Pairs ``[2B, 3, S, S]`` in [0, 1] in another light: the same for both twins, another one in every step.

    What light does to parts that are in order: darker and brighter pictures, lamps near the part, a bent or rolled
    surface (bands along one axis), fine streaks of a ground surface, and reflections that hide the surface. ``share``
    of the pairs are changed.
    """
    count, side = len(images) // 2, images.shape[-1]

    def smooth(rows: int, columns: int) -> Tensor:
        coarse = torch.tensor(rng.standard_normal((count, 1, rows, columns)), dtype=torch.float32)
        return F.interpolate(coarse, (side, side), mode="bicubic", align_corners=False)

    def amount(scale: float, share: float) -> Tensor:
        values = np.abs(rng.normal(0, scale, (count, 1, 1, 1))) * (rng.random((count, 1, 1, 1)) < share)
        return torch.tensor(values, dtype=torch.float32)

    field = smooth(4, 4) * amount(0.3, 0.5) + smooth(1, int(rng.integers(4, 20))) * amount(0.3, 0.3)
    field = field + smooth(1, side) * (0.6 + 0.4 * smooth(3, 3)) * amount(0.07, 0.25)
    glare = (smooth(2, int(rng.integers(3, 12))) - 0.5).clamp(min=0) * amount(0.5, 0.2)
    upright = torch.tensor(rng.random((count, 1, 1, 1)) < 0.5)
    field, glare = (torch.where(upright, f, f.transpose(2, 3)).to(images.device) for f in (field, glare))
    gain = torch.tensor(np.exp(rng.uniform(-0.6, 0.3, (count, 1, 1, 1))), dtype=images.dtype, device=images.device)
    light, glare = gain * field.clamp(-1.5, 0.8).exp(), glare.clamp(max=0.9)
    lit = (images * light.repeat(2, 1, 1, 1)).clamp(max=1)
    lit = lit + glare.repeat(2, 1, 1, 1) * (1 - lit)
    if share < 1:
        chosen = torch.tensor(rng.random((count, 1, 1, 1)) < share, device=images.device)
        lit = torch.where(chosen.repeat(2, 1, 1, 1), lit, images)
    return lit


def add_margins(rng: np.random.Generator, images: Tensor, cover: Tensor, share: float = 0.25) -> None:
    """Let some pictures end at the border of the part: strips of another tone along one to three sides, in place.

    Args:
        rng: source of all randomness.
        images: pairs ``[2B, 3, S, S]`` in [0, 1]; both twins get the same.
        cover: share of each patch that the defect covers, ``[B, S/8, S/8]``; what is hidden no longer counts.
        share: of the pairs. Where the strips would hide most of the defect, the picture stays as it is.
    """
    count, side = len(images) // 2, images.shape[-1]
    axis = torch.arange(side, dtype=torch.float32)
    for row in np.flatnonzero(rng.random(count) < share):
        alpha = torch.zeros(side, side)
        for turn in rng.choice(4, int(rng.integers(1, 4)), replace=False):
            border = side * (gen.log_uniform(rng, 0.015, 0.14) + rng.normal(0, 0.03) * (axis / side - 0.5))
            strip = ((border[:, None] - axis[None]) / rng.uniform(1, 4) + 0.5).clamp(0, 1)
            alpha = torch.maximum(alpha, torch.rot90(strip, int(turn)))
        visible = cover[row] * (1 - F.avg_pool2d(alpha[None, None], 8)[0, 0])
        if visible.sum() < 0.6 * cover[row].sum():
            continue
        cover[row] = visible
        tone = rng.uniform(0, 0.15, 3) if rng.random() < 0.7 else rng.uniform(0, 1, 3)
        tone = tone.mean().repeat(3) if rng.random() < 0.7 else tone
        alpha = alpha.to(images)
        for picture in (row, row + count):
            images[picture] += alpha * (images.new_tensor(tone)[:, None, None] - images[picture])


class Texts:
    """Captions of a step, tokenised; token rows are cached because the wording repeats."""

    def __init__(self) -> None:
        import open_clip

        self._tokenizer = open_clip.tokenizer.SimpleTokenizer()
        self._cache: dict[str, Tensor] = {}

    def tokens(self, captions: list[str]) -> Tensor:
        """Token ids ``[N, 77]``."""
        new = [c for c in dict.fromkeys(captions) if c not in self._cache]
        if len(self._cache) > 50_000:
            self._cache.clear()
            new = list(dict.fromkeys(captions))
        if new:
            self._cache.update(zip(new, self._tokenizer(new), strict=True))
        return torch.stack([self._cache[c] for c in captions])


@torch.no_grad()
def kind_features(model: nn.Module, texts: Texts) -> Tensor:
    """Mean text feature of each kind's phrases ``[kinds, E]``, as long as a fresh anchor."""
    rows = []
    for kind in KINDS:
        captions = [phrase.format("object") for phrase in gen.DEFECTS[kind].phrases]
        rows.append(encode_text(model, texts.tokens(captions).to(model.logit_scale.device)).mean(0))
    rows = F.normalize(torch.stack(rows), dim=-1)
    return rows * rows.shape[-1] ** 0.5


def contrastive_captions(rng: np.random.Generator, meta: np.ndarray) -> tuple[list[str], Tensor]:
    """A caption for each of the 2B images, and which captions are right for which images ``[2B, 2B]``."""
    captions, keys = [], []
    for bad in (False, True):
        for family, kind in meta:
            noun = str(rng.choice(gen.FAMILIES[FAMILIES[family]].nouns))
            pick = rng.random()
            if pick < 0.2:  # neutral: right for both twins
                captions.append(gen.captions.caption(rng, noun, ("{}",)))
                keys.append((family, "any"))
            elif not bad:
                captions.append(gen.captions.caption(rng, noun, gen.captions.NORMAL_STATES))
                keys.append((family, "good"))
            elif pick < 0.5:
                captions.append(gen.captions.caption(rng, noun, gen.captions.ANOMALOUS_STATES))
                keys.append((family, "bad"))
            else:
                captions.append(gen.captions.caption(rng, noun, gen.DEFECTS[KINDS[kind]].phrases))
                keys.append((family, KINDS[kind]))
    match = torch.zeros(len(keys), len(keys))
    half = len(meta)
    for i in range(len(keys)):
        family, kind = meta[i % half]
        for j, (other, state) in enumerate(keys):
            fits = state == "any" or (state == "good" if i < half else state in ("bad", KINDS[kind]))
            match[i, j] = float(other == family and fits)
    return captions, match


def patch_loss(logits: Tensor, cover: Tensor, positive: float = 8.0) -> Tensor:
    """Weighted cross-entropy of patch logits ``[2B, L]`` against the covered share ``[B, L]`` of the second half."""
    target = torch.cat([torch.zeros_like(cover), (3.0 * cover).clamp(max=1.0)])
    # Hardly touched patches say nothing either way.
    weight = torch.where(target > 0, positive * target, torch.ones_like(target))
    target = (target > 0.15).float() * target.clamp(min=0.6)
    return (weight * F.binary_cross_entropy_with_logits(logits, target, reduction="none")).sum() / weight.sum()


def twin_loss(logits: Tensor, cover: Tensor) -> Tensor:
    """A defective patch must score higher than the same patch of the good twin, which cancels all that they share.

    Args:
        logits: patch logits ``[2B, L]``, good ones first.
        cover: covered share of the patches ``[B, L]``.
    """
    good, bad = logits.chunk(2)
    return (F.softplus(good - bad) * cover).sum() / cover.sum().clamp(min=1e-3)


def losses(
    model: nn.Module, texts: Texts, images: Tensor, cover: Tensor, meta: np.ndarray, rng: np.random.Generator,
    dtype: torch.dtype, values: bool, kinds: bool, anchors: Tensor | None = None,
    relit: float = 0.0, layers: nn.ModuleList | None = None,
    imitation: Imitation | None = None, tokens: Tensor | None = None, weight: float = 1.0, only: bool = False,
) -> dict[str, Tensor]:  # fmt: skip
    """All terms of one step, already weighted.

    Args:
        images: uint8 ``[2B, S, S, 3]``, good ones first.
        cover: share of each patch that the defect covers, ``[B, S/8, S/8]``.
        meta: family and kind of each pair, ``[B, 2]``.
        values: read the value-value sums in this step.
        kinds: ask for the kind of defect in this step.
        anchors: a learned direction per kind in the joint space, ``[kinds, E]``, that texts and images are both drawn to.
            Between two towers that know nothing of kinds neither has anything to align to.
        relit: share of the pairs that stand in another light; a quarter as many end at the border of the part.
        layers: SDP+'s linear layers, learned with the tower.
        imitation: maps to the teacher's tokens.
        tokens: the teacher's, of the pictures as they are; without them nothing is imitated in this step.
        weight: of the imitation.
        only: imitate and nothing else.
    """
    device, half = model.logit_scale.device, len(meta)
    x = images.to(device).float().div_(255).permute(0, 3, 1, 2)
    if relit:
        x, cover = relight(rng, x, relit), cover.clone()
        if tokens is None:  # what a border hides, the teacher has seen
            add_margins(rng, x, cover, 0.25 * relit)
    else:  # the same light for both twins, another one in every step
        gain = torch.tensor(rng.uniform(0.85, 1.15, (half, 1, 1, 1)), dtype=x.dtype, device=device)
        x = x * gain.repeat(2, 1, 1, 1)
    x = (x - x.new_tensor(MEAN).view(1, 3, 1, 1)) / x.new_tensor(STD).view(1, 3, 1, 1)

    out: dict[str, Tensor] = {}
    features = encode_image(model, x, dtype, values and not only)
    flat = cover.to(device).flatten(1)
    if imitation is not None and tokens is not None:
        out["imitation"] = weight * imitation(features.blocks, tokens.to(device), flat)
    if only:
        return out

    pairs = [gen.captions.state_pair(rng, gen.captions.free_noun(rng)) for _ in range(6)]
    for family in rng.choice(meta[:, 0], 2):
        pairs.append(gen.captions.state_pair(rng, str(rng.choice(gen.FAMILIES[FAMILIES[family]].nouns))))
    named = [int(k) for k in rng.choice(meta[:, 1], 3)]  # "with a scratch" against "without scratch"
    pairs += [gen.captions.state_pair(rng, gen.captions.free_noun(rng), KINDS[k]) for k in named]
    captions, match = contrastive_captions(rng, meta)
    kind_captions = []
    if kinds:
        frame, noun = gen.captions.template(rng), gen.captions.free_noun(rng)
        kind_captions = [frame.format(str(rng.choice(gen.DEFECTS[k].phrases)).format(noun)) for k in KINDS]
    every = [p[0] for p in pairs] + [p[1] for p in pairs] + captions + kind_captions
    text = encode_text(model, texts.tokens(every).to(device))
    normal, anomalous, own, kind_text = text.split([len(pairs), len(pairs), len(captions), len(kind_captions)])

    last = features.blocks[-1][:, 0]
    z = join(model, last)

    is_bad = torch.arange(2 * half, device=device).ge(half).float()
    state = SCALE * (z @ (anomalous - normal).T)  # [2B, pairs]
    # A pair that names a kind says nothing about images with another defect.
    asked = torch.ones_like(state)
    asked[half:, -len(named) :] = torch.from_numpy(meta[:, 1, None] == np.array(named)).to(asked)
    loss = F.binary_cross_entropy_with_logits(state, is_bad[:, None].expand_as(state), reduction="none")
    out["state"] = (loss * asked).sum() / asked.sum()
    mean_state = state.mean(1)
    out["pair"] = F.softplus(mean_state[:half] - mean_state[half:]).mean()
    # AnomalyCLIP reads the class token without the last layer norm.
    raw = SCALE * (join(model, last, norm=False) @ (anomalous - normal).mean(0))
    out["raw"] = 0.1 * F.binary_cross_entropy_with_logits(raw, is_bad)

    logits = SCALE * (z @ own.T)
    match = match.to(device)
    by_image = -(F.log_softmax(logits, 1) * match / match.sum(1, keepdim=True).clamp(min=1)).sum(1).mean()
    by_text = -(F.log_softmax(logits, 0) * match / match.sum(0, keepdim=True).clamp(min=1)).sum(0).mean()
    out["clip"] = 0.1 * (by_image + by_text)

    direction = F.normalize(anomalous.mean(0), dim=0) - F.normalize(normal.mean(0), dim=0)
    local = paths(model, features)
    last_name = f"block{len(features.blocks)}"
    weights = {last_name: 1.5}
    weights |= {name: 0.3 for name in local if name.startswith("block") and name != last_name}
    weights |= {"refined": 0.7, "stage1": 0.15, "stage2": 0.25, "stage3": 0.35, "stage4": 0.6}
    maps = {name: SCALE * (tokens @ direction) for name, tokens in local.items()}
    if layers is not None:
        maps |= layer_maps(layers, features, direction)
        weights |= {"layer1": 0.1, "layer2": 0.15, "layer3": 0.2, "layer4": 0.3}
    for name, logit in maps.items():
        out[name] = weights[name] * patch_loss(logit, flat)
        out[f"{name} twin"] = 0.5 * weights[name] * twin_loss(logit, flat)
    if values:
        staged = torch.stack([maps[f"stage{i}"] for i in range(1, 5)]).mean(0)
        out["staged"] = 0.7 * patch_loss(staged, flat)

    if kinds:
        target = torch.as_tensor(meta[:, 1], device=device, dtype=torch.long)
        out["kind"] = 0.3 * F.cross_entropy(SCALE * (z[half:] @ kind_text.T), target)
        hit = flat > 0.3
        if bool(hit.any()):
            name = ("refined" if rng.random() < 0.5 else "stage4") if values and rng.random() < 0.5 else last_name
            which = target[:, None].expand_as(flat)[hit]
            out["kind_patch"] = 0.3 * F.cross_entropy(SCALE * (local[name][half:][hit] @ kind_text.T), which)
        if anchors is not None:
            unit = ANCHOR_SCALE * F.normalize(anchors, dim=-1).T
            out["anchor_text"] = 0.3 * F.cross_entropy(kind_text @ unit, torch.arange(len(KINDS), device=device))
            out["anchor_image"] = 0.15 * F.cross_entropy(z[half:] @ unit, target)
            if bool(hit.any()):
                out["anchor_patch"] = 0.3 * F.cross_entropy(local[name][half:][hit] @ unit, which)
    return out


# The run.


def auroc(scores: np.ndarray, labels: np.ndarray) -> float:
    """Area under the ROC curve by ranks; ties count half."""
    order = np.argsort(scores, kind="stable")
    _, inverse, counts = np.unique(scores[order], return_inverse=True, return_counts=True)
    mid = np.cumsum(counts) - (counts - 1) / 2
    ranks = np.empty(len(scores))
    ranks[order] = mid[inverse]
    positive = labels.astype(bool)
    p, n = int(positive.sum()), int((~positive).sum())
    return float((ranks[positive].sum() - p * (p + 1) / 2) / max(p * n, 1))


@torch.no_grad()
def monitor(
    model: nn.Module, texts: Texts, seed: int, count: int = 64, side: int = SIZE, layers: nn.ModuleList | None = None,
    held: list[str] | None = None,
) -> dict[str, float]:  # fmt: skip
    """Image and patch AUROC on pairs of families that are not in the training, or of the families ``held``."""
    held = held or [name for name, family in gen.FAMILIES.items() if family.held_out]
    pairs = [draw_pair(seed + 77, i, held) for i in range(count)]
    device = model.logit_scale.device
    shown = [p.good for p in pairs] + [p.bad for p in pairs]
    shown = [cv2.resize(picture, (side, side), interpolation=cv2.INTER_AREA) for picture in shown]
    images = torch.from_numpy(np.stack(shown)).to(device)
    x = images.float().div_(255).permute(0, 3, 1, 2)
    x = (x - x.new_tensor(MEAN).view(1, 3, 1, 1)) / x.new_tensor(STD).view(1, 3, 1, 1)
    cover = np.stack([cv2.resize(p.mask, (side // 8,) * 2, interpolation=cv2.INTER_AREA) for p in pairs]) / 255.0
    target = np.concatenate([np.zeros_like(cover), cover]).reshape(-1) > 0.3
    frames = ("a photo of a {}", "a cropped photo of the {}", "{}")
    normal = [f.format(s.format("object")) for f in frames for s in gen.captions.NORMAL_STATES[:6]]
    anomalous = [f.format(s.format("object")) for f in frames for s in gen.captions.ANOMALOUS_STATES[:5]]
    text = encode_text(model, texts.tokens(normal + anomalous).to(device))
    direction = F.normalize(text[len(normal) :].mean(0), dim=0) - F.normalize(text[: len(normal)].mean(0), dim=0)
    scores, maps = [], {}
    for part in x.split(32):
        features = encode_image(model, part, torch.float32, True)
        scores.append(join(model, features.blocks[-1][:, 0]) @ direction)
        local = {k: v @ direction for k, v in paths(model, features).items()}
        local["staged"] = sum(local[f"stage{i}"] for i in range(1, 5))
        if layers is not None:
            local |= layer_maps(layers, features, direction)
            local["layers"] = sum(local[f"layer{i}"].sigmoid() for i in range(1, 5))
        for name, value in local.items():
            maps.setdefault(name, []).append(value)
    score = torch.cat(scores).cpu().numpy()
    result = {
        "image": auroc(score, np.arange(2 * count) >= count),
        "pairs": float((score[count:] > score[:count]).mean()),
    }
    last = f"block{len(model.visual.transformer.resblocks)}"
    result["max"] = auroc(torch.cat(maps[last]).amax(1).cpu().numpy(), np.arange(2 * count) >= count)
    for name, value in maps.items():
        result[name] = auroc(torch.cat(value).flatten().cpu().numpy(), target)
    return result


def export(model: nn.Module, folder: Path, name: str = "model") -> Path:
    """Write ``<name>.safetensors`` in half precision, atomically."""
    state = {k: v.detach().cpu().half().contiguous() for k, v in model.state_dict().items() if v.is_floating_point()}
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / f"{name}.safetensors"
    save_file(state, str(path) + ".part")
    os.chmod(str(path) + ".part", 0o644)
    os.replace(str(path) + ".part", path)
    return path


def mean_weights(paths: list[Path]) -> dict[str, Tensor]:
    """Mean of the weights of several files, float32."""
    files = [load_file(path) for path in paths]
    return {key: torch.stack([file[key].float() for file in files]).mean(0) for key in files[0]}


def build_model(config: Path = CONFIG) -> nn.Module:
    """An open_clip model of the built-in architecture, freshly initialised by open_clip."""
    import open_clip

    cfg = json.loads(config.read_text(encoding="utf-8"))
    return open_clip.model.CLIP(**cfg)


def batch_plan(progress: float, rng: np.random.Generator, given: list[int] | None = None) -> tuple[int, int]:
    """Side and number of pairs for the next batch: small pictures first, then mostly 96 px, with others in between.

    With sides ``given`` one of them instead.
    """
    table = (
        [(64, 0.9), (96, 0.1)]
        if progress < 0.2
        else [(64, 0.4), (80, 0.2), (96, 0.3), (128, 0.1)]
        if progress < 0.65
        else [(64, 0.15), (80, 0.15), (96, 0.4), (128, 0.27), (160, 0.03)]
    )
    sides, weights = zip(*table, strict=True)
    side = int(rng.choice(given) if given else rng.choice(sides, p=weights))
    return side, pairs_of(side)


def pairs_of(side: int, factor: float = 1.0) -> int:
    """Pairs in a batch of pictures of this side: about the same work for every side."""
    known = {64: 32, 80: 24, 96: 18, 128: 12, 160: 8}
    return max(int(known.get(side, max(2, round(32 * (64 / side) ** 1.5))) * factor), 2)


def open_ring(args: argparse.Namespace, used: int) -> Feed:
    """Start the processes that draw pairs, and the feed that reads them."""
    ring = Ring(args.slots, args.workers, max([SIZE, *(args.side or ())]))
    feed = Feed(ring, args.seed, used, args.replay, twins="twins" not in args.without)
    first = max(0, 1024 + math.ceil(used / feed.replay) - feed.window)
    ring.oldest.value = first
    for worker in range(args.workers):
        mp.get_context("fork").Process(target=produce, args=(ring, args.seed, worker, first), daemon=True).start()
    return feed


def open_pairs(args: argparse.Namespace, used: int) -> PairFeed:
    """The feed of pairs from files, and the family of photographs by name: its pictures are in the files."""
    FAMILIES.append(PHOTOGRAPH)
    gen.FAMILIES[PHOTOGRAPH] = (
        photograph_family(args.held_out_photographs)
        if args.held_out_photographs
        else gen.Family(PHOTOGRAPH, "texture", SURFACES, draw=None)
    )
    left_out = (PHOTOGRAPH,) if SURFACES_PART in args.without else ()
    feed = PairFeed(args.pairs, args.pair_count, args.seed, FAMILIES, KINDS, left_out=left_out)
    feed.used = used
    return feed


def build_optimizers(
    rate: float, dtype: torch.dtype, matrices: list[nn.Parameter], rest: list[nn.Parameter], slow: list[nn.Parameter],
    anchors: nn.Parameter, imitation: Imitation | None, *, muon: bool,
) -> tuple[torch.optim.Optimizer, torch.optim.Optimizer]:  # fmt: skip
    """One for the matrices of the image tower's blocks, one for everything else.

    Muon takes larger rates than Adam, so the others' rates are a share of it; with Adam they are the same or multiples.
    """
    own = {"betas": (0.9, 0.98), "eps": 1e-8}
    blocks = Muon(matrices, rate, dtype) if muon else torch.optim.AdamW(matrices, rate, weight_decay=0.05, **own)
    shares = (0.25, 0.06, 2.0, 0.5) if muon else (1.0, 0.25, 8.0, 3.0)
    members = (rest, slow, [anchors], list(imitation.parameters()) if imitation is not None else [])
    groups = [{"params": m, "lr": share * rate} for m, share in zip(members, shares, strict=True) if m]
    return blocks, torch.optim.Adam(groups, **own)


def main() -> None:
    """Command line."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--out", type=Path, required=True, help="folder for checkpoint, log and weights")
    parser.add_argument("--steps", type=int, default=0, help="length of the schedule in steps")
    parser.add_argument("--minutes", type=float, default=0.0, help="length of the schedule in minutes instead")
    parser.add_argument(
        "--start",
        type=Path,
        nargs="+",
        help="weights to go on from, or several to begin at their mean, with the last sizes and all strengths of defects",
    )
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--device", default="cpu")
    parser.add_argument(
        "--precision", choices=list(PRECISIONS), default="bf16",
        help="of the image tower; float32 is far faster on a CPU that can only imitate bf16",
    )  # fmt: skip
    parser.add_argument("--threads", type=int, default=1, help="threads of the training process")
    parser.add_argument("--workers", type=int, default=1, help="processes that make images")
    parser.add_argument(
        "--slots", type=int, default=8192, help="pairs kept in shared memory (7 bytes per pixel: 115 kB at 128 px)"
    )
    parser.add_argument("--replay", type=float, default=2.0, help="how often each pair is shown, in other crops")
    parser.add_argument("--batch-factor", type=float, default=1.0, help="multiplies the pairs per batch (GPU)")
    parser.add_argument(
        "--lr", type=float, default=0.005, help="of the matrices of the image tower; the others follow it"
    )
    parser.add_argument(
        "--optimizer", choices=["muon", "adam"], default="muon",
        help="of those matrices; for Adam about a tenth of Muon's rate. It is as good at imitating, and cheaper",
    )  # fmt: skip
    parser.add_argument("--tail", type=float, default=0.4, help="share of the schedule in which the rate falls to zero")
    parser.add_argument(
        "--relit", type=float, default=0.0,
        help="share of the pairs that stand in another light: bands, streaks, reflections, dark borders",
    )  # fmt: skip
    parser.add_argument("--layers", action="store_true", help="learn SDP+'s linear layers along with the tower")
    parser.add_argument("--save-minutes", type=float, default=4.0)
    parser.add_argument("--config", type=Path, default=CONFIG, help="open_clip configuration of another architecture")
    parser.add_argument(
        "--side", type=int, nargs="+",
        help="sides of the pictures, multiples of 8, mixed in equal parts (a side may be named twice); "
        "default: 64 to 160 px, more of the larger ones later",
    )  # fmt: skip
    parser.add_argument(
        "--without", choices=[*PARTS, SURFACES_PART], nargs="*", default=[],
        help="leave out, to see what it is worth: all terms that look at patches; the good twin of a defective picture "
        "(another product of the family takes its place); the pairs on photographs of surfaces",
    )  # fmt: skip
    parser.add_argument("--pairs", type=Path, help="folder of teacher_pairs.py to take the pictures from")
    parser.add_argument(
        "--pair-count", type=int, default=12_800, help="pairs of that folder that the schedule goes through"
    )
    parser.add_argument(
        "--imitate", type=float, default=0.4,
        help="share of the schedule in which the tower does nothing but imitate the teacher; afterwards every second "
        "batch has the teacher's tokens",
    )  # fmt: skip
    parser.add_argument(
        "--imitation-weight", type=float, default=4.0, help="of the imitation beside the other terms; 0: no teacher"
    )
    parser.add_argument("--held-out-photographs", type=Path, help="folder of photographs to score on now and then")
    args = parser.parse_args()
    if bool(args.steps) == bool(args.minutes):
        parser.error("give one of --steps and --minutes")
    if any(side < 8 or side % 8 for side in args.side or ()):
        parser.error("--side must be a multiple of 8")
    if not 0 < args.tail <= 1:
        parser.error("--tail must be above 0 and at most 1")
    torch.set_num_threads(args.threads)
    cv2.setNumThreads(1)
    torch.manual_seed(args.seed)
    args.out.mkdir(parents=True, exist_ok=True)
    checkpoint = args.out / "checkpoint.pt"
    shown_at = args.side[0] if args.side and len(args.side) == 1 else SIZE
    saved = torch.load(checkpoint, weights_only=True) if checkpoint.exists() else None
    step, used, images, elapsed = (saved[k] for k in ("step", "used", "images", "elapsed")) if saved else (0, 0, 0, 0.0)
    if args.start and not saved:
        used = 2 * CURRICULUM  # gross defects alone are for beginners

    feed = open_pairs(args, used) if args.pairs else open_ring(args, used)

    model, texts = build_model(args.config), Texts()
    model.set_grad_checkpointing(False)
    if saved:
        model.load_state_dict(saved["model"])
    elif args.start:
        model.load_state_dict({**model.state_dict(), **mean_weights(args.start)})
    else:
        if isinstance(feed, PairFeed):
            parser.error("--pairs needs --start: a tower that knows nothing begins with the pictures of the ring")
        sample, _, _ = feed.batch(-1 & 0xFFFF, 128, SIZE)
        feed.used = 0
        x = (sample.float() / 255 - torch.tensor(MEAN)) / torch.tensor(STD)
        x = x.reshape(-1, 16, 8, 16, 8, 3).permute(0, 1, 3, 5, 2, 4).reshape(-1, 192)
        initialise(model, x)
    model.to(args.device).train()
    matrices = [p for n, p in model.named_parameters() if n.startswith("visual.") and "resblocks" in n and p.ndim == 2]
    chosen = {id(p) for p in matrices}
    slow = [model.visual.conv1.weight, model.visual.positional_embedding, model.visual.class_embedding]
    chosen |= {id(p) for p in slow} | {id(model.logit_scale)}
    start = torch.Generator().manual_seed(args.seed)
    anchors = nn.Parameter(torch.randn(len(KINDS), model.text_projection.shape[1], generator=start).to(args.device))
    if args.start and not saved:
        anchors.data.copy_(kind_features(model, texts))
    layers = build_layers(model, texts).to(args.device) if args.layers else None
    if layers is not None and saved:
        layers.load_state_dict(saved["layers"])
    elif layers is not None and args.start and (before := args.start[0].with_name("layers.safetensors")).exists():
        nn.ModuleDict({"fc": layers}).load_state_dict(load_file(before))
    taught = bool(args.pairs and args.imitation_weight)
    imitation = Imitation(model.visual.conv1.weight.shape[0]).to(args.device) if taught else None
    if imitation is not None and saved:
        imitation.load_state_dict(saved["imitation"])
    model.logit_scale.requires_grad_(False)
    rest = [p for p in model.parameters() if id(p) not in chosen]
    rest += list(layers.parameters()) if layers is not None else []
    dtype = PRECISIONS[args.precision]
    optimizers = build_optimizers(
        args.lr, dtype, matrices, rest, slow, anchors, imitation, muon=args.optimizer == "muon"
    )
    if saved:
        anchors.data.copy_(saved["anchors"])
        for optimizer, state in zip(optimizers, saved["optimizers"], strict=True):
            optimizer.load_state_dict(state)
    base = [[group["lr"] for group in optimizer.param_groups] for optimizer in optimizers]
    if saved:
        base = saved["base"]
    log = (args.out / "log.jsonl").open("a", encoding="utf-8")
    began, last_save, sums, seen = time.time() - elapsed, time.time(), {}, 0
    joint_from = saved.get("joint_from") if saved else None

    def save() -> None:
        state = {
            "model": model.state_dict(), "anchors": anchors.data,
            "layers": layers.state_dict() if layers is not None else {},
            "imitation": imitation.state_dict() if imitation is not None else {},
            "optimizers": [o.state_dict() for o in optimizers],
            "base": base, "step": step, "used": feed.used, "images": images, "elapsed": time.time() - began,
            "joint_from": joint_from,
        }  # fmt: skip
        torch.save(state, str(checkpoint) + ".part")
        os.replace(str(checkpoint) + ".part", checkpoint)
        export(model, args.out)
        if layers is not None:
            export(nn.ModuleDict({"fc": layers}), args.out, "layers")

    while True:
        progress = step / args.steps if args.steps else (time.time() - began) / (60 * args.minutes)
        if progress >= 1 or (STOP_AFTER and seen >= STOP_AFTER):
            break
        rng = np.random.default_rng([args.seed, 2_000_003, step])
        advanced = 1.0 if args.start else progress
        alone = taught and progress < args.imitate
        factor = min(1.0, (step + 1) / 60) * min(1.0, (1 - progress) / args.tail + 0.01)
        if taught and not alone and joint_from is None:
            joint_from = step
        if joint_from is not None:  # the text tower and what reads the tokens begin only now
            factor *= min(1.0, (step - joint_from + 1) / 60)
        for optimizer, rates in zip(optimizers, base, strict=True):
            for group, rate in zip(optimizer.param_groups, rates, strict=True):
                group["lr"] = rate * factor
        tokens = None
        if isinstance(feed, PairFeed):
            sizes = {8 * grid: pairs_of(8 * grid, args.batch_factor) for grid in feed.shares}
            batch, cover, meta, tokens = feed.batch(step, progress, sizes, taught=alone or bool(taught and step % 2))
            pairs = len(meta)
        else:
            side, pairs = batch_plan(advanced, rng, args.side)
            pairs = max(int(pairs * args.batch_factor), 2)
            batch, cover, meta = feed.batch(step, pairs, side)
        values, kinds = bool(rng.random() < 0.5) and "patches" not in args.without, bool(rng.random() < 0.5)
        anchored = anchors if advanced >= ANCHORS_FROM else None
        terms = losses(
            model, texts, batch, cover, meta, rng, dtype, values, kinds, anchored, args.relit, layers,
            imitation, tokens, args.imitation_weight, alone,
        )  # fmt: skip
        unwanted = [PARTS[part] for part in args.without if part in PARTS]
        terms = {name: v for name, v in terms.items() if not any(part.match(name) for part in unwanted)}
        for optimizer in optimizers:
            optimizer.zero_grad(set_to_none=True)
        sum(terms.values()).backward()
        nn.utils.clip_grad_norm_(rest + slow, 1.0)
        for optimizer in optimizers:
            optimizer.step()
        step += 1
        seen += 1
        images += 2 * pairs
        for name, value in terms.items():
            total, n = sums.get(name, (0.0, 0))
            sums[name] = total + float(value.detach()), n + 1
        if step % 50 == 0:
            line = {
                "step": step,
                "images": images,
                "minutes": round((time.time() - began) / 60, 2),
                "waited": round(feed.waited, 1),
            }
            line |= {name: round(total / n, 4) for name, (total, n) in sums.items()}
            print(json.dumps(line), file=log, flush=True)
            sums = {}
        if time.time() - last_save > 60 * args.save_minutes:
            save()
            model.eval()
            scores = {k: round(v, 3) for k, v in monitor(model, texts, args.seed, side=shown_at, layers=layers).items()}
            line = {"step": step, "held out": scores}
            if args.pairs and args.held_out_photographs:
                surfaces = monitor(model, texts, args.seed, side=shown_at, layers=layers, held=[PHOTOGRAPH])
                line["photographs"] = {k: round(v, 3) for k, v in surfaces.items()}
            model.train()
            print(json.dumps(line), file=log, flush=True)
            last_save = time.time()
    save()
    print(
        json.dumps(
            {"step": step, "images": images, "held out": monitor(model, texts, args.seed, 256, shown_at, layers)}
        ),
        file=log,
        flush=True,
    )


if __name__ == "__main__":
    main()
