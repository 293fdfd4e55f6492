"""From image files to tensors: checks of files, reading ahead, normal images, and CLIP's pre-processing.

Everything that opens an image file for the model is here. ``models`` comes in; this room knows of no other one.
"""

from .checks import UnreadableImages
from .normal_images import NormalImages, find_normal_images
from .pre_processing import ClipPreProcessor
from .read_ahead import ReadAhead
from .tiling import OneByOne, Tiling

__all__ = [
    "ClipPreProcessor",
    "NormalImages",
    "OneByOne",
    "ReadAhead",
    "Tiling",
    "UnreadableImages",
    "find_normal_images",
]
