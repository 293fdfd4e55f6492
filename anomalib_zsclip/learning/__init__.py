"""Learning a head from labelled auxiliary images: the token cache, and the Lightning hooks of a model that learns.

Only ``models`` comes in. Neither asks which head it is: everything a method decides is in its head.
"""

from .learning_mixin import LearningMixin
from .token_cache import TokenBatch, TokenCache

__all__ = ["LearningMixin", "TokenBatch", "TokenCache"]
