# Copyright (C) 2026 anomalib-zsclip contributors
# SPDX-License-Identifier: Apache-2.0

"""Make pairs of pictures with what the teacher says of them, for ``train_builtin_clip.py --pairs``.

    python tools/teacher_pairs.py --out runs/pairs --count 9600 --teacher runs/teacher/vit_s_focus.onnx \
        --photographs runs/textures/training

Pairs are written in files of 32, in order; each file is a function of the seed and its number alone, and files that are
there already are not made again. So the command may be stopped and repeated, several may run side by side
(``--part``), and the training may begin while pairs are still being made: it waits where it is faster. The teacher
costs twenty times as much as the drawing: only every third file holds its tokens (``--every``), 1.6 MB a pair at 128 px.
"""

from __future__ import annotations

import argparse
import json
import os
import sys
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from safetensors import safe_open
from safetensors.torch import save_file
from torch import Tensor

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT / "anomalib_zsclip" / "data"))
sys.path.insert(0, str(Path(__file__).resolve().parent))

import cv2  # noqa: E402
import generator as gen  # noqa: E402
from generator.photographs import NAME as PHOTOGRAPH  # noqa: E402
from generator.photographs import photograph_family  # noqa: E402
from teacher import PATCH as TEACHER_PATCH  # noqa: E402
from teacher import Teacher, load_teacher  # noqa: E402

PATCH = 8  # of the student
PER_FILE = 32
#: Sides of the grid of patches and their shares: the student sees 96, 128, 160 and 192 px, the teacher 168 to 336 px. Large
#: pictures cost most (at 192 px five times as much as at 128 px), so they are few.
GRIDS = {12: 0.34, 16: 0.45, 20: 0.14, 24: 0.07}
PHOTOGRAPHS = 0.5  # share of the pairs whose surface is a photograph
MARGIN = 1.25  # pictures are drawn this much larger than the student sees them, so that a crop stays sharp
WEAKEST = 0.1  # strength of the faintest defects

FAMILIES = [name for name, family in gen.FAMILIES.items() if not family.held_out] + [PHOTOGRAPH]
KINDS = [name for name, defect in gen.DEFECTS.items() if not defect.held_out]


@dataclass
class Shard:
    """The pairs of one file.

    Args:
        good: uint8 ``[N, S, S, 3]``.
        bad: the same with a defect.
        cover: share of each patch that the defect covers, uint8 ``[N, S/8, S/8]``.
        meta: positions in :data:`FAMILIES` and :data:`KINDS`, as ``plan.json`` lists them, ``[N, 2]``.
        tokens: the teacher's, good pictures first, half precision ``[2N, L, 4 * 384]``; ``None`` without a teacher.
    """

    good: Tensor
    bad: Tensor
    cover: Tensor
    meta: Tensor
    tokens: Tensor | None


def file_of(folder: Path, number: int) -> Path:
    """Where the file with this number lies."""
    return folder / f"{number:05d}.safetensors"


def grid_of(seed: int, number: int, grids: dict[int, float] = GRIDS) -> int:
    """Side of the grid of patches in this file."""
    rng = np.random.default_rng([seed, 3_000_017, number])
    weights = np.array(list(grids.values()))
    return int(rng.choice(list(grids), p=weights / weights.sum()))


def choose_family(rng: np.random.Generator, photographs: float) -> tuple[str, str]:
    """A family and a kind of defect that it can have, neither of them held out."""
    if rng.random() < photographs:
        family, kind = PHOTOGRAPH, "texture"
    else:
        kind = "texture" if rng.random() < 0.4 else "object"  # textures have the photographs already
        invented = rng.random() < gen.INVENTED_SHARE
        families = [n for n in FAMILIES[:-1] if gen.FAMILIES[n].kind == kind and gen.FAMILIES[n].invented == invented]
        family = families[int(rng.integers(len(families)))]
    fitting = [name for name in KINDS if gen.DEFECTS[name].on in ("any", kind)]
    return family, fitting[int(rng.integers(len(fitting)))]


def crop_box(rng: np.random.Generator, mask: np.ndarray, smallest: int) -> tuple[slice, slice]:
    """The whole picture, or a part of at least ``smallest`` pixels that still shows most of the defect."""
    size = len(mask)
    total = int(mask.sum(dtype=np.int64))
    for _ in range(3 if rng.random() < 0.6 else 0):
        side = int(rng.integers(min(smallest, size - 1), size))
        y, x = (int(n) for n in rng.integers(0, size - side + 1, 2))
        box = slice(y, y + side), slice(x, x + side)
        if 2 * int(mask[box].sum(dtype=np.int64)) > total:
            return box
    return slice(0, size), slice(0, size)


