"""The door by which a folder comes in: ``Engine.predict`` with ``data_path``, as the ``anomalib`` command calls it.

anomalib lists and opens the folder before a model is asked anything: it follows no links, takes hidden files, refuses names
with letters that are not ASCII, and stops at what it does not like with a stack of frames. So :func:`open_door` puts a small
function around ``Engine.predict`` that, for models of this package, lists the folder by our rules. For all others nothing
changes.
"""

from __future__ import annotations

import functools
import inspect
from contextlib import suppress
from typing import Any

from .folder_data import FolderDataset
from .reading import ReadingRules


def open_door() -> None:
    """Have ``Engine.predict`` list folders by our rules for our models; once, and only where it is as we know it."""
    from anomalib.engine import Engine

    original = Engine.predict
    if getattr(original, "lists_by_rules", False):
        return
    signature = inspect.signature(original)
    if not {"model", "data_path", "dataset"} <= signature.parameters.keys():
        return

    @functools.wraps(original)
    def predict(*args: Any, **kwargs: Any) -> Any:  # noqa: ANN401 - Engine's
        call = signature.bind(*args, **kwargs)
        engine, path = call.arguments["self"], call.arguments.get("data_path")
        model = call.arguments.get("model")
        if model is None:
            with suppress(Exception):  # anomalib has an error of its own for an engine without a model
                model = engine.model
        rules = getattr(model, "reading", None)
        if path is not None and call.arguments.get("dataset") is None and isinstance(rules, ReadingRules):
            call.arguments["dataset"] = FolderDataset(path, rules)
            del call.arguments["data_path"]
        return original(*call.args, **call.kwargs)

    predict.lists_by_rules = True  # type: ignore[attr-defined]
    Engine.predict = predict  # type: ignore[method-assign]
