"""Normal images that are at hand: a folder of good parts, or the training images of a data module."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any

import torch
from lightning.pytorch import Trainer
from torch import Tensor
from torchvision.transforms.v2 import Transform

from anomalib_zsclip.errors import ArgumentError, ImageReadError

from .folder_data import FolderDataset
from .folders import list_images
from .reading import DEFAULT_RULES, UNREADABLE, ReadingRules, read_header, reason_of


@dataclass(frozen=True)
class NormalImages:
    """Images of good parts, in the order in which their files lie.

    Attributes:
        dataset: What reads them; its items have ``image``, ``[3, H, W]`` in [0, 1].
        files: Their files.
        origin: Where they come from, in words.
    """

    dataset: Any
    files: tuple[Path, ...]
    origin: str

    def __len__(self) -> int:
        """Return the number of images."""
        return len(self.files)

    def pick(self, count: int, seed: int = 0) -> list[int]:
        """``count`` different indices in random order, the same for the same seed and the same number of images."""
        return torch.randperm(len(self), generator=torch.Generator().manual_seed(seed))[:count].tolist()

    def identity(self, indices: Sequence[int]) -> str:
        """Hash that tells these images from others: names and sizes of all files, contents of those of ``indices``.

        The folder that they lie in does not count: the same parts elsewhere are the same parts.
        """
        digest = hashlib.sha256()
        for file in self.files:
            digest.update(f"{file.name}|{_stat(file)[0]}|".encode("utf-8", "surrogateescape"))
        for index in indices:
            digest.update(_content(str(self.files[index]), *_stat(self.files[index])))
        return digest.hexdigest()[:32]

    def batches(
        self, indices: Sequence[int], transform: Transform | None, device: torch.device, batch_size: int = 8
    ) -> Iterator[Tensor]:
        """Pre-processed images ``[b, 3, H, W]`` of ``indices``.

        Raises:
            ImageReadError: If one of them cannot be read.
        """
        if not isinstance(self.dataset, FolderDataset):
            self._refuse_deep(indices)
        for start in range(0, len(indices), batch_size):
            images = [self._read(index) for index in indices[start : start + batch_size]]
            yield torch.stack([transform(image) if transform else image for image in images]).to(device)

    def _refuse_deep(self, indices: Sequence[int]) -> None:
        for index in indices:
            header = read_header(self.files[index])
            if header is not None and header.is_deep:
                msg = (
                    f"{self.files[index]}, one of {self.origin}, has one channel of more than 8 bits, which anomalib would "
                    "read as white. Convert the images to 8 bits, or give normal_dir=<their folder>, which is read by rules "
                    "of this package (depth_range)."
                )
                raise ImageReadError(msg)

    def _read(self, index: int) -> Tensor:
        try:
            return self.dataset[index].image
        except UNREADABLE as error:
            reason = str(error) if isinstance(error, ImageReadError) else f"{self.files[index]}: {reason_of(error)}"
            msg = f"One of {self.origin} cannot be used: {reason} Remove or replace it."
            raise ImageReadError(msg) from error


def _stat(file: Path) -> tuple[int, int]:
    """Size of a file and when it was changed; of one that is gone -1: who reads it says so by its name."""
    try:
        stat = file.stat()
    except OSError:
        return -1, 0
    return stat.st_size, stat.st_mtime_ns


@lru_cache(maxsize=4096)
def _content(path: str, size: int, changed: int) -> bytes:
    """Hash of a file's content, computed once as long as its size and time of change stay; empty where it cannot be read."""
    if size < 0:
        return b""
    del changed
    return hashlib.sha256(Path(path).read_bytes()).digest()


def find_normal_images(
    normal_dir: str | Path | None, trainer: Trainer | None, rules: ReadingRules = DEFAULT_RULES
) -> NormalImages | None:
    """The images of ``normal_dir``, else the training images of the trainer's data module if all of them are normal.

    Those of ``normal_dir`` are read by ``rules``, those of a data module by anomalib.

    Raises:
        ArgumentError: If ``normal_dir`` is no folder with images.
    """
    if normal_dir is not None:
        return images_of_folder(Path(normal_dir).expanduser(), "normal_dir", rules)
    datamodule = getattr(trainer, "datamodule", None)
    data = getattr(datamodule, "train_data", None)
    samples = getattr(data, "samples", None)
    if samples is None or not len(samples) or samples["label_index"].to_numpy().any():
        return None
    files = tuple(Path(path) for path in samples["image_path"])
    return NormalImages(data, files, f"the training images of {type(datamodule).__name__}")


def images_of_folder(folder: Path, argument: str, rules: ReadingRules = DEFAULT_RULES) -> NormalImages:
    """All images of a folder that an argument names, read by our rules.

    Raises:
        ArgumentError: If it is no folder, or has no images.
    """
    if not folder.is_dir():
        msg = f"{argument}={str(folder)!r} is not a folder."
        raise ArgumentError(msg)
    dataset = FolderDataset(list_images(folder, argument), rules)
    return NormalImages(dataset, tuple(dataset.image_filenames), f"{argument}={str(folder)!r}")
