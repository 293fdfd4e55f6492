"""What is measured in a process of its own, for the scripts beside this one: memory, and what a start costs.

Nothing of anomalib is imported before the clock runs.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import time
from collections.abc import Callable
from typing import Any

os.environ.setdefault("HF_HUB_OFFLINE", "1")

import torch

Row = dict[str, Any]


def work(task: str, **arguments: Any) -> Row:  # noqa: ANN401
    """Run one of :data:`TASKS` in a process of its own and take the row that it prints."""
    command = [sys.executable, __file__, "--task", task, "--arguments", json.dumps(arguments)]
    done = subprocess.run(command, capture_output=True, text=True)
    if done.returncode:
        return {**arguments, "error": done.stderr.strip().splitlines()[-1] if done.stderr.strip() else "no message"}
    return {**arguments, **json.loads(done.stdout.splitlines()[-1])}


def task_memory(size: str, model: str, batch: int, threads: int, pixels: int, window_chunk: int = 256) -> Row:
    """Memory of the process before and at the first image, and the time of a pass."""
    from anomalib_zsclip.benchmark.timing import peak_memory, reset_peak_memory
    from anomalib_zsclip.check.candidates import PLAIN, WINCLIP, make_clip, make_detector, make_winclip

    cpu = torch.device("cpu")
    torch.set_num_threads(threads)
    clip = make_clip(size, pixels)
    images = torch.rand(batch, 3, pixels, pixels)
    if model == WINCLIP:
        call: Callable[[torch.Tensor], object] = make_winclip(clip)
    else:
        call = clip.visual if model == PLAIN else make_detector(model, clip, window_chunk)
    reset_peak_memory(cpu)
    loaded = peak_memory(cpu) / 2**20
    with torch.inference_mode():
        start = time.perf_counter()
        call(images)
        seconds = time.perf_counter() - start
    peak = peak_memory(cpu) / 2**20
    return {"loaded_mb": round(loaded), "peak_mb": round(peak), "images_mb": round(peak - loaded), "seconds": seconds}


def task_import() -> Row:
    """What the plugin adds to ``import anomalib.models``."""
    start = time.perf_counter()
    import anomalib.models  # noqa: F401

    anomalib_seconds = time.perf_counter() - start
    start = time.perf_counter()
    import anomalib_zsclip  # noqa: F401

    return {"anomalib_s": anomalib_seconds, "plugin_s": time.perf_counter() - start}


def task_cold(model: str, threads: int) -> Row:
    """Import, load and score one image, with the texts in the cache or not."""
    torch.set_num_threads(threads)
    start = time.perf_counter()
    import anomalib_zsclip

    imported = time.perf_counter()
    detector = getattr(anomalib_zsclip, model)(backbone="builtin").eval()
    loaded = time.perf_counter()
    with torch.inference_mode():
        detector(torch.rand(1, 3, 256, 256))
    end = time.perf_counter()
    return {"import_s": imported - start, "load_s": loaded - imported, "first_image_s": end - loaded}


TASKS: dict[str, Callable[..., Row]] = {"memory": task_memory, "import": task_import, "cold": task_cold}


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--task", choices=list(TASKS), required=True)
    parser.add_argument("--arguments", type=json.loads, default={})
    options = parser.parse_args()
    print(json.dumps(TASKS[options.task](**options.arguments)))
