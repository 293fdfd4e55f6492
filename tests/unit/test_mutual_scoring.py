"""Mutual scoring: what the paper leaves open, and what is our own choice."""

from __future__ import annotations

import math
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import Tensor

from anomalib_zsclip import MuSc, ZsClip
from anomalib_zsclip.clip import ClipBackbone
from anomalib_zsclip.errors import ArgumentError, CheckpointError
from anomalib_zsclip.heads.base import HeadOutput
from anomalib_zsclip.heads.memory_bank import MemoryBank, PublishedBank, distinct_images, same_images
from anomalib_zsclip.heads.mutual import interval_means, mutual_scores, nearest_distances, rescore
from anomalib_zsclip.heads.mutual_scoring import (
    LARGEST_SHARE,
    FolderScores,
    MutualScoring,
    folder_share,
    unit_embeddings,
)
from anomalib_zsclip.images import find_unlabelled_images
from anomalib_zsclip.models.folder_references import check_expected_defects, check_unlabelled, refuse_without_unlabelled
from anomalib_zsclip.outputs.post_processing import FOLDER, MonotonePostProcessor
from anomalib_zsclip.outputs.thresholds import threshold_from_folder


def unit(*shape: int, seed: int = 0) -> Tensor:
    return torch.nn.functional.normalize(torch.randn(*shape, generator=torch.Generator().manual_seed(seed)), dim=-1)


# ---------------------------------------------------------------------- distances
@pytest.mark.parametrize("chunk_bytes", [1, 4 * 6 * 6 * 2, 2**26])
def test_distances_do_not_depend_on_the_chunks(chunk_bytes: int) -> None:
    own, known = unit(2, 6, 8), unit(5, 6, 8, seed=1)
    expected = torch.cdist(own[:, None], known[None]).amin(dim=-1).transpose(1, 2)  # [B, L, R]
    torch.testing.assert_close(nearest_distances(own, known, chunk_bytes), expected, atol=1e-5, rtol=1e-4)


def test_each_image_averages_as_many_distances_as_it_has_others() -> None:
    distances = torch.arange(1.0, 11).repeat(2, 1, 1)  # 10 references
    left_out = torch.zeros(2, 10, dtype=torch.bool)
    left_out[1, :4] = True  # six remain: 5 to 10
    means = interval_means(distances, left_out=left_out)
    torch.testing.assert_close(means, torch.tensor([[2.0], [5.0]]))  # of 3 and of 1


@torch.no_grad()
@pytest.mark.parametrize("bank", [MemoryBank(), PublishedBank()])
def test_an_image_of_the_folder_and_its_copy_do_not_excuse_it(bank: MemoryBank, tiny: ClipBackbone) -> None:
    images = torch.randn(8, 3, 32, 32, generator=torch.Generator().manual_seed(0))
    features = tiny.forward_intermediates(images, bank.request(tiny))
    patches = bank.patches_of(features, tiny)
    bank.remember_unlabelled(patches[:, :7, None])
    listed, left_out = bank.mutual(patches[:, [2]], features.grid)
    assert left_out[0].tolist() == [index == 2 for index in range(7)]
    bank.remember_unlabelled(patches[:, [0, 1, 3, 4, 5, 6], None])
    alone, left_out = bank.mutual(patches[:, [2]], features.grid)
    assert not left_out.any()
    torch.testing.assert_close(listed, alone)
    expected = [mutual_scores(row, references=range(7))[2] for row in bank.unit_patches(patches, features.grid)]
    torch.testing.assert_close(listed[0], torch.stack(expected).mean(0), atol=1e-5, rtol=1e-4)


@torch.no_grad()
def test_each_view_is_compared_with_the_same_one_of_others() -> None:
    known, own = unit(4, 7, 3, 6, 8), unit(4, 2 * 2, 6, 8, seed=1)  # seven images of three views; views 1 and 2 of two
    bank = MemoryBank()
    bank.remember_unlabelled(known)
    scores, left_out = bank.mutual(own, (2, 3), range(1, 3))
    assert scores.shape == (4, 6)
    assert left_out.shape == (4, 7)
    alone = MemoryBank()
    for position, number in enumerate((1, 2, 1, 2)):
        alone.remember_unlabelled(known[:, :, [number]])
        torch.testing.assert_close(scores[[position]], alone.mutual(own[:, [position]], (2, 3))[0])
    with pytest.raises(CheckpointError, match="other tiles"):
        bank.mutual(own, (2, 3), range(2, 4))


