"""From image files to tensors: what is an image and how it is read, checks, reading ahead, and CLIP's pre-processing.

Everything that opens an image file for the model is here. ``models`` comes in; this room knows of no other one.
"""

from .checks import UnreadableImages
from .folder_data import FolderDataset, unreadable_of
from .input_check import check_images
from .normal_images import NormalImages, find_normal_images
from .pre_processing import ClipPreProcessor
from .predict_door import open_door
from .read_ahead import ReadAhead
from .reading import DEFAULT_RULES, ReadingRules, read_picture
from .unlabelled_images import find_unlabelled_images

__all__ = [
    "DEFAULT_RULES",
    "ClipPreProcessor",
    "FolderDataset",
    "NormalImages",
    "ReadAhead",
    "ReadingRules",
    "UnreadableImages",
    "check_images",
    "find_normal_images",
    "find_unlabelled_images",
    "open_door",
    "read_picture",
    "unreadable_of",
]
