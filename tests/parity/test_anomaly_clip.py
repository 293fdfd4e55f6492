"""AnomalyCLIP against recorded outputs of the published program: inference, and three steps of learning."""

from __future__ import annotations

from functools import lru_cache
from pathlib import Path
from tempfile import TemporaryDirectory

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from anomalib_zsclip.clip import ClipBackbone
from anomalib_zsclip.heads.anomaly_clip import AnomalyClipHead, class_probabilities, image_loss, map_losses, summed_map
from anomalib_zsclip.heads.maps import tokens_to_grid, upsample
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
INFERENCE = (
    "text_features_raw",
    "text_features",
    "text_features_no_half",
    "image_features_raw",
    "image_features",
    "patch_features",
    "similarity",
    "similarity_map",
    "anomaly_map_raw",
    "anomaly_map",
    "image_score",
)
LOSSES = ("loss_total", "loss_pixel", "loss_image", "loss_focal", "loss_dice_abnormal", "loss_dice_normal")


def make_head(config: Config, **arguments: object) -> tuple[AnomalyClipHead, ClipBackbone]:
    """Head that loaded the fixture's prompts from a file of the published layout, and its backbone."""
    backbone = backbone_of(config, quick_gelu=True, position_mode="bilinear")
    names = ("n_ctx", "depth", "t_n_ctx")
    sizes = {name: config[name] for name in names}
    scales = config["model"].get("scales")
    params = recipe().prompt_learner_params(backbone.text_width, *sizes.values(), config["seed"], scales)
    with TemporaryDirectory() as folder:
        path = official_file(
            Path(folder) / "epoch_15.pth", {key: torch.from_numpy(value) for key, value in params.items()}
        )
        head = AnomalyClipHead(
            path, layers=config["features_list"], value_value_blocks=config["dpam_layer"] - 1, **sizes, **arguments
        )
        head.setup(backbone, "object")
    return head, backbone


@lru_cache(maxsize=2)
@torch.no_grad()
def infer(path: Path) -> tuple[dict[str, Tensor], Arrays]:
    """All arrays of an inference fixture: ours and the recorded ones."""
    config, arrays = load_fixture(path)
    head, backbone = make_head(config, sigma=config["sigma"])
    size = (config["image_size"], config["image_size"])
    features = backbone.forward_intermediates(torch.from_numpy(arrays["images"]), head.request(backbone))
    embedding = head.image_embedding(features, backbone)
    patches = head.patch_features(features, backbone)
    similarity = class_probabilities(patches, head.text_features, head.options.temperature)
    anomalous = tokens_to_grid(similarity[:, :, 1:, 1], features.grid)
    return {
        "text_features_raw": head.prompts(backbone, round_prompts=True),
        "text_features": head.text_features,
        "text_features_no_half": F.normalize(head.prompts(backbone), dim=-1),
        "image_features_raw": embedding,
        "image_features": F.normalize(embedding, dim=-1),
        "patch_features": patches,
        "similarity": similarity,
        "similarity_map": upsample(anomalous, size),
        "anomaly_map_raw": summed_map(similarity[:, :, 1:], features.grid, size, sigma=0),
        # The published map is the sum over the layers, the head's is their mean.
        "anomaly_map": head(features, backbone, size).anomaly_map * len(patches),
        "image_score": head(features, backbone, size).score,
    }, arrays


