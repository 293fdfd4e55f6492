"""Recorded outputs of the published programs, on synthetic weights.

A fixture is a pair ``NAME.npz`` (arrays) and ``NAME.json`` (configuration). The environment variable ``PARITY_DIR``
points these tests at another folder of the same form; nothing here assumes the sizes of the fixtures that are shipped.
"""

from __future__ import annotations

import importlib.util
import json
import os
from functools import lru_cache
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from anomalib_zsclip.clip import ClipBackbone

Config = dict[str, Any]
Arrays = dict[str, np.ndarray]

SHIPPED = Path(__file__).parent / "fixtures"
FOLDER = Path(os.environ.get("PARITY_DIR") or SHIPPED)


def fixture_files(kind: str) -> list[Any]:
    """Parameters for ``pytest.mark.parametrize("path", ...)``: all fixtures whose configuration is of this ``kind``."""
    paths = [path for path in sorted(FOLDER.glob("*.json")) if _read(path).get("kind") == kind]
    return [pytest.param(path, id=path.stem) for path in paths]


def load_fixture(path: Path) -> tuple[Config, Arrays]:
    """Configuration and arrays of a fixture; images and masks that are not stored come from the recipe."""
    config = _read(path)
    with np.load(path.with_suffix(".npz"), allow_pickle=False) as stored:
        arrays = {key: stored[key] for key in stored.files}
    size, tag = config["image_size"], config["image_tag"]
    labels = config.get("labels")
    if "images" not in arrays:
        batch = config["batch"] if "batch" in config else len(labels)
        arrays["images"] = recipe().images(config["seed"], tag, batch, size)
    if labels is not None and "masks" not in arrays:
        arrays["masks"] = recipe().masks(config["seed"], tag, labels, size)
    return config, arrays


def backbone_of(config: Config, *, quick_gelu: bool, position_mode: str) -> ClipBackbone:
    """Backbone with the synthetic weights of a fixture; made once for all fixtures that share it."""
    model = config["model"]
    if config["kind"].startswith(("anomalyclip", "crane")):
        heads = None  # The published programs ignore the configuration and take width // 64 in both towers.
    else:
        heads = (model["vision"]["width"] // model["vision"]["head_width"], model["text"]["heads"])
    backbone, fingerprint = _backbone(
        json.dumps(model, sort_keys=True), config["seed"], quick_gelu, heads, position_mode
    )
    assert config.get("clip_fingerprint", fingerprint) == fingerprint, "The recipe made other weights than recorded."
    return backbone


@lru_cache(maxsize=4)
def _backbone(
    model: str, seed: int, quick_gelu: bool, heads: tuple[int, int] | None, position_mode: str
) -> tuple[ClipBackbone, str]:
    state_dict = recipe().clip_state_dict(json.loads(model), seed)
    tensors = {key: torch.from_numpy(np.asarray(value)) for key, value in state_dict.items()}
    backbone = ClipBackbone.from_state_dict(tensors, quick_gelu, heads, position_mode=position_mode)
    return backbone, recipe().fingerprint(state_dict)


@lru_cache(maxsize=1)
def recipe() -> ModuleType:
    """The module ``synthetic_weights`` that makes weights, images and masks."""
    path = FOLDER / "synthetic_weights.py"
    spec = importlib.util.spec_from_file_location("synthetic_weights", path if path.exists() else SHIPPED / path.name)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def deviation(result: Tensor, expected: np.ndarray) -> float:
    """Largest absolute difference; infinite where shapes differ or a value is not finite."""
    actual = result.detach().cpu().numpy()
    if actual.shape != expected.shape or not np.isfinite(actual).all():
        return float("inf")
    return float(np.abs(actual.astype(np.float64) - expected.astype(np.float64)).max())


def _read(path: Path) -> Config:
    return json.loads(path.read_text())


@pytest.fixture(autouse=True)
def _reproducible(tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch) -> None:
    """One thread, since the fixtures were recorded so and small tensors gain nothing from more; a cache of our own."""
    torch.set_num_threads(1)
    monkeypatch.setenv("ANOMALIB_ZSCLIP_CACHE", str(tmp_path_factory.getbasetemp() / "text-cache"))
