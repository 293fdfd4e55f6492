"""Each head alone, all of them, and all but one: on procedural images and on folders of real ones.

    python benchmarks/heads.py
    python benchmarks/heads.py --real path/to/magnetic_tile --k-shot 4
    python benchmarks/heads.py --real path/to/magnetic_tile --drift bf16

One pass of the tower per image yields every head's prediction; the fusions are computed from those. Prints Markdown and
writes JSON. ``--explain`` also prints how often the first word of an explanation is the true kind of defect.
"""

from __future__ import annotations

import argparse
import copy
import json
from collections import Counter, defaultdict
from pathlib import Path

import numpy as np
import torch
from anomalib.data import MVTecAD
from anomalib.data.utils import ValSplitMode
from sklearn.metrics import average_precision_score, roc_auc_score
from torch import Tensor
from tqdm.auto import tqdm

from anomalib_zsclip import SyntheticDefects, ZsClip
from anomalib_zsclip.data.generator import FAMILIES
from anomalib_zsclip.data.synthetic_defects import CATEGORIES

KINDS = {"stain": "stain", "contamination": "contamination", "missing": "missing part", "colour": "wrong color",
         "bent": "bent part", "cut": "cut", "scratch": "scratch", "crack": "crack", "hole": "hole", "dent": "dent",
         "thread": "thread", "misprint": "misprint", "break": "broken edge", "fray": "fray"}  # fmt: skip


HANDWRITTEN = 'anomaly_clip, "object" and "damaged object"'


class Predictions:
    """Scores and maps of all heads on one category."""

    def __init__(self) -> None:
        self.scores: dict[str, list[Tensor]] = defaultdict(list)
        self.maps: dict[str, list[Tensor]] = defaultdict(list)
        self.labels: list[Tensor] = []
        self.masks: list[Tensor] = []

    def metrics(self, weights: dict[str, float]) -> dict[str, float]:
        """Metrics of a weighted mean."""
        total = sum(weights.values())
        score = sum(torch.cat(self.scores[name]) * weight / total for name, weight in weights.items())
        maps = sum(torch.cat(self.maps[name]) * weight / total for name, weight in weights.items())
        labels = torch.cat(self.labels).int().numpy()
        masks = torch.cat(self.masks).numpy().ravel()
        return {
            "image AUROC": roc_auc_score(labels, score.numpy()),
            "image AP": average_precision_score(labels, score.numpy()),
            "map max AUROC": roc_auc_score(labels, maps.flatten(1).amax(1).numpy()),
            "pixel AUROC": roc_auc_score(masks, maps.numpy().ravel()),
        }


@torch.no_grad()
def run(model: ZsClip, data: MVTecAD, k_shot: int, named: Counter) -> Predictions:
    """Predictions of all heads, and of the memory if there is one, on the test images."""
    data.prepare_data()
    data.setup()
    model.prepare()  # without images to compare with, which are those of the benchmark
    detector, predictions = model.model, Predictions()
    handwritten = None
    if "anomaly_clip" in detector.heads:  # the same tokens against words instead of learned prompts
        handwritten = copy.deepcopy(detector.heads["anomaly_clip"])
        words = detector.backbone.encode_text(["object", "damaged object"])
        handwritten.text_features = torch.nn.functional.normalize(words, dim=-1)
    if k_shot:
        images = [model.pre_processor.transform(data.train_data[index].image) for index in range(k_shot)]
        request = detector.memory_bank.request(detector.backbone)
        shots = detector.backbone.forward_intermediates(torch.stack(images), request)
        detector.memory_bank.fill([shots], detector.backbone)
    for batch in data.test_dataloader():
        images, masks = model.pre_processor.transform(batch.image, batch.gt_mask)
        size = (images.shape[-2], images.shape[-1])
        features = detector.features(images)
        outputs = detector.head_outputs(features, size)
        if handwritten is not None:
            outputs[HANDWRITTEN] = handwritten(features, detector.backbone, size)
        for name, output in outputs.items():
            predictions.scores[name].append(output.score)
            predictions.maps[name].append(output.anomaly_map)
        if k_shot:
            maps = detector.memory_bank(features, detector.backbone, size)
            predictions.scores["few_shot"].append(maps.amax(dim=(-2, -1)))
            predictions.maps["few_shot"].append(maps)
        predictions.labels.append(batch.gt_label)
        predictions.masks.append(masks.bool())
        fused = torch.stack([predictions.maps[name][-1] for name in detector.heads]).mean(0)
        for path, text in zip(
            batch.image_path, detector.namer.explain(features, detector.backbone, fused), strict=True
        ):
            kind = KINDS.get(Path(path).parent.name)
            if kind:
                named[kind, text.rsplit(" (", 2)[0].split(" (")[0]] += 1
    return predictions


