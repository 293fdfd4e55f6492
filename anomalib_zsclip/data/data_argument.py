"""What the command says where ``--data`` of a training or a test is no data module: a sentence, not the parser's types."""

from __future__ import annotations

import functools
import re
import sys
from collections.abc import Sequence
from typing import Any, NoReturn

from jsonargparse import ArgumentParser

from anomalib_zsclip.errors import is_command

WRONG_DATA = re.compile(r"Parser key \"data\":.*Given value type: <class 'str'>\s+Given value: (.+)$", re.DOTALL)
"""jsonargparse's message, with the value: a name, a path or a pattern, and not the arguments of a data module."""


def explain_wrong_data(models: Sequence[str]) -> None:
    """Have the parser of the command say in words what is wrong with ``--data``, for the models of this package; once."""
    original = ArgumentParser.error
    if not is_command() or getattr(original, "explains_data", False):
        return

    @functools.wraps(original)
    def error(self: ArgumentParser, message: str, *args: Any, **kwargs: Any) -> NoReturn:  # noqa: ANN401 - jsonargparse's
        wrong = WRONG_DATA.search(message)
        if wrong is not None and re.search(rf"\b({'|'.join(models)})\b", " ".join(sys.argv)):
            given = re.search(
                r"(?:^|\0)--data[\0=]([^\0]+)", "\0".join(sys.argv)
            )  # of a text file the parser knows the text
            message = describe_wrong_data((given or wrong)[1].strip())
        original(self, message, *args, **kwargs)

    error.explains_data = True  # type: ignore[attr-defined]
    ArgumentParser.error = error  # type: ignore[method-assign]


def describe_wrong_data(value: str) -> str:
    """A sentence on a value of ``--data`` that is no data module."""
    return (
        f"data={value!r} is neither a data module nor a YAML file of one, and training and testing need one: give --data "
        "Folder, --data MVTecAD or another, with its arguments. A folder without labels is for anomalib predict."
    )
