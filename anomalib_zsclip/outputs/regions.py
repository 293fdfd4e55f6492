"""Defects as regions: connected areas of an anomaly map above a threshold, in the coordinates of the picture."""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import NamedTuple

import cv2
import numpy as np
from PIL import ExifTags
from scipy import ndimage

from anomalib_zsclip.errors import ArgumentError, is_number
from anomalib_zsclip.images.reading import open_unlimited

DEFAULT_MIN_REGION = 5e-4
"""Share of the picture below which a region is left out: a ninth of a patch of a ViT-B/16 at 240 px (0.0044), smaller than
any defect that such a model sees, and 22 by 22 pixels of a picture of a megapixel."""

GAP = 0.04
"""Regions nearer to each other than this share of the map's longer side are one: a scratch that the map sees in pieces is
one defect. On procedural pictures of eight products, 66 of 79 found defects have a box of IoU > 0.3, unmerged 63 of 78."""

LYING = 5
"""EXIF's orientation from which on a picture lies on its side."""


@dataclass(frozen=True)
class Region:
    """A connected area of an anomaly map above the threshold. Lengths are pixels of the upright picture.

    Attributes:
        box: Left, top, width and height of the smallest box around it; whole pixels.
        center: Centre of gravity, x and y; the middle of the first pixel is (0.5, 0.5).
        area: Its area.
        share: Its share of the picture, in (0, 1].
        peak: Largest value of the map inside.
        mean: Mean value of the map inside.
        name: What the defect is called, where the model names defects.
        name_score: Probability of the name among the defect words.
    """

    box: tuple[int, int, int, int]
    center: tuple[float, float]
    area: int
    share: float
    peak: float
    mean: float
    name: str | None = None
    name_score: float | None = None


@dataclass(frozen=True)
class PictureRegions:
    """The regions of one picture, the one with the highest peak first.

    Attributes:
        width: Of the upright picture.
        height: Of the upright picture.
        orientation: How the file has to be turned to stand upright, EXIF's number; 1 where it is upright as it lies.
        regions: The regions.
        judged_boxes: Left, top, width and height of each box as shares of the picture as the model saw it, for drawing on
            that one: where anomalib reads the file, a turned picture is judged as it lies.
    """

    width: int
    height: int
    orientation: int = 1
    regions: tuple[Region, ...] = ()
    judged_boxes: tuple[tuple[float, float, float, float], ...] = ()

    def __iter__(self) -> Iterator[Region]:
        """Go through the regions."""
        return iter(self.regions)

    def __len__(self) -> int:
        """Return the number of regions."""
        return len(self.regions)

    def __getitem__(self, index: int) -> Region:
        """Return a region, the one with the highest peak first."""
        return self.regions[index]


def check_min_region(value: float) -> float:
    """A share of the picture.

    Raises:
        ArgumentError: If it is not in [0, 1).
    """
    if is_number(value) and 0 <= value < 1:
        return float(value)
    msg = f"min_region={value!r} must be a share of the picture, at least 0 and below 1: 0.001 is a thousandth of it."
    raise ArgumentError(msg)


def label_regions(
    anomaly_map: np.ndarray,
    threshold: float,
    min_region: float = DEFAULT_MIN_REGION,
    view: tuple[int, int] | None = None,
) -> np.ndarray:
    """Number the regions of a map: where it exceeds the threshold, close ones merged, small ones left out.

    Args:
        anomaly_map: Values, ``[h, w]``; what is no number does not exceed anything.
        threshold: The threshold.
        min_region: Least share of the picture, or of the view.
        view: Height and width of what the model sees at a time, in pixels of the map; ``None`` for the whole picture. With
            tiles the map is as fine as they are, so what is small and what is near is measured against one of them.

    Returns:
        Numbers of the regions, ``[h, w]``: 0 outside, 1 in the one with the highest peak, then falling.
    """
    above = anomaly_map > threshold
    if not above.any():
        return np.zeros(above.shape, dtype=np.int32)
    height, width = view or above.shape
    reach = round(GAP * max(height, width) / 2)
    disc = cv2.getStructuringElement(cv2.MORPH_ELLIPSE, (2 * reach + 1, 2 * reach + 1))
    count, labels = cv2.connectedComponents(cv2.dilate(above.astype(np.uint8), disc), connectivity=8)
    labels[~above] = 0
    areas = np.bincount(labels.ravel(), minlength=count)[1:]
    peaks = ndimage.maximum(anomaly_map, labels, np.arange(1, count))
    kept = [
        index for index in np.argsort(-np.asarray(peaks), kind="stable") if areas[index] >= min_region * height * width
    ]
    numbers = np.zeros(count, dtype=np.int32)
    for number, index in enumerate(kept, start=1):
        numbers[index + 1] = number
    return numbers[labels]


