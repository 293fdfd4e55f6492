"""What several processes found, in one place."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import chain, zip_longest
from pathlib import Path
from typing import Any, TypeVar

from lightning.pytorch import Trainer
from torch import distributed

T = TypeVar("T")


def gather(trainer: Trainer, rows: Sequence[T]) -> list[T] | None:
    """The rows of all processes, in the order of the images; ``None`` in all processes but the first.

    Every process must call it. Images are dealt out to processes one by one, so taking one row of each in turn restores
    their order.
    """
    if trainer.world_size < 2 or not distributed.is_initialized():
        return list(rows)
    found: list[Any] = [None] * trainer.world_size
    distributed.all_gather_object(found, list(rows))
    absent = object()
    dealt = chain.from_iterable(zip_longest(*found, fillvalue=absent))
    return None if trainer.global_rank else [row for row in dealt if row is not absent]


def file_of_process(trainer: Trainer, name: str) -> Path:
    """A file in the folder of results; of processes but the first with their number, as ``regions_rank1.json``."""
    path = Path(trainer.default_root_dir) / name
    rank = trainer.global_rank
    return path.with_name(f"{path.stem}_rank{rank}{path.suffix}") if rank else path
