"""How picture files become pictures, wherever this package reads them: one set of rules.

* Turned pictures (EXIF orientation) are turned upright.
* Grey of more than 8 bits is scaled: by ``depth_range`` where it is given, else 16 bits by their full range, and floats from
  0 to 1 as they are. Other numbers are refused, since nobody can know what is black and what is white in them.
* Transparent pictures are laid on white, so that what hides under transparent pixels is not judged.
* Colours of any other kind (palette, CMYK, black and white) become RGB. Of several pages the first counts.
* A picture of more than ``max_pixels`` pixels is refused: a small file can say that it is one, and fill the memory.
"""

from __future__ import annotations

import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
from PIL import ExifTags, Image, ImageOps
from torchvision.transforms.v2.functional import to_dtype, to_image

from anomalib_zsclip.errors import ArgumentError, ImageReadError

UNREADABLE = (OSError, ValueError, SyntaxError, Image.DecompressionBombError)
"""What Pillow raises for images that it cannot read."""

MAX_PIXELS = 178_956_970
"""Pixels from which on Pillow takes a file for an attack: twice the number that makes 256 MB of RGB."""

BEHIND = (255, 255, 255)
"""What transparent pictures are laid on: white, as on a page."""

FULL_16_BITS = (0.0, 65535.0)

FAINT = 0.25
"""Share of the 16 bits below which a picture is probably one of 10 to 14 bits: it is read, and nearly black."""

PAGED = ("TIFF", "WEBP", "PNG")
"""Formats whose further pages are looked for; those of a phone's JPEG files are previews."""

SKIP, STOP = "skip", "stop"

_opening = threading.Lock()


@dataclass(frozen=True)
class ReadingRules:
    """The rules that the user can change.

    Args:
        depth_range: Values of black and white in grey images of more than 8 bits, as ``(0, 4095)`` for a camera of 12 bits.
        max_pixels: Most pixels of an image.
        on_unreadable: ``"skip"`` judges the other images of a folder where one cannot be read, ``"stop"`` is an error.

    Raises:
        ArgumentError: If a value cannot be.
    """

    depth_range: tuple[float, float] | None = None
    max_pixels: int = MAX_PIXELS
    on_unreadable: str = SKIP

    def __post_init__(self) -> None:
        """Check the values."""
        if self.depth_range is not None:
            try:
                low, high = (float(value) for value in self.depth_range)
            except (TypeError, ValueError):
                low, high = 0.0, 0.0
            if not -np.inf < low < high < np.inf:
                msg = f"depth_range={self.depth_range!r} must be two numbers, black below white, such as [0, 4095]."
                raise ArgumentError(msg)
            object.__setattr__(self, "depth_range", (low, high))
        if isinstance(self.max_pixels, bool) or not isinstance(self.max_pixels, int) or self.max_pixels < 1:
            msg = f"max_pixels={self.max_pixels!r} must be a whole number of at least 1."
            raise ArgumentError(msg)
        if self.on_unreadable not in (SKIP, STOP):
            msg = f"on_unreadable={self.on_unreadable!r} must be {SKIP!r} or {STOP!r}."
            raise ArgumentError(msg)


DEFAULT_RULES = ReadingRules()


class Note(NamedTuple):
    """Something about a file that its reader should say once.

    Attributes:
        kind: What it is; one line is written for each kind.
        text: What to say, after the name of the file.
    """

    kind: str
    text: str


class Header(NamedTuple):
    """What a file says of its picture before it is decoded.

    Attributes:
        size: Width and height as stored.
        is_turned: Whether Pillow hands it out turned, and the rules turn it upright.
        is_deep: Whether a plain conversion to RGB would cut its values at 255.
        is_transparent: Whether there is an alpha channel or a transparent colour.
        pages: Number of pages.
    """

    size: tuple[int, int]
    is_turned: bool
    is_deep: bool
    is_transparent: bool
    pages: int

    @property
    def pixels(self) -> int:
        """Number of pixels."""
        return self.size[0] * self.size[1]


def read_tensor(path: str | Path, rules: ReadingRules = DEFAULT_RULES) -> tuple[torch.Tensor, list[Note]]:
    """A picture as a tensor of torchvision, ``[3, H, W]`` in [0, 1], and what there is to say about it.

    Raises:
        ImageReadError: If the file cannot be read, or not rightly.
    """
    picture, notes = read_picture(path, rules)
    return to_dtype(to_image(picture), torch.float32, scale=True), notes


def read_picture(path: str | Path, rules: ReadingRules = DEFAULT_RULES) -> tuple[Image.Image, list[Note]]:
    """A picture in RGB, and what there is to say about it.

    Raises:
        ImageReadError: If the file cannot be read, or not rightly; the message begins with its name.
    """
    notes: list[Note] = []
    try:
        with open_unlimited(path) as image:
            pixels = image.width * image.height
            if pixels > rules.max_pixels:
                raise ImageReadError(too_many_pixels(path, image.size, rules))
            pages = _pages(image)
            if pages > 1:
                notes.append(Note("pages", f"has {pages} pages: only the first is judged"))
            return _in_rgb(_upright(image), image.format or "", rules, notes), notes
    except ImageReadError:
        raise
    except _NotInRangeError as error:
        msg = f"{path} {error}"
        raise ImageReadError(msg) from None
    except Exception as error:  # damaged files raise whatever their decoder stumbles over
        msg = f"{path} cannot be read: {reason_of(error)}"
        raise ImageReadError(msg) from error


