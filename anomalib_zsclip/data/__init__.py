"""Data modules: procedural defects, and learning on auxiliary data."""

from .zero_shot_transfer import ZeroShotTransfer

__all__ = ["ZeroShotTransfer"]
