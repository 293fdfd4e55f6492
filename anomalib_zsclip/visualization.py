"""Pictures of results, with one fixed colour scale for all images."""

from __future__ import annotations

from collections import deque
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import suppress
from functools import lru_cache
from pathlib import Path
from typing import Any

import matplotlib as mpl
import numpy as np
from anomalib.utils.path import generate_output_filename
from anomalib.visualization import ImageVisualizer
from lightning.pytorch import LightningModule, Trainer
from PIL import Image, ImageChops, ImageDraw, ImageFilter, ImageFont

COLD, HOT = 0.4, 0.8
"""Map values up to ``COLD`` leave the image as it is; from ``HOT`` on the colour is strongest."""
STRENGTH = 0.7
BATCHES_WAITING = 2
"""Batches whose pictures may wait to be drawn, which bounds the memory."""
CAPTION_HEIGHT = 24
CONTOUR_COLOR = (255, 0, 0)


class FixedScaleVisualizer(ImageVisualizer):
    """One strip per image: the image, the ground truth if there is one, the heat map, the predicted mask, a caption.

    A colour means the same in every picture: the scale runs over [0, 1] with the threshold at 0.5, and is never
    stretched to an image's own extremes. So a good part keeps its own colours, and does not glow because something in it
    has to be the least normal. The caption gives label, score and, where the model has one, its explanation.

    Args:
        field_size: Width and height of each panel.
        output_dir: Folder of the pictures. Default: ``images`` in the trainer's root folder.
    """

    def __init__(self, field_size: tuple[int, int] = (256, 256), output_dir: str | Path | None = None) -> None:
        super().__init__(field_size=field_size, output_dir=output_dir)
        self._pool: ThreadPoolExecutor | None = None
        self._pending: deque[Future[None]] = deque()

    def visualize(self, predictions: Any) -> Any:  # noqa: ANN401 - any of anomalib's items and batches
        """Draw one item, or all items of a batch.

        Returns:
            An image for an item or a batch of one, else a list of images.
        """
        if hasattr(predictions, "batch_size"):
            images = [self.draw(item) for item in predictions]
            return images[0] if len(images) == 1 else images
        return self.draw(predictions)

    def draw(self, item: Any) -> Image.Image:  # noqa: ANN401 - anomalib's ImageItem or NumpyImageItem
        """Draw the strip of one item."""
        photo = _photo(item).resize(self.field_size, Image.Resampling.BILINEAR)
        panels = [("Image", photo)]
        if item.gt_mask is not None:
            panels.append(("Ground truth", self._mask(item.gt_mask).convert("RGB")))
        if item.anomaly_map is not None:
            panels.append(("Anomaly map", self._heat(photo, _array(item.anomaly_map))))
        if item.pred_mask is not None:
            panels.append(("Predicted mask", self._contour(photo, self._mask(item.pred_mask))))

        width, height = self.field_size
        strip = Image.new("RGB", (width * len(panels), height + CAPTION_HEIGHT))
        pen = ImageDraw.Draw(strip, "RGBA")
        for index, (title, panel) in enumerate(panels):
            strip.paste(panel, (index * width, 0))
            box = pen.textbbox((index * width + 6, 4), title, font=_font())
            pen.rectangle((box[0] - 4, box[1] - 2, box[2] + 4, box[3] + 3), fill=(0, 0, 0, 140))
            pen.text((index * width + 6, 4), title, font=_font(), fill="white")
        pen.text((6, height + 4), _caption(item), font=_font(), fill="white")
        return strip

    def _heat(self, photo: Image.Image, values: np.ndarray) -> Image.Image:
        values = np.asarray(
            Image.fromarray(values.astype(np.float32)).resize(self.field_size, Image.Resampling.BILINEAR)
        )
        levels = (np.nan_to_num(values).clip(0, 1) * 255).astype(np.uint8)
        strength = ((values - COLD) / (HOT - COLD)).clip(0, 1) * STRENGTH * 255
        return Image.composite(
            Image.fromarray(_colors()[levels]), photo, Image.fromarray(np.nan_to_num(strength).astype(np.uint8))
        )

    def _mask(self, mask: Any) -> Image.Image:  # noqa: ANN401
        binary = (_array(mask) > 0.5).astype(np.uint8) * 255
        return Image.fromarray(binary).resize(self.field_size, Image.Resampling.NEAREST)

    def _contour(self, photo: Image.Image, mask: Image.Image) -> Image.Image:
        edge = ImageChops.subtract(mask, mask.filter(ImageFilter.MinFilter(5)))
        return Image.composite(Image.new("RGB", photo.size, CONTOUR_COLOR), photo, edge)

    def on_test_batch_end(
        self,
        trainer: Trainer,
        pl_module: LightningModule,
        outputs: Any,  # noqa: ANN401
        batch: Any,  # noqa: ANN401
        batch_idx: int,
        dataloader_idx: int = 0,
    ) -> None:
        """Have the pictures of a batch drawn while the model goes on."""
        del pl_module, outputs, batch_idx, dataloader_idx
        if self.output_dir is None:
            self.output_dir = Path(trainer.default_root_dir) / "images"
        datamodule = getattr(trainer, "datamodule", None)
        jobs = []
        for item in batch:
            filename = generate_output_filename(
                input_path=item.image_path or "",
                output_path=self.output_dir,
                dataset_name=getattr(datamodule, "name", None),
                category=getattr(datamodule, "category", None),
            )
            jobs.append((item, filename))
        if self._pool is None:
            self._pool = ThreadPoolExecutor(max_workers=1, thread_name_prefix="pictures")
        while len(self._pending) >= BATCHES_WAITING:
            self._pending.popleft().result()
        self._pending.append(self._pool.submit(self._save, jobs))

    def on_test_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Wait for the last pictures."""
        del trainer, pl_module
        self._finish()

    def on_predict_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Wait for the last pictures."""
        del trainer, pl_module
        self._finish()

    def on_exception(self, trainer: Trainer, pl_module: LightningModule, exception: BaseException) -> None:
        """Wait for the pictures of the batches that are done."""
        del trainer, pl_module, exception
        with suppress(Exception):  # the first exception is the one to show
            self._finish()

    def _save(self, jobs: list[tuple[Any, Path]]) -> None:
        for item, filename in jobs:
            # The fastest compression: the smallest would take longer than a small model's inference.
            options: dict[str, Any] = {"compress_level": 1} if filename.suffix.lower() == ".png" else {}
            self.draw(item).save(filename, **options)

    def _finish(self) -> None:
        # No thread stays behind: the model, with this callback in it, must be one that can be copied and saved.
        pool, self._pool = self._pool, None
        pending, self._pending = self._pending, deque()
        if pool is not None:
            pool.shutdown()
        for picture in pending:
            picture.result()