def read_header(path: str | Path) -> Header | None:
    """What a file says of its picture; ``None`` where it is none."""
    try:
        with open_unlimited(path) as image:
            # Pillow turns TIFF files itself when it decodes them.
            turned = image.format != "TIFF" and _orientation(image) not in (None, 1)
            return Header(
                image.size, turned, image.mode.startswith(("I", "F")), image.has_transparency_data, _pages(image)
            )
    except Exception:  # damaged files raise whatever their decoder stumbles over
        return None


def size_of(path: str | Path, *, upright: bool) -> tuple[int, int]:
    """Width and height of a picture, as stored or as it stands upright.

    Raises:
        OSError: If the file is no picture.
    """
    with open_unlimited(path) as image:
        lies = image.format != "TIFF" and upright and (_orientation(image) or 1) >= 5
        return (image.height, image.width) if lies else image.size


def has_hidden_pixels(path: str | Path) -> bool:
    """Whether some pixels of a picture are transparent, more or less."""
    try:
        with open_unlimited(path) as image:
            return image.has_transparency_data and bool(np.asarray(image.convert("RGBA"))[..., 3].min() < 255)
    except Exception:
        return False


@contextmanager
def open_unlimited(path: str | Path) -> Iterator[Image.Image]:
    """A file opened by Pillow, whatever number of pixels it says to have: the caller looks at that."""
    with _opening:
        limit, Image.MAX_IMAGE_PIXELS = Image.MAX_IMAGE_PIXELS, None
        try:
            image = Image.open(path)
        finally:
            Image.MAX_IMAGE_PIXELS = limit
    with image:
        yield image


def too_many_pixels(path: str | Path, size: tuple[int, int], rules: ReadingRules) -> str:
    """What to say of a picture that is too large."""
    return (
        f"{path} says that it has {size[0]} x {size[1]} = {size[0] * size[1]} pixels, more than "
        f"max_pixels={rules.max_pixels}. If you trust the file, give max_pixels={size[0] * size[1]}."
    )


def reason_of(error: BaseException) -> str:
    """Why a file cannot be read, in one line without its name."""
    if isinstance(error, Image.UnidentifiedImageError):
        return "it is no image, or of a kind that is not known."
    if isinstance(error, OSError) and error.strerror:
        return f"{error.strerror}."
    text = " ".join(str(error).split())
    return f"{text or type(error).__name__}.".replace("..", ".")


# ---------------------------------------------------------------------- steps
class _NotInRangeError(Exception):
    """Values of a deep image that nobody can know the range of."""


def _upright(image: Image.Image) -> Image.Image:
    image.load()
    try:
        return ImageOps.exif_transpose(image)
    except Exception:  # damaged EXIF: the picture itself is there
        return image


def _orientation(image: Image.Image) -> int | None:
    try:
        return image.getexif().get(ExifTags.Base.Orientation)
    except Exception:
        return None


def _pages(image: Image.Image) -> int:
    return int(getattr(image, "n_frames", 1)) if image.format in PAGED else 1


def _in_rgb(image: Image.Image, kind: str, rules: ReadingRules, notes: list[Note]) -> Image.Image:
    if image.mode.startswith(("I", "F")):
        values = np.asarray(image)
        low, high = rules.depth_range or _full_range(image.mode, kind, values)
        if not np.isfinite(values).all():
            msg = "has pixels that are no numbers (NaN or infinity)."
            raise _NotInRangeError(msg)
        if rules.depth_range is None and high == FULL_16_BITS[1] and 0 < values.max() < FAINT * high:
            most = int(values.max())
            text = f"has 16 bits, no value above {most}, and looks nearly black: give depth_range=[0, {_next(most)}]"
            notes.append(Note("faint", text))
        shares = (values.astype(np.float64) - low) / (high - low)
        return Image.fromarray(np.rint(shares.clip(0, 1) * 255).astype(np.uint8)).convert("RGB")
    if image.has_transparency_data:
        if image.mode == "La":
            image = image.convert("LA")
        seen = Image.alpha_composite(Image.new("RGBA", image.size, (*BEHIND, 255)), image.convert("RGBA"))
        return seen.convert("RGB")
    return image.convert("RGB")


def _next(most: int) -> int:
    """Largest value of the number of bits that a value needs, at least 10."""
    return int(2 ** max(10, most.bit_length()) - 1)


def _full_range(mode: str, kind: str, values: np.ndarray) -> tuple[float, float]:
    if mode.startswith("I;16") or (mode == "I" and kind in ("PNG", "PPM")):  # Pillow keeps 16 bits of these in 32
        return FULL_16_BITS
    low, high = float(np.nanmin(values)), float(np.nanmax(values))
    if mode == "F" and low >= 0 and high <= 1:
        return (0.0, 1.0)
    what = "floats" if mode == "F" else "whole numbers of 32 bits"
    msg = f"has {what} from {low:g} to {high:g}, and nobody knows what is black and white: give depth_range=[0, {high:g}]."
    raise _NotInRangeError(msg)
