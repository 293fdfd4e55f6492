"""Jobs of a benchmark have the same columns and the same metrics, whatever the model."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
import yaml
from anomalib.models import get_model
from anomalib.pipelines.components.utils import get_iterator_from_grid_dict
from anomalib.utils.config import flatten_dict

from anomalib_zsclip.benchmark.comparison import CostEvaluator, WinClipInBenchmark, comparable
from anomalib_zsclip.errors import ArgumentError
from anomalib_zsclip.outputs.post_processing import MonotonePostProcessor

CONFIGS = Path(__file__).parents[2] / "configs" / "benchmark"


def jobs(name: str) -> list[dict[str, Any]]:
    return list(get_iterator_from_grid_dict(yaml.safe_load((CONFIGS / name).read_text())["benchmark"]))


@pytest.mark.parametrize("name", ["quick.yaml", "zero_shot.yaml"])
def test_all_jobs_have_the_same_columns(name: str) -> None:
    assert len({tuple(flatten_dict(job)) for job in jobs(name)}) == 1


def test_the_protocol_covers_all_categories() -> None:
    categories = [(job["data"]["class_path"], job["data"]["init_args"]["category"]) for job in jobs("zero_shot.yaml")]
    counts = {
        name: len({category for dataset, category in categories if dataset == name}) for name in ("MVTecAD", "Visa")
    }
    assert counts == {"MVTecAD": 15, "Visa": 12}


def test_models_come_from_a_configuration() -> None:
    config = next(job["model"] for job in jobs("quick.yaml") if job["model"]["init_args"]["model"] == "Padim")
    model = get_model(config)
    assert model.name == "Padim"
    assert not model.post_processor.enable_normalization
    assert model.visualizer is None
    own = get_model(
        {
            "class_path": "anomalib_zsclip.benchmark.comparable",
            "init_args": {"model": "RandomWordClip", "arguments": [{"backbone": "builtin"}, {"prompts_per_class": 5}]},
        }
    )
    assert isinstance(own.post_processor, MonotonePostProcessor)
    assert [metric.name for metric in own.evaluator.test_metrics] == [
        metric.name for metric in model.evaluator.test_metrics
    ]


@pytest.mark.parametrize(
    ("model", "arguments", "message"),
    [
        ("Unknown", [], "name of a model class"),
        ("Evaluator", [], "name of a model class"),
        ("Padim", [{"no_such": 1}], "arguments of Padim.*no_such"),
        ("Padim", ["pre_trained"], "must be a mapping"),
    ],
)
def test_mistakes_are_named(model: str, arguments: list[Any], message: str) -> None:
    with pytest.raises(ArgumentError, match=message):
        comparable(model, arguments)


def test_cost_is_logged_without_the_first_batch(monkeypatch: pytest.MonkeyPatch) -> None:
    evaluator, logged = CostEvaluator(), {}
    evaluator.test_metrics = torch.nn.ModuleList()
    module = SimpleNamespace(device=torch.device("cpu"), log=logged.__setitem__)
    clock = iter([0.0, 9.0, 10.0, 10.5, 20.0, 20.1])
    monkeypatch.setattr("anomalib_zsclip.benchmark.comparison.time.perf_counter", lambda: next(clock))
    evaluator.on_test_start(None, module)
    for count in (4, 4, 2):
        evaluator.on_test_batch_start(None, module, None, 0)
        evaluator.on_test_batch_end(
            None, module, None, SimpleNamespace(image=torch.zeros(count), pred_score=torch.zeros(count, 1)), 0
        )
    evaluator.on_test_epoch_end(None, module)
    assert logged["milliseconds_per_image"] == pytest.approx(100)
    assert not logged["peak_memory_mb"] <= 0


def test_winclip_waits_for_its_category(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(WinClipInBenchmark, "trainer", SimpleNamespace(datamodule=None))
    model = WinClipInBenchmark.__new__(WinClipInBenchmark)
    torch.nn.Module.__init__(model)
    model.is_setup = False
    model.setup("validate")
    assert not model.is_setup
    assert model.val_dataloader() == []
