"""What readiness and checkpoints need to know of a model, whichever it is."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Protocol

from torch import Tensor

from anomalib_zsclip.heads.options import Recipe, plain
from anomalib_zsclip.images import ReadingRules

from .verdicts import Verdicts
from .zero_shot_model import ZeroShotModel


@dataclass
class Bindings:
    """What the compiled state of a model was made for.

    Attributes:
        class_name: What the text says that images show.
        text: Part of the model -> what its compiled text depends on.
        references: What the memory bank's good parts were taken from; ``None`` while there are none.
        unlabelled: What its unlabelled images were taken from, and their scales made with; ``None`` while there are none.
        decisions: What the thresholds were made with and from; ``None`` where there are none, or of unknown origin.
        published: Head -> what its published weights were learned on, where it has such.
    """

    class_name: str | None = None
    text: dict[str, Recipe] = field(default_factory=dict)
    references: Recipe | None = None
    unlabelled: Recipe | None = None
    decisions: Recipe | None = None
    published: dict[str, str] = field(default_factory=dict)

    def as_dict(self) -> Recipe:
        """Plain data for a checkpoint."""
        return {name: plain(value) for name, value in vars(self).items()}

    @property
    def has_normal(self) -> bool:
        """Whether thresholds were made beside normal images."""
        return (self.decisions or {}).get("normal") is not None


class Detector(Protocol):
    """A model as readiness and checkpoints see it; :class:`~anomalib_zsclip.models.hooks.ZeroShotMixin` is one.

    Attributes:
        model: The plain detector.
        bindings: What its compiled state was made for.
        ready_for: What it was last found ready for; ``None`` if it has to be looked at again.
        verdicts: What unlabelled images were given when they were read, until the end of the stage.
        pre_processor: anomalib's component.
        post_processor: anomalib's component.
        precision_name: Precision as the user names it.
        class_name: What the user says that images show.
        learn: Whether ``fit`` learns.
        k_shot: Normal images in the memory bank.
        unlabelled: Unlabelled images in the memory bank, or "all".
        unlabelled_dir: Folder of unlabelled images; ``None`` for those under judgement.
        expected_defects: Share of defective parts among the unlabelled images.
        normal_dir: Folder of normal images.
        normal_images: Most normal images besides those of the memory bank.
        reading: How image files are read.
        adopts_heads: Whether heads that only a checkpoint has weights for may be added.
        published: Head -> choice of published weights.
        not_zero_shot: Heads and data that a warning has been given for.
    """

    model: ZeroShotModel
    bindings: Bindings
    ready_for: tuple[Any, ...] | None
    verdicts: Verdicts | None
    pre_processor: Any
    post_processor: Any
    precision_name: str
    class_name: str | None
    learn: bool
    k_shot: int
    unlabelled: int | str
    unlabelled_dir: str | Path | None
    expected_defects: float
    normal_dir: str | Path | None
    normal_images: int
    reading: ReadingRules
    adopts_heads: bool
    published: Mapping[str, str]
    not_zero_shot: frozenset[tuple[str, str]]

    @property
    def false_alarms(self) -> float:
        """Share of good parts that may be flagged."""

    @property
    def hparams(self) -> Mapping[str, Any]:
        """Arguments of the constructor."""

    def state_dict(self) -> dict[str, Tensor]:
        """Parameters and buffers."""

    def weight_argument(self, head: str) -> str:
        """Argument that names the file with the learned weights of a head."""

    def adopt_head(self, name: str) -> None:
        """Make a head whose learned weights a checkpoint brings."""
