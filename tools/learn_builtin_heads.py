"""Learn the heads for the built-in backbone: SDP+'s linear layers, AnomalyCLIP's prompts and Crane's.

    python tools/learn_builtin_heads.py
    python tools/learn_builtin_heads.py --heads crane

The auxiliary images are procedural, of the families and defects that are not held out, half of them normal;
``--photographs`` names a folder of photographs of surfaces that every third image is made on. Losses and
optimisers are the papers'; the data being larger and the backbone smaller than theirs, the number of epochs and SDP+'s
learning rate are arguments, and SDP+ starts elsewhere: at the layers that were trained along with the tower, or between
the texts. Deterministic for a seed; minutes on two CPU cores. To be run again whenever the built-in weights change: the
files name the fingerprint of the backbone they belong to.
"""

from __future__ import annotations

import argparse
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor
from tqdm.auto import tqdm

from anomalib_zsclip.clip import ClipBackbone
from anomalib_zsclip.clip.loading import BUILTIN_FOLDER
from anomalib_zsclip.data.generator import DEFECTS, FAMILIES, INVENTED_SHARE, generate
from anomalib_zsclip.data.generator.photographs import photograph_family
from anomalib_zsclip.heads.anomaly_clip import AnomalyClipHead
from anomalib_zsclip.heads.base import LearnableHead
from anomalib_zsclip.heads.crane import CraneHead
from anomalib_zsclip.heads.sdp import SdpHead
from anomalib_zsclip.heads.sdp_plus import SdpPlusHead
from anomalib_zsclip.prompts.learned import save_prompts

HEADS = ("sdp_plus", "anomaly_clip", "crane")


class AuxiliaryImages(NamedTuple):
    """Images uint8 ``[N, S, S, 3]``, masks in {0, 1} ``[N, S, S]``, labels ``[N]`` and what each product is called."""

    images: np.ndarray
    masks: Tensor
    labels: Tensor
    nouns: list[str]


PHOTOGRAPHS = 1 / 3  # share of the images on photographs of surfaces, where there are any


def auxiliary_images(count: int, size: int, seed: int, photographs: Path | None = None) -> AuxiliaryImages:
    """Make them; half are normal, and half are called by a noun of their family, the others "object"."""
    rng, naming = np.random.default_rng(seed), np.random.default_rng([seed, 1])
    named, invented = (
        [name for name, family in FAMILIES.items() if not family.held_out and family.invented == own]
        for own in (False, True)
    )
    defects = [name for name, defect in DEFECTS.items() if not defect.held_out]
    if photographs:
        surface = photograph_family(photographs)
        FAMILIES[surface.name] = surface
    samples, nouns = [], []
    for index in tqdm(range(count), desc="Auxiliary images"):
        defect = str(rng.choice(defects)) if index % 2 else None
        families = invented if rng.random() < INVENTED_SHARE else named
        family = str(rng.choice(families))
        if photographs and rng.random() < PHOTOGRAPHS:
            family = surface.name
        samples.append(generate(family, defect, size, rng))
        nouns.append(str(naming.choice(FAMILIES[family].nouns)) if naming.random() < 0.5 else "object")
    images = np.stack([sample.image for sample in samples])
    masks = torch.from_numpy(np.stack([sample.mask for sample in samples]) > 0)
    return AuxiliaryImages(images, masks.float(), masks.flatten(1).any(dim=1).long(), nouns)


def batches(backbone: ClipBackbone, data: AuxiliaryImages, size: int = 32) -> Iterator[tuple[Tensor, list[str]]]:
    """Normalised images ``[b, 3, S, S]`` and what they show, with a progress bar."""
    mean, std = (torch.tensor(values).view(3, 1, 1) for values in (backbone.mean, backbone.std))
    for start in tqdm(range(0, len(data.images), size), desc="Tokens"):
        rows = slice(start, start + size)
        part = torch.from_numpy(data.images[rows]).permute(0, 3, 1, 2).float() / 255
        yield (part - mean) / std, data.nouns[rows]


@torch.no_grad()
def start_between_texts(head: SdpPlusHead, length: float = 30.0) -> None:
    """Let each linear layer answer to every token with the mean of the two texts, neither normal nor anomalous.

    The published start is random. At the paper's factor of 100 it gives the tokens of the built-in backbone probabilities
    of 0 or 1, and learning hardly gets away from there. From the middle, with a bias of this length, a layer begins as
    a logistic regression.
    """
    middle = F.normalize(head.sdp.text_features.sum(-1), dim=0)
    for layer in head.fc:
        layer.weight.zero_()
        layer.bias.copy_(length * middle)


