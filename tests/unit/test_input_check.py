"""Images that own code hands to a model: right ones pass, wrong ones get an error that says what was expected."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from anomalib_zsclip.errors import ArgumentError
from anomalib_zsclip.images.input_check import check_images

RIGHT = torch.rand(2, 3, 8, 10)


@pytest.mark.parametrize("images", [RIGHT, RIGHT.half(), RIGHT.clamp(0.4, 0.5), RIGHT * 1.06 - 0.03, RIGHT[..., :3]])
def test_right_images_pass(images: torch.Tensor) -> None:
    check_images(images)


@pytest.mark.parametrize(
    ("images", "message"),
    [
        (RIGHT * 255, "values from .* divide by 255"),
        ((RIGHT * 255).byte(), r"uint8 values: images.float\(\) / 255"),
        ((RIGHT - 0.5) / 0.2, "do not normalise them"),
        (RIGHT.permute(0, 2, 3, 1), "channels last: images.permute"),
        (torch.rand(2, 8, 10, 4), "channels last.* alpha"),
        (RIGHT[:, :1], "grey images: images.expand"),
        (torch.rand(2, 4, 8, 10), "alpha channel: images"),
        (torch.rand(2, 7, 8, 10), "7 channels"),
        (RIGHT[0], "unsqueeze"),
        (RIGHT[:0], "no pixels"),
        (RIGHT.numpy(), "ndarray: make a tensor"),
        (RIGHT * float("nan"), "no finite numbers"),
        (RIGHT * float("inf"), "no finite numbers"),
    ],
)
def test_wrong_images_are_refused_with_what_to_do(images: torch.Tensor | np.ndarray, message: str) -> None:
    with pytest.raises(ArgumentError, match=rf"expects RGB images .* from 0 to 1, and got .*{message}"):
        check_images(images)
