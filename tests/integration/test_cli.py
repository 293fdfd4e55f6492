"""The plain ``anomalib`` command, in a fresh process, as a user types it."""

from __future__ import annotations

import csv
import dataclasses
import importlib.metadata
import json
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import yaml
from PIL import Image

from tests.report_runs import read_page

ROOT = Path(__file__).parents[2]
COMMAND = Path(sys.executable).parent / "anomalib"

pytestmark = pytest.mark.skipif(
    not COMMAND.exists()
    or not any(d.metadata["Name"] == "anomalib-zsclip" for d in importlib.metadata.distributions()),
    reason="the package is not installed, so that the command cannot find it",
)


def anomalib(*arguments: str, folder: Path) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [str(COMMAND), *arguments], cwd=folder, capture_output=True, text=True, env={**os.environ, "COLUMNS": "200"}
    )


SMALL = (
    *("--data", "SyntheticDefects", "--data.category", "wood", "--data.image_size", "64", "--data.num_train", "2"),
    *("--data.num_test_good", "3", "--data.num_test_per_defect", "1"),
)


def test_train_then_predict_on_a_folder(tmp_path: Path) -> None:
    model = ("--model", "ZsClip", "--model.backbone", "builtin")
    result = anomalib("train", *model, *SMALL, folder=tmp_path)
    assert result.returncode == 0, result.stderr[-3000:]
    assert "image_AUROC" in result.stdout
    pictures = list((tmp_path / "results" / "ZsClip" / "SyntheticDefects" / "wood").rglob("*.png"))
    assert len(pictures) >= 8
    images = next((tmp_path / "datasets").rglob("test")) / "good"
    result = anomalib("predict", *model, "--data", str(images), folder=tmp_path)
    assert result.returncode == 0, result.stderr[-3000:]
    assert len(list((tmp_path / "results").rglob("*.png"))) >= len(pictures) + 3


def test_reading_ahead_gives_the_predictions_of_one_by_one(tmp_path: Path) -> None:
    from anomalib.engine import Engine

    from anomalib_zsclip import ClipAd
    from anomalib_zsclip.images.read_ahead import MANY

    images = tmp_path / "images"
    images.mkdir()
    rng = np.random.default_rng(0)
    for index in range(MANY + 3):
        height, width = rng.integers(20, 90, 2)
        picture = Image.fromarray(rng.integers(0, 255, (5, 5, 3), dtype=np.uint8)).resize((width, height))
        picture.save(images / f"{index:03d}.png")
    model = ("--model", "ClipAd", "--model.backbone", "builtin", "--model.image_size", "64")
    result = anomalib("predict", *model, "--data", str(images), "--default_root_dir", "command", folder=tmp_path)
    assert result.returncode == 0, result.stderr[-3000:]
    with next((tmp_path / "command").rglob("predictions.csv")).open(newline="") as file:
        rows = list(csv.DictReader(file))
    assert len(list((tmp_path / "command").rglob("*.png"))) == MANY + 3

    engine = Engine(default_root_dir=tmp_path / "python", enable_progress_bar=False)
    wanted = engine.predict(ClipAd(backbone="builtin", image_size=64, visualizer=False), data_path=images)
    assert [row["path"] for row in rows] == [batch.image_path[0] for batch in wanted]
    scores = [float(batch.pred_score) for batch in wanted]
    assert np.ptp(scores) > 1e-3
    assert [float(row["pred_score"]) for row in rows] == pytest.approx(scores, abs=2e-6)

    (images / "002b.png").write_bytes(b"no image")
    (images / "deeper").mkdir()
    (images / "deeper" / "000.png").write_bytes((images / "000.png").read_bytes())
    result = anomalib("predict", *model, "--data", str(images), folder=tmp_path)
    assert result.returncode == 0, result.stderr[-3000:]
    last = result.stderr.strip().splitlines()[-1]
    assert f"{MANY + 4} of {MANY + 5} images judged" in last
    assert "002b.png" in last
    said = [line for line in (result.stdout + result.stderr).splitlines() if line.strip()]
    assert len([line for line in said if "FutureWarning" not in line and not line.startswith("  ")]) <= 10, said
    with next((tmp_path / "results").rglob("predictions.csv")).open(newline="") as file:
        again = list(csv.DictReader(file))
    assert [row["path"] for row in again if row["error"]] == [str(images / "002b.png")]
    assert len(list((tmp_path / "results").rglob("*.png"))) == MANY + 4


