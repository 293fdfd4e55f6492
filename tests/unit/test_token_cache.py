"""The token cache keeps tensors exactly, in memory or in a file that nobody can find again."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from torch.utils.data import DataLoader

from anomalib_zsclip.errors import ArgumentError
from anomalib_zsclip.learning import TokenBatch, TokenCache

IMAGES = 7
BYTES_PER_IMAGE = 3 * 5 * 4 + 4 * 4 + 8
IN_MEMORY, ON_DISK = IMAGES * BYTES_PER_IMAGE, IMAGES * BYTES_PER_IMAGE - 1


def make_batches(sizes: tuple[int, ...] = (3, 3, 1), masks: bool = True) -> list[TokenBatch]:
    generator = torch.Generator().manual_seed(0)
    return [
        TokenBatch(
            {"tokens": torch.randn(size, 3, 5, generator=generator)},
            torch.arange(size) % 2,
            torch.rand(size, 4, 4, generator=generator) > 0.5 if masks else None,
        )
        for size in sizes
    ]


def together(batches: list[TokenBatch]) -> TokenBatch:
    columns = [batch.columns() for batch in batches]
    return TokenBatch.from_columns({name: torch.cat([c[name] for c in columns]) for name in columns[0]})


@pytest.mark.parametrize("budget", [IN_MEMORY, ON_DISK])
def test_every_image_comes_back_to_the_bit(tmp_path: Path, budget: int) -> None:
    batches = make_batches()
    cache = TokenCache(batches, IMAGES, budget, tmp_path)
    wanted = together(batches)
    found = cache.collate_fn([cache[index] for index in range(IMAGES)])
    assert len(cache) == IMAGES
    assert torch.equal(found.inputs["tokens"], wanted.inputs["tokens"])
    assert torch.equal(found.masks, wanted.masks)
    assert torch.equal(found.labels, wanted.labels)
    assert found.masks.dtype == torch.bool
    assert found.labels.dtype == torch.int64


def test_budget_decides_between_memory_and_file(tmp_path: Path) -> None:
    assert not TokenCache(make_batches(), IMAGES, IN_MEMORY, tmp_path).is_on_disk
    assert TokenCache(make_batches(), IMAGES, ON_DISK, tmp_path).is_on_disk


@pytest.mark.parametrize("budget", [IN_MEMORY, ON_DISK])
def test_other_dtypes_and_one_number_per_image_are_kept(tmp_path: Path, budget: int) -> None:
    batch = TokenBatch({"a": torch.randn(4).bfloat16(), "b": torch.randn(4, 2).half()}, torch.tensor([0, 1, 1, 0]))
    cache = TokenCache([batch], 4, 0 if budget == ON_DISK else budget, tmp_path)
    found = cache.collate_fn([cache[2], cache[0]])
    assert torch.equal(found.inputs["a"], batch.inputs["a"][[2, 0]])
    assert torch.equal(found.inputs["b"], batch.inputs["b"][[2, 0]])
    assert found.masks is None


def test_changing_a_batch_leaves_the_cache_as_it_is(tmp_path: Path) -> None:
    cache = TokenCache(make_batches(), IMAGES, ON_DISK, tmp_path)
    before = cache.collate_fn([cache[0]]).inputs["tokens"].clone()
    cache.collate_fn([cache[0]]).inputs["tokens"].zero_()
    assert torch.equal(cache.collate_fn([cache[0]]).inputs["tokens"], before)


def test_loader_makes_batches(tmp_path: Path) -> None:
    cache = TokenCache(make_batches(masks=False), IMAGES, ON_DISK, tmp_path)
    sizes = [len(batch.labels) for batch in DataLoader(cache, batch_size=3, collate_fn=cache.collate_fn)]
    assert sizes == [3, 3, 1]


def test_file_has_no_name_that_another_run_could_find(tmp_path: Path) -> None:
    cache = TokenCache(make_batches(), IMAGES, ON_DISK, tmp_path)
    assert cache.is_on_disk
    assert list(tmp_path.rglob("*")) == []


@pytest.mark.parametrize("interruption", [KeyboardInterrupt, RuntimeError])
def test_interrupted_filling_leaves_nothing_behind(tmp_path: Path, interruption: type[BaseException]) -> None:
    def interrupted() -> Iterator[TokenBatch]:
        yield make_batches()[0]
        raise interruption

    with pytest.raises(interruption):
        TokenCache(interrupted(), IMAGES, ON_DISK, tmp_path)
    assert list(tmp_path.rglob("*")) == []


def test_too_little_room_on_the_disk_is_an_error_that_names_both_sizes(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("shutil.disk_usage", lambda folder: type("Usage", (), {"free": 10})())
    with pytest.raises(ArgumentError, match=r"cache_budget_gb=0\.00.*token_cache=False"):
        TokenCache(make_batches(), IMAGES, ON_DISK, tmp_path)


@pytest.mark.parametrize("budget", [IN_MEMORY * 2, ON_DISK])
def test_images_of_different_sizes_are_refused(tmp_path: Path, budget: int) -> None:
    first, second = make_batches((3, 4))
    second.inputs["tokens"] = second.inputs["tokens"][:, :2]
    with pytest.raises(ArgumentError, match="differ in size"):
        TokenCache([first, second], IMAGES, budget, tmp_path)
