# Copyright (C) 2026 anomalib-zsclip contributors
# SPDX-License-Identifier: Apache-2.0

"""What the training of the built-in CLIP needs to learn from a teacher: pairs from files, and the term of the loss."""

from __future__ import annotations

import json
import time
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from safetensors import safe_open
from teacher_pairs import GRIDS, PATCH, PER_FILE, Shard, file_of, grid_of, read_rows
from torch import Tensor, nn

WINDOW = 150  # files to choose from, the newest ones of those that a step is entitled to
#: A batch draws on a few files only: opening one costs more than reading a pair of it.
FILES_PER_BATCH = 6
#: Weight of patches that the defect touches, in both twins: they are few, and they are what the tower is for.
TOUCHED = 4.0


class PairFeed:
    """Batches from the files of ``teacher_pairs.py``: which pairs a step sees depends on its number alone.

    Args:
        folder: of the files; they may still be being made.
        count: pairs that the whole schedule is entitled to.
        seed: seed of the run.
        families: the trainer's names of families; batches hold positions in this list.
        kinds: the same of the defects.
        window: files to choose from.
        left_out: families whose pairs are passed over.
    """

    def __init__(
        self, folder: Path, count: int, seed: int, families: list[str], kinds: list[str], window: int = WINDOW,
        left_out: tuple[str, ...] = (),
    ) -> None:  # fmt: skip
        plan = json.loads((folder / "plan.json").read_text(encoding="utf-8"))
        self.folder, self.seed, self.window, self.every = folder, seed, window, plan["every"]
        self.files = count // PER_FILE
        # The files may be older than the generator's lists.
        self._places = [
            np.array([own.index(name) for name in listed])
            for own, listed in ((families, plan["families"]), (kinds, plan["kinds"]))
        ]
        self.grids = [grid_of(plan["seed"], n, dict(plan["grids"])) for n in range(self.files)]
        self.shares = dict(plan["grids"]) or GRIDS
        self._left_out = [plan["families"].index(name) for name in left_out]
        self.waited, self.used = 0.0, 0

    def entitled(self, progress: float) -> range:
        """Numbers of the files that a step at this share of the schedule may draw on."""
        # The first window is the beginner's: a run that starts with a handful of pairs learns them by heart.
        high = min(self.files, self.window + int(progress * max(self.files - self.window, 0)))
        return range(max(0, high - self.window), high)

    def batch(
        self, step: int, progress: float, pairs: dict[int, int], *, taught: bool
    ) -> tuple[Tensor, Tensor, np.ndarray, Tensor | None]:
        """Images uint8 ``[2B, S, S, 3]`` (good first), coverage ``[B, S/8, S/8]``, meta ``[B, 2]``, tokens ``[2B, L, 4D]``.

        Args:
            step: number of the step.
            progress: share of the schedule that is over.
            pairs: how many pairs a batch of each side in pixels has.
            taught: whether the teacher's tokens are wanted; they are in every so many files only.
        """
        rng = np.random.default_rng([self.seed, 1_000_003, step])
        fitting = [n for n in self.entitled(progress) if bool(self.every and n % self.every == 0) == taught]
        shares = {g: s for g, s in self.shares.items() if any(self.grids[n] == g for n in fitting)}
        weights = np.array(list(shares.values()))
        grid = int(rng.choice(list(shares), p=weights / weights.sum()))
        fitting = [n for n in fitting if self.grids[n] == grid]
        count = pairs[grid * PATCH]
        chosen = rng.choice(fitting, min(FILES_PER_BATCH, len(fitting)), replace=False)
        parts = []
        for number, rows in zip(chosen, np.array_split(np.arange(count), len(chosen)), strict=True):
            if len(rows):
                path = self._wait_for(int(number))
                parts.append(read_rows(path, sorted(rng.choice(self._rows(path), len(rows), replace=False).tolist())))
        self.used += count
        images, cover, meta, tokens = self._join(parts, grid, rng)
        families, kinds = self._places
        return images, cover, np.stack([families[meta[:, 0]], kinds[meta[:, 1]]], 1), tokens

    def _rows(self, path: Path) -> np.ndarray:
        """Pairs of a file to choose from."""
        rows = np.arange(PER_FILE)
        if not self._left_out:
            return rows
        with safe_open(str(path), "pt") as file:
            families = file.get_tensor("meta")[:, 0].numpy()
        return rows[~np.isin(families, self._left_out)]

    def _wait_for(self, number: int) -> Path:
        path = file_of(self.folder, number)
        began = time.time()
        while not path.exists():
            time.sleep(0.05)
        self.waited += time.time() - began
        return path

    @staticmethod
    def _join(
        parts: list[Shard], grid: int, rng: np.random.Generator
    ) -> tuple[Tensor, Tensor, np.ndarray, Tensor | None]:
        """One batch, each pair mirrored or not, with the teacher's tokens mirrored along."""
        images = torch.stack([torch.cat([p.good for p in parts]), torch.cat([p.bad for p in parts])])  # [2, B, S, S, 3]
        cover = torch.cat([p.cover for p in parts]).float() / 255
        meta = torch.cat([p.meta for p in parts]).numpy()
        tokens = None
        if parts[0].tokens is not None:
            halves = [torch.cat([p.tokens.chunk(2)[half] for p in parts if p.tokens is not None]) for half in (0, 1)]
            tokens = torch.stack(halves).unflatten(2, (grid, grid))  # [2, B, g, g, 4D]
        for row in range(len(meta)):
            # Mirror images alone: a teacher of photographs sees a turned picture differently.
            sides = [axis for axis in (0, 1) if rng.random() < 0.5]
            if sides:
                images[:, row] = images[:, row].flip([axis + 1 for axis in sides])
                cover[row] = cover[row].flip(sides)
                if tokens is not None:
                    tokens[:, row] = tokens[:, row].flip([axis + 1 for axis in sides])
        if tokens is not None:
            tokens = tokens.flatten(0, 1).flatten(1, 2)
        return images.flatten(0, 1), cover, meta, tokens


class Imitation(nn.Module):
    """Linear maps from the student's tokens, at the end of each quarter of the tower, to the teacher's; training only.

    Args:
        width: of the student.
        teacher: width of the teacher.
        stages: blocks of the teacher that are imitated.
    """

    def __init__(self, width: int, teacher: int = 384, stages: int = 4) -> None:
        super().__init__()
        self.maps = nn.ModuleList(nn.Linear(width, teacher) for _ in range(stages))

    def forward(self, blocks: list[Tensor], tokens: Tensor, cover: Tensor) -> Tensor:
        """Weighted mean squared error, 1 for a student that knows nothing.

        Args:
            blocks: the student's streams ``[2B, 1 + L, W]`` after each block.
            tokens: the teacher's layer-normed tokens ``[2B, L, stages * D]``, one block after the other.
            cover: share of each patch that the defect covers, ``[B, L]``.
        """
        weight = 1 + (TOUCHED - 1) * (cover > 0.05).float().repeat(2, 1)
        weight = weight / weight.sum()
        total = tokens.new_zeros((), dtype=torch.float32)
        count = len(self.maps)
        for i, (linear, target) in enumerate(zip(self.maps, tokens.chunk(count, -1), strict=True)):
            stream = blocks[(i + 1) * len(blocks) // count - 1][:, 1:].float()
            error = linear(F.layer_norm(stream, stream.shape[-1:])) - target.float()
            total = total + (weight * error.square().mean(-1)).sum()
        return total / count
