# Copyright (C) 2026 anomalib-zsclip contributors
# SPDX-License-Identifier: Apache-2.0

"""Measure the built-in tiny CLIP: held-out families, held-out kinds of defects, and real photographs.

    python tools/evaluate_builtin_clip.py
    python tools/evaluate_builtin_clip.py --weights runs/tiny/model.safetensors --real path/to/magnetic_tile
    python tools/evaluate_builtin_clip.py --photographs runs/textures/held_out

Prints one table per set; every figure has its 95 % interval (bootstrap over images). Two trivial filters stand in
each table: what does not beat them is worth nothing. ``--real`` names category folders in the form of MVTec AD,
``--photographs`` a folder of photographs of surfaces (``texture_pool.py``) that the generator's defects are drawn on.
"""

from __future__ import annotations

import argparse
import json
import sys
import warnings
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path

import cv2
import numpy as np
import torch
import torch.nn.functional as F

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))

from anomalib_zsclip.clip import ClipBackbone, FeatureRequest, ImageFeatures  # noqa: E402
from anomalib_zsclip.clip.loading import BUILTIN_SIZE  # noqa: E402
from anomalib_zsclip.data import generator as gen  # noqa: E402
from anomalib_zsclip.data.generator.photographs import NAME as PHOTOGRAPH  # noqa: E402
from anomalib_zsclip.data.generator.photographs import photograph_family  # noqa: E402
from anomalib_zsclip.heads.memory_bank import MemoryBank  # noqa: E402
from anomalib_zsclip.prompts.ensembles import state_sentences  # noqa: E402

BINS = 2048
BOOTSTRAPS = 1000
MAX_FPR = 0.3  # limit of the per-region overlap curve, as everywhere
SHOTS = 16
DETECTORS = {
    "RandomWordClip": ("RandomWordClip", {}),
    "ClipAd, SDP": ("ClipAd", {"variant": "sdp"}),
    "ClipAd, SDP+": ("ClipAd", {"variant": "sdp+"}),
    "AnomalyClip": ("AnomalyClip", {}),
    "AnomalyClip, Crane": ("AnomalyClip", {"variant": "crane"}),
    "ZsClip": ("ZsClip", {}),
}


@dataclass
class ImageSet:
    """Images uint8 ``[N, S, S, 3]``, masks bool ``[N, S, S]``, and good images for the few-shot row if any."""

    name: str
    images: np.ndarray
    masks: np.ndarray
    labels: np.ndarray
    reference: np.ndarray | None = None


@dataclass
class Verdict:
    """Scores ``[N]`` and maps ``[N, S, S]`` of one method; either may be missing."""

    scores: np.ndarray | None = None
    maps: np.ndarray | None = None


@dataclass
class Row:
    """Figures of one method on one set: name -> (value, low, high)."""

    method: str
    figures: dict[str, tuple[float, float, float]] = field(default_factory=dict)


# Sets.


def synthetic_set(name: str, families: list[str], kinds: list[str], count: int, size: int, seed: int) -> ImageSet:
    """``count`` good and ``count`` defective images, each of a product of its own."""
    images, masks = [], []
    for index in range(2 * count):
        rng = np.random.default_rng([seed, len(families), len(kinds), index])
        family = families[int(rng.integers(len(families)))]
        fitting = [k for k in kinds if gen.DEFECTS[k].on in ("any", gen.FAMILIES[family].kind)]
        pair = gen.generate_pair(family, fitting[int(rng.integers(len(fitting)))], size, rng)
        images.append(pair.good if index < count else pair.bad)
        masks.append(np.zeros_like(pair.mask, bool) if index < count else pair.mask > 0)
    labels = np.arange(2 * count) >= count
    return ImageSet(name, np.stack(images), np.stack(masks), labels)


def real_set(folder: Path, size: int) -> ImageSet:
    """A category folder in the form of MVTec AD, brought to ``size`` by ``size``."""

    def read(path: Path, *, mask: bool = False) -> np.ndarray:
        pixels = cv2.imread(str(path), cv2.IMREAD_GRAYSCALE if mask else cv2.IMREAD_COLOR)
        if mask:  # thin defects must survive the reduction
            return cv2.resize((pixels > 0).astype(np.float32), (size, size), interpolation=cv2.INTER_AREA) > 0.25
        return cv2.cvtColor(cv2.resize(pixels, (size, size), interpolation=cv2.INTER_AREA), cv2.COLOR_BGR2RGB)

    images, masks = [], []
    for path in sorted((folder / "test").glob("*/*")):
        images.append(read(path))
        truth = sorted((folder / "ground_truth" / path.parent.name).glob(f"{path.stem}*"))
        good = path.parent.name == "good"
        masks.append(np.zeros((size, size), bool) if good else read(truth[0], mask=True))
    labels = np.array([p.parent.name != "good" for p in sorted((folder / "test").glob("*/*"))])
    reference = [read(path) for path in sorted((folder / "train" / "good").glob("*"))[:SHOTS]]
    return ImageSet(folder.name, np.stack(images), np.stack(masks), labels, np.stack(reference))


