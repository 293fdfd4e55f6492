"""Numbers that the papers publish, to stand beside measured ones."""

from __future__ import annotations

from collections.abc import Iterable
from typing import NamedTuple

from anomalib.data.datasets.image.mvtecad import CATEGORIES as MVTEC_AD
from anomalib.data.datasets.image.visa import CATEGORIES as VISA


class Published(NamedTuple):
    """Numbers of a paper in per cent, zero-shot, mean over the categories of a data set.

    Attributes:
        method: What the paper calls it.
        dataset: Data set.
        source: The paper.
        metrics: Numbers by the names of our metrics. The overlap of regions is the published programs' own
            (``pixel_OfficialPro``) where they are known to compute it so.
        model: Pattern of the names in our tables that stand for the same protocol; empty where none of our models does.
    """

    method: str
    dataset: str
    source: str
    metrics: dict[str, float]
    model: str = ""


CATEGORIES: dict[str, frozenset[str]] = {"MVTecAD": frozenset(MVTEC_AD), "Visa": frozenset(VISA)}
"""Categories that a published mean is over."""


def is_whole(dataset: str, categories: Iterable[str]) -> bool:
    """Whether categories are those of the data set that published means are over, all of them and no other."""
    return frozenset(categories) == CATEGORIES.get(dataset)


MODELS = {
    "MuSc": r"MuSc \((?=.*unlabelled=all)(?=.*backbone=ViT-L-14-336).*\)",
    "CLIP-AD SDP": r"ClipAd \((?!.*variant=sdp\+).*backbone=ViT-B-16-plus-240.*\)",
    "CLIP-AD SDP+": r"ClipAd \((?=.*variant=sdp\+)(?=.*checkpoint=published).*backbone=ViT-B-16-plus-240.*\)",
    "Crane": r"AnomalyClip \((?=.*variant=crane)(?=.*checkpoint=published).*backbone=ViT-L-14-336.*\)",
    "AnomalyCLIP": r"AnomalyClip \((?!.*variant=crane)(?=.*checkpoint=published).*backbone=ViT-L-14-336.*\)",
}
"""Method -> names of models in our tables with the paper's CLIP and the published weights."""


def _published(method: str, dataset: str, source: str, **metrics: float) -> Published:
    return Published(method, dataset, source, metrics, MODELS.get(method, ""))


WINCLIP = "Jeong et al., CVPR 2023, arXiv 2303.14814"
ANOMALY_CLIP = "Zhou et al., ICLR 2024, arXiv 2310.18961"
CRANE = "Salehi et al., arXiv 2504.11055 (the table of the authors' repository, without DINOv2)"
MUSC = "Li et al., ICLR 2024, arXiv 2401.16753 (transductive: all test images of a category, without labels)"
CLIP_AD = "Chen et al., arXiv 2311.00453 (WinCLIP's numbers and the differences in the abstract)"
PUBLISHED = [
    _published("WinCLIP", "MVTecAD", WINCLIP, image_AUROC=91.8, pixel_AUROC=85.1, pixel_F1Max=31.7, pixel_AUPRO=64.6),
    _published("CLIP-AD SDP", "MVTecAD", CLIP_AD, pixel_F1Max=35.9, pixel_OfficialPro=75.3),
    _published("CLIP-AD SDP+", "MVTecAD", CLIP_AD, pixel_F1Max=40.0, pixel_OfficialPro=85.1),
    _published("MuSc", "MVTecAD", MUSC, image_AUROC=97.8, pixel_AUROC=97.3),
    _published("AnomalyCLIP", "MVTecAD", ANOMALY_CLIP, image_AUROC=91.5, pixel_AUROC=91.1, pixel_OfficialPro=81.4),
    _published(
        "Crane",
        "MVTecAD",
        CRANE,
        image_AUROC=93.8,
        image_AveragePrecision=97.5,
        image_F1Max=93.8,
        pixel_AUROC=91.3,
        pixel_OfficialPro=84.6,
        pixel_F1Max=41.3,
    ),
    _published("WinCLIP", "Visa", WINCLIP, image_AUROC=78.1, pixel_AUROC=79.6, pixel_AUPRO=56.8),
    _published("AnomalyCLIP", "Visa", ANOMALY_CLIP, image_AUROC=82.1, pixel_AUROC=95.5, pixel_OfficialPro=87.0),
    _published(
        "Crane",
        "Visa",
        CRANE,
        image_AUROC=85.3,
        image_AveragePrecision=87.9,
        image_F1Max=82.6,
        pixel_AUROC=95.1,
        pixel_OfficialPro=87.5,
        pixel_F1Max=30.9,
    ),
]
