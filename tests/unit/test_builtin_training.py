# Copyright (C) 2026 anomalib-zsclip contributors
# SPDX-License-Identifier: Apache-2.0

"""The tools behind the training of the built-in CLIP: pool of photographs, pairs, imitation, resuming. Tiny sizes."""

from __future__ import annotations

import json
import sys
from pathlib import Path

import cv2
import numpy as np
import pytest
import torch
from PIL import Image

ROOT = Path(__file__).resolve().parents[2]
if not (ROOT / "tools" / "train_builtin_clip.py").exists():  # an installed package has no tools
    pytest.skip("the training tools are in the repository only", allow_module_level=True)
sys.path[:0] = [str(ROOT / "tools"), str(ROOT / "anomalib_zsclip" / "data")]

import teacher as teaching  # noqa: E402
import teacher_pairs  # noqa: E402
import texture_pool  # noqa: E402
import train_builtin_clip as training  # noqa: E402
from imitation import Imitation, PairFeed  # noqa: E402


def photograph(seed: int = 0, side: int = 256) -> np.ndarray:
    """A grainy surface, uint8 RGB."""
    rng = np.random.default_rng(seed)
    grain = cv2.GaussianBlur(rng.normal(0, 60, (side, side, 3)).astype(np.float32), (0, 0), 1.5)
    return np.clip(120 + grain, 0, 255).astype(np.uint8)


# The pool.


@pytest.mark.parametrize(
    ("path", "reason"),
    [
        ("tex_floor/concrete01.jpg", None),
        ("tex_floor/carpet020.png", None),
        ("gold/gold_plate.jpg", None),
        ("tex_floor/concrete01_nm.png", "a map, no photograph"),
        ("metal/plate_gloss.jpg", "a map, no photograph"),
        ("env/hills/hills.jpg", "no surface"),
        ("skies/blue.jpg", "no surface"),
        ("base_light/lamp2.jpg", "no surface"),
        ("metal/plate_rusty.jpg", "worn"),
    ],
)
def test_names_tell_surfaces_from_maps_things_and_damage(path: str, reason: str | None) -> None:
    assert texture_pool.reject_name(path) == reason


