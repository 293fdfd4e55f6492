"""From mutual patch scores to maps and image scores, alone or beside a prediction made of text."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import torch
import torch.nn.functional as F
from anomalib.models.components import DynamicBufferMixin
from torch import Tensor

from anomalib_zsclip.errors import ArgumentError, check_list, check_share, check_whole_number

from .base import HeadOutput
from .maps import tokens_to_grid, upsample
from .options import Recipe

FARTHEST = 2.0
"""Largest distance of unit vectors: raw scores are divided by it, so that they lie in [0, 1] as anomalib wants them."""

MAD_TO_SIGMA = 1.4826
"""Median absolute deviations to standard deviations: half of a normal distribution lies within 0.6745 of them of its median,
and 1 / 0.6745 is this."""

LEAST_SPREAD = 1e-4
"""Scores of a folder that differ less are taken to differ this much: equal pictures must not divide by zero."""

LARGEST_SHARE = 0.7
"""Share of mutual scoring in a folder that fits together."""

FITS, MISFITS = 0.03, 0.12
"""Product of the two measures of :func:`misfit`: up to where a folder fits together, and from where on it does not."""

HALF = 4.0
"""Spreads above the median at which a fused value is half way from 0.5 to 1; only the scale of the output."""


class FolderScores(NamedTuple):
    """What the views of the folder's images get, each image compared with the others; views of an image are together.

    Attributes:
        patches: Mutual patch scores ``[R * V, L]``.
        grid: Height and width of the patch grid.
        embeddings: Embeddings of the whole images, of unit length, ``[R, E]``.
        scores: Image scores ``[R * V]`` of what mutual scoring is fused with; ``None`` where it is alone.
        maps: Maps of the same, ``[R * V, H, W]``.
    """

    patches: Tensor
    grid: tuple[int, int]
    embeddings: Tensor
    scores: Tensor | None = None
    maps: Tensor | None = None


class MutualScoring(DynamicBufferMixin):
    """Mutual scores as maps and image scores (MuSc, arXiv 2401.16753), and their fusion with those of text.

    Alone, as published: the map is the grid of patch scores, enlarged bilinearly with aligned corners; the image score is
    its maximum, evened out among the images most like it where ``windows`` says so (see
    :func:`~anomalib_zsclip.heads.mutual.rescore`; an image that is not of the folder joins it for that).

    Beside text (our choice, no paper's): text and mutual scores have other scales in every folder, so both are counted in
    spreads from the folder's median, scores and maps each by themselves, added with the shares ``1 - share`` and ``share``,
    and brought to (0, 1) by a strictly rising function.

    Args:
        share: Share of mutual scoring in score and map, in [0, 1]; ``None`` lets the folder decide, see
            :func:`folder_share`.
        windows: Numbers of images for the evening out; empty for none.

    Attributes:
        suits: Whether the folder that was last looked at fits together.
        misfit: How badly it does, as :func:`misfit` counts it.
    """

    scale: Tensor
    fitted_share: Tensor
    raw_scores: Tensor
    embeddings: Tensor
    own_scores: Tensor
    own_peaks: Tensor

    def __init__(self, share: float | None = None, windows: Sequence[int] = ()) -> None:
        super().__init__()
        if share is not None:
            check_share("mutual_share", share)
        check_list("windows", windows, "numbers of similar images", least=0)
        for index, window in enumerate(windows):
            check_whole_number(f"windows[{index}]", window, 1)
        self.share = share
        self.windows = tuple(windows)
        self.suits = True  # whether the folder fits together, as far as its own scores tell
        self.misfit: tuple[float, ...] = ()
        self.register_buffer("scale", torch.empty(0))  # [score | map, text | mutual, median | spread]
        self.register_buffer("fitted_share", torch.tensor(1.0))
        self.register_buffer("raw_scores", torch.empty(0))
        self.register_buffer("embeddings", torch.empty(0))
        self.register_buffer("own_scores", torch.empty(0))  # of the folder's images, each compared with the others
        self.register_buffer("own_peaks", torch.empty(0))  # maxima of their maps

    def remember_own(self, scores: Tensor, peaks: Tensor) -> None:
        """Keep image scores ``[R]`` of the folder's images and the maxima of their maps, which thresholds are made of."""
        self.own_scores, self.own_peaks = scores, peaks

    def describe(self) -> str:
        """One sentence on how the folder counts."""
        if not self.scale.numel():
            return "" if self.suits else " They differ as wholes, or none has a defect: are they of one product?"
        origin = "as the folder suggests" if self.share is None else "as mutual_share says"
        if self.share is None and float(self.fitted_share) == 0:
            origin += (
                f": its pictures differ as wholes, or none has a defect; mutual_share={LARGEST_SHARE} overrules that"
            )
        return f" Their comparison has {float(self.fitted_share):.0%} of scores and maps, {origin}."

    def recipe(self) -> Recipe:
        """What scores depend on, besides the images of the folder."""
        return {"mutual_share": self.share, "windows": list(self.windows)}

    @torch.no_grad()
    def fit(self, folder: FolderScores, size: tuple[int, int]) -> HeadOutput:
        """Take the scales of the folder.

        Args:
            folder: Scores of its images.
            size: Height and width of the maps.

        Returns:
            Scores and maps of the views of the folder's images, as :meth:`forward` would give them.

        Raises:
            ArgumentError: If there are fewer images than the largest of the windows, or windows for tiles.
        """
        mutual = self.published(folder.patches, folder.grid, size)
        images = len(folder.embeddings)
        wholes = folder.patches.unflatten(0, (images, -1))[:, 0]
        suggested, self.misfit = folder_share(wholes), tuple(map(float, misfit(wholes)))
        self.suits = bool(suggested > 0)
        if self.windows and max(self.windows) > images:
            msg = f"windows={list(self.windows)}: the largest is more than the {images} images."
            raise ArgumentError(msg)
        if self.windows and images < len(mutual.score):
            msg = f"windows={list(self.windows)} even out the scores of whole pictures: leave them out with tiles."
            raise ArgumentError(msg)
        self.raw_scores, self.embeddings = mutual.score, folder.embeddings
        if folder.scores is None or folder.maps is None:
            self.scale, self.fitted_share = torch.empty(0, device=self.scale.device), torch.tensor(1.0)
            itself = torch.eye(len(mutual.score), dtype=torch.bool, device=mutual.score.device)
            return HeadOutput(self._rescored(mutual.score, folder.embeddings, itself), mutual.anomaly_map)
        pairs = ((folder.scores, mutual.score), (folder.maps, mutual.anomaly_map))
        self.scale = torch.stack([torch.stack([centre_and_spread(values) for values in pair]) for pair in pairs])
        share = suggested if self.share is None else torch.tensor(self.share)
        self.fitted_share = share.to(self.scale)
        return self._fused(HeadOutput(folder.scores, folder.maps), mutual)

    def forward(
        self,
        patches: Tensor,
        grid: tuple[int, int],
        size: tuple[int, int],
        embeddings: Tensor,
        left_out: Tensor,
        text: HeadOutput | None = None,
    ) -> HeadOutput:
        """Scores ``[B]`` and maps ``[B, H, W]``, both in [0, 1].

        Args:
            patches: Mutual patch scores ``[B, L]``, in [0, 2].
            grid: Height and width of the patch grid.
            size: Height and width of the map.
            embeddings: Image embeddings of unit length, ``[B, E]``.
            left_out: Which images of the folder are the judged ones, ``[B, R]``.
            text: Prediction to fuse with.
        """
        mutual = self.published(patches, grid, size)
        if text is None:
            return HeadOutput(self._rescored(mutual.score, embeddings, left_out), mutual.anomaly_map)
        return self._fused(text, mutual)

    @staticmethod
    def published(patches: Tensor, grid: tuple[int, int], size: tuple[int, int]) -> HeadOutput:
        """Maps and their maxima from patch scores ``[B, L]``, as published but for the division by the largest distance."""
        maps = upsample(tokens_to_grid(patches / FARTHEST, grid), size, align_corners=True)
        return HeadOutput(maps.amax(dim=(-2, -1)), maps)

    def _fused(self, text: HeadOutput, mutual: HeadOutput) -> HeadOutput:
        fused = []
        for scale, values in zip(self.scale, zip(text, mutual, strict=True), strict=True):
            own, others = (
                (value - centre) / spread for value, (centre, spread) in zip(values, scale.unbind(), strict=True)
            )
            mixed = (1 - self.fitted_share) * own + self.fitted_share * others
            fused.append(0.5 + 0.5 * mixed / (HALF + mixed.abs()))
        return HeadOutput(*fused)

    def _rescored(self, scores: Tensor, embeddings: Tensor, left_out: Tensor) -> Tensor:
        """Image scores evened out among the folder's images, to which each judged image is added."""
        if not self.windows:
            return scores
        unknown = ~left_out  # [B, R]
        everyone = torch.cat([self.raw_scores.expand(len(scores), -1), scores[:, None]], dim=1)  # [B, R + 1]
        similar = torch.cat([embeddings @ self.embeddings.T, embeddings.square().sum(1, keepdim=True)], dim=1)
        counts = torch.cat([unknown, torch.ones_like(unknown[:, :1])], dim=1)
        low = everyone.masked_fill(~counts, torch.inf).amin(dim=1, keepdim=True)
        high = everyone.masked_fill(~counts, -torch.inf).amax(dim=1, keepdim=True)
        stretched = (everyone - low) / (high - low).clamp(min=LEAST_SPREAD)
        kept, neighbours = similar.masked_fill(~counts, -torch.inf).topk(max(self.windows), dim=1)
        kept = kept.masked_fill(kept == -torch.inf, 0)  # a window of all images reaches those that are left out
        values = kept * stretched.gather(1, neighbours)
        means = [values[:, :window].sum(dim=1) / kept[:, :window].sum(dim=1) for window in self.windows]
        return torch.stack(means).mean(dim=0).clamp(0, 1)


def centre_and_spread(values: Tensor) -> Tensor:
    """Median and robust standard deviation ``[2]`` of all values: few anomalous ones do not move them."""
    flat = values.flatten().float()
    centre = flat.median()
    return torch.stack([centre, ((flat - centre).abs().median() * MAD_TO_SIGMA).clamp(min=LEAST_SPREAD)])


def unit_embeddings(embeddings: Tensor) -> Tensor:
    """CLIP's image embeddings ``[B, E]``, of unit length."""
    return F.normalize(embeddings.float(), dim=-1)


def folder_share(patches: Tensor) -> Tensor:
    """Share of mutual scoring that suits a folder, by its own mutual scores: a scalar from 0 to :data:`LARGEST_SHARE`.

    Where the images show one product, their ordinary patches have their like in all the others, whichever image they are
    of: the medians of the images differ little. Where every image has a layout of its own, all of its patches are unlike the
    others', some images more so than others, and a high score says "another layout", not "a defect". The product of the two
    measures of :func:`misfit` (the first at most 1) tells. With the built-in backbone it was, on 14 procedural products, at
    most 0.02 where half of 32 images had a defect, 0.06 where three of 19 had one, and 0.09 without any; 0.03 on magnetic
    tiles; and on 24 folders in which every picture showed another product 0.04 (wood, where mutual scoring does no harm) to
    0.5.

    Args:
        patches: Mutual patch scores of the folder's images, ``[R, L]``.
    """
    beside_maxima, beside_reach = misfit(patches)
    # Where the maxima are all alike, as they may be without a defect, the first measure has no bound and says nothing.
    product = beside_maxima.clamp(max=1) * beside_reach
    return LARGEST_SHARE * ((MISFITS - product) / (MISFITS - FITS)).clamp(0, 1)


def misfit(patches: Tensor) -> tuple[Tensor, Tensor]:
    """How much the medians of a folder's images differ, counted in two ways that fail in different folders.

    * Their standard deviation over that of the images' maxima, which is small where few images have a gross defect; without
      a single defect it says little.
    * Their median absolute deviation, as a standard deviation, over the way from an image's median to its maximum, which
      needs no defects, but is large for a product with coarse structure.

    Args:
        patches: Mutual patch scores of the folder's images, ``[R, L]``.
    """
    medians, maxima = patches.median(dim=1).values, patches.amax(dim=1)
    beside_maxima = medians.std() / maxima.std().clamp(min=LEAST_SPREAD)
    beside_reach = centre_and_spread(medians)[1] / (maxima - medians).median().clamp(min=LEAST_SPREAD)
    return beside_maxima, beside_reach
