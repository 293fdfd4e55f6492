"""Learned weights that the authors of the methods publish: one table, and the rule which of them a data set gets.

Nothing of theirs is shipped. A file of a git commit cannot change, and its blob id names its content, so that a download is
checked although this package has never held the file.
"""

from __future__ import annotations

import argparse
import difflib
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

from anomalib_zsclip.clip import ClipBackbone
from anomalib_zsclip.clip.downloads import KnownFile, by_hand, git_blob_id, obtain
from anomalib_zsclip.clip.published import QUICK_GELU
from anomalib_zsclip.errors import ArgumentError, CheckpointError

PUBLISHED = "published"
"""Asks for the file that was not learned on the target data set."""

SOURCES = {"mvtec": "MVTec AD", "visa": "VisA"}
"""Data sets that published weights were learned on, and their names for people."""

NAMES = (PUBLISHED, *(f"{PUBLISHED}-{source}" for source in SOURCES))
DATA_MODULES = {"MVTecAD": "mvtec", "MVTec": "mvtec", "Visa": "visa"}
"""Names of data modules -> the data set that they read."""


class PublishedWeights(NamedTuple):
    """A file of learned weights.

    Attributes:
        head: Head that it belongs to, as models name it.
        source: What it was learned on, a key of :data:`SOURCES`.
        backbone: Architecture and tag that it was learned with.
        repository: Owner and name on GitHub.
        commit: Commit of the repository.
        path: Path in the repository.
        blob: What git calls its content.
        licence: Licence of the repository.
        citation: The paper to cite.
        size: Its bytes, where they are known.
        server: Where GitHub serves files of commits.
    """

    head: str
    source: str
    backbone: tuple[str, str]
    repository: str
    commit: str
    path: str
    blob: str
    licence: str
    citation: str
    size: int | None = None
    server: str = "https://raw.githubusercontent.com"

    @property
    def name(self) -> str:
        """Name in lists and on the command line, as ``anomaly_clip-visa``."""
        return f"{self.head}-{self.source}"

    @property
    def file(self) -> KnownFile:
        """What has to be known to download and check it."""
        url = f"{self.server}/{self.repository}/{self.commit}/{self.path}"
        return KnownFile(url, self.blob, f"{self.name}-{self.blob[:8]}.pth", self.size)


_VIT_L = ("ViT-L-14-336", "openai")
_VIT_B = ("ViT-B-16-plus-240", "laion400m_e31")
_ANOMALY_CLIP = ("zqhang/AnomalyCLIP", "45ed4dd35c05797d854294b5e8d585c545920089")
_CLIP_AD = ("ByChelsea/CLIP-AD", "f004973a41344d8c0966934af0c01781989b80e3")
_CRANE = ("AlirezaSalehy/Crane", "39181f9f718a28c1b06b5aa72bfb81e74b9a2cc3")
_MIT = "MIT"
_NONE = "none named: for your own use, not to be passed on"
_ANOMALY_CLIP_PAPER = "Q. Zhou et al., AnomalyCLIP, ICLR 2024, arXiv 2310.18961"
_CLIP_AD_PAPER = "X. Chen et al., CLIP-AD, 2023, arXiv 2311.00453"
_CRANE_PAPER = "A. Salehi et al., Crane, 2025, arXiv 2504.11055"

TABLE: tuple[PublishedWeights, ...] = (
    # The folder without "visa" in its name was learned on VisA: the authors test MVTec AD with it.
    PublishedWeights(
        "anomaly_clip", "visa", _VIT_L, *_ANOMALY_CLIP, "checkpoints/9_12_4_multiscale/epoch_15.pth",
        "c90f1d9d92d158b436a8fc193f984d4cec8b1fc8", _MIT, _ANOMALY_CLIP_PAPER,
    ),
    PublishedWeights(
        "anomaly_clip", "mvtec", _VIT_L, *_ANOMALY_CLIP, "checkpoints/9_12_4_multiscale_visa/epoch_15.pth",
        "72adc786e031b49ea288ba5f815f0d38cf158708", _MIT, _ANOMALY_CLIP_PAPER,
    ),
    PublishedWeights(
        "sdp_plus", "mvtec", _VIT_B, *_CLIP_AD, "pretrained_models/train_on_mvtec.pth",
        "d9102b131ceb8d1d668fbf6bce4e6940eb02986c", _NONE, _CLIP_AD_PAPER,
    ),
    PublishedWeights(
        "sdp_plus", "visa", _VIT_B, *_CLIP_AD, "pretrained_models/train_on_visa.pth",
        "854cc1034a1d49207f66b2ca20fd2c7aefbb75ca", _NONE, _CLIP_AD_PAPER,
    ),
    # The epoch that the authors test Crane with.
    PublishedWeights(
        "crane", "mvtec", _VIT_L, *_CRANE, "checkpoints/trained_on_mvtec_crane/epoch_5.pth",
        "078cf30d576f7b1b3652d68c4ddded575397b02f", _MIT, _CRANE_PAPER, 576693,
    ),
    PublishedWeights(
        "crane", "visa", _VIT_L, *_CRANE, "checkpoints/trained_on_visa_crane/epoch_5.pth",
        "354e75448658baf28d452b66fdcbc51d49a9dccd", _MIT, _CRANE_PAPER, 576693,
    ),
)  # fmt: skip


