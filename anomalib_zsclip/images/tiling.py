"""Grids of overlapping tiles, and the sheet that takes a picture and its tiles to the model in one tensor.

A tile is as large as the whole picture is shown to the tower: ``tile`` = (height, width) of one view. A grid of tiles is
laid over the picture at its *working size*, where neighbours overlap by a quarter and together cover it exactly. Picture
and whole view are both resized from the original, by the published rules, and lie on one *sheet* ``[B, 3, H + h, W + 1]``:
the picture at its working size ``H x W``, the whole view ``h x w`` below it, and -1 elsewhere, which no picture contains.
"""

from __future__ import annotations

import logging
import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal

import torch
import torch.nn.functional as F
from lightning.pytorch import Callback, LightningModule, Trainer
from torch import Tensor

from anomalib_zsclip.errors import ArgumentError, check_whole_number

from .data_files import files_of
from .reading import read_header
from .resize import PublishedResize, resize_picture

logger = logging.getLogger(__name__)

Size = tuple[int, int]
"""Height and width in pixels, or rows and columns."""

Tiles = int | tuple[int, int] | Literal["auto"]
"""``n`` for n x n tiles, (rows, columns), or ``"auto"``; 1 is the whole picture alone."""

OVERLAP = 0.25
"""Share of a tile that its neighbour shows too: a defect of up to a quarter of a tile lies whole in one of them."""

MAX_TILES = 64
"""Most tiles unless told otherwise: some seconds per picture with the built-in CLIP on a processor."""

EMPTY = -1.0
"""What a sheet has where there is neither the picture nor the whole view."""


@dataclass(frozen=True)
class Tiling:
    """How many tiles a picture gets.

    Args:
        tiles: See :data:`Tiles`.
        max_tiles: Most tiles of a picture.

    Raises:
        ArgumentError: If ``tiles`` is of another form, or more than ``max_tiles``.
    """

    tiles: Tiles = 1
    max_tiles: int = MAX_TILES

    def __post_init__(self) -> None:
        """Check the arguments."""
        check_whole_number("max_tiles", self.max_tiles, 1)
        grid = self.fixed
        if grid is not None and grid[0] * grid[1] > self.max_tiles:
            msg = (
                f"tiles={self.tiles} makes {grid[0]} x {grid[1]} = {grid[0] * grid[1]} tiles of each picture, and "
                f"max_tiles={self.max_tiles} allows fewer: raise max_tiles, or take fewer tiles."
            )
            raise ArgumentError(msg)

    @property
    def is_auto(self) -> bool:
        """Whether each picture gets a grid of its own."""
        return self.tiles == "auto"

    @property
    def is_on(self) -> bool:
        """Whether there may be tiles at all."""
        return self.fixed != (1, 1)

    @property
    def fixed(self) -> Size | None:
        """Rows and columns of the grid that all pictures get; ``None`` for ``"auto"``."""
        if self.is_auto:
            return None
        pair = (self.tiles, self.tiles) if isinstance(self.tiles, int) else self.tiles
        whole = isinstance(pair, Sequence) and not isinstance(pair, str) and len(pair) == 2
        if not whole or not all(isinstance(n, int) and not isinstance(n, bool) and n >= 1 for n in pair):
            msg = (
                f"tiles={self.tiles!r} must be 1 for the whole picture alone, n for n x n tiles, (rows, columns), or "
                "'auto' for as many as show a picture near its own resolution."
            )
            raise ArgumentError(msg)
        return (int(pair[0]), int(pair[1]))

    def grid(self, picture: Size, tile: Size) -> Size:
        """Rows and columns of the grid of a picture; with ``"auto"`` that whose working size is nearest to its own.

        Args:
            picture: Height and width of the picture.
            tile: Height and width of a tile.
        """
        if self.fixed is not None:
            return self.fixed
        wanted = _nearest_grid(picture, tile, 1.0)
        if wanted[0] * wanted[1] <= self.max_tiles:
            return wanted
        low, high = 0.0, 1.0  # the largest scale whose grid is allowed
        for _ in range(30):
            middle = (low + high) / 2
            rows, columns = _nearest_grid(picture, tile, middle)
            low, high = (middle, high) if rows * columns <= self.max_tiles else (low, middle)
        grid = _nearest_grid(picture, tile, low)
        _say_that_tiles_are_capped(self.max_tiles, picture, wanted, grid)
        return grid


NO_TILES = Tiling()


def stride(tile: Size) -> Size:
    """Steps from tile to tile along y and x."""
    return (tile[0] - round(OVERLAP * tile[0]), tile[1] - round(OVERLAP * tile[1]))


def working_size(grid: Size, tile: Size) -> Size:
    """Height and width that a grid of tiles covers."""
    steps = stride(tile)
    return (tile[0] + (grid[0] - 1) * steps[0], tile[1] + (grid[1] - 1) * steps[1])


def _nearest_grid(picture: Size, tile: Size, scale: float) -> Size:
    rows, columns = (
        1 + max(0, round((scale * side - own) / step))
        for side, own, step in zip(picture, tile, stride(tile), strict=True)
    )
    return rows, columns


_capped: set[int] = set()


def _say_that_tiles_are_capped(max_tiles: int, picture: Size, wanted: Size, grid: Size) -> None:
    if max_tiles in _capped:
        return
    _capped.add(max_tiles)
    logger.warning(
        "A picture of %d x %d pixels (height x width) takes %d x %d tiles at its own resolution, more than max_tiles=%d: it "
        "gets %d x %d, and is shown smaller than it is, as are others of its size. Raise max_tiles to see more.",
        *(*picture, *wanted, max_tiles, *grid),
    )


