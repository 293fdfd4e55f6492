"""A memory bank of normal patches, for when a few normal images are at hand (WinCLIP+, APRIL-GAN)."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

import torch
import torch.nn.functional as F
from anomalib.models.components import DynamicBufferMixin
from torch import Tensor

from anomalib_zsclip.clip import ClipBackbone, FeatureRequest, ImageFeatures
from anomalib_zsclip.errors import ArgumentError, CheckpointError

from .maps import tokens_to_grid, upsample_and_smooth
from .options import Recipe


def neighbour_mask(grid: tuple[int, int], radius: int) -> Tensor:
    """Which patches of a grid are at most ``radius`` apart along both axes, ``[L, L]``; on a small grid only equal ones."""
    if min(grid) < 2 * radius + 2:  # else a patch in the middle would have no other one
        radius = 0
    rows, columns = (axis.flatten() for axis in torch.meshgrid(*map(torch.arange, grid), indexing="ij"))
    return torch.maximum((rows[:, None] - rows).abs(), (columns[:, None] - columns).abs()) <= radius


class MemoryBank(DynamicBufferMixin):
    """Compares patches with those of a few normal images (WinCLIP, arXiv 2303.14814).

    Compared are the patch tokens themselves, in which small defects stand out, and their means over 3 x 3 patches
    (PatchCore, arXiv 2106.08265, section 3.1), in which large ones do. The distance of a patch is one minus its cosine to
    the nearest patch of the memory, averaged over these scales and over some blocks of the tower. It becomes a probability
    by ``d^2 / (d^2 + r^2)``, where ``r`` is the distance that almost no patch of the normal images themselves exceeds, each
    compared with the *other* images of the memory.

    Args:
        layers: Blocks whose tokens are compared. Default: the middle of the tower and its third quarter.
        quantile: Share of the normal patches whose distance is below ``r``.
        sigma: Gaussian smoothing of the map in pixels. Default: 4 at 240 px, in proportion to the image size.
        scales: Sides of the squares of patches over which tokens are averaged, odd; 1 is the token itself.
    """

    patches: Tensor
    reference: Tensor
    owners: Tensor

    def __init__(
        self,
        layers: Sequence[int] | None = None,
        quantile: float = 0.99,
        sigma: float | None = None,
        scales: Sequence[int] = (1, 3),
    ) -> None:
        super().__init__()
        if not 0 < quantile < 1:
            msg = f"memory bank: quantile={quantile} must be between 0 and 1."
            raise ArgumentError(msg)
        if not scales or any(side < 1 or side % 2 == 0 for side in scales):
            msg = f"memory bank: scales={scales} must be odd and positive."
            raise ArgumentError(msg)
        self.layers = None if layers is None else tuple(layers)
        self.quantile = quantile
        self.sigma = sigma
        self.scales = tuple(scales)
        self.register_buffer("patches", torch.empty(0))  # [layers * scales, views, L, W], unit vectors
        # Image of each view; empty where each image is one view.
        self.register_buffer("owners", torch.empty(0, dtype=torch.long))
        self.register_buffer("reference", torch.tensor(1.0))

    @property
    def is_filled(self) -> bool:
        """Whether there are normal images in the memory bank."""
        return self.patches.numel() > 0

    def recipe(self, backbone: ClipBackbone) -> Recipe:
        """What the contents depend on, besides the images."""
        return {"layers": self.blocks(backbone), "scales": list(self.scales), "quantile": self.quantile}

    def clear(self) -> None:
        """Forget all images."""
        self.patches = torch.empty(0, device=self.patches.device)
        self.reference = torch.tensor(1.0, device=self.reference.device)
        self.owners = self.owners[:0]

    def blocks(self, backbone: ClipBackbone) -> list[int]:
        """Blocks whose tokens are compared."""
        depth = backbone.layers
        return sorted(set(self.layers or (max(1, depth // 2), max(1, 3 * depth // 4))))

    def request(self, backbone: ClipBackbone) -> FeatureRequest:
        """Ordinary tokens of the blocks."""
        return FeatureRequest.of(tokens=self.blocks(backbone))

    @torch.no_grad()
    def fill(self, batches: Iterable[ImageFeatures], backbone: ClipBackbone) -> None:
        """Remember the patches of normal images, and find the reference distance.

        Args:
            batches: Features of the normal images, of one size.
            backbone: The frozen CLIP.
        """
        patches, grid, counts = [], (0, 0), []
        for features in batches:
            patches.append(self.patches_of(features, backbone))
            grid = features.grid
            counts += [features.views] * (patches[-1].shape[1] // features.views)
        self.patches = torch.cat(patches, dim=1)
        views, images = self.patches.shape[1], len(counts)
        owners = torch.repeat_interleave(torch.tensor(counts if views > images else [], dtype=torch.long))
        self.owners = owners.to(self.patches.device)
        if images == 1:  # Each view can only be compared with its own other patches: others show the same again.
            mask = neighbour_mask(grid, max(self.scales) // 2)
            distances = torch.cat(
                [self._distances(self.patches[:, view : view + 1], within=(view, mask)) for view in range(views)]
            )
        else:
            distances = torch.cat(
                [
                    self._distances(self.patches[:, view : view + 1], leave_out=self._owner(view))
                    for view in range(views)
                ]
            )
        self.reference = torch.quantile(distances.flatten(), self.quantile).clamp(min=1e-4)

    def _owner(self, view: int) -> int:
        """Image that a view in the bank is of."""
        return int(self.owners[view]) if len(self.owners) else view

    def forward(
        self,
        features: ImageFeatures,
        backbone: ClipBackbone,
        size: tuple[int, int],
        leave_out: int | None = None,
        substitute: Tensor | None = None,
    ) -> Tensor:
        """Probability of anomalous per pixel, ``[B, H, W]``.

        Args:
            features: Result of the pass.
            backbone: The frozen CLIP.
            size: Height and width of the map.
            leave_out: Image of the memory bank that does not count, with all its views.
            substitute: What takes its place: the result of :meth:`patches_of` for one other image.

        Raises:
            CheckpointError: If the memory bank was filled with other blocks or scales.
        """
        patches = self.patches_of(features, backbone)
        if len(patches) != len(self.patches):
            msg = (
                f"The memory bank has {len(self.patches)} rows of blocks and scales, the model compares "
                f"{len(patches)}: it was filled with other settings or by an older version. Make a new model with k_shot."
            )
            raise CheckpointError(msg)
        squared = self._distances(patches, leave_out, substitute=substitute) ** 2  # [B, L]
        probabilities = squared / (squared + self.reference**2)
        sigma = 4.0 * min(size) / 240 if self.sigma is None else self.sigma
        return upsample_and_smooth(tokens_to_grid(probabilities, features.grid), size, sigma).clamp(0, 1)

    def patches_of(self, features: ImageFeatures, backbone: ClipBackbone) -> Tensor:
        """Unit patch tokens of all blocks, at each scale: ``[layers * scales, B, L, W]``."""
        rows = []
        for block in self.blocks(backbone):
            grid = tokens_to_grid(features.tokens[block][:, 1:].transpose(1, 2), features.grid)  # [B, W, h, w]
            for side in self.scales:
                means = F.avg_pool2d(grid, side, stride=1, padding=side // 2, count_include_pad=False)
                rows.append(F.normalize(means.flatten(2).transpose(1, 2), dim=-1))
        return torch.stack(rows)

    def _distances(
        self,
        patches: Tensor,
        leave_out: int | None = None,
        within: tuple[int, Tensor] | None = None,
        substitute: Tensor | None = None,
    ) -> Tensor:
        """Distance ``[B, L]`` to the nearest patch of the memory bank.

        Args:
            patches: Unit vectors ``[layers * scales, B, L, W]``.
            leave_out: Image of the memory bank that does not count.
            within: The one view of the bank that counts, where a view is compared with itself, and pairs ``[L, L]`` that
                do not.
            substitute: Patches of one image, ``[layers * scales, views, L, W]``, that count in its place.
        """
        rows = []
        # Image by image bounds the memory, and leaves the size of the batch open when the model is exported.
        for row, (own, normal) in enumerate(zip(patches, self.patches, strict=True)):
            nearest = own.new_full(own.shape[:2], -1.0)
            others = [known for view, known in enumerate(normal) if self._counts(view, leave_out, within)]
            if leave_out is not None and substitute is not None:
                others += list(substitute[row])
            for known in others:
                cosines = own @ known.T  # [B, L, L]
                if within is not None:
                    cosines = cosines.masked_fill(within[1].to(cosines.device), -1)
                nearest = torch.maximum(nearest, cosines.amax(dim=-1))
            rows.append((1 - nearest).clamp(min=0))
        return torch.stack(rows).mean(dim=0)

    def _counts(self, view: int, leave_out: int | None, within: tuple[int, Tensor] | None) -> bool:
        if within is not None:
            return view == within[0]
        return leave_out is None or self._owner(view) != leave_out
