"""From a user's words to a model: names and tags of open_clip, local files, the built-in model. Never pickled code."""

from __future__ import annotations

import json
import logging
from pathlib import Path
from typing import NamedTuple

from torch import nn

from anomalib_zsclip.errors import BackboneError

from .architectures import AUTO, BUILTIN, build_model, model_config
from .published import (
    OPENAI_MEAN,
    OPENAI_STD,
    QUICK_GELU,
    is_available,
    resolve_pretrained,
    settings_of,
    settings_of_file,
)
from .weight_files import read_weights

logger = logging.getLogger(__name__)

BUILTIN_FOLDER = Path(__file__).parent / "builtin"
BUILTIN_SIZE = 192
"""Default side of images for the built-in model, in pixels: half as large again as its native side, on which its patches
are too coarse for small defects. Its training ended with pictures of 96 to 192 px."""


class LoadedClip(NamedTuple):
    """An open_clip model and what has to be known of it.

    Attributes:
        model: The model, frozen.
        name: Architecture.
        pretrained: Tag or file of its weights.
        mean: Channel means of its images.
        std: Channel standard deviations of its images.
    """

    model: nn.Module
    name: str
    pretrained: str
    mean: tuple[float, ...] = OPENAI_MEAN
    std: tuple[float, ...] = OPENAI_STD


def load_clip(name: str, pretrained: str | None, auto: tuple[str, str]) -> LoadedClip:
    """Load a CLIP; arguments and errors as :meth:`ClipBackbone.load`."""
    if name == AUTO:
        if pretrained is not None:
            msg = "backbone='auto' chooses its own weights: give pretrained= together with an architecture's name."
            raise BackboneError(msg)
        return _load_auto(*auto)
    if name == BUILTIN:
        return _load_builtin(pretrained)
    return _load_named(name, pretrained)


def shipped_head(file: str) -> Path | None:
    """Weights of a head that is shipped for the built-in backbone; ``None`` if this file is not shipped."""
    path = BUILTIN_FOLDER / file
    return path if path.is_file() else None


def _load_auto(name: str, tag: str) -> LoadedClip:
    if not is_available(name, tag):
        reason = "they are neither in the cache nor downloadable: this machine seems offline"
    else:
        try:
            return _load_named(name, tag)
        except BackboneError as error:  # the server answered, and then the download failed or brought something else
            reason = str(error)
    logger.warning(
        "\n%s\n"
        "The published CLIP weights %r of %r cannot be used: %s\n"
        "The tiny BUILT-IN backbone takes their place. It is made for demos and tests; expect much weaker results.\n"
        "For the real one: connect this machine once, or copy the weight file here and pass\n"
        "    --model.backbone %s --model.pretrained <path of the weight file>\n"
        "To choose the built-in one without this warning: --model.backbone builtin\n%s",
        *("=" * 100, tag, name, reason, name, "=" * 100),
    )
    return _load_builtin(None)


def _load_builtin(pretrained: str | None) -> LoadedClip:
    path = Path(pretrained).expanduser() if pretrained else BUILTIN_FOLDER / "model.safetensors"
    if not path.is_file():
        msg = f"The weights of the built-in backbone are not at {path}: reinstall the package."
        raise BackboneError(msg)
    config = json.loads((BUILTIN_FOLDER / "config.json").read_text())
    model = build_model(config, read_weights(path).tensors, f"The weight file {path}")
    return LoadedClip(model, BUILTIN, pretrained or BUILTIN)


def _load_named(name: str, pretrained: str | None) -> LoadedClip:
    import open_clip

    # open_clip has some of the names that end so; for the others it is the plain architecture with another activation.
    own_name = name if open_clip.get_model_config(name) else name.removesuffix(QUICK_GELU)
    config = dict(model_config(own_name))
    path = resolve_pretrained(name, pretrained)
    weights = read_weights(path)
    tag = str(pretrained)
    if Path(tag).expanduser().is_file():
        settings, advice = settings_of_file(name, weights.is_openai)
        if advice:
            logger.warning("%s: %s", tag, advice)
    else:
        settings = settings_of(name, tag)
    config["quick_gelu"] = settings.quick_gelu or bool(config.get("quick_gelu")) or name.endswith(QUICK_GELU)
    model = build_model(config, weights.tensors, f"The weight file {path}")
    return LoadedClip(model, name, tag, settings.mean, settings.std)