# Methods.


def normalise(images: np.ndarray, backbone: ClipBackbone) -> torch.Tensor:
    """uint8 ``[N, S, S, 3]`` to what the image tower takes, ``[N, 3, S, S]``."""
    x = torch.from_numpy(images).float().div(255).permute(0, 3, 1, 2)
    mean, std = (torch.tensor(v).view(1, 3, 1, 1) for v in (backbone.mean, backbone.std))
    return (x - mean) / std


def filters(images: np.ndarray) -> dict[str, Verdict]:
    """Difference of Gaussians and distance from the image's mean colour."""
    gaussians, colours = [], []
    for image in images.astype(np.float32):
        grey = image.mean(2)
        scale = image.shape[0] / 128
        band = np.abs(cv2.GaussianBlur(grey, (0, 0), 1.0 * scale) - cv2.GaussianBlur(grey, (0, 0), 4.0 * scale))
        gaussians.append(cv2.GaussianBlur(band, (0, 0), 2 * scale))
        far = np.linalg.norm(image - image.mean((0, 1)), axis=2)
        colours.append(cv2.GaussianBlur(far, (0, 0), 2 * scale))
    found = {"difference of Gaussians": np.stack(gaussians), "colour distance": np.stack(colours)}
    return {name: Verdict(maps.max((1, 2)), maps) for name, maps in found.items()}


def enlarged(values: torch.Tensor, size: int) -> np.ndarray:
    """Patch scores ``[N, L]`` as smooth maps ``[N, S, S]``."""
    side = int(values.shape[1] ** 0.5)
    maps = F.interpolate(values.view(-1, 1, side, side), (size, size), mode="bilinear")[:, 0].numpy()
    return np.stack([cv2.GaussianBlur(m, (0, 0), 4 * size / 128) for m in maps])


