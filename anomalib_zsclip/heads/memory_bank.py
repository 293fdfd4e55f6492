"""A memory bank of patches: of a few good parts (WinCLIP+, APRIL-GAN), and of the unlabelled folder itself (MuSc)."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence

import torch
import torch.nn.functional as F
from anomalib.models.components import DynamicBufferMixin
from torch import Tensor

from anomalib_zsclip.clip import ClipBackbone, FeatureRequest, ImageFeatures
from anomalib_zsclip.errors import ArgumentError, CheckpointError, check_list, check_whole_number

from .maps import tokens_to_grid, upsample_and_smooth
from .mutual import SHARE, interval_means, nearest_distances, normalize_image, window_means
from .options import Recipe, check_layers

SAME_PATCHES = 0.03
"""Distance of unit patches, each to the one at its own place, up to which two images are one. Another batch size or number
of threads moves patches by 1e-3 in float32 and 1e-2 in bf16; photographs of one part differ by 0.1 and more somewhere."""


def neighbour_mask(grid: tuple[int, int], radius: int) -> Tensor:
    """Which patches of a grid are at most ``radius`` apart along both axes, ``[L, L]``; on a small grid only equal ones."""
    if min(grid) < 2 * radius + 2:  # else a patch in the middle would have no other one
        radius = 0
    rows, columns = (axis.flatten() for axis in torch.meshgrid(*map(torch.arange, grid), indexing="ij"))
    return torch.maximum((rows[:, None] - rows).abs(), (columns[:, None] - columns).abs()) <= radius


class MemoryBank(DynamicBufferMixin):
    """Compares patches with those of other images: of a few good parts, of the unlabelled folder, or of both.

    **Good parts** (WinCLIP, arXiv 2303.14814). Compared are the patch tokens themselves, in which small defects stand out,
    and their means over 3 x 3 patches (PatchCore, arXiv 2106.08265, section 3.1), in which large ones do. The distance of a
    patch is one minus its cosine to the nearest patch of the memory, averaged over these scales and over some blocks of the
    tower. It becomes a probability by ``d^2 / (d^2 + r^2)``, where ``r`` is the distance that almost no patch of the good
    parts themselves exceeds, each compared with the *other* good parts; of a single good part, with its own other patches.
    Blocks, scales and the way to a probability are our choice.

    **Unlabelled images** (MuSc, arXiv 2401.16753). The same patches are compared with the nearest one of each unlabelled
    image; the score of a patch is the mean of the lowest 30 % of these Euclidean distances, averaged over scales and
    blocks. An image that is among them itself, or a copy of it, does not count.

    Args:
        layers: Blocks whose tokens are compared, counted from 1. Default: the ends of the second and the third quarter of
            the tower.
        quantile: Share of the normal patches whose distance is below ``r``, in (0, 1).
        sigma: Gaussian smoothing of the map of good parts in pixels. Default: 4 at 240 px, in proportion to the image size.
        scales: Sides of the squares of patches over which tokens are averaged, odd; 1 is the token itself.

    Raises:
        ArgumentError: If a value is out of range.
    """

    patches: Tensor
    reference: Tensor
    unlabelled: Tensor
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
        check_list("scales", scales, "odd sides of windows in patches (degrees of MuSc)")
        for index, side in enumerate(scales):
            check_whole_number(f"scales[{index}] (degrees of MuSc)", side, 1)
            if side % 2 == 0:
                msg = f"scales={list(scales)} (degrees of MuSc): {side} must be odd, so that a window has a middle."
                raise ArgumentError(msg)
        self.layers = check_layers(layers)
        self.quantile = quantile
        self.sigma = sigma
        self.scales = tuple(scales)
        self.register_buffer("patches", torch.empty(0))  # [layers * scales, views, L, W], unit vectors
        # Image of each view; empty where each image is one view.
        self.register_buffer("owners", torch.empty(0, dtype=torch.long))
        self.register_buffer("reference", torch.tensor(1.0))
        self.register_buffer("unlabelled", torch.empty(0))  # [rows, images, views, L, W]

    @property
    def has_normal(self) -> bool:
        """Whether there are good parts in the memory bank."""
        return self.patches.numel() > 0

    @property
    def has_unlabelled(self) -> bool:
        """Whether there are unlabelled images in the memory bank."""
        return self.unlabelled.numel() > 0

    @property
    def is_filled(self) -> bool:
        """Whether there are any images in the memory bank."""
        return self.has_normal or self.has_unlabelled

    def recipe(self, backbone: ClipBackbone) -> Recipe:
        """What the contents depend on, besides the images."""
        return {"layers": self.blocks(backbone), "scales": list(self.scales), "quantile": self.quantile}

    def clear(self) -> None:
        """Forget all images."""
        self.patches = torch.empty(0, device=self.patches.device)
        self.reference = torch.tensor(1.0, device=self.reference.device)
        self.owners = self.owners[:0]
        self.clear_unlabelled()

    def clear_unlabelled(self) -> None:
        """Forget the unlabelled images."""
        self.unlabelled = torch.empty(0, device=self.unlabelled.device)

    def blocks(self, backbone: ClipBackbone) -> list[int]:
        """Blocks whose tokens are compared."""
        depth = backbone.layers
        return list(check_layers(self.layers, depth) or sorted({max(1, depth // 2), max(1, 3 * depth // 4)}))

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

    def remember_unlabelled(self, patches: Tensor) -> None:
        """Take unlabelled images.

        Args:
            patches: Results of :meth:`patches_of` for all views of all images, ``[rows, R, V, L, W]``, no image twice.
        """
        self.unlabelled = patches

    def mutual(self, patches: Tensor, grid: tuple[int, int], numbers: range = range(1)) -> tuple[Tensor, Tensor]:
        """How far patches are from their like in the unlabelled images, each view compared with the same one of those.

        Args:
            patches: Result of :meth:`patches_of` for the views ``numbers`` of each picture, ``[rows, B * n, L, W]``.
            grid: Height and width of the patch grid.
            numbers: Which views of a picture these are; 0 is the whole.

        Returns:
            Mutual scores ``[B * n, L]``, in [0, 2], and which unlabelled images are the judged ones and did not count,
            ``[B * n, R]``.

        Raises:
            CheckpointError: If the unlabelled images were seen in another size or in other blocks.
        """
        known = self.unlabelled
        if patches.shape[0] != known.shape[0] or patches.shape[2:] != known.shape[3:] or numbers.stop > known.shape[2]:
            msg = (
                f"The unlabelled images were remembered as {known.shape[0]} x {known.shape[3]} patches of {known.shape[2]} "
                f"views, and this image has {patches.shape[0]} x {patches.shape[2]} of at least {numbers.stop}: another "
                "image size, other tiles or other blocks. Make the references anew."
            )
            raise CheckpointError(msg)
        found = [
            self._mutual(patches[:, index :: len(numbers)], known[:, :, number], grid)
            for index, number in enumerate(numbers)
        ]
        scores, left_out = (torch.stack(values, dim=1).flatten(0, 1) for values in zip(*found, strict=True))
        return scores, left_out

    def _mutual(self, patches: Tensor, known: Tensor, grid: tuple[int, int]) -> tuple[Tensor, Tensor]:
        scores: list[Tensor] = []
        left_out: Tensor | None = None
        for own, others in zip(self.unit_patches(patches, grid), self.unit_patches(known, grid), strict=True):
            if left_out is None:
                left_out = same_images(own, others)
            scores.append(interval_means(nearest_distances(own, others), SHARE, left_out))
        assert left_out is not None
        return torch.stack(scores).mean(dim=0), left_out

    def unit_patches(self, patches: Tensor, grid: tuple[int, int]) -> Iterator[Tensor]:
        """What is compared, one row of block and scale after the other: unit vectors ``[N, L, W]``."""
        del grid  # windows are taken before patches are remembered
        yield from patches

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
        rows: list[Tensor] = []
        for block in self.blocks(backbone):
            tokens = features.tokens[block][:, 1:]
            means = (window_means(tokens, features.grid, side, pad=False) for side in self.scales)
            rows.extend(F.normalize(mean, dim=-1) for mean in means)
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


class PublishedBank(MemoryBank):
    """Unlabelled images as the published MuSc compares them.

    Tokens at the end of each quarter of the tower, less the one mean of all numbers of the image, over their one standard
    deviation; their means over windows of 1, 3 and 5 patches a side, the outside counting as zeros; unit vectors. Tokens are
    remembered, and the windows are taken when they are compared: that is a third of the memory.

    Args:
        layers: Blocks whose tokens are compared. Default: the ends of the four quarters of the tower (of ViT-L: 6, 12, 18
            and 24, as published).
        scales: Sides of the windows in patches, odd.
    """

    def __init__(self, layers: Sequence[int] | None = None, scales: Sequence[int] = (1, 3, 5)) -> None:
        super().__init__(layers, scales=scales)

    def blocks(self, backbone: ClipBackbone) -> list[int]:
        """Blocks whose tokens are compared."""
        quarters = {max(1, backbone.layers * quarter // 4) for quarter in (1, 2, 3, 4)}
        return list(check_layers(self.layers, backbone.layers) or sorted(quarters))

    def patches_of(self, features: ImageFeatures, backbone: ClipBackbone) -> Tensor:
        """Normalised tokens of all blocks, ``[layers, B, L, W]``."""
        return torch.stack([normalize_image(features.tokens[block][:, 1:].float()) for block in self.blocks(backbone)])

    def unit_patches(self, patches: Tensor, grid: tuple[int, int]) -> Iterator[Tensor]:
        """What is compared, one row of block and scale after the other: unit vectors ``[N, L, W]``."""
        for row in patches:
            for side in self.scales:
                yield F.normalize(window_means(row, grid, side, pad=True), dim=-1)


def same_images(own: Tensor, known: Tensor) -> Tensor:
    """Which known images are the judged ones, or copies of them: ``[B, R]``.

    Args:
        own: Unit vectors ``[B, L, W]`` of the judged images.
        known: The same of the known ones, ``[R, L, W]``.
    """
    cosines = torch.einsum("blw,rlw->brl", own, known)
    return (2 - 2 * cosines.amin(dim=-1)).clamp(min=0).sqrt() <= SAME_PATCHES


def distinct_images(patches: Tensor) -> list[int]:
    """Indices of images that are no copy of an earlier one; ``patches`` are unit vectors ``[N, L, W]``."""
    copies = torch.cat([same_images(own[None], patches) for own in patches]).tril(diagonal=-1)
    return [index for index, row in enumerate(copies) if not bool(row.any())]