def learn(
    head: LearnableHead,
    backbone: ClipBackbone,
    data: AuxiliaryImages,
    epochs: int,
    batch_size: int,
    seed: int,
) -> None:
    """Learn a head, after its set-up, on tokens that the tower yields once."""
    request = head.request(backbone)
    with torch.no_grad():
        parts = [
            head.learning_inputs(backbone.forward_intermediates(images, request), backbone, nouns)
            for images, nouns in batches(backbone, data)
        ]
    inputs = {name: torch.cat([part[name] for part in parts]) for name in parts[0]}
    masks, labels = data.masks, data.labels
    optimizer = head.configure_optimizer()
    generator = torch.Generator().manual_seed(seed)
    for epoch in range(epochs):
        total = 0.0
        for rows in torch.randperm(len(labels), generator=generator).split(batch_size):
            batch = {name: values[rows] for name, values in inputs.items()}
            losses = head.learning_loss(backbone, batch, masks[rows], labels[rows])
            optimizer.zero_grad()
            losses["loss"].backward()
            optimizer.step()
            total += float(losses["loss"].detach()) * len(rows)
        print(f"{type(head).__name__}: epoch {epoch + 1} of {epochs}, loss {total / len(labels):.4f}", flush=True)
    head.finish_learning(backbone)


def learn_sdp_plus(backbone: ClipBackbone, data: AuxiliaryImages, arguments: argparse.Namespace) -> Path:
    """Learn SDP+'s linear layers and write their file."""
    plus = SdpPlusHead(SdpHead(backbone), backbone, learning_rate=arguments.sdp_plus_rate)
    plus.setup(backbone, "object")
    if arguments.sdp_plus_start:
        plus.load_linear_layers(arguments.sdp_plus_start)
    else:
        start_between_texts(plus)
    learn(plus, backbone, data, arguments.sdp_plus_epochs, arguments.batch_size, arguments.seed)
    path = arguments.out / "sdp_plus.safetensors"
    plus.save_linear_layers(path)
    return path


def learn_prompts(
    head: AnomalyClipHead | CraneHead, backbone: ClipBackbone, data: AuxiliaryImages, arguments: argparse.Namespace
) -> Path:
    """Learn the prompts of a head and write their file."""
    torch.manual_seed(arguments.seed)  # the same start whichever heads were learned before
    head.setup(backbone, "object")
    epochs = arguments.crane_epochs if isinstance(head, CraneHead) else arguments.prompt_epochs
    learn(head, backbone, data, epochs, arguments.batch_size, arguments.seed)
    head.prompts.info["learned_from"] = described(arguments)
    path = arguments.out / f"{head.VARIANT}_prompts.safetensors"
    save_prompts(head.prompts, path)
    return path


def described(arguments: argparse.Namespace) -> str:
    """What the heads learned from, for their files."""
    photographs = ", every third on a photograph of a surface" if arguments.photographs else ""
    return f"{arguments.images} procedural images, seed {arguments.seed}{photographs}"


def main() -> None:
    """Learn the heads and write their files."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--heads", nargs="+", choices=HEADS, default=HEADS)
    parser.add_argument("--images", type=int, default=2000)
    parser.add_argument(
        "--photographs", type=Path, help="folder of photographs of surfaces to make every third image on"
    )
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--sdp-plus-epochs", type=int, default=2)
    parser.add_argument("--sdp-plus-rate", type=float, default=3e-4)
    parser.add_argument("--sdp-plus-start", type=Path, help="layers.safetensors of the training of the tower")
    parser.add_argument("--prompt-epochs", type=int, default=6)
    parser.add_argument("--crane-epochs", type=int, default=5, help="default: the paper's")
    parser.add_argument("--batch-size", type=int, default=16)
    parser.add_argument("--out", type=Path, default=BUILTIN_FOLDER)
    arguments = parser.parse_args()
    torch.set_num_threads(arguments.threads)
    arguments.out.mkdir(parents=True, exist_ok=True)
    torch.manual_seed(arguments.seed)

    backbone = ClipBackbone.load("builtin")
    data = auxiliary_images(arguments.images, backbone.default_size, arguments.seed, arguments.photographs)
    learners = {
        "sdp_plus": lambda: learn_sdp_plus(backbone, data, arguments),
        "anomaly_clip": lambda: learn_prompts(AnomalyClipHead(learn=True), backbone, data, arguments),
        "crane": lambda: learn_prompts(CraneHead(learn=True), backbone, data, arguments),
    }
    for name in arguments.heads:
        path = learners[name]()
        print(f"{path}: {path.stat().st_size / 1000:.0f} kB, learned from {described(arguments)}")


if __name__ == "__main__":
    main()