# ---------------------------------------------------------------------- sheets
def is_sheet(images: Tensor) -> bool:
    """Whether images in [0, 1], ``[..., 3, H, W]``, are sheets already."""
    return bool((images[..., -1, -1] == EMPTY).all())


def make_sheet(images: Tensor, grid: Size, tile: Size) -> Tensor:
    """Lay pictures and their whole views on sheets: ``[..., 3, y, x]`` -> ``[..., 3, H + h, W + 1]``, in [0, 1] or -1."""
    height, width = working_size(grid, tile)
    images = images if images.is_floating_point() else images / 255
    sheet = images.new_full((*images.shape[:-2], height + tile[0], width + 1), EMPTY)
    if torch.compiler.is_exporting():
        picture, whole = resize_picture(images, (height, width)), resize_picture(images, tile)
        padded = F.pad(whole, (0, width + 1 - tile[1]), value=EMPTY)
        return torch.cat([F.pad(picture, (0, 1), value=EMPTY), padded], dim=-2)
    for channel in range(images.shape[-3]):  # one by one: a camera's picture fills hundreds of megabytes with each copy
        one = images[..., channel : channel + 1, :, :]
        sheet[..., channel : channel + 1, :height, :width] = resize_picture(one, (height, width))
        sheet[..., channel : channel + 1, height:, : tile[1]] = resize_picture(one, tile)
    return sheet


def grid_of_sheet(shape: Sequence[int], tile: Size) -> Size | None:
    """Rows and columns of the grid of a sheet, by its height and width; ``None`` if there is none of this size."""
    steps = stride(tile)
    spare = (shape[-2] - 2 * tile[0], shape[-1] - 1 - tile[1])
    if any(rest < 0 or rest % step for rest, step in zip(spare, steps, strict=True)):
        return None
    return (spare[0] // steps[0] + 1, spare[1] // steps[1] + 1)


class TiledResize(PublishedResize):
    """Brings pictures onto sheets with the grids that a tiling gives them, masks to the working size.

    A picture whose grid is 1 x 1 becomes the whole view alone, as with :class:`PublishedResize`. Sheets pass as they are,
    so that a data set, a reader ahead and the pre-processor may all apply it.

    Args:
        size: Height and width of a tile and of the whole view.
        tiling: How many tiles.
        published_masks: See :class:`PublishedResize`.
    """

    def __init__(self, size: Sequence[int], tiling: Tiling, *, published_masks: bool = False) -> None:
        super().__init__(size, published_masks=published_masks)
        self._tiling = tiling
        # Shown in the repr, which thresholds and references are bound to.
        self.tiles = f"auto, at most {tiling.max_tiles}" if tiling.fixed is None else "{} x {}".format(*tiling.fixed)

    @property
    def tiling(self) -> Tiling:
        """How many tiles."""
        return self._tiling

    @property
    def whole(self) -> PublishedResize:
        """The resize to the whole view alone."""
        return PublishedResize(self.size, published_masks=self.published_masks)

    @property
    def largest(self) -> Size:
        """Height and width of the largest sheet."""
        tile, most = (self.size[0], self.size[1]), self._tiling.max_tiles
        grids = [self._tiling.fixed] if self._tiling.fixed else [(1, most), (most, 1)]
        sizes = [working_size(grid, tile) for grid in grids]
        return max(((height + tile[0], width + 1) for height, width in sizes), key=math.prod)

    @property
    def is_uniform(self) -> bool:
        """Whether all results are of one size."""
        return not self._tiling.is_auto

    def mask_size(self, mask: Tensor) -> Size:
        """Working size of the image that a mask belongs to."""
        tile = (self.size[0], self.size[1])
        return working_size(self._tiling.grid((mask.shape[-2], mask.shape[-1]), tile), tile)

    def apply(self, images: Tensor) -> Tensor:
        """Sheets of images ``[..., 3, H, W]``, or their whole views where the grid is 1 x 1."""
        tile = (self.size[0], self.size[1])
        if not torch.compiler.is_exporting() and is_sheet(images):
            return images
        grid = self._tiling.fixed or self._tiling.grid((images.shape[-2], images.shape[-1]), tile)
        return resize_picture(images, tile) if grid == (1, 1) else make_sheet(images, grid, tile)


class OneByOne(Callback):
    """Has a data module's test images judged one by one where each has a grid of its own, and so a size of its own.

    The same where pictures of several sizes are compared with each other: anomalib resizes those of a batch to one size
    before the model does, and a picture would not be known for the reference that it is.
    """

    def __init__(self) -> None:
        self._changed: list[tuple[Any, int]] = []

    def setup(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        """Take batches of one."""
        del stage
        resize: Any = getattr(pl_module.pre_processor, "resize", None)
        data: Any = getattr(trainer, "datamodule", None)
        if resize is None or getattr(data, "eval_batch_size", 1) == 1:
            return
        if resize.is_uniform and not (getattr(pl_module, "unlabelled", 0) and _differ_in_size(data)):
            return
        self._changed.append((data, data.eval_batch_size))
        data.eval_batch_size = 1

    def teardown(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        """Give the data module its number back."""
        del trainer, pl_module, stage
        for data, batch_size in self._changed:
            data.eval_batch_size = batch_size
        self._changed = []


def _differ_in_size(data: Any) -> bool:  # noqa: ANN401 - a data module
    """Whether the files of a data module's test images have several sizes."""
    files = [path for name in ("test_data", "val_data") for path in files_of(getattr(data, name, None))]
    headers = (read_header(path) for path in dict.fromkeys(files))
    sizes = (header.size for header in headers if header is not None)
    first = next(sizes, None)
    return any(size != first for size in sizes)
