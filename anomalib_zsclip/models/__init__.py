"""The models that users name, over one plain detector, and what makes them ready.

``zero_shot_model`` is the detector as plain PyTorch. ``hooks`` holds the hooks of Lightning and anomalib;
``readiness`` is the one place that makes a model ready, ``checkpoints`` the one that compares files with arguments. Only
``plugin`` comes in from above.
"""

from .anomaly_clip import AnomalyClip
from .clip_ad import ClipAd
from .musc import MuSc
from .random_word_clip import RandomWordClip
from .zs_clip import ZsClip

__all__ = ["AnomalyClip", "ClipAd", "MuSc", "RandomWordClip", "ZsClip"]
