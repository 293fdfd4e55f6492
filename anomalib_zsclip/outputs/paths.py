"""Where everything that belongs to an image is written, below the folder of results.

Pictures lie in ``images``, maps in ``anomaly_maps``, both in the trainer's root folder, with the same structure below: that
of the image files below the root of the data module, or else below the folder that all images of the run share. So
``line1/camA/001.png`` and ``line2/camA/001.png`` keep their folders, and no file of a run takes the place of another.

Whoever needs the file of an image makes a :class:`ResultPaths` from the trainer at the start of the run and asks it; two of
them made from the same trainer give the same answers, so nothing has to be handed from one callback to the next::

    paths = ResultPaths.of(trainer)          # in on_test_start or on_predict_start
    paths.picture(image_path)                # .../images/line1/camA/001.png, whether it is drawn or not
    paths.picture(image_path).relative_to(paths.folder).as_posix()   # as a page in the folder of results links to it
"""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from anomalib_zsclip.errors import ArgumentError
from anomalib_zsclip.images.data_files import PREDICT, TEST, image_files
from anomalib_zsclip.images.folders import absolute

PICTURES, MAPS = "images", "anomaly_maps"
"""Folders in the folder of results."""

SHOWN_BY_BROWSERS = (".png", ".jpg", ".jpeg", ".bmp", ".webp")
"""Endings that pictures keep; all others become PNG files, which every browser shows."""


class ResultPaths:
    """Places of pictures and maps of one run.

    Args:
        folder: The folder of results.
        files: Image files of the run, as far as they are known before it.
        root: Folder whose structure is kept. Default: the one that all ``files`` share.
        pictures: Folder of the pictures. Default: ``images`` in ``folder``.

    Attributes:
        folder: The folder of results.
        root: Folder whose structure is kept; ``None`` where no files are known.
        known: The image files.
    """

    def __init__(
        self,
        folder: str | Path,
        files: Sequence[Path] = (),
        root: str | Path | None = None,
        pictures: str | Path | None = None,
    ) -> None:
        self.folder = Path(folder)
        known = [absolute(file) for file in files]
        given = None if root is None else absolute(root)
        covers = given is not None and all(file.is_relative_to(given) for file in known)
        self.root = given if covers else common_folder(known)
        self.pictures = self.folder / PICTURES if pictures is None else Path(pictures)
        self._taken: dict[Path, Path] = {}  # target -> the image that it belongs to
        self._targets: dict[tuple[str, Path], Path] = {}  # kind and image -> target
        self._nameless = 0
        self.known = frozenset(known)
        for file in sorted(known, key=lambda file: not _is_shown(file)):  # whose name stays goes first
            self.picture(file)
            self.anomaly_map(file)

    @classmethod
    def of(cls, trainer: Any, pictures: str | Path | None = None) -> ResultPaths:  # noqa: ANN401 - Lightning's trainer
        """Places for the test or the prediction that a trainer is about to run."""
        loaders = PREDICT if getattr(trainer, "predicting", False) else TEST
        root = getattr(getattr(trainer, "datamodule", None), "root", None)
        return cls(trainer.default_root_dir, image_files(trainer, loaders), root or None, pictures)

    def check(self, kind: str) -> None:
        """Look that no image of the run would be written over.

        Args:
            kind: ``"picture"`` or ``"map"``.

        Raises:
            ArgumentError: If one would.
        """
        for (target_kind, image), target in self._targets.items():
            if target_kind == kind and absolute(target) in self.known:
                msg = (
                    f"The {kind} of {image} would be written over {target}, an image of this run. Give another folder for "
                    "results (--default_root_dir, or Engine(default_root_dir=...)), or move the images."
                )
                raise ArgumentError(msg)

    def picture(self, file: str | Path | None) -> Path:
        """Where the picture of an image goes; images that come without a file are numbered."""
        if not file:
            self._nameless += 1
            return self.pictures / f"image_{self._nameless:06d}.png"
        below = self.below(file)
        short = below if _is_shown(below) else below.with_suffix(".png")
        return self._target("picture", file, self.pictures / short, self.pictures / f"{below}.png")

    def anomaly_map(self, file: str | Path) -> Path:
        """Where the map of an image goes."""
        below = self.below(file)
        folder = self.folder / MAPS
        return self._target("map", file, folder / below.with_suffix(".tiff"), folder / f"{below}.tiff")

    def below(self, file: str | Path) -> Path:
        """Path of an image below the root; of one outside of it, the name with that of its folder."""
        place = absolute(file)
        if self.root is not None and place.is_relative_to(self.root):
            return place.relative_to(self.root)
        return Path(place.parent.name) / place.name

    def _target(self, kind: str, file: str | Path, short: Path, long: Path) -> Path:
        """The short name where no other image has it, else the long one, which has the image's own ending in it."""
        place = absolute(file)
        if (kind, place) not in self._targets:
            candidates = [short, long]
            while self._taken.setdefault(candidates[0], place) != place:
                candidates = candidates[1:] or [long.with_name(f"{long.stem}_{len(self._taken)}{long.suffix}")]
            self._targets[kind, place] = candidates[0]
        return self._targets[kind, place]


def _is_shown(file: Path) -> bool:
    return file.suffix.lower() in SHOWN_BY_BROWSERS


def common_folder(files: Sequence[Path]) -> Path | None:
    """The folder that all files share; ``None`` for no files, and where there is none, as on two drives of Windows."""
    try:
        return Path(os.path.commonpath([file.parent for file in files]))
    except ValueError:
        return None
