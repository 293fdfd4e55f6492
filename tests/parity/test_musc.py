"""MuSc against recorded outputs of the published program: mathematics on given tokens, and from images on."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from anomalib_zsclip.clip import FeatureRequest
from anomalib_zsclip.errors import ArgumentError
from anomalib_zsclip.heads.maps import tokens_to_grid, upsample
from anomalib_zsclip.heads.mutual import (
    interval_means,
    mutual_scores,
    nearest_distances,
    normalize_image,
    rescore,
    window_means,
)

from .conftest import backbone_of, fixture_files

Found = dict[str, Tensor]
Fixture = tuple[dict[str, Any], dict[str, np.ndarray]]


def load(path: Path) -> Fixture:
    with np.load(path.with_suffix(".npz"), allow_pickle=False) as stored:
        return json.loads(path.read_text()), {key: stored[key] for key in stored.files}


def agree(found: Found, recorded: dict[str, np.ndarray], tolerances: dict[str, float]) -> None:
    """Compare all arrays that were computed; each must be recorded, and the tolerance is that of its name's beginning."""
    for name, value in found.items():
        plain = name.split(".", 1)[1] if name.split(".")[0] in ("quick", "divided", "oblong") else name
        tolerance = next(bound for start, bound in tolerances.items() if plain.startswith(start))
        expected = torch.from_numpy(recorded[name])
        assert value.shape == expected.shape, name
        torch.testing.assert_close(value.float(), expected, atol=tolerance, rtol=0, equal_nan=True, msg=name)


TOLERANCES = {
    "aggregated": 5e-6, "unit": 5e-6, "nearest": 2e-5, "msm": 2e-5, "layer_mean": 1e-5, "fused": 1e-5, "maps": 1e-5,
    "image_score_raw": 1e-5, "image_score": 2e-5, "class_tokens": 1e-5, "class_vectors": 1e-4, "patch_tokens": 1e-4,
}  # fmt: skip


def aggregate(tokens: Tensor, grid: tuple[int, int], degrees: list[int]) -> Found:
    """Neighbourhoods of tokens without the class token, ``[n, N, L, C]``."""
    found: Found = {}
    for degree in degrees:
        means = torch.stack([window_means(normalize_image(layer), grid, degree, pad=True) for layer in tokens])
        found[f"aggregated.r{degree}"] = means.permute(1, 2, 0, 3)
        found[f"unit.r{degree}"] = F.normalize(means, dim=-1)
    return found


def score(found: Found, config: dict[str, Any], class_tokens: Tensor, images: list[int] | None = None) -> Found:
    """Everything behind the aggregation."""
    share, degrees, size = config["share"], config["r_list"], config["image_size"]
    units = {degree: found[f"unit.r{degree}"] for degree in degrees}
    count = len(class_tokens)
    grid = config.get("grid") or [int(next(iter(units.values())).shape[2] ** 0.5)] * 2
    chosen = list(range(count)) if images is None else images
    result: Found = {}
    for degree, layers in units.items():
        result[f"msm.r{degree}"] = torch.stack([mutual_scores(layer[chosen], share) for layer in layers])
        result[f"layer_mean.r{degree}"] = result[f"msm.r{degree}"].mean(0)
        result[f"nearest.r{degree}"] = torch.stack(
            [
                torch.cat([nearest_distances(z[i : i + 1], z[[j for j in chosen if j != i]]) for i in chosen])
                for z in layers
            ]
        )
    result["fused"] = torch.stack([result[f"layer_mean.r{degree}"] for degree in degrees]).mean(0)
    result["maps"] = upsample(tokens_to_grid(result["fused"], tuple(grid)), (size, size), align_corners=True)
    result["image_score_raw"] = result["maps"].amax(dim=(1, 2))
    if images is None:
        result |= rescored(result["image_score_raw"], class_tokens, config)
    return result


def rescored(raw: Tensor, tokens: Tensor, config: dict[str, Any]) -> Found:
    return {
        f"image_score.k{'-'.join(map(str, windows))}": rescore(raw, tokens, windows) for windows in config["windows"]
    }


