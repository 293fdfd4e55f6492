"""Shared by all tests: a small random CLIP, a cache of its own, no downloads."""

from __future__ import annotations

import os
from pathlib import Path

os.environ.setdefault("HF_HUB_OFFLINE", "1")
# Two cores for all processes of the tests together, and for the commands that they start.
os.environ.setdefault("OMP_NUM_THREADS", "1" if os.environ.get("PYTEST_XDIST_WORKER") else "2")

import open_clip
import pytest
import torch

torch.set_num_threads(int(os.environ["OMP_NUM_THREADS"]))

from anomalib_zsclip.clip import ClipBackbone  # noqa: E402


@pytest.fixture(autouse=True, scope="session")
def _own_cache(tmp_path_factory: pytest.TempPathFactory) -> None:
    os.environ["ANOMALIB_ZSCLIP_CACHE"] = str(tmp_path_factory.mktemp("cache"))


@pytest.fixture(scope="session")
def tiny_clip() -> torch.nn.Module:
    """open_clip's own model, random weights: patch 8, 32 px, 4 image blocks, 3 text blocks."""
    torch.manual_seed(0)
    vision = {"image_size": 32, "layers": 4, "width": 64, "head_width": 32, "patch_size": 8}
    text = {"context_length": 77, "vocab_size": 49408, "width": 32, "heads": 2, "layers": 3}
    return open_clip.model.CLIP(48, vision, text).eval()


@pytest.fixture(scope="session")
def tiny(tiny_clip: torch.nn.Module) -> ClipBackbone:
    return ClipBackbone(tiny_clip, name="tiny")


@pytest.fixture(scope="session")
def real_images() -> Path:
    """Folder of real defect images in the form of MVTec AD; ``REAL_DATA`` points to it."""
    root = Path(os.environ.get("REAL_DATA", Path(__file__).parents[2] / "shared" / "realdata"))
    if not (root / "magnetic_tile").is_dir():
        pytest.skip("No real images here; set REAL_DATA to a folder with magnetic_tile in MVTec AD's form.")
    return root
