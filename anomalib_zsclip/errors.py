"""Errors that are the user's to mend. The ``anomalib`` command shows their message alone, without a stack of frames."""

from __future__ import annotations

import math
import os
import sys
from collections.abc import Sequence
from numbers import Integral, Real
from pathlib import Path
from types import TracebackType
from typing import ClassVar, TypeGuard


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


class UnknownArgumentError(ArgumentError):
    """There is no argument of this name."""


def is_number(value: object) -> TypeGuard[float]:
    """Whether this is a finite number, and no truth value."""
    try:
        return isinstance(value, Real) and not isinstance(value, bool) and math.isfinite(value)
    except OverflowError:  # a whole number beyond the range of floats
        return False


def check_share(name: str, value: object) -> None:
    """Refuse what is no number between 0 and 1.

    Raises:
        ArgumentError: If it is none.
    """
    if not is_number(value) or not 0 <= value <= 1:
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


def check_list(name: str, value: object, entries: str, least: int = 1) -> None:
    """Refuse what is no list (or other sequence) of at least ``least`` entries. A text is none.

    Args:
        name: Of the argument.
        value: What was given.
        entries: What the list must hold, for the message.
        least: Fewest entries.

    Raises:
        ArgumentError: If it is none.
    """
    if isinstance(value, (str, bytes)) or not isinstance(value, Sequence) or len(value) < least:
        msg = f"{name}={value!r} must be a list of {entries}."
        raise ArgumentError(msg)


def check_path(name: str, value: object) -> None:
    """Refuse what is no path; ``None``, for no path, is fine.

    Raises:
        ArgumentError: If it is none.
    """
    if value is not None and not isinstance(value, (str, os.PathLike)):
        msg = f"{name}={value!r} must be the path of a file or folder."
        raise ArgumentError(msg)


def check_flag(name: str, value: object) -> None:
    """Refuse what is neither true nor false: the text "false", for one, would count as true.

    Raises:
        ArgumentError: If it is neither.
    """
    if not isinstance(value, bool):
        msg = f"{name}={value!r} must be True or False."
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
