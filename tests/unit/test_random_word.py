"""The random-word detector: its prompts, its network, windows, and what it promises."""

from __future__ import annotations

import random
from dataclasses import replace

import pytest
import torch
from torch import nn

from anomalib_zsclip.clip import ClipBackbone
from anomalib_zsclip.errors import ArgumentError
from anomalib_zsclip.heads.options import combine_image_score
from anomalib_zsclip.heads.random_word import (
    RandomWordHead,
    harmonic_aggregation,
    train_text_network,
    window_indices,
)
from anomalib_zsclip.prompts.random_words import random_word_prompts, random_words


def head_for(backbone: ClipBackbone, **arguments: object) -> RandomWordHead:
    head = RandomWordHead(backbone.embed_dim, **({"prompts_per_class": 40} | arguments))  # type: ignore[arg-type]
    head.setup(backbone, "anything")
    return head


# ------------------------------------------------------------------ prompts
def test_prompts_of_both_classes_differ_in_the_state_alone() -> None:
    normal, anomalous = random_word_prompts(
        50, normal_states=["good {}"], anomalous_states=["bad {}"], templates=["a {}.", "the {}"]
    )
    assert len(set(normal)) == len(normal) == 50
    assert [prompt.replace("good", "bad") for prompt in normal] == anomalous


def test_prompts_are_deterministic_and_of_the_asked_form() -> None:
    assert random_word_prompts(20, seed=1) == random_word_prompts(20, seed=1)
    assert random_word_prompts(20, seed=1) != random_word_prompts(20, seed=2)
    words = random_words(random.Random(0), 3, (4, 6)).split()
    assert len(words) == 3
    assert all(4 <= len(word) <= 6 and word.isalpha() for word in words)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"count": 0}, "count=0"),
        ({"count": 2_000_000}, "1,000,000"),
        ({"words": (2, 1)}, "words"),
        ({"letters": (0, 3)}, "letters"),
        ({"normal_states": []}, "at least one phrase"),
        ({"anomalous_states": "damaged {}"}, "must be a list"),
        ({"templates": ["a photo"]}, "exactly one {}"),
        ({"templates": ["{} and {}"]}, "exactly one {}"),
        ({"templates": ["a {name} {}"]}, "exactly one {}"),
    ],
)
def test_prompts_that_cannot_work(arguments: dict, message: str) -> None:
    with pytest.raises(ArgumentError, match=message):
        random_word_prompts(**arguments)


