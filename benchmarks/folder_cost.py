"""What the comparison with unlabelled references costs: time of a picture, memory, and whole folders.

    python benchmarks/folder_cost.py                                   # ViT-B-16-plus at 240 px, some two minutes
    python benchmarks/folder_cost.py --size builtin --references 16 48 100 1000

Times do not depend on what is compared: the weights of the tower are random where it is not the built-in one, and so are
the references. Pictures come one by one; memory is that of the references, and what judging takes at its peak beside them
and the tower. Whole folders are extrapolated from the time of a picture: N pictures against R references, and N pictures
each against all others, which takes N - 1 references. Prints Markdown.
"""

from __future__ import annotations

import argparse
import statistics
import time

import torch
import torch.nn.functional as F
from processes import Row

from anomalib_zsclip.benchmark.timing import peak_memory, reset_peak_memory
from anomalib_zsclip.check.candidates import SIZES, make_clip
from anomalib_zsclip.clip import ClipBackbone
from anomalib_zsclip.heads.memory_bank import MemoryBank, PublishedBank

FOLDERS = (100, 1_000, 10_000)


@torch.no_grad()
def measure(kind: str, references: int, pictures: int, size: str) -> Row:
    """Median times in milliseconds of tower and comparison, and the peak of memory in MB."""
    backbone = ClipBackbone(make_clip(size))
    bank = MemoryBank() if kind == "ZsClip" else PublishedBank()
    request = bank.request(backbone)
    image = torch.rand(1, 3, SIZES[size][1], SIZES[size][1])
    features = backbone.forward_intermediates(image, request)  # the first pass is slower
    rows, _, patches, width = bank.patches_of(features, backbone).shape
    known = torch.empty(rows, references, 1, patches, width)
    for index in range(references):  # one by one: what is measured is the memory of the comparison
        known[:, index] = F.normalize(torch.randn(rows, 1, patches, width), dim=-1)
    bank.remember_unlabelled(known)
    tower, comparison = [], []
    reset_peak_memory(backbone.device)
    before = peak_memory(backbone.device)
    for _ in range(pictures):
        began = time.perf_counter()
        features = backbone.forward_intermediates(torch.rand_like(image), request)
        seen = time.perf_counter()
        bank.mutual(bank.patches_of(features, backbone), features.grid)
        tower.append(1000 * (seen - began))
        comparison.append(1000 * (time.perf_counter() - seen))
    return {
        "tower": statistics.median(tower),
        "comparison": statistics.median(comparison),
        "references MB": known.nbytes / 2**20,
        "peak MB": (peak_memory(backbone.device) - before) / 2**20,
    }


def duration(seconds: float) -> str:
    """Seconds, minutes or hours."""
    for unit, length in (("h", 3600), ("min", 60)):
        if seconds >= length:
            return f"{seconds / length:.3g} {unit}"
    return f"{seconds:.3g} s"


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--size", choices=list(SIZES), default="ViT-B-16-plus-240")
    parser.add_argument("--references", type=int, nargs="*", default=[16, 48, 100])
    parser.add_argument("--models", nargs="*", default=["ZsClip", "MuSc"])
    parser.add_argument("--pictures", type=int, nargs="*", default=[3], help="pictures that are judged, for each row")
    parser.add_argument("--threads", type=int, default=1)
    arguments = parser.parse_args()

    torch.set_num_threads(arguments.threads)
    columns = ["model", "references", "pictures", "tower, ms", "comparison, ms", "of the tower"]
    columns += ["references, MB", "judging, MB", *(f"N = {count:,}" for count in FOLDERS)]
    print("| " + " | ".join(columns) + " |\n|" + "---|" * len(columns))
    for model in arguments.models:
        for references in arguments.references:
            for pictures in arguments.pictures:
                row = measure(model, references, pictures, arguments.size)
                each = (row["tower"] + row["comparison"]) / 1000
                cells = [model, str(references), str(pictures), f"{row['tower']:.0f}", f"{row['comparison']:.1f}"]
                cells += [f"{row['comparison'] / row['tower']:.2f}", f"{row['references MB']:.0f}"]
                cells += [f"{row['peak MB']:.0f}", *(duration(count * each) for count in FOLDERS)]
                print("| " + " | ".join(cells) + " |", flush=True)
        # From the last number of references, in proportion: the comparison is a product of matrices.
        whole = [count * (row["tower"] + row["comparison"] * (count - 1) / references) / 1000 for count in FOLDERS]
        cells = [model, "all others", *[""] * (len(columns) - 2 - len(FOLDERS)), *map(duration, whole)]
        print("| " + " | ".join(cells) + " |", flush=True)


if __name__ == "__main__":
    main()
