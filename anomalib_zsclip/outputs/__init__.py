"""From predictions to what a user sees: decisions, metrics, pictures, maps, regions, the table of scores, the report.

anomalib calls what is here as callbacks; ``models`` only chooses them.
"""

from .callbacks import with_results
from .evaluation import DefinedEvaluator, default_evaluator
from .fresh_results import FreshResults
from .log import quiet_command
from .map_files import MapFiles
from .post_processing import MonotonePostProcessor
from .predictions_file import PredictionsFile
from .progress import ImageProgress
from .region_files import RegionFiles
from .regions import PictureRegions, Region
from .report import ReportPage
from .visualizer import FixedScaleVisualizer

__all__ = [
    "DefinedEvaluator",
    "FixedScaleVisualizer",
    "FreshResults",
    "ImageProgress",
    "MapFiles",
    "MonotonePostProcessor",
    "PictureRegions",
    "PredictionsFile",
    "Region",
    "RegionFiles",
    "ReportPage",
    "default_evaluator",
    "quiet_command",
    "with_results",
]
