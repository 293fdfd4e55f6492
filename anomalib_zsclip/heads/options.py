"""Arguments of heads: typed, checked once, comparable, and the one place that describes them."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence, Set
from numbers import Integral, Real
from typing import Any, ClassVar, TypeVar

from torch import Tensor

from anomalib_zsclip.errors import ArgumentError, UnknownArgumentError, check_list, check_whole_number, is_number

IMAGE_SCORES = ("text", "map_max", "mean")
LARGEST_SIGMA = 1000.0
"""Wider than any image is smoothed to a constant; a matrix of such a Gaussian would only take memory."""

Recipe = dict[str, Any]
"""What something was made from, in plain values (numbers, texts, lists), so that it can be compared and saved."""


@dataclasses.dataclass(frozen=True)
class HeadOptions:
    """Base of the arguments of a head: one definition for the head, the models, and ``--model.help``."""

    #: Default smoothing in pixels, the paper's where it has one, and the side of the image that it is meant for.
    PAPER_SIGMA: ClassVar[float] = 4.0
    PAPER_SIZE: ClassVar[int] = 240
    #: Options that move no score by themselves: chunks, caches, and files whose content :meth:`Head.recipe` tells apart.
    WITHOUT_EFFECT: ClassVar[tuple[str, ...]] = ("text_cache", "window_chunk", "prompts")

    sigma: float | None = None
    image_score: str = "text"

    def __post_init__(self) -> None:
        """Refuse values that no head can work with, and make all sequences tuples."""
        for field in dataclasses.fields(self):
            value = getattr(self, field.name)
            if isinstance(value, Sequence) and not isinstance(value, (str, bytes, tuple)):
                object.__setattr__(self, field.name, tuple(value))
        check_smoothing(self.sigma)
        if self.image_score not in IMAGE_SCORES:
            msg = f"image_score={self.image_score!r} must be one of {', '.join(IMAGE_SCORES)}."
            raise ArgumentError(msg)

    def sigma_for(self, size: tuple[int, int]) -> float:
        """Smoothing in pixels of a map of ``size``: as given, or the default in proportion to the shorter side."""
        return self.PAPER_SIGMA * min(size) / self.PAPER_SIZE if self.sigma is None else float(self.sigma)

    def recipe(self) -> Recipe:
        """All values that scores depend on, as plain data."""
        names = [field.name for field in dataclasses.fields(self) if field.name not in self.WITHOUT_EFFECT]
        return plain({name: getattr(self, name) for name in names})


Options = TypeVar("Options", bound=HeadOptions)


def check_fields(cls: type[HeadOptions], given: Mapping[str, Any]) -> None:
    """Refuse keywords that ``cls`` does not have.

    Heads call it before ``cls(**given)``, which stands where the keywords come in: the command line reads the arguments
    that they may be from that call.

    Raises:
        UnknownArgumentError: If there is no field of such a name; the message lists those that there are.
    """
    known = [field.name for field in dataclasses.fields(cls)]
    unknown = [name for name in given if name not in known]
    if unknown:
        msg = f"Unknown {', '.join(map(repr, unknown))}: {cls.__name__} has the fields {', '.join(known)}."
        raise UnknownArgumentError(msg)


def as_options(cls: type[Options], given: Options | Mapping[str, Any] | None, argument: str) -> Options:
    """Options as an object, from an object, a mapping (of a configuration, for example), or nothing.

    Raises:
        ArgumentError: If ``given`` is of another type, or has a field that ``cls`` does not have; the message lists those
            it has.
    """
    if isinstance(given, cls):
        return given
    if given is None:
        return cls()
    if not isinstance(given, Mapping):
        msg = f"{argument}={given!r} must be a mapping from argument to value, or {cls.__name__}(...)."
        raise ArgumentError(msg)
    check_fields(cls, given)
    return cls(**given)


def plain(value: Any) -> Any:  # noqa: ANN401 - any value of an argument
    """Bring a value to what JSON has: NumPy's numbers become Python's, sequences lists, paths and unknown objects texts."""
    if isinstance(value, Mapping):
        return {str(key): plain(item) for key, item in value.items()}
    if isinstance(value, (Sequence, Set)) and not isinstance(value, (str, bytes)):
        return [plain(item) for item in value]
    if value is None or isinstance(value, (bool, str)):
        return value
    if isinstance(value, Integral):
        return int(value)
    return float(value) if isinstance(value, Real) else str(value)


def check_smoothing(sigma: float | None) -> None:
    """Raise ``ArgumentError`` if ``sigma`` is no width of a Gaussian in pixels; 0 is for no smoothing."""
    if sigma is not None and not (is_number(sigma) and 0 <= sigma <= LARGEST_SIGMA):
        msg = f"sigma={sigma!r} must be a number of pixels from 0 (no smoothing) to {LARGEST_SIGMA:g}."
        raise ArgumentError(msg)


def check_layers(layers: Sequence[int] | None, depth: int | None = None) -> tuple[int, ...] | None:
    """Blocks whose tokens are compared, each once, ascending; ``None``, for the default, stays ``None``.

    Args:
        layers: The user's argument.
        depth: Blocks of the image tower, where it is known.

    Raises:
        ArgumentError: If these are no blocks of it.
    """
    if layers is None:
        return None
    tower = "the image tower" if depth is None else f"the image tower, which has blocks 1 to {depth}"
    check_list("layers", layers, f"at least one block of {tower}")
    for index, layer in enumerate(layers):
        check_whole_number(f"layers[{index}]", layer, 1)
    outside = [layer for layer in layers if depth is not None and layer > depth]
    if outside:
        msg = f"layers={list(layers)}: {outside} is outside {tower}."
        raise ArgumentError(msg)
    return tuple(sorted(set(layers)))


def combine_image_score(kind: str, score: Tensor, anomaly_map: Tensor) -> Tensor:
    """Image score of a head.

    Args:
        kind: ``"text"``, the image embedding against the text side; ``"map_max"``, the maximum of the map; ``"mean"`` of
            both.
        score: Score of the image embedding, ``[B]``.
        anomaly_map: Map, ``[B, H, W]``.

    Raises:
        ArgumentError: If ``kind`` is none of these.
    """
    if kind not in IMAGE_SCORES:
        msg = f"image_score={kind!r} must be one of {', '.join(IMAGE_SCORES)}."
        raise ArgumentError(msg)
    if kind == "text":
        return score
    peak = anomaly_map.amax(dim=(-2, -1))
    return peak if kind == "map_max" else (score + peak) / 2
