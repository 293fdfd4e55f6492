"""Command ``python -m anomalib_zsclip.check``."""

from __future__ import annotations

import argparse
import json
import os
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path
from tempfile import TemporaryDirectory

os.environ.setdefault("HF_HUB_OFFLINE", "1")

import torch
from tabulate import tabulate
from tqdm.auto import tqdm

from anomalib_zsclip.benchmark.timing import describe_machine
from anomalib_zsclip.clip import ClipBackbone
from anomalib_zsclip.clip.backbone import PRECISIONS
from anomalib_zsclip.errors import ZsClipError
from anomalib_zsclip.models.arguments import resolve_precision

from .agreement import check_exports, check_learning, check_models, check_processes, make_pictures
from .candidates import SIZES
from .outcome import Outcome
from .speed import check_compilation, check_speed

CHECKS = ("agreement", "learning", "export", "processes", "speed", "compilation")


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the checks, print a table, write a file.

    Returns:
        Exit status: 1 where a check failed, else 0.
    """
    parser = argparse.ArgumentParser(
        prog="python -m anomalib_zsclip.check",
        description="Does this machine compute what it should, on every device, and how fast?",
    )
    gpu = torch.cuda.is_available()
    parser.add_argument("--checks", nargs="+", choices=CHECKS, default=CHECKS, help="default: all")
    parser.add_argument("--devices", nargs="+", choices=("cpu", "cuda"), help="default: all there are")
    parser.add_argument(
        "--precisions", nargs="+", choices=PRECISIONS,
        help="default: float32, and what precision='auto' takes on the device",
    )  # fmt: skip
    parser.add_argument("--backbone", default="builtin", help="of what is compared")
    parser.add_argument("--pretrained", help="its weights: a tag of open_clip or a file")
    parser.add_argument(
        "--sizes", nargs="+", choices=SIZES, default=list(SIZES) if gpu else ["builtin"],
        help="of what is timed, with random weights but for the built-in one; default: all on a GPU",
    )  # fmt: skip
    parser.add_argument("--batches", nargs="+", type=int, default=[1, 8])
    parser.add_argument("--seconds", type=float, default=5.0, help="for each group of models that is timed")
    parser.add_argument("--output", type=Path, default=Path("check.json"))
    options = parser.parse_args(arguments)
    if options.output.is_dir():
        parser.error(f"--output {options.output}: this is a folder; name a file.")
    devices = options.devices or (["cpu", "cuda"] if gpu else ["cpu"])
    if "cuda" in devices and not gpu:
        parser.error("--devices cuda: torch sees no GPU here.")
    torch.set_float32_matmul_precision("highest")  # no TF32, which is no float32
    torch.backends.cudnn.allow_tf32 = False
    try:
        outcomes = list(_progress(_all_checks(options, devices)))
    except ZsClipError as error:
        parser.exit(2, f"{error}\n")
    print(tabulate([_row(outcome) for outcome in outcomes], headers="keys", tablefmt="github", disable_numparse=True))
    for outcome in outcomes:
        if outcome.note:
            print(f"\n{outcome.state}: {outcome.check}, {outcome.what}, {outcome.where}: {outcome.note}")
    counts = {state: sum(outcome.state == state for outcome in outcomes) for state in ("passed", "FAILED", "skipped")}
    content = {
        "machine": describe_machine(torch.get_num_threads()),
        "checks": [{**outcome._asdict(), "state": outcome.state} for outcome in outcomes],
    }
    options.output.parent.mkdir(parents=True, exist_ok=True)
    options.output.write_text(json.dumps(content, indent=2))
    print(f"\n{', '.join(f'{number} {state}' for state, number in counts.items())}. Written to {options.output}.")
    return 1 if counts["FAILED"] else 0


def _all_checks(options: argparse.Namespace, devices: list[str]) -> Iterator[Outcome]:
    backbone = {"backbone": options.backbone, "pretrained": options.pretrained}
    clip = ClipBackbone.load(options.backbone, options.pretrained)
    side, chosen = clip.default_size, set(options.checks)
    precisions = {device: _precisions(clip.to(device), options.precisions) for device in devices}
    with TemporaryDirectory() as folder:
        pictures = make_pictures(Path(folder) / "good", side)
        if "agreement" in chosen:
            yield from check_models(backbone, precisions, pictures)
        if "learning" in chosen:
            yield from check_learning(backbone, devices, pictures)
        if "export" in chosen:
            yield from check_exports(backbone, devices, pictures)
        if "processes" in chosen:
            yield from check_processes(backbone, devices, pictures)
    if "speed" in chosen:
        yield from check_speed(options.sizes, precisions, options.batches, options.seconds)
    if "compilation" in chosen:
        yield from check_compilation(options.sizes, devices, options.seconds)


def _precisions(clip: ClipBackbone, wanted: list[str] | None) -> list[str]:
    """Precisions to look at on the device of a CLIP."""
    names = wanted or list(dict.fromkeys(["float32", resolve_precision("auto", clip)]))
    return [name for name in names if (clip.device.type, name) != ("cpu", "fp16")]  # no processor has it


def _progress(outcomes: Iterator[Outcome]) -> Iterator[Outcome]:
    """Say what was looked at last; how many there will be nobody knows before."""
    with tqdm(outcomes, desc="Checking", unit="check") as bar:
        for outcome in bar:
            bar.set_postfix_str(f"{outcome.check}: {outcome.what}, {outcome.where}")
            yield outcome


def _row(outcome: Outcome) -> dict[str, str]:
    value = "" if outcome.value is None else f"{outcome.value:.3g}"
    return {
        "check": outcome.check,
        "of": outcome.what,
        "where": outcome.where,
        "found": f"{value} {outcome.unit}" if value else "",
        "limit": "" if outcome.limit is None else f"{outcome.limit:.3g}",
        "": outcome.state,
    }


if __name__ == "__main__":
    sys.exit(main())
