"""The trunk: a frozen CLIP whose image tower runs once per image and serves every head.

From the outside in: ``backbone`` is what all other rooms see; ``loading`` finds and makes the model (``published`` and local
``weight_files``, ``architectures``); ``image_tower`` and ``text_tower`` are the forward passes; ``text_cache`` keeps
embeddings of sentences on disk. ``prompts``, ``heads`` and ``models`` come in.
"""

from .backbone import ClipBackbone
from .identity import BackboneIdentity
from .image_tower import BlockRange, FeatureRequest, ImageFeatures

__all__ = ["BackboneIdentity", "BlockRange", "ClipBackbone", "FeatureRequest", "ImageFeatures"]