def test_pixels_tell_photographs_from_what_is_none() -> None:
    clean = photograph()
    assert texture_pool.reject_pixels(clean) is None
    normals = clean // 8 + np.array([112, 112, 220], np.uint8)
    drawn = np.repeat(np.repeat(photograph(side=32), 8, 0), 8, 1)
    see_through = np.dstack([clean, np.where(np.arange(256) < 90, 0, 255)[None].repeat(256, 0)]).astype(np.uint8)
    marked = clean.copy()
    cv2.circle(marked, (60, 60), 30, (10, 10, 10), -1)
    found = [texture_pool.reject_pixels(p) for p in (normals, drawn, see_through, marked, clean // 10, clean[:100])]
    assert found == ["a map, no photograph", "drawn", "transparent", "uneven", "dark", "small"]


def test_the_pool_is_split_by_series_and_says_what_became_of_each_file(tmp_path: Path) -> None:
    source = tmp_path / "source" / "textures" / "floor"
    source.mkdir(parents=True)
    names = [f"{word}{number}" for word in "abcdefghijkl" for number in (1, 2)]
    for seed, name in enumerate(names):
        Image.fromarray(photograph(seed)).save(source / f"{name}.png")
    Image.fromarray(photograph(0)).save(source / "twin.png")
    (source / "broth.png").write_bytes(b"no picture")
    fates = texture_pool.build_pool([tmp_path / "source"], tmp_path / "pool")["source"]
    assert fates["floor/twin.png"] == "twice"
    assert fates["floor/broth.png"] == "cannot be read"
    sides = {name: fates[f"floor/{name}.png"] for name in names}
    assert all(sides[f"{word}1"] == sides[f"{word}2"] for word in "abcdefghijkl"), "a series is on one side"
    assert set(sides.values()) == {"training", "held_out"}
    counts = [len(list((tmp_path / "pool" / part).glob("*.jpg"))) for part in ("training", "held_out")]
    assert counts == [list(sides.values()).count(part) for part in ("training", "held_out")]
    assert json.loads((tmp_path / "pool" / "pool.json").read_text()) == {"source": fates}


def test_the_family_draws_on_the_photographs_and_refuses_an_empty_folder(tmp_path: Path) -> None:
    Image.fromarray(photograph()).save(tmp_path / "surface.png")
    family = teacher_pairs.photograph_family(tmp_path)
    first, again = (family.draw(np.random.default_rng(1), np.random.default_rng(2), 64) for _ in range(2))
    np.testing.assert_array_equal(first, again)
    assert first.shape == (64, 64, 3)
    assert 0.15 < first.mean() < 0.75
    (tmp_path / "none").mkdir()
    with pytest.raises(ValueError, match="no JPEG or PNG file"):
        teacher_pairs.photograph_family(tmp_path / "none")


# The pairs.


def small_teacher() -> teaching.Teacher:
    """A teacher of random weights: the shapes count."""
    random = torch.Generator().manual_seed(0)
    width = teaching.WIDTH

    def weights(*shape: int) -> torch.Tensor:
        return torch.randn(shape, generator=random) * shape[-1] ** -0.5

    found = {
        "class": weights(1, 1, width),
        "place of class": weights(1, 1, width),
        "places": weights(1, 37 * 37, width),
        "patch.weight": weights(width, 3, 14, 14),
        "patch.bias": weights(width),
    }
    for block in range(teaching.DEPTH):
        shapes = {
            "qkv.weight": (3 * width, width), "qkv.bias": (3 * width,), "proj.weight": (width, width), "proj.bias": (width,),
            "fc1.weight": (64, width), "fc1.bias": (64,), "fc2.weight": (width, 64), "fc2.bias": (width,),
            "scale1": (width,), "scale2": (width,), "norm1.weight": (width,), "norm1.bias": (width,),
            "norm2.weight": (width,), "norm2.bias": (width,),
        }  # fmt: skip
        found |= {f"{block}.{name}": weights(*shape) for name, shape in shapes.items()}
    return teaching.Teacher(found)


@pytest.fixture(scope="module")
def pairs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Six files of pairs at 48 px, every second with a teacher's tokens."""
    folder = tmp_path_factory.mktemp("pairs")
    grids, teacher = {6: 1.0}, small_teacher()
    plan = {
        "families": teacher_pairs.FAMILIES,
        "kinds": teacher_pairs.KINDS,
        "seed": 0,
        "every": 2,
        "grids": [[6, 1.0]],
    }
    teacher_pairs.write_plan(folder, plan)
    for number in range(6):
        shard = teacher_pairs.make_shard(0, number, None if number % 2 else teacher, 0.0, grids)
        teacher_pairs.write_shard(teacher_pairs.file_of(folder, number), shard)
    return folder


def feed(folder: Path) -> PairFeed:
    return PairFeed(folder, 6 * 32, 0, teacher_pairs.FAMILIES, teacher_pairs.KINDS, window=4)


def test_a_file_of_pairs_depends_on_the_seed_and_its_number_alone(pairs: Path) -> None:
    again = teacher_pairs.make_shard(0, 3, None, 0.0, {6: 1.0})
    rows = list(range(teacher_pairs.PER_FILE))
    there = teacher_pairs.read_rows(teacher_pairs.file_of(pairs, 3), rows)
    assert torch.equal(again.good, there.good)
    assert torch.equal(again.cover, there.cover)
    assert there.tokens is None
    assert (there.good != there.bad).any()


def test_another_plan_needs_another_folder(pairs: Path) -> None:
    with pytest.raises(SystemExit, match="another plan"):
        teacher_pairs.write_plan(pairs, {"seed": 1})


def test_batches_mirror_the_tokens_with_the_pictures(pairs: Path) -> None:
    for step in range(4):
        images, cover, meta, tokens = feed(pairs).batch(step, 0.0, {48: 8}, taught=True)
        assert tokens is not None
        assert tokens.shape == (16, 36, 4 * teaching.WIDTH)
        assert cover.shape == (8, 6, 6)
        touched = (cover > 0.5).flatten(1)
        changed = (tokens[:8].float() - tokens[8:].float()).abs().mean(-1)
        assert changed[touched].mean() > 1.5 * changed[cover.flatten(1) == 0].mean(), (
            "tokens change where the defect is"
        )
        difference = (images[:8].int() - images[8:].int()).abs().float().mean(-1)
        patches = torch.nn.functional.avg_pool2d(difference[:, None], 8)[:, 0].flatten(1)
        assert patches[touched].mean() > 3 * patches[cover.flatten(1) == 0].mean()
        again = feed(pairs).batch(step, 0.0, {48: 8}, taught=True)
        assert torch.equal(images, again[0])
        assert (meta == again[2]).all()


def test_families_can_be_left_out(pairs: Path) -> None:
    _, _, meta, _ = feed(pairs).batch(0, 0.0, {48: 12}, taught=False)
    drawn = teacher_pairs.FAMILIES[int(meta[0, 0])]
    others = PairFeed(pairs, 6 * 32, 0, teacher_pairs.FAMILIES, teacher_pairs.KINDS, window=4, left_out=(drawn,))
    for step in range(6):
        _, _, meta, _ = others.batch(step, 0.0, {48: 12}, taught=False)
        assert drawn not in [teacher_pairs.FAMILIES[family] for family in meta[:, 0]]


def test_the_window_of_files_moves_on_with_the_schedule(pairs: Path) -> None:
    reader = feed(pairs)
    assert reader.entitled(0.0) == range(4)
    assert reader.entitled(1.0) == range(2, 6)
    assert reader.batch(0, 0.5, {48: 4}, taught=False)[3] is None


# Imitation.


def test_a_small_tower_learns_to_imitate(pairs: Path) -> None:
    torch.manual_seed(0)
    model = training.build_model(ROOT / "tools" / "small_clip.json")
    imitation = Imitation(128)
    optimizer = torch.optim.AdamW([*model.visual.parameters(), *imitation.parameters()], 2e-3)
    images, cover, meta, tokens = feed(pairs).batch(0, 0.0, {48: 8}, taught=True)
    found = []
    for _ in range(12):
        rng = np.random.default_rng(0)
        terms = training.losses(
            model, None, images, cover, meta, rng, torch.float32, False, False,
            imitation=imitation, tokens=tokens, only=True,
        )  # fmt: skip
        assert list(terms) == ["imitation"]
        optimizer.zero_grad()
        terms["imitation"].backward()
        optimizer.step()
        found.append(float(terms["imitation"].detach()))
    assert found[-1] < 0.7 * found[0]


def test_a_run_that_is_stopped_goes_on_to_the_same_weights(
    pairs: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    start = tmp_path / "start" / "model.safetensors"
    torch.manual_seed(0)
    model = training.build_model(ROOT / "tools" / "small_clip.json")
    training.initialise(model, torch.randn(500, 192))
    training.export(model, start.parent)

    def run(out: str, stop: int | None = None) -> dict[str, torch.Tensor]:
        command = (
            f"train --out {tmp_path / out} --start {start} --config {ROOT / 'tools/small_clip.json'} --steps 4 "
            f"--imitate 0.5 --pairs {pairs} --pair-count 192 --precision float32 --optimizer adam "
            "--lr 1e-3 --batch-factor 0.1"
        )
        monkeypatch.setattr(sys, "argv", command.split())
        monkeypatch.setattr(training, "monitor", lambda *_, **__: {})
        monkeypatch.setattr(training, "FAMILIES", [n for n in training.FAMILIES if n != training.PHOTOGRAPH])
        if stop is not None:
            monkeypatch.setattr(training, "STOP_AFTER", stop)
        training.main()
        monkeypatch.setattr(training, "STOP_AFTER", 0)
        return torch.load(tmp_path / out / "checkpoint.pt", weights_only=True)

    whole = run("whole")
    assert run("parts", stop=3)["step"] == 3
    parts = run("parts")
    assert parts["step"] == whole["step"] == 4
    for name, value in whole["model"].items():
        torch.testing.assert_close(parts["model"][name], value)
    for name, value in whole["imitation"].items():
        torch.testing.assert_close(parts["imitation"][name], value)
