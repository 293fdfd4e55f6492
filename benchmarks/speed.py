"""Speed and memory of the detectors, beside a plain CLIP tower and anomalib's WinCLIP in the same run.

    python benchmarks/speed.py             # everything that this machine can do, in some ten minutes
    python benchmarks/speed.py --quick     # the built-in backbone alone, in a minute or two

Prints tables and writes ``speed.json``. The weights are random where a size is not the built-in one: times do not depend
on them. Times are medians of rounds in which all candidates take turns, so that a busy machine slows all of them alike;
the ratios are medians of the ratios within a round.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any
from unittest import mock

import torch
from processes import Row, work

from anomalib_zsclip.benchmark.timing import describe_machine, ratio, take_turns
from anomalib_zsclip.check.candidates import (
    DETECTORS,
    PLAIN,
    SIZES,
    SLOW,
    WINCLIP,
    make_candidates,
    make_clip,
    make_detector,
)
from anomalib_zsclip.clip import ClipBackbone
from anomalib_zsclip.heads.anomaly_clip import AnomalyClipHead
from anomalib_zsclip.heads.base import LearnableHead
from anomalib_zsclip.heads.crane import CraneHead
from anomalib_zsclip.heads.random_word import RandomWordHead
from anomalib_zsclip.heads.sdp import SdpHead
from anomalib_zsclip.heads.sdp_plus import SdpPlusHead

SECTIONS = ("inference", "memory", "import", "cold", "text", "learning", "compile")


# ---------------------------------------------------------------------- sections
def measure_inference(arguments: argparse.Namespace) -> list[Row]:
    """Time per image of every model, beside the plain tower and WinCLIP."""
    rows = []
    for device in arguments.devices:
        for size in arguments.sizes:
            for precision in arguments.precisions:
                if precision == "fp16" and device == "cpu":
                    continue
                for batch in arguments.batches:
                    if size == "ViT-L-14-336" and batch > 1 and device == "cpu":
                        continue
                    print(f"{device}, {size}, {precision}, batch {batch} ...", file=sys.stderr)
                    rows += _inference_rows(arguments, device, size, precision, batch)
    return rows


def _inference_rows(arguments: argparse.Namespace, device: str, size: str, precision: str, batch: int) -> list[Row]:
    fast = [name for name in DETECTORS if name not in SLOW]
    if size == "ViT-L-14-336" and device == "cpu":
        fast = ["AnomalyClip", "AnomalyClip crane", "ZsClip, all heads"]
    groups = [fast]
    if batch == 1 and size != "ViT-L-14-336" and precision == "float32":
        # Apart, so that the fast ones have many rounds.
        groups.append(["RandomWordClip", *SLOW])
    rows = []
    for models in groups:
        times = take_turns(make_candidates(size, models, precision, batch, device), arguments.seconds, device)
        rows += _rows_of_group(times, device, size, precision, batch)
    return rows


def _rows_of_group(times: dict[str, list[float]], device: str, size: str, precision: str, batch: int) -> list[Row]:
    rows = []
    for name, values in times.items():
        median = statistics.median(values)
        row = {
            "device": device,
            "size": f"{size} @ {SIZES[size][1]}",
            "precision": precision,
            "batch": batch,
            "model": name,
            "ms_per_image": 1000 * median / batch,
            "of_plain": ratio(values, times[PLAIN]),
            "rounds": len(values),
        }
        if WINCLIP in times:
            row["times_faster_than_winclip"] = ratio(times[WINCLIP], values)
        rows.append(row)
    return rows


def measure_memory(arguments: argparse.Namespace) -> list[Row]:
    """Memory of a process that scores one batch."""
    rows = []
    for size in arguments.sizes:
        models = [PLAIN, "ClipAd SDP", "ZsClip, all heads", "RandomWordClip, windows", WINCLIP]
        if size == "ViT-L-14-336":
            models = [PLAIN, "AnomalyClip"]
        rows += [
            work("memory", size=size, model=name, batch=1, threads=arguments.threads, pixels=SIZES[size][1])
            for name in models
        ]
    return rows


def measure_import(arguments: argparse.Namespace) -> list[Row]:
    """What the plugin adds to the import of anomalib's models."""
    with mock.patch.dict(os.environ, {"ANOMALIB_ZSCLIP_DISABLE": "1"}):
        runs = [work("import") for _ in range(2 if arguments.quick else 5)]
    return [{name: statistics.median(run[name] for run in runs) for name in ("anomalib_s", "plugin_s")}]


