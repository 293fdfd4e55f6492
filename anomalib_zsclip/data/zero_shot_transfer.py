"""Learn on labelled auxiliary data, test on another data set: the protocol of the zero-shot papers."""

from __future__ import annotations

import copy
import hashlib
import importlib
import logging
from collections import defaultdict
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import torch
from anomalib import TaskType
from anomalib.data import AnomalibDataModule, AnomalibDataset, ImageItem
from anomalib.data.utils import TestSplitMode, ValSplitMode
from lightning.pytorch.utilities.types import EVAL_DATALOADERS
from torch.utils.data import DataLoader, Sampler
from torchvision.transforms.v2.functional import InterpolationMode, resize
from torchvision.tv_tensors import Mask

from anomalib_zsclip.errors import ArgumentError, ImageReadError, check_flag, check_whole_number
from anomalib_zsclip.images.reading import UNREADABLE
from anomalib_zsclip.learning import TokenCache

logger = logging.getLogger(__name__)


class ZeroShotTransfer(AnomalibDataModule):
    """Train on the labelled test splits of auxiliary data modules; validate and test on a target data module.

    Name, category and evaluation splits are those of the target. The auxiliary modules' own batch sizes, augmentations
    and validation splits are not used: all of their labelled test images are trained on.

    Args:
        auxiliary: Data module, or several, to learn from.
        target: Data module to validate and test on.
        all_categories: Learn from all categories of each auxiliary module, as the papers learn from whole data sets:
            those on the disk, or where there are none, those that the data set is published with. If ``False``, from
            the category alone that each module names.
        allow_overlap: Accept images or categories that auxiliary and target share. The result is not zero-shot then.
        train_batch_size: Images per training batch. Defaults to ``8``, as in CLIP-AD and AnomalyCLIP.
        eval_batch_size: Images per validation and test batch.
        num_workers: Processes that decode images.
        seed: Seed of the shuffling, which depends on it and the epoch alone, so that an interrupted run continues as if
            it had not been interrupted. Default: the seed that was set for torch.

    Example:
        >>> from anomalib.data import MVTecAD, Visa
        >>> datamodule = ZeroShotTransfer(auxiliary=Visa(), target=MVTecAD(category="bottle"))
    """

    def __init__(
        self,
        auxiliary: AnomalibDataModule | list[AnomalibDataModule],
        target: AnomalibDataModule,
        all_categories: bool = True,
        allow_overlap: bool = False,
        train_batch_size: int = 8,
        eval_batch_size: int = 32,
        num_workers: int = 8,
        seed: int | None = None,
    ) -> None:
        self.auxiliary = list(auxiliary) if isinstance(auxiliary, Sequence) else [auxiliary]
        if not self.auxiliary:
            msg = "auxiliary=[] names no data module to learn from: give one or several."
            raise ArgumentError(msg)
        for name, module in (("target", target), *(("auxiliary", module) for module in self.auxiliary)):
            if not isinstance(module, AnomalibDataModule):
                msg = f"{name}={module!r} must be a data module, such as MVTecAD(category='bottle')."
                raise ArgumentError(msg)
        check_flag("all_categories", all_categories)
        check_flag("allow_overlap", allow_overlap)
        if seed is not None:
            check_whole_number("seed", seed, 0)
        super().__init__(
            train_batch_size=train_batch_size,
            eval_batch_size=eval_batch_size,
            num_workers=num_workers,
            val_augmentations=target.val_augmentations,
            test_augmentations=target.test_augmentations,
            seed=seed,
        )
        self.target = target
        self.category = target.category
        self.all_categories = all_categories
        self.allow_overlap = allow_overlap
        self._description: list[dict[str, Any]] = []
        self._class_names: dict[str, str] = {}

    @property
    def name(self) -> str:  # type: ignore[override]
        """Name of the target, under which the engine keeps results."""
        return self.target.name

    @property
    def auxiliary_description(self) -> list[dict[str, Any]]:
        """Plain data on what is trained on: ``name``, ``category`` and number of ``images`` of each part."""
        return self._description

    def class_name_of(self, image_path: str) -> str:
        """What an image shows: the category of its data set as it is written, ``"object"`` where it has none."""
        return self._class_names.get(str(image_path), self.category) or "object"

    def prepare_data(self) -> None:
        """Download or make what is not there."""
        for module in self.auxiliary:
            for part in self._parts_of(module):
                part.prepare_data()
        self.target.prepare_data()

    def _setup(self, _stage: str | None = None) -> None:
        modules = [part for module in self.auxiliary for part in self._parts_of(module)]
        data = AuxiliaryDataset([_labelled_data(module) for module in modules])
        self.target.setup(_stage)
        if not self.allow_overlap:
            self._refuse_overlap(modules, data)
        self._class_names = {}
        self._description = []
        for module, part in zip(modules, data.parts, strict=True):
            self._class_names |= {str(path): module.category for path in part.samples.image_path}
            self._description.append({"name": module.name, "category": module.category, "images": len(part)})
        names = ", ".join(f"{part['name']}/{part['category']} ({part['images']})" for part in self._description)
        logger.info("Auxiliary images to learn from: %d, of %s.", len(data), names)
        self.train_data = data
        self.test_data = self.target.test_data
        if hasattr(self.target, "val_data"):
            self.val_data = self.target.val_data

    def _create_test_split(self) -> None:
        """Nothing to do: the target has split its data."""

    def _create_val_split(self) -> None:
        """Nothing to do: the target has split its data."""

    def train_dataloader(self) -> DataLoader:
        """Batches of auxiliary images, or of their tokens, in an order that depends on seed and epoch alone."""
        return DataLoader(
            self.train_data,
            batch_size=self.train_batch_size,
            sampler=EpochSampler(len(self.train_data), torch.initial_seed() if self.seed is None else self.seed),
            # Reading tokens takes no time: processes for it would only copy them once more.
            num_workers=0 if isinstance(self.train_data, TokenCache) else self.num_workers,
            collate_fn=self.external_collate_fn or self.train_data.collate_fn,
        )

    def val_dataloader(self) -> EVAL_DATALOADERS:
        """Batches of the target's validation images; none where it has no such images."""
        return super().val_dataloader() if hasattr(self, "val_data") else []

    def _parts_of(self, module: AnomalibDataModule) -> Iterator[AnomalibDataModule]:
        categories = [module.category]
        if self.all_categories:
            categories = _categories_on_disk(module) or _published_categories(module) or categories
        for category in categories:
            # A shallow copy: setting it up leaves the given module as it is.
            part = copy.copy(module)
            if category != module.category:
                part.category = category
            yield part

    def _refuse_overlap(self, modules: Sequence[AnomalibDataModule], data: AuxiliaryDataset) -> None:
        place = _place(self.target)
        same = [module for module in modules if place is not None and place == _place(module)]
        shared = [f"the category {module.category!r} of {module.name}" for module in same]
        if not shared:
            target_data = [getattr(self.target, f"{name}_data", None) for name in ("train", "val", "test")]
            target_images = [path for part in target_data if part is not None for path in part.samples.image_path]
            images = _shared_images(data.samples.image_path, target_images)
            shared = [f"{len(images)} images, such as {images[0]}"] if images else []
        if shared:
            msg = (
                f"auxiliary and target share {shared[0]}. A test on data that was learned from is not zero-shot. Give "
                "auxiliary data without it (all_categories=False takes only the category that each auxiliary module "
                "names), or choose another target; allow_overlap=True does it all the same."
            )
            raise ArgumentError(msg)


