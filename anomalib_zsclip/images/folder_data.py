"""A folder of images for a prediction: read by our rules, and not stopped by a file that cannot be read."""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import torch
from anomalib.data import ImageBatch, ImageItem, PredictDataset
from torch.utils.data import DataLoader
from torchvision.transforms.v2 import Transform

from anomalib_zsclip.errors import ImageReadError

from .data_files import PREDICT, datasets_of
from .folders import Listing, list_images
from .reading import DEFAULT_RULES, STOP, Note, ReadingRules, read_tensor

logger = logging.getLogger(__name__)

SHOWN = 5
"""Most names in a message."""


class Unreadable(NamedTuple):
    """A file that cannot be read.

    Attributes:
        path: The file.
        reason: Why, in one line.
    """

    path: str
    reason: str


class Outcome(NamedTuple):
    """What reading a file gave: an item, or why there is none."""

    item: ImageItem | None
    unreadable: Unreadable | None
    path: str
    notes: list[Note]


class Delivery(NamedTuple):
    """What a loader's process hands over: a batch of what could be read, and the outcomes without their images."""

    batch: ImageBatch | None
    outcomes: list[Outcome]


class FolderDataset(PredictDataset):
    """The images of a folder, or one image, read by our rules.

    Items are those of anomalib. A :class:`FolderLoader` leaves out what cannot be read and lists it in ``unreadable``.

    Args:
        path: Folder, or file.
        rules: How to read.

    Attributes:
        listing: The images, and what was left out.
        unreadable: Files that could not be read so far.
        judged: Number of images that a loader has handed out so far.
    """

    def __init__(self, path: str | Path | Listing, rules: ReadingRules = DEFAULT_RULES) -> None:
        # Not PredictDataset's own: it lists files by other rules.
        self.listing = path if isinstance(path, Listing) else list_images(path)
        self.rules = rules
        self.transform: Transform | None = None
        self.image_size = (256, 256)
        self.start()

    @classmethod
    def like(cls, dataset: PredictDataset, rules: ReadingRules) -> FolderDataset:
        """The images of a data set of anomalib, read by our rules."""
        files = [Path(file) for file in dataset.image_filenames]
        own = cls(Listing(files[0].parent if files else Path(), files), rules)
        own.transform = dataset.transform
        return own

    def start(self) -> None:
        """Begin a run: nothing has been read."""
        self.unreadable: list[Unreadable] = []
        self.judged = 0
        self._said: set[str] = set()

    @property
    def image_filenames(self) -> list[Path]:  # type: ignore[override]
        """The images."""
        return self.listing.files

    def __getitem__(self, index: int) -> ImageItem:
        """Read an image.

        Raises:
            ImageReadError: If it cannot be read.
        """
        item, notes = self._read(index)
        self._say(str(self.image_filenames[index]), notes)
        return item

    def __getitems__(self, indices: Sequence[int]) -> list[Outcome]:
        """Read images for a batch, whether they can be read or not."""
        return [self._outcome(index) for index in indices]

    @property
    def collate_fn(self) -> Callable[[list[Outcome]], ImageBatch]:
        """For plain loaders, which stop at what cannot be read."""
        return _collate_or_stop

    def note(self, outcomes: Sequence[Outcome]) -> None:
        """Take down what came of reading; what there is to say about files is said once."""
        for outcome in outcomes:
            if outcome.unreadable is None:
                self.judged += 1
            elif self.rules.on_unreadable == STOP:
                raise ImageReadError(self._all_unreadable(outcome.unreadable))
            else:
                self.unreadable.append(outcome.unreadable)
            self._say(outcome.path, outcome.notes)

    def _say(self, path: str, notes: Sequence[Note]) -> None:
        for kind, text in notes:
            if kind not in self._said:
                self._said.add(kind)
                logger.warning("%s %s. There may be more of the kind.", path, text)

    def _read(self, index: int) -> tuple[ImageItem, list[Note]]:
        file = self.image_filenames[index]
        image, notes = read_tensor(file, self.rules)
        if self.transform is not None:
            image = self.transform(image)
        return ImageItem(image=image, image_path=str(file)), notes

    def _outcome(self, index: int) -> Outcome:
        path = str(self.image_filenames[index])
        try:
            item, notes = self._read(index)
        except ImageReadError as error:
            reason = str(error).removeprefix(path).strip().removeprefix("cannot be read: ")
            return Outcome(None, Unreadable(path, reason), path, [])
        return Outcome(item, None, path, notes)

    def _all_unreadable(self, first: Unreadable) -> str:
        bad = [outcome.unreadable for outcome in map(self._outcome, range(len(self))) if outcome.unreadable is not None]
        return f"{describe_unreadable(bad or [first])} Remove or replace them, or give on_unreadable=skip."


class FolderLoader(DataLoader):
    """Batches of the images of a :class:`FolderDataset` that can be read.

    A batch with unreadable images is smaller, and one of nothing else is left out.
    """

    @classmethod
    def of(cls, dataset: FolderDataset, **arguments: Any) -> FolderLoader:  # noqa: ANN401
        """Make a loader; arguments as torch's."""
        return cls(dataset, collate_fn=_deliver, **arguments)

    @classmethod
    def like(cls, loader: DataLoader, dataset: FolderDataset) -> FolderLoader:
        """A loader with the batches and processes of another one."""
        return cls.of(
            dataset,
            batch_size=loader.batch_size or 1,
            sampler=loader.sampler,
            num_workers=loader.num_workers,
            pin_memory=loader.pin_memory and torch.cuda.is_available(),
        )

    def __iter__(self) -> Iterator[ImageBatch]:  # type: ignore[override]
        """Hand out batches, and take down what came of reading."""
        dataset: FolderDataset = self.dataset  # type: ignore[assignment]
        dataset.start()
        for delivery in super().__iter__():
            dataset.note(delivery.outcomes)
            if delivery.batch is not None:
                yield delivery.batch


def unreadable_of(trainer: Any) -> list[Unreadable]:  # noqa: ANN401 - Lightning's trainer
    """Files of the present prediction that could not be read so far, in this process."""
    return [
        unreadable for dataset in datasets_of(trainer, PREDICT) for unreadable in getattr(dataset, "unreadable", [])
    ]


def rules_of(trainer: Any) -> ReadingRules | None:  # noqa: ANN401
    """Rules by which the present prediction reads its images; ``None`` where anomalib reads them."""
    if not getattr(trainer, "predicting", False):
        return None
    found = [getattr(dataset, "rules", None) for dataset in datasets_of(trainer, PREDICT)]
    return found[0] if found else None


def describe_unreadable(files: Sequence[Unreadable]) -> str:
    """One line with the number of files, their names and the reasons."""
    named = ", ".join(f"{file.path} ({file.reason.rstrip('.')})" for file in files[:SHOWN])
    return f"{len(files)} image file(s) cannot be read: {named}{', ...' if len(files) > SHOWN else ''}."


def _deliver(outcomes: list[Outcome]) -> Delivery:
    items = [outcome.item for outcome in outcomes if outcome.item is not None]
    batch: Any = ImageBatch.collate(items) if items else None
    return Delivery(batch, [outcome._replace(item=None) for outcome in outcomes])


def _collate_or_stop(outcomes: list[Outcome]) -> Any:  # noqa: ANN401
    bad = [outcome.unreadable for outcome in outcomes if outcome.unreadable is not None]
    if bad:
        raise ImageReadError(describe_unreadable(bad))
    return ImageBatch.collate([outcome.item for outcome in outcomes if outcome.item is not None])
