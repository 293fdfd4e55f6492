"""The memory of normal patches, and the names of defects."""

from __future__ import annotations

import re

import pytest
import torch

from anomalib_zsclip.clip import ClipBackbone
from anomalib_zsclip.errors import ArgumentError, CheckpointError
from anomalib_zsclip.heads.explanation import DefectNamer
from anomalib_zsclip.heads.memory_bank import MemoryBank, neighbour_mask


def fill(memory: MemoryBank, backbone: ClipBackbone, images: torch.Tensor) -> None:
    batches = [backbone.forward_intermediates(batch, memory.request(backbone)) for batch in images.split(2)]
    memory.fill(batches, backbone)


@torch.no_grad()
def test_remembered_images_are_normal_and_a_foreign_patch_is_not(tiny: ClipBackbone) -> None:
    torch.manual_seed(0)
    pattern = torch.rand(1, 3, 8, 8).repeat(1, 1, 4, 4)
    normal = pattern + 0.05 * torch.rand(5, 3, 32, 32)
    memory = MemoryBank(sigma=0)
    fill(memory, tiny, normal)
    assert memory.patches.shape == (4, 5, 16, 64)
    assert memory.patches.shape[0] == len(memory.blocks(tiny)) * len(memory.scales)
    known = memory(tiny.forward_intermediates(normal[:1], memory.request(tiny)), tiny, (32, 32))
    assert known.max() < 0.05
    strange = normal[:1].clone()
    strange[..., 8:16, 8:16] += 3 * torch.randn(3, 8, 8)
    found = memory(tiny.forward_intermediates(strange, memory.request(tiny)), tiny, (32, 32))
    assert found[0, 8:16, 8:16].mean() > 0.5
    assert (found >= 0).all()
    assert (found <= 1).all()


@torch.no_grad()
def test_leaving_an_image_out_makes_it_foreign_to_itself(tiny: ClipBackbone) -> None:
    images = torch.randn(3, 3, 32, 32)
    memory = MemoryBank()
    fill(memory, tiny, images)
    features = tiny.forward_intermediates(images[1:2], memory.request(tiny))
    assert memory(features, tiny, (32, 32), leave_out=1).mean() > memory(features, tiny, (32, 32)).mean()


@torch.no_grad()
def test_one_image_is_enough(tiny: ClipBackbone) -> None:
    memory = MemoryBank()
    fill(memory, tiny, torch.randn(1, 3, 32, 32))
    assert 1e-4 < memory.reference < 2


@torch.no_grad()
def test_patches_are_tokens_and_the_means_of_their_neighbourhoods(tiny: ClipBackbone) -> None:
    memory = MemoryBank(layers=[2])
    images = torch.randn(1, 3, 32, 32)
    fill(memory, tiny, images)
    grid = tiny.forward_intermediates(images, memory.request(tiny)).tokens[2][0, 1:].unflatten(0, (4, 4))
    inner, corner = grid[:3, 1:4].flatten(0, 1).mean(0), grid[2:, 2:].flatten(0, 1).mean(0)
    expected = torch.stack([grid[1, 2], grid[3, 3], inner, corner])  # at row 1, column 2, and in the last corner
    found = memory.patches[:, 0, [6, 15]].flatten(0, 1)
    torch.testing.assert_close(found, torch.nn.functional.normalize(expected, dim=-1))


@torch.no_grad()
def test_a_memory_of_other_scales_is_refused(tiny: ClipBackbone) -> None:
    images, single, memory = torch.randn(2, 3, 32, 32), MemoryBank(scales=[1]), MemoryBank()
    fill(single, tiny, images)
    memory.patches = single.patches
    with pytest.raises(CheckpointError, match="2 rows of blocks and scales, the model compares 4"):
        memory(tiny.forward_intermediates(images, memory.request(tiny)), tiny, (32, 32))


def test_neighbours_on_the_grid() -> None:
    assert neighbour_mask((4, 5), 1).sum(dim=1).unflatten(0, (4, 5))[0].tolist() == [4, 6, 6, 6, 4]
    assert torch.equal(neighbour_mask((4, 5), 0), torch.eye(20, dtype=torch.bool))
    assert torch.equal(neighbour_mask((3, 9), 1), torch.eye(27, dtype=torch.bool))


@pytest.mark.parametrize("scales", [[], [0], [1, 2], [-1]])
def test_scales_that_have_no_centre(scales: list[int]) -> None:
    with pytest.raises(ArgumentError, match="scales"):
        MemoryBank(scales=scales)


@torch.no_grad()
def test_explanations_name_words_with_probabilities(tiny: ClipBackbone) -> None:
    namer = DefectNamer(tiny.embed_dim, ["crack", "hole", "stain"], top=2)
    namer.setup(tiny)
    images = torch.randn(2, 3, 32, 32)
    features = tiny.forward_intermediates(images, namer.request(tiny))
    maps = torch.rand(2, 32, 32)
    assert torch.allclose(namer(features, tiny, maps).sum(dim=-1), torch.ones(2))
    for text in namer.explain(features, tiny, maps):
        assert re.fullmatch(r"(crack|hole|stain) \(\d\.\d\d\), (crack|hole|stain) \(\d\.\d\d\)", text)


def test_the_region_decides_the_name(tiny: ClipBackbone) -> None:
    namer = DefectNamer(tiny.embed_dim, ["crack", "hole"])
    features = tiny.forward_intermediates(torch.randn(1, 3, 32, 32), namer.request(tiny))
    maps = torch.zeros(1, 32, 32)
    maps[:, :8, :8] = 1
    tokens = torch.nn.functional.normalize(tiny.project_tokens(features.value_value[4, 4][:, 1:]), dim=-1)
    local = tokens[0, 0] - tokens[0].mean(dim=0)
    namer.text_features.copy_(torch.stack([local, -local]))  # "crack" is what the first patch looks like
    assert namer(features, tiny, maps)[0, 0] > 0.5


@pytest.mark.parametrize("words", [[], ["crack"], "crack", ["crack", " "]])
def test_word_lists_that_cannot_work(words: list[str]) -> None:
    with pytest.raises(ArgumentError, match="defect_words"):
        DefectNamer(8, words)
