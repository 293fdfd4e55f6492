"""Crane against recorded outputs of the published program: inference, and three steps of learning."""

from __future__ import annotations

from functools import lru_cache
from pathlib import Path
from tempfile import TemporaryDirectory

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from anomalib_zsclip.clip import ClipBackbone, FeatureRequest
from anomalib_zsclip.heads.crane import CraneHead, fuse_pooled, map_losses, pool_patches
from anomalib_zsclip.heads.two_sentences import class_logits
from tests.learned_prompts import (
    CONTEXTS,
    DEEP,
    TOLERANCE,
    check_parameters,
    named_gradients,
    official_file,
    published_names,
    recorded_optimizer,
)

from .conftest import Arrays, Config, backbone_of, deviation, fixture_files, load_fixture, recipe

INPUTS = {"images", "masks", "labels"}
STREAMS = (
    "stream_before",
    "self_correlation_first",
    "self_correlation_last",
    "self_correlation_sum",
    "ordinary_last",
    "refined_last",
)
TEXT = ("text_features_raw", "text_features", "text_features_no_half")
SCORES = (
    "image_features_raw",
    "image_features",
    "patch_features",
    "pixel_logits",
    "similarity",
    "pool_weights",
    "pooled_features",
    "fused_features",
    "image_logits",
    "image_score",
    "anomaly_map_raw",
    "anomaly_map",
    "anomaly_map_other_mean",
    "image_score_no_pooling",
)
INFERENCE = (*TEXT, *STREAMS, *SCORES)
NOT_CRANE = {"copies.patch_features", "copies.anomaly_map", "copies.image_score"}
"""What the program would give if it kept copies of several layers, as it means to."""
STEP_1 = ("text_features", "image_features", "patch_features", "pooled_features", "fused_features", "image_logits")
LOSSES = ("loss_total", "loss_image", "loss_focal", "loss_dice")


def make_head(config: Config, **arguments: object) -> tuple[CraneHead, ClipBackbone]:
    """Head that loaded the fixture's prompts from a file of the published layout, and its backbone."""
    backbone = backbone_of(config, quick_gelu=True, position_mode="bilinear")
    sizes = {name: config[name] for name in ("n_ctx", "depth", "t_n_ctx")}
    scales = config["model"].get("scales")
    params = recipe().prompt_learner_params(backbone.text_width, *sizes.values(), config["seed"], scales)
    tensors = {key: torch.from_numpy(value) for key, value in params.items() if "projections" not in key}
    options = {
        "self_correlation_blocks": config["to_layer"] - 1,
        "pooled_share": config.get("alpha", 0.5),
        # The program counts the one layer that it compares once for each that it is told.
        "map_loss_weight": 2.0 * len(config["features_list"]),
    }
    with TemporaryDirectory() as folder:
        head = CraneHead(official_file(Path(folder) / "epoch_5.pth", tensors), **options, **sizes, **arguments)
        head.setup(backbone, "object")
    return head, backbone


@lru_cache(maxsize=3)
@torch.no_grad()
def infer(path: Path) -> tuple[dict[str, Tensor], Arrays]:
    """All arrays of an inference fixture: ours and the recorded ones."""
    config, arrays = load_fixture(path)
    kinds = ("probabilities", "logits") if config["soft_mean"] else ("logits", "probabilities")
    common = {"image_tokens": config["context"], "temperature": config["temperature"]}
    (head, backbone), (raw, _), (other, _) = (
        make_head(config, **common, sigma=sigma, upsampled=kind)
        for sigma, kind in ((config["sigma"], kinds[0]), (0, kinds[0]), (config["sigma"], kinds[1]))
    )
    size = (config["image_size"], config["image_size"])
    first, last = backbone.layers - config["to_layer"] + 2, backbone.layers
    request = head.request(backbone) | FeatureRequest.of(tokens=[last], self_correlation=[(first, first), (last, last)])
    features = backbone.forward_intermediates(torch.from_numpy(arrays["images"]), request)
    image = F.normalize(features.image_embedding, dim=-1)
    patch_features = head.patch_features(features, backbone)
    text = head.encode_text_for(backbone, image) if config["context"] else head.text_features
    if config["context"]:
        text_raw = head.prompts.encode_for_images(backbone, image, round_prompts=True)
        exact = head.prompts.encode_for_images(backbone, image)
    else:
        text_raw, exact = head.prompts(backbone, round_prompts=True), head.prompts(backbone)
    logits = class_logits(patch_features, text, head.options.temperature)
    pooled = pool_patches(F.normalize(patch_features, dim=-1), logits)
    fused = fuse_pooled(image, pooled, head.options.pooled_share)
    score, anomaly_map = head(features, backbone, size)
    alone_score = class_logits(image[:, None], text, head.options.temperature).softmax(-1)[:, 0, 1]
    return {
        "text_features_raw": text_raw,
        "text_features": text,
        "text_features_no_half": F.normalize(exact, dim=-1),
        "stream_before": features.tokens[first - 1],
        "self_correlation_first": features.self_correlation[first, first],
        "self_correlation_last": features.self_correlation[last, last],
        "self_correlation_sum": features.self_correlation[first, last],
        "ordinary_last": features.tokens[last],
        "refined_last": head.refined_tokens(features, backbone),
        "image_features_raw": features.image_embedding,
        "image_features": image,
        "patch_features": patch_features,
        "pixel_logits": logits,
        "similarity": logits.softmax(dim=-1),
        "pool_weights": logits.softmax(dim=-1)[..., 1],
        "pooled_features": pooled,
        "fused_features": fused,
        "image_logits": class_logits(fused[:, None], text, head.options.temperature)[:, 0],
        "image_score": score,
        "anomaly_map_raw": raw(features, backbone, size).anomaly_map,
        "anomaly_map": anomaly_map,
        "anomaly_map_other_mean": other(features, backbone, size).anomaly_map,
        "image_score_no_pooling": alone_score,
    }, arrays


