"""The trunk: a frozen CLIP whose image tower runs once per image and serves every head."""

from .backbone import BackboneIdentity, ClipBackbone
from .image_tower import BlockRange, FeatureRequest, ImageFeatures

__all__ = ["BackboneIdentity", "BlockRange", "ClipBackbone", "FeatureRequest", "ImageFeatures"]
