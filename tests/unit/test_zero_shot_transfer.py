"""ZeroShotTransfer trains on labelled auxiliary data, tests on other data, and refuses what is not zero-shot."""

from __future__ import annotations

import shutil
from pathlib import Path

import cv2
import numpy as np
import pytest
import torch
from anomalib.data import AnomalibDataModule
from anomalib.data.datamodules.image.autovi import AutoVI
from torchvision.transforms.v2 import CenterCrop

from anomalib_zsclip.data.synthetic_defects import CATEGORIES, SyntheticDefects
from anomalib_zsclip.data.zero_shot_transfer import EpochSampler
from anomalib_zsclip.errors import ArgumentError, ImageReadError
from tests.transfer_data import folder_without_masks, make_category, make_transfer, mvtec, transfer


def test_trains_on_the_test_images_of_all_categories(tmp_path: Path) -> None:
    datamodule = make_transfer(tmp_path)
    datamodule.setup()
    samples = datamodule.train_data.samples
    assert len(samples) == 12
    assert set(samples.label_index) == {0, 1}
    assert all("/test/" in path for path in samples.image_path)
    assert datamodule.auxiliary_description == [
        {"name": "MVTecAD", "category": "cup", "images": 6},
        {"name": "MVTecAD", "category": "metal_nut", "images": 6},
    ]


def test_all_categories_false_takes_the_named_one(tmp_path: Path) -> None:
    datamodule = make_transfer(tmp_path, all_categories=False)
    datamodule.setup()
    assert [part["category"] for part in datamodule.auxiliary_description] == ["cup"]


def test_several_auxiliary_modules_are_joined(tmp_path: Path) -> None:
    target = make_transfer(tmp_path).target
    make_category(tmp_path / "more", "gear", normal=1, anomalous=2)
    datamodule = transfer([mvtec(tmp_path / "auxiliary", "cup"), mvtec(tmp_path / "more", "gear")], target)
    datamodule.setup()
    assert [(part["category"], part["images"]) for part in datamodule.auxiliary_description] == [
        ("cup", 6),
        ("metal_nut", 6),
        ("gear", 3),
    ]


def test_all_synthetic_categories_are_made_and_joined(tmp_path: Path) -> None:
    make_category(tmp_path / "target", "plate")
    auxiliary = SyntheticDefects("nut", 32, num_train=1, num_test_good=1, num_test_per_defect=1, root=tmp_path / "made")
    datamodule = transfer(auxiliary, mvtec(tmp_path / "target", "plate"))
    datamodule.prepare_data()
    datamodule.setup()
    assert [part["category"] for part in datamodule.auxiliary_description] == list(CATEGORIES)
    assert {part["images"] for part in datamodule.auxiliary_description} == {6}


