"""The procedural generator: deterministic, exact, varied, fast, and free of heavy imports."""

from __future__ import annotations

import subprocess
import sys
import time
from pathlib import Path
from types import FrameType

import numpy as np
import pytest

from anomalib_zsclip.data import generator as gen

SIZE = 64


def rng(seed: int = 0) -> np.random.Generator:
    return np.random.default_rng(seed)


@pytest.mark.parametrize("family", gen.FAMILIES)
def test_every_family_draws_a_valid_good_image(family: str) -> None:
    sample = gen.generate(family, None, SIZE, rng())
    assert sample.image.shape == (SIZE, SIZE, 3)
    assert sample.image.dtype == np.uint8
    assert not sample.mask.any()
    assert sample.image.std() > 0.5, "an image shows something"


@pytest.mark.parametrize("defect", gen.DEFECTS)
def test_every_defect_changes_the_image_inside_its_mask(defect: str) -> None:
    family = "washer" if gen.DEFECTS[defect].on == "object" else "concrete"
    pair = gen.generate_pair(family, defect, SIZE, rng(3), wild=0.0)
    assert set(np.unique(pair.mask)) == {0, 255}
    changed = np.abs(pair.good.astype(int) - pair.bad.astype(int)).max(2)
    inside = pair.mask > 0
    assert changed[inside].mean() > 5
    assert changed[inside].mean() > 5 * changed[~inside].mean()


def test_the_same_seed_gives_the_same_pair_and_another_seed_another() -> None:
    first, again, other = (gen.generate_pair("gear", "crack", SIZE, rng(seed)) for seed in (5, 5, 6))
    for name in ("good", "bad", "mask"):
        np.testing.assert_array_equal(getattr(first, name), getattr(again, name))
    assert (first.good != other.good).any()


def test_a_style_is_a_product_whose_specimens_resemble_each_other() -> None:
    def mean_colour(seed: int, style: int | None) -> np.ndarray:
        return gen.generate("knit", None, SIZE, rng(seed), style=style, wild=0.0).image.mean((0, 1))

    same = [mean_colour(seed, 7) for seed in range(6)]
    free = [mean_colour(seed, None) for seed in range(6)]
    assert np.std(same, 0).mean() < 0.2 * np.std(free, 0).mean()


def test_specimens_of_one_style_are_not_the_same_image() -> None:
    first, second = (gen.generate("nut", None, SIZE, rng(seed), style=7).image for seed in (1, 2))
    assert (first != second).mean() > 0.05


def test_object_defects_lie_on_the_object() -> None:
    for seed in range(8):
        scene, _ = gen._shoot("pill", SIZE, rng(seed), None, 0.0)
        _, alpha = gen.DEFECTS["stain"].apply(scene, rng(seed), 0.8)
        assert (alpha * (scene.silhouette < 0.01)).max() < 0.02


def test_unknown_names_are_refused_with_the_known_ones() -> None:
    with pytest.raises(ValueError, match=r"family 'no such'.*washer"):
        gen.generate("no such", None, SIZE, rng())
    with pytest.raises(ValueError, match=r"defect 'no such'.*scratch"):
        gen.generate("washer", "no such", SIZE, rng())


def test_families_and_defects_are_held_out_of_the_training() -> None:
    kinds = {gen.FAMILIES[n].kind for n in gen.FAMILIES if gen.FAMILIES[n].held_out}
    assert kinds == {"texture", "object"}
    assert 0 < sum(d.held_out for d in gen.DEFECTS.values()) < len(gen.DEFECTS) / 2


def test_no_held_out_family_is_drawn_in_a_training_picture_not_even_as_a_background() -> None:
    forbidden = {f.draw.__code__: name for name, f in gen.FAMILIES.items() if f.held_out}
    drawn: set[str] = set()

    def watch(frame: FrameType, event: str, _: object) -> None:
        if event == "call" and frame.f_code in forbidden:
            drawn.add(forbidden[frame.f_code])

    families = [name for name, f in gen.FAMILIES.items() if not f.held_out]
    sys.setprofile(watch)
    try:
        for index in range(12 * len(families)):  # a background of a given kind stands behind one object in 30
            gen.generate(families[index % len(families)], None if index % 4 else "patch", 16, rng(index))
    finally:
        sys.setprofile(None)
    assert not drawn
    assert not {draw.__code__ for draw in (*gen.objects.BACKGROUNDS, *gen._DONORS)} & forbidden.keys()


def test_captions_that_differ_in_the_state_share_noun_and_template() -> None:
    for seed in range(50):
        normal, anomalous = gen.captions.state_pair(rng(seed), "qxz")
        assert normal != anomalous
        assert normal.count("qxz") == anomalous.count("qxz") == 1
        assert normal.split(" ")[0] == anomalous.split(" ")[0] or not normal.startswith("a ")


def test_defect_phrases_and_kind_words_exist_for_every_kind() -> None:
    assert set(gen.captions.KIND_WORDS) == set(gen.DEFECTS)
    for defect in gen.DEFECTS.values():
        assert all(phrase.count("{}") == 1 for phrase in defect.phrases)


def test_it_makes_150_images_a_second_at_128_pixels() -> None:
    families = list(gen.FAMILIES)
    gen.generate_pair("washer", "crack", 128, rng())  # caches
    began, source = time.process_time(), rng(1)
    count = 90
    for index in range(count):
        defect = ("scratch", "stain", "hole", "crack")[index % 4]
        gen.generate_pair(families[index % len(families)], defect, 128, source)
    rate = 2 * count / (time.process_time() - began)
    assert rate > 75, f"{rate:.0f} images/s"  # half of what a free core does: test machines are busy


def test_it_imports_without_torch_and_anomalib() -> None:
    folder = Path(gen.__file__).parents[1]
    code = f"import sys; sys.path.insert(0, {str(folder)!r}); import generator"
    code += "; print('torch' in sys.modules, 'anomalib' in sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.split() == ["False", "False"]


@pytest.mark.parametrize("family", ["concrete", "washer"])
def test_small_defects_lie_in_a_small_window(family: str) -> None:
    for seed in range(4):
        pair = gen.generate_pair(family, "stain", 256, rng(seed), wild=0.0, scale=1 / 8)
        rows, columns = np.nonzero(pair.mask)
        assert len(rows)
        assert max(np.ptp(rows), np.ptp(columns)) < 32
        changed = np.abs(pair.good.astype(int) - pair.bad.astype(int)).max(2)
        assert changed[pair.mask > 0].mean() > 5 * changed[pair.mask == 0].mean()
