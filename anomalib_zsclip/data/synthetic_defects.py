# Copyright (C) 2026 anomalib-zsclip contributors
# SPDX-License-Identifier: Apache-2.0

"""Procedural anomaly detection data: no download, no network, the same images for the same seed."""

from __future__ import annotations

import difflib
import hashlib
import json
import logging
import os
import shutil
import tempfile
from dataclasses import dataclass
from pathlib import Path

import cv2
import numpy as np
from anomalib.data import AnomalibDataModule
from anomalib.data.datasets.image.mvtecad import MVTecADDataset
from anomalib.data.utils import Split, TestSplitMode, ValSplitMode
from anomalib.utils.path import resolve_dataset_root
from torchvision.transforms.v2 import Transform

from anomalib_zsclip.errors import ArgumentError, check_path, check_whole_number, is_number

from .generator import RECIPE_VERSION, generate

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class Category:
    """A product of :class:`SyntheticDefects`.

    Args:
        family: family of the generator.
        style: seed of the product's look, chosen by eye.
        defects: kinds of defects in the test split.
    """

    family: str
    style: int
    defects: tuple[str, ...]


#: Most families here, and some defects, were never shown in the training of the built-in CLIP (``held_out``).
CATEGORIES: dict[str, Category] = {
    "knit": Category("knit", 4, ("cut", "stain", "thread", "hole", "burn")),
    "terrazzo": Category("terrazzo", 2, ("crack", "hole", "stain", "scratch", "glue")),
    "cardboard": Category("cardboard", 8, ("cut", "fold", "stain", "hole", "burn")),
    "solar_cell": Category("solar_cell", 4, ("crack", "break", "contamination", "scratch", "burn")),
    "roof": Category("roof", 4, ("break", "crack", "stain", "missing", "colour")),
    "rubber": Category("rubber", 12, ("cut", "scuff", "bubble", "contamination", "patch")),
    "capsule": Category("capsule", 12, ("crack", "dent", "stain", "misprint", "scratch")),
    "bottle_top": Category("bottle_top", 1, ("break", "contamination", "crack", "burn", "missing")),
    "zipper": Category("zipper", 12, ("bent", "missing", "thread", "stain", "fray")),
    "bearing": Category("bearing", 8, ("rust", "missing", "scratch", "contamination", "dent")),
    "dial": Category("dial", 3, ("crack", "scratch", "stain", "bubble", "misprint")),
    "leaf": Category("leaf", 1, ("hole", "burn", "stain", "cut", "bent")),
    "wood": Category("wood", 8, ("scratch", "hole", "stain", "crack", "glue")),
    "nut": Category("nut", 8, ("scratch", "rust", "break", "bent", "dent")),
}


SMALLEST = 32
"""Least side of an image in pixels: smaller ones show no defects."""


