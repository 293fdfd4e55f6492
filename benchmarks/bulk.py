"""A folder of many images through `anomalib predict`, pictures and scores written, beside the model alone.

    python benchmarks/bulk.py                       # 1,000 images of 128 px, the built-in backbone
    python benchmarks/bulk.py --count 300 --model RandomWordClip

Prints a table and writes ``bulk.json``: images per second of the command (after the first 100, so that the start does not
count) and of the model alone on images in memory, before and after it, with the same number of threads; the resident
memory of the command after 100 images and its largest value from then on.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import time
from pathlib import Path
from tempfile import TemporaryDirectory

import torch
from speed import Row, describe_machine, print_table, resident_megabytes

import anomalib_zsclip
from anomalib_zsclip import SyntheticDefects
from anomalib_zsclip.data.synthetic_defects import CATEGORIES

WARM_UP = 100
"""Images that do not count."""


def make_images(root: Path, count: int, side: int) -> Path:
    """A folder of ``count`` small photographs, half of them with a defect."""
    defects = len(CATEGORIES["solar_cell"].defects)
    data = SyntheticDefects(
        "solar_cell", side, num_train=1, num_test_good=count // 2, num_test_per_defect=count // 2 // defects, root=root
    )
    data.prepare_data()
    return data.folder / "test"


def model_alone(name: str, count: int = 60) -> float:
    """Images per second of the model, one by one, images in memory."""
    model = getattr(anomalib_zsclip, name)(backbone="builtin").eval()
    model.prepare()
    side = model.model.backbone.image_size
    images = torch.rand(count, 1, 3, side, side)
    with torch.inference_mode():
        for image in images[:10]:
            model.model.explain(image)
        began = time.perf_counter()
        for image in images:
            model.model.explain(image)
    return count / (time.perf_counter() - began)


def command(name: str, folder: Path, results: Path, count: int) -> Row:
    """Run the command and watch its table of scores grow."""
    arguments = ["predict", "--model", name, "--model.backbone", "builtin", "--data", str(folder)]
    program = Path(sys.executable).with_name("anomalib")
    log = results.parent / "log.txt"
    with log.open("w") as output:
        process = subprocess.Popen(
            [str(program), *arguments, "--default_root_dir", str(results)], stdout=output, stderr=subprocess.STDOUT
        )
        table, marks, memory = None, [], []
        while process.poll() is None:
            time.sleep(0.05)
            table = table or next(results.rglob("predictions.csv"), None)
            if table is None:
                continue
            done = table.read_bytes().count(b"\n") - 1
            if done >= WARM_UP:
                marks.append((time.perf_counter(), done))
                memory.append(resident_megabytes("VmRSS", process.pid) or float("nan"))
    if process.returncode or not marks or marks[-1][1] < count:
        sys.exit(f"The command failed:\n{log.read_text()[-3000:]}")
    end = next(when for when, done in marks if done >= count)
    pictures = sum(1 for _ in results.rglob("*.png"))
    return {
        "images/s": (count - marks[0][1]) / (end - marks[0][0]),
        "pictures": pictures,
        "MB after 100": memory[0],
        "MB at most": max(memory[:-1] or memory),
    }


def main() -> None:
    """Measure."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default="ZsClip")
    parser.add_argument("--count", type=int, default=1000, help="of the images, a multiple of 10")
    parser.add_argument("--side", type=int, default=128, help="of the image files, in pixels")
    parser.add_argument("--output", type=Path, default=Path("bulk.json"))
    arguments = parser.parse_args()
    if arguments.count <= WARM_UP or arguments.count % 10:
        parser.error(
            f"--count {arguments.count} must be a multiple of 10 above {WARM_UP}: the first {WARM_UP} do not count."
        )
    with TemporaryDirectory() as scratch:
        folder, results = make_images(Path(scratch, "data"), arguments.count, arguments.side), Path(scratch, "results")
        results.mkdir()
        before = model_alone(arguments.model)
        row = command(arguments.model, folder, results, arguments.count)
        after = model_alone(arguments.model)
    alone = (before + after) / 2
    row = {"model": arguments.model, **row, "alone, images/s": alone, "share": row["images/s"] / alone}
    print_table("prediction in bulk", [row])
    arguments.output.write_text(
        json.dumps({"machine": describe_machine(torch.get_num_threads()), "bulk": row}, indent=2)
    )
    print(f"\nWritten to {arguments.output}.")


if __name__ == "__main__":
    main()
