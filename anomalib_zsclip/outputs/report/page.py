"""One self-contained page from the template and the data."""

from __future__ import annotations

import json
import math
from functools import lru_cache
from importlib.resources import files
from typing import Any

from jinja2 import Environment, PackageLoader, StrictUndefined
from markupsafe import Markup

SCRIPT = ("basics", "judging", "threshold", "gallery", "large", "numbers", "start")
"""Parts of the script, in the order in which they build on each other."""


def render(content: dict[str, Any]) -> str:
    """The page, as text.

    Args:
        content: ``run`` (see :func:`~anomalib_zsclip.outputs.report.run_info.describe_run`), ``pictures`` and ``rows``.
    """
    name = " · ".join(part for part in (content["run"]["model"], content["run"]["data"]) if part)
    return (
        _environment()
        .get_template("report.html")
        .render(
            title=f"{name}: report",
            style=Markup(_part("report.css")),  # noqa: S704 - our own files
            script=Markup(_script()),  # noqa: S704
            data=Markup(embed(content)),  # noqa: S704
        )
    )


def embed(data: object) -> str:
    """JSON that can stand inside a script element: no text in it can end the element, and it is plain ASCII.

    What is no finite number becomes ``null``, since JSON has no word for it.
    """
    text = json.dumps(_finite(data), allow_nan=False, separators=(",", ":"))
    return text.replace("<", "\\u003c").replace(">", "\\u003e").replace("&", "\\u0026")


def _finite(data: Any) -> Any:  # noqa: ANN401
    if isinstance(data, dict):
        return {str(name): _finite(value) for name, value in data.items()}
    if isinstance(data, (list, tuple)):
        return [_finite(value) for value in data]
    return None if isinstance(data, float) and not math.isfinite(data) else data


@lru_cache(maxsize=1)
def _environment() -> Environment:
    return Environment(loader=PackageLoader(__package__, "."), autoescape=True, undefined=StrictUndefined)


def _script() -> str:
    """The parts as one strict script, whose names are seen by nothing else."""
    parts = "\n".join(_part(f"script/{name}.js") for name in SCRIPT)
    return f'"use strict";\n(() => {{\n{parts}}})();'


def _part(name: str) -> str:
    return (files(__package__) / name).read_text(encoding="utf-8")
