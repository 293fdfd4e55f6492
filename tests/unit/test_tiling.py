"""Tiles and views: which grid a picture gets, how it is cut, and how maps and scores are put together again."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from PIL import Image
from torch import Tensor
from torch.utils.data import ConcatDataset, Dataset
from torchvision import tv_tensors

from anomalib_zsclip.clip import ClipBackbone
from anomalib_zsclip.errors import ArgumentError
from anomalib_zsclip.heads.memory_bank import MemoryBank
from anomalib_zsclip.images import ClipPreProcessor, Tiling
from anomalib_zsclip.images import tiling as tiling_module
from anomalib_zsclip.images.resize import resize_picture
from anomalib_zsclip.images.tiling import (
    OneByOne,
    TiledResize,
    grid_of_sheet,
    is_sheet,
    make_sheet,
    stride,
    working_size,
)
from anomalib_zsclip.models.views import Seen, Views, join_features, window_weights

TILE = (32, 40)
STEPS = (24, 30)


def rand(*shape: int) -> Tensor:
    return torch.rand(*shape, generator=torch.Generator().manual_seed(0))


def views_of(tiles: object, **arguments: object) -> Views:
    views = Views.of(tiles, **arguments)  # type: ignore[arg-type]
    return Views(views.tiling, views.tile_share, views.view_chunk, TILE)


def whole_levels(*shape: int) -> Tensor:
    return (255 * rand(*shape)).round() / 255


# ---------------------------------------------------------------------- grids
@pytest.mark.parametrize(
    ("picture", "grid"),
    [
        ((32, 40), (1, 1)),
        ((5, 7), (1, 1)),  # smaller than a tile
        ((43, 54), (1, 1)),  # nearer to one tile than to two
        ((45, 56), (2, 2)),
        ((56, 40), (2, 1)),
        ((1, 20_000), (1, 64)),  # a line scan, capped
        ((6, 400), (1, 13)),
        ((240, 300), (10, 10)),
        ((4000, 6000), (7, 9)),
        ((10_000, 10_000), (9, 7)),  # tiles are wider than high
    ],
)
def test_auto_takes_the_grid_that_shows_a_picture_near_its_own_resolution(
    picture: tuple[int, int], grid: tuple[int, int]
) -> None:
    tiling = Tiling("auto", max_tiles=100 if grid == (10, 10) else 64)
    assert tiling.grid(picture, TILE) == grid
    assert grid[0] * grid[1] <= tiling.max_tiles
    assert tiling.grid(working_size(grid, TILE), TILE) == grid, "the mask of a working size is of the same grid"


def test_tiles_cover_the_working_size_and_overlap_by_a_quarter() -> None:
    assert stride(TILE) == STEPS
    assert working_size((1, 1), TILE) == TILE
    assert working_size((2, 3), TILE) == (56, 100)


def test_a_capped_grid_says_so_once(caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tiling_module, "_capped", set())
    for _ in range(2):
        assert Tiling("auto", max_tiles=6).grid((400, 600), TILE) == (2, 3)
    assert [record.levelname for record in caplog.records] == ["WARNING"]
    assert "max_tiles=6: it gets 2 x 3" in caplog.text


@pytest.mark.parametrize(
    ("arguments", "match"),
    [
        ({"tiles": 0}, "tiles=0 must be 1 for"),
        ({"tiles": -2}, "tiles=-2 must"),
        ({"tiles": True}, "tiles=True must"),
        ({"tiles": 1.5}, "tiles=1.5 must"),
        ({"tiles": "many"}, "tiles='many' must"),
        ({"tiles": (2, 0)}, r"tiles=\(2, 0\) must"),
        ({"tiles": (1, 2, 3)}, "must be 1 for"),
        ({"tiles": 9}, "9 x 9 = 81 tiles of each picture, and max_tiles=64"),
        ({"tiles": 2, "max_tiles": 3}, "max_tiles=3 allows fewer"),
        ({"tiles": "auto", "max_tiles": 0}, "max_tiles=0"),
        ({"tiles": 2, "tile_share": 1.1}, "tile_share=1.1"),
        ({"tiles": 2, "view_chunk": 0}, "view_chunk=0"),
    ],
)
def test_arguments_that_cannot_be(arguments: dict[str, object], match: str) -> None:
    with pytest.raises(ArgumentError, match=match):
        Views.of(**arguments)  # type: ignore[arg-type]


# ---------------------------------------------------------------------- sheets
@pytest.mark.parametrize("tiles", [2, (1, 3), (3, 1)])
@pytest.mark.parametrize("size", [(97, 131), (20, 11)])
def test_every_view_is_resized_from_the_original(tiles: int | tuple[int, int], size: tuple[int, int]) -> None:
    images, views = rand(2, 3, *size), views_of(tiles)
    sheet = TiledResize(TILE, views.tiling).apply(images)
    grid = views.grid(sheet)
    assert grid == views.tiling.fixed
    working = resize_picture(images, working_size(grid, TILE))
    assert torch.equal(views.picture(sheet), working)
    (found,) = views.chunks(sheet)
    found = found.unflatten(0, (2, -1))
    assert found.shape[1:] == (1 + grid[0] * grid[1], 3, *TILE)
    assert torch.equal(found[:, 0], resize_picture(images, TILE)), "the whole comes first, as without tiles"
    for number in range(grid[0] * grid[1]):
        top, left = number // grid[1] * STEPS[0], number % grid[1] * STEPS[1]
        assert torch.equal(found[:, 1 + number], working[..., top : top + TILE[0], left : left + TILE[1]])


def test_sheets_are_told_from_pictures_and_pass_a_second_time() -> None:
    resize = TiledResize(TILE, Tiling(2))
    sheet = resize.apply(rand(1, 3, 50, 60))
    assert is_sheet(sheet)
    assert resize.apply(sheet) is sheet
    picture = rand(1, 3, *sheet.shape[-2:])  # of a sheet's very size
    assert not is_sheet(picture)
    assert not torch.equal(resize.apply(picture), picture)


def test_small_pictures_pass_whole_where_the_grid_is_their_own() -> None:
    resize, images = TiledResize(TILE, Tiling("auto")), rand(1, 3, 20, 30)
    assert torch.equal(resize.apply(images), resize_picture(images, TILE))
    assert not resize.is_uniform
    assert views_of("auto").grid(resize.apply(images)) == (1, 1)


def test_line_scans_and_single_pixels_have_views() -> None:
    resize = TiledResize(TILE, Tiling("auto"))
    scan = resize.apply(rand(1, 3, 1, 20_000))
    assert views_of("auto").grid(scan) == (1, 64)
    assert not is_sheet(resize.apply(rand(1, 3, 1, 1)))
    assert TiledResize(TILE, Tiling(2)).apply(rand(1, 3, 1, 1)).shape[-2:] == (56 + 32, 70 + 1)


def test_images_and_masks_of_data_sets() -> None:
    image, mask = tv_tensors.Image(rand(3, 90, 100)), tv_tensors.Mask((rand(90, 100) > 0.5).to(torch.uint8))
    for tiling in (Tiling(2), Tiling("auto")):
        resize = TiledResize(TILE, tiling)
        sheet, resized = resize(image, mask)
        assert tuple(resized.shape) == working_size(grid_of_sheet(sheet.shape, TILE), TILE)  # type: ignore[arg-type]
        again = resize(sheet, resized)
        assert torch.equal(again[0], sheet)
        assert torch.equal(again[1], resized)


def test_levels_of_integers_become_shares() -> None:
    images = torch.randint(0, 256, (1, 3, 50, 60), dtype=torch.uint8)
    assert torch.equal(make_sheet(images, (2, 2), TILE), make_sheet(images / 255, (2, 2), TILE))


def test_sizes_that_no_grid_has_are_refused() -> None:
    assert grid_of_sheet((2 * 32, 41), TILE) == (1, 1)
    assert grid_of_sheet((2 * 32 + 24, 41 + 60), TILE) == (2, 3)
    assert grid_of_sheet((2 * 32 + 23, 41 + 60), TILE) is None
    assert grid_of_sheet((20, 41), TILE) is None
    with pytest.raises(ArgumentError, match="call the model itself"):
        views_of(2).grid(rand(1, 3, 100, 100))


def test_a_checkpoint_brings_the_size_and_leaves_the_tiles() -> None:
    mean_std = ((0.5,) * 3, (0.2,) * 3)
    own = ClipPreProcessor.for_size(TILE, *mean_std, Tiling(3))
    own.load_checkpoint_config(ClipPreProcessor.for_size((16, 24), *mean_std, Tiling(2)).checkpoint_config())
    assert isinstance(own.resize, TiledResize)
    assert own.resize.size == [16, 24]
    assert own.resize.tiling == Tiling(3)
    assert repr(own.transform) != repr(ClipPreProcessor.for_size((16, 24), *mean_std, Tiling(2)).transform)
    assert own.resize.largest == (16 + 2 * 12 + 16, 24 + 2 * 18 + 1)


# ---------------------------------------------------------------------- putting together
@pytest.mark.parametrize("grid", [(2, 2), (1, 3), (4, 1), (3, 3)])
@pytest.mark.parametrize("chunk", [1, 4, 100])
def test_a_constant_stays_constant(grid: tuple[int, int], chunk: int) -> None:
    views = views_of(grid, view_chunk=chunk)
    sheet = make_sheet(rand(2, 3, 70, 80), grid, TILE)
    seen = views.look(sheet, lambda part, _: Seen(torch.full((len(part),), 0.3), torch.full((len(part), *TILE), 0.7)))
    assert seen.anomaly_map.shape == (2, *working_size(grid, TILE))
    torch.testing.assert_close(seen.anomaly_map, torch.full_like(seen.anomaly_map, 0.7))
    torch.testing.assert_close(seen.score, torch.full((2,), 0.3))


def test_windows_add_up_to_one_and_meet_smoothly() -> None:
    first, last = window_weights(40, 10, first=True, last=False), window_weights(40, 10, first=False, last=True)
    np.testing.assert_allclose(first[30:] + last[:10], 1, atol=1e-6)
    assert (first[:30] == 1).all()
    assert (last[10:] == 1).all()
    assert np.abs(np.diff(first)).max() < 0.16, "no jump where a tile ends"
    assert (window_weights(40, 10, first=True, last=True) == 1).all()


def bright(views: Tensor, _numbers: range) -> Seen:
    """A detector whose map is the red channel, and whose score is its mean."""
    return Seen(views[:, 0].mean(dim=(-2, -1)), views[:, 0])


def test_maps_of_tiles_are_stitched_where_they_belong() -> None:
    picture = whole_levels(2, 3, *working_size((2, 3), TILE))
    sheet = make_sheet(picture, (2, 3), TILE)
    tiles = views_of((2, 3), tile_share=1.0).look(sheet, bright)
    torch.testing.assert_close(tiles.anomaly_map, picture[:, 0])
    whole = views_of((2, 3), tile_share=0.0).look(sheet, bright)
    torch.testing.assert_close(whole.score, resize_picture(picture, TILE)[:, 0].mean(dim=(-2, -1)))
    mixed = views_of((2, 3), tile_share=0.25).look(sheet, bright)
    torch.testing.assert_close(mixed.anomaly_map, 0.25 * tiles.anomaly_map + 0.75 * whole.anomaly_map)
    torch.testing.assert_close(mixed.score, 0.25 * tiles.score + 0.75 * whole.score)


def test_the_score_is_that_of_the_highest_tile() -> None:
    picture = torch.zeros(1, 3, *working_size((2, 2), TILE))
    picture[..., 24:32, 40:] = 1  # in both rows of tiles, in the right column alone
    seen = views_of(2, tile_share=1.0).look(make_sheet(picture, (2, 2), TILE), bright)
    torch.testing.assert_close(seen.score, torch.tensor([8 * 30 / (32 * 40)]))


def test_words_are_those_of_the_view_with_the_highest_map_value() -> None:
    def see(views: Tensor, _numbers: range) -> Seen:
        return Seen(views.mean(dim=(1, 2, 3)), views[:, 0], views[:, :2].mean(dim=(-2, -1)))

    picture = torch.zeros(2, 3, *working_size((2, 2), TILE))
    picture[0, :, 50, 60], picture[1, :, 2, 3] = 1, 0.8
    sheet = make_sheet(picture, (2, 2), TILE)
    (all_views,) = views_of(2).chunks(sheet)
    wanted = see(all_views, range(5)).words.unflatten(0, (2, 5))[[0, 1], [4, 1]]  # type: ignore[union-attr]
    assert torch.equal(views_of(2, view_chunk=4).look(sheet, see).words, wanted)


@pytest.mark.parametrize("shift", [(0, 0), (12, 15), (12, 0), (0, 15), (24, 30)])
def test_a_defect_counts_alike_wherever_it_lies_among_the_tiles(shift: tuple[int, int]) -> None:
    """A blot of a quarter of a tile, moved by half a tile: it lies whole in one of the tiles, and the map is as high."""
    height, width = working_size((3, 3), TILE)
    rows, columns = (torch.arange(size).float() for size in (height, width))
    blot = torch.exp(-(((rows[:, None] - 28 - shift[0]) / 2.5) ** 2) - ((columns - 35 - shift[1]) / 2.5) ** 2)
    sheet = make_sheet(blot.expand(1, 3, -1, -1), (3, 3), TILE)
    seen = views_of(3, tile_share=1.0).look(sheet, bright)
    assert float(seen.anomaly_map.amax()) == pytest.approx(1.0, abs=0.03)
    assert float(seen.score) == pytest.approx(float(blot.sum()) / (32 * 40), rel=0.05)


def test_without_tiles_the_detector_gets_the_images_themselves() -> None:
    given: list[Tensor] = []

    def see(views: Tensor, _numbers: range) -> Seen:
        given.append(views)
        return bright(views, _numbers)

    images = rand(2, 3, 77, 55)
    seen = views_of(1).look(images, see)
    assert given[0] is images
    assert torch.equal(seen.anomaly_map, images[:, 0])
    assert views_of(1).picture(images) is images


def test_chunks_bound_the_number_of_views_in_a_pass() -> None:
    sheet = make_sheet(rand(2, 3, 70, 80), (2, 2), TILE)
    assert [len(part) for part in views_of(2, view_chunk=4).chunks(sheet)] == [4, 4, 2]
    assert [len(part) for part in views_of(2, view_chunk=1).chunks(sheet)] == [2] * 5


# ---------------------------------------------------------------------- references
@torch.no_grad()
def test_a_memory_bank_leaves_an_image_out_with_all_its_views(tiny: ClipBackbone) -> None:
    views = Views(Tiling(2), view_chunk=3, tile=(32, 32))
    request = (bank := MemoryBank(sigma=0)).request(tiny)

    def features(picture: Tensor) -> object:
        parts = views.chunks(make_sheet(picture, (2, 2), (32, 32)))
        return join_features([tiny.forward_intermediates(part, request) for part in parts])

    pictures = [rand(1, 3, 56, 56), 1 - rand(1, 3, 56, 56) ** 2, rand(1, 3, 56, 56) ** 3]
    seen = [features(picture) for picture in pictures]
    assert [part.views for part in seen] == [5, 5, 5]  # type: ignore[attr-defined]
    bank.fill(seen[:2], tiny)  # type: ignore[arg-type]
    assert bank.owners.tolist() == [0] * 5 + [1] * 5
    assert bank(seen[0], tiny, (32, 32)).max() < 0.05  # type: ignore[arg-type]
    alone = MemoryBank(sigma=0)
    alone.fill(seen[1:2], tiny)  # type: ignore[arg-type]
    for substitute, others in ((None, seen[1:2]), (bank.patches_of(seen[2], tiny), seen[1:])):  # type: ignore[arg-type]
        reference = MemoryBank(sigma=0)
        reference.fill(others, tiny)  # type: ignore[arg-type]
        reference.reference = bank.reference
        wanted = reference(seen[0], tiny, (32, 32))  # type: ignore[arg-type]
        found = bank(seen[0], tiny, (32, 32), 0, substitute)  # type: ignore[arg-type]
        torch.testing.assert_close(found, wanted)
    assert 1e-4 < alone.reference < 2
    bank.clear()
    assert not len(bank.owners)


class Named(Dataset):
    """Names its files as anomalib's data sets do."""

    def __init__(self, files: list[Path]) -> None:
        self.image_filenames = files

    def __len__(self) -> int:
        return len(self.image_filenames)