@lru_cache(maxsize=4)
def learn(path: Path, *, round_prompts: bool) -> tuple[dict[str, Tensor], Arrays, Config]:
    """All arrays of a training fixture, ours and the recorded ones, and its configuration."""
    config, arrays = load_fixture(path)
    temperature = config["temperature"]
    head, backbone = make_head(config, learn=True, round_prompts=round_prompts, temperature=temperature["map"])
    images, labels = torch.from_numpy(arrays["images"]), torch.from_numpy(arrays["labels"])
    masks = torch.from_numpy(arrays["masks"]).squeeze(1)
    features = backbone.forward_intermediates(images, head.request(backbone))
    inputs = head.learning_inputs(features, backbone, ["object"] * len(images))
    image, patches = inputs["image_embedding"], inputs["patch_features"].flatten(1, 2)
    optimizer = recorded_optimizer(head, config["adam"])
    result: dict[str, Tensor] = {"image_features": image, "patch_features": patches}
    steps: dict[str, list[Tensor]] = {name: [] for name in LOSSES}
    for step in range(config["steps"]):
        terms = head.learning_loss(backbone, inputs, masks, labels)
        for name, term in (("total", "loss"), ("image", "image"), ("focal", "focal"), ("dice", "dice_anomalous")):
            steps[f"loss_{name}"].append(terms[term].detach())
        optimizer.zero_grad()
        terms["loss"].backward()
        if step == 0:
            text = head.encode_text_for(backbone, image).detach()
            logits = class_logits(patches, text, temperature["map"])
            pooled = pool_patches(patches, logits)
            fused = fuse_pooled(image, pooled, head.options.pooled_share)
            result |= {"text_features": text, "pooled_features": pooled, "fused_features": fused}
            result["image_logits"] = class_logits(fused[:, None], text, temperature["image"])[:, 0]
            grid = inputs["patch_features"].shape[1:3]
            assert map_losses(logits, grid, masks)["focal"] == terms["focal"]
            result |= named_gradients(head)
        optimizer.step()
    result |= published_names(f"param{config['steps']}", dict(head.prompts.named_parameters()))
    return result | {name: torch.stack(values) for name, values in steps.items()}, arrays, config


@pytest.mark.parametrize("name", INFERENCE)
@pytest.mark.parametrize("path", fixture_files("crane_infer") + fixture_files("crane_context"))
def test_inference(path: Path, name: str) -> None:
    results, arrays = infer(path)
    assert deviation(results[name], arrays[name]) <= TOLERANCE


@pytest.mark.parametrize("path", fixture_files("crane_infer") + fixture_files("crane_context"))
def test_every_array_of_inference_is_compared(path: Path) -> None:
    assert set(load_fixture(path)[1]) - INPUTS - NOT_CRANE == set(INFERENCE)


@pytest.mark.parametrize("name", [*STEP_1, *LOSSES])
@pytest.mark.parametrize("path", fixture_files("crane_train"))
def test_first_step_and_losses(path: Path, name: str) -> None:
    results, arrays, _ = learn(path, round_prompts=True)
    assert deviation(results[name], arrays[name]) <= TOLERANCE


@pytest.mark.parametrize("name", [*CONTEXTS, DEEP])
@pytest.mark.parametrize("path", fixture_files("crane_train"))
def test_gradients(path: Path, name: str) -> None:
    results, arrays, _ = learn(path, round_prompts=True)
    assert deviation(results[f"grad1.{name}"], arrays[f"grad1.{name}"]) <= TOLERANCE


@pytest.mark.parametrize("path", fixture_files("crane_train"))
def test_parameters_after_the_last_step(path: Path) -> None:
    check_parameters(*learn(path, round_prompts=True))


@pytest.mark.parametrize("path", fixture_files("crane_train"))
def test_learning_without_rounding(path: Path) -> None:
    results, arrays, _ = learn(path, round_prompts=False)
    names = [name for name in arrays if name.startswith("no_half.")]
    assert names
    for name in names:
        ours = results[name.removeprefix("no_half.")]
        assert np.quantile(np.abs(ours.detach().numpy() - arrays[name]), 0.999) <= TOLERANCE, name


@pytest.mark.parametrize("path", fixture_files("crane_train"))
def test_every_array_of_learning_is_compared(path: Path) -> None:
    results, arrays, _ = learn(path, round_prompts=True)
    assert {name.removeprefix("no_half.") for name in arrays} - INPUTS == set(results)
