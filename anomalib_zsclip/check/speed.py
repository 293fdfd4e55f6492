"""How fast the models are beside the plain image tower, what memory they need, and what compilation gains."""

from __future__ import annotations

import statistics
from collections.abc import Callable, Iterator, Mapping

import torch
from torch import Tensor, nn

from anomalib_zsclip.benchmark.timing import peak_memory, ratio, reset_peak_memory, take_turns

from .candidates import PLAIN, SIZES, make_candidates, make_clip, make_detector
from .outcome import AGREEMENT, DIFFERENCE, Found, Outcome, guarded

MODELS = ("AnomalyClip", "AnomalyClip crane", "ZsClip, all heads")
COMPILED = "ZsClip, all heads"


def check_speed(
    sizes: list[str], precisions: Mapping[str, list[str]], batches: list[int], seconds: float
) -> Iterator[Outcome]:
    """Images per second, multiples of the plain tower's time, and memory on a GPU."""
    for device, names in precisions.items():
        for size in sizes:
            for precision in names:
                for batch in batches:
                    where = f"{device}, {precision}, {size}, {SIZES[size][1]} px, batch {batch}"
                    yield from _timed(size, precision, batch, device, seconds, where)


def _timed(size: str, precision: str, batch: int, device: str, seconds: float, where: str) -> Iterator[Outcome]:
    times: dict[str, list[float]] = {}
    yield from guarded("speed", "all models", where, _take_turns, size, precision, batch, device, seconds, times)
    for name, values in times.items():
        yield Outcome("speed", name, where, batch / statistics.median(values), "images / s")
        if name != PLAIN:
            yield Outcome("speed", name, where, ratio(values, times[PLAIN]), "x the plain tower")


def _take_turns(
    size: str, precision: str, batch: int, device: str, seconds: float, times: dict[str, list[float]]
) -> Found:
    candidates = make_candidates(size, MODELS, precision, batch, device)
    times |= take_turns(candidates, seconds, device)
    if device == "cuda":  # of a process, memory says little after all the others
        for name, call in candidates.items():
            reset_peak_memory(torch.device(device))
            with torch.no_grad():
                call()
            yield peak_memory(torch.device(device)) / 2**20, f"MB at most, {name}", None


def check_compilation(sizes: list[str], devices: list[str], seconds: float) -> Iterator[Outcome]:
    """``torch.compile``, with and without CUDA graphs, and a CUDA graph of the model as it is."""
    for device in devices:
        ways: dict[str, Callable[[nn.Module, Tensor], Callable[[Tensor], object]]] = {
            "torch.compile": lambda model, _: torch.compile(model),
        }
        if device == "cuda":
            ways["torch.compile with CUDA graphs"] = lambda model, _: torch.compile(model, mode="reduce-overhead")
            ways["CUDA graph"] = _captured
        for size in sizes:
            for way, make in ways.items():
                where = f"{device}, float32, {size}, batch 1"
                yield from guarded("compilation", way, where, _compiled, make, size, device, seconds)


def _compiled(
    make: Callable[[nn.Module, Tensor], Callable[[Tensor], object]], size: str, device: str, seconds: float
) -> Found:
    detector = make_detector(COMPILED, make_clip(size)).to(device)
    images = torch.rand(1, 3, SIZES[size][1], SIZES[size][1], device=device)
    with torch.no_grad():
        wanted = detector(images)
        call = make(detector, images)
        found = call(images)
        apart = [(getattr(found, name) - getattr(wanted, name)).abs().max() for name in ("pred_score", "anomaly_map")]
    yield float(max(apart)), DIFFERENCE, AGREEMENT
    times = take_turns({"eager": lambda: detector(images), "other": lambda: call(images)}, seconds, device)
    yield ratio(times["other"], times["eager"]), "x its time without", None


def _captured(model: nn.Module, images: Tensor) -> Callable[[Tensor], object]:
    """The model's kernels as one graph that is replayed."""
    stream = torch.cuda.Stream()
    stream.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(stream):
        for _ in range(3):
            model(images)
    torch.cuda.current_stream().wait_stream(stream)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        outputs = model(images)

    def replay(given: Tensor) -> object:
        images.copy_(given)
        graph.replay()
        return outputs

    return replay
