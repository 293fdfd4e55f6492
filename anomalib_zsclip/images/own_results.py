"""Which folders hold results of this package: nothing in them is an image to judge, and nothing else may be moved.

Where results are written, a small hidden file lists the names of the folders that were made for them. What is not listed
belongs to somebody else, and be it called ``images``.
"""

from __future__ import annotations

from collections.abc import Iterable
from contextlib import suppress
from pathlib import Path

MARK = ".anomalib_zsclip"
"""Name of the file."""

TEMPORARY = "anomalib_zsclip_inspect_"
"""How folders begin whose results are deleted after the run."""


def is_temporary(folder: str | Path) -> bool:
    """Whether a folder of results is deleted after the run."""
    return any(part.startswith(TEMPORARY) for part in Path(folder).parts)


def own_names(folder: Path) -> list[str]:
    """Names in a folder that are results of this package."""
    with suppress(OSError, UnicodeDecodeError):
        return [name for name in (folder / MARK).read_text(encoding="utf-8").splitlines() if name]
    return []


def note_own(folder: Path, names: Iterable[str]) -> None:
    """Note names in a folder that are about to become results; what is there already belongs to somebody else."""
    found = own_names(folder)
    new = [name for name in names if name not in found and not (folder / name).exists()]
    if new:
        folder.mkdir(parents=True, exist_ok=True)
        (folder / MARK).write_text("".join(f"{name}\n" for name in [*found, *new]), encoding="utf-8")
