"""Numbers that the papers publish, to stand beside measured ones."""

from __future__ import annotations

from typing import NamedTuple


class Published(NamedTuple):
    """Numbers of a paper in per cent, zero-shot, mean over the categories of a data set."""

    method: str
    dataset: str
    source: str
    metrics: dict[str, float]


def _published(method: str, dataset: str, source: str, **metrics: float) -> Published:
    return Published(method, dataset, source, metrics)


WINCLIP = "Jeong et al., CVPR 2023, arXiv 2303.14814"
ANOMALY_CLIP = "Zhou et al., ICLR 2024, arXiv 2310.18961"
CLIP_AD = "Chen et al., arXiv 2311.00453 (WinCLIP's numbers and the differences in the abstract)"
PUBLISHED = [
    _published("WinCLIP", "MVTecAD", WINCLIP, image_AUROC=91.8, pixel_AUROC=85.1, pixel_F1Max=31.7, pixel_AUPRO=64.6),
    _published("CLIP-AD SDP", "MVTecAD", CLIP_AD, pixel_F1Max=35.9, pixel_AUPRO=75.3),
    _published("CLIP-AD SDP+", "MVTecAD", CLIP_AD, pixel_F1Max=40.0, pixel_AUPRO=85.1),
    _published("AnomalyCLIP", "MVTecAD", ANOMALY_CLIP, image_AUROC=91.5, pixel_AUROC=91.1, pixel_AUPRO=81.4),
    _published("WinCLIP", "Visa", WINCLIP, image_AUROC=78.1, pixel_AUROC=79.6, pixel_AUPRO=56.8),
    _published("AnomalyCLIP", "Visa", ANOMALY_CLIP, image_AUROC=82.1, pixel_AUROC=95.5, pixel_AUPRO=87.0),
]
