"""Anomaly maps as files: one float32 TIFF per image, as MVTec's evaluation programs read them."""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import cv2
import numpy as np
from lightning.pytorch import Callback, LightningModule, Trainer
from PIL import Image

from anomalib_zsclip.errors import ImageReadError

FOLDER = "anomaly_maps"


class MapFiles(Callback):
    """Writes the map of every image, at the image's own size, to ``anomaly_maps`` in the trainer's root folder.

    Folders below are those of the images: below the root of a data module (``bottle/test/broken_large/000.tiff`` for MVTec
    AD), or below the folder that all images of a prediction share. Values are those of the maps in pictures and predictions,
    0.5 at the threshold. Images that come without a file have no map file.
    """

    def __init__(self) -> None:
        self._written: dict[Path, Path] = {}

    def on_test_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Forget the files of another run."""
        del trainer, pl_module
        self._written = {}

    def on_predict_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Forget the files of another run."""
        self.on_test_start(trainer, pl_module)

    def on_test_batch_end(self, trainer: Trainer, pl_module: LightningModule, outputs: Any, *args: object) -> None:  # noqa: ANN401
        """Write the maps of a batch, after the post-processor."""
        del pl_module, args
        self._write(trainer, outputs)

    def on_predict_batch_end(self, trainer: Trainer, pl_module: LightningModule, outputs: Any, *args: object) -> None:  # noqa: ANN401
        """Write the maps of a batch, after the post-processor."""
        del pl_module, args
        self._write(trainer, outputs)

    def _write(self, trainer: Trainer, batch: Any) -> None:  # noqa: ANN401
        paths = batch.image_path
        if paths is None or batch.anomaly_map is None:
            return
        files = [Path(path) for path in ([paths] if isinstance(paths, (str, Path)) else paths)]
        maps = batch.anomaly_map.detach().float().cpu().numpy()
        root = _root(trainer, files)
        for file, anomaly_map in zip(files, maps.reshape(-1, *maps.shape[-2:]), strict=True):
            target = self._target(Path(trainer.default_root_dir) / FOLDER, root, file)
            target.parent.mkdir(parents=True, exist_ok=True)
            Image.fromarray(at_own_size(anomaly_map, file)).save(target, format="TIFF")

    def _target(self, folder: Path, root: Path, file: Path) -> Path:
        """Where the map of an image goes; images that differ in their ending alone keep it."""
        place = _absolute(file)
        below = place.relative_to(root) if place.is_relative_to(root) else Path(place.parent.name) / place.name
        target = folder / below.with_suffix(".tiff")
        if self._written.setdefault(target, place) != place:
            target = folder / below.with_name(f"{below.name}.tiff")
            self._written[target] = place
        return target


def at_own_size(anomaly_map: np.ndarray, file: Path) -> np.ndarray:
    """A map ``[h, w]`` resized, bilinearly, to the size of the picture in a file; float32.

    Raises:
        ImageReadError: If the file has gone or is no picture any more.
    """
    try:
        with Image.open(file) as picture:
            size = picture.size
    except OSError as error:
        msg = f"The size of {file} cannot be read, which its anomaly map shall have: {error}."
        raise ImageReadError(msg) from error
    return cv2.resize(np.ascontiguousarray(anomaly_map, dtype=np.float32), size, interpolation=cv2.INTER_LINEAR)


def _root(trainer: Trainer, files: Sequence[Path]) -> Path:
    """Folder below which the structure of the images is kept."""
    root = getattr(getattr(trainer, "datamodule", None), "root", None)
    if root:
        return _absolute(Path(root))
    loaders = getattr(trainer, "predict_dataloaders", None)
    for loader in loaders if isinstance(loaders, (list, tuple)) else [loaders]:
        names = getattr(getattr(loader, "dataset", None), "image_filenames", None)
        if names:
            return Path(os.path.commonpath([_absolute(Path(name)).parent for name in names]))
    return Path(os.path.commonpath([_absolute(file).parent for file in files]))


def _absolute(path: Path) -> Path:
    # Not resolved: links stay where the user put them.
    return Path(os.path.abspath(path.expanduser()))