class AuxiliaryDataset(AnomalibDataset):
    """Labelled images of several data sets as one.

    Each image is read by the data set that it comes from. Masks are brought to {0, 1} and to the size of their image.
    They are left out altogether where one of the data sets has none.

    Args:
        parts: The data sets.

    Raises:
        ArgumentError: If there is no anomalous or no normal image.
    """

    def __init__(self, parts: Sequence[AnomalibDataset]) -> None:
        super().__init__()
        self.parts = list(parts)
        for part in self.parts:
            part.augmentations = None
        frames = [
            part.samples.assign(part=number, row=np.arange(len(part)), split="train")
            for number, part in enumerate(self.parts)
        ]
        samples = pd.concat(frames, ignore_index=True)
        with_masks = [part.task == TaskType.SEGMENTATION for part in self.parts]
        if any(with_masks) and not all(with_masks):
            logger.warning("Only a part of the auxiliary data has masks: none are used.")
        samples.attrs = {"task": (TaskType.SEGMENTATION if all(with_masks) else TaskType.CLASSIFICATION).value}
        self.samples = samples
        if not (self.has_normal and self.has_anomalous):
            missing = "anomalous" if self.has_normal else "normal"
            msg = (
                f"The auxiliary data has no {missing} images among its {len(self)} test images: a detector learns from "
                "both. Choose auxiliary data with normal and anomalous test images."
            )
            raise ArgumentError(msg)

    def __getitem__(self, index: int) -> ImageItem:
        """Read an image with its label and, where there are masks, its mask.

        Raises:
            ImageReadError: If the file of the image or the mask cannot be read.
        """
        sample = self.samples.iloc[index]
        try:
            item = self.parts[sample.part][sample.row]
        except UNREADABLE as error:
            msg = f"The auxiliary image {sample.image_path} or its mask cannot be read: {error}"
            raise ImageReadError(msg) from error
        mask = item.gt_mask if self.task == TaskType.SEGMENTATION else None
        if mask is not None and mask.shape != item.image.shape[-2:]:
            size = list(item.image.shape[-2:])
            mask = Mask(resize(mask.unsqueeze(0), size, InterpolationMode.NEAREST_EXACT).squeeze(0))
        if self.augmentations is not None:
            item.image, mask = self.augmentations(item.image, mask)
        item.gt_mask = mask
        return item


