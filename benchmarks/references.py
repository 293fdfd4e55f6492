"""How many unlabelled references it takes: accuracy, decisions and cost of text, mutual scoring and both.

    python benchmarks/references.py
    python benchmarks/references.py --real path/to/magnetic_tile --references 8 16 32 48 64
    python benchmarks/references.py --products terrazzo dial --mixed dial board --references 32 --shares 0.3 0.5 0.7

``--mixed`` makes folders in which each picture shows another product of a family. One row per data set and number of
references: AUROC per image and pixel (the test images are their own references, labels are only read for the metrics),
how badly the folder fits together (beside maxima / beside reach), the share of mutual scoring, false alarms and misses of
the folder's own threshold, and the time per image beside that without references. Prints Markdown and writes JSON.
"""

from __future__ import annotations

import argparse
import json
import shutil
import time
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import torch
from anomalib.data import MVTecAD
from anomalib.data.utils import ValSplitMode
from sklearn.metrics import roc_auc_score
from tqdm.auto import tqdm

from anomalib_zsclip import MuSc, SyntheticDefects, ZsClip
from anomalib_zsclip.data import generator
from anomalib_zsclip.images import NormalImages
from anomalib_zsclip.models.folder_references import fill
from anomalib_zsclip.outputs.thresholds import threshold_from_folder

PRODUCTS = ("solar_cell", "terrazzo", "capsule", "dial", "zipper", "knit")
Row = dict[str, Any]


def write_mixed(root: Path, family: str, count: int = 22) -> Path:
    """A folder of so many good and defective pictures, each of a product of its own, in the form of MVTec AD."""
    folder = root / f"{family}_mixed"
    shutil.rmtree(folder, ignore_errors=True)
    rng = np.random.default_rng(0)
    kinds = generator.DEFECTS.items()
    fitting = [
        name for name, kind in kinds if kind.on in ("any", generator.FAMILIES[family].kind) and not kind.held_out
    ]
    for index in range(2 * count):
        defect = str(rng.choice(fitting)) if index % 2 else None
        sample = generator.generate(family, defect, 192, rng)
        pictures = {f"test/{'defect' if defect else 'good'}/{index:03}.png": sample.image[..., ::-1]}
        if defect:
            pictures[f"ground_truth/defect/{index:03}_mask.png"] = sample.mask
        else:
            pictures[f"train/good/{index:03}.png"] = sample.image[..., ::-1]  # anomalib wants some; nothing is trained
        for name, picture in pictures.items():
            (folder / name).parent.mkdir(parents=True, exist_ok=True)
            cv2.imwrite(str(folder / name), picture)
    return folder


@torch.no_grad()
def measure(model: ZsClip | MuSc, data: Any, references: int) -> Row:  # noqa: ANN401 - any data module
    """Judge all test images with so many of them as references; 0 for text alone."""
    dataset = data.test_data
    files = tuple(Path(path) for path in dataset.samples["image_path"])
    images = NormalImages(dataset, files, "the test images")
    detector, transform = model.model, model.pre_processor.transform
    detector.memory_bank.clear_unlabelled()
    if references:
        fill(detector, images, sorted(images.pick(references)), transform, quiet=True)
    scores, maps, masks, seconds = [], [], [], 0.0
    for index in range(len(files)):
        item = dataset[index]
        image = transform(item.image)[None]
        began = time.perf_counter()
        found = detector(image)
        seconds += time.perf_counter() - began
        scores.append(found.pred_score)
        maps.append(found.anomaly_map[:, ::2, ::2])
        mask = torch.zeros(item.image.shape[-2:]) if item.gt_mask is None else item.gt_mask.float()
        masks.append(torch.nn.functional.interpolate(mask[None, None], image.shape[-2:])[0, :, ::2, ::2] > 0.5)
    labels = torch.tensor(dataset.samples["label_index"].to_numpy()).bool()
    score = torch.cat(scores)
    row = {
        "references": references,
        "image AUROC": roc_auc_score(labels, score),
        "pixel AUROC": roc_auc_score(torch.cat(masks).flatten(), torch.cat(maps).flatten()),
        "ms per image": 1000 * seconds / len(files),
    }
    if references:
        flagged = score > threshold_from_folder(detector.mutual.own_scores, 0.1)
        row |= {
            "misfit": " / ".join(f"{measure:.2f}" for measure in detector.mutual.misfit),
            "share": float(detector.mutual.fitted_share),
            "false alarms": float(flagged[~labels].float().mean()),
            "misses": float((~flagged[labels]).float().mean()),
        }
    return row


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--real", type=Path, nargs="*", default=[], help="category folders in the form of MVTec AD")
    parser.add_argument("--products", nargs="*", default=PRODUCTS, help="categories of SyntheticDefects")
    parser.add_argument("--data", default="./datasets/SyntheticDefects", help="where procedural images are written")
    parser.add_argument("--backbone", default="builtin")
    parser.add_argument("--pretrained")
    parser.add_argument("--references", type=int, nargs="*", default=[8, 16, 32, 48])
    parser.add_argument("--models", nargs="*", default=["ZsClip", "MuSc"])
    parser.add_argument("--mixed", nargs="*", default=[], help="families, each picture of another product")
    parser.add_argument(
        "--shares", type=float, nargs="*", default=[], help="of mutual scoring, besides the folder's own"
    )
    parser.add_argument("--per-defect", type=int, default=4, help="defective pictures of each kind, of --products")
    parser.add_argument("--json", type=Path)
    arguments = parser.parse_args()

    split = ValSplitMode.NONE
    sizes = {"image_size": 192, "num_test_per_defect": arguments.per_defect}
    sets: list[tuple[str, Any]] = [
        (name, SyntheticDefects(name, root=arguments.data, val_split_mode=split, **sizes))
        for name in arguments.products
    ]
    folders = [*(write_mixed(Path(arguments.data).parent, family) for family in arguments.mixed), *arguments.real]
    sets += [(path.name, MVTecAD(path.parent, path.name, num_workers=0, val_split_mode=split)) for path in folders]
    report: dict[str, Row] = {}
    for name, data in sets:
        data.prepare_data()
        data.setup()
        for kind in arguments.models:
            arguments_of = {"backbone": arguments.backbone, "pretrained": arguments.pretrained, "evaluator": False}
            model = ZsClip(**arguments_of) if kind == "ZsClip" else MuSc(**arguments_of)
            if kind == "ZsClip":
                model.prepare()
            counts = [*([0] if kind == "ZsClip" else []), *arguments.references]
            for count in tqdm(counts, desc=f"{name}, {kind}", leave=False):
                for share in [None, *(arguments.shares if kind == "ZsClip" and count else [])]:
                    model.model.mutual.share = share
                    given = "" if share is None else f", share {share}"
                    report[f"{name}, {kind}{given}, {count}"] = measure(model, data, count)
    columns = ("references", "image AUROC", "pixel AUROC", "misfit", "share", "false alarms", "misses", "ms per image")
    print("| data, model | " + " | ".join(columns) + " |\n|---|" + "---|" * len(columns))
    for name, row in report.items():
        cells = [f"{row[key]:.3f}" if isinstance(row.get(key), float) else str(row.get(key, "")) for key in columns]
        print(f"| {name.rsplit(', ', 1)[0]} | " + " | ".join(cells) + " |")
    if arguments.json:
        arguments.json.write_text(json.dumps(report, indent=1))


if __name__ == "__main__":
    main()
