"""Sentences: state phrases and templates, and the one vector that represents the embeddings of many of them."""

from .ensembles import DOMAINS, state_sentences
from .representative import RVS_DEFAULTS, representative_vector

__all__ = ["DOMAINS", "RVS_DEFAULTS", "representative_vector", "state_sentences"]