def test_empty_tiles_have_many_copies_and_no_defect() -> None:
    found = interval_means(torch.zeros(1, 4, 6), left_out=torch.ones(1, 6, dtype=torch.bool))
    torch.testing.assert_close(found, torch.zeros(1, 4))
    two = interval_means(torch.tensor([[[0.0, 0, 0, 0, 0.4, 0.5]]]), left_out=torch.tensor([[True] * 4 + [False] * 2]))
    torch.testing.assert_close(two, torch.tensor([[0.4]]))


def test_copies_in_a_folder_count_once() -> None:
    images = unit(4, 6, 8)
    assert distinct_images(images[[0, 1, 0, 2, 1, 3]]) == [0, 1, 3, 5]


def test_one_strange_patch_makes_another_image() -> None:
    image = unit(1, 6, 8)
    other = image.clone()
    other[0, 3] = unit(8, seed=3)
    assert bool(same_images(image, image + 1e-4))
    assert not bool(same_images(image, other))


def test_references_of_another_size_are_an_error() -> None:
    bank = MemoryBank()
    bank.remember_unlabelled(torch.zeros(4, 6, 1, 9, 8))
    with pytest.raises(CheckpointError, match="another image size"):
        bank.mutual(torch.zeros(4, 1, 16, 8), (4, 4))


# ---------------------------------------------------------------------- alone
def test_the_map_is_enlarged_with_aligned_corners_and_halved() -> None:
    scoring = MutualScoring()
    patches = torch.tensor([[0.2, 1.0, 0.4, 0.6]])
    found = scoring(patches, (2, 2), (3, 3), unit(1, 4), torch.zeros(1, 5, dtype=torch.bool))
    expected = torch.tensor([[[0.1, 0.3, 0.5], [0.15, 0.275, 0.4], [0.2, 0.25, 0.3]]])
    torch.testing.assert_close(found.anomaly_map, expected)
    assert float(found.score) == pytest.approx(0.5)


def folder_of(patches: Tensor, embeddings: Tensor, text: HeadOutput | None = None) -> FolderScores:
    return FolderScores(patches, (2, 2), embeddings, *(text or (None, None)))


def test_images_of_the_folder_are_evened_out_as_published_one_by_one() -> None:
    patches, embeddings = torch.rand(6, 4, generator=torch.Generator().manual_seed(0)), unit(6, 5)
    scoring = MutualScoring(windows=(1, 2, 3))
    own = scoring.fit(folder_of(patches, embeddings), (4, 4))
    expected = rescore(patches.amax(dim=1), embeddings, (1, 2, 3)).clamp(0, 1)
    torch.testing.assert_close(own.score, expected)
    for index in range(6):
        itself = torch.arange(6)[None] == index
        one = scoring(patches[[index]], (2, 2), (4, 4), embeddings[[index]], itself)
        torch.testing.assert_close(one.score, expected[[index]])


def test_another_image_joins_the_folder_to_be_evened_out() -> None:
    patches, embeddings = torch.rand(6, 4, generator=torch.Generator().manual_seed(0)), unit(6, 5)
    scoring = MutualScoring(windows=(1, 3))
    scoring.fit(folder_of(patches[:5], embeddings[:5]), (4, 4))
    found = scoring(patches[5:], (2, 2), (4, 4), embeddings[5:], torch.zeros(1, 5, dtype=torch.bool))
    torch.testing.assert_close(found.score, rescore(patches.amax(dim=1), embeddings, (1, 3))[5:].clamp(0, 1))