def _photo(item: Any) -> Image.Image:  # noqa: ANN401
    """The original image where its file is known, else what the model was given."""
    if getattr(item, "image_path", None):
        with Image.open(item.image_path) as image:
            return image.convert("RGB")
    values = _array(item.image)
    values = values.transpose(1, 2, 0) if values.shape[0] == 3 else values
    values = (values - values.min()) / max(float(values.max() - values.min()), 1e-6)
    return Image.fromarray((values * 255).astype(np.uint8))


def _array(value: Any) -> np.ndarray:  # noqa: ANN401
    """Tensor or array as an array without leading dimensions of size one."""
    array = value.detach().float().cpu().numpy() if hasattr(value, "detach") else np.asarray(value, dtype=np.float32)
    while array.ndim > 2 and array.shape[0] == 1:
        array = array[0]
    return array


def _caption(item: Any) -> str:  # noqa: ANN401
    parts = []
    if item.pred_label is not None:
        parts.append("anomalous" if bool(_array(item.pred_label)) else "normal")
    if item.pred_score is not None:
        parts.append(f"score {float(_array(item.pred_score)):.2f}")
    if item.gt_label is not None:
        parts.append("truth: " + ("anomalous" if bool(_array(item.gt_label)) else "normal"))
    # What a defect is called says nothing about a part that is judged to have none.
    if getattr(item, "explanation", None) and (item.pred_label is None or bool(_array(item.pred_label))):
        parts.append(str(item.explanation))
    return "  |  ".join(parts)


@lru_cache(maxsize=1)
def _font() -> Any:  # noqa: ANN401 - Pillow gives one of two classes
    return ImageFont.load_default(size=14)


@lru_cache(maxsize=1)
def _colors() -> np.ndarray:
    """Colours of 256 levels, ``[256, 3]``."""
    return (mpl.colormaps["turbo"](np.arange(256))[:, :3] * 255).astype(np.uint8)
