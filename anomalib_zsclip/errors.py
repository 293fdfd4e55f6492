"""Errors that are the user's to mend. The ``anomalib`` command shows their message alone, without a stack of frames."""

from __future__ import annotations

import sys
from numbers import Integral, Real
from pathlib import Path
from types import TracebackType
from typing import ClassVar


def is_command() -> bool:
    """Whether this process is a run of the ``anomalib`` command, and not somebody's Python code."""
    return Path(sys.argv[0]).stem == "anomalib"


class ZsClipError(Exception):
    """Base of the errors whose message says what is wrong, with which value, and what to do.

    Attributes:
        latest: The message of the last one. The parser of the command line packs errors of a constructor into one of its
            own, which keeps nothing of them but their text.
    """

    latest: ClassVar[str] = ""

    def __init__(self, *args: object) -> None:
        super().__init__(*args)
        ZsClipError.latest = str(self)
        if is_command():
            show_plainly()  # here and not at import: anomalib's command installs its own display of errors late


class BackboneError(ZsClipError, ValueError):
    """A backbone cannot be loaded: unknown name or tag, unreadable or foreign weights, unsupported architecture."""


class ArgumentError(ZsClipError, ValueError):
    """An argument has a value that cannot work."""


def check_share(name: str, value: object) -> None:
    """Refuse what is no number between 0 and 1.

    Raises:
        ArgumentError: If it is none.
    """
    if isinstance(value, bool) or not isinstance(value, Real) or not 0 <= float(value) <= 1:
        msg = f"{name}={value!r} must be a number between 0 and 1."
        raise ArgumentError(msg)


def check_whole_number(name: str, value: object, least: int) -> None:
    """Refuse what is no whole number of at least ``least``.

    Raises:
        ArgumentError: If it is none.
    """
    if isinstance(value, bool) or not isinstance(value, Integral) or value < least:
        msg = f"{name}={value!r} must be a whole number of at least {least}."
        raise ArgumentError(msg)


class CheckpointError(ZsClipError, RuntimeError):
    """A checkpoint does not fit the model, the backbone or the format."""


class ImageReadError(ZsClipError, OSError):
    """Images of a data set or folder cannot be read."""


def show_plainly() -> None:
    """Where the process ends with one of our errors, print its message instead of a stack of frames."""
    previous = sys.excepthook
    if getattr(previous, "is_zsclip", False):
        return

    def hook(kind: type[BaseException], error: BaseException, trace: TracebackType | None) -> None:
        latest = ZsClipError.latest
        if isinstance(error, ZsClipError) or (latest and latest.splitlines()[0] in str(error)):
            sys.stderr.write(f"\nError: {latest}\n")
        else:
            previous(kind, error, trace)

    hook.is_zsclip = True  # type: ignore[attr-defined]
    sys.excepthook = hook
