"""Pictures of results, with one fixed colour scale for all images."""

from __future__ import annotations

import logging
import os
import sys
import threading
from collections import deque
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import suppress
from functools import lru_cache
from itertools import repeat
from pathlib import Path
from typing import Any

import cv2
import matplotlib as mpl
import numpy as np
import torch
import torch.nn.functional as F
from anomalib.visualization import ImageVisualizer
from lightning.pytorch import LightningModule, Trainer
from PIL import Image, ImageDraw, ImageFont

from anomalib_zsclip.errors import check_list, check_path, check_whole_number
from anomalib_zsclip.images.folder_data import rules_of
from anomalib_zsclip.images.reading import DEFAULT_RULES, ReadingRules, read_picture

from .paths import ResultPaths
from .regions import PictureRegions

logger = logging.getLogger(__name__)

COLD, HOT = 0.4, 0.8
"""Map values up to ``COLD`` leave the image as it is; from ``HOT`` on the colour is strongest."""
STRENGTH = 0.7
BATCHES_WAITING = 2
"""Batches whose pictures may wait to be drawn, which bounds the memory."""
FAR_LARGER = 3
"""Pixels of a map along one of the panel's from which on a spot can fall between them."""
LEAST_BOX = 5
"""Least width and height of a box of a region, in pixels of the panel: a frame, and what it frames."""
CAPTION_HEIGHT = 24
CONTOUR_COLOR = (255, 0, 0)


class FixedScaleVisualizer(ImageVisualizer):
    """One strip per image: the image, the ground truth if there is one, the heat map, the predicted mask, a caption.

    A colour means the same in every picture: the scale runs over [0, 1] with the threshold at 0.5, and is never
    stretched to an image's own extremes. So a good part keeps its own colours, and does not glow because something in it
    has to be the least normal. The caption gives label, score and, where the model has one, its explanation.

    Args:
        field_size: Width and height of each panel.
        output_dir: Folder of the pictures. Default: ``images`` in the trainer's root folder. Below it they lie as the images
            do (see :mod:`~anomalib_zsclip.outputs.paths`).

    Raises:
        ArgumentError: If one of them is something else.
    """

    def __init__(self, field_size: tuple[int, int] = (256, 256), output_dir: str | Path | None = None) -> None:
        check_list("field_size", field_size, "two whole numbers, width and height in pixels", least=2)
        for index, side in enumerate(field_size):
            check_whole_number(f"field_size[{index}]", side, 1)
        check_path("output_dir", output_dir)
        super().__init__(field_size=field_size, output_dir=output_dir)
        self._pool: ThreadPoolExecutor | None = None
        self._pending: deque[Future[None]] = deque()
        self._paths: ResultPaths | None = None
        self._rules: ReadingRules | None = DEFAULT_RULES  # None where anomalib reads the images

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
        photo = _photo(item, self._rules).resize(self.field_size, Image.Resampling.BILINEAR)
        panels = [("Image", photo)]
        if item.gt_mask is not None:
            panels.append(("Ground truth", self._mask(item.gt_mask).convert("RGB")))
        if item.anomaly_map is not None:
            panels.append(("Anomaly map", self._heat(photo, _array(item.anomaly_map))))
        if item.pred_mask is not None:
            panel = self._contour(photo, self._mask(item.pred_mask))
            panels.append(("Predicted mask", self._boxes(panel, getattr(item, "regions", None))))

        width, height = self.field_size
        strip = Image.new("RGB", (width * len(panels), height + CAPTION_HEIGHT))
        for index, (title, panel) in enumerate(panels):
            strip.paste(panel, (index * width, 0))
            sign = _sign(title)
            strip.paste(sign, (index * width + 2, 4), sign)
        ImageDraw.Draw(strip).text((6, height + 4), _caption(item), font=_font(), fill="white")
        return strip

    def _heat(self, photo: Image.Image, values: np.ndarray) -> Image.Image:
        values = _block_maxima(values, self.field_size)
        levels = (np.nan_to_num(values).clip(0, 1) * 255).astype(np.uint8)
        levels = cv2.resize(levels, self.field_size, interpolation=cv2.INTER_LINEAR)
        colors, strength = _colors()
        return Image.composite(
            Image.fromarray(cv2.applyColorMap(levels, colors)), photo, Image.fromarray(cv2.LUT(levels, strength))
        )

    def _mask(self, mask: Any) -> Image.Image:  # noqa: ANN401
        binary = (_block_maxima(_array(mask), self.field_size) > 0.5).astype(np.uint8) * 255
        return Image.fromarray(binary).resize(self.field_size, Image.Resampling.NEAREST)

    def _contour(self, photo: Image.Image, mask: Image.Image) -> Image.Image:
        filled = np.asarray(mask)
        edge = cv2.subtract(filled, cv2.erode(filled, np.ones((5, 5), np.uint8)))
        return Image.composite(Image.new("RGB", photo.size, CONTOUR_COLOR), photo, Image.fromarray(edge))

    def _boxes(self, panel: Image.Image, regions: PictureRegions | None) -> Image.Image:
        """Draw the boxes of the regions, white on black, so that they stand out on any picture."""
        pen = ImageDraw.Draw(panel)
        for box in regions.judged_boxes if regions is not None else ():
            ends = [
                _least_length(start * side, (start + length) * side, side)
                for start, length, side in zip(box[:2], box[2:], panel.size, strict=True)
            ]
            (left, right), (top, bottom) = ends
            pen.rectangle((left, top, right, bottom), outline="black", width=3)
            pen.rectangle((left + 1, top + 1, right - 1, bottom - 1), outline="white")
        return panel

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
        paths = self._paths or self._start(trainer)
        if self._pool is None:
            self._pool = ThreadPoolExecutor(1, thread_name_prefix="pictures", initializer=_give_way)
        while len(self._pending) >= BATCHES_WAITING:
            self._pending.popleft().result()
        self._pending.append(self._pool.submit(self._save, batch, paths))

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

    def _start(self, trainer: Trainer) -> ResultPaths:
        self._rules = rules_of(trainer)
        paths = self._paths = ResultPaths.of(trainer, self.output_dir)
        paths.check("picture")
        if self.output_dir is not None and Path(self.output_dir).is_dir() and any(Path(self.output_dir).iterdir()):
            logger.warning("output_dir=%s holds files: pictures of the same names are replaced.", self.output_dir)
        return paths

    def _save(self, batch: Any, paths: ResultPaths) -> None:  # noqa: ANN401
        for item, regions in zip(batch, getattr(batch, "regions", None) or repeat(None), strict=False):
            item.regions = regions
            filename = paths.picture(item.image_path)
            filename.parent.mkdir(parents=True, exist_ok=True)
            picture = self.draw(item)
            if filename.suffix.lower() == ".png":
                filename.write_bytes(_png(picture))
            else:
                picture.save(filename)

    def _finish(self) -> None:
        # No thread stays behind: the model, with this callback in it, must be one that can be copied and saved.
        pool, self._pool = self._pool, None
        pending, self._pending = self._pending, deque()
        if pool is not None:
            pool.shutdown()
        self._paths, self._rules = None, DEFAULT_RULES  # only now: the last pictures were drawn by this run's rules
        for picture in pending:
            picture.result()


