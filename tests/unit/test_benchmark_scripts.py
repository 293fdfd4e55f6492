"""The scripts in ``benchmarks`` find what they import, from the package and from each other."""

from __future__ import annotations

import importlib
import sys
from pathlib import Path

import pytest

FOLDER = Path(__file__).parents[2] / "benchmarks"


@pytest.mark.parametrize("script", sorted(path.stem for path in FOLDER.glob("*.py")))
def test_a_script_can_be_started(script: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(str(FOLDER))
    for name in [path.stem for path in FOLDER.glob("*.py")]:
        monkeypatch.delitem(sys.modules, name, raising=False)
    module = importlib.import_module(script)
    assert callable(module.work if script == "processes" else module.main)
