"""Accuracy and cost against the number of tiles: large procedural pictures with small defects, or folders of real ones.

    python benchmarks/tiles.py                                       # 2048 px, defects of some 8 to 64 px
    python benchmarks/tiles.py --real path/to/category --tiles 1 2 3 # a category in the form of MVTec AD
    python benchmarks/tiles.py --command                             # images/s of `anomalib predict` too

Prints a table and writes ``tiles.json``: AUROC of scores and of pixels (at the working size of each), the mean number of
views, milliseconds per picture (pre-processing included, reading not) and per view, and the largest memory of the process.
``--shares`` measures several shares of the tiles, each with passes of its own.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path
from tempfile import TemporaryDirectory
from types import SimpleNamespace
from typing import Any

import torch
from anomalib.data import MVTecAD
from anomalib.data.utils import ValSplitMode
from sklearn.metrics import roc_auc_score
from speed import Row, print_table
from tqdm.auto import tqdm

from anomalib_zsclip import SyntheticDefects, ZsClip
from anomalib_zsclip.benchmark.metrics import ExactAUROC
from anomalib_zsclip.benchmark.timing import describe_machine, peak_memory, reset_peak_memory
from anomalib_zsclip.data.generator import FAMILIES
from anomalib_zsclip.data.synthetic_defects import CATEGORIES

CPU = torch.device("cpu")
HELD_OUT = [name for name, product in CATEGORIES.items() if FAMILIES[product.family].held_out]
"""Products that the built-in CLIP never saw."""


def dataset(data: Any) -> Any:  # noqa: ANN401 - a data module's test set
    """The test images of a data module, as they lie on the disk."""
    data.prepare_data()
    data.setup()
    return data.test_data


def measure(model: ZsClip, images: Any, shares: list[float]) -> Row:  # noqa: ANN401
    """One row: all images by one model."""
    metrics = [ExactAUROC(fields=["anomaly_map", "gt_mask"]) for _ in shares]
    scores: list[list[float]] = [[] for _ in shares]
    labels, views, seconds = [], 0, 0.0
    reset_peak_memory(CPU)
    for index in tqdm(range(len(images)), leave=False):
        item = images[index]
        began = time.perf_counter()
        with torch.inference_mode():
            sheet, mask = model.pre_processor.transform(item.image, item.gt_mask)  # type: ignore[union-attr]
            sheet = sheet[None]
            grid = model.model.views.grid(sheet)
            prediction = model.model(sheet)
        seconds += time.perf_counter() - began
        views += 1 if grid == (1, 1) else 1 + grid[0] * grid[1]
        labels.append(int(item.gt_label))
        for share, metric, found in zip(shares, metrics, scores, strict=True):
            if len(shares) > 1:
                model.model.views = replace(model.model.views, tile_share=share)
                with torch.inference_mode():
                    prediction = model.model(sheet)
            found.append(float(prediction.pred_score))
            truth = torch.zeros_like(prediction.anomaly_map) if mask is None else mask[None]
            metric.update(SimpleNamespace(anomaly_map=prediction.anomaly_map, gt_mask=truth.int()))
    row: Row = {"views": views / len(images)}
    for share, metric, found in zip(shares, metrics, scores, strict=True):
        name = f" at {share}" if len(shares) > 1 else ""
        row |= {f"image AUROC{name}": roc_auc_score(labels, found), f"pixel AUROC{name}": float(metric.compute())}
    return row | {
        "ms/picture": 1000 * seconds / len(images),
        "ms/view": 1000 * seconds / views,
        "MB at most": peak_memory(CPU) / 2**20,
    }


def command(tiles: str, folder: Path) -> float:
    """Images per second of the command after the first picture."""
    with TemporaryDirectory() as results:
        program = Path(sys.executable).with_name("anomalib")
        arguments = ["predict", "--model", "ZsClip", "--model.backbone", "builtin", "--model.tiles", tiles]
        arguments += ["--data", str(folder), "--default_root_dir", results]
        process = subprocess.Popen([str(program), *arguments], stdout=subprocess.DEVNULL, stderr=subprocess.STDOUT)
        marks: list[tuple[float, int]] = []
        while process.poll() is None:
            time.sleep(0.05)
            table = next(Path(results).rglob("predictions.csv"), None)
            done = table.read_bytes().count(b"\n") - 1 if table else 0
            if done > (marks[-1][1] if marks else 0):
                marks.append((time.perf_counter(), done))
    if process.returncode or len(marks) < 2:
        sys.exit("The command failed, or the folder has too few pictures for a rate.")
    return (marks[-1][1] - marks[0][1]) / (marks[-1][0] - marks[0][0])


def main() -> None:
    """Measure."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--tiles", nargs="+", default=["1", "2", "3", "auto"])
    parser.add_argument("--max-tiles", type=int, default=64)
    parser.add_argument("--real", type=Path, help="a category in the form of MVTec AD, instead of procedural pictures")
    parser.add_argument("--categories", nargs="+", default=HELD_OUT[:4], choices=CATEGORIES)
    parser.add_argument("--size", type=int, default=2048, help="of procedural pictures, in pixels")
    parser.add_argument("--scale", type=float, default=1 / 16, help="of their defects")
    parser.add_argument("--count", type=int, default=10, help="good pictures, and as many with defects, of a category")
    parser.add_argument("--shares", type=float, nargs="+", default=[0.5], help="of the tiles")
    parser.add_argument("--command", action="store_true", help="time the command too")
    parser.add_argument("--output", type=Path, default=Path("tiles.json"))
    arguments = parser.parse_args()
    rows: list[Row] = []
    with TemporaryDirectory() as scratch:
        if arguments.real:
            root, name = arguments.real.parent, arguments.real.name
            sets = {name: MVTecAD(root=root, category=name, val_split_mode=ValSplitMode.NONE)}
        else:
            sets = {
                name: SyntheticDefects(
                    name, arguments.size, num_train=1, num_test_good=arguments.count, root=scratch,
                    num_test_per_defect=max(1, arguments.count // len(CATEGORIES[name].defects)),
                    val_split_mode=ValSplitMode.NONE, defect_scale=arguments.scale,
                )
                for name in arguments.categories
            }  # fmt: skip
        for name, data in sets.items():
            images = dataset(data)
            for tiles in arguments.tiles:
                number = int(tiles) if tiles.isdigit() else tiles
                model = ZsClip(
                    backbone="builtin", tiles=number, max_tiles=arguments.max_tiles, explain=False,
                    tile_share=arguments.shares[0],
                ).eval()  # fmt: skip
                model.prepare()
                row: Row = {"pictures": name, "tiles": tiles, **measure(model, images, arguments.shares)}
                if arguments.command:
                    row["command, images/s"] = command(tiles, Path(images.samples.image_path.iloc[0]).parents[1])
                rows.append(row)
                print_table(f"tiles, {name}", rows[-1:])
    print_table("tiles", rows)
    arguments.output.write_text(
        json.dumps({"machine": describe_machine(torch.get_num_threads()), "tiles": rows}, indent=2)
    )
    print(f"\nWritten to {arguments.output}.")


if __name__ == "__main__":
    main()
