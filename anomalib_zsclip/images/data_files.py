"""Which image files the loaders of a trainer will read."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

from pandas import DataFrame
from torch.utils.data import ConcatDataset, Subset

PREDICT, TEST, VALIDATE, TRAIN = "predict_dataloaders", "test_dataloaders", "val_dataloaders", "train_dataloader"
"""Attributes of Lightning's trainer that hold its loaders."""


def image_files(trainer: Any, *loaders: str) -> list[Path]:  # noqa: ANN401 - Lightning's trainer
    """Image files of a trainer's loaders, each once, in their order; none where a data set does not name its files.

    Args:
        trainer: The trainer, once it has made its loaders.
        *loaders: Which ones: some of :data:`PREDICT`, :data:`TEST`, :data:`VALIDATE`, :data:`TRAIN`.
    """
    found = (path for dataset in datasets_of(trainer, *loaders) for path in files_of(dataset))
    return list(dict.fromkeys(found))


def datasets_of(trainer: Any, *loaders: str) -> list[Any]:  # noqa: ANN401
    """Data sets of a trainer's loaders."""
    datasets = []
    for name in loaders:
        found = getattr(trainer, name, None)
        for loader in found if isinstance(found, (list, tuple)) else [found]:
            dataset = getattr(loader, "dataset", None)
            if dataset is not None:
                datasets.append(dataset)
    return datasets


def files_of(dataset: Any) -> Iterator[Path]:  # noqa: ANN401 - anomalib's, or any other
    """Image files of a data set that names them as those of anomalib do, or that consists of such."""
    if isinstance(dataset, ConcatDataset):
        for part in dataset.datasets:
            yield from files_of(part)
        return
    if isinstance(dataset, Subset):
        files = list(files_of(dataset.dataset))
        yield from (files[index] for index in dataset.indices if files)
        return
    samples = getattr(dataset, "samples", None)
    names = samples["image_path"] if isinstance(samples, DataFrame) else getattr(dataset, "image_filenames", [])
    yield from (Path(name) for name in names)
