"""Small data sets and a small detector for the tests of learning."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import cv2
import numpy as np
import open_clip
import torch
from anomalib.data import Folder, MVTecAD
from anomalib.models.components import AnomalibModule

from anomalib_zsclip.clip import ClipBackbone
from anomalib_zsclip.data.zero_shot_transfer import ZeroShotTransfer
from anomalib_zsclip.heads.anomaly_clip import AnomalyClipHead
from anomalib_zsclip.heads.base import LearnableHead
from anomalib_zsclip.heads.crane import CraneHead
from anomalib_zsclip.heads.sdp import SdpHead
from anomalib_zsclip.heads.sdp_plus import SdpPlusHead
from anomalib_zsclip.learning import LearningMixin
from anomalib_zsclip.models.hooks import ZeroShotMixin

IMAGE_SIZE = 32


def make_category(
    root: Path,
    category: str,
    *,
    normal: int = 3,
    anomalous: int = 3,
    size: tuple[int, int] = (40, 40),
    mask_size: tuple[int, int] | None = None,
    mask_value: int = 255,
    seed: int = 0,
) -> Path:
    """Write a category in the form of MVTec AD: noise, and bright squares as defects in the upper left quarter."""
    rng = np.random.default_rng([seed, *category.encode()])
    folder = root / category

    def write(path: Path, image: np.ndarray) -> None:
        path.parent.mkdir(parents=True, exist_ok=True)
        cv2.imwrite(str(path), image)

    for index in range(2):
        write(folder / "train" / "good" / f"{index:03d}.png", rng.integers(0, 128, (*size, 3), dtype=np.uint8))
    for index in range(normal):
        write(folder / "test" / "good" / f"{index:03d}.png", rng.integers(0, 128, (*size, 3), dtype=np.uint8))
    for index in range(anomalous):
        image = rng.integers(0, 128, (*size, 3), dtype=np.uint8)
        image[: size[0] // 2, : size[1] // 2] = 255
        write(folder / "test" / "bad" / f"{index:03d}.png", image)
        height, width = mask_size or size
        mask = np.zeros((height, width), dtype=np.uint8)
        mask[: height // 2, : width // 2] = mask_value
        write(folder / "ground_truth" / "bad" / f"{index:03d}_mask.png", mask)
    return folder


def mvtec(root: Path, category: str, **arguments: Any) -> MVTecAD:
    return MVTecAD(root, category, num_workers=0, **arguments)


def folder_without_masks(root: Path, category: str) -> Folder:
    return Folder(category, "train/good", root / category, "test/bad", "test/good", num_workers=0, seed=0)


def transfer(auxiliary: Any, target: Any, **arguments: Any) -> ZeroShotTransfer:
    return ZeroShotTransfer(auxiliary, target, **{"num_workers": 0, "train_batch_size": 4, "seed": 0} | arguments)


def make_transfer(tmp_path: Path, **arguments: Any) -> ZeroShotTransfer:
    """Two auxiliary categories with three normal and three anomalous test images each, and a target."""
    for category in ("cup", "metal_nut"):
        make_category(tmp_path / "auxiliary", category)
    make_category(tmp_path / "target", "plate")
    return transfer(mvtec(tmp_path / "auxiliary", "cup"), mvtec(tmp_path / "target", "plate"), **arguments)


def make_backbone() -> ClipBackbone:
    """A random CLIP with patches of 8 pixels and 4 image blocks."""
    with torch.random.fork_rng():
        torch.manual_seed(0)
        vision = {"image_size": IMAGE_SIZE, "layers": 4, "width": 32, "head_width": 16, "patch_size": 8}
        text = {"context_length": 77, "vocab_size": 49408, "width": 16, "heads": 2, "layers": 2}
        # As wide as the text tower, so that an image can be a token of a sentence.
        return ClipBackbone(open_clip.model.CLIP(16, vision, text), name="tiny")


def make_head(kind: str, backbone: ClipBackbone, learn: bool) -> LearnableHead:
    if kind == "anomaly_clip":
        return AnomalyClipHead(learn=learn, n_ctx=2, t_n_ctx=2)
    if kind == "crane":
        return CraneHead(learn=learn, n_ctx=2, t_n_ctx=2)
    sdp = SdpHead(backbone, sigma=2, rvs="mean", prompts=Path(__file__).parent / "few_prompts.yaml", text_cache=False)
    return SdpPlusHead(sdp, backbone, learning_rate=1e-2)


class Detector(LearningMixin, ZeroShotMixin, AnomalibModule):
    """A detector that keeps its losses."""

    def __init__(
        self,
        kind: str = "sdp+",
        learn: bool = True,
        epochs: int = 2,
        token_cache: bool = True,
        cache_budget_gb: float = 1.0,
        seed: int = 0,
    ) -> None:
        super().__init__(visualizer=False)
        torch.manual_seed(seed)
        backbone = make_backbone()
        head = make_head(kind, backbone, learn)
        self.learn = learn
        self.epochs = epochs
        self.token_cache = token_cache
        self.cache_budget_gb = cache_budget_gb
        self.assemble(
            backbone,
            {kind: head},
            image_size=(backbone.image_size,) * 2,
            precision="float32",
            pre_processor=True,
            post_processor=True,
        )
        self.kind = kind
        self.losses: list[float] = []
        self.tower_images = 0
        self.add_counter()

    @property
    def learning_head(self) -> LearnableHead:
        """As the models have it: a second name among the modules would be a second entry in checkpoints."""
        return self.model.heads[self.kind]

    def add_counter(self) -> None:
        backbone, forward = self.model.backbone, self.model.backbone.forward_intermediates

        def counted(images: torch.Tensor, request: Any = None) -> Any:
            self.tower_images += len(images) * self.training
            return forward(images, request)

        backbone.forward_intermediates = counted  # type: ignore[method-assign]

    def training_step(self, batch: Any, batch_idx: int) -> torch.Tensor:
        loss = super().training_step(batch, batch_idx)
        self.losses.append(float(loss))
        return loss
