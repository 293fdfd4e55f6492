"""Being found: registration, the start-up hook, and that neither can do harm."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import anomalib.data
import anomalib.models
import pytest

import anomalib_zsclip
from anomalib_zsclip.errors import ArgumentError

HOOK = Path(__file__).parents[2] / "hook"
MODELS = ("AnomalyClip", "ClipAd", "RandomWordClip", "ZsClip")


def run(code: str, *, options: tuple[str, ...] = (), **environment: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, *options, "-c", code], capture_output=True, text=True, env={**os.environ, **environment}
    )


def test_models_are_listed_and_made_by_every_kind_of_name() -> None:
    assert {"anomaly_clip", "clip_ad", "random_word_clip", "zs_clip"} <= anomalib.models.list_models()
    made = [
        anomalib.models.get_model("zs_clip", backbone="builtin"),
        anomalib.models.get_model({"class_path": "ZsClip", "init_args": {"backbone": "builtin"}}),
        anomalib.models.get_model({"class_path": "anomalib_zsclip.ZsClip", "init_args": {"backbone": "builtin"}}),
        anomalib.models.get_model(
            {"class_path": "anomalib_zsclip.models.ZsClip", "init_args": {"backbone": "builtin"}}
        ),
    ]
    assert all(isinstance(model, anomalib_zsclip.ZsClip) for model in made)
    for name in MODELS:
        assert getattr(anomalib.models, name) is getattr(anomalib_zsclip, name)


def test_data_modules_are_known() -> None:
    made = anomalib.data.get_datamodule({"class_path": "SyntheticDefects", "init_args": {"category": "wood"}})
    assert isinstance(made, anomalib_zsclip.SyntheticDefects)


def test_importing_anomalib_alone_finds_us() -> None:
    result = run(
        # The engine first: it imports the models, and is half-made when this package is imported.
        "import sys; import _anomalib_zsclip_hook; import anomalib.engine; import anomalib.models as m; "
        "print('anomalib_zsclip' in sys.modules, hasattr(m, 'ZsClip'))",
        PYTHONPATH=f"{HOOK}{os.pathsep}{HOOK.parent}",
    )
    assert result.stdout.strip().endswith("True True"), result.stderr


def test_the_engine_may_be_imported_first_as_the_command_does() -> None:
    result = run(
        "import _anomalib_zsclip_hook; import anomalib.engine; import anomalib.data as d, anomalib.models as m; "
        "print(hasattr(m, 'ZsClip'), hasattr(d, 'SyntheticDefects'))",
        PYTHONPATH=f"{HOOK}{os.pathsep}{HOOK.parent}",
    )
    assert result.stdout.strip().endswith("True True"), result.stderr
    assert "could not be loaded" not in result.stderr


def test_the_hook_is_small_and_can_be_switched_off() -> None:
    code = (
        "import os, sys; before = set(sys.modules); import _anomalib_zsclip_hook as h; h.install(); "
        "print(sorted(set(sys.modules) - before), any(f is h._AfterAnomalibModels for f in sys.meta_path))"
    )
    on = run(code, options=("-S",), PYTHONPATH=str(HOOK), ANOMALIB_ZSCLIP_DISABLE="")
    off = run(code, options=("-S",), PYTHONPATH=str(HOOK), ANOMALIB_ZSCLIP_DISABLE="1")
    assert on.stdout.strip() == "['_anomalib_zsclip_hook'] True", on.stderr
    assert off.stdout.strip() == "['_anomalib_zsclip_hook'] False", off.stderr


def test_a_broken_package_breaks_neither_python_nor_anomalib(tmp_path: Path) -> None:
    (tmp_path / "anomalib_zsclip").mkdir()
    (tmp_path / "anomalib_zsclip" / "__init__.py").write_text("raise RuntimeError('half removed')")
    (tmp_path / "anomalib" / "models").mkdir(parents=True)
    (tmp_path / "anomalib" / "__init__.py").touch()
    (tmp_path / "anomalib" / "models" / "__init__.py").write_text("value = 1")
    path = f"{tmp_path}{os.pathsep}{HOOK}"
    result = run(
        "import _anomalib_zsclip_hook as hook; hook.install(); import anomalib.models; print(anomalib.models.value)",
        options=("-S",),
        PYTHONPATH=path,
    )
    assert result.stdout.strip() == "1"
    assert "could not be loaded" in result.stderr


def test_the_pth_line_survives_a_missing_hook() -> None:
    line = (HOOK / "anomalib_zsclip.pth").read_text().strip()
    assert "\n" not in line
    assert line.startswith("import ")
    result = run(line + "\nprint('fine')", options=("-S", "-I"))
    assert result.stdout.strip() == "fine"
    assert not result.stderr


@pytest.mark.parametrize("program", ["anomalib", "python"])
def test_the_command_shows_our_errors_without_a_stack(
    program: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture
) -> None:
    monkeypatch.setattr(sys, "argv", [f"/bin/{program}"])
    monkeypatch.setattr(sys, "excepthook", sys.__excepthook__)
    own = ArgumentError("say what to do")
    for error in (own, ValueError("Does not validate: - say what to do. Given value: ...")):
        sys.excepthook(type(error), error, None)
        printed = capsys.readouterr().err
        assert "say what to do" in printed
        assert (printed.strip() == "Error: say what to do") == (program == "anomalib")


def test_asking_whether_there_is_such_a_module_does_not_use_the_hook_up() -> None:
    code = (
        "import _anomalib_zsclip_hook as h; h.install(); h.install(); import importlib.util, sys;"
        "assert importlib.util.find_spec('anomalib.models'); assert importlib.util.find_spec('anomalib.models');"
        "assert sys.meta_path.count(h._AfterAnomalibModels) == 1;"
        "import anomalib.models; print(hasattr(anomalib.models, 'ZsClip'), h._AfterAnomalibModels in sys.meta_path)"
    )
    result = run(code, PYTHONPATH=f"{HOOK}{os.pathsep}{HOOK.parent}")
    assert result.stdout.strip().endswith("True False"), result.stderr


def test_the_start_file_of_newer_pythons_names_what_the_pth_file_calls() -> None:
    (line,) = (HOOK / "anomalib_zsclip.start").read_text().split()
    module, function = line.split(":")
    assert (HOOK / f"{module}.py").is_file()
    assert f"{module}.{function}()" in (HOOK / "anomalib_zsclip.pth").read_text()
