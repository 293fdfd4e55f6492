"""Text embeddings on disk, so that the text tower runs once per backbone and prompt recipe."""

from __future__ import annotations

import hashlib
import logging
import os
import tempfile
from collections.abc import Sequence
from pathlib import Path

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

from .backbone import ClipBackbone

logger = logging.getLogger(__name__)

CACHE_VARIABLE = "ANOMALIB_ZSCLIP_CACHE"


def cache_folder() -> Path:
    """Folder of the cache: ``$ANOMALIB_ZSCLIP_CACHE``, else ``$XDG_CACHE_HOME`` or ``~/.cache``."""
    if os.environ.get(CACHE_VARIABLE):
        return Path(os.environ[CACHE_VARIABLE]).expanduser()
    return Path(os.environ.get("XDG_CACHE_HOME", "~/.cache")).expanduser() / "anomalib_zsclip"


def embed_texts(backbone: ClipBackbone, texts: Sequence[str], *, cache: bool = True) -> Tensor:
    """Unit text embeddings ``[P, E]`` of sentences, from the cache where they are there.

    The key is a hash over the backbone's fingerprint, its precision and the sentences, so a file can never be taken for
    other weights or other prompts. A file holds its key and a checksum: a damaged or foreign one is made anew. A folder
    that cannot be written to costs one warning.

    Args:
        backbone: The frozen CLIP.
        texts: The sentences.
        cache: Whether to look at and write to the disk.
    """
    precision = backbone.clip.text_projection.dtype
    recipe = repr((backbone.fingerprint, str(precision), list(texts)))
    key = hashlib.sha256(recipe.encode("utf-8", "backslashreplace")).hexdigest()
    path = cache_folder() / f"text-{key[:40]}.safetensors"
    if cache and path.is_file():
        embeddings = _read(path, key, (len(texts), backbone.embed_dim))
        if embeddings is not None:
            return embeddings.to(backbone.device)
    embeddings = backbone.encode_text(texts, normalize=True, progress=len(texts) > 256)
    if cache:
        _write(path, key, embeddings)
    return embeddings


def _read(path: Path, key: str, shape: tuple[int, int]) -> Tensor | None:
    try:
        with safe_open(path, framework="pt") as file:
            embeddings, metadata = file.get_tensor("embeddings"), file.metadata() or {}
    except (SafetensorError, OSError, ValueError):
        embeddings, metadata = torch.empty(0), {}
    if tuple(embeddings.shape) == shape and metadata == {"key": key, "checksum": _checksum(embeddings)}:
        return embeddings
    logger.warning("The cache file %s is damaged or of another origin; it is made anew.", path)
    return None


def _checksum(embeddings: Tensor) -> str:
    return hashlib.sha256(repr(embeddings.dtype).encode() + embeddings.numpy().tobytes()).hexdigest()


def _write(path: Path, key: str, embeddings: Tensor) -> None:
    """Write beside the target and rename: whoever reads at the same time sees the whole file or none."""
    temporary = None
    embeddings = embeddings.cpu().contiguous()
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        handle, temporary = tempfile.mkstemp(dir=path.parent, prefix=".text-")
        os.close(handle)
        save_file({"embeddings": embeddings}, temporary, {"key": key, "checksum": _checksum(embeddings)})
        Path(temporary).replace(path)
    except (OSError, SafetensorError) as error:
        if temporary:
            Path(temporary).unlink(missing_ok=True)
        logger.warning(
            "Text embeddings cannot be cached in %s (%s); they are computed at every start.", path.parent, error
        )