def test_a_window_larger_than_what_is_left_takes_all_that_is_left() -> None:
    patches, embeddings = torch.rand(7, 4, generator=torch.Generator().manual_seed(0)), unit(7, 5).abs()
    scoring = MutualScoring(windows=(2, 6))
    scoring.fit(folder_of(patches[:6], embeddings[:6]), (4, 4))
    like_two = torch.arange(6)[None] < 2
    found = scoring(patches[6:], (2, 2), (4, 4), embeddings[6:], like_two)
    wanted = rescore(patches[2:].amax(dim=1), embeddings[2:], (2, 5))[4:]
    torch.testing.assert_close(found.score, wanted.clamp(0, 1))


def test_equal_scores_are_no_nan() -> None:
    scoring = MutualScoring(windows=(1, 2))
    own = scoring.fit(folder_of(torch.full((5, 4), 0.3), unit(5, 5)), (4, 4))
    assert own.score.isfinite().all()


# ---------------------------------------------------------------------- beside text
def fused(share: float | None) -> tuple[MutualScoring, HeadOutput, Tensor]:
    generator = torch.Generator().manual_seed(0)
    patches = torch.rand(9, 4, generator=generator)
    text = HeadOutput(0.4 + 0.01 * torch.rand(9, generator=generator), 0.3 * torch.rand(9, 2, 2, generator=generator))
    scoring = MutualScoring(share)
    own = scoring.fit(folder_of(patches, unit(9, 5), text), (2, 2))
    found = scoring(patches, (2, 2), (2, 2), unit(9, 5), torch.zeros(9, 9, dtype=torch.bool), text)
    torch.testing.assert_close(found.score, own.score)
    torch.testing.assert_close(found.anomaly_map, own.anomaly_map)
    scoring.remember_own(own.score, own.anomaly_map.amax(dim=(1, 2)))
    return scoring, text, patches


@pytest.mark.parametrize("share", [0.0, 1.0])
def test_at_the_ends_of_the_share_one_side_alone_ranks(share: float) -> None:
    scoring, text, patches = fused(share)
    alone = text.score if share == 0 else patches.amax(dim=1)
    assert scoring.own_scores.argsort().tolist() == alone.argsort().tolist()


def test_fusion_by_hand() -> None:
    scoring, text, patches = fused(0.25)
    scales = [
        (value.median(), (value - value.median()).abs().median() * 1.4826)
        for value in (text.score, patches.amax(dim=1) / 2)
    ]
    own, others = (
        (value - centre) / spread
        for value, (centre, spread) in zip((text.score, patches.amax(dim=1) / 2), scales, strict=True)
    )
    mixed = 0.75 * own + 0.25 * others
    torch.testing.assert_close(scoring.own_scores, 0.5 + 0.5 * mixed / (4 + mixed.abs()))


def test_the_share_is_of_folders_that_fit_together() -> None:
    generator = torch.Generator().manual_seed(0)
    patches = 0.3 + 0.02 * torch.rand(20, 64, generator=generator)
    product = patches.clone()
    product[:4, 5] = 0.9  # four images with a defect
    product[4:, 5] = 0.4 + 0.2 * torch.rand(16, generator=generator)
    layouts = patches + torch.rand(20, 1, generator=generator)  # every image is unlike the others as a whole
    assert float(folder_share(product)) == pytest.approx(LARGEST_SHARE)
    assert float(folder_share(layouts)) == 0
    for patches_of_folder, suits in ((product, True), (layouts, False)):
        scoring = MutualScoring()
        scoring.fit(FolderScores(patches_of_folder, (8, 8), unit(20, 5)), (8, 8))
        assert scoring.suits == suits
        assert all((measure < 0.1) == suits for measure in scoring.misfit)
        assert len(scoring.misfit) == 2
        assert ("one product?" in scoring.describe()) == (not suits)
    flawless = patches.clone()
    flawless[:, 5] = 0.5  # the same unusual place in every image, and no defect
    assert float(folder_share(flawless)) == pytest.approx(LARGEST_SHARE)
    between = patches + 0.16 * torch.rand(20, 1, generator=generator)
    between[:, 5] += 0.3 * torch.rand(20, generator=generator)
    assert 0 < float(folder_share(between)) < LARGEST_SHARE


