"""Comparisons: any model of anomalib in one form for ``anomalib benchmark``, and the tables made of its results."""

from .comparison import comparable

__all__ = ["comparable"]
