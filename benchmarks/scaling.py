"""Time and memory against image size, batch, and the chunks of the window mode.

    python benchmarks/scaling.py            # all tables, on random weights
    python benchmarks/scaling.py --quick    # the built-in backbone alone

Each row is a process of its own: the first pass over one batch, with the memory that it needed beyond the loaded model.
Prints tables and writes ``scaling.json``.
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path

import torch
from processes import Row, work
from speed import print_table

from anomalib_zsclip.benchmark.timing import describe_machine
from anomalib_zsclip.check.candidates import PLAIN

SIDES = {"builtin": (128, 256, 512, 1032), "ViT-B-16-plus-240": (240, 480, 1040), "ViT-L-14-336": (518, 1036)}
"""Sides of the images in pixels: multiples of the patch."""

BATCHES = (1, 4, 16)
CHUNKS = (64, 256, 1024, 4096)


def measure_image_size(size: str, threads: int) -> list[Row]:
    """One image of growing size."""
    models = (PLAIN, "AnomalyClip") if size == "ViT-L-14-336" else (PLAIN, "ZsClip, all heads")
    return [
        work("memory", size=size, model=model, batch=1, threads=threads, pixels=side)
        for side in SIDES[size]
        for model in models
    ]


def measure_batch(size: str, threads: int) -> list[Row]:
    """Batches of native size."""
    return [
        work("memory", size=size, model="ZsClip, all heads", batch=batch, threads=threads, pixels=SIDES[size][0])
        for batch in BATCHES
    ]


def measure_chunks(size: str, threads: int) -> list[Row]:
    """Window mode, with more and fewer windows at a time."""
    arguments = {"model": "RandomWordClip, windows", "batch": 4, "threads": threads, "pixels": SIDES[size][0]}
    return [work("memory", size=size, window_chunk=chunk, **arguments) for chunk in CHUNKS]


def main() -> None:
    """Measure."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="the built-in backbone alone")
    parser.add_argument("--sizes", nargs="+", choices=list(SIDES), default=list(SIDES))
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    parser.add_argument("--output", type=Path, default=Path("scaling.json"))
    arguments = parser.parse_args()
    sizes = ["builtin"] if arguments.quick else arguments.sizes
    results: Row = {"machine": describe_machine(arguments.threads)}
    for name, measure in (("image size", measure_image_size), ("batch", measure_batch), ("chunks", measure_chunks)):
        sizes_of_table = sizes if name == "image size" else [size for size in sizes if size != "ViT-L-14-336"]
        results[name] = [row for size in sizes_of_table for row in measure(size, arguments.threads)]
        print_table(name, results[name])
        arguments.output.write_text(json.dumps(results, indent=2))
    print(f"\nWritten to {arguments.output}.")


if __name__ == "__main__":
    main()