def test_published_data_that_is_not_there_yet_is_prepared_whole(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    make_category(tmp_path / "target", "plate")
    prepared = []
    monkeypatch.setattr(AutoVI, "prepare_data", lambda self: prepared.append(self.category))
    transfer(AutoVI(tmp_path / "auto"), mvtec(tmp_path / "target", "plate")).prepare_data()
    assert len(prepared) == len(set(prepared)) == 6


def test_given_modules_are_left_as_they_are(tmp_path: Path) -> None:
    datamodule = make_transfer(tmp_path)
    datamodule.setup()
    assert datamodule.auxiliary[0].category == "cup"
    assert not hasattr(datamodule.auxiliary[0], "test_data")


def test_validates_and_tests_on_the_target_under_its_name(tmp_path: Path) -> None:
    datamodule = make_transfer(tmp_path)
    datamodule.setup()
    assert (datamodule.name, datamodule.category) == ("MVTecAD", "plate")
    for loader in (datamodule.val_dataloader(), datamodule.test_dataloader()):
        paths = [path for batch in loader for path in batch.image_path]
        assert len(paths) == 6
        assert all("/plate/test/" in path for path in paths)


def test_target_without_validation_data_has_no_validation_batches(tmp_path: Path) -> None:
    auxiliary = make_transfer(tmp_path).auxiliary
    datamodule = transfer(auxiliary, mvtec(tmp_path / "target", "plate", val_split_mode="none"))
    datamodule.setup()
    assert datamodule.val_dataloader() == []


def test_images_tell_their_category_as_it_is_written(tmp_path: Path) -> None:
    datamodule = make_transfer(tmp_path)
    datamodule.setup()
    names = {Path(path).parts[-4]: datamodule.class_name_of(path) for path in datamodule.train_data.samples.image_path}
    assert names == {"cup": "cup", "metal_nut": "metal_nut"}
    assert datamodule.class_name_of(datamodule.test_data.samples.image_path[0]) == "plate"


def test_items_have_masks_of_zero_and_one(tmp_path: Path) -> None:
    datamodule = make_transfer(tmp_path)
    datamodule.setup()
    for item in datamodule.train_data:
        wanted = torch.zeros(40, 40, dtype=torch.bool)
        wanted[:20, :20] = bool(item.gt_label)
        assert torch.equal(item.gt_mask.as_subclass(torch.Tensor), wanted)


@pytest.mark.parametrize("mask_size", [(80, 80), (20, 20), (40, 20)])
@pytest.mark.parametrize("mask_value", [1, 128])
def test_masks_of_other_sizes_and_values_mark_the_same_pixels(
    tmp_path: Path, mask_size: tuple[int, int], mask_value: int
) -> None:
    target = make_transfer(tmp_path).target
    make_category(tmp_path / "odd", "cup", mask_size=mask_size, mask_value=mask_value, seed=5)
    datamodule = transfer(mvtec(tmp_path / "odd", "cup"), target)
    datamodule.setup()
    items = [item for item in datamodule.train_data if item.gt_label == 1]
    assert len(items) == 3
    for item in items:
        assert item.gt_mask.shape == (40, 40)
        assert item.gt_mask[:20, :20].all()
        assert item.gt_mask.sum() == 400


def test_augmentations_move_image_and_odd_mask_together(tmp_path: Path) -> None:
    target = make_transfer(tmp_path).target
    make_category(tmp_path / "odd", "cup", mask_size=(80, 80), seed=5)
    datamodule = transfer(mvtec(tmp_path / "odd", "cup"), target)
    datamodule.setup()
    datamodule.train_data.augmentations = CenterCrop(20)
    item = next(item for item in datamodule.train_data if item.gt_label == 1)
    assert item.image.shape[-2:] == item.gt_mask.shape == (20, 20)
    assert torch.equal(item.gt_mask.as_subclass(torch.Tensor), item.image.min(dim=0).values > 0.9)


def test_data_without_masks_gives_images_and_labels(tmp_path: Path) -> None:
    target = make_transfer(tmp_path).target
    datamodule = transfer(folder_without_masks(tmp_path / "auxiliary", "cup"), target)
    datamodule.setup()
    assert datamodule.train_data.task == "classification"
    assert [item.gt_mask for item in datamodule.train_data] == [None] * 6
    assert sorted(int(item.gt_label) for item in datamodule.train_data) == [0, 0, 0, 1, 1, 1]
    assert all(batch.gt_mask is None for batch in datamodule.train_dataloader())


def test_masks_of_a_part_of_the_data_are_not_used(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    target = make_transfer(tmp_path).target
    make_category(tmp_path / "more", "gear")
    folder = folder_without_masks(tmp_path / "more", "gear")
    datamodule = transfer([mvtec(tmp_path / "auxiliary", "cup"), folder], target)
    datamodule.setup()
    assert "Only a part of the auxiliary data has masks" in caplog.text
    assert all(batch.gt_mask is None for batch in datamodule.train_dataloader())


def test_anomalib_shrinks_no_split_of_the_auxiliary_data(tmp_path: Path) -> None:
    target = make_transfer(tmp_path).target
    modules = [mvtec(tmp_path / "auxiliary", "cup", val_split_mode=mode) for mode in ("from_test", "none")]
    for module in [*modules, mvtec(tmp_path / "auxiliary", "cup", test_split_mode="none")]:
        datamodule = transfer(module, target, all_categories=False)
        datamodule.setup()
        assert len(datamodule.train_data) == 6


@pytest.mark.parametrize(("normal", "anomalous", "missing"), [(0, 3, "normal"), (3, 0, "anomalous")])
def test_auxiliary_data_of_one_kind_is_refused(tmp_path: Path, normal: int, anomalous: int, missing: str) -> None:
    target = make_transfer(tmp_path).target
    make_category(tmp_path / "one_kind", "cup", normal=normal, anomalous=anomalous, seed=1)
    module = mvtec(tmp_path / "one_kind", "cup", test_split_mode="none")
    with pytest.raises(ArgumentError, match=f"no {missing} images"):
        transfer(module, target).setup()


def test_missing_mask_files_are_named_with_their_data(tmp_path: Path) -> None:
    datamodule = make_transfer(tmp_path)
    shutil.rmtree(tmp_path / "auxiliary" / "cup" / "ground_truth")
    with pytest.raises(ArgumentError, match=r"MVTecAD with category 'cup'.*anomalib\.data\.Folder"):
        datamodule.setup()


def test_no_auxiliary_module_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ArgumentError, match=r"auxiliary=\[\]"):
        transfer([], make_transfer(tmp_path).target)


def test_unreadable_image_is_named(tmp_path: Path) -> None:
    datamodule = make_transfer(tmp_path)
    datamodule.setup()
    broken = tmp_path / "auxiliary" / "cup" / "test" / "bad" / "001.png"
    broken.write_bytes(b"no image")
    with pytest.raises(ImageReadError, match=r"cup/test/bad/001\.png"):
        list(datamodule.train_dataloader())


def test_category_of_the_target_among_the_auxiliary_ones_is_refused(tmp_path: Path) -> None:
    make_transfer(tmp_path)
    root = tmp_path / "auxiliary"
    with pytest.raises(ArgumentError, match=r"category 'metal_nut'.*not zero-shot.*allow_overlap=True"):
        transfer(mvtec(root, "cup"), mvtec(root, "metal_nut")).setup()


def test_other_categories_of_the_targets_root_are_accepted(tmp_path: Path) -> None:
    make_transfer(tmp_path)
    root = tmp_path / "auxiliary"
    transfer(mvtec(root, "cup"), mvtec(root, "metal_nut"), all_categories=False).setup()


def test_the_targets_folder_under_another_name_is_refused(tmp_path: Path) -> None:
    target = make_transfer(tmp_path).target
    (tmp_path / "alias").symlink_to(tmp_path / "target")
    with pytest.raises(ArgumentError, match="category 'plate'"):
        transfer(mvtec(tmp_path / "alias", "plate"), target).setup()


def test_a_copy_of_a_target_image_is_refused(tmp_path: Path) -> None:
    datamodule = make_transfer(tmp_path)
    bad = Path("test") / "bad"
    shutil.copy(tmp_path / "target" / "plate" / bad / "000.png", tmp_path / "auxiliary" / "cup" / bad / "001.png")
    with pytest.raises(ArgumentError, match=r"share 1 images, such as .*cup/test/bad/001\.png"):
        datamodule.setup()


def test_overlap_is_accepted_where_it_is_asked_for(tmp_path: Path) -> None:
    make_transfer(tmp_path)
    root = tmp_path / "auxiliary"
    datamodule = transfer(mvtec(root, "cup"), mvtec(root, "cup"), allow_overlap=True)
    datamodule.setup()
    assert len(datamodule.train_data) == 12


def test_images_of_equal_size_and_other_content_are_no_overlap(tmp_path: Path) -> None:
    datamodule = make_transfer(tmp_path)
    for category, value in (("auxiliary/cup", 10), ("target/plate", 200)):
        for path in (tmp_path / category).rglob("test/good/*.png"):
            path.unlink()
            cv2.imwrite(str(path.with_suffix(".bmp")), np.full((40, 40, 3), value, dtype=np.uint8))
    datamodule.setup()


def test_order_depends_on_seed_and_epoch_alone() -> None:
    def order(seed: int, epoch: int) -> list[int]:
        sampler = EpochSampler(20, seed)
        sampler.set_epoch(epoch)
        torch.rand(3)
        return list(sampler)

    assert order(0, 0) == order(0, 0)
    assert sorted(order(0, 0)) == list(range(20))
    assert len({tuple(order(seed, epoch)) for seed in (0, 1) for epoch in (0, 1)}) == 4


def test_without_a_seed_the_one_of_torch_is_taken(tmp_path: Path) -> None:
    datamodule = make_transfer(tmp_path, seed=None)
    datamodule.setup()
    with torch.random.fork_rng():
        torch.manual_seed(17)
        assert datamodule.train_dataloader().sampler.seed == 17


def test_configuration_file_names_both_modules(tmp_path: Path) -> None:
    make_transfer(tmp_path)
    config = tmp_path / "transfer.yaml"
    config.write_text(
        f"""
class_path: anomalib_zsclip.data.ZeroShotTransfer
init_args:
  auxiliary:
    - class_path: anomalib.data.MVTecAD
      init_args: {{root: {tmp_path / "auxiliary"}, category: cup}}
  target:
    class_path: anomalib.data.MVTecAD
    init_args: {{root: {tmp_path / "target"}, category: plate}}
"""
    )
    datamodule = AnomalibDataModule.from_config(config)
    datamodule.prepare_data()
    datamodule.setup()
    assert len(datamodule.train_data) == 12


@pytest.mark.parametrize("name", ["mvtec_to_visa", "visa_to_mvtec", "synthetic_to_folder"])
def test_ready_configurations_make_a_data_module(name: str) -> None:
    path = Path(__file__).parents[2] / "configs" / "data" / f"{name}.yaml"
    datamodule = AnomalibDataModule.from_config(path)
    assert type(datamodule).__name__ == "ZeroShotTransfer"
    assert datamodule.all_categories
