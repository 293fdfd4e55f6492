"""Time and memory of functions that take turns, on a processor or a GPU, and which machine that is."""

from __future__ import annotations

import os
import platform
import re
import statistics
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from importlib.metadata import version
from pathlib import Path
from typing import Any

import torch


def synchronize(device: torch.device) -> None:
    """Wait until a GPU has done what it was given."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)


def reset_peak_memory(device: torch.device) -> None:
    """Count the largest memory anew, where the system can."""
    if device.type == "cuda":
        torch.cuda.reset_peak_memory_stats(device)
        return
    with suppress(OSError):
        Path("/proc/self/clear_refs").write_text("5")  # Linux: sets the high-water mark to the present size


def peak_memory(device: torch.device) -> float:
    """Largest memory in bytes, of tensors on a GPU or of this process; not a number where the system does not tell."""
    if device.type == "cuda":
        return float(torch.cuda.max_memory_allocated(device))
    try:
        found = re.search(r"VmHWM:\s+(\d+) kB", Path("/proc/self/status").read_text())
    except OSError:
        found = None
    return 1024.0 * int(found[1]) if found else float("nan")


def take_turns(
    candidates: Mapping[str, Callable[[], object]],
    seconds: float,
    device: torch.device | str = "cpu",
    least: int = 3,
    most: int = 50,
) -> dict[str, list[float]]:
    """Times of each candidate in seconds, in rounds, after one round that does not count.

    Args:
        candidates: Functions by their names.
        seconds: Time after which no further round begins.
        device: Where they run.
        least: Rounds in any case.
        most: Rounds at most.
    """
    device = torch.device(device)
    times: dict[str, list[float]] = {name: [] for name in candidates}
    start = time.perf_counter()
    # Not inference mode, in which what torch.compile makes does not run.
    with torch.no_grad():
        for number in range(most + 1):
            for name, call in candidates.items():
                synchronize(device)
                before = time.perf_counter()
                call()
                synchronize(device)
                if number:
                    times[name].append(time.perf_counter() - before)
            if number == 0:
                start = time.perf_counter()
            elif number >= least and time.perf_counter() - start > seconds:
                break
    return times


def ratio(times: Sequence[float], reference: Sequence[float]) -> float:
    """Median of the ratios of the rounds."""
    return statistics.median(mine / theirs for mine, theirs in zip(times, reference, strict=True))


def describe_machine(threads: int) -> dict[str, Any]:
    """Processor, software and threads."""
    cpuinfo = Path("/proc/cpuinfo")
    lines = cpuinfo.read_text().splitlines() if cpuinfo.is_file() else []
    names = [line.split(":", 1)[1].strip() for line in lines if line.startswith("model name")]
    return {
        "processor": names[0] if names else platform.processor(),
        "cores": os.cpu_count(),
        "threads": threads,
        "gpu": torch.cuda.get_device_name() if torch.cuda.is_available() else None,
        "python": platform.python_version(),
        "torch": torch.__version__,
        "open_clip": version("open_clip_torch"),
        "anomalib": version("anomalib"),
    }
