"""Latency and drift of exported models on a CPU: eager PyTorch, ONNX Runtime, OpenVINO.

    python benchmarks/export_latency.py --backbone builtin --threads 2 --output export_latency.json

Prints a table and writes the same as JSON. A drift is the largest difference from the eager float32 model, of scores and
of map values, over random images.
"""

from __future__ import annotations

import argparse
import json
import platform
import statistics
import time
import warnings
from collections.abc import Callable
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np
import onnxruntime
import openvino
import torch
from anomalib.deploy import CompressionType
from anomalib.models.components import AnomalibModule

from anomalib_zsclip import AnomalyClip, ClipAd, RandomWordClip, ZsClip

MODELS = {"ZsClip": ZsClip, "RandomWordClip": RandomWordClip, "ClipAd": ClipAd, "AnomalyClip": AnomalyClip}
OUTPUTS = ("pred_score", "anomaly_map")
COLUMNS = ("model", "runtime", "batch", "ms_per_image", "score_drift", "map_drift", "megabytes")
Runtime = Callable[[np.ndarray], dict[str, np.ndarray]]


def main() -> None:
    """Measure, print and write."""
    parser = argparse.ArgumentParser(description="Latency and drift of exported models on a CPU.")
    parser.add_argument("--models", nargs="+", choices=MODELS, default=["ZsClip"])
    parser.add_argument("--backbone", default="builtin")
    parser.add_argument("--pretrained")
    parser.add_argument("--image-size", type=int, help="side in pixels; default: the model's own")
    parser.add_argument("--batches", nargs="+", type=int, default=[1, 8])
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--repeats", type=int, default=20)
    parser.add_argument("--output", type=Path, help="JSON file to write")
    options = parser.parse_args()
    warnings.filterwarnings("ignore")
    torch.set_num_threads(options.threads)

    records: list[dict[str, Any]] = []
    for name in options.models:
        model = MODELS[name](
            backbone=options.backbone, pretrained=options.pretrained, image_size=options.image_size
        ).eval()
        with TemporaryDirectory() as folder:
            records += measure(name, model, Path(folder), options)
    print("  ".join(f"{column:>14}" for column in COLUMNS))
    for record in records:
        cells = (f"{record[key]:.3g}" if isinstance(record[key], float) else str(record[key]) for key in COLUMNS)
        print("  ".join(f"{cell:>14}" for cell in cells))
    if options.output:
        machine = {
            "processor": platform.processor() or platform.machine(),
            "threads": options.threads,
            "torch": torch.__version__,
            "onnxruntime": onnxruntime.__version__,
            "openvino": openvino.__version__,
        }
        options.output.write_text(json.dumps({"machine": machine, "results": records}, indent=2) + "\n")


def measure(name: str, model: AnomalibModule, folder: Path, options: argparse.Namespace) -> list[dict[str, Any]]:
    """Make one record for each runtime and batch size."""
    runtimes = make_runtimes(model, folder, options.threads)
    height, width = model.input_size
    records = []
    for batch in options.batches:
        images = np.random.default_rng(0).random((batch, 3, height, width), dtype=np.float32)
        wanted = runtimes["eager"][0](images)
        for runtime, (run, megabytes) in runtimes.items():
            drifts = [float(np.abs(run(images)[key] - wanted[key]).max()) for key in OUTPUTS]
            seconds = []
            for _ in range(options.repeats):
                start = time.perf_counter()
                run(images)
                seconds.append(time.perf_counter() - start)
            milliseconds = 1000 * statistics.median(seconds) / batch
            records.append(dict(zip(COLUMNS, (name, runtime, batch, milliseconds, *drifts, megabytes), strict=True)))
    return records


def make_runtimes(model: AnomalibModule, folder: Path, threads: int) -> dict[str, tuple[Runtime, float]]:
    """Functions from images to outputs, and the size of their files in megabytes."""

    def eager(images: np.ndarray) -> dict[str, np.ndarray]:
        with torch.inference_mode():
            result = model(torch.from_numpy(images))
        return {key: getattr(result, key).numpy() for key in OUTPUTS}

    onnx = model.to_onnx(folder, input_size=tuple(model.input_size))
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = threads
    session = onnxruntime.InferenceSession(str(onnx), options, providers=["CPUExecutionProvider"])

    def onnx_runtime(images: np.ndarray) -> dict[str, np.ndarray]:
        return dict(zip(OUTPUTS, session.run(list(OUTPUTS), {"input": images}), strict=True))

    parameters = sum(parameter.numel() for parameter in model.parameters()) * 4 / 2**20
    runtimes: dict[str, tuple[Runtime, float]] = {
        "eager": (eager, parameters),
        "onnxruntime": (onnx_runtime, size_of(onnx.parent)),
    }
    model.to_onnx = lambda *_args, **_kwargs: onnx  # exported once
    for kind in (None, CompressionType.FP16, CompressionType.INT8):
        path = model.to_openvino(folder / str(kind), compression_type=kind)
        for precision in ("f32", "default"):
            label = f"ov-{kind.value if kind else 'fp32'}-{precision}"
            runtimes[label] = (openvino_runtime(path, precision, threads), size_of(path.parent))
    return runtimes


def openvino_runtime(path: Path, precision: str, threads: int) -> Runtime:
    """Compile for the CPU, with float32 or with the precision that OpenVINO takes by itself."""
    config: dict[str, Any] = {"INFERENCE_NUM_THREADS": threads, "PERFORMANCE_HINT": "LATENCY"}
    if precision == "f32":
        config["INFERENCE_PRECISION_HINT"] = "f32"
    compiled = openvino.Core().compile_model(path, "CPU", config)

    def run(images: np.ndarray) -> dict[str, np.ndarray]:
        results = compiled(images)
        return {key: results[key] for key in OUTPUTS}

    return run


def size_of(folder: Path) -> float:
    """Megabytes of all files."""
    return sum(path.stat().st_size for path in folder.iterdir()) / 2**20


if __name__ == "__main__":
    main()
