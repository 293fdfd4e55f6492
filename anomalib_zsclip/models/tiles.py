"""The argument ``tiles`` as an attribute that can be changed."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

from lightning.pytorch import LightningModule

from anomalib_zsclip.errors import ArgumentError
from anomalib_zsclip.images import ClipPreProcessor, Tiling
from anomalib_zsclip.images.tiling import Tiles

from .zero_shot_model import ZeroShotModel


class TilesMixin(LightningModule):
    """Keeps the tiles that the pre-processor lays out and those that the model cuts the same."""

    model: ZeroShotModel
    pre_processor: Any

    @property
    def tiles(self) -> Tiles:
        """Tiles that pictures are looked at in besides; see the argument. Thresholds and references follow a change."""
        return self.model.views.tiling.tiles

    @tiles.setter
    def tiles(self, tiles: Tiles) -> None:
        tiling = Tiling(tiles, self.model.views.tiling.max_tiles)
        if not isinstance(self.pre_processor, ClipPreProcessor) or self.pre_processor.resize is None:
            msg = f"tiles={tiles!r} needs the default pre-processor, which lays out the tiles."
            raise ArgumentError(msg)
        self.pre_processor.retile(tiling)
        self.model.views = replace(self.model.views, tiling=tiling)
