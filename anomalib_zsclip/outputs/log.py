"""What the ``anomalib`` command says with our models: each line once, and none that says nothing about the run.

Only lines that are known are left out, by their text, and only where a model of this package is used. Python code and other
models keep theirs.
"""

from __future__ import annotations

import logging
import warnings
from collections.abc import Sequence

from anomalib_zsclip.errors import is_command

LIGHTNING = ("TPU available", "💡 Tip", "The following callbacks returned in `LightningModule.configure_callbacks`")
NOISE: dict[str, tuple[str, ...]] = {
    "anomalib.callbacks": ("Loading the callbacks",),
    # Zero-shot models have no weights to load, and validate on nothing where there is no data.
    "anomalib.engine.engine": ("ckpt_path is not provided", "Running validation before"),
    "lightning.fabric.utilities.rank_zero": LIGHTNING,
    "lightning_fabric.utilities.rank_zero": LIGHTNING,
    "lightning.pytorch.utilities.rank_zero": LIGHTNING,
}
"""Logger -> beginnings of lines that are left out."""

WARNINGS = (
    r"Total length of `list` across ranks is zero",  # there is nothing to validate on, which we know
    r".*`isinstance\(treespec, LeafSpec\)` is deprecated",
    r"'pin_memory' argument is set as true but no accelerator is found",
)
"""Beginnings of warnings that are left out."""


class _Quiet(logging.Filter):
    """Leaves out lines that begin with one of some texts."""

    def __init__(self, texts: tuple[str, ...]) -> None:
        super().__init__()
        self.texts = texts

    def filter(self, record: logging.LogRecord) -> bool:
        """Whether a line is written."""
        return not record.getMessage().startswith(self.texts)


def quiet_command() -> None:
    """Leave the known lines out, and write the others once, where this process is the command; safe to call often."""
    if not is_command():
        return
    for name, texts in NOISE.items():
        logger = logging.getLogger(name)
        if not any(isinstance(found, _Quiet) for found in logger.filters):
            logger.addFilter(_Quiet(texts))
    for text in WARNINGS:
        warnings.filterwarnings("ignore", message=text)
    for logger in (logging.getLogger(), logging.getLogger("lightning.pytorch")):
        _one_handler(logger)


def quiet_start(models: Sequence[str]) -> None:
    """Leave out that a model is being made, which anomalib says before the model itself is asked; for the command."""
    if is_command():
        logger = logging.getLogger("anomalib.models.components.base.anomalib_module")
        logger.addFilter(_Quiet(tuple(f"Initializing {name} model." for name in models)))


def _one_handler(logger: logging.Logger) -> None:
    """Drop the second handler that writes everything to the terminal once more: anomalib adds one of rich's."""
    if any(isinstance(handler, logging.StreamHandler) for handler in logger.handlers):
        for handler in [handler for handler in logger.handlers if type(handler).__name__ == "RichHandler"]:
            logger.removeHandler(handler)
