"""Images as CLIP wants them."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from anomalib.data import Batch
from anomalib.pre_processing import PreProcessor
from anomalib.pre_processing.utils.transform import get_exportable_transform
from lightning.pytorch import LightningModule, Trainer
from torch import Tensor
from torchvision.transforms.v2 import Compose, InterpolationMode, Normalize, Resize, Transform

from .resize import PublishedResize
from .tiling import NO_TILES, TiledResize, Tiling


class ClipPreProcessor(PreProcessor):
    """Resize to a fixed size as the published programs do (aspect ratio not kept), then normalise.

    anomalib takes the antialiasing away from every forward outside the engine, since ONNX has no such operator. Here
    every forward has it, in an exported graph as two matrix products: scores are the same everywhere.

    Args:
        transform: The steps. A bicubic antialiased ``Resize`` to a fixed size becomes a :class:`PublishedResize`.
        tiling: Tiles that a picture gets besides, where there is such a resize: see :class:`TiledResize`.
    """

    def __init__(self, transform: Transform | None = None, tiling: Tiling = NO_TILES) -> None:
        self.tiling = tiling
        super().__init__(_exchange(transform, self._published))

    @classmethod
    def for_size(
        cls, size: tuple[int, int], mean: Sequence[float], std: Sequence[float], tiling: Tiling = NO_TILES
    ) -> ClipPreProcessor:
        """Make the pre-processor for images of ``size`` = (height, width)."""
        return cls(Compose([PublishedResize(size), Normalize(mean=list(mean), std=list(std))]), tiling)

    @property
    def resize(self) -> PublishedResize | None:
        """The transform's resize to a fixed size, where it begins with one."""
        steps = self._steps()
        return steps[0] if steps and isinstance(steps[0], PublishedResize) else None

    def forward(self, batch: Tensor) -> Tensor:
        """Transform images in [0, 1], ``[B, 3, H, W]``."""
        if self.transform is None:
            return batch
        if not torch.compiler.is_exporting():
            return self.transform(batch)
        for step in self._steps():
            batch = step.apply(batch) if isinstance(step, PublishedResize) else _exportable(step, batch)
        return batch

    def checkpoint_config(self) -> dict[str, Any]:
        """Plain data for a checkpoint, where torchvision's resize stands for ours: anomalib knows that one."""
        return PreProcessor(_exchange(self.transform, _plain)).checkpoint_config()

    def load_checkpoint_config(self, config: dict[str, Any]) -> None:
        """Take the steps of a checkpoint; tiles, and what is done to masks, stay as they are here."""
        own = self.resize
        super().load_checkpoint_config(config)
        self._exchange_resize(own)

    def retile(self, tiling: Tiling) -> None:
        """Give pictures other tiles."""
        self.tiling = tiling
        self._exchange_resize(self.resize)

    def _exchange_resize(self, own: PublishedResize | None) -> None:
        """Put in our resize, with the tiles of now, and treat masks as ``own`` does."""
        self.transform = _exchange(self.transform, lambda step: self._published(_plain(step)))
        if own is not None and self.resize is not None:
            self.resize.published_masks = own.published_masks

    def on_train_batch_start(self, trainer: Trainer, pl_module: LightningModule, batch: Batch, batch_idx: int) -> None:
        """Show whole pictures to a head that learns."""
        del trainer, pl_module, batch_idx
        transform = whole_only(self.transform)
        if transform is not None:
            batch.image, batch.gt_mask = transform(batch.image, batch.gt_mask)

    def _published(self, step: Transform) -> Transform:
        """Our resize in place of torchvision's, with tiles where there shall be some."""
        bicubic = isinstance(step, Resize) and step.interpolation == InterpolationMode.BICUBIC and step.antialias
        if not (bicubic and isinstance(step.size, Sequence) and len(step.size) == 2):
            return step
        if self.tiling.is_on and not isinstance(step, TiledResize):
            return TiledResize(step.size, self.tiling)
        return step if isinstance(step, PublishedResize) else PublishedResize(step.size)

    def _steps(self) -> list[Transform]:
        """The transform's steps, in order; none without a transform."""
        if self.transform is None:
            return []
        return list(self.transform.transforms) if isinstance(self.transform, Compose) else [self.transform]


def whole_only(transform: Transform | None) -> Transform | None:
    """A transform without tiles."""
    return _exchange(transform, lambda step: step.whole if isinstance(step, TiledResize) else step)


def _exchange(transform: Transform | None, change: Any) -> Transform | None:  # noqa: ANN401 - a function of a step
    """The transform with each of its steps changed."""
    if isinstance(transform, Compose):
        return Compose([change(step) for step in transform.transforms])
    return None if transform is None else change(transform)


def _plain(step: Transform) -> Transform:
    if isinstance(step, PublishedResize):
        return Resize(step.size, interpolation=InterpolationMode.BICUBIC, antialias=True)
    return step


def _exportable(step: Transform, batch: Tensor) -> Tensor:
    transform = get_exportable_transform(step)
    return batch if transform is None else transform(batch)
