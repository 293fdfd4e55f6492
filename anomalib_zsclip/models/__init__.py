"""The models that users name."""

from .anomaly_clip import AnomalyClip
from .clip_ad import ClipAd
from .random_word_clip import RandomWordClip
from .zs_clip import ZsClip

__all__ = ["AnomalyClip", "ClipAd", "RandomWordClip", "ZsClip"]