def is_published(value: object) -> bool:
    """Whether an argument asks for published weights, and not for a file.

    Raises:
        ArgumentError: If it is nearly one of the names, and no file.
    """
    if not isinstance(value, str) or value in NAMES:
        return isinstance(value, str)
    near = difflib.get_close_matches(value, NAMES, cutoff=0.75) or ([*NAMES] if value.startswith(PUBLISHED) else [])
    if near and not Path(value).expanduser().is_file():
        msg = f"{value!r} is no file, and no name of published weights. Near matches: {', '.join(near)}."
        raise ArgumentError(msg)
    return False


def weights_of(head: str, source: str) -> PublishedWeights:
    """The entry of the table.

    Raises:
        ArgumentError: If there is none.
    """
    for entry in TABLE:
        if (entry.head, entry.source) == (head, source):
            return entry
    msg = f"There are no published weights of {head!r} learned on {SOURCES.get(source, source)}."
    raise ArgumentError(msg)


def source_for(choice: str, target: str | None) -> str:
    """What the weights shall have been learned on.

    Args:
        choice: One of :data:`NAMES`.
        target: Data set under test, a key of :data:`SOURCES`; ``None`` for any other.
    """
    if choice != PUBLISHED:
        return choice.removeprefix(f"{PUBLISHED}-")
    return "visa" if target == "mvtec" else "mvtec"


def fits(head: str, backbone: ClipBackbone) -> bool:
    """Whether published weights of a head were learned with this backbone, by name and tag."""
    return any(entry.head == head and entry.backbone == (backbone.name, backbone.pretrained) for entry in TABLE)


def check_backbone(head: str, backbone: ClipBackbone, argument: str) -> None:
    """Refuse a backbone that the published weights were not learned with; a local file of its name is believed.

    Raises:
        ArgumentError: If it is another one; the message says which one they belong to.
    """
    if _belong(head, backbone):
        return
    name, tag = weights_of(head, "mvtec").backbone
    msg = (
        f"{argument}: the published weights of {head!r} belong to the backbone {name!r} with the weights {tag!r}; this one "
        f"is {backbone.name!r} with {backbone.pretrained!r}. Pass backbone={name!r} and pretrained={tag!r} or a local file "
        "of them, or give weights of your own."
    )
    raise ArgumentError(msg)


def _belong(head: str, backbone: ClipBackbone) -> bool:
    name, tag = weights_of(head, "mvtec").backbone
    is_file = Path(backbone.pretrained).expanduser().is_file()
    return backbone.name.removesuffix(QUICK_GELU) == name and (is_file or backbone.pretrained == tag)


def way_out(head: str, backbone: ClipBackbone, argument: str) -> str:
    """How published weights help where a head has none, for messages that say so.

    Args:
        head: Head without weights.
        backbone: The CLIP.
        argument: Argument that takes the weights.
    """
    asked = f"{argument}={PUBLISHED!r}"
    if _belong(head, backbone):
        return f"take the authors' weights ({asked})"
    name, tag = weights_of(head, "mvtec").backbone
    return (
        f"take the authors' weights with the CLIP that they belong to (backbone={name!r}, pretrained={tag!r}, {asked})"
    )


def check_obtainable(head: str, choice: str) -> None:
    """Have at least one of the files that a choice may come to, so that what is missing is told early.

    Raises:
        CheckpointError: If none is there or can be downloaded; the message names the addresses and where to put the files.
    """
    if choice != PUBLISHED:
        obtain(weights_of(head, source_for(choice, None)).file)
        return
    files = [weights_of(head, source).file for source in SOURCES]
    if any(file.path.is_file() for file in files):
        return
    try:
        obtain(files[0])
    except CheckpointError as error:
        msg = f"{error} For MVTec AD itself it is another file. {by_hand(files[1])}"
        raise CheckpointError(msg) from error


def main(arguments: Sequence[str] | None = None) -> None:
    """Command ``python -m anomalib_zsclip.weights``: list published weights, or download some."""
    parser = argparse.ArgumentParser(
        prog="python -m anomalib_zsclip.weights",
        description="Published weights of learned heads: what they are, and whether they are in the cache.",
    )
    names = [entry.name for entry in TABLE]
    parser.add_argument("--download", nargs="*", metavar="NAME", help="names to download; all without a name")
    options = parser.parse_args(arguments)
    unknown = sorted(set(options.download or ()) - set(names))
    if unknown:
        near = [match for name in unknown for match in difflib.get_close_matches(name, names)] or names
        parser.exit(1, f"Unknown: {', '.join(unknown)}. Near matches: {', '.join(near)}\n")
    if options.download is not None:
        try:
            for entry in TABLE:
                if not options.download or entry.name in options.download:
                    print(obtain(entry.file))
        except CheckpointError as error:
            parser.exit(1, f"{error}\n")
        return
    for entry in TABLE:
        print("\n".join([entry.name, *(f"  {line}" for line in _described(entry))]))


def _described(entry: PublishedWeights) -> list[str]:
    path = entry.file.path
    if not path.is_file():
        state, size = (
            f"not in the cache ({path})",
            f"{entry.size} bytes" if entry.size else "not known before the download",
        )
    else:
        whole = git_blob_id(path) == entry.blob
        state, size = f"{'in the cache' if whole else 'DAMAGED'} ({path})", f"{path.stat().st_size} bytes"
    return [
        f"learned on  {SOURCES[entry.source]}, with {entry.backbone[0]} / {entry.backbone[1]}",
        f"source      {entry.file.url}",
        f"blob id     {entry.blob}",
        f"licence     {entry.licence}",
        f"cite        {entry.citation}",
        f"size        {size}",
        f"state       {state}",
    ]
