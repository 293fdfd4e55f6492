"""Damage in the zip archives that ``torch.save`` writes."""

from __future__ import annotations

import zipfile
from pathlib import Path


def check_archive(path: str | Path) -> None:
    """Compare the checksums of a zip archive, which ``torch.load`` does not; other files pass.

    Raises:
        zipfile.BadZipFile: If the archive is damaged.
    """
    if not zipfile.is_zipfile(path):
        return
    with zipfile.ZipFile(path) as archive:
        damaged = archive.testzip()
    if damaged:
        msg = f"the checksum of {damaged} is wrong"
        raise zipfile.BadZipFile(msg)
