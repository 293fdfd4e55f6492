"""The house: rooms, the direction of their imports, and how large a module may be."""

from __future__ import annotations

import ast
import importlib
import warnings
from pathlib import Path

import pytest

import anomalib_zsclip
from anomalib_zsclip.plugin import MOVED, RENAMED

ROOT = Path(anomalib_zsclip.__file__).parent
ORDER = (
    "errors",
    "images",
    "clip",
    "prompts",
    "heads",
    "outputs",
    "learning",
    "benchmark",
    "data",
    "models",
    "check",
    "plugin",
)
"""Rooms and loose modules from below: each may import what stands before it. ``__init__`` imports all of them."""

MODULES = sorted(ROOT.rglob("*.py"))
PRIVATE = {
    "_data_source": 1,  # Lightning: the loaders of a prediction, before it uses them
    "_is_mkldnn_bf16_supported": 1,  # torch: whether the processor multiplies bf16
}
"""Private names of anomalib, Lightning and torch that the package touches, and in how many modules."""


def room_of(module: str) -> str:
    return module.split(".")[1] if "." in module else "__init__"


def imports_of(path: Path) -> set[str]:
    """Modules of this package that a file imports anywhere, by their full names."""
    parts = ["anomalib_zsclip", *path.relative_to(ROOT).with_suffix("").parts]
    package = parts if path.name == "__init__.py" else parts[:-1]
    package = [part for part in package if part != "__init__"]
    found = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            base = ".".join(package[: len(package) - node.level + 1]) if node.level else ""
            module = ".".join(part for part in (base, node.module) if part)
            found |= {module} | (
                {f"{module}.{alias.name}" for alias in node.names} if module == "anomalib_zsclip" else set()
            )
    return {name for name in found if name.startswith("anomalib_zsclip.")}


@pytest.mark.parametrize("path", MODULES, ids=lambda path: str(path.relative_to(ROOT)))
def test_imports_point_downwards(path: Path) -> None:
    relative = path.relative_to(ROOT)
    own = relative.parts[0].removesuffix(".py")
    if own == "__init__":
        return
    for name in imports_of(path):
        other = room_of(name)
        assert other == own or ORDER.index(other) < ORDER.index(own), f"{relative} imports {name}"


@pytest.mark.parametrize("path", MODULES, ids=lambda path: str(path.relative_to(ROOT)))
def test_nothing_is_imported_that_imports_anomalibs_models_itself(path: Path) -> None:
    """Where such a module is a program's first import, it is half-made when the package is imported."""
    for node in ast.parse(path.read_text()).body:
        names = [alias.name for alias in node.names] if isinstance(node, ast.Import) else []
        names += [str(node.module)] if isinstance(node, ast.ImportFrom) else []
        assert not [
            name for name in names if name.startswith(("anomalib.engine", "anomalib.pipelines", "anomalib.cli"))
        ]


def test_modules_inside_a_room_make_no_circle() -> None:
    graph = {}
    for path in MODULES:
        name = ".".join(["anomalib_zsclip", *path.relative_to(ROOT).with_suffix("").parts]).removesuffix(".__init__")
        graph[name] = {other for other in imports_of(path) if other != name}
    done: set[str] = set()

    def visit(name: str, above: tuple[str, ...]) -> None:
        assert name not in above, " -> ".join([*above[above.index(name) :], name])
        if name in done or name not in graph:
            return
        for other in graph[name]:
            if not name.startswith(f"{other}."):  # a room's own __init__
                visit(other, (*above, name))
        done.add(name)

    for name in graph:
        if name.count(".") > 1:
            visit(name, ())


@pytest.mark.parametrize("path", MODULES, ids=lambda path: str(path.relative_to(ROOT)))
def test_no_module_is_longer_than_400_lines(path: Path) -> None:
    assert len(path.read_text().splitlines()) <= 400


def test_three_modules_stand_at_the_top_and_every_room_says_what_lives_there() -> None:
    assert {path.name for path in ROOT.glob("*.py")} == {"__init__.py", "errors.py", "plugin.py"}
    rooms = {path.name for path in ROOT.iterdir() if path.is_dir() and path.name != "__pycache__"}
    assert rooms == set(ORDER) - {"errors", "plugin"}
    for room in rooms:
        assert len(ast.get_docstring(ast.parse((ROOT / room / "__init__.py").read_text())) or "") > 60, room


def test_private_names_of_others_are_few_and_listed() -> None:
    text = {path: path.read_text() for path in MODULES}
    for name, count in PRIVATE.items():
        assert sum(name in content for content in text.values()) == count, name


# ---------------------------------------------------------------------- names of the version before
OLD = {
    "comparison": ["comparable", "CostEvaluator"],
    "leaderboard": ["read_results", "to_html", "to_markdown", "PUBLISHED", "tables"],
    "heads.few_shot": ["FewShotMemory", "near"],
    "maps": ["enlarge", "enlarge_and_smooth", "smooth", "tokens_to_grid"],
    "losses": ["focal_loss", "dice_loss", "true_class"],
    "post_processing": ["MonotonePostProcessor", "NO_DATA"],
    "pre_processing": ["ClipPreProcessor"],
    "predictions_file": ["PredictionsFile", "COLUMNS"],
    "reading": ["ReadAhead"],
    "visualization": ["FixedScaleVisualizer"],
    "archives": ["check_archive", "reading"],
    "precision": ["full_precision"],
    "command": ["is_command"],
    "models.normal_images": ["find_normal_images"],
    "models.zero_shot_mixin": [
        "UnreadableImages",
        "resolve_size",
        "IN_CHECKPOINT",
        "BACKBONE_PREFIX",
        "AveragePrecision",
    ],
}


@pytest.mark.parametrize("module", OLD)
def test_old_dotted_names_give_the_object_and_a_warning(module: str) -> None:
    assert OLD.keys() | {"weights"} == MOVED.keys(), "weights is a command, and no old name"
    old = importlib.import_module(f"anomalib_zsclip.{module}")
    for name in OLD[module]:
        with pytest.warns(DeprecationWarning, match=f"anomalib_zsclip.{module}.{name} is now anomalib_zsclip"):
            found = getattr(old, name)
        new = RENAMED.get(name, name)
        candidates = [importlib.import_module(f"anomalib_zsclip.{place}") for place in MOVED[module]]
        assert any(getattr(place, new, None) is found for place in candidates)
    with pytest.raises(AttributeError, match="nonsense"):
        old.nonsense  # noqa: B018


def test_a_configuration_of_the_version_before_still_works() -> None:
    from anomalib_zsclip.benchmark import comparable

    with warnings.catch_warnings(record=True):
        warnings.simplefilter("always")
        found = getattr(importlib.import_module("anomalib_zsclip.comparison"), "comparable")  # noqa: B009
    assert found is comparable


def test_the_leaderboard_keeps_its_short_command(tmp_path: Path) -> None:
    import subprocess
    import sys

    result = subprocess.run(
        [sys.executable, "-m", "anomalib_zsclip.leaderboard", str(tmp_path / "absent.csv")],
        capture_output=True,
        text=True,
    )
    assert result.returncode == 1
    assert "There is no file" in result.stderr
    assert "Traceback" not in result.stderr
