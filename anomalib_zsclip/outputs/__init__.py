"""From predictions to what a user sees: decisions, metrics, pictures, map files, and the table of scores.

anomalib calls what is here as callbacks; ``models`` only chooses them.
"""

from .evaluation import DefinedEvaluator, default_evaluator
from .fresh_results import FreshResults
from .log import quiet_command
from .map_files import MapFiles
from .post_processing import MonotonePostProcessor
from .predictions_file import PredictionsFile
from .progress import ImageProgress
from .visualizer import FixedScaleVisualizer

__all__ = [
    "DefinedEvaluator",
    "FixedScaleVisualizer",
    "FreshResults",
    "ImageProgress",
    "MapFiles",
    "MonotonePostProcessor",
    "PredictionsFile",
    "default_evaluator",
    "quiet_command",
]
