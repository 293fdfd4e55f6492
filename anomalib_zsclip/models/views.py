"""Whole and tiles: the views of a picture, and how what is seen in them becomes one score and one map.

The pre-processor lays a picture and its whole view on a sheet (:mod:`anomalib_zsclip.images.tiling`). Here the sheet is cut
into views, all of one size, that pass through the tower as images of one batch, the whole first; heads see views and
never know. The maps of the tiles are blended where tiles overlap, and fused with the enlarged map of the whole; the score
is fused of the whole's and the highest of the tiles'.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass, fields
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor

from anomalib_zsclip.clip import ImageFeatures
from anomalib_zsclip.errors import ArgumentError, check_share, check_whole_number
from anomalib_zsclip.heads.maps import like, upsample
from anomalib_zsclip.heads.options import Recipe
from anomalib_zsclip.images import Tiling
from anomalib_zsclip.images.tiling import MAX_TILES, NO_TILES, Size, Tiles, grid_of_sheet, stride, working_size

VIEW_CHUNK = 32
"""Views in one pass of the tower: more are hardly faster, and 32 take some 0.5 GB with the built-in CLIP."""

WHOLE = range(1)
"""Numbers of the views of a picture that is looked at as a whole alone."""

TILE_SHARE = 0.5
"""The mean of whole and tiles."""


class Seen(NamedTuple):
    """What a detector sees in a batch of views.

    Attributes:
        score: Image scores ``[N]``.
        anomaly_map: Maps ``[N, h, w]``.
        words: Probabilities of the defect words ``[N, words]``, where defects are named.
    """

    score: Tensor
    anomaly_map: Tensor
    words: Tensor | None = None


@dataclass(frozen=True)
class Views:
    """How pictures are looked at.

    Args:
        tiling: How many tiles a picture gets.
        tile_share: Share of the tiles in score and map, in [0, 1]; the rest is the whole picture's.
        view_chunk: Views that pass through the tower at a time, which bounds the memory; at least one of each picture.
        tile: Height and width of a view; ``None`` before it is known.

    Raises:
        ArgumentError: If a value is out of range.
    """

    tiling: Tiling = NO_TILES
    tile_share: float = TILE_SHARE
    view_chunk: int = VIEW_CHUNK
    tile: Size | None = None

    def __post_init__(self) -> None:
        """Check the arguments."""
        check_share("tile_share", self.tile_share)
        check_whole_number("view_chunk", self.view_chunk, 1)

    @classmethod
    def of(
        cls, tiles: Tiles, max_tiles: int = MAX_TILES, tile_share: float = TILE_SHARE, view_chunk: int = VIEW_CHUNK
    ) -> Views:
        """Make them from the arguments of a model."""
        return cls(Tiling(tuple(tiles) if isinstance(tiles, list) else tiles, max_tiles), tile_share, view_chunk)

    def recipe(self) -> Recipe:
        """What scores depend on, besides the tiles themselves, which the pre-processor tells; nothing without tiles."""
        return {"tile_share": self.tile_share} if self.tiling.is_on else {}

    def check_exportable(self) -> None:
        """Refuse an export that would have a grid for each picture.

        Raises:
            ArgumentError: With ``tiles="auto"``.
        """
        if self.tiling.is_auto:
            msg = (
                "tiles='auto' gives each picture tiles of its own number, and an exported model has a fixed one: make the "
                "model with a number, such as tiles=2 or tiles=(2, 3). Thresholds and references are then made for it."
            )
            raise ArgumentError(msg)

    def grid(self, images: Tensor) -> Size:
        """Rows and columns of tiles on pre-processed images ``[B, 3, H, W]``; (1, 1) for whole pictures.

        Raises:
            ArgumentError: If there shall be tiles, and these are neither sheets nor whole pictures.
        """
        shape = images.shape[-2:]
        if not self.tiling.is_on or self.tile is None or tuple(shape) == self.tile:
            return (1, 1)
        grid = grid_of_sheet(shape, self.tile)
        if grid is None:
            msg = (
                f"Images of {shape[0]} x {shape[1]} pixels do not come from the pre-processor of a model with "
                f"tiles={self.tiling.tiles!r}: call the model itself, not model.model, or pass images through "
                "model.pre_processor first."
            )
            raise ArgumentError(msg)
        return grid

    # ------------------------------------------------------------------ cutting
    def picture(self, images: Tensor) -> Tensor:
        """Pictures at their working size, ``[B, 3, H, W]``, of sheets or whole pictures."""
        grid = self.grid(images)
        if grid == (1, 1):
            return images
        height, width = working_size(grid, self._tile)
        return images[..., :height, :width]

    def chunks(self, images: Tensor) -> Iterator[Tensor]:
        """Views of sheets, in chunks: of each picture the same ones, ``[B * n, 3, h, w]`` with those of a picture together.

        The whole comes first, then the tiles row by row. An exported graph has one chunk: its batch may be of any size.
        """
        for _, _, views in self._chunks(images):
            yield views

    def _chunks(self, images: Tensor) -> Iterator[tuple[range, list[Size], Tensor]]:
        """The chunks, each with the numbers of its views and their corners."""
        boxes = self._boxes(self.grid(images))
        height, width = self._tile
        count = len(boxes) if torch.compiler.is_exporting() else max(1, self.view_chunk // max(1, len(images)))
        for start in range(0, len(boxes), count):
            part = boxes[start : start + count]
            views = [images[..., top : top + height, left : left + width] for top, left in part]
            yield range(start, start + len(part)), part, torch.stack(views, dim=1).flatten(0, 1)

    def _boxes(self, grid: Size) -> list[Size]:
        """Top left corners of the views on a sheet."""
        (down, across), (rows, columns) = stride(self._tile), grid
        whole = (working_size(grid, self._tile)[0], 0)
        return [whole, *((row * down, column * across) for row in range(rows) for column in range(columns))]

    @property
    def _tile(self) -> Size:
        assert self.tile is not None
        return self.tile

    # ------------------------------------------------------------------ looking, and putting together
    def look(self, images: Tensor, see: Callable[[Tensor, range], Seen]) -> Seen:
        """Look at all views of pre-processed images, and fuse what is seen.

        Args:
            images: Sheets, or whole pictures, which ``see`` gets as they are. ``[B, 3, H, W]``.
            see: What the detector sees in a batch of views, of each picture those with the same numbers; 0 is the whole.

        Returns:
            Scores ``[B]``, maps at the working size ``[B, H, W]``, and the words for the view with the highest map value.
        """
        grid = self.grid(images)
        if grid == (1, 1):
            return see(images, WHOLE)
        scores, peaks, words = [], [], []
        canvas = whole = None
        for numbers, boxes, views in self._chunks(images):
            seen = see(views, numbers)
            scores.append(seen.score.unflatten(0, (-1, len(boxes))))
            maps = seen.anomaly_map.unflatten(0, (-1, len(boxes)))  # [B, n, h, w]
            peaks.append(maps.amax(dim=(-2, -1)))
            if seen.words is not None:
                words.append(seen.words.unflatten(0, (-1, len(boxes))))
            tiles = list(zip(boxes, maps.unbind(1), strict=True))
            if canvas is None:
                (_, whole), *tiles = tiles
                canvas = maps.new_zeros(images.shape[0], *working_size(grid, self._tile))
            for box, own in tiles:
                self._add(canvas, own, box, grid)
        assert canvas is not None
        assert whole is not None
        enlarged = upsample(whole, working_size(grid, self._tile))
        anomaly_map = canvas.mul_(self.tile_share).add_(enlarged, alpha=1 - self.tile_share).clamp_(0, 1)
        score = torch.cat(scores, dim=1)  # [B, 1 + tiles]
        score = (1 - self.tile_share) * score[:, 0] + self.tile_share * score[:, 1:].amax(dim=1)
        if not words:
            return Seen(score, anomaly_map)
        best = torch.cat(peaks, dim=1).argmax(dim=1)
        return Seen(score, anomaly_map, torch.cat(words, dim=1)[torch.arange(images.shape[0]), best])

    def _add(self, canvas: Tensor, maps: Tensor, box: Size, grid: Size) -> None:
        """Add the maps ``[B, h, w]`` of a tile to the canvas ``[B, H, W]``, with weights that add up to one."""
        axes = []
        for start, side, step, count in zip(box, self._tile, stride(self._tile), grid, strict=True):
            weights = like(maps, window_weights, side, side - step, start == 0, start == (count - 1) * step)
            axes.append((slice(start, start + side), weights))
        (rows, down), (columns, across) = axes
        canvas[:, rows, columns] += maps * down[:, None] * across


def window_weights(side: int, overlap: int, first: bool, last: bool) -> np.ndarray:
    """Weights ``[side]`` of a tile along one axis: rising and falling as squared sines where neighbours overlap, else 1.

    Two neighbours' weights add up to one everywhere, and neither jumps nor bends at the border of a tile.

    Args:
        side: Side of a tile.
        overlap: Pixels that it shares with a neighbour.
        first: Whether no tile comes before it.
        last: Whether no tile comes after it.
    """
    rise = np.sin(np.pi / 2 * (np.arange(overlap) + 0.5) / max(overlap, 1)) ** 2
    weights = np.ones(side)
    if not first:
        weights[:overlap] = rise
    if not last:
        weights[side - overlap :] = rise[::-1]
    return weights.astype(np.float32)


def join_features(parts: list[ImageFeatures]) -> ImageFeatures:
    """Features of several chunks of views of one picture as one batch."""
    joined: dict[str, Any] = {}
    for field in fields(ImageFeatures):
        values = [getattr(part, field.name) for part in parts]
        if isinstance(values[0], Tensor):
            joined[field.name] = torch.cat(values)
        elif isinstance(values[0], dict):
            joined[field.name] = {key: torch.cat([value[key] for value in values]) for key in values[0]}
    return ImageFeatures(**joined, grid=parts[0].grid, views=len(joined["image_embedding"]))