def measure_cold(arguments: argparse.Namespace) -> list[Row]:
    """Start of a process to its first score; first with an empty text cache, then with a filled one."""
    rows = []
    for model in ("ZsClip",) if arguments.quick else ("RandomWordClip", "ZsClip"):
        with tempfile.TemporaryDirectory() as folder, mock.patch.dict(os.environ, {"ANOMALIB_ZSCLIP_CACHE": folder}):
            for cache in ("cold", "warm"):
                start = time.perf_counter()
                row = work("cold", model=model, threads=arguments.threads)
                rows.append({"model": model, "text_cache": cache, **row, "process_s": time.perf_counter() - start})
    return rows


def measure_text(arguments: argparse.Namespace) -> list[Row]:
    """Set-up of the text side with an empty and with a filled cache."""
    rows = []
    for size in arguments.sizes:
        if size == "ViT-L-14-336":
            continue
        backbone = ClipBackbone(make_clip(size))
        recipes: dict[str, Callable[[], Any]] = {
            "RandomWordClip": lambda backbone=backbone: RandomWordHead(backbone.embed_dim),
            "ClipAd SDP": lambda backbone=backbone: SdpHead(backbone),
        }
        for name, make in recipes.items():
            row: Row = {"size": size, "model": name}
            with tempfile.TemporaryDirectory() as folder, mock.patch.dict(os.environ, ANOMALIB_ZSCLIP_CACHE=folder):
                for cache in ("cold", "warm"):
                    start = time.perf_counter()
                    make().setup(backbone, "bottle")
                    row[f"{cache}_s"] = time.perf_counter() - start
            rows.append(row)
    return rows


def measure_learning(arguments: argparse.Namespace) -> list[Row]:
    """Time per epoch of 16 images with the tower in every epoch, and from cached tokens; and of all the paper's epochs.

    The whole with the cache holds the one pass that fills it. Without it the tower is ours, too: the programs of the
    papers, whose towers are slower and encode texts to their full length, take longer than that.
    """
    count, batch = 16, 8
    rows = []
    for size in arguments.sizes:
        if size == "ViT-L-14-336":
            continue
        backbone, side = ClipBackbone(make_clip(size)), SIZES[size][1]
        images, masks = torch.rand(count, 3, side, side), (torch.rand(count, side, side) > 0.9).float()
        heads: dict[str, tuple[LearnableHead, int]] = {
            "ClipAd SDP+": (SdpPlusHead(SdpHead(backbone), backbone), 5),
            "AnomalyClip": (AnomalyClipHead(learn=True), 15),
            "AnomalyClip crane": (CraneHead(learn=True), 5),
        }
        for name, (head, epochs) in heads.items():
            head.setup(backbone, "object")
            optimizer = head.configure_optimizer()

            def tokens(part: slice, head: LearnableHead = head) -> dict[str, torch.Tensor]:
                with torch.no_grad():
                    features = backbone.forward_intermediates(images[part], head.request(backbone))  # noqa: B023
                    return head.learning_inputs(features, backbone, ["object"] * len(features.class_token))  # noqa: B023

            def epoch(inputs: Callable[[slice], dict[str, torch.Tensor]]) -> float:
                start = time.perf_counter()
                for first in range(0, count, batch):
                    part = slice(first, first + batch)
                    labels = torch.arange(batch) % 2
                    loss = head.learning_loss(backbone, inputs(part), masks[part], labels)["loss"]  # noqa: B023
                    optimizer.zero_grad()  # noqa: B023
                    loss.backward()
                    optimizer.step()  # noqa: B023
                return time.perf_counter() - start

            tokens(slice(0, 1))
            without = min(epoch(tokens) for _ in range(2))
            start = time.perf_counter()
            cache = {first: tokens(slice(first, first + batch)) for first in range(0, count, batch)}
            filling = time.perf_counter() - start
            cached = min(epoch(lambda part, cache=cache: cache[part.start]) for _ in range(3))
            whole_without, whole_cached = epochs * without, filling + epochs * cached
            rows.append(
                {
                    "size": size,
                    "model": name,
                    "images": count,
                    "epoch_without_cache_s": without,
                    "epoch_with_cache_s": cached,
                    "times_faster": without / cached,
                    "epochs": epochs,
                    "whole_without_cache_s": whole_without,
                    "whole_with_cache_s": whole_cached,
                    "whole_times_faster": whole_without / whole_cached,
                }
            )
    return rows


