"""The papers' protocol in small, before the long run: every model of ``zero_shot.yaml``, every category, made-up pictures.

    python benchmarks/rehearsal.py --output rehearsal                  # all models, 1 category of each data set, stand-ins
    python benchmarks/rehearsal.py --output rehearsal --categories 0   # all 27 categories
    python benchmarks/rehearsal.py --output rehearsal --as-configured  # your weights, your GPU, 6 pictures of each category

Writes pictures in the folders of MVTec AD and VisA, runs ``anomalib benchmark`` on them and makes the leaderboard. Unless
``--as-configured`` is given, the built-in CLIP stands for every published one, on the CPU, and the leaderboard names rows as
the configuration does, so that published rows and verdicts are seen. WinClip and AnomalyVFM have no stand-in. No
number of a rehearsal means anything. Ends with exit status 1 and the list of jobs without a complete row, if there are any.
"""

from __future__ import annotations

import argparse
import subprocess
import sys
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pandas as pd
import yaml
from anomalib.pipelines.components.utils import get_iterator_from_grid_dict

from anomalib_zsclip.benchmark.leaderboard import main as make_leaderboard
from anomalib_zsclip.benchmark.results import COSTS, deviation_columns, metric_columns
from anomalib_zsclip.data.generator import generate
from anomalib_zsclip.data.synthetic_defects import CATEGORIES as PRODUCTS

CONFIG = Path(__file__).parents[1] / "configs" / "benchmark" / "zero_shot.yaml"
OF_THE_PAPERS = ("backbone", "pretrained", "checkpoint")
"""Arguments that name weights of the papers."""


def write_pictures(folder: Path, number: int, bad: str, ending: str, side: int) -> None:
    """A category in the form of MVTec AD, with 2 good training images and 3 + 3 test images; kept if it is there."""
    if folder.is_dir():
        return
    product = list(PRODUCTS.values())[number % len(PRODUCTS)]
    rng = np.random.default_rng(number)
    for place, defect in (("train/good", None), ("test/good", None), (f"test/{bad}", product.defects[0])):
        for index in range(2 if place == "train/good" else 3):  # MuSc compares 5 images at least
            sample = generate(product.family, defect, side, rng, style=number, wild=0.2)
            save(folder / place / f"{index:03d}.{ending}", cv2.cvtColor(sample.image, cv2.COLOR_RGB2BGR))
            if defect is not None:
                suffix = "_mask" if ending == "png" else ""  # VisA's masks have the names of its images
                save(folder / "ground_truth" / bad / f"{index:03d}{suffix}.png", sample.mask)


def save(path: Path, pixels: np.ndarray) -> None:
    """Write a picture, with its folder."""
    path.parent.mkdir(parents=True, exist_ok=True)
    cv2.imwrite(str(path), pixels)


def stand_in(model: dict[str, Any]) -> dict[str, Any]:
    """A model of the configuration with the built-in CLIP and the weights that are shipped for it."""
    own = model["init_args"]
    if own["model"] == "Patchcore":
        return {**model, "init_args": {**own, "arguments": [{"backbone": "resnet18", "pre_trained": False}]}}
    merged = {key: value for part in own["arguments"] for key, value in part.items()}
    kept = {key: value for key, value in merged.items() if key not in OF_THE_PAPERS}
    arguments = [{"backbone": "builtin", **kept}] if "backbone" in merged else own["arguments"]
    return {**model, "init_args": {**own, "arguments": arguments}}


