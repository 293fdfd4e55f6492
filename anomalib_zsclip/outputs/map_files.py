"""Anomaly maps as files: one float32 TIFF per image, as MVTec's evaluation programs read them."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import cv2
import numpy as np
from lightning.pytorch import Callback, LightningModule, Trainer
from PIL import Image

from anomalib_zsclip.errors import ImageReadError
from anomalib_zsclip.images.folder_data import rules_of
from anomalib_zsclip.images.reading import size_of

from .batches import per_image
from .paths import ResultPaths


class MapFiles(Callback):
    """Writes the map of every image, at the image's own size, to ``anomaly_maps`` in the trainer's root folder.

    Folders below are those of the images (see :mod:`~anomalib_zsclip.outputs.paths`): below the root of a data module
    (``bottle/test/broken_large/000.tiff`` for MVTec AD), or below the folder that all images of a run share. Values are
    those of the maps in pictures and predictions, 0.5 at the threshold. Images that come without a file have no map file.
    """

    def __init__(self) -> None:
        self._paths: ResultPaths | None = None

    def on_test_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Forget the places of another run."""
        del trainer, pl_module
        self._paths = None

    def on_predict_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Forget the places of another run."""
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
        if batch.image_path is None or batch.anomaly_map is None:
            return
        maps = batch.anomaly_map.detach().float().cpu().numpy()
        if self._paths is None:
            self._paths = ResultPaths.of(trainer)
            self._paths.check("map")
        upright = rules_of(trainer) is not None
        files = per_image(batch, "image_path")
        for (file,), anomaly_map in zip(files, maps.reshape(-1, *maps.shape[-2:]), strict=True):
            target = self._paths.anomaly_map(file)
            target.parent.mkdir(parents=True, exist_ok=True)
            Image.fromarray(at_own_size(anomaly_map, file, upright=upright)).save(target, format="TIFF")


def at_own_size(anomaly_map: np.ndarray, file: str | Path, *, upright: bool = False) -> np.ndarray:
    """A map ``[h, w]`` resized, bilinearly, to the size of the picture in a file; float32.

    Args:
        anomaly_map: The map.
        file: The picture.
        upright: Whether the picture was turned upright before it was judged.

    Raises:
        ImageReadError: If the file has gone or is no picture any more.
    """
    try:
        size = size_of(file, upright=upright)
    except OSError as error:
        msg = f"The size of {file} cannot be read, which its anomaly map shall have: {error}."
        raise ImageReadError(msg) from error
    return cv2.resize(np.ascontiguousarray(anomaly_map, dtype=np.float32), size, interpolation=cv2.INTER_LINEAR)