Table = dict[str, dict[str, float]]


def measure(modules: list[MVTecAD], name: str, arguments: argparse.Namespace, precision: str, named: Counter) -> Table:
    """Mean metrics over the categories, for each head and fusion."""
    k_shot = arguments.k_shot
    model = ZsClip(
        arguments.heads,
        backbone=arguments.backbone,
        pretrained=arguments.pretrained,
        precision=precision,
        evaluator=False,
    )
    all_predictions = [run(model, data, k_shot, named) for data in tqdm(modules, desc=f"{name}, {precision}")]
    heads = list(model.model.heads)
    rows = {head: {head: 1.0} for head in heads}
    if "anomaly_clip" in heads:
        rows[HANDWRITTEN] = {HANDWRITTEN: 1.0}
    rows["all"] = dict.fromkeys(heads, 1.0)
    if len(heads) > 2:
        rows |= {f"all but {head}": dict.fromkeys([h for h in heads if h != head], 1.0) for head in heads}
    if k_shot:
        rows["few_shot"] = {"few_shot": 1.0}
        rows["all + few_shot"] = {**dict.fromkeys(heads, 1 / len(heads)), "few_shot": 1.0}
    means: Table = {}
    for row, weights in rows.items():
        values = [predictions.metrics(weights) for predictions in all_predictions]
        means[row] = {key: float(np.mean([value[key] for value in values])) for key in values[0]}
    return means


def print_table(rows: Table, form: str = ".3f") -> None:
    """Print rows as a Markdown table."""
    columns = list(next(iter(rows.values())))
    print("| heads | " + " | ".join(columns) + " |\n|---|" + "---|" * len(columns))
    for name, values in rows.items():
        print(f"| {name} | " + " | ".join(format(value, form) for value in values.values()) + " |")


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--real", type=Path, nargs="*", default=[], help="category folders in the form of MVTec AD")
    parser.add_argument("--data", default="./datasets/SyntheticDefects", help="where procedural images are written")
    parser.add_argument("--backbone", default="builtin")
    parser.add_argument("--pretrained")
    parser.add_argument("--heads", nargs="+", help="default: those that ZsClip takes by itself")
    parser.add_argument("--k-shot", type=int, default=0)
    parser.add_argument("--seed", type=int, default=1, help="of the procedural images")
    parser.add_argument("--explain", action="store_true")
    parser.add_argument("--precision", default="float32", help="of the towers: float32, bf16, fp16 or auto")
    parser.add_argument("--drift", metavar="PRECISION", help="also print how every metric differs in this precision")
    parser.add_argument("--json", type=Path)
    arguments = parser.parse_args()

    sets: dict[str, list[MVTecAD]] = {"procedural": []}
    for name, category in CATEGORIES.items():
        if FAMILIES[category.family].held_out:
            sets["procedural"].append(
                SyntheticDefects(name, root=arguments.data, seed=arguments.seed, val_split_mode=ValSplitMode.NONE)
            )
    for folder in arguments.real:
        sets[folder.name] = [
            MVTecAD(folder.parent, folder.name, num_workers=0, val_split_mode=ValSplitMode.NONE, eval_batch_size=16)
        ]

    report: dict[str, Table] = {}
    for set_name, modules in sets.items():
        named: Counter = Counter()
        report[set_name] = means = measure(modules, set_name, arguments, arguments.precision, named)
        print(f"\n**{set_name}** ({len(modules)} categories, mean)\n")
        print_table(means)
        if arguments.drift:
            other = measure(modules, set_name, arguments, arguments.drift, Counter())
            report[f"{set_name}, {arguments.drift}"] = other
            print(f"\n**{set_name}**, {arguments.drift} minus {arguments.precision}\n")
            drift = {row: {key: other[row][key] - value for key, value in mean.items()} for row, mean in means.items()}
            print_table(drift, "+.4f")
        if arguments.explain and named:
            total = sum(named.values())
            right = sum(count for (kind, word), count in named.items() if kind == word)
            print(f"\nFirst word right: {right / total:.3f} of {total}; chance {1 / 16:.3f}\n")
            for kind in sorted({kind for kind, _ in named}):
                words = Counter({word: count for (k, word), count in named.items() if k == kind})
                print(f"  {kind:15s}", ", ".join(f"{word} {count}" for word, count in words.most_common(5)))
    if arguments.json:
        arguments.json.write_text(json.dumps(report, indent=1))


if __name__ == "__main__":
    main()