def rehearse(options: argparse.Namespace) -> list[str]:
    """Run it all; the jobs without a complete row."""
    output = options.output.resolve()
    config = yaml.safe_load(CONFIG.read_text(encoding="utf-8"))
    benchmark = config["benchmark"]
    models = [
        entry
        for entry in benchmark["model"]["grid"]
        if not options.models or entry["init_args"]["model"] in options.models
    ]
    taken: dict[str, int] = {}
    data = []
    for number, entry in enumerate(benchmark["data"]["grid"]):
        name, category = entry["class_path"], entry["init_args"]["category"]
        taken[name] = taken.get(name, 0) + 1
        if options.categories and taken[name] > options.categories:
            continue
        root = output / "datasets" / name
        if name == "Visa":
            write_pictures(root / "visa_pytorch" / category, number, "bad", "JPG", options.side)
        else:
            write_pictures(root / category, number, "broken", "png", options.side)
        data.append({**entry, "init_args": {"root": str(root), "category": category, "num_workers": 0}})
    run_models = models if options.as_configured else [stand_in(entry) for entry in models]
    config["accelerator"] = config["accelerator"] if options.as_configured else "cpu"
    config["benchmark"] = {**benchmark, "model": {"grid": run_models}, "data": {"grid": data}}
    (output / "rehearsal.yaml").write_text(yaml.safe_dump(config, sort_keys=False, width=1000), encoding="utf-8")
    before = set(output.glob("runs/benchmark/*/results.csv"))
    command = [str(Path(sys.executable).parent / "anomalib"), "benchmark", "--config", "rehearsal.yaml"]
    subprocess.run(command, cwd=output, check=True)
    written = sorted(set(output.glob("runs/benchmark/*/results.csv")) - before)
    if not written:
        return [f"all of them: no results.csv in {output / 'runs' / 'benchmark'}"]
    results = pd.read_csv(written[-1])
    missing = incomplete(results, get_iterator_from_grid_dict(config["benchmark"]))
    names = {
        (run["init_args"]["model"], str(run["init_args"]["arguments"])): str(own["init_args"]["arguments"])
        for run, own in zip(run_models, models, strict=True)
    }
    columns = ["model.init_args.model", "model.init_args.arguments"]
    results[columns[1]] = [names[model, arguments] for model, arguments in results[columns].itertuples(index=False)]
    results.to_csv(output / "results.csv", index=False)
    make_leaderboard([str(output / "results.csv"), "--output", str(output)])
    for name, heading in (("leaderboard.md", "# Leaderboard"), ("leaderboard.html", "<h1>Leaderboard")):
        text = (output / name).read_text(encoding="utf-8")
        said = f"{heading} of a rehearsal: no number measured here means anything"
        (output / name).write_text(text.replace(heading, said, 1), encoding="utf-8")
    return missing


def incomplete(results: pd.DataFrame, jobs: Iterable[dict[str, Any]]) -> list[str]:
    """Jobs without a row, or with a row that lacks a number."""
    columns = [*metric_columns(results), *deviation_columns(results), *(name for name in COSTS if name in results)]
    keys = ["model.init_args.model", "model.init_args.arguments", "data.class_path", "data.init_args.category"]
    rows = {
        tuple(map(str, row[keys])): [name for name in columns if pd.isna(row[name])] for _, row in results.iterrows()
    }
    found = []
    for job in jobs:
        model, data = job["model"]["init_args"], job["data"]
        key = (model["model"], str(model["arguments"]), data["class_path"], data["init_args"]["category"])
        lacking = rows.get(key, ["the row"])
        if lacking:
            found.append(f"{' '.join(key)}: without {', '.join(lacking)}")
    return found


def main() -> None:
    """Rehearse, and say what is missing."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument(
        "--output", type=Path, default=Path("rehearsal"), help="folder for pictures, results, leaderboard"
    )
    parser.add_argument("--categories", type=int, default=1, help="categories of each data set; 0 for all")
    parser.add_argument(
        "--models", nargs="*", default=[], help="classes of the configuration to run; all without a name"
    )
    parser.add_argument("--side", type=int, default=96, help="side of the pictures in pixels")
    parser.add_argument("--as-configured", action="store_true", help="the configuration's own weights and accelerator")
    missing = rehearse(parser.parse_args())
    print("\n".join(missing) if missing else "Every job has a complete row.")
    sys.exit(1 if missing else 0)


if __name__ == "__main__":
    main()
