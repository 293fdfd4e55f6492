"""Data modules: procedural defects, and learning on auxiliary data."""

from .synthetic_defects import SyntheticDefects
from .zero_shot_transfer import ZeroShotTransfer

__all__ = ["SyntheticDefects", "ZeroShotTransfer"]
