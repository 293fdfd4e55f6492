"""The resize in whole grey levels: what it accepts, and that it is the same wherever a picture comes from."""

from __future__ import annotations

import pytest
import torch
from torchvision import tv_tensors
from torchvision.transforms.v2 import Compose, InterpolationMode, Normalize, Resize

from anomalib_zsclip.images import ClipPreProcessor
from anomalib_zsclip.images.resize import PublishedResize, is_vertical_first, resize_picture

MEAN, STD = (0.5, 0.4, 0.3), (0.2, 0.3, 0.4)


def make_images(*shape: int) -> torch.Tensor:
    return torch.rand(*shape, generator=torch.Generator().manual_seed(0))


def test_values_between_levels_are_rounded_first() -> None:
    images = make_images(2, 3, 40, 50)
    rounded = (255 * images).round() / 255
    assert not torch.equal(images, rounded)
    for size in ((20, 30), (40, 50)):
        assert torch.equal(resize_picture(images, size), resize_picture(rounded, size))


def test_a_second_resize_to_the_same_size_changes_nothing() -> None:
    once = resize_picture(make_images(3, 33, 47), (24, 20))
    assert torch.equal(resize_picture(once, (24, 20)), once)


def test_single_images_and_batches_are_alike() -> None:
    images = make_images(3, 3, 31, 64)
    pre_processor = ClipPreProcessor.for_size((16, 24), MEAN, STD)
    assert torch.equal(
        pre_processor(images), torch.stack([pre_processor.transform(tv_tensors.Image(image)) for image in images])
    )


def test_edges_do_not_overshoot() -> None:
    edge = torch.zeros(1, 3, 40, 40)
    edge[..., 20:] = 1
    resized = resize_picture(edge, (56, 56))
    assert resized.min() == 0
    assert resized.max() == 1


@pytest.mark.parametrize(
    ("height", "width", "size", "vertical"),
    [(120, 60, (100, 50), False), (121, 60, (100, 50), True), (900, 900, (240, 240), False), (50, 60, (50, 80), False)],
)
def test_tall_pictures_are_resized_along_y_first(
    height: int, width: int, size: tuple[int, int], vertical: bool
) -> None:
    assert is_vertical_first(height, width, size) is vertical


def test_a_bicubic_resize_of_torchvision_becomes_ours_and_back_in_a_checkpoint() -> None:
    resize = Resize((16, 24), interpolation=InterpolationMode.BICUBIC, antialias=True)
    pre_processor = ClipPreProcessor(Compose([resize, Normalize(MEAN, STD)]))
    assert isinstance(pre_processor.resize, PublishedResize)
    config = pre_processor.checkpoint_config()
    assert "torchvision" in config["transform"]["init_args"]["transforms"][0]["class_path"]
    loaded = ClipPreProcessor.for_size((8, 8), MEAN, STD)
    loaded.resize.published_masks = True
    loaded.load_checkpoint_config(config)
    assert loaded.resize.size == [16, 24]
    assert loaded.resize.published_masks
    images = make_images(1, 3, 40, 40)
    assert torch.equal(loaded(images), pre_processor(images))