# ------------------------------------------------------------------ network
def test_the_network_learns_what_can_be_told_apart_and_leaves_the_generators_alone(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    torch.manual_seed(0)
    monkeypatch.setattr(torch.cuda, "manual_seed_all", lambda _: pytest.fail("seeds the generators of GPUs"))
    direction = torch.nn.functional.normalize(torch.randn(32), dim=0)
    clean = torch.randn(100, 32)
    embeddings = nn.functional.normalize(torch.cat([clean - 2 * direction, clean + 2 * direction]), dim=-1)
    labels = torch.cat([torch.zeros(100), torch.ones(100)])
    networks = [nn.Sequential(nn.Linear(32, 16), nn.ReLU(), nn.Linear(16, 1)) for _ in range(2)]
    state = torch.get_rng_state()
    accuracies = [train_text_network(network, embeddings, labels, noise=0.1, seed=3) for network in networks]
    assert torch.equal(torch.get_rng_state(), state)
    assert accuracies[0] == accuracies[1] > 0.95
    assert all(torch.equal(a, b) for a, b in zip(networks[0].parameters(), networks[1].parameters(), strict=True))


def test_two_prompts_are_enough_to_train(tiny: ClipBackbone) -> None:
    head = head_for(tiny, prompts_per_class=1)
    assert head.probability(torch.randn(2, head.network[0].in_features)).isfinite().all()


def test_set_up_anew_the_network_is_that_of_the_options(tiny: ClipBackbone) -> None:
    head = head_for(tiny, hidden=8)
    before = head.probability(torch.ones(1, tiny.embed_dim))
    head.options = replace(head.options, hidden=6)
    head.setup(tiny, "anything")
    wanted = head_for(tiny, hidden=6).probability(torch.ones(1, tiny.embed_dim))
    assert torch.equal(head.probability(torch.ones(1, tiny.embed_dim)), wanted)
    assert not torch.equal(before, wanted)
    assert not any(value.requires_grad for value in head.network.parameters())


def test_setup_works_in_inference_mode(tiny: ClipBackbone) -> None:
    head = RandomWordHead(tiny.embed_dim, prompts_per_class=40)
    with torch.inference_mode():
        head.setup(tiny, "object")
    assert head.probability(torch.randn(2, head.network[0].in_features)).isfinite().all()


# ------------------------------------------------------------------ maps
@pytest.mark.parametrize("localization", ["value_value", "window"])
@pytest.mark.parametrize("size", [(32, 32), (40, 64)])
@torch.no_grad()
def test_scores_and_maps_are_probabilities_whatever_the_batch(
    tiny: ClipBackbone, localization: str, size: tuple[int, int]
) -> None:
    head = head_for(tiny, localization=localization)
    images = torch.randn(3, 3, *size)
    outputs = head(tiny.forward_intermediates(images, head.request(tiny)), tiny, size)
    assert outputs.score.shape == (3,)
    assert outputs.anomaly_map.shape == (3, *size)
    assert (outputs.anomaly_map >= 0).all()
    assert (outputs.anomaly_map <= 1).all()
    alone = head(tiny.forward_intermediates(images[2:], head.request(tiny)), tiny, size)
    assert torch.allclose(outputs.score[2], alone.score[0], atol=1e-5)
    assert torch.allclose(outputs.anomaly_map[2], alone.anomaly_map[0], atol=1e-5)


def test_windows_cover_every_patch_and_small_grids_get_one() -> None:
    windows = window_indices((4, 5), 2)
    assert windows.shape == (12, 4)
    assert windows[0].tolist() == [0, 1, 5, 6]
    assert set(windows.flatten().tolist()) == set(range(20))
    assert window_indices((1, 1), 3).tolist() == [[0]]


def test_harmonic_aggregation_by_hand() -> None:
    windows = torch.tensor([[0, 1], [1, 2]])
    result = harmonic_aggregation(torch.tensor([[0.5, 0.25]]), windows, 3)
    assert torch.allclose(result, torch.tensor([[0.5, 2 / (2 + 4), 0.25]]))


def test_image_scores_by_hand() -> None:
    score, maps = torch.tensor([0.2, 0.8]), torch.tensor([[[0.1, 0.6]], [[0.3, 0.4]]])
    assert torch.equal(combine_image_score("text", score, maps), score)
    assert torch.allclose(combine_image_score("map_max", score, maps), torch.tensor([0.6, 0.4]))
    assert torch.allclose(combine_image_score("mean", score, maps), torch.tensor([0.4, 0.6]))
    with pytest.raises(ArgumentError, match="image_score='max'"):
        combine_image_score("max", score, maps)


def test_unknown_options_are_refused(tiny: ClipBackbone) -> None:
    with pytest.raises(ArgumentError, match="localization='tiles'"):
        RandomWordHead(48, localization="tiles")
    with pytest.raises(ArgumentError, match="centering='images'"):
        RandomWordHead(48, centering="images")


@pytest.mark.parametrize("blocks", [3, (), (3,), (1, 2, 3), (1.0, 2.0), "12"])
def test_blocks_are_a_first_and_a_last_one(blocks: object) -> None:
    with pytest.raises(ArgumentError, match=r"the first and the last block|blocks\[0\]"):
        RandomWordHead(48, blocks=blocks)


def test_a_list_is_as_good_as_a_pair(tiny: ClipBackbone) -> None:
    assert RandomWordHead(48, blocks=[2, 3]).request(tiny).value_value == {(2, 3)}
