"""SyntheticDefects: a data module like any other, made without a download."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from anomalib.data.utils import ValSplitMode

from anomalib_zsclip.data.generator import FAMILIES
from anomalib_zsclip.data.synthetic_defects import CATEGORIES, SyntheticDefects

SMALL = {"image_size": 48, "num_train": 2, "num_test_good": 2, "num_test_per_defect": 1}


def make(root: Path, **changes: object) -> SyntheticDefects:
    datamodule = SyntheticDefects(root=root, **(SMALL | changes))  # type: ignore[arg-type]
    datamodule.prepare_data()
    datamodule.setup()
    return datamodule


def files(datamodule: SyntheticDefects) -> dict[str, bytes]:
    folder = datamodule.folder
    return {str(p.relative_to(folder)): p.read_bytes() for p in sorted(folder.rglob("*.png"))}


@pytest.mark.parametrize("category", CATEGORIES)
def test_every_category_has_the_splits_of_mvtec(tmp_path: Path, category: str) -> None:
    datamodule = make(tmp_path, category=category)
    kinds = len(CATEGORIES[category].defects)
    assert len(datamodule.train_data) == 2
    assert len(datamodule.test_data) == 2 + kinds
    batch = next(iter(datamodule.test_dataloader()))
    assert batch.image.shape == (2 + kinds, 3, 48, 48)
    assert batch.gt_mask.shape == (2 + kinds, 48, 48)
    marked = batch.gt_mask.flatten(1).any(1)
    assert torch.equal(marked, batch.gt_label.bool()), "each defective image has a mask, good ones have none"


def test_most_categories_are_new_to_the_built_in_clip() -> None:
    new = [FAMILIES[product.family].held_out for product in CATEGORIES.values()]
    assert sum(new) > 0.75 * len(new)
    assert {FAMILIES[product.family].kind for product in CATEGORIES.values()} == {"texture", "object"}


def test_the_defaults_are_small_and_complete() -> None:
    datamodule = SyntheticDefects()
    assert datamodule.category in CATEGORIES
    assert datamodule.num_train + datamodule.num_test_good <= 100


def test_the_images_depend_on_the_seed_alone(tmp_path: Path) -> None:
    first, again, other = make(tmp_path / "a", seed=3), make(tmp_path / "b", seed=3), make(tmp_path / "c", seed=4)
    assert files(first) == files(again)
    assert files(first)["train/good/000.png"] != files(other)["train/good/000.png"]


def test_more_images_leave_the_first_ones_as_they_are(tmp_path: Path) -> None:
    few, many = make(tmp_path), make(tmp_path, num_train=4)
    assert files(few)["train/good/001.png"] == files(many)["train/good/001.png"]


def test_the_images_are_written_once(tmp_path: Path) -> None:
    folder = make(tmp_path).folder
    before = {p: p.stat().st_mtime_ns for p in folder.rglob("*.png")}
    assert make(tmp_path).folder == folder
    assert {p: p.stat().st_mtime_ns for p in folder.rglob("*.png")} == before


def test_another_recipe_gets_a_folder_of_its_own(tmp_path: Path) -> None:
    folders = {make(tmp_path, **c).folder for c in ({}, {"seed": 1}, {"image_size": 64}, {"num_train": 3})}
    assert len(folders) == 4


def test_an_interrupted_run_leaves_nothing_behind(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import anomalib_zsclip.data.synthetic_defects as module

    def fail(*_args: object, **_kwargs: object) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(module, "_save", fail)
        with pytest.raises(KeyboardInterrupt):
            make(tmp_path)
    assert not list(tmp_path.rglob("*.png"))
    assert not list(tmp_path.rglob(".making-*"))
    assert len(make(tmp_path).train_data) == 2


def test_an_unknown_category_is_refused_with_near_ones() -> None:
    with pytest.raises(ValueError, match=r"'bearng'.*Did you mean 'bearing'.*Known categories: .*zipper"):
        SyntheticDefects(category="bearng")


@pytest.mark.parametrize(
    "wrong", [{"image_size": 8}, {"num_train": 0}, {"num_test_good": 0}, {"seed": -1}, {"defect_scale": 0.0}]
)
def test_impossible_arguments_are_refused_by_name(wrong: dict[str, float]) -> None:
    with pytest.raises(ValueError, match=next(iter(wrong))):
        SyntheticDefects(**wrong)  # type: ignore[arg-type]


def test_anomalibs_split_modes_work(tmp_path: Path) -> None:
    datamodule = make(tmp_path, val_split_mode=ValSplitMode.FROM_TEST, val_split_ratio=0.5)
    assert len(datamodule.val_data) + len(datamodule.test_data) == 2 + len(CATEGORIES[datamodule.category].defects)


def test_the_pixels_are_photographs_not_noise(tmp_path: Path) -> None:
    image = next(iter(make(tmp_path, category="leaf").train_dataloader())).image[0].numpy()
    neighbours = np.abs(np.diff(image, axis=-1)).mean()
    assert neighbours < 0.5 * image.std()