class EpochSampler(Sampler[int]):
    """A shuffling that depends on a seed and the epoch alone, which Lightning tells it."""

    def __init__(self, size: int, seed: int) -> None:
        self.size = size
        self.seed = seed
        self.epoch = 0

    def set_epoch(self, epoch: int) -> None:
        """Choose the order of the next pass."""
        self.epoch = epoch

    def __len__(self) -> int:
        """Return the number of images."""
        return self.size

    def __iter__(self) -> Iterator[int]:
        """Iterate over the order of this epoch."""
        return iter(np.random.default_rng((self.seed, self.epoch)).permutation(self.size).tolist())


def _labelled_data(module: AnomalibDataModule) -> AnomalibDataset:
    """Set up a module's test split: all of it, with its normal images."""
    module.val_split_mode = ValSplitMode.NONE
    if module.test_split_mode == TestSplitMode.NONE:
        module.test_split_mode = TestSplitMode.FROM_DIR
    try:
        module.setup()
    except (RuntimeError, ValueError, TypeError, OSError) as error:
        msg = (
            f"The auxiliary data {module.name} with category {module.category!r} cannot be set up "
            f"({type(error).__name__}: {error}). Its form needs images and masks in their places; data without masks "
            "can be given as anomalib.data.Folder."
        )
        raise ArgumentError(msg) from error
    return module.test_data


def _base_folder(module: AnomalibDataModule) -> Path | None:
    """Folder that holds a folder per category. Visa's is below its root."""
    root = getattr(module, "split_root", None) or getattr(module, "root", None)
    return Path(root) if root and module.category else None


def _categories_on_disk(module: AnomalibDataModule) -> list[str]:
    base = _base_folder(module)
    if base is None or not base.is_dir():
        return []
    return sorted(folder.name for folder in base.iterdir() if (folder / "train").is_dir() and any(folder.glob("test*")))


def _published_categories(module: AnomalibDataModule) -> list[str]:
    """Categories that a data module's source names, where the disk has no folders of them (yet)."""
    source = type(module).__module__
    for name in (source, source.replace(".datamodules.", ".datasets.")):
        names = getattr(importlib.import_module(name), "CATEGORIES", ())
        if module.category in names:
            return list(names)
    return []


def _place(module: AnomalibDataModule) -> tuple[Path, str] | None:
    base = _base_folder(module)
    return None if base is None else (base.resolve(), module.category)


def _shared_images(first: Iterable[str], second: Iterable[str]) -> list[str]:
    """Images of ``first`` that are also in ``second``, there or as a copy elsewhere."""
    candidates, others = _by_size(first), _by_size(second)
    shared = []
    for size in candidates.keys() & others.keys():
        known = {_digest(path) for path in others[size]}
        shared += [path for path in candidates[size] if _digest(path) in known]
    return sorted(shared)


def _by_size(paths: Iterable[str]) -> dict[int, list[str]]:
    groups = defaultdict(list)
    for path in sorted(set(paths)):
        groups[Path(path).stat().st_size].append(path)
    return groups


def _digest(path: str) -> bytes:
    return hashlib.sha256(Path(path).read_bytes()).digest()