def _least_length(start: float, end: float, side: int) -> tuple[float, float]:
    """Ends of a box along one side of a panel, with room for its frame: large pictures have regions of less than a pixel."""
    middle = min(max((start + end) / 2, LEAST_BOX / 2), side - LEAST_BOX / 2)
    return min(start, middle - LEAST_BOX / 2), max(end, middle + LEAST_BOX / 2)


def panels_of(predictions: Any) -> list[str]:  # noqa: ANN401 - any of anomalib's items and batches
    """Titles of the panels that are drawn for an item or a batch, from left to right."""
    names = {"gt_mask": "Ground truth", "anomaly_map": "Anomaly map", "pred_mask": "Predicted mask"}
    return ["Image", *(title for name, title in names.items() if getattr(predictions, name) is not None)]


def _photo(item: Any, rules: ReadingRules | None) -> Image.Image:  # noqa: ANN401
    """The original image as it was judged where its file is known, else what the model was given."""
    if getattr(item, "image_path", None):
        if rules is not None:
            return read_picture(item.image_path, rules)[0]
        with Image.open(item.image_path) as image:
            return image.convert("RGB")
    values = _array(item.image)
    values = values.transpose(1, 2, 0) if values.shape[0] == 3 else values
    values = (values - values.min()) / max(float(values.max() - values.min()), 1e-6)
    height, width = values.shape[:2]
    values = np.broadcast_to(values.reshape(height, width, -1), (height, width, 3))  # grey has one channel, or none
    return Image.fromarray((values * 255).astype(np.uint8))


def _array(value: Any) -> np.ndarray:  # noqa: ANN401
    """Tensor or array as an array without leading dimensions of size one."""
    array = value.detach().float().cpu().numpy() if hasattr(value, "detach") else np.asarray(value, dtype=np.float32)
    while array.ndim > 2 and array.shape[0] == 1:
        array = array[0]
    return array


def _block_maxima(values: np.ndarray, field_size: tuple[int, int]) -> np.ndarray:
    """A map or mask ``[h, w]`` far larger than its panel, by the maxima of blocks: else small spots would be lost."""
    block = min(values.shape[0] // field_size[1], values.shape[1] // field_size[0])
    if block < FAR_LARGER:
        return values
    return F.max_pool2d(torch.from_numpy(np.ascontiguousarray(values))[None], block, ceil_mode=True)[0].numpy()


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


def _give_way() -> None:
    """Let the threads of the model go before this one, where the system has priorities of single threads (Linux)."""
    if sys.platform == "linux":
        with suppress(OSError):  # a container may forbid it
            os.setpriority(os.PRIO_PROCESS, threading.get_native_id(), 10)


@lru_cache(maxsize=8)
def _sign(title: str) -> Image.Image:
    """The title of a panel, white on a shade."""
    left, top, right, bottom = _font().getbbox(title)
    sign = Image.new("RGBA", (int(right - left) + 8, int(bottom - top) + 6), (0, 0, 0, 140))
    ImageDraw.Draw(sign).text((4 - left, 2 - top), title, font=_font(), fill="white")
    return sign


def _png(picture: Image.Image) -> bytes:
    """As a PNG file, twice as fast as Pillow, which tries all filters: a small model takes hardly longer per image."""
    pixels = cv2.cvtColor(np.asarray(picture), cv2.COLOR_RGB2BGR)
    options = [cv2.IMWRITE_PNG_COMPRESSION, 1, cv2.IMWRITE_PNG_FILTER, cv2.IMWRITE_PNG_FILTER_UP]
    return cv2.imencode(".png", pixels, options)[1].tobytes()


@lru_cache(maxsize=1)
def _colors() -> tuple[np.ndarray, np.ndarray]:
    """Colours ``[256, 1, 3]`` and their strength ``[256]`` for map values from 0 to 1 in 256 levels, both uint8."""
    levels = np.linspace(0, 1, 256)
    colors = (mpl.colormaps["turbo"](levels)[:, None, :3] * 255).astype(np.uint8)
    strength = (((levels - COLD) / (HOT - COLD)).clip(0, 1) * STRENGTH * 255).astype(np.uint8)
    return colors, strength
