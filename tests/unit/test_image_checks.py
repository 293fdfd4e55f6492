"""Unreadable images are named; errors that have nothing to do with images stay what they are."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from anomalib.data import ImageItem, PredictDataset
from PIL import Image

from anomalib_zsclip.errors import ArgumentError, CheckpointError, ImageReadError
from anomalib_zsclip.images import checks
from anomalib_zsclip.images.checks import UnreadableImages
from anomalib_zsclip.outputs.visualizer import FixedScaleVisualizer


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    for name in ("a.png", "b.png"):
        Image.new("RGB", (20, 20)).save(tmp_path / name)
    (tmp_path / "b.png").write_bytes(b"no image")
    return tmp_path


def trainer_of(folder: Path) -> SimpleNamespace:
    return SimpleNamespace(predict_dataloaders=SimpleNamespace(dataset=PredictDataset(folder)))


def raised(action: object) -> BaseException:
    with pytest.raises(BaseException) as found:  # noqa: PT011
        action()
    return found.value


def test_an_error_of_reading_is_answered_with_the_files(folder: Path) -> None:
    trainer = trainer_of(folder)
    error = raised(lambda: trainer.predict_dataloaders.dataset[1])
    with pytest.raises(ImageReadError, match=r"1 image file\(s\) cannot be read: .*b\.png"):
        UnreadableImages().on_exception(trainer, None, error)


def fail(error: BaseException) -> None:
    raise error


@pytest.mark.parametrize(
    "error",
    [
        ArgumentError("k_shot=4 needs as many normal images"),
        CheckpointError("the checkpoint has other weights"),
        ValueError("could not convert string to float"),
        OSError(28, "No space left on device"),
        RuntimeError("shapes do not match"),
        KeyboardInterrupt(),
    ],
)
def test_other_errors_stay_and_no_image_is_decoded_for_them(
    error: BaseException, folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(checks, "_unreadable", lambda path: pytest.fail("decoded"))
    UnreadableImages().on_exception(trainer_of(folder), None, raised(lambda: fail(error)))


def test_an_error_of_drawing_is_not_blamed_on_files(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(checks, "_unreadable", lambda path: pytest.fail("decoded"))
    item = ImageItem(image=torch.zeros(3, 8, 8))
    error = raised(lambda: FixedScaleVisualizer(field_size=(-1, -1)).visualize(item))
    assert isinstance(error, ValueError)
    UnreadableImages().on_exception(trainer_of(folder), None, error)
