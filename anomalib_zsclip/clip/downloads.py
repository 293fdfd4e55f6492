"""Files of the internet whose content is known: downloaded once, checked, kept in the cache, and never half-written."""

from __future__ import annotations

import hashlib
import http.client
import os
import tempfile
import time
import urllib.error
import urllib.request
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

from tqdm.auto import tqdm

from anomalib_zsclip.errors import CheckpointError

from .text_cache import CACHE_VARIABLE, cache_folder

STALL_SECONDS = 20.0
"""Longest wait for a server's next bytes."""

LONGEST_SECONDS = 900.0
"""Longest download: the files are a few megabytes, so that a slower line is no line."""

LARGEST_BYTES = 256 * 2**20
"""Where the size of a file is not known beforehand, as much as is read of an answer: ten times the largest expected."""

CHUNK = 2**16


class KnownFile(NamedTuple):
    """A file that is known before it is there.

    Attributes:
        url: Where it is.
        blob: What git calls its content: the SHA-1 of a header with its size, and of the content.
        cache_name: What it is called in the cache.
        size: Its bytes, where they are known.
    """

    url: str
    blob: str
    cache_name: str
    size: int | None = None

    @property
    def path(self) -> Path:
        """Where it lies once it is there."""
        return cache_folder() / "weights" / self.cache_name


def git_blob_id(path: Path) -> str:
    """What git calls the content of a file."""
    digest = hashlib.sha1(b"blob %d\0" % path.stat().st_size, usedforsecurity=False)
    with path.open("rb") as file:
        for chunk in iter(lambda: file.read(CHUNK), b""):
            digest.update(chunk)
    return digest.hexdigest()


def obtain(file: KnownFile) -> Path:
    """The file in the cache; downloaded, where it is not there.

    Raises:
        CheckpointError: If it is neither there nor can be downloaded, or is another file than the one expected. The message
            names the address, the expected file, and where to put it.
    """
    if not file.path.is_file():
        _download(file)
    elif git_blob_id(file.path) != file.blob:
        msg = f"{file.path} is not the published file: its content is another (git blob id {git_blob_id(file.path)})."
        raise CheckpointError(f"{msg} Remove it. {by_hand(file)}")
    return file.path


def by_hand(file: KnownFile) -> str:
    """What to do where a file cannot be downloaded."""
    size = f", {file.size} bytes" if file.size else ""
    return (
        f"By hand: take {file.url} (git blob id {file.blob}{size}) and put it at {file.path}. "
        f"{CACHE_VARIABLE} names another folder for the cache."
    )


def _download(file: KnownFile) -> None:
    from huggingface_hub import constants

    if constants.HF_HUB_OFFLINE:
        msg = f"{file.url} is not in the cache, and HF_HUB_OFFLINE forbids downloads."
        raise CheckpointError(f"{msg} {by_hand(file)}")
    temporary = None
    try:
        file.path.parent.mkdir(parents=True, exist_ok=True)
        handle, name = tempfile.mkstemp(dir=file.path.parent, prefix=".download-")
        temporary = Path(name)
        beginning = b""
        with os.fdopen(handle, "wb") as written:
            for chunk in _chunks(file):
                beginning = beginning or chunk[:200]
                written.write(chunk)
        if git_blob_id(temporary) != file.blob:
            page = any(mark in beginning.lower() for mark in (b"<html", b"<!doctype"))
            what = "a web page, perhaps of a proxy" if page else f"another file of {temporary.stat().st_size} bytes"
            msg = f"The answer of {file.url} is {what}, not the published file."
            raise CheckpointError(f"{msg} {by_hand(file)}")
        temporary.replace(file.path)
    except _NETWORK as error:
        msg = f"{file.url} cannot be downloaded: {_reason(error)}."
        raise CheckpointError(f"{msg} {by_hand(file)}") from error
    except OSError as error:
        msg = f"The cache folder {file.path.parent} cannot be written to ({error}). Make room, or name another one with"
        raise CheckpointError(f"{msg} {CACHE_VARIABLE}. {by_hand(file)}") from error
    finally:
        if temporary is not None:
            temporary.unlink(missing_ok=True)


class _CutError(Exception):
    """A download that did not come to its end, or would not."""


_NETWORK = (urllib.error.URLError, http.client.HTTPException, TimeoutError, ConnectionError, _CutError)


def _chunks(file: KnownFile) -> Iterator[bytes]:
    """The content that a server answers with, bounded in size and time."""
    deadline = time.monotonic() + LONGEST_SECONDS
    most = file.size or LARGEST_BYTES
    request = urllib.request.Request(file.url, headers={"User-Agent": "anomalib-zsclip"})  # noqa: S310
    with (
        urllib.request.urlopen(request, timeout=STALL_SECONDS) as answer,  # noqa: S310 - of our own table
        tqdm(total=file.size, unit="B", unit_scale=True, desc=file.cache_name, delay=2, leave=False) as shown,
    ):
        while chunk := answer.read1(CHUNK):
            shown.update(len(chunk))
            yield chunk
            if shown.n > most:
                msg = f"it has more than the expected {most} bytes"
                raise _CutError(msg)
            if time.monotonic() > deadline:
                msg = f"it is not complete after {LONGEST_SECONDS:g} seconds"
                raise _CutError(msg)
        if answer.length:
            msg = f"the connection ended {answer.length} bytes before the end"
            raise _CutError(msg)


def _reason(error: BaseException) -> str:
    if isinstance(error, urllib.error.HTTPError):
        return f"the server answers {error.code} {error.reason}"
    reason = getattr(error, "reason", None) or error
    return f"no answer within {STALL_SECONDS:g} seconds" if isinstance(reason, TimeoutError) else str(reason)