def test_two_processes_give_the_results_of_one(tmp_path: Path) -> None:
    from anomalib.engine import Engine

    from anomalib_zsclip import SyntheticDefects, ZsClip

    sizes = {"image_size": 64, "num_train": 2, "num_test_good": 4, "num_test_per_defect": 1}
    SyntheticDefects(root=tmp_path / "data", category="wood", **sizes).prepare_data()
    images = next((tmp_path / "data").rglob("test"))
    one, two = tmp_path / "one", tmp_path / "two"
    # Most of them are references of the others; which process judges them must not matter.
    model = ZsClip(backbone="builtin", heads=["anomaly_clip"], unlabelled=6, image_size=64, visualizer=False)
    Engine(default_root_dir=one, accelerator="cpu", devices=1, logger=False).predict(model, data_path=images)
    result = anomalib(
        *("predict", "--model", "ZsClip", "--model.backbone", "builtin", "--model.heads", "[anomaly_clip]"),
        *("--model.unlabelled", "6", "--model.image_size", "64", "--model.visualizer", "false", "--data", str(images)),
        *("--trainer.accelerator", "cpu", "--trainer.devices", "2", "--trainer.strategy", "ddp"),
        *("--default_root_dir", str(two)),
        folder=tmp_path,
    )
    assert result.returncode == 0, result.stderr[-3000:]
    tables = []
    for folder, processes in ((one, 1), (two, 2)):
        parts = [list(csv.DictReader(path.open(newline=""))) for path in folder.rglob("predictions*.csv")]
        assert len(parts) == processes
        assert all(parts)
        (report,), (regions,) = folder.rglob("report*.html"), folder.rglob("regions*.json")
        shown = [row["path"] for row in read_page(report.parent)["rows"]]
        assert len(shown) == len(set(shown)) == sum(map(len, parts)) == len(json.loads(regions.read_text())["images"])
        tables.append(sorted((row for part in parts for row in part), key=lambda row: row["path"]))
    scores = [[float(row.pop("pred_score")) for row in table] for table in tables]
    assert scores[0] == pytest.approx(scores[1], abs=2e-6)
    assert np.ptp(scores[0]) > 0.01
    for table in tables:
        for row in table:
            row.pop("explanation", None)  # with probabilities in it
    assert tables[0] == tables[1]


def test_a_mistake_gives_one_message_and_no_stack(tmp_path: Path) -> None:
    result = anomalib("predict", "--model", "ClipAd", "--model.backbone", "ViT-B-61", "--data", ".", folder=tmp_path)
    assert result.returncode != 0
    assert "is no architecture of open_clip" in result.stderr
    assert "Near matches" in result.stderr
    assert "Traceback" not in result.stderr


def accepted_by(cls: type) -> set[str]:
    """Arguments of a model, those of its head included."""
    from jsonargparse._parameter_resolvers import get_signature_parameters

    return {parameter.name for parameter in get_signature_parameters(cls, "__init__")}


def test_configs_name_existing_classes_and_arguments() -> None:
    import anomalib_zsclip
    from anomalib_zsclip import models

    for path in sorted((ROOT / "configs" / "model").glob("*.yaml")):
        config = yaml.safe_load(path.read_text())
        cls = getattr(models, config["class_path"].rsplit(".", 1)[1])
        accepted = accepted_by(cls)
        assert set(config["init_args"]) <= set(accepted), path
    for path in sorted((ROOT / "configs" / "data").glob("*.yaml")):
        config = yaml.safe_load(path.read_text())
        assert hasattr(anomalib_zsclip, config["class_path"].rsplit(".", 1)[1]), path


@pytest.mark.parametrize("model", ["ZsClip", "RandomWordClip", "ClipAd", "AnomalyClip"])
def test_help_says_what_every_argument_does(model: str) -> None:
    from anomalib.models.components import AnomalibModule
    from jsonargparse import ArgumentParser

    import anomalib_zsclip
    from anomalib_zsclip.heads.options import HeadOptions

    parser = ArgumentParser(exit_on_error=False)
    parser.add_class_arguments(getattr(anomalib_zsclip, model), "model")
    assert issubclass(getattr(anomalib_zsclip, model), AnomalibModule)
    names, fields = set(), {field.name for field in dataclasses.fields(HeadOptions)}
    for action in parser._actions:
        if not action.option_strings or action.dest == "help" or "Config" in type(action).__name__:
            continue
        names.add(action.dest.rsplit(".", 1)[-1])
        text = str(action.help or "").strip()
        assert len(text) > 12, f"{action.dest}: {action.help!r}"
        assert "See the" not in text, action.dest
    assert fields <= names, "the arguments of the head are among them"
    assert {"threshold", "pixel_threshold", "false_alarms", "normal_dir", "backbone"} <= names
