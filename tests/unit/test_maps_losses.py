"""Maps against torch and scipy; losses against numbers by hand."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from scipy.ndimage import gaussian_filter
from torch.nn.functional import interpolate

from anomalib_zsclip.heads.losses import dice_loss, focal_loss, true_class
from anomalib_zsclip.heads.maps import like, smooth, tokens_to_grid, upsample, upsample_and_smooth


def random_maps(*shape: int) -> torch.Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(1))


def test_tokens_are_laid_row_by_row() -> None:
    grid = tokens_to_grid(torch.arange(6).expand(2, 6), (2, 3))

    assert grid[1].tolist() == [[0, 1, 2], [3, 4, 5]]


@pytest.mark.parametrize("align_corners", [False, True])
@pytest.mark.parametrize(
    ("source", "size"), [((3, 3), (48, 48)), ((4, 7), (61, 33)), ((1, 5), (7, 9)), ((9, 9), (4, 5))]
)
def test_upsample_equals_torch(source: tuple[int, int], size: tuple[int, int], align_corners: bool) -> None:
    maps = random_maps(2, 3, *source)

    expected = interpolate(maps, size=size, mode="bilinear", align_corners=align_corners)
    torch.testing.assert_close(upsample(maps, size, align_corners=align_corners), expected, atol=2e-6, rtol=0)


@pytest.mark.parametrize("sigma", [0.3, 2.0, 8.0])
@pytest.mark.parametrize("size", [(48, 48), (20, 33), (1, 5), (3, 2)])
def test_smooth_equals_scipy(size: tuple[int, int], sigma: float) -> None:
    maps = random_maps(2, *size)

    expected = np.stack([gaussian_filter(one.numpy(), sigma) for one in maps])
    np.testing.assert_allclose(smooth(maps, sigma).numpy(), expected, atol=2e-6)


def test_one_step_equals_two() -> None:
    maps = random_maps(2, 5, 6)

    two = smooth(upsample(maps, (40, 50)), 3.0)
    torch.testing.assert_close(upsample_and_smooth(maps, (40, 50), 3.0), two, atol=1e-6, rtol=0)


def test_without_sigma_nothing_is_smoothed() -> None:
    maps = random_maps(2, 5, 6)

    assert smooth(maps, 0) is maps


def test_focal_loss_by_hand() -> None:
    # One anomalous pixel with probability 0.8, one normal pixel with probability 0.9 of normal.
    probabilities = torch.tensor([[[[0.2, 0.9]], [[0.8, 0.1]]]])
    masks = torch.tensor([[[1, 0]]])

    expected = (-(0.2**2) * math.log(0.8) - 0.1**2 * math.log(0.9)) / 2
    assert focal_loss(true_class(probabilities, masks)).item() == pytest.approx(expected, abs=1e-5)


def test_focal_loss_is_finite_where_the_prediction_is_surely_wrong() -> None:
    probabilities = torch.tensor([[[[1.0]], [[0.0]]]])

    assert focal_loss(true_class(probabilities, torch.ones(1, 1, 1))).item() == pytest.approx(-math.log(2e-5), rel=1e-3)


def test_dice_loss_by_hand() -> None:
    # First image: overlap 1, sizes 1.5 and 2. Second image: nothing to find, 0.5 predicted.
    probabilities = torch.tensor([[[0.5, 0.5, 0.5]], [[0.5, 0.0, 0.0]]])
    masks = torch.tensor([[[1.0, 1.0, 0.0]], [[0.0, 0.0, 0.0]]])

    expected = 1 - ((2 * 1 + 1) / (1.5 + 2 + 1) + 1 / (0.5 + 1)) / 2
    assert dice_loss(probabilities, masks).item() == pytest.approx(expected)


def test_dice_loss_is_averaged_over_images_and_keeps_a_batch_of_one() -> None:
    probabilities = torch.rand(3, 4, 5, generator=torch.Generator().manual_seed(2))
    masks = (probabilities > 0.6).float()

    single = [dice_loss(probabilities[[index]], masks[[index]]) for index in range(3)]
    torch.testing.assert_close(dice_loss(probabilities, masks), torch.stack(single).mean())


def test_constants_are_copied_once_and_never_kept_from_a_trace(monkeypatch: pytest.MonkeyPatch) -> None:
    made = []

    def ramp(length: int) -> np.ndarray:
        made.append(length)
        return np.arange(length, dtype=np.float32)

    example = torch.zeros(1, dtype=torch.float64)
    with torch.inference_mode():
        first = like(example, ramp, 3)
    assert like(example, ramp, 3) is first
    assert made == [3]
    assert first.dtype == torch.float64
    assert not first.is_inference()
    assert like(example.float(), ramp, 3).dtype == torch.float32
    assert like(example, ramp, 4).tolist() == [0, 1, 2, 3]
    assert like(example.to("meta"), ramp, 3).device.type == "meta"
    monkeypatch.setattr(torch.compiler, "is_compiling", lambda: True)
    assert like(example, ramp, 3) is not first
