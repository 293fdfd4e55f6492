"""Tokens of auxiliary images, kept between the epochs of learning: in memory, or in a file where they are many."""

from __future__ import annotations

import logging
import shutil
import tempfile
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import IO

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import Dataset

from anomalib_zsclip.errors import ArgumentError

logger = logging.getLogger(__name__)

GIGABYTE = 2**30


@dataclass
class TokenBatch:
    """What a head learns from, for a batch of images.

    Attributes:
        inputs: What :meth:`LearnableHead.learning_inputs` gave, batch first.
        labels: 1 for anomalous images. Shape ``[B]``.
        masks: Ground truth, boolean. Shape ``[B, H, W]``. ``None`` where the auxiliary data has none.
        image: Always ``None``; it and ``gt_mask`` are here because anomalib's pre-processor transforms both of every
            training batch.
        gt_mask: Always ``None``.
    """

    inputs: dict[str, Tensor]
    labels: Tensor
    masks: Tensor | None = None
    image: None = field(default=None, init=False)
    gt_mask: None = field(default=None, init=False)

    def columns(self) -> dict[str, Tensor]:
        """All tensors under one name each."""
        columns = {f"inputs.{name}": values for name, values in self.inputs.items()}
        columns["labels"] = self.labels
        if self.masks is not None:
            columns["masks"] = self.masks
        return columns

    @classmethod
    def from_columns(cls, columns: dict[str, Tensor]) -> TokenBatch:
        """Undo :meth:`columns`."""
        inputs = {name.removeprefix("inputs."): values for name, values in columns.items() if "." in name}
        return cls(inputs, columns["labels"], columns.get("masks"))


class TokenCache(Dataset):
    """Tensors per image, exact to the bit: in memory, or in a memory-mapped file where they exceed the budget.

    The file has no name that another run could find, and the operating system removes it with the process, whichever
    way that ends.

    Args:
        batches: Batches of all images in their order. Read once.
        images: Number of images.
        budget: Bytes of memory that the tensors may take.
        folder: Where the file is made if they need more.

    Raises:
        ArgumentError: If the images differ in size, or the disk has too little room.
    """

    def __init__(self, batches: Iterable[TokenBatch], images: int, budget: float, folder: str | Path) -> None:
        self._columns: dict[str, _Column] = {}
        for batch in batches:
            columns = {name: values.detach().cpu() for name, values in batch.columns().items()}
            if not self._columns:
                self._columns = _make_columns(columns, images, budget, Path(folder))
            for name, values in columns.items():
                self._columns[name].append(values)
        self._tensors = {name: column.finish() for name, column in self._columns.items()}
        filled = {len(values) for values in self._tensors.values()}
        if filled != {images}:
            msg = f"images={images}, but batches held {sorted(filled)} of them."
            raise ArgumentError(msg)

    @property
    def is_on_disk(self) -> bool:
        """Whether the tensors are in a memory-mapped file."""
        return any(isinstance(column, _FileColumn) for column in self._columns.values())

    def __len__(self) -> int:
        """Return the number of images."""
        return len(self._tensors["labels"])

    def __getitem__(self, index: int) -> dict[str, Tensor]:
        """Tensors of one image."""
        return {name: values[index] for name, values in self._tensors.items()}

    @staticmethod
    def collate_fn(items: Sequence[dict[str, Tensor]]) -> TokenBatch:
        """Make a batch."""
        return TokenBatch.from_columns({name: torch.stack([item[name] for item in items]) for name in items[0]})


class _Column:
    """One tensor per image in memory."""

    def __init__(self, sample: Tensor, images: int) -> None:
        self._shape = sample.shape
        self._values = torch.empty(images, *sample.shape, dtype=sample.dtype)
        self._filled = 0

    def append(self, values: Tensor) -> None:
        if values.shape[1:] != self._shape:
            msg = (
                f"The auxiliary images differ in size: tensors of the shapes {list(self._shape)} and "
                f"{list(values.shape[1:])}. Let the pre-processor resize them all to one size."
            )
            raise ArgumentError(msg)
        self._write(values)
        self._filled += len(values)

    def _write(self, values: Tensor) -> None:
        self._values[self._filled : self._filled + len(values)] = values

    def finish(self) -> Tensor:
        return self._values[: self._filled]


class _FileColumn(_Column):
    """One tensor per image in a nameless file."""

    def __init__(self, sample: Tensor, folder: Path) -> None:
        self._shape = sample.shape
        self._dtype = sample.dtype
        # Written as a file and mapped afterwards: a full disk is then an error instead of a crash.
        self._file: IO[bytes] = tempfile.TemporaryFile(dir=folder)  # noqa: SIM115 - lives as long as the mapping
        self._filled = 0

    def _write(self, values: Tensor) -> None:
        self._file.write(values.contiguous().view(torch.uint8).numpy().data)

    def finish(self) -> Tensor:
        self._file.flush()
        # Copy on write: torch wants writable memory, and the file must not change.
        mapped = np.memmap(self._file, dtype=np.uint8, mode="c")
        return torch.from_numpy(mapped).view(self._dtype).view(-1, *self._shape)


def _make_columns(batch: dict[str, Tensor], images: int, budget: float, folder: Path) -> dict[str, _Column]:
    needed = images * sum(values[0].nbytes for values in batch.values())
    if needed <= budget:
        return {name: _Column(values[0], images) for name, values in batch.items()}
    folder.mkdir(parents=True, exist_ok=True)
    free = shutil.disk_usage(folder).free
    if needed >= free:
        msg = (
            f"The token cache of {images} images needs {needed / GIGABYTE:.2f} GB: more than cache_budget_gb="
            f"{budget / GIGABYTE:.2f} and than the {free / GIGABYTE:.2f} GB that are free in {folder}. Raise the "
            "budget if the memory is there, make room, or pass token_cache=False (slower: the tower then runs in "
            "every epoch)."
        )
        raise ArgumentError(msg)
    logger.info("The token cache takes %.2f GB: it is kept in a file in %s.", needed / GIGABYTE, folder)
    return {name: _FileColumn(values[0], folder) for name, values in batch.items()}
