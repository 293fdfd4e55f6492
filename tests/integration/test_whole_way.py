"""From picture files to the papers' numbers: the engine gives what the published steps give one by one."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from anomalib.data import Folder
from anomalib.engine import Engine
from PIL import Image
from sklearn.metrics import average_precision_score, precision_recall_curve, roc_auc_score

from tests.builtin_models import make_model

SIDE = 64
SIZES = ((91, 172), (180, 163), (195, 90), (67, 120), (57, 93), (131, 60))
"""Height and width of the pictures: wider, higher, smaller and larger than the model's, in batches of several sizes."""


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Blocks of full contrast, half of the pictures with a square that the mask shows."""
    root = tmp_path_factory.mktemp("pictures")
    rng = np.random.default_rng(3)
    for kind in ("good", "bad", "masks"):
        (root / kind).mkdir()
    for index, (height, width) in enumerate(SIZES):
        blocks = rng.integers(0, 256, (height // 9 + 1, width // 9 + 1, 3), dtype=np.uint8)
        picture = blocks.repeat(9, axis=0).repeat(9, axis=1)[:height, :width].copy()
        Image.fromarray(picture).save(root / "good" / f"{index}.png")
        mask = np.zeros((height, width), np.uint8)
        mask[10 : height // 2, 5 : width // 2] = 255
        mask[-9:, -7:] = 255
        picture[mask > 0] = rng.integers(0, 256, (int((mask > 0).sum()), 3), dtype=np.uint8)
        Image.fromarray(picture).save(root / "bad" / f"{index}.png")
        Image.fromarray(mask).save(root / "masks" / f"{index}.png")
    return root


def step_by_step(model: Any, folder: Path) -> dict[str, float]:
    """The published way: Pillow's resize, network, raw map, pooled pixels, scikit-learn, overlap of regions."""
    backbone = model.model.backbone
    (head,) = model.model.heads.values()
    mean, std = (torch.tensor(values)[:, None, None] for values in (backbone.mean, backbone.std))
    scores, labels, maps, masks = [], [], [], []
    for kind in ("good", "bad"):
        for path in sorted((folder / kind).glob("*.png")):
            with Image.open(path) as picture:
                resized = np.asarray(picture.convert("RGB").resize((SIDE, SIDE), Image.Resampling.BICUBIC))
            image = (torch.from_numpy(resized.copy()).permute(2, 0, 1) / 255 - mean) / std
            mask = np.zeros((SIDE, SIDE), np.uint8)
            if kind == "bad":
                with Image.open(folder / "masks" / path.name) as picture:
                    mask = np.asarray(picture.resize((SIDE, SIDE), Image.Resampling.BILINEAR)) / 255 > 0.5
            with torch.no_grad():
                features = model.model.features(image[None])
                output = head(features, backbone, (SIDE, SIDE))
                raw = head.raw(features, backbone, (SIDE, SIDE)).map if hasattr(head, "raw") else output.anomaly_map
            scores.append(float(output.score))
            labels.append(kind == "bad")
            maps.append(raw[0].numpy())
            masks.append(np.asarray(mask, np.uint8))
    numbers = {}
    for level, truth, values in (("image", labels, scores), ("pixel", np.ravel(masks), np.ravel(maps))):
        precision, recall, _ = precision_recall_curve(truth, values)
        numbers[f"{level}_AUROC"] = roc_auc_score(truth, values)
        numbers[f"{level}_AveragePrecision"] = average_precision_score(truth, values)
        numbers[f"{level}_F1Max"] = (2 * precision * recall / np.maximum(precision + recall, 1e-12)).max()
    numbers["pixel_OfficialPro"] = overlap_of_regions(np.stack(maps), np.stack(masks))
    return numbers


def overlap_of_regions(maps: np.ndarray, masks: np.ndarray) -> float:
    """The published overlap, threshold by threshold, region by region."""
    from scipy import ndimage

    rates, overlaps = [], []
    for number in range(200):
        positive = maps > maps.min() + number * (maps.max() - maps.min()) / 200
        shares = []
        for mask, found in zip(masks, positive, strict=True):
            regions, count = ndimage.label(mask, structure=np.ones((3, 3)))
            shares += [found[regions == region].mean() for region in range(1, count + 1)]
        rates.append(positive[masks == 0].mean())
        overlaps.append(np.mean(shares))
    order = np.argsort(rates)
    rate, overlap = np.array(rates)[order], np.array(overlaps)[order]
    rate, overlap = rate[rate < 0.3], overlap[rate < 0.3]
    return float(np.trapezoid(overlap, (rate - rate.min()) / (rate.max() - rate.min())))


@pytest.mark.parametrize("name", ["AnomalyClip", "ClipAd", "ClipAd sdp+"])
def test_an_engine_gives_what_the_steps_give(name: str, folder: Path, tmp_path: Path) -> None:
    model = make_model(name, tmp_path, evaluator="papers", image_size=SIDE, visualizer=False)
    data = Folder(
        name="pictures", root=folder, normal_dir="good", abnormal_dir="bad", normal_test_dir="good", mask_dir="masks",
        eval_batch_size=4, num_workers=0, val_split_mode="same_as_test",
    )  # fmt: skip
    engine = Engine(default_root_dir=tmp_path, accelerator="cpu", enable_progress_bar=False)
    (found,) = engine.test(model, datamodule=data)
    assert len(data.test_data) == 2 * len(SIZES)
    wanted = step_by_step(model, folder)
    assert set(found) == set(wanted)
    for metric, value in wanted.items():
        assert found[metric] == pytest.approx(value, abs=1e-4), metric
