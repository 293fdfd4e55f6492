"""Checks of image files where anomalib reads them for us: unreadable ones are named, and those it would read wrongly."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path
from types import FrameType
from typing import Any

from lightning.pytorch import Callback, LightningModule, Trainer
from PIL import Image

from anomalib_zsclip.errors import ImageReadError, ZsClipError

UNREADABLE = (OSError, ValueError, SyntaxError, Image.DecompressionBombError)
"""What Pillow raises for images that it cannot read."""

READERS = ("PIL", "anomalib.data", "torchvision.io", "torch.utils.data")
"""Packages whose frames show that an exception came out of reading images, and not out of our own arguments."""


class UnreadableImages(Callback):
    """Names the files where a data loader stumbles over an image that cannot be read, or would read it wrongly."""

    def on_test_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Refuse images whose values anomalib's reader would cut off at 255."""
        del pl_module
        deep = [path for path in _image_paths(trainer) if _is_deep(path)]
        if deep:
            msg = (
                f"{len(deep)} image file(s) have one channel of more than 8 bits, which would be read as white: "
                f"{_shown(deep)}. Convert them to 8 bits."
            )
            raise ImageReadError(msg)

    def on_predict_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """As for a test."""
        self.on_test_start(trainer, pl_module)

    def on_exception(self, trainer: Trainer, pl_module: LightningModule, exception: BaseException) -> None:
        """Look for the unreadable files of the data sets in use, where the exception comes from reading one."""
        del pl_module
        if not isinstance(exception, UNREADABLE) or isinstance(exception, ZsClipError) or not _is_of_reading(exception):
            return
        bad = [path for path in _image_paths(trainer) if not _is_readable(path)]
        if bad:
            msg = f"{len(bad)} image file(s) cannot be read: {_shown(bad)}. Remove or replace them."
            raise ImageReadError(msg) from None


def _is_of_reading(exception: BaseException) -> bool:
    """Whether an exception was raised while images were read."""
    return any(
        name == reader or name.startswith(f"{reader}.")
        for frame in _frames(exception)
        for name in (str(frame.f_globals.get("__name__", "")),)
        for reader in READERS
    )


def _frames(exception: BaseException) -> Iterator[FrameType]:
    trace = exception.__traceback__
    while trace is not None:
        yield trace.tb_frame
        trace = trace.tb_next


def _shown(paths: Sequence[Path]) -> str:
    return ", ".join(str(path) for path in paths[:5]) + (", ..." if len(paths) > 5 else "")


def _image_paths(trainer: Trainer) -> list[Path]:
    loaders: list[Any] = []
    for name in ("predict_dataloaders", "test_dataloaders", "val_dataloaders", "train_dataloader"):
        found = getattr(trainer, name, None)
        loaders.extend(found if isinstance(found, (list, tuple)) else [found])
    paths: list[Path] = []
    for dataset in (getattr(loader, "dataset", None) for loader in loaders):
        samples = getattr(dataset, "samples", None)
        files = samples["image_path"] if samples is not None else getattr(dataset, "image_filenames", [])
        paths.extend(Path(file) for file in files)
    return list(dict.fromkeys(paths))


def _is_readable(path: Path) -> bool:
    try:
        with Image.open(path) as image:
            image.convert("RGB")
    except UNREADABLE:
        return False
    return True


def _is_deep(path: Path) -> bool:
    """Whether Pillow keeps the image in a mode whose conversion to RGB cuts off at 255: 16 or 32 bits of grey."""
    try:
        with Image.open(path) as image:
            return image.mode.startswith(("I", "F"))
    except UNREADABLE:
        return False