@pytest.mark.parametrize(
    ("beside_maxima", "beside_reach", "share"),
    [
        (0.25, 0.1, 0.7),  # 0.025
        (0.5, 0.15, 0.35),  # 0.075, half way from 0.03 to 0.12
        (0.3, 0.25, 0.35),
        (0.5, 0.25, 0),  # 0.125
        (0.6, 0.1, 0.7 * 2 / 3),  # 0.06
        (4.0, 0.075, 0.35),  # the first counts as 1
        (4.0, 0.02, 0.7),
    ],
)
def test_the_share_by_hand(beside_maxima: float, beside_reach: float, share: float) -> None:
    """A folder misfits by the product of both measures."""
    steps = torch.tensor([1.0, -2, 0, 2, -1])
    medians = 0.3 + 0.01 * steps
    maxima = 0.3 + 0.01 * steps / beside_maxima + 0.01 * 1.4826 / beside_reach
    patches = torch.stack([medians - 0.1, maxima, medians, medians - 0.2, medians + 0.001], dim=1)
    assert float(folder_share(patches)) == pytest.approx(share, abs=1e-4)


def test_equal_images_fit_together() -> None:
    assert float(folder_share(torch.full((5, 9), 0.2))) == pytest.approx(LARGEST_SHARE)


def test_the_share_is_that_of_whole_pictures() -> None:
    """The tiles of a picture differ from each other, whatever the folder."""
    patches = 0.3 + 0.02 * torch.rand(12, 3, 16, generator=torch.Generator().manual_seed(0))
    patches[:, 0, 3] = 0.6  # the same unusual place in every picture
    patches[:, 1:] += torch.rand(12, 2, 1, generator=torch.Generator().manual_seed(1))  # two tiles of each
    scoring = MutualScoring()
    text = HeadOutput(torch.rand(36), torch.rand(36, 4, 4))
    scoring.fit(FolderScores(patches.flatten(0, 1), (4, 4), unit(12, 5), *text), (4, 4))
    assert float(scoring.fitted_share) == pytest.approx(float(folder_share(patches[:, 0])))
    assert float(scoring.fitted_share) != pytest.approx(float(folder_share(patches.flatten(0, 1))))


def test_the_user_overrules_the_folder() -> None:
    scoring, *_ = fused(0.1)
    assert float(scoring.fitted_share) == pytest.approx(0.1)
    assert "mutual_share says" in scoring.describe()


@pytest.mark.parametrize(("share", "said"), [(0.0, True), (0.4, False)])
def test_a_folder_without_a_say_is_told_what_overrules_it(share: float, said: bool) -> None:
    scoring, *_ = fused(None)
    scoring.fitted_share = torch.tensor(share)
    assert ("mutual_share=0.7 overrules that" in scoring.describe()) == said


@pytest.mark.parametrize(
    ("keyword", "value"), [("share", 1.5), ("share", -0.1), ("windows", (1, 0)), ("windows", (-1,))]
)
def test_wrong_arguments(keyword: str, value: object) -> None:
    with pytest.raises(ArgumentError, match="mutual_share" if keyword == "share" else "windows"):
        MutualScoring(**{keyword: value})


@pytest.mark.parametrize("value", [1, 4, -3, True, "some", 2.5])
def test_wrong_numbers_of_references(value: object) -> None:
    with pytest.raises(ArgumentError, match="unlabelled="):
        check_unlabelled(value)  # type: ignore[arg-type]
    with pytest.raises(ArgumentError, match="unlabelled=0"):
        check_unlabelled(0, least=1)
    assert [check_unlabelled(good) for good in (0, 5, "all")] == [0, 5, "all"]


@pytest.mark.parametrize("argument", [{"unlabelled_dir": "last_week"}, {"mutual_share": 0.0}])
def test_how_to_compare_is_refused_where_nothing_is_compared(argument: dict[str, object]) -> None:
    name, value = next(iter(argument.items()))
    with pytest.raises(ArgumentError, match=f"{name}={value!r} has no effect with unlabelled=0.*unlabelled=48"):
        ZsClip(backbone="builtin", heads=["sdp"], **argument)  # type: ignore[arg-type]
    refuse_without_unlabelled("all", **argument)
    refuse_without_unlabelled(8, **argument)
    refuse_without_unlabelled(0, **dict.fromkeys(argument))


