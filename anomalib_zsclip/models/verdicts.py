"""What the folder's images got when they were compared with each other: judged again in the same stage, they keep it.

The references of mutual scoring are read before the first image is judged, and mostly they are among those images. Scores
and maps of that first reading are the final ones, so a second pass over the same picture would find the same.
"""

from __future__ import annotations

import hashlib
from dataclasses import dataclass, field
from typing import Any, NamedTuple

import torch
from anomalib.data import InferenceBatch
from torch import Tensor

from anomalib_zsclip.heads.explanation import Evidence

from .zero_shot_model import ZeroShotModel

BUDGET = 2**28
"""Bytes that verdicts may take: 256 MiB are some 300 pictures of ViT-B-16-plus at 240 px with named defects, or 250 maps of
518 px. Images beyond that are judged by a pass of their own."""


class Verdict(NamedTuple):
    """What an image got.

    Attributes:
        score: Image score, a scalar.
        anomaly_map: Map ``[H, W]``.
        text: Name of the defect, where defects are named.
        evidence: What a region is named by, of the whole picture, ``B = 1``.
    """

    score: Tensor
    anomaly_map: Tensor
    text: str | None = None
    evidence: Evidence | None = None


@dataclass
class Verdicts:
    """Verdicts by the contents of pre-processed images, bounded in memory; a copy or a pickle of it is empty.

    Attributes:
        budget: Most bytes.
        made_for: Settings that they hold for.
        known: Key of an image -> its verdict.
    """

    budget: int = BUDGET
    made_for: tuple[Any, ...] | None = None
    known: dict[bytes, Verdict] = field(default_factory=dict)

    def __reduce__(self) -> tuple[type[Verdicts], tuple[int]]:
        """Leave pictures out of whatever holds a model."""
        return Verdicts, (self.budget,)

    def fitting(self, anomaly_map: tuple[int, int], evidence: Evidence | None) -> int:
        """How many images fit the budget.

        Args:
            anomaly_map: Height and width of a map.
            evidence: What was seen of the views of one image.
        """
        tensors = () if evidence is None else (evidence.tokens, evidence.image_embedding)
        return self.budget // (4 * anomaly_map[0] * anomaly_map[1] + sum(tensor.nbytes for tensor in tensors))

    def judge(
        self, model: ZeroShotModel, images: Tensor, *, explain: bool
    ) -> tuple[InferenceBatch, list[str | None] | None]:
        """As :func:`judge`, with a pass of the tower over those images alone that have no verdict."""
        found = [self.known.get(key_of(image)) for image in images]
        absent = [index for index, verdict in enumerate(found) if verdict is None]
        if len(absent) == len(found):
            return judge(model, images, explain=explain)
        namer = model.namer if explain else None
        keep = namer is not None and namer.keeps_evidence and namer.evidence is None
        if absent:
            prediction, texts = judge(model, images[absent], explain=explain)
            own = namer.evidence if keep and namer is not None else None
            for place, index in enumerate(absent):
                found[index] = Verdict(
                    prediction.pred_score[place],  # type: ignore[index]
                    prediction.anomaly_map[place],  # type: ignore[index]
                    None if texts is None else texts[place],
                    None if own is None else whole_of(own, place, len(absent)),
                )
        verdicts: list[Verdict] = found  # type: ignore[assignment]
        evidence = [verdict.evidence for verdict in verdicts if verdict.evidence is not None]
        if keep and namer is not None:
            namer.evidence = Evidence.join(evidence) if len(evidence) == len(verdicts) else None
        prediction = InferenceBatch(
            pred_score=torch.stack([verdict.score for verdict in verdicts]),
            anomaly_map=torch.stack([verdict.anomaly_map for verdict in verdicts]),
        )
        return prediction, None if namer is None else [verdict.text for verdict in verdicts]


def whole_of(evidence: Evidence, index: int, pictures: int) -> Evidence:
    """What was seen of one picture as a whole, of a batch of so many pictures, each with as many views."""
    first = index * (len(evidence.tokens) // pictures)
    return evidence.part(first, first + 1)


def key_of(image: Tensor) -> bytes:
    """Hash of the contents of a pre-processed image ``[3, H, W]``, or sheet."""
    content = image.detach().contiguous().cpu()
    digest = hashlib.sha256(repr((tuple(content.shape), content.dtype)).encode())
    digest.update(content.view(torch.uint8).numpy().data)
    return digest.digest()


def judge(
    model: ZeroShotModel, images: Tensor, verdicts: Verdicts | None = None, *, explain: bool
) -> tuple[InferenceBatch, Any]:
    """Scores ``[B]`` and maps ``[B, H, W]``, and with ``explain`` a text per image that names the defect.

    Args:
        model: The detector.
        images: Pre-processed images, or sheets, ``[B, 3, h, w]``.
        verdicts: What is known of some of them.
        explain: Whether to name defects.
    """
    if verdicts is not None:
        return verdicts.judge(model, images, explain=explain)
    return model.explain(images) if explain else (model(images), None)
