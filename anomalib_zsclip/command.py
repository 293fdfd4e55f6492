"""Whether anomalib's command runs, or somebody's Python code."""

from __future__ import annotations

import sys
from pathlib import Path


def is_command() -> bool:
    """Whether this process is a run of the ``anomalib`` command."""
    return Path(sys.argv[0]).stem == "anomalib"
