# Copyright (C) 2026 anomalib-zsclip contributors
# SPDX-License-Identifier: Apache-2.0

"""Turn packages of game textures into a pool of clean photographs of surfaces, for the training of the built-in CLIP.

    apt-get download ufoai-textures openarena-081-textures nexuiz-textures redeclipse-data
    python tools/texture_pool.py --out runs/textures *.deb

Takes Debian packages, archives (``.pk3``, ``.zip``) and folders. What is no photograph of a surface is left out by its
name and by its statistics, and so are drawn pictures and surfaces that are worn or damaged already, since a picture
with a defect of its own would be shown as a good one. The rest is written as JPEG of at most 512 px into
``training`` and ``held_out``: a series of similar files is on one side only. ``pool.json`` says what became of every file.

Nothing of the pool belongs into the repository or the package; the model card names the packages and their licences.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import re
import shutil
import subprocess
import tempfile
import zipfile
from collections import Counter
from pathlib import Path

import numpy as np
from PIL import Image

SUFFIXES = {".jpg", ".jpeg", ".png", ".tga"}
SMALLEST, LARGEST = (
    256,
    512,
)  # sides in pixels: below, a crop shows more interpolation than surface; above, nothing is gained
HELD_OUT = 0.15  # share of the series

# Maps that belong to a texture (normals, gloss, glow, height, transparency), as the end of a name.
MAPS = re.compile(
    r"[_-](nm|n|norm|normal|normals|local|bump|sm|s|spec|specular|gm|g|glow|gloss|luma|h|height|disp|displ|add|blend|"
    r"a|alpha|fx|sfx|mask|decal|pants|shirt|reflect|env|lf|rt|bk|ft|up|dn)$"
)
# Folders and words of what is no surface. A word counts where it begins a part of the path.
NO_SURFACE = re.compile(
    r"(^|[/_\d-])(env|sk[yi]|nebula|cloud|flare|fog|sfx|fx|gfx|effect|particle|flame|fire|water|lava|slime|portal|light|lamp|"
    r"symbol|sign|logo|banner|poster|pic|art|book|screen|monitor|display|computer|font|hud|menu|icon|levelshot|map|"
    r"player|weapon|model|head|skin|hair|face|button|switch|door|window|tree|leaf|leaves|plant|flower|bush|"
    r"vehicle|cars?[_/]|anim|common|proto|decal|radar|crosshair|jumppad|teleport|item|ammo|shop|furniture|packages?|emblem|"
    r"flag|arrow|number|letter)"
)
# Damaged or dirty on purpose.
WORN = re.compile(
    r"dirty|rust|broken|damag|crack|blood|bullet|burn|graffiti|worn|wear|destroy|ruin|hole|torn|gore|filth|stain|(^|[_-])old"
)


def reject_name(path: str) -> str | None:
    """Why a file cannot be a clean surface by its path inside the package, or ``None``."""
    path = path.lower()
    stem = Path(path).stem
    if MAPS.search(stem):
        return "a map, no photograph"
    if NO_SURFACE.search(str(Path(path).with_suffix(""))):
        return "no surface"
    return "worn" if WORN.search(stem) else None


def reject_pixels(picture: np.ndarray) -> str | None:
    """Why a picture ``(height, width, 3 or 4)`` uint8 is no clean photograph of a surface, or ``None``.

    The bounds were set by looking at contact sheets of what they let through and keep out.
    """
    if min(picture.shape[:2]) < SMALLEST:
        return "small"
    if max(picture.shape[:2]) > 4 * min(picture.shape[:2]):
        return "a strip"
    if picture.shape[2] == 4 and picture[..., 3].min() < 250:
        return "transparent"
    rgb = picture[..., :3].astype(np.float32) / 255
    red, green, blue = rgb.mean((0, 1))
    if blue > 0.75 and abs(red - 0.5) < 0.08 and abs(green - 0.5) < 0.08:
        return "a map, no photograph"
    grey = rgb.mean(2)
    if grey.mean() < 0.08 or np.percentile(grey, 95) < 0.15:
        return "dark"
    if grey.std() < 0.015:
        return "empty"
    # Drawn pictures repeat colours exactly: neighbours are equal, and few colours make up the picture.
    equal = float((picture[:, 1:, :3] == picture[:, :-1, :3]).all(2).mean())
    coarse = (picture[..., :3] >> 3).astype(np.int32)
    colours = len(np.unique(coarse[..., 0] << 10 | coarse[..., 1] << 5 | coarse[..., 2]))
    if equal > 0.3 or colours < 60:
        return "drawn"
    if float((rgb.max(2) - rgb.min(2)).mean()) > 0.4:
        return "gaudy"
    return "uneven" if unevenness(grey) > 1.6 else None


def unevenness(grey: np.ndarray, blocks: int = 8) -> float:
    """How far the strangest blocks lie from the others, in brightness or contrast; 1.2 in the median of photographs.

    Args:
        grey: picture ``(height, width)`` in [0, 1].
        blocks: blocks along each side.
    """
    height, width = (n // blocks for n in grey.shape)
    parts = grey[: height * blocks, : width * blocks].reshape(blocks, height, blocks, width)
    means, spreads = parts.mean((1, 3)).ravel(), np.log(parts.std((1, 3)).ravel() + 0.01)
    # Where a surface is regular, its blocks hardly differ; the floor keeps a faint cloud from counting.
    strange = [
        np.abs(v - np.median(v)).max() / max(1.5 * np.percentile(np.abs(v - np.median(v)), 75), floor)
        for v, floor in ((means, 0.06), (spreads, 0.3))
    ]
    return float(max(strange))


def series(path: str) -> str:
    """What the variants of one texture share: folder and name without numbers and endings, e.g. ``wall`` of ``wall_02b``."""
    stem = re.split(r"[\d_-]", Path(path.lower()).stem.lstrip("0123456789_-"))[0]
    return f"{Path(path.lower()).parent.name}/{stem}"


def is_held_out(path: str) -> bool:
    """Whether the series of a file is kept out of training: by its name alone, so that more packages change nothing."""
    digest = hashlib.sha256(series(path).encode()).digest()
    return int.from_bytes(digest[:4], "big") < HELD_OUT * 2**32


def unpack(source: Path, target: Path) -> None:
    """Everything inside a package, an archive or a folder, archives inside it too, into ``target``."""
    if source.is_dir():
        shutil.copytree(source, target, dirs_exist_ok=True)
    elif source.suffix == ".deb":
        subprocess.run(["dpkg-deb", "-x", str(source), str(target)], check=True)
    else:
        with zipfile.ZipFile(source) as archive:
            archive.extractall(target)
        return
    for inner in [p for p in target.rglob("*") if p.suffix in (".pk3", ".zip")]:
        with zipfile.ZipFile(inner) as archive:
            archive.extractall(inner.with_suffix(""))
        inner.unlink()


def build_pool(sources: list[Path], out: Path) -> dict[str, dict[str, str]]:
    """Fill ``out`` from packages, archives or folders; returns what became of each file by source and path."""
    fates: dict[str, dict[str, str]] = {}
    known: set[str] = set()
    for part in ("training", "held_out"):
        (out / part).mkdir(parents=True, exist_ok=True)
    for source in sources:
        with tempfile.TemporaryDirectory() as scratch:
            unpack(source, Path(scratch))
            fates[source.name] = fate = {}
            for file in sorted(p for p in Path(scratch).rglob("*") if p.suffix.lower() in SUFFIXES and p.is_file()):
                name = file.relative_to(scratch).as_posix().rsplit("textures/", 1)[-1]
                fate[name] = _take(file, name, out, known)
    (out / "pool.json").write_text(json.dumps(fates, indent=1) + "\n", encoding="utf-8")
    return fates


def _take(file: Path, name: str, out: Path, known: set[str]) -> str:
    if reason := reject_name(name):
        return reason
    try:
        with Image.open(file) as image:
            picture = np.asarray(image.convert("RGBA" if image.mode in ("RGBA", "LA", "P") else "RGB"))
    except (OSError, ValueError, SyntaxError):
        return "cannot be read"
    if reason := reject_pixels(picture):
        return reason
    digest = hashlib.sha256(picture.tobytes()).hexdigest()[:16]
    if digest in known:
        return "twice"
    known.add(digest)
    part = "held_out" if is_held_out(name) else "training"
    image = Image.fromarray(np.ascontiguousarray(picture[..., :3]))
    scale = LARGEST / min(image.size)
    if scale < 1:
        image = image.resize((round(image.width * scale), round(image.height * scale)), Image.Resampling.LANCZOS)
    image.save(out / part / f"{digest}.jpg", quality=95)
    return part


def main() -> None:
    """Command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("sources", type=Path, nargs="+", help="Debian packages, .pk3 or .zip archives, folders")
    parser.add_argument("--out", type=Path, required=True, help="folder of the pool")
    args = parser.parse_args()
    for source, fate in build_pool(args.sources, args.out).items():
        counts = Counter(fate.values()).most_common()
        print(f"{source}: " + ", ".join(f"{count} {what}" for what, count in counts))


if __name__ == "__main__":
    main()
