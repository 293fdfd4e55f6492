"""A folder of many images through `anomalib predict`, pictures and scores written, beside the model alone.

    python benchmarks/bulk.py                       # 1,000 images of 192 px, the built-in backbone
    python benchmarks/bulk.py --count 300 --tiles 2 --unlabelled 48

Prints a table and writes ``bulk.json``: images per second of the command (after the first 100, so that the start does not
count) and of the model alone on images in memory, one by one and in batches of the command's size, before and after it,
with the same number of threads; the memory of the command and its reading processes (pages that they share are counted
once; Linux) after 100 images and its largest value from then on.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import time
from contextlib import suppress
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import torch
from speed import Row, print_table

import anomalib_zsclip
from anomalib_zsclip import SyntheticDefects
from anomalib_zsclip.benchmark.timing import describe_machine
from anomalib_zsclip.data.synthetic_defects import CATEGORIES
from anomalib_zsclip.images.read_ahead import BATCH_SIZE

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


def model_alone(model: Any, batch_size: int, count: int = 64) -> float:  # noqa: ANN401 - one of our models
    """Images per second of the model on images in memory."""
    with torch.inference_mode():
        batches = model.pre_processor.transform(torch.rand(count, 3, *model.input_size)).split(batch_size)
        for batch in batches[: max(1, 16 // batch_size)]:
            model.model.explain(batch)
        began = time.perf_counter()
        for batch in batches:
            model.model.explain(batch)
    return count / (time.perf_counter() - began)


def megabytes(process: int) -> float:
    """Memory of a process and of those that it started, shared pages counted once."""
    children = [int(c) for task in Path(f"/proc/{process}/task").glob("*/children") for c in task.read_text().split()]
    entries = Path(f"/proc/{process}/smaps_rollup").read_text().splitlines()
    own = next(int(line.split()[1]) for line in entries if line.startswith("Pss:"))
    return own / 1024 + sum(map(megabytes, children))


def command(name: str, model: dict[str, Any], folder: Path, results: Path, count: int) -> Row:
    """Run the command and watch its table of scores grow."""
    arguments = ["predict", "--model", name, "--data", str(folder)]
    arguments += [f"--model.{argument}={value}" for argument, value in model.items()]
    program = Path(sys.executable).with_name("anomalib")
    log = results.parent / "log.txt"
    with log.open("w") as output:
        process = subprocess.Popen(
            [str(program), *arguments, "--default_root_dir", str(results)], stdout=output, stderr=subprocess.STDOUT
        )
        table, marks, memory = None, [], []
        while process.poll() is None:
            time.sleep(0.1)
            table = table or next(results.rglob("predictions.csv"), None)
            if table is None:
                continue
            done = table.read_bytes().count(b"\n") - 1
            if done >= WARM_UP:
                marks.append((time.perf_counter(), done))
                if done < count and len(marks) % 50 == 1:  # every five seconds: to count pages holds the process up
                    with suppress(OSError, StopIteration):  # not Linux, or a process that has just ended
                        memory.append(megabytes(process.pid))
    if process.returncode or not marks or marks[-1][1] < count:
        sys.exit(f"The command failed:\n{log.read_text()[-3000:]}")
    end = next(when for when, done in marks if done >= count)
    pictures = sum(1 for _ in results.rglob("*.png"))
    return {
        "images/s": (count - marks[0][1]) / (end - marks[0][0]),
        "pictures": pictures,
        "MB after 100": memory[0] if memory else float("nan"),
        "MB at most": max(memory, default=float("nan")),
    }


def main() -> None:
    """Measure."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default="ZsClip")
    parser.add_argument("--count", type=int, default=1000, help="of the images, a multiple of 10")
    parser.add_argument("--side", type=int, default=192, help="of the images, in pixels")
    parser.add_argument("--tiles", type=int, default=1, help="along each side of an image")
    parser.add_argument("--unlabelled", type=int, default=0, help="images of the folder to compare with")
    parser.add_argument("--output", type=Path, default=Path("bulk.json"))
    arguments = parser.parse_args()
    if arguments.count <= WARM_UP or arguments.count % 10:
        parser.error(
            f"--count {arguments.count} must be a multiple of 10 above {WARM_UP}: the first {WARM_UP} do not count."
        )
    with TemporaryDirectory() as scratch:
        folder, results = make_images(Path(scratch, "data"), arguments.count, arguments.side), Path(scratch, "results")
        results.mkdir()
        given: dict[str, Any] = {"backbone": "builtin", "image_size": arguments.side, "tiles": arguments.tiles}
        if arguments.unlabelled:
            given |= {"unlabelled": arguments.unlabelled, "unlabelled_dir": str(folder)}
        model = getattr(anomalib_zsclip, arguments.model)(**given).eval()
        model.prepare()
        before = [model_alone(model, size) for size in (1, BATCH_SIZE)]
        row = command(arguments.model, given, folder, results, arguments.count)
        after = [model_alone(model, size) for size in (1, BATCH_SIZE)]
    row = {"model": arguments.model, "tiles": arguments.tiles, "unlabelled": arguments.unlabelled, **row}
    for size, rates in zip((1, BATCH_SIZE), zip(before, after, strict=True), strict=True):
        alone = sum(rates) / 2
        row |= {f"alone by {size}, images/s": alone, f"share of it, by {size}": row["images/s"] / alone}
    print_table("prediction in bulk", [row])
    arguments.output.write_text(
        json.dumps({"machine": describe_machine(torch.get_num_threads()), "bulk": row}, indent=2)
    )
    print(f"\nWritten to {arguments.output}.")


if __name__ == "__main__":
    main()