def measure_regions(labels: np.ndarray, anomaly_map: np.ndarray, size: tuple[int, int]) -> tuple[Region, ...]:
    """Places and sizes of numbered regions in a picture that the map was made of, whatever its size.

    Args:
        labels: Numbers of the regions, ``[h, w]``, as :func:`label_regions` gives them.
        anomaly_map: Values, ``[h, w]``.
        size: Width and height of the picture.
    """
    across, down = size[0] / labels.shape[1], size[1] / labels.shape[0]  # picture pixels per map pixel
    regions = []
    for number, (rows, columns) in enumerate(ndimage.find_objects(labels), start=1):
        inside = labels[rows, columns] == number
        values = anomaly_map[rows, columns][inside]
        ys, xs = np.nonzero(inside)
        left, top = math.floor(columns.start * across + 1e-6), math.floor(rows.start * down + 1e-6)
        right, bottom = math.ceil(columns.stop * across - 1e-6), math.ceil(rows.stop * down - 1e-6)
        regions.append(
            Region(
                box=(left, top, max(1, right - left), max(1, bottom - top)),
                center=(
                    round(float(columns.start + xs.mean() + 0.5) * across, 2),
                    round(float(rows.start + ys.mean() + 0.5) * down, 2),
                ),
                area=max(1, round(len(values) * across * down)),
                share=len(values) / labels.size,
                peak=float(values.max()),
                mean=float(values.mean()),
            )
        )
    return tuple(regions)


def share_boxes(labels: np.ndarray) -> tuple[tuple[float, float, float, float], ...]:
    """Left, top, width and height of numbered regions, as shares of the width and the height of ``labels``, ``[h, w]``."""
    height, width = labels.shape
    return tuple(
        (
            columns.start / width,
            rows.start / height,
            (columns.stop - columns.start) / width,
            (rows.stop - rows.start) / height,
        )
        for rows, columns in ndimage.find_objects(labels)
    )


def with_names(regions: tuple[Region, ...], names: list[tuple[str, float]]) -> tuple[Region, ...]:
    """The regions with a name, and its probability, for each."""
    return tuple(
        replace(region, name=name, name_score=score) for region, (name, score) in zip(regions, names, strict=True)
    )


class Standing(NamedTuple):
    """How a picture stands, and how its pixels lie in the file.

    Attributes:
        width: Of the upright picture.
        height: Of the upright picture.
        orientation: How the file has to be turned to stand upright, EXIF's number.
        turn: What a plain reader leaves to be turned: the same, but 1 for TIFF files, which Pillow turns itself.
    """

    width: int
    height: int
    orientation: int = 1
    turn: int = 1


def standing_of(file: str | Path) -> Standing:
    """How the picture in a file stands.

    Raises:
        OSError: If the file has gone or is no picture.
    """
    with open_unlimited(file) as picture:
        width, height = picture.size
        try:
            orientation = picture.getexif().get(ExifTags.Base.Orientation, 1)
        except Exception:  # damaged EXIF raises whatever its reader stumbles over
            orientation = 1
        orientation = orientation if orientation in range(2, 9) else 1
        if picture.format == "TIFF":
            return Standing(width, height, orientation)
        if orientation >= LYING:
            width, height = height, width
        return Standing(width, height, orientation, orientation)


def upright(values: np.ndarray, orientation: int) -> np.ndarray:
    """Turn ``[h, w]`` values that lie as the pixels of a file, so that they lie as people see the picture."""
    if orientation in (5, 6, 7, 8):
        values = values.T
    if orientation in (2, 3, 6, 7):
        values = values[:, ::-1]
    if orientation in (3, 4, 7, 8):
        values = values[::-1]
    return np.ascontiguousarray(values)