@pytest.mark.parametrize("path", fixture_files("musc_features"))
def test_from_tokens_to_scores(path: Path) -> None:
    config, arrays = load(path)
    tokens, grid = torch.from_numpy(arrays["patch_tokens"])[:, :, 1:], tuple(config["grid"])
    class_tokens = F.normalize(torch.from_numpy(arrays["class_vectors"]), dim=-1)
    found = aggregate(tokens, grid, config["r_list"])
    found |= {"class_tokens": class_tokens} | score(found, config, class_tokens)
    recorded = {name: value for name, value in found.items() if name in arrays}
    assert {"fused", "maps", "image_score_raw"} <= set(recorded)
    agree(recorded, arrays, TOLERANCES)
    if "subsets" in config:
        parts = [score(found, config, class_tokens, subset) for subset in config["subsets"]]
        divided = {name: torch.cat([part[name] for part in parts]) for name in ("fused", "maps", "image_score_raw")}
        order = torch.tensor([image for subset in config["subsets"] for image in subset])
        divided |= rescored(divided["image_score_raw"], class_tokens[order], config)
        agree({f"divided.{name}": value for name, value in divided.items()}, arrays, TOLERANCES)
    if "oblong.patch_tokens" in arrays:
        oblong = torch.from_numpy(arrays["oblong.patch_tokens"])
        oblong = oblong[:, :, oblong.shape[2] - config["oblong_grid"][0] * config["oblong_grid"][1] :]
        wide = aggregate(oblong, tuple(config["oblong_grid"]), config["r_list"])
        wide = {f"oblong.{name}": value for name, value in wide.items() if f"oblong.{name}" in arrays}
        assert wide
        agree(wide, arrays, TOLERANCES)


@pytest.mark.parametrize("path", fixture_files("musc_msm"))
def test_mutual_scores(path: Path) -> None:
    config, arrays = load(path)
    patches = torch.from_numpy(arrays["Z"])
    for name, case in config["cases"].items():
        images = patches[: case["n"]].clone()
        if case["copy"]:
            images[1] = images[0]
        found = mutual_scores(images, case["share"])
        agree({f"scores.{name}": found}, arrays, {"scores.copy": 1e-3, "scores": 2e-5})
        assert bool(found.isnan().all()) == case["all_nan"], name
    for name, listed in config["references"].items():
        agree({f"references.{name}": mutual_scores(patches, references=listed)}, arrays, {"references": 2e-5})
        # The same with a table of who is left out, as the memory bank has it.
        out = torch.arange(len(patches))[:, None] == torch.tensor(listed)[None]
        masked = interval_means(nearest_distances(patches, patches[listed]), left_out=out)
        agree({f"references.{name}": masked}, arrays, {"references": 1e-3 if name == "copy" else 2e-5})
    for case in config["fails_in_the_original"].values():
        with pytest.raises(ArgumentError):
            mutual_scores(patches[: case["n"]], case["share"])


@pytest.mark.parametrize("path", fixture_files("musc_rscin"))
def test_rescoring(path: Path) -> None:
    config, arrays = load(path)
    for name, case in config["cases"].items():
        scores = torch.from_numpy(arrays["scores"])
        if case["constant_scores"]:
            scores = torch.full_like(scores, 0.5)
        found = rescore(scores, torch.from_numpy(arrays[f"tokens.{case['tokens']}"]), case["windows_used"])
        agree({f"out.{name}": found}, arrays, {"out": 2e-5})
    tokens = torch.from_numpy(arrays["tokens.unit"])
    with pytest.raises(ArgumentError):
        rescore(torch.from_numpy(arrays["scores"]), tokens, [len(tokens) + 1])


@pytest.mark.parametrize("path", fixture_files("musc_clip"))
@pytest.mark.parametrize("prefix", ["", "quick."])
@torch.no_grad()
def test_from_images_to_scores(path: Path, prefix: str) -> None:
    config, arrays = load(path)
    activation = config["quick_activation" if prefix else "activation"]
    backbone = backbone_of(config, quick_gelu=activation == "QuickGELU", position_mode="bicubic_plain")
    blocks = config["features_list"]
    features = backbone.forward_intermediates(torch.from_numpy(arrays["images"]), FeatureRequest.of(tokens=blocks))
    tokens = torch.stack([features.tokens[block] for block in blocks])
    class_tokens = F.normalize(features.image_embedding, dim=-1)
    found = {"patch_tokens": tokens, "class_vectors": features.image_embedding, "class_tokens": class_tokens}
    units = aggregate(tokens[:, :, 1:], features.grid, config["r_list"])
    found |= units | score(units, config, class_tokens)
    recorded = {f"{prefix}{name}": value for name, value in found.items() if f"{prefix}{name}" in arrays}
    assert {f"{prefix}fused", f"{prefix}maps", f"{prefix}image_score_raw"} <= set(recorded)
    agree(recorded, arrays, TOLERANCES)
