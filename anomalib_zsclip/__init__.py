"""CLIP-based zero-shot anomaly detection for anomalib 2.x. Importing it registers its models with anomalib."""

from .clip import ClipBackbone
from .data import SyntheticDefects, ZeroShotTransfer
from .models import AnomalyClip, ClipAd, MuSc, RandomWordClip, ZsClip
from .plugin import register

__version__ = "0.1.0"

__all__ = [
    "AnomalyClip",
    "ClipAd",
    "ClipBackbone",
    "MuSc",
    "RandomWordClip",
    "SyntheticDefects",
    "ZeroShotTransfer",
    "ZsClip",
]

register()