@torch.no_grad()
def prompt_ensemble(backbone: ClipBackbone, noun: str) -> Callable[[np.ndarray], dict[str, Verdict]]:
    """Mean text features of the CLIP-AD ensemble against the image embedding and all kinds of local tokens."""
    normal, anomalous = (
        F.normalize(F.normalize(backbone.encode_text(s), dim=-1).mean(0), dim=0) for s in state_sentences(noun)
    )
    direction, depth = (anomalous - normal).float(), backbone.layers
    stages = [(i * depth // 4 + 1, (i + 1) * depth // 4) for i in range(4)]
    first = depth - round(depth * 19 / 24) + 1
    request = FeatureRequest(
        tokens=frozenset({first - 1, depth // 2, depth}), value_value=frozenset({*stages, (first, depth)})
    )

    def run(images: np.ndarray) -> dict[str, Verdict]:
        scores, raw, maps = [], [], {}
        for part in normalise(images, backbone).split(25):
            features = backbone.forward_intermediates(part, request)
            scores.append(F.normalize(features.image_embedding, dim=-1) @ direction)
            plain = F.normalize(backbone.project_tokens(features.class_token, normalize_first=False), dim=-1)
            raw.append(plain @ direction)

            def local(tokens: torch.Tensor) -> torch.Tensor:
                return F.normalize(backbone.project_tokens(tokens[:, 1:]), dim=-1) @ direction

            found = {
                "ensemble": local(features.tokens[depth]),
                "ensemble, middle block": local(features.tokens[depth // 2]),
                "ensemble, value-value of the last blocks": local(
                    features.tokens[first - 1] + features.value_value[first, depth]
                ),
                "ensemble, value-value in stages": torch.stack([local(features.value_value[s]) for s in stages]).mean(
                    0
                ),
            }
            for name, value in found.items():
                maps.setdefault(name, []).append(value)
        size = images.shape[1]
        result = {name: Verdict(None, enlarged(torch.cat(values), size)) for name, values in maps.items()}
        result["ensemble"].scores = torch.cat(scores).numpy()
        result["ensemble, middle block"].scores = torch.cat(maps["ensemble"]).amax(1).numpy()
        result["ensemble, value-value of the last blocks"].scores = torch.cat(raw).numpy()
        return result

    return run


@torch.no_grad()
def neighbours(backbone: ClipBackbone, images: np.ndarray, reference: np.ndarray) -> Verdict:
    """A memory of a few good images, of the blocks that ``k_shot`` compares; the image score is the map's maximum."""
    size = images.shape[1]
    memory = MemoryBank(sigma=4 * size / 128)

    def features(batch: np.ndarray) -> Iterator[ImageFeatures]:
        for part in normalise(batch, backbone).split(25):
            yield backbone.forward_intermediates(part, memory.request(backbone))

    memory.fill(features(reference), backbone)
    maps = torch.cat([memory(part, backbone, (size, size)) for part in features(images)]).numpy()
    return Verdict(maps.max((1, 2)), maps)


def detectors(weights: Path | None, names: list[str]) -> dict[str, torch.nn.Module]:
    """The package's own models on this backbone, as far as they can be had."""
    import anomalib_zsclip

    found = {}
    for name in names:
        kind, arguments = DETECTORS[name]
        try:
            model = getattr(anomalib_zsclip, kind)(
                backbone="builtin", pretrained=str(weights) if weights else None, evaluator=False, visualizer=False,
                **arguments,
            ).eval()  # fmt: skip
            model.class_name = "object"
            model.prepare()
            found[name] = model
        except Exception as error:
            print(f"# {name} left out: {str(error).splitlines()[0]}")
    return found


@torch.no_grad()
def detect(model: torch.nn.Module, images: np.ndarray) -> Verdict:
    """Scores and maps of one of the package's models."""
    backbone = model.model.backbone
    outputs = [model.model(part) for part in normalise(images, backbone).split(25)]
    scores = torch.cat([o.pred_score.flatten() for o in outputs]).numpy()
    maps = torch.cat([o.anomaly_map.reshape(-1, *images.shape[1:3]) for o in outputs]).numpy()
    return Verdict(scores, maps)


# Figures.


def ranks(values: np.ndarray) -> np.ndarray:
    """Values to whole numbers below ``BINS`` by rank, so that histograms lose next to nothing."""
    flat = values.ravel()
    sample = np.sort(flat[:: max(flat.size // 200_000, 1)])
    edges = np.unique(sample[np.linspace(0, sample.size - 1, BINS + 1).astype(int)[1:-1]])
    return np.searchsorted(edges, values, side="right")


def auroc(positive: np.ndarray, negative: np.ndarray) -> np.ndarray:
    """Area under the ROC curve from histograms ``[..., BINS]``."""
    below = np.cumsum(negative, -1) - negative
    area = (positive * (below + 0.5 * negative)).sum(-1)
    return area / np.maximum(positive.sum(-1) * negative.sum(-1), 1e-9)


def average_precision(positive: np.ndarray, negative: np.ndarray) -> np.ndarray:
    """Average precision from histograms ``[..., BINS]``."""
    p, n = np.cumsum(positive[..., ::-1], -1), np.cumsum(negative[..., ::-1], -1)
    precision = p / np.maximum(p + n, 1e-9)
    return (precision * positive[..., ::-1]).sum(-1) / np.maximum(p[..., -1], 1e-9)


def region_overlap(overlap: np.ndarray, negative: np.ndarray) -> np.ndarray:
    """Area under the per-region overlap curve up to ``MAX_FPR``, from histograms ``[..., BINS]``."""
    rate = np.cumsum(negative[..., ::-1], -1) / np.maximum(negative.sum(-1, keepdims=True), 1e-9)
    mean = np.cumsum(overlap[..., ::-1], -1)
    steps = np.linspace(0, MAX_FPR, 100)
    flat_rate, flat_mean = rate.reshape(-1, BINS), mean.reshape(-1, BINS)
    area = [np.trapezoid(np.interp(steps, r, m), steps) / MAX_FPR for r, m in zip(flat_rate, flat_mean, strict=True)]
    return np.array(area).reshape(rate.shape[:-1])


def measure(data: ImageSet, verdict: Verdict, seed: int = 0) -> dict[str, tuple[float, float, float]]:
    """Image AUROC and AP, pixel AUROC and AUPRO, each with its interval."""
    rng = np.random.default_rng(seed)
    good, bad = np.flatnonzero(~data.labels), np.flatnonzero(data.labels)
    picks = [(good, bad)] + [(rng.choice(good, good.size), rng.choice(bad, bad.size)) for _ in range(BOOTSTRAPS)]
    weights = np.zeros((len(picks), len(data.labels)), np.float32)
    for row, (g, b) in enumerate(picks):
        np.add.at(weights[row], np.concatenate([g, b]), 1)
    curves: dict[str, np.ndarray] = {}
    if verdict.scores is not None:
        order = ranks(verdict.scores)
        each = np.eye(BINS, dtype=np.float32)[order]
        positive, negative = weights @ (each * data.labels[:, None]), weights @ (each * ~data.labels[:, None])
        curves |= {"image AUROC": auroc(positive, negative), "image AP": average_precision(positive, negative)}
    if verdict.maps is not None:
        order = ranks(verdict.maps)
        count = len(data.labels)
        positive, negative, overlap = (np.zeros((count, BINS), np.float32) for _ in range(3))
        regions = np.zeros(count, np.float32)
        for i in range(count):
            mask = data.masks[i]
            negative[i] = np.bincount(order[i][~mask], minlength=BINS)
            if mask.any():
                positive[i] = np.bincount(order[i][mask], minlength=BINS)
                total, labels = cv2.connectedComponents(mask.astype(np.uint8))
                regions[i] = total - 1
                for region in range(1, total):
                    inside = order[i][labels == region]
                    overlap[i] += np.bincount(inside, minlength=BINS) / inside.size
        curves["pixel AUROC"] = auroc(weights @ positive, weights @ negative)
        few = weights[:201]  # the overlap curve is slow to resample
        mean_overlap = (few @ overlap) / np.maximum(few @ regions, 1e-9)[:, None]
        curves["AUPRO"] = region_overlap(mean_overlap, few @ negative)
    return {k: (float(v[0]), *(float(q) for q in np.percentile(v[1:], (2.5, 97.5)))) for k, v in curves.items()}


def table(rows: list[Row]) -> str:
    """Rows as a Markdown table."""
    names = ("image AUROC", "image AP", "pixel AUROC", "AUPRO")
    lines = ["| method | " + " | ".join(names) + " |", "|---|" + "---|" * len(names)]
    for row in rows:
        cells = []
        for name in names:
            value = row.figures.get(name)
            cells.append("" if value is None else f"{value[0]:.3f} ({value[1]:.2f}-{value[2]:.2f})")
        lines.append(f"| {row.method} | " + " | ".join(cells) + " |")
    return "\n".join(lines)


def main() -> None:
    """Command line."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--weights", type=Path, help="weights to measure; default: the shipped ones")
    parser.add_argument("--real", type=Path, nargs="*", default=[], help="category folders in the form of MVTec AD")
    parser.add_argument("--photographs", type=Path, help="folder of photographs of surfaces that were held out")
    parser.add_argument("--count", type=int, default=150, help="good (and defective) images per synthetic set; 0: none")
    parser.add_argument("--size", type=int, default=BUILTIN_SIZE, help="side of the images in pixels")
    parser.add_argument("--noun", default="object", help="what the prompt ensemble calls everything")
    parser.add_argument("--models", nargs="*", choices=list(DETECTORS), default=list(DETECTORS))
    parser.add_argument("--json", type=Path, help="also write all figures there")
    parser.add_argument("--seed", type=int, default=12345)
    args = parser.parse_args()
    warnings.filterwarnings("ignore")
    torch.set_num_threads(1)
    cv2.setNumThreads(1)

    def names(table: dict, *, held_out: bool, kind: str | None = None) -> list[str]:
        return [n for n, e in table.items() if e.held_out == held_out and kind in (None, getattr(e, "kind", None))]

    seen_kinds, new_kinds = names(gen.DEFECTS, held_out=False), names(gen.DEFECTS, held_out=True)
    recipes = [
        ("held-out families", names(gen.FAMILIES, held_out=True), seen_kinds),
        ("held-out families, textures", names(gen.FAMILIES, held_out=True, kind="texture"), seen_kinds),
        ("held-out families, objects", names(gen.FAMILIES, held_out=True, kind="object"), seen_kinds),
        ("held-out kinds of defects", names(gen.FAMILIES, held_out=False), new_kinds),
        ("both held out", names(gen.FAMILIES, held_out=True), new_kinds),
    ]
    if args.photographs:
        gen.FAMILIES[PHOTOGRAPH] = photograph_family(args.photographs)
        recipes.append(("held-out photographs of surfaces", [PHOTOGRAPH], seen_kinds))
    backbone = ClipBackbone.load("builtin", str(args.weights) if args.weights else None)
    ensemble = prompt_ensemble(backbone, args.noun)
    models = detectors(args.weights, args.models)
    results = {}
    sets = [lambda r=r: synthetic_set(*r, args.count, args.size, args.seed) for r in recipes if args.count]
    sets += [lambda f=f: real_set(f, args.size) for f in args.real]
    for make in sets:
        data = make()
        verdicts = filters(data.images) | ensemble(data.images)
        if data.reference is not None:
            verdicts[f"{SHOTS}-shot nearest neighbours"] = neighbours(backbone, data.images, data.reference)
        verdicts |= {name: detect(model, data.images) for name, model in models.items()}
        rows = [Row(name, measure(data, verdict)) for name, verdict in verdicts.items()]
        print(
            f"\n### {data.name} ({(~data.labels).sum()} good, {data.labels.sum()} defective)\n\n{table(rows)}",
            flush=True,
        )
        results[data.name] = {row.method: row.figures for row in rows}
    if args.json:
        args.json.write_text(json.dumps(results, indent=1) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
