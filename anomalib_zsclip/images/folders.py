"""Which files of a folder are its images."""

from __future__ import annotations

import os
from collections import defaultdict
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from anomalib.data.utils.image import is_image_file
from torchvision.datasets.folder import IMG_EXTENSIONS

from anomalib_zsclip.errors import ArgumentError

from .own_results import MARK, own_names

HIDDEN = "hidden"
NO_IMAGE = "not named as images"
NO_FILE = "no files"
SEEN = "folders that were seen before under another name"
CLOSED = "folders that may not be opened"
RESULTS = "results of an earlier run"

PATTERN = "*?[]{}"
"""Characters that a shell would have replaced by names."""


@dataclass
class Listing:
    """Images of a folder.

    Attributes:
        folder: The folder, or the one file.
        files: The images, sorted.
        left_out: Why -> names that were left out.
    """

    folder: Path
    files: list[Path] = field(default_factory=list)
    left_out: dict[str, list[str]] = field(default_factory=lambda: defaultdict(list))

    def describe(self) -> str:
        """One line with the number of images, and how many names were left out and why."""
        parts = [
            f"{len(names)} {why} ({names[0]}{', ...' if len(names) > 1 else ''})"
            for why, names in self.left_out.items()
            if names
        ]
        left_out = f"; left out: {', '.join(parts)}" if parts else ""
        return f"{len(self.files)} image{'' if len(self.files) == 1 else 's'} in {self.folder}{left_out}."


def list_images(path: str | Path, name: str = "data") -> Listing:
    """Images of a folder and of those below it, linked ones too, each folder once; or the one file.

    Hidden files and folders (``.ipynb_checkpoints``) are left out, what has no ending of an image, and pictures that this
    package drew.

    Args:
        path: Folder, or file.
        name: Argument that ``path`` comes from, for messages.

    Raises:
        ArgumentError: If there are no images, or no such path.
    """
    place = absolute(path)
    if place.is_file():
        if not is_image_file(place):
            msg = (
                f"{name}={str(path)!r} is no image by its name, which should end in one of {', '.join(IMG_EXTENSIONS)}."
            )
            raise ArgumentError(msg)
        return Listing(place, [place])
    if not place.is_dir():
        raise ArgumentError(_absent(str(path), name))
    listing = Listing(place)
    seen: set[tuple[int, int]] = set()

    def note_closed(error: OSError) -> None:
        listing.left_out[CLOSED].append(Path(error.filename).name)

    for folder, folders, files in os.walk(place, followlinks=True, onerror=note_closed):
        here = Path(folder)
        folders[:] = _unseen(here, sorted(folders, key=lambda name: ((here / name).is_symlink(), name)), seen, listing)
        for file in files:
            _sort_in(here / file, listing)
    listing.files.sort()
    if not listing.files:
        msg = f"{name}={str(path)!r} holds no images: {listing.describe()}"
        raise ArgumentError(msg)
    return listing


def absolute(path: str | Path) -> Path:
    """A path from the root of the file system on; links stay as the user put them."""
    return Path(os.path.abspath(Path(path).expanduser()))


def _unseen(here: Path, folders: Iterable[str], seen: set[tuple[int, int]], listing: Listing) -> Sequence[str]:
    """Folders to look into; those that a link leads to a second time are left out, so that no circle is without an end."""
    stat = here.stat()
    seen.add((stat.st_dev, stat.st_ino))
    kept, own = [], own_names(here)
    for folder in folders:
        if folder.startswith(".") or folder in own:
            listing.left_out[RESULTS if folder in own else HIDDEN].append(folder)
            continue
        stat = (here / folder).stat()
        if (stat.st_dev, stat.st_ino) in seen:
            listing.left_out[SEEN].append(folder)
            continue
        seen.add((stat.st_dev, stat.st_ino))
        kept.append(folder)
    return kept


def _sort_in(file: Path, listing: Listing) -> None:
    if file.name == MARK:
        return
    if file.name.startswith("."):
        listing.left_out[HIDDEN].append(file.name)
    elif not is_image_file(file):
        listing.left_out[NO_IMAGE].append(file.name)
    elif file.is_file() or file.is_symlink():  # a link to nowhere is an image that cannot be read
        listing.files.append(file)
    else:
        listing.left_out[NO_FILE].append(file.name)


def _absent(path: str, name: str) -> str:
    if any(character in path for character in PATTERN):
        return f"{name}={path!r} is a pattern, and no folder: give the folder of the images, or one image."
    return f"{name}={path!r}: there is no such folder or file."
