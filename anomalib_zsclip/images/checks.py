"""Checks of image files at the doors where anomalib reads them for us, and of those that a prediction could not read.

anomalib's data modules read images by a plain conversion to RGB: pictures stay as they lie in the file, deep grey is cut at
255, and what hides under transparent pixels is shown. The headers of all files are looked at before the first one is used:
what would be judged wrongly is refused, what could be is said, each in one line.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from types import FrameType
from typing import Any

from lightning.pytorch import Callback, LightningModule, Trainer
from PIL import Image

from anomalib_zsclip.errors import ImageReadError, ZsClipError

from .data_files import PREDICT, TEST, TRAIN, VALIDATE, datasets_of, files_of, image_files, mask_files, masks_of
from .folder_data import FolderDataset, Unreadable, describe_unreadable, unreadable_of
from .normal_images import find_normal_images
from .own_results import is_temporary
from .reading import DEFAULT_RULES, UNREADABLE, Header, ReadingRules, has_hidden_pixels, read_header, reason_of

logger = logging.getLogger(__name__)

READERS = ("PIL", "anomalib.data", "torchvision.io", "torch.utils.data")
"""Packages whose frames show that an exception came out of reading images, and not out of our own arguments."""

WRITERS = ("anomalib_zsclip.outputs.", "anomalib.visualization.")
"""Packages that use the same ones to draw and to write."""

LOOKED_THROUGH = 16
"""Most images with an alpha channel whose pixels are looked at: it takes as long as reading them."""


class UnreadableImages(Callback):
    """Names the files that cannot be read, and those that anomalib would read wrongly.

    At the end of a prediction the last line of the log says how many images were judged, and which were not.
    """

    def __init__(self) -> None:
        self._checked: set[Path] = set()

    def on_fit_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Check the images of the data module that are learned from and validated on."""
        datamodule = getattr(trainer, "datamodule", None)
        self._check(_files_of_module(datamodule, "train_data", "val_data"), pl_module)

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Check those that come without a data module."""
        self._check(image_files(trainer, TRAIN, VALIDATE), pl_module)

    def on_validation_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Check the images that are validated on, and good ones that the thresholds may come from."""
        good = find_normal_images(None, trainer) if getattr(pl_module, "normal_dir", None) is None else None
        self._check([*image_files(trainer, VALIDATE), *(good.files if good is not None else ())], pl_module)

    def on_test_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Check the images that are tested on."""
        self._check(image_files(trainer, TEST), pl_module)

    def on_predict_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Check the images that are not read by our rules."""
        foreign = [data for data in datasets_of(trainer, PREDICT) if not isinstance(data, FolderDataset)]
        if foreign:
            self._check(image_files(trainer, PREDICT), pl_module)

    def on_predict_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """A prediction of which nothing could be read has failed."""
        del pl_module
        bad = unreadable_of(trainer)
        if bad and trainer.world_size == 1 and not _judged(trainer):
            msg = f"None of the images can be read. {describe_unreadable(bad)}"
            raise ImageReadError(msg)

    def teardown(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        """Say what came of a prediction, in the last line of the log."""
        del pl_module
        self._checked = set()
        judged = _judged(trainer) if stage == "predict" else 0
        if not judged:
            return
        bad = unreadable_of(trainer)
        log = logger.warning if bad else logger.info
        failed = f" {describe_unreadable(bad)}" if bad else ""
        where = "" if is_temporary(trainer.default_root_dir) else f"; results in {trainer.default_root_dir}"
        log("%d of %d images judged%s.%s", judged, judged + len(bad), where, failed)

    def on_exception(self, trainer: Trainer, pl_module: LightningModule, exception: BaseException) -> None:
        """Look for the unreadable files of the data sets in use, where the exception comes from reading one."""
        del pl_module
        if not isinstance(exception, UNREADABLE) or isinstance(exception, ZsClipError) or not _is_of_reading(exception):
            return
        doors = (PREDICT, TEST, VALIDATE, TRAIN)
        module = getattr(trainer, "datamodule", None)
        files = [*image_files(trainer, *doors), *_files_of_module(module, "train_data", "val_data", "test_data")]
        masks = [*mask_files(trainer, *doors), *_files_of_module(module, "train_data", "test_data", masks=True)]
        bad = [found for path in dict.fromkeys(files) if (found := _unreadable(path)) is not None]
        bad_masks = [found for path in dict.fromkeys(masks) if (found := _unreadable(path)) is not None]
        if bad or bad_masks:
            parts = [describe_unreadable(bad)] if bad else []
            parts += [describe_unreadable(bad_masks).replace("image file(s)", "mask file(s)")] if bad_masks else []
            msg = f"{' '.join(parts)} Remove or replace them."
            raise ImageReadError(msg) from None

    def _check(self, files: Sequence[Path], pl_module: LightningModule) -> None:
        new = [file for file in dict.fromkeys(files) if file not in self._checked]
        self._checked.update(new)
        check_for_plain_reading(new, getattr(pl_module, "reading", DEFAULT_RULES))


def check_for_plain_reading(files: Sequence[Path], rules: ReadingRules = DEFAULT_RULES) -> None:
    """Check files that anomalib reads for us.

    Raises:
        ImageReadError: If some of them would be judged wrongly: deep grey images; or have too many pixels.
    """
    headers = [(file, header) for file in files if (header := read_header(file)) is not None]
    deep = [file for file, header in headers if header.is_deep]
    if deep:
        msg = (
            f"{len(deep)} image file(s) have one channel of more than 8 bits, which anomalib would read as white: "
            f"{_shown(deep)}. Convert them to 8 bits. Folders that are predicted on, and normal_dir, are read by rules of "
            "this package, which scale them (depth_range)."
        )
        raise ImageReadError(msg)
    _check_pixels(headers, rules)
    _say(headers, lambda header: header.is_turned, "are turned in their EXIF data, and anomalib reads them as they lie. "
         "Masks that were drawn on the upright picture do not fit them: turn the files themselves")  # fmt: skip
    _say(headers, lambda header: header.pages > 1, "have several pages, of which only the first is read")
    transparent = [file for file, header in headers if header.is_transparent][:LOOKED_THROUGH]
    hidden = [file for file in transparent if has_hidden_pixels(file)]
    if hidden:
        logger.warning(
            "%d of %d image(s) with an alpha channel have transparent pixels, and anomalib shows what lies under them: %s. "
            "Fill them in the files.",
            len(hidden),
            len(transparent),
            hidden[0],
        )


def _check_pixels(headers: Sequence[tuple[Path, Header]], rules: ReadingRules) -> None:
    large = [(file, header) for file, header in headers if header.pixels > rules.max_pixels]
    if large:
        file, header = max(large, key=lambda pair: pair[1].pixels)
        msg = (
            f"{len(large)} image file(s) have more than max_pixels={rules.max_pixels} pixels, the largest {file} with "
            f"{header.size[0]} x {header.size[1]}. If you trust them, give max_pixels={header.pixels}."
        )
        raise ImageReadError(msg)
    if rules.max_pixels > DEFAULT_RULES.max_pixels:
        Image.MAX_IMAGE_PIXELS = rules.max_pixels  # anomalib's reader knows no other way


def _say(headers: Sequence[tuple[Path, Header]], is_meant: Callable[[Header], bool], what: str) -> None:
    found = [file for file, header in headers if is_meant(header)]
    if found:
        logger.warning("%d of %d images %s: %s.", len(found), len(headers), what, found[0])


def _judged(trainer: Trainer) -> int:
    return sum(getattr(dataset, "judged", 0) for dataset in datasets_of(trainer, PREDICT))


def _files_of_module(datamodule: Any, *names: str, masks: bool = False) -> list[Path]:  # noqa: ANN401
    """Files of parts of a data module."""
    found: list[Path] = []
    for name in names:
        data = getattr(datamodule, name, None)
        if data is not None and hasattr(data, "samples"):
            found.extend(masks_of(data) if masks else files_of(data))
    return found


def _is_of_reading(exception: BaseException) -> bool:
    """Whether an exception was raised while images were read, and not while results were drawn or written."""
    modules = [f"{frame.f_globals.get('__name__', '')}." for frame in _frames(exception)]
    if any(module.startswith(WRITERS) for module in modules):
        return False
    return any(module.startswith(f"{reader}.") for module in modules for reader in READERS)


def _frames(exception: BaseException) -> Iterator[FrameType]:
    trace = exception.__traceback__
    while trace is not None:
        yield trace.tb_frame
        trace = trace.tb_next


def _shown(paths: Sequence[Path]) -> str:
    return ", ".join(str(path) for path in paths[:5]) + (", ..." if len(paths) > 5 else "")


def _unreadable(path: Path) -> Unreadable | None:
    """Why anomalib's reader stumbles over a file; ``None`` where it does not."""
    try:
        with Image.open(path) as image:
            image.convert("RGB")
    except UNREADABLE as error:
        return Unreadable(str(path), reason_of(error))
    return None
