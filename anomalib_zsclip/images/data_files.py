"""Which files the loaders of a trainer will read."""

from __future__ import annotations

from collections.abc import Callable, Iterator
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
    return list(dict.fromkeys(path for dataset in datasets_of(trainer, *loaders) for path in files_of(dataset)))


def mask_files(trainer: Any, *loaders: str) -> list[Path]:  # noqa: ANN401
    """Mask files of a trainer's loaders, each once."""
    return list(dict.fromkeys(path for dataset in datasets_of(trainer, *loaders) for path in masks_of(dataset)))


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
    return _named(dataset, lambda data: _column(data, "image_path") or getattr(data, "image_filenames", []))


def masks_of(dataset: Any) -> Iterator[Path]:  # noqa: ANN401
    """Mask files of such a data set."""
    return (path for path in _named(dataset, lambda data: _column(data, "mask_path")) if path.name)


def _named(dataset: Any, names_of: Callable[[Any], Any]) -> Iterator[Path]:  # noqa: ANN401
    if isinstance(dataset, ConcatDataset):
        for part in dataset.datasets:
            yield from _named(part, names_of)
    elif isinstance(dataset, Subset):
        files = list(_named(dataset.dataset, names_of))
        yield from (files[index] for index in dataset.indices if files)
    else:
        yield from (Path(name) for name in names_of(dataset))


def _column(dataset: Any, name: str) -> list[str]:  # noqa: ANN401
    samples = getattr(dataset, "samples", None)
    if not isinstance(samples, DataFrame) or name not in samples:
        return []
    return [str(value) if isinstance(value, (str, Path)) else "" for value in samples[name]]
