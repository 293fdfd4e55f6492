"""Comparisons: the papers' metrics, any model of anomalib in one form for ``anomalib benchmark``, and the tables of results.

``models`` comes in for the metrics. This room knows models by what anomalib knows of them.
"""

from .comparison import comparable
from .evaluator import PapersEvaluator

__all__ = ["PapersEvaluator", "comparable"]
