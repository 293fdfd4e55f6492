"""Normal images that are at hand: a folder of good parts, or the training images of a data module."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
from anomalib.data import PredictDataset
from lightning.pytorch import Trainer
from torch import Tensor
from torchvision.transforms.v2 import Transform

from anomalib_zsclip.errors import ArgumentError


def find_normal_images(normal_dir: str | Path | None, trainer: Trainer | None) -> Any:  # noqa: ANN401
    """The images of ``normal_dir``, else the training images of the data module if all of them are normal.

    Returns:
        A data set whose items have ``image``, or ``None`` if there are no normal images.

    Raises:
        ArgumentError: If ``normal_dir`` is no folder with images.
    """
    if normal_dir is not None:
        if not Path(normal_dir).expanduser().is_dir():
            msg = f"normal_dir={str(normal_dir)!r} is not a folder."
            raise ArgumentError(msg)
        try:
            dataset = PredictDataset(Path(normal_dir).expanduser())
        except (ValueError, FileNotFoundError):
            dataset = None
        if dataset is None or not len(dataset):
            msg = f"normal_dir={str(normal_dir)!r} holds no images."
            raise ArgumentError(msg)
        return dataset
    data = getattr(getattr(trainer, "datamodule", None), "train_data", None)
    samples = getattr(data, "samples", None)
    if samples is None or not len(samples) or samples["label_index"].to_numpy().any():
        return None
    return data


def pick(count: int, of: int, seed: int = 0) -> list[int]:
    """``count`` different indices below ``of``, in random order, the same for the same seed."""
    return torch.randperm(of, generator=torch.Generator().manual_seed(seed))[:count].tolist()


def load_batches(
    dataset: Any,  # noqa: ANN401
    indices: list[int],
    transform: Transform | None,
    device: torch.device,
    batch_size: int = 8,
) -> Iterator[Tensor]:
    """Pre-processed images ``[b, 3, H, W]`` of a data set."""
    for start in range(0, len(indices), batch_size):
        images = [dataset[index].image for index in indices[start : start + batch_size]]
        yield torch.stack([transform(image) if transform else image for image in images]).to(device)