@pytest.mark.parametrize(
    ("tiles", "unlabelled", "sides", "expected"),
    [
        ("auto", 0, (8, 8), 1),
        (1, 0, (8, 9), 4),
        (1, 6, (8, 8), 4),
        (1, 6, (8, 9), 1),
        (2, "all", (8, 9), 1),
    ],
)
def test_pictures_come_one_by_one_where_a_batch_would_change_them(
    tmp_path: Path, tiles: int | str, unlabelled: int | str, sides: tuple[int, int], expected: int
) -> None:
    """anomalib brings the pictures of a batch to one size, and references are read one by one."""
    files = [tmp_path / f"{index}.png" for index in range(2)]
    for file, side in zip(files, sides, strict=True):
        Image.new("RGB", (8, side)).save(file)
    (tmp_path / "damaged.png").write_bytes(b"no image")
    parts = [Named([file]) for file in (tmp_path / "damaged.png", *files)]
    data = SimpleNamespace(eval_batch_size=4, test_data=ConcatDataset(parts))
    pre_processor = ClipPreProcessor.for_size((16, 16), (0.5,) * 3, (0.5,) * 3, Tiling(tiles))
    module = SimpleNamespace(pre_processor=pre_processor, unlabelled=unlabelled)
    callback, trainer = OneByOne(), SimpleNamespace(datamodule=data)
    callback.setup(trainer, module, "test")  # type: ignore[arg-type]
    assert data.eval_batch_size == expected
    callback.teardown(trainer, module, "test")  # type: ignore[arg-type]
    assert data.eval_batch_size == 4
