"""Reading ahead for the command."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from anomalib.data import PredictDataset
from PIL import Image
from torch.utils.data import DataLoader

from anomalib_zsclip.errors import ImageReadError
from anomalib_zsclip.images import FolderDataset, ReadingRules, Tiling, read_ahead
from anomalib_zsclip.images.pre_processing import ClipPreProcessor
from anomalib_zsclip.images.read_ahead import ReadAhead

SIZES = [(40, 30), (64, 64), (16, 90)]


@pytest.fixture
def loader(tmp_path: Path) -> DataLoader:
    rng = np.random.default_rng(0)
    for index, size in enumerate(SIZES):
        Image.fromarray(rng.integers(0, 255, (*size, 3), dtype=np.uint8)).save(tmp_path / f"{index}.png")
    dataset = PredictDataset(tmp_path)
    return DataLoader(dataset, collate_fn=dataset.collate_fn)


def set_up(
    loader: DataLoader, monkeypatch: pytest.MonkeyPatch, program: str = "anomalib", stage: str = "predict", **own: Any
) -> tuple[ClipPreProcessor, DataLoader]:
    monkeypatch.setattr("sys.argv", [program])
    size = own.get("size", (32, 48))
    pre_processor = own.get("pre_processor", ClipPreProcessor.for_size(size, (0.5,) * 3, (0.25,) * 3))
    source = SimpleNamespace(instance=[loader])
    trainer = SimpleNamespace(predict_loop=SimpleNamespace(_data_source=source))
    module = SimpleNamespace(pre_processor=pre_processor, reading=own.get("reading", ReadingRules()))
    ReadAhead().setup(trainer, module, stage)
    return pre_processor, source.instance[0]


def test_a_batch_of_mixed_sizes_is_what_the_model_would_get_one_by_one(
    loader: DataLoader, monkeypatch: pytest.MonkeyPatch
) -> None:
    one_by_one = list(loader)
    pre_processor, ahead = set_up(loader, monkeypatch)
    (batch,) = ahead
    assert batch.image.shape == (3, 3, 32, 48)
    assert batch.image_path == [single.image_path[0] for single in one_by_one]
    wanted = torch.cat([pre_processor(single.image) for single in one_by_one])
    torch.testing.assert_close(pre_processor(batch.image), wanted, rtol=0, atol=0)


@pytest.mark.parametrize("change", [{"stage": "test"}, {"stage": "validate"}])
def test_other_stages_keep_their_loader(
    loader: DataLoader, monkeypatch: pytest.MonkeyPatch, change: dict[str, Any]
) -> None:
    assert set_up(loader, monkeypatch, **change)[1] is loader


class OwnDataset(PredictDataset):
    """Somebody's own reading."""


def test_a_data_set_of_the_users_keeps_its_loader(loader: DataLoader, monkeypatch: pytest.MonkeyPatch) -> None:
    own = DataLoader(OwnDataset(loader.dataset.image_filenames[0].parent))
    assert set_up(own, monkeypatch)[1] is own


@pytest.mark.parametrize("change", [{"program": "script.py"}, {"pre_processor": None}])
def test_python_code_gets_its_batches_read_by_our_rules(
    loader: DataLoader, monkeypatch: pytest.MonkeyPatch, change: dict[str, Any]
) -> None:
    read = set_up(loader, monkeypatch, **change)[1]
    assert isinstance(read.dataset, FolderDataset)
    assert [tuple(batch.image.shape[-2:]) for batch in read] == SIZES


def test_a_transform_of_the_user_stays(loader: DataLoader, monkeypatch: pytest.MonkeyPatch) -> None:
    loader.dataset.transform = torch.nn.Identity()
    read = set_up(loader, monkeypatch)[1]
    assert read.dataset.transform is loader.dataset.transform
    assert read.batch_size == 1


@pytest.mark.parametrize("program", ["anomalib", "script.py"])
def test_unreadable_images_are_left_out_and_listed(
    loader: DataLoader, monkeypatch: pytest.MonkeyPatch, program: str
) -> None:
    files = loader.dataset.image_filenames
    files[1].write_bytes(files[1].read_bytes()[:60])
    read = set_up(loader, monkeypatch, program)[1]
    for _ in range(2):  # a second pass counts anew
        paths = [path for batch in read for path in batch.image_path]
        assert paths == [str(files[0]), str(files[2])]
        assert [file.path for file in read.dataset.unreadable] == [str(files[1])]
        assert read.dataset.judged == 2


