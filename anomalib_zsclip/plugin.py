"""How anomalib finds us, and how those who use names of an older version find what they mean.

anomalib looks for models in three places: among the direct subclasses of ``AnomalibModule`` (``list_models``,
``get_model("zs_clip")``, the command line), among the attributes of ``anomalib.models``
(``get_model({"class_path": "ZsClip"})``), and in the modules of ``anomalib.models.ALLOWED_MODULES`` (dotted paths). Data
modules are attributes of ``anomalib.data``. :func:`register` serves all of them. What imports this package in a process
that only says ``anomalib`` is the start-up hook in the folder ``hook``.

Modules that moved are found under their old names by :class:`_MovedModules`, with a ``DeprecationWarning``, for one
release. ``python -m anomalib_zsclip.leaderboard`` and ``python -m anomalib_zsclip.weights`` are commands, and stay.
"""

from __future__ import annotations

import sys
from collections.abc import Sequence
from importlib.abc import InspectLoader, MetaPathFinder
from importlib.machinery import ModuleSpec
from types import ModuleType

PACKAGE = "anomalib_zsclip"

MOVED: dict[str, tuple[str, ...]] = {
    "archives": ("clip.archives",),
    "command": ("errors",),
    "comparison": ("benchmark.comparison",),
    "heads.few_shot": ("heads.memory_bank",),
    "leaderboard": (
        "benchmark.leaderboard",
        *(f"benchmark.{name}" for name in ("published_results", "page", "results", "tables")),
    ),
    "losses": ("heads.losses",),
    "maps": ("heads.maps",),
    "models.normal_images": ("images.normal_images",),
    "models.zero_shot_mixin": (
        *(
            "models.hooks",
            "models.detector",
            "images.checks",
            "models.arguments",
            "models.checkpoints",
            "models.readiness",
        ),
        "outputs.evaluation",
    ),
    "post_processing": ("outputs.post_processing",),
    "pre_processing": ("images.pre_processing",),
    "precision": ("clip.precision",),
    "predictions_file": ("outputs.predictions_file",),
    "reading": ("images.read_ahead",),
    "visualization": ("outputs.visualizer",),
    "weights": ("heads.published_weights",),
}
"""Old module -> where its names are now."""

RENAMED = {
    "FewShotMemory": "MemoryBank",
    "enlarge": "upsample",
    "enlarge_and_smooth": "upsample_and_smooth",
    "near": "neighbour_mask",
}
"""Old name -> new name."""

SOURCE = """\
from {package}.plugin import find_moved

def __getattr__(name):
    return find_moved({old!r}, name)

if __name__ == "__main__":
    __getattr__("main")()
"""


def register() -> None:
    """Make models and data modules known to anomalib; safe to call more than once."""
    # While the start-up hook runs, anomalib.models is complete but not yet an attribute of anomalib.
    from anomalib import data as anomalib_data
    from anomalib import models as anomalib_models

    from . import data, models
    from .data.data_argument import explain_wrong_data
    from .outputs.log import quiet_start

    for name in models.__all__:
        setattr(anomalib_models, name, getattr(models, name))
    quiet_start(models.__all__)
    explain_wrong_data(models.__all__)
    for name in data.__all__:
        setattr(anomalib_data, name, getattr(data, name))
    allowed = ("", ".benchmark", ".benchmark.comparison", ".comparison", ".models")
    anomalib_models.ALLOWED_MODULES.update({PACKAGE + suffix for suffix in allowed})
    if not any(isinstance(finder, _MovedModules) for finder in sys.meta_path):
        sys.meta_path.append(_MovedModules())


def find_moved(old: str, name: str) -> object:
    """The object that ``name`` meant in the module ``old``.

    Raises:
        AttributeError: If there never was such a name, or it is gone.
    """
    import warnings
    from importlib import import_module

    if not name.startswith("__"):
        for module in MOVED[old]:
            found = getattr(import_module(f"{PACKAGE}.{module}"), RENAMED.get(name, name), None)
            if found is not None:
                if name != "main":
                    new = f"{PACKAGE}.{module}.{RENAMED.get(name, name)}"
                    warnings.warn(f"{PACKAGE}.{old}.{name} is now {new}.", DeprecationWarning, stacklevel=3)
                return found
    msg = f"module {PACKAGE + '.' + old!r} has no attribute {name!r}"
    raise AttributeError(msg)


class _MovedModules(MetaPathFinder):
    """Finds modules under their old names; last in line, so that it costs nothing where a module is there."""

    def find_spec(
        self, fullname: str, path: Sequence[str] | None = None, target: ModuleType | None = None
    ) -> ModuleSpec | None:
        del path, target
        old = fullname.removeprefix(f"{PACKAGE}.")
        if old == fullname or old not in MOVED:
            return None
        return ModuleSpec(fullname, _MovedLoader(old), origin=f"moved to {PACKAGE}.{MOVED[old][0]}")


class _MovedLoader(InspectLoader):
    """Makes a module that looks each of its names up where it is now."""

    def __init__(self, old: str) -> None:
        self.old = old

    def get_source(self, fullname: str) -> str:
        del fullname
        return SOURCE.format(package=PACKAGE, old=self.old)
