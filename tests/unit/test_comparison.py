"""Jobs of a benchmark have the same columns and the same metrics, whatever the model."""

from __future__ import annotations

import pickle
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
import yaml
from anomalib.engine import Engine
from anomalib.models import get_model
from anomalib.pipelines.components.utils import get_iterator_from_grid_dict
from anomalib.utils.config import flatten_dict
from sklearn.metrics import average_precision_score, precision_recall_curve, roc_auc_score

from anomalib_zsclip.benchmark import PapersEvaluator, noise
from anomalib_zsclip.benchmark.comparison import CostEvaluator, UnavailableError, WinClipInBenchmark, comparable
from anomalib_zsclip.errors import ArgumentError
from anomalib_zsclip.outputs import default_evaluator
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


def test_a_model_that_cannot_be_made_costs_its_own_jobs_alone(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """anomalib makes models between jobs, where an error would end all of them."""

    def fail(*args: object, **kwargs: object) -> None:
        msg = "no network:\n try later"
        raise OSError(msg)

    monkeypatch.setattr("anomalib.models.Patchcore.__init__", fail)
    models = [pickle.loads(pickle.dumps(comparable("Patchcore"))) for _ in range(2)]  # several GPUs: other processes
    assert capsys.readouterr().err.count("Patchcore is left out: OSError: no network: try later\n") == 1
    for model in models:
        with pytest.raises(UnavailableError, match="Patchcore is left out: OSError: no network: try later"):
            Engine(accelerator="cpu", default_root_dir=tmp_path).fit(model, datamodule=None)


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


# ---------------------------------------------------------------------- scores of any range
class Foreign:
    """Distances as PatchCore gives, in batches of which some lie in [0, 1] and others far outside."""

    def __init__(self, low: float, high: float) -> None:
        rng = np.random.default_rng(0)
        self.labels = np.arange(24) % 3 == 0
        self.scores = np.where(self.labels, rng.normal(0.6, 0.2, 24), rng.normal(0.4, 0.2, 24)) * (high - low) + low
        self.masks = (rng.random((24, 12, 12)) < 0.1) & self.labels[:, None, None]
        self.maps = (rng.random((24, 12, 12)) + 0.4 * self.masks) * (high - low) + low

    def run(self, evaluator: Any, channels: tuple[int, ...] = (1,)) -> dict[str, float]:
        logged: dict[str, Any] = {}
        module = SimpleNamespace(device=torch.device("cpu"), log=logged.__setitem__)
        evaluator.log = logged.__setitem__
        trainer = SimpleNamespace(world_size=1, barebones=False, progress_bar_callback=None)
        evaluator.on_test_start(trainer, module)
        for part in np.split(np.arange(24), 4):
            batch = SimpleNamespace(
                image=torch.zeros(len(part)),
                pred_score=torch.from_numpy(self.scores[part]).float().reshape(-1, *channels),
                anomaly_map=torch.from_numpy(self.maps[part]).float().reshape(-1, *channels, 12, 12),
                gt_label=torch.from_numpy(self.labels[part]),
                gt_mask=torch.from_numpy(self.masks[part]),
            )
            evaluator.on_test_batch_start(trainer, module, batch, 0)
            evaluator.on_test_batch_end(trainer, module, None, batch, 0)
        evaluator.on_test_epoch_end(trainer, module)
        return {name: float(getattr(value, "compute", lambda value=value: value)()) for name, value in logged.items()}


@pytest.mark.parametrize("span", [(25, 33), (0, 1), (-0.5, 0.5), (0, 1e4)])
def test_every_number_is_scikit_learns_whatever_the_range_of_the_scores(span: tuple[float, float]) -> None:
    foreign = Foreign(*span)
    found = foreign.run(CostEvaluator())
    for level, targets, scored in (("image", foreign.labels, foreign.scores), ("pixel", foreign.masks, foreign.maps)):
        truth, values = targets.ravel(), scored.astype(np.float32).ravel()
        precision, recall, _ = precision_recall_curve(truth, values)
        wanted = {
            "AUROC": roc_auc_score(truth, values),
            "AveragePrecision": average_precision_score(truth, values),
            "F1Max": (2 * precision * recall / np.maximum(precision + recall, 1e-12)).max(),
        }
        assert {name: found[f"{level}_{name}"] for name in wanted} == pytest.approx(wanted, abs=1e-5)


def test_the_noise_is_that_of_other_images() -> None:
    """The standard deviation of an AUROC over resampled images is known: that of Hanley and McNeil, about."""
    foreign = Foreign(25, 33)
    found = foreign.run(CostEvaluator())
    rng, numbers = np.random.default_rng(1), []
    for _ in range(400):
        drawn = rng.integers(0, 24, 24)
        if 0 < foreign.labels[drawn].sum() < 24:
            numbers.append(roc_auc_score(foreign.labels[drawn], foreign.scores[drawn]))
    assert found["image_AUROC_sd"] == pytest.approx(np.std(numbers), rel=0.2)
    names = {name for name in found if name.endswith("_sd")}
    assert names == {f"{name}_sd" for name in found if name.startswith(("image_", "pixel_")) and name not in names}
    assert all(0 < found[name] < 0.5 for name in names)


def test_many_pixels_are_thinned_out_without_moving_the_noise(monkeypatch: pytest.MonkeyPatch) -> None:
    foreign = Foreign(0, 1)
    exact = foreign.run(CostEvaluator())
    monkeypatch.setattr(noise, "PIXELS_OF_A_KIND", 40)
    thinned = foreign.run(CostEvaluator())
    assert thinned["pixel_AUROC"] == exact["pixel_AUROC"]
    for name in ("pixel_AUROC_sd", "pixel_AUPRO_sd"):
        assert thinned[name] == pytest.approx(exact[name], rel=0.5)


@pytest.mark.parametrize("papers", [False, True])
def test_what_is_not_defined_is_left_out_and_said_in_one_line(papers: bool, caplog: pytest.LogCaptureFixture) -> None:
    foreign = Foreign(0, 1)
    foreign.labels[:], foreign.masks[:] = False, False
    evaluator: Any = PapersEvaluator() if papers else default_evaluator()
    evaluator.on_test_batch_start = lambda *args: None
    assert foreign.run(evaluator, ()) == {}
    (message,) = caplog.messages
    assert "image_AUROC" in message
    assert "all test images are good" in message
    assert "all test pixels are good" in message
    caplog.clear()
    defined = Foreign(0, 1).run(evaluator, ())
    assert {"image_AUROC", "image_AveragePrecision", "image_F1Max", "pixel_AUROC", "pixel_F1Max"} <= defined.keys()
    assert not caplog.messages