def test_told_to_stop_all_unreadable_images_are_named(loader: DataLoader, monkeypatch: pytest.MonkeyPatch) -> None:
    files = loader.dataset.image_filenames
    for file in files[1:]:
        file.write_bytes(b"no image")
    read = set_up(loader, monkeypatch, reading=ReadingRules(on_unreadable="stop"))[1]
    with pytest.raises(ImageReadError, match=r"^2 image file\(s\) cannot be read: .*1\.png.*2\.png"):
        list(read)


@pytest.mark.parametrize(("many", "cores", "workers"), [(4, 2, 0), (3, 1, 1), (3, 2, 1), (3, 3, 2), (3, 64, 4)])
@pytest.mark.filterwarnings("ignore:This DataLoader will create 4")
def test_processes_only_for_many_images(
    loader: DataLoader, monkeypatch: pytest.MonkeyPatch, many: int, cores: int, workers: int
) -> None:
    monkeypatch.setattr(read_ahead, "MANY", many)
    monkeypatch.setattr("torch.get_num_threads", lambda: cores)
    assert set_up(loader, monkeypatch)[1].num_workers == workers


@pytest.mark.parametrize(
    ("side", "batch_size", "workers"), [(128, 8, 4), (240, 8, 4), (336, 4, 4), (518, 1, 4), (1040, 1, 1), (3000, 1, 0)]
)
@pytest.mark.filterwarnings("ignore:This DataLoader will create 4")
def test_large_images_fit_into_little_shared_memory(
    loader: DataLoader, monkeypatch: pytest.MonkeyPatch, side: int, batch_size: int, workers: int
) -> None:
    monkeypatch.setattr(read_ahead, "MANY", 1)
    monkeypatch.setattr("torch.get_num_threads", lambda: 16)
    monkeypatch.setattr("shutil.disk_usage", lambda _: SimpleNamespace(free=64_000_000))
    ahead = set_up(loader, monkeypatch, size=(side, side))[1]
    assert (ahead.batch_size, ahead.num_workers) == (batch_size, workers)
    assert ahead.num_workers * 2 * ahead.batch_size * 12 * side * side < 64_000_000


@pytest.mark.parametrize(("free", "workers"), [(64_000_000, 0), (600_000_000, 1), (24_000_000_000, 4), (None, 0)])
@pytest.mark.filterwarnings("ignore:This DataLoader will create 4")
def test_tiles_of_large_pictures_are_read_ahead_where_shared_memory_allows(
    loader: DataLoader, monkeypatch: pytest.MonkeyPatch, free: int | None, workers: int
) -> None:
    def disk_usage(folder: str) -> SimpleNamespace:
        assert folder == "/dev/shm"
        if free is None:
            raise FileNotFoundError(folder)
        return SimpleNamespace(free=free)

    monkeypatch.setattr(read_ahead, "MANY", 1)
    monkeypatch.setattr("torch.get_num_threads", lambda: 16)
    monkeypatch.setattr("shutil.disk_usage", disk_usage)
    own = ClipPreProcessor.for_size((192, 192), (0.5,) * 3, (0.25,) * 3, Tiling("auto"))
    ahead = set_up(loader, monkeypatch, pre_processor=own)[1]
    assert (ahead.batch_size, ahead.num_workers) == (1, workers)


@pytest.mark.parametrize(("tiling", "batches"), [(Tiling(2), 1), (Tiling("auto"), 3)])
def test_tiles_are_laid_out_while_reading(
    loader: DataLoader, monkeypatch: pytest.MonkeyPatch, tiling: Tiling, batches: int
) -> None:
    own = ClipPreProcessor.for_size((16, 16), (0.5,) * 3, (0.25,) * 3, tiling)
    wanted = [own(single.image) for single in loader]
    pre_processor, ahead = set_up(loader, monkeypatch, pre_processor=own)
    found = [pre_processor(batch.image) for batch in ahead]
    assert len(found) == batches
    for one, other in zip(torch.cat(found) if batches == 1 else found, wanted, strict=True):
        assert torch.equal(one.reshape(other.shape), other)