@lru_cache(maxsize=4)
def learn(path: Path, *, round_prompts: bool) -> tuple[dict[str, Tensor], Arrays, Config]:
    """All arrays of a training fixture, ours and the recorded ones, and its configuration."""
    config, arrays = load_fixture(path)
    head, backbone = make_head(config, learn=True, round_prompts=round_prompts)
    images, labels = torch.from_numpy(arrays["images"]), torch.from_numpy(arrays["labels"])
    masks = torch.from_numpy(arrays["masks"]).squeeze(1)
    features = backbone.forward_intermediates(images, head.request(backbone))
    inputs = head.learning_inputs(features, backbone, ["object"] * len(images))
    optimizer = recorded_optimizer(head, config["adam"])
    result: dict[str, Tensor] = {}
    steps: dict[str, list[Tensor]] = {name: [] for name in LOSSES}
    for step in range(config["steps"]):
        text_features = head.encode_text(backbone).detach()
        layers = map_losses(inputs["patch_features"], text_features, masks, head.options.temperature)
        image = image_loss(inputs["image_embedding"], text_features, labels, head.options.temperature)
        terms = head.learning_loss(backbone, inputs, masks, labels)
        steps["loss_total"].append(terms["loss"].detach())
        steps["loss_pixel"].append(config["lam"] * (terms["focal"] + terms["dice_anomalous"] + terms["dice_normal"]))
        steps["loss_image"].append(image)
        steps["loss_focal"].append(layers["focal"])
        steps["loss_dice_abnormal"].append(layers["dice_anomalous"])
        steps["loss_dice_normal"].append(layers["dice_normal"])
        optimizer.zero_grad()
        terms["loss"].backward()
        if step == 0:
            result |= named_gradients(head)
        optimizer.step()
    result |= published_names(f"param{config['steps']}", dict(head.prompts.named_parameters()))
    return result | {name: torch.stack(values) for name, values in steps.items()}, arrays, config


def without_deep_prompts(path: Path) -> bool:
    """Whether a fixture was recorded without deep prompts, and so without the arrays that differ by their rounding."""
    return load_fixture(path)[0]["depth"] == 1


@pytest.mark.parametrize("name", INFERENCE)
@pytest.mark.parametrize("path", fixture_files("anomalyclip_infer"))
def test_inference(path: Path, name: str) -> None:
    results, arrays = infer(path)
    if name not in arrays and without_deep_prompts(path):
        pytest.skip("not recorded without deep prompts")
    assert deviation(results[name], arrays[name]) <= TOLERANCE


@pytest.mark.parametrize("path", fixture_files("anomalyclip_infer"))
def test_every_array_of_inference_is_compared(path: Path) -> None:
    recorded = set(load_fixture(path)[1]) - INPUTS
    assert recorded <= set(INFERENCE) if without_deep_prompts(path) else recorded == set(INFERENCE)


@pytest.mark.parametrize("name", LOSSES)
@pytest.mark.parametrize("path", fixture_files("anomalyclip_train"))
def test_losses(path: Path, name: str) -> None:
    results, arrays, _ = learn(path, round_prompts=True)
    assert deviation(results[name], arrays[name]) <= TOLERANCE


@pytest.mark.parametrize("path", fixture_files("anomalyclip_train"))
def test_gradients(path: Path) -> None:
    results, arrays, _ = learn(path, round_prompts=True)
    for name in CONTEXTS:
        assert deviation(results[f"grad1.{name}"], arrays[f"grad1.{name}"]) <= TOLERANCE
    if without_deep_prompts(path):
        return
    deep = arrays[f"grad1.{DEEP}"]
    # Two roundings to float16 may fall on the other side: their step grows with the gradient.
    steps = 2 * np.spacing(np.float16(np.abs(deep).max())).astype(np.float64)
    assert deviation(results[f"grad1.{DEEP}"], deep) <= max(5e-4, steps)


@pytest.mark.parametrize("path", fixture_files("anomalyclip_train"))
def test_parameters_after_the_last_step(path: Path) -> None:
    check_parameters(*learn(path, round_prompts=True))


@pytest.mark.parametrize("path", fixture_files("anomalyclip_train"))
def test_learning_without_rounding(path: Path) -> None:
    results, arrays, _ = learn(path, round_prompts=False)
    names = [name for name in arrays if name.startswith("no_half.")]
    assert names or without_deep_prompts(path)
    for name in names:
        assert deviation(results[name.removeprefix("no_half.")], arrays[name]) <= TOLERANCE, name


@pytest.mark.parametrize("path", fixture_files("anomalyclip_train"))
def test_every_array_of_learning_is_compared(path: Path) -> None:
    results, arrays, _ = learn(path, round_prompts=True)
    recorded = {name.removeprefix("no_half.") for name in arrays} - INPUTS
    assert recorded <= set(results) if without_deep_prompts(path) else recorded == set(results)
