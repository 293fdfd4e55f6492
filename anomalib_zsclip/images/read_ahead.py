"""Reading of the images of a prediction: by our rules, and ahead where the ``anomalib`` command predicts a folder."""

from __future__ import annotations

import logging
import math
import shutil

import torch
from anomalib.data import PredictDataset
from lightning.pytorch import Callback, LightningModule, Trainer

from anomalib_zsclip.errors import is_command

from .folder_data import FolderDataset, FolderLoader
from .reading import DEFAULT_RULES
from .resize import PublishedResize

logger = logging.getLogger(__name__)

BATCH_SIZE = 8
"""Most images in a batch: the towers are hardly faster with more."""
WORKERS = 4
"""Most processes that read images."""
SHARED_BYTES = 48_000_000
"""Bytes of images that may always be on their way from these processes: containers have 64 MB of shared memory."""
MOST_SHARED_BYTES = 512_000_000
"""Most of them where there is room, which pictures with many tiles need: the largest take 43 MB each at 192 px."""
SHARED_MEMORY = "/dev/shm"  # noqa: S108 - Linux keeps shared memory there, nothing is written to it here
PREFETCHED = 2
"""Batches that each process keeps ready."""
MANY = 64
"""Images from which on starting a process pays."""


class ReadAhead(Callback):
    """Has the images of a prediction read by our rules; for the command by other processes, in batches, ahead of the model.

    anomalib reads a folder image by image between two passes of the model. Images are resized as soon as they are
    read, so that those of different sizes share a batch and the memory does not depend on their size; the pre-processor
    then finds them at its size, and predictions stay the same. Python code that calls ``Engine.predict`` gets a batch for
    each image as before.
    """

    def setup(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        """Exchange the loaders that anomalib made, before Lightning asks them for their first image."""
        if stage != "predict":
            return
        loaders = trainer.predict_loop._data_source.instance  # Lightning has no public way to them before it uses them
        if not isinstance(loaders, list):
            return
        resize = getattr(pl_module.pre_processor, "resize", None)
        rules = getattr(pl_module, "reading", DEFAULT_RULES)
        for index, loader in enumerate(loaders):
            dataset = getattr(loader, "dataset", None)
            if type(dataset) is PredictDataset:
                dataset = FolderDataset.like(dataset, rules)
            elif not isinstance(dataset, FolderDataset):
                continue  # somebody's own: anomalib's reading
            else:
                logger.info("Found %s", dataset.listing.describe())
            if is_command() and resize is not None and dataset.transform is None:
                dataset.transform = resize
                loaders[index] = _loader(dataset, resize)
            else:
                loaders[index] = FolderLoader.like(loader, dataset)


def _shared_bytes() -> int:
    """Bytes of images that may be on their way at a time: a quarter of the free shared memory, within limits."""
    try:
        free = shutil.disk_usage(SHARED_MEMORY).free
    except OSError:
        return SHARED_BYTES
    return min(max(SHARED_BYTES, free // 4), MOST_SHARED_BYTES)


def _loader(dataset: FolderDataset, resize: PublishedResize) -> FolderLoader:
    image_bytes = 4 * 3 * math.prod(resize.largest)
    most, shared = (BATCH_SIZE, SHARED_BYTES) if resize.is_uniform else (1, _shared_bytes())
    fitting = shared // (PREFETCHED * image_bytes)
    batch_size = max(1, min(most, fitting // WORKERS))
    spare = max(1, torch.get_num_threads() - 1)
    workers = min(WORKERS, spare, fitting // batch_size) if len(dataset) >= MANY else 0
    return FolderLoader.of(
        dataset,
        batch_size=batch_size,
        num_workers=workers,
        prefetch_factor=PREFETCHED if workers else None,
        pin_memory=torch.cuda.is_available(),
    )