class SyntheticDefects(AnomalibDataModule):
    """Images of textures and objects made on the spot, with good and defective specimens and exact masks.

    The images are written once, as PNG files in the folder form of MVTec AD, under a folder named after everything
    that they depend on; another seed, size or count gets a folder of its own.

    Args:
        category: Product, one of :data:`CATEGORIES`. Defaults to ``"solar_cell"``.
        image_size: Side of the square images in pixels.
        num_train: Good images in the train split.
        num_test_good: Good images in the test split.
        num_test_per_defect: Images per kind of defect in the test split.
        root: Where the images are written. ``None`` takes anomalib's folder for data sets.
        train_batch_size: Images per training batch.
        eval_batch_size: Images per validation and test batch.
        num_workers: Processes that load images. The default loads in the main process: the set is small.
        train_augmentations: Augmentations of the training images.
        val_augmentations: Augmentations of the validation images.
        test_augmentations: Augmentations of the test images.
        augmentations: Augmentations where none are given for a stage.
        test_split_mode: As in anomalib's data modules.
        test_split_ratio: As in anomalib's data modules.
        val_split_mode: As in anomalib's data modules.
        val_split_ratio: As in anomalib's data modules.
        seed: Seed of the images and of random splits.
        defect_scale: Size of the defects against their usual one, in (0, 1]: 1/16 makes defects of some 8 to 64 pixels in
            images of 2048.

    Example:
        >>> datamodule = SyntheticDefects(category="bearing", image_size=128)
        >>> datamodule.prepare_data()
        >>> datamodule.setup()

    Raises:
        ArgumentError: If an argument cannot work; the message names it and says what would.
    """

    def __init__(
        self,
        category: str = "solar_cell",
        image_size: int = 256,
        num_train: int = 60,
        num_test_good: int = 30,
        num_test_per_defect: int = 8,
        root: Path | str | None = "./datasets/SyntheticDefects",
        train_batch_size: int = 32,
        eval_batch_size: int = 32,
        num_workers: int = 0,
        train_augmentations: Transform | None = None,
        val_augmentations: Transform | None = None,
        test_augmentations: Transform | None = None,
        augmentations: Transform | None = None,
        test_split_mode: TestSplitMode | str = TestSplitMode.FROM_DIR,
        test_split_ratio: float = 0.2,
        val_split_mode: ValSplitMode | str = ValSplitMode.SAME_AS_TEST,
        val_split_ratio: float = 0.5,
        seed: int = 0,
        defect_scale: float = 1.0,
    ) -> None:
        _check(category, image_size, num_train, num_test_good, num_test_per_defect, seed)
        check_path("root", root)
        if not is_number(defect_scale) or not 0 < defect_scale <= 1:
            msg = f"defect_scale={defect_scale!r} must be above 0 and at most 1, the usual size of defects."
            raise ArgumentError(msg)
        super().__init__(
            train_batch_size=train_batch_size,
            eval_batch_size=eval_batch_size,
            num_workers=num_workers,
            train_augmentations=train_augmentations,
            val_augmentations=val_augmentations,
            test_augmentations=test_augmentations,
            augmentations=augmentations,
            test_split_mode=test_split_mode,
            test_split_ratio=test_split_ratio,
            val_split_mode=val_split_mode,
            val_split_ratio=val_split_ratio,
            seed=seed,
        )
        self.category = category
        self.image_size = image_size
        self.defect_scale = defect_scale
        self.num_train = num_train
        self.num_test_good = num_test_good
        self.num_test_per_defect = num_test_per_defect
        self.root = resolve_dataset_root(root, "SyntheticDefects")

    @property
    def recipe(self) -> dict[str, object]:
        """Everything the images depend on."""
        product = CATEGORIES[self.category]
        return {
            "category": self.category,
            "family": product.family,
            "style": product.style,
            "defects": list(product.defects),
            "image_size": self.image_size,
            "num_train": self.num_train,
            "num_test_good": self.num_test_good,
            "num_test_per_defect": self.num_test_per_defect,
            "seed": self.seed,
            "version": RECIPE_VERSION,
            **({"defect_scale": self.defect_scale} if self.defect_scale < 1 else {}),
        }

    @property
    def folder(self) -> Path:
        """Folder of this category's images: ``<root>/<size>px-seed<seed>-<key>/<category>``."""
        text = json.dumps(self.recipe, sort_keys=True)
        key = hashlib.sha256(text.encode()).hexdigest()[:8]
        return self.root / f"{self.image_size}px-seed{self.seed}-{key}" / self.category

    def prepare_data(self) -> None:
        """Make the images unless they are there."""
        if not self.folder.is_dir():
            self._write()

    def _setup(self, _stage: str | None = None) -> None:
        self.prepare_data()
        parent, name = self.folder.parent, self.folder.name
        self.train_data = MVTecADDataset(root=parent, category=name, split=Split.TRAIN)
        self.test_data = MVTecADDataset(root=parent, category=name, split=Split.TEST)

    def _write(self) -> None:
        """Write all images beside the target and move them into place, so that no half-made set is ever seen."""
        logger.info("Making the images of %s in %s.", self.category, self.folder)
        product = CATEGORIES[self.category]
        jobs: list[tuple[str, str | None, int]] = [("train/good", None, i) for i in range(self.num_train)]
        jobs += [("test/good", None, i) for i in range(self.num_test_good)]
        for kind in product.defects:
            jobs += [(f"test/{kind}", kind, i) for i in range(self.num_test_per_defect)]
        self.folder.parent.mkdir(parents=True, exist_ok=True)
        scratch = Path(tempfile.mkdtemp(prefix=".making-", dir=self.folder.parent))
        try:
            for folder, defect, index in jobs:
                # The stream depends on the image's own place: other counts leave it as it is.
                key = int.from_bytes(hashlib.sha256(f"{self.category}/{folder}/{index}".encode()).digest()[:8], "big")
                rng = np.random.default_rng([self.seed or 0, key])
                sample = generate(
                    product.family,
                    defect,
                    self.image_size,
                    rng,
                    style=product.style,
                    wild=0.2,
                    scale=self.defect_scale,
                )
                _save(scratch / folder / f"{index:03d}.png", cv2.cvtColor(sample.image, cv2.COLOR_RGB2BGR))
                if defect is not None:
                    _save(scratch / "ground_truth" / defect / f"{index:03d}_mask.png", sample.mask)
            (scratch / "recipe.json").write_text(json.dumps(self.recipe, indent=2) + "\n", encoding="utf-8")
            scratch.chmod(0o755)
            try:
                os.replace(scratch, self.folder)
            except OSError:  # another process was faster: its images are the same
                if not self.folder.is_dir():
                    raise
        finally:
            shutil.rmtree(scratch, ignore_errors=True)


def _save(path: Path, pixels: np.ndarray) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(cv2.imencode(".png", pixels)[1].tobytes())


def _check(
    category: str, image_size: int, num_train: int, num_test_good: int, num_test_per_defect: int, seed: int
) -> None:
    """Refuse what cannot work, saying what would."""
    if not isinstance(category, str) or category not in CATEGORIES:
        near = difflib.get_close_matches(str(category), CATEGORIES, n=3, cutoff=0.5)
        hint = f" Did you mean {' or '.join(map(repr, near))}?" if near else ""
        msg = f"category={category!r} is unknown to SyntheticDefects.{hint} Known categories: {', '.join(CATEGORIES)}."
        raise ArgumentError(msg)
    check_whole_number("image_size", image_size, SMALLEST)
    counts = {"num_train": num_train, "num_test_good": num_test_good, "num_test_per_defect": num_test_per_defect}
    for name, value in counts.items():
        check_whole_number(name, value, 1)  # no split may be empty
    if seed is not None:
        check_whole_number("seed", seed, 0)
