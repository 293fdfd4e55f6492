"""Pictures of results, with one fixed colour scale for all images."""

from __future__ import annotations

from anomalib.visualization import ImageVisualizer


class FixedScaleVisualizer(ImageVisualizer):
    """anomalib's visualizer with colours that mean the same in every picture: blue is 0, red is 1."""
