"""Errors that are the user's to mend. The ``anomalib`` command shows their message alone, without a stack of frames."""


class ZsClipError(Exception):
    """Base of the errors whose message says what is wrong, with which value, and what to do."""


class BackboneError(ZsClipError, ValueError):
    """A backbone cannot be had: unknown name or tag, unreadable or foreign weights, unsupported architecture."""


class ArgumentError(ZsClipError, ValueError):
    """An argument has a value that cannot work."""


class CheckpointError(ZsClipError, RuntimeError):
    """A checkpoint does not fit the model, the backbone or the format."""


class ImageReadError(ZsClipError, OSError):
    """Images of a data set or folder cannot be read."""
