"""Files of tensors from anywhere: damage is found, nothing in them is executed, and the user learns what is wrong."""

from __future__ import annotations

import pickle
import zipfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from anomalib_zsclip.errors import ZsClipError


@contextmanager
def reading(what: str, error_class: type[ZsClipError], advice: str) -> Iterator[None]:
    """Turn whatever a reader stumbles over into an error that says what to do.

    Args:
        what: The file, as a sentence begins with it.
        error_class: Class of the error.
        advice: What to do where the file holds pickled Python objects.
    """
    try:
        yield
    except pickle.UnpicklingError as error:
        msg = (
            f"{what} is damaged or holds pickled Python objects, which are not loaded because they can run any code. "
            f"{advice}"
        )
        raise error_class(msg) from error
    except Exception as error:
        # Damaged archives raise whatever their parser stumbles over.
        msg = f"{what} cannot be read: it is damaged, cut short, or of another format ({error})."
        raise error_class(msg) from error


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
