"""The recipe of CONTRIBUTING.md works as it stands."""

from __future__ import annotations

import re
import sys
import textwrap
from pathlib import Path
from types import ModuleType

import pytest
import torch

from anomalib_zsclip.clip import ClipBackbone
from anomalib_zsclip.models.zero_shot_model import ZeroShotModel

PAGE = Path(__file__).parents[2] / "CONTRIBUTING.md"
IMPORTS = """
from dataclasses import dataclass
from typing import Any
import torch, torch.nn.functional as F
from torch import Tensor
from anomalib_zsclip.clip import ClipBackbone, FeatureRequest, ImageFeatures
from anomalib_zsclip.clip.text_cache import embed_texts
from anomalib_zsclip.heads.base import Head, HeadOutput
from anomalib_zsclip.heads.maps import tokens_to_grid, upsample_and_smooth
from anomalib_zsclip.heads.options import HeadOptions, Recipe, combine_image_score, check_fields
"""


def test_the_head_of_the_page_runs_in_a_detector(tiny: ClipBackbone, monkeypatch: pytest.MonkeyPatch) -> None:
    code = textwrap.dedent(re.search(r"```python\n(.*?class FlawHead.*?)```", PAGE.read_text(), re.S)[1])
    module = ModuleType("flaw")
    monkeypatch.setitem(sys.modules, "flaw", module)  # dataclasses look there
    exec(IMPORTS + code, vars(module))
    head = module.FlawHead(tiny.embed_dim, sentence="a crack")
    head.setup(tiny, "object")
    assert head.recipe("object") == {"sentence": "a crack"}
    with torch.no_grad():
        result = ZeroShotModel(tiny, {"flaw": head})(torch.randn(2, 3, 32, 40))
    assert result.pred_score.shape == (2,)
    assert result.anomaly_map.shape == (2, 32, 40)
    assert ((result.anomaly_map >= 0) & (result.anomaly_map <= 1)).all()