def make_shard(
    seed: int, number: int, teacher: Teacher | None, photographs: float, grids: dict[int, float] = GRIDS
) -> Shard:
    """The pairs of one file, by the seed and its number alone."""
    grid = grid_of(seed, number, grids)
    side, pairs, covers, meta, seen = grid * PATCH, [], [], [], []
    for index in range(PER_FILE):
        rng = np.random.default_rng([seed, number, index])
        family, kind = choose_family(rng, photographs)
        pair = gen.generate_pair(family, kind, round(MARGIN * side), rng, strength=(WEAKEST, 1.0))
        box = crop_box(rng, pair.mask, round(0.8 * side))
        views = [pair.good[box], pair.bad[box]]
        pairs.append([_resize(view, side) for view in views])
        covers.append(cv2.resize(pair.mask[box], (grid, grid), interpolation=cv2.INTER_AREA))
        meta.append((FAMILIES.index(family), KINDS.index(kind)))
        seen.append([_resize(view, grid * TEACHER_PATCH) for view in views] if teacher else views)
    good, bad = (torch.from_numpy(np.stack([p[i] for p in pairs])) for i in (0, 1))
    tokens = None
    if teacher:
        large = torch.from_numpy(np.stack([s[0] for s in seen] + [s[1] for s in seen])).permute(0, 3, 1, 2)
        place = teacher.weights["class"]
        parts = [
            torch.cat(teacher.tokens(part.to(place.device, place.dtype) / 255), -1).half().cpu()
            for part in large.split(8)
        ]
        tokens = torch.cat(parts)
    return Shard(good, bad, torch.from_numpy(np.stack(covers)), torch.tensor(meta), tokens)


def _resize(picture: np.ndarray, side: int) -> np.ndarray:
    method = cv2.INTER_AREA if len(picture) > side else cv2.INTER_CUBIC
    return cv2.resize(picture, (side, side), interpolation=method)


def write_shard(path: Path, shard: Shard) -> None:
    """Write a file in one go, so that a reader never sees half of it."""
    state = {name: value for name, value in vars(shard).items() if value is not None}
    save_file(state, f"{path}.{os.getpid()}")
    os.replace(f"{path}.{os.getpid()}", path)


def read_rows(path: Path, rows: list[int]) -> Shard:
    """Some pairs of a file; the rest of it is not read."""
    with safe_open(str(path), "pt") as file:
        names = set(file.keys())
        parts = {name: file.get_slice(name) for name in names}
        picked = {n: torch.stack([parts[n][r] for r in rows]) for n in ("good", "bad", "cover", "meta")}
        tokens = None
        if "tokens" in names:
            tokens = torch.stack([parts["tokens"][r + o] for o in (0, PER_FILE) for r in rows])
    return Shard(**picked, tokens=tokens)


def write_plan(folder: Path, plan: dict[str, object]) -> None:
    """Note what the files of a folder are made of; another plan needs another folder."""
    path = folder / "plan.json"
    if path.exists() and (before := json.loads(path.read_text(encoding="utf-8"))) != plan:
        msg = f"{folder} holds pairs of another plan, {before}: name another folder than for {plan}."
        raise SystemExit(msg)
    path.write_text(json.dumps(plan) + "\n", encoding="utf-8")


def main() -> None:
    """Command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, required=True, help="folder of the files")
    parser.add_argument("--teacher", type=Path, help="vit_s_focus.onnx; without it the files hold no tokens")
    parser.add_argument(
        "--photographs", type=Path, help="folder of photographs of surfaces; none: procedural pictures only"
    )
    parser.add_argument("--share", type=float, default=PHOTOGRAPHS, help="share of the pairs on photographs")
    parser.add_argument("--count", type=int, required=True, help="pairs, rounded up to whole files of 32")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument(
        "--part", type=int, nargs=2, default=(0, 1), metavar=("I", "N"), help="every N-th file, beginning with I"
    )
    parser.add_argument(
        "--grids", type=int, nargs="+", help="sides of the grid of patches in equal parts; default: 12 to 24"
    )
    parser.add_argument("--every", type=int, default=3, help="every which file holds the teacher's tokens")
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--device", default="cpu")
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    cv2.setNumThreads(1)
    args.out.mkdir(parents=True, exist_ok=True)
    teacher = load_teacher(args.teacher).to(args.device) if args.teacher else None
    if args.photographs:
        gen.FAMILIES[PHOTOGRAPH] = photograph_family(args.photographs)
    grids = dict.fromkeys(args.grids, 1.0) if args.grids else GRIDS
    share = args.share if args.photographs else 0.0
    plan: dict[str, object] = {
        "families": FAMILIES,
        "kinds": KINDS,
        "seed": args.seed,
        "every": args.every if teacher else 0,
        "share": share,
        "grids": [list(g) for g in grids.items()],
    }
    write_plan(args.out, plan)
    for number in range(args.part[0], -(-args.count // PER_FILE), args.part[1]):
        path = file_of(args.out, number)
        if not path.exists():
            asked = teacher if number % args.every == 0 else None
            write_shard(path, make_shard(args.seed, number, asked, share, grids))


if __name__ == "__main__":
    main()
