"""CLIP-based zero-shot anomaly detection for anomalib 2.x. Importing it registers its models with anomalib."""

from .clip import ClipBackbone
from .data import SyntheticDefects, ZeroShotTransfer
from .models import AnomalyClip, ClipAd, MuSc, RandomWordClip, ZsClip
from .models.inspection import Inspection, inspect
from .plugin import register

__version__ = "0.1.0"

__all__ = [
    "AnomalyClip",
    "ClipAd",
    "ClipBackbone",
    "Inspection",
    "MuSc",
    "RandomWordClip",
    "SyntheticDefects",
    "ZeroShotTransfer",
    "ZsClip",
    "inspect",
]

register()
