"""Published weights of open_clip: their tags, whether they can be had, and what a file of them has to be run with."""

from __future__ import annotations

import difflib
import threading
import urllib.request
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

import open_clip

from anomalib_zsclip.errors import BackboneError

OPENAI_MEAN = (0.48145466, 0.4578275, 0.40821073)
OPENAI_STD = (0.26862954, 0.26130258, 0.27577711)
QUICK_GELU = "-quickgelu"
"""Ending of a name that asks for QuickGELU; open_clip has some of these names itself."""

PROBE_SECONDS = 4.0
"""How long ``auto`` waits for an answer before it takes the machine to be offline."""


def resolve_pretrained(name: str, pretrained: str | None) -> Path:
    """Find, and if need be download, the weights of an open_clip name.

    Args:
        name: Architecture, as in ``open_clip.list_models()``.
        pretrained: A tag of open_clip for it, or the path of a local weight file.

    Returns:
        Path of the weight file.

    Raises:
        BackboneError: If the tag is unknown, the file is missing, or the download fails.
    """
    tags = open_clip.list_pretrained_tags_by_model(name)
    if pretrained is None:
        msg = f"backbone={name!r} needs pretrained=<tag or path of a weight file>. Tags: {', '.join(tags) or 'none'}."
        raise BackboneError(msg)
    path = Path(pretrained).expanduser()
    if path.is_file():
        return path
    if pretrained in tags or pretrained.lower() in tags:
        try:
            return Path(open_clip.download_pretrained(open_clip.get_pretrained_cfg(name, pretrained)))
        except Exception as error:
            msg = (
                f"The weights {pretrained!r} of {name!r} are neither in the cache nor could they be downloaded "
                f"({type(error).__name__}: {error}). Connect this machine once, or copy the file here and give "
                "its path as pretrained=, or use backbone='builtin'."
            )
            raise BackboneError(msg) from error
    if path.suffix or len(path.parts) > 1:
        msg = f"pretrained={pretrained!r}: there is no such file."
    else:
        near = difflib.get_close_matches(pretrained, tags, n=3, cutoff=0.3)
        msg = (
            f"pretrained={pretrained!r} is neither a file nor a tag of {name!r}. "
            f"Tags: {', '.join(tags) or 'none'}. Near matches: {', '.join(near) or 'none'}."
        )
    raise BackboneError(msg)


def is_available(name: str, pretrained: str) -> bool:
    """Whether published weights are in the cache or their server answers, decided within a few seconds."""
    if Path(pretrained).expanduser().is_file():
        return True
    config = open_clip.get_pretrained_cfg(name, pretrained)
    if not config:
        return False
    return _is_cached(config) or _server_answers(config)


def _is_cached(config: Mapping[str, Any]) -> bool:
    url = config.get("url") or ""
    if url and (Path("~/.cache/clip").expanduser() / url.rsplit("/", 1)[-1]).is_file():
        return True
    repository = (config.get("hf_hub") or "").strip("/")
    if not repository:
        return False
    from huggingface_hub import try_to_load_from_cache

    files = ("open_clip_model.safetensors", "open_clip_pytorch_model.safetensors", "open_clip_pytorch_model.bin")
    return any(isinstance(try_to_load_from_cache(repository, file), str) for file in files)


def _server_answers(config: Mapping[str, Any]) -> bool:
    from huggingface_hub import constants

    if constants.HF_HUB_OFFLINE:
        return False
    url = config.get("url") or f"{constants.ENDPOINT}/{(config.get('hf_hub') or '').strip('/')}"
    request = urllib.request.Request(url, method="HEAD")  # noqa: S310
    answers: list[bool] = []

    def probe() -> None:
        try:
            with urllib.request.urlopen(request, timeout=PROBE_SECONDS):  # noqa: S310 - open_clip's own address
                answers.append(True)
        except OSError:
            answers.append(False)

    # A thread, because a name server that does not answer ignores the time-out of the request.
    thread = threading.Thread(target=probe, daemon=True)
    thread.start()
    thread.join(PROBE_SECONDS)
    return bool(answers and answers[0])


class Settings(NamedTuple):
    """What published weights have to be run with.

    Attributes:
        quick_gelu: Whether the MLPs use QuickGELU instead of GELU.
        mean: Channel means of the images.
        std: Channel standard deviations of the images.
    """

    quick_gelu: bool
    mean: tuple[float, ...]
    std: tuple[float, ...]


def settings_of(name: str, tag: str) -> Settings:
    """Settings of a tag, as open_clip keeps them."""
    published = open_clip.get_pretrained_cfg(name, tag) or {}
    architecture = open_clip.get_model_config(name) or {}
    quick = tag.lower() == "openai" or published.get("quick_gelu") or architecture.get("quick_gelu")
    return Settings(bool(quick), tuple(published.get("mean") or OPENAI_MEAN), tuple(published.get("std") or OPENAI_STD))


def settings_of_file(name: str, is_openai: bool) -> tuple[Settings, str | None]:
    """Settings of a local file of weights, which does not say them itself.

    A file of OpenAI's is known by its form. For others the tags of the architecture's name decide: where all agree, as they
    do; where they do not, as most of them.

    Args:
        name: Architecture, with the ending ``-quickgelu`` where the user asks for that.
        is_openai: Whether the file shows that it is OpenAI's.

    Returns:
        The settings, and what to tell the user where they are a guess.
    """
    if is_openai:
        return Settings(quick_gelu=True, mean=OPENAI_MEAN, std=OPENAI_STD), None
    base = name.removesuffix(QUICK_GELU)
    if base != name:
        return Settings(quick_gelu=True, mean=OPENAI_MEAN, std=OPENAI_STD), None
    known = [(tag, settings_of(name, tag)) for tag in open_clip.list_pretrained_tags_by_model(name)]
    if not known:
        return settings_of(name, ""), None
    found = [settings for _, settings in known]
    chosen = max(found, key=found.count)
    others = [tag for tag, settings in known if settings != chosen]
    if not others:
        return chosen, None
    activation = "QuickGELU" if chosen.quick_gelu else "GELU"
    advice = (
        f"A local file does not say how its weights are to be run: it is taken for one of {name!r} with {activation}, "
        f"images normalised with the mean {chosen.mean[0]:.3f}, ... Other weights of that name differ "
        f"({', '.join(others[:4])}{', ...' if len(others) > 4 else ''}). If the file is OpenAI's or another one with "
        f"QuickGELU, pass backbone='{base}{QUICK_GELU}'; if it is published, pass its tag as pretrained=."
    )
    return chosen, advice