def measure_compile(arguments: argparse.Namespace) -> list[Row]:
    """A detector as it is, and after ``torch.compile``."""
    rows = []
    for size in arguments.sizes:
        if size == "ViT-L-14-336":
            continue
        detector = make_detector("ZsClip, all heads", make_clip(size))
        images = torch.rand(1, 3, SIZES[size][1], SIZES[size][1])
        compiled = torch.compile(detector)
        row: Row = {"size": size, "model": "ZsClip, all heads"}
        try:
            start = time.perf_counter()
            with torch.no_grad():
                compiled(images)
            row["compile_s"] = time.perf_counter() - start
            times = take_turns({"eager": lambda: detector(images), "compiled": lambda: compiled(images)}, 10)  # noqa: B023
            row |= {f"{name}_ms": 1000 * statistics.median(values) for name, values in times.items()}
        except Exception as error:
            row["error"] = f"{type(error).__name__}: {str(error).strip().splitlines()[0]}"
        rows.append(row)
    return rows


MEASURES: dict[str, Callable[[argparse.Namespace], list[Row]]] = {
    "inference": measure_inference,
    "memory": measure_memory,
    "import": measure_import,
    "cold": measure_cold,
    "text": measure_text,
    "learning": measure_learning,
    "compile": measure_compile,
}


# ---------------------------------------------------------------------- output
def print_table(title: str, rows: Sequence[Row]) -> None:
    """Print rows as a Markdown table."""
    columns = list(dict.fromkeys(name for row in rows for name in row))
    cells = [[_cell(row.get(name, "")) for name in columns] for row in rows]
    widths = [max(len(name), *(len(line[index]) for line in cells)) for index, name in enumerate(columns)]
    print(f"\n## {title}\n")
    for line in (columns, ["-" * width for width in widths], *cells):
        print("| " + " | ".join(cell.ljust(width) for cell, width in zip(line, widths, strict=True)) + " |")
    sys.stdout.flush()


def _cell(value: object) -> str:
    return (
        f"{value:.3g}"
        if isinstance(value, float) and abs(value) < 100
        else f"{value:.0f}"
        if isinstance(value, float)
        else str(value)
    )


def main() -> None:
    """Run the sections."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="the built-in backbone alone, few rounds")
    parser.add_argument("--sections", nargs="+", choices=SECTIONS, default=SECTIONS)
    parser.add_argument("--sizes", nargs="+", choices=list(SIZES), default=list(SIZES))
    parser.add_argument("--devices", nargs="+", choices=("cpu", "cuda"))
    parser.add_argument("--precisions", nargs="+", choices=("float32", "bf16", "fp16"), default=("float32", "bf16"))
    parser.add_argument("--batches", nargs="+", type=int, default=(1, 8))
    parser.add_argument("--seconds", type=float, default=20.0, help="time per group of candidates, at least 3 rounds")
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    parser.add_argument("--output", type=Path, default=Path("speed.json"))
    arguments = parser.parse_args()
    arguments.devices = arguments.devices or (["cpu", "cuda"] if torch.cuda.is_available() else ["cpu"])
    if arguments.quick:
        arguments.sizes, arguments.seconds = ["builtin"], 2.0
    torch.set_num_threads(arguments.threads)
    torch.manual_seed(0)
    results: Row = {"machine": describe_machine(arguments.threads)}
    print_table("machine", [results["machine"]])
    for section in arguments.sections:
        results[section] = MEASURES[section](arguments)
        print_table(section, results[section])
        arguments.output.write_text(json.dumps(results, indent=2))
    print(f"\nWritten to {arguments.output}.")


if __name__ == "__main__":
    main()