@pytest.mark.parametrize("value", [-0.1, 0.5, True, "few"])
def test_wrong_shares_of_defects(value: object) -> None:
    with pytest.raises(ArgumentError, match="expected_defects"):
        check_expected_defects(value)  # type: ignore[arg-type]


def test_embeddings_have_unit_length() -> None:
    torch.testing.assert_close(unit_embeddings(torch.tensor([[3.0, 4.0]])), torch.tensor([[0.6, 0.8]]))


# ---------------------------------------------------------------------- decisions
def test_the_folders_threshold_by_hand() -> None:
    scores = torch.cat([torch.tensor([0.1, 0.2, 0.3, 0.4, 0.5, 0.5, 0.6, 0.7, 0.8]), torch.tensor([9.0])])
    threshold = threshold_from_folder(scores.flip(0), expected_defects=0.1, false_alarms=0.05)
    assert float(threshold) == pytest.approx(0.5 + 1.6449 * 0.2 * 1.4826, abs=1e-3)


def test_a_defect_more_or_less_hardly_moves_it() -> None:
    good = torch.randn(90, generator=torch.Generator().manual_seed(0))
    none, ten, thirty = (
        float(threshold_from_folder(torch.cat([good, torch.full((count,), 50.0)]), 0.1)) for count in (0, 10, 30)
    )
    assert abs(ten - 1.645) < 0.3
    assert none < ten < none + 0.4
    assert ten < thirty < ten + 1.2  # a third of the folder, where a tenth was expected


def test_decisions_from_the_folder_are_a_state_of_their_own() -> None:
    post_processor = MonotonePostProcessor()
    scores, peaks = torch.linspace(0.2, 0.4, 20), torch.linspace(0.3, 0.7, 20)
    post_processor.decide_from_folder(scores, peaks, 0.1)
    assert int(post_processor.source) == FOLDER
    assert "20 unlabelled images, most of which" in post_processor.describe()
    assert not post_processor.is_guess
    assert float(post_processor._image_threshold) == pytest.approx(float(threshold_from_folder(scores, 0.1)), abs=1e-4)
    assert float(post_processor._pixel_threshold) == pytest.approx(float(threshold_from_folder(peaks, 0.1)), abs=1e-4)
    assert math.isfinite(float(post_processor.image_max))


# ---------------------------------------------------------------------- which images
@pytest.mark.parametrize(("stage", "expected"), [("predict", "own"), ("test", "whole"), ("validate", "whole")])
def test_the_images_under_judgement_are_the_references(stage: str, expected: str) -> None:
    """Validation and test share their references; predicted images are their own."""

    def loader(name: str) -> SimpleNamespace:
        return SimpleNamespace(dataset=SimpleNamespace(image_filenames=[f"{name}.png"]))

    names = ("predict_dataloaders", "test_dataloaders", "val_dataloaders")
    trainer = SimpleNamespace(
        state=SimpleNamespace(fn=stage),
        datamodule=SimpleNamespace(test_data=loader("whole").dataset),
        **{name: [loader("own")] for name in names},
    )
    found = find_unlabelled_images(None, trainer)  # type: ignore[arg-type]
    assert found is not None
    assert found.files == (Path(f"{expected}.png"),)
    del trainer.datamodule
    found = find_unlabelled_images(None, trainer)  # type: ignore[arg-type]
    assert found is not None
    assert found.files == (Path("own.png"),)


@pytest.mark.parametrize(
    ("arguments", "windows"),
    [
        ({"unlabelled": "all"}, (1, 2, 3)),
        ({"unlabelled": "all", "windows": [1, 8, 9]}, (1, 8, 9)),
        ({"unlabelled": 8}, ()),
        ({"unlabelled": "all", "tiles": 2}, ()),
    ],
)
def test_scores_are_evened_out_among_whole_pictures_that_are_all_compared(
    arguments: dict[str, Any], windows: tuple[int, ...]
) -> None:
    assert MuSc(backbone="builtin", **arguments).model.mutual.windows == windows
