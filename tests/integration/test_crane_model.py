"""Crane inside anomalib: the variant of AnomalyClip, its checkpoints, and the head of ZsClip."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from anomalib.engine import Engine

from anomalib_zsclip import AnomalyClip, ZsClip
from anomalib_zsclip.errors import ArgumentError, CheckpointError
from anomalib_zsclip.prompts.learned import load_prompts
from tests.builtin_models import FEW_PROMPTS, make_model, random_prompts
from tests.transfer_data import make_transfer

SMALL: dict[str, Any] = {"backbone": "builtin", "image_size": 64, "visualizer": False}


def make_engine(folder: Path) -> Engine:
    quiet = {"enable_progress_bar": False, "enable_model_summary": False}
    return Engine(default_root_dir=folder / "results", accelerator="cpu", devices=1, **quiet)


def scores(model: Any) -> tuple[torch.Tensor, torch.Tensor]:
    images = torch.rand(2, 3, 64, 64, generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        result = model.eval()(images)
    return result.pred_score, result.anomaly_map


def test_variants_have_the_epochs_of_their_papers_and_the_head_of_their_name(tmp_path: Path) -> None:
    for variant, epochs in (("anomaly_clip", 15), ("crane", 5)):
        model = AnomalyClip(variant=variant, learn=True, **SMALL)
        assert model.trainer_arguments["max_epochs"] == epochs
        assert list(model.model.heads) == [variant]
        assert AnomalyClip(variant=variant, learn=True, epochs=2, **SMALL).epochs == 2


def test_an_unknown_variant_and_options_of_the_other_one_are_refused() -> None:
    with pytest.raises(ArgumentError, match="variant='cranes' must be one of anomaly_clip, crane"):
        AnomalyClip(variant="cranes", **SMALL)
    with pytest.raises(ArgumentError, match=r"layers.*CraneOptions"):
        AnomalyClip(variant="crane", layers=[3], **SMALL)
    with pytest.raises(ArgumentError, match=r"image_tokens.*AnomalyClipOptions"):
        AnomalyClip(image_tokens=True, **SMALL)


def test_learning_makes_a_checkpoint_that_names_the_variant(tmp_path: Path) -> None:
    model = AnomalyClip(variant="crane", learn=True, epochs=2, **SMALL)
    make_engine(tmp_path).fit(model, datamodule=make_transfer(tmp_path))
    (checkpoint,) = (tmp_path / "results").rglob("v0/**/model.ckpt")
    content = torch.load(checkpoint, weights_only=True)
    assert content["hyper_parameters"]["variant"] == "crane"
    assert list(content["zsclip"]["heads"]) == ["crane"]
    assert [part["category"] for part in content["zsclip_learned_from"]] == ["cup", "metal_nut"]

    loaded = AnomalyClip.load_from_checkpoint(checkpoint)
    assert loaded.variant == "crane"
    assert all(torch.equal(found, wanted) for found, wanted in zip(scores(loaded), scores(model), strict=True))
    other = AnomalyClip(learn=True, **SMALL)
    with pytest.raises(CheckpointError, match=r"made with variant='crane'.*Pass variant='crane'"):
        make_engine(tmp_path).test(other, datamodule=make_transfer(tmp_path), ckpt_path=checkpoint)


def test_zs_clip_takes_the_head_where_weights_are_given(tmp_path: Path) -> None:
    few = {"sdp": {"prompts": FEW_PROMPTS, "rvs": "mean", "text_cache": False}, "explain": False}
    file = random_prompts(tmp_path, "crane")
    alone = ZsClip(heads=["crane"], crane_checkpoint=file, crane={"image_tokens": True}, **SMALL, **few)
    assert alone.model.heads["crane"].options.image_tokens
    same = AnomalyClip(variant="crane", checkpoint=file, image_tokens=True, **SMALL)
    alone.model.backbone.position_mode = "bilinear"
    torch.testing.assert_close(scores(alone), scores(same))
    both = ZsClip(heads=["sdp", "crane"], crane_checkpoint=file, **SMALL, **few)
    assert list(both.model.heads) == ["sdp", "crane"]
    assert "crane" in ZsClip(crane_checkpoint=file, **SMALL, **few).model.heads
    with pytest.raises(CheckpointError, match="Pass variant='anomaly_clip'"):
        scores(ZsClip(heads=["crane"], crane_checkpoint=random_prompts(tmp_path), **SMALL, **few))


def test_without_weights_the_head_is_left_out_or_refused_if_named(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setattr("anomalib_zsclip.models.zs_clip.shipped_head", lambda _: None)
    assert "crane" not in ZsClip(**SMALL).model.heads
    with pytest.raises(ArgumentError, match=r"'crane'.*Give crane_checkpoint=<file>, .*or leave the head out\.$"):
        ZsClip(heads=["sdp", "crane"], **SMALL)


def test_shipped_prompts_serve_the_variant_and_join_zs_clip_where_named() -> None:
    few = {"sdp": {"prompts": FEW_PROMPTS, "rvs": "mean", "text_cache": False}, "explain": False}
    assert "crane" not in ZsClip(**SMALL, **few).model.heads
    assert list(ZsClip(heads=["sdp", "crane"], **SMALL, **few).model.heads) == ["sdp", "crane"]
    model = AnomalyClip(variant="crane", **SMALL)
    assert all(values.isfinite().all() for values in scores(model))
    assert model.model.heads["crane"].prompts.info["fingerprint"] == model.model.backbone.fingerprint


def test_a_checkpoint_of_zs_clip_brings_the_head_with_it(tmp_path: Path) -> None:
    model = make_model("ZsClip", tmp_path, image_size=64, visualizer=False)
    make_engine(tmp_path).fit(model, datamodule=make_transfer(tmp_path).target)
    (checkpoint,) = (tmp_path / "results").rglob("v0/**/model.ckpt")
    (tmp_path / "crane_prompts.safetensors").unlink()
    loaded = ZsClip.load_from_checkpoint(checkpoint)
    assert "crane" in loaded.model.heads
    assert all(torch.equal(found, wanted) for found, wanted in zip(scores(loaded), scores(model), strict=True))


def test_prompts_for_crane_are_read_as_what_they_are(tmp_path: Path) -> None:
    assert load_prompts(random_prompts(tmp_path, "crane")).variant == "crane"
    assert load_prompts(random_prompts(tmp_path)).variant == "anomaly_clip"
