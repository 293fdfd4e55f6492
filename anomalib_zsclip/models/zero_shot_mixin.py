"""What all our Lightning models share: how a zero-shot detector behaves inside anomalib."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from anomalib import LearningType
from anomalib.data import Batch, InferenceBatch
from anomalib.metrics import AUPRO, AUROC, AnomalibMetric, Evaluator, F1Max
from anomalib.pre_processing import PreProcessor
from lightning.pytorch import Callback, LightningModule, Trainer
from PIL import Image
from torch import Tensor
from torchmetrics.classification import BinaryAveragePrecision

from anomalib_zsclip.clip import ClipBackbone
from anomalib_zsclip.clip.backbone import OPENAI_MEAN, OPENAI_STD
from anomalib_zsclip.errors import ArgumentError, CheckpointError, ImageReadError
from anomalib_zsclip.heads.base import Head
from anomalib_zsclip.post_processing import MonotonePostProcessor
from anomalib_zsclip.pre_processing import ClipPreProcessor
from anomalib_zsclip.visualization import FixedScaleVisualizer

from .zero_shot_model import ZeroShotModel

logger = logging.getLogger(__name__)

BACKBONE_PREFIX = "model.backbone."
DEFAULT_CLASS_NAME = "object"


class AveragePrecision(AnomalibMetric, BinaryAveragePrecision):
    """Average precision of torchmetrics, for anomalib's batches."""


class ZeroShotMixin:
    """Hooks of a zero-shot detector; stands before ``AnomalibModule`` in the bases of a model.

    A model calls :meth:`assemble` at the end of its constructor. The text side is compiled once, when it is first needed
    and after the weights of a checkpoint are in place (:meth:`prepare`).
    """

    model: ZeroShotModel
    class_name: str | None = None
    learn: bool = False
    epochs: int = 1

    def assemble(
        self,
        backbone: ClipBackbone,
        heads: dict[str, Head],
        *,
        image_size: int | Sequence[int] | None,
        precision: str,
        pre_processor: object,
        class_name: str | None = None,
        weights: dict[str, float] | None = None,
    ) -> None:
        """Put backbone and heads together.

        Args:
            backbone: The frozen CLIP.
            heads: The heads by name.
            image_size: Side, or (height, width), that images are resized to. Default: the backbone's native size.
            precision: ``"float32"``, ``"bf16"``, ``"fp16"``, or ``"auto"``.
            pre_processor: The constructor's argument; ``True`` asks for the default one.
            class_name: What the images show; ``None`` takes the data module's category, else "object".
            weights: Weights of the heads.
        """
        if precision not in ("float32", "bf16", "fp16", "auto"):
            msg = f"precision={precision!r} must be 'float32', 'bf16', 'fp16' or 'auto'."
            raise ArgumentError(msg)
        self.model = ZeroShotModel(backbone, heads, weights)
        self.class_name = class_name
        self.precision_name = precision
        self._compiled_class: str | None = None
        self._from_checkpoint = False
        size = _as_size(image_size, backbone)
        if pre_processor is True:
            self.pre_processor: PreProcessor | None = ClipPreProcessor.for_size(size, backbone.mean, backbone.std)

    # ------------------------------------------------------------------ text side
    def prepare(self, trainer: Trainer | None = None) -> None:
        """Compile the text side if that has not been done for this class name.

        Args:
            trainer: Its data module may know the category.
        """
        backbone = self.model.backbone
        backbone.set_precision(_resolve_precision(self.precision_name, backbone))
        category = getattr(getattr(trainer, "datamodule", None), "category", None)
        if self._compiled_class is not None and (self._from_checkpoint or self.class_name or not category):
            return
        class_name = self.class_name or category or self._compiled_class or DEFAULT_CLASS_NAME
        if class_name == self._compiled_class:
            return
        with torch.inference_mode(mode=False), torch.no_grad():
            for head in self.model.heads.values():
                head.setup(backbone, class_name)
        self._compiled_class = class_name

    def on_fit_start(self) -> None:
        """Compile the text side on the device."""
        super().on_fit_start()  # type: ignore[misc]
        self.prepare(self.trainer)

    def on_validation_start(self) -> None:
        """Compile the text side on the device."""
        self.prepare(self.trainer)

    def on_test_start(self) -> None:
        """Compile the text side on the device."""
        self.prepare(self.trainer)

    def on_predict_start(self) -> None:
        """Compile the text side on the device."""
        self.prepare(self.trainer)

    def forward(self, batch: Tensor, *args: object, **kwargs: object) -> InferenceBatch:
        """Images in [0, 1], ``[B, 3, H, W]``, to post-processed predictions."""
        if self._compiled_class is None:
            self.prepare()
        return super().forward(batch, *args, **kwargs)  # type: ignore[misc]

    # ------------------------------------------------------------------ steps
    def validation_step(self, batch: Batch, *args: object, **kwargs: object) -> Batch:
        """Predict, so that threshold and range can be found."""
        del args, kwargs
        predictions = self.model(batch.image)
        return batch.update(**predictions._asdict())

    def val_dataloader(self) -> list[object]:
        """No validation data of the model's own; a data module's goes first.

        anomalib validates before it predicts or tests with a zero-shot model, whether there is data for it or not.
        """
        return []

    def configure_optimizers(self) -> Any:  # noqa: ANN401 - Lightning's own type
        """Nothing to optimise."""
        return None

    def configure_callbacks(self) -> Sequence[Callback]:
        """anomalib's callbacks, and the one that names unreadable images."""
        return [*super().configure_callbacks(), UnreadableImages()]  # type: ignore[misc]

    @property
    def learning_type(self) -> LearningType:
        """Zero-shot: anomalib validates and tests, and does not train."""
        return LearningType.ZERO_SHOT

    @property
    def trainer_arguments(self) -> dict[str, Any]:
        """A learning model says how long it learns; Lightning's own default is 1000 epochs."""
        return {"max_epochs": self.epochs, "num_sanity_val_steps": 0} if self.learn else {}

    # ------------------------------------------------------------------ components
    @classmethod
    def configure_pre_processor(cls, image_size: tuple[int, int] | None = None) -> ClipPreProcessor:
        """CLIP's pre-processing for ``image_size``; a model made with a backbone uses that backbone's native size."""
        return ClipPreProcessor.for_size(image_size or (240, 240), OPENAI_MEAN, OPENAI_STD)

    @staticmethod
    def configure_post_processor() -> MonotonePostProcessor:
        """Normalisation that keeps rankings."""
        return MonotonePostProcessor()

    @classmethod
    def configure_visualizer(cls) -> FixedScaleVisualizer:
        """Heat maps with one fixed scale for all images."""
        return FixedScaleVisualizer()

    @staticmethod
    def configure_evaluator() -> Evaluator:
        """Metrics of the zero-shot papers: image AUROC, AP, F1-max; pixel AUROC, F1-max, AUPRO."""
        image = {"fields": ["pred_score", "gt_label"], "prefix": "image_"}
        pixel = {"fields": ["anomaly_map", "gt_mask"], "prefix": "pixel_", "strict": False}
        return Evaluator(
            val_metrics=[AUROC(**image), AUROC(**pixel)],
            test_metrics=[
                AUROC(**image),
                AveragePrecision(**image),
                F1Max(**image),
                AUROC(**pixel),
                F1Max(**pixel),
                AUPRO(**pixel),
            ],
        )

    # ------------------------------------------------------------------ checkpoints
    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Leave the frozen CLIP out; keep its identity."""
        super().on_save_checkpoint(checkpoint)  # type: ignore[misc]
        state = checkpoint["state_dict"]
        checkpoint["state_dict"] = {key: value for key, value in state.items() if not key.startswith(BACKBONE_PREFIX)}
        checkpoint["zsclip_backbone"] = self.model.backbone.identity.as_dict()
        checkpoint["zsclip_class_name"] = self._compiled_class

    def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Check that the backbone is the one that the checkpoint was made with, and put its weights back."""
        super().on_load_checkpoint(checkpoint)  # type: ignore[misc]
        saved = checkpoint.get("zsclip_backbone")
        own = self.model.backbone.identity
        if not saved:
            msg = "This checkpoint was not made by a model of anomalib-zsclip: it does not say which CLIP it belongs to."
            raise CheckpointError(msg)
        if saved["fingerprint"] != own.fingerprint:
            msg = (
                f"This checkpoint was made with the backbone {saved['name']!r} (weights {saved['pretrained']!r}), but the "
                f"model has {own.name!r} (weights {own.pretrained!r}). Pass backbone={saved['name']!r} and "
                f"pretrained={saved['pretrained']!r}."
            )
            raise CheckpointError(msg)
        state = checkpoint["state_dict"]
        _fit_buffers(self, state)
        state.update({BACKBONE_PREFIX + key: value for key, value in self.model.backbone.state_dict().items()})
        self._compiled_class = checkpoint.get("zsclip_class_name")
        self._from_checkpoint = self._compiled_class is not None

    # ------------------------------------------------------------------ export
    def to_torch(self, *args: object, **kwargs: object) -> Path:
        """Export as a torch file; see anomalib."""
        self.prepare()
        return super().to_torch(*args, **kwargs)  # type: ignore[misc]

    def to_onnx(self, *args: object, **kwargs: object) -> Path:
        """Export as ONNX; see anomalib. The text side is compiled in."""
        self.prepare()
        self._warm_up()
        return super().to_onnx(*args, **kwargs)  # type: ignore[misc]

    def _warm_up(self) -> None:
        """Run once, so that what depends on the image size alone is made outside the exported graph."""
        height, width = self.input_size or (self.model.backbone.image_size,) * 2  # type: ignore[attr-defined]
        device = self.model.backbone.clip.logit_scale.device
        with torch.no_grad():
            self.model(torch.zeros(1, 3, height, width, device=device))


class UnreadableImages(Callback):
    """Names the files where a data loader stumbles over an image that cannot be read."""

    def on_exception(self, trainer: Trainer, pl_module: LightningModule, exception: BaseException) -> None:
        """Look for the unreadable files of the data sets in use."""
        del pl_module
        if not isinstance(exception, (OSError, ValueError, SyntaxError)) or isinstance(exception, ImageReadError):
            return
        bad = [path for path in _image_paths(trainer) if not _is_readable(path)]
        if bad:
            shown = ", ".join(str(path) for path in bad[:5]) + (", ..." if len(bad) > 5 else "")
            msg = f"{len(bad)} image file(s) cannot be read: {shown}. Remove or replace them."
            raise ImageReadError(msg) from None


def _image_paths(trainer: Trainer) -> list[Path]:
    loaders: list[Any] = []
    for name in ("predict_dataloaders", "test_dataloaders", "val_dataloaders", "train_dataloader"):
        found = getattr(trainer, name, None)
        loaders.extend(found if isinstance(found, (list, tuple)) else [found])
    paths: list[Path] = []
    for dataset in (getattr(loader, "dataset", None) for loader in loaders):
        samples = getattr(dataset, "samples", None)
        files = samples["image_path"] if samples is not None else getattr(dataset, "image_filenames", [])
        paths.extend(Path(file) for file in files)
    return list(dict.fromkeys(paths))


def _is_readable(path: Path) -> bool:
    try:
        with Image.open(path) as image:
            image.load()
    except (OSError, ValueError, SyntaxError):
        return False
    return True


def _as_size(image_size: int | Sequence[int] | None, backbone: ClipBackbone) -> tuple[int, int]:
    if image_size is None:
        return (backbone.image_size, backbone.image_size)
    size = (image_size, image_size) if isinstance(image_size, int) else tuple(image_size)
    if len(size) != 2 or not all(isinstance(side, int) and side >= backbone.patch_size for side in size):
        msg = (
            f"image_size={image_size!r} must be a side or (height, width) of at least one patch of "
            f"{backbone.patch_size} pixels."
        )
        raise ArgumentError(msg)
    return (size[0], size[1])


def _resolve_precision(precision: str, backbone: ClipBackbone) -> str:
    """``"auto"``: bf16 where the device multiplies it natively."""
    if precision != "auto":
        return precision
    if backbone.clip.logit_scale.device.type == "cuda":
        return "bf16" if torch.cuda.is_bf16_supported(including_emulation=False) else "float32"
    native = torch.backends.mkldnn.is_available() and torch.ops.mkldnn._is_mkldnn_bf16_supported()  # noqa: SLF001
    return "bf16" if native else "float32"


def _fit_buffers(module: torch.nn.Module, state: dict[str, Tensor]) -> None:
    """Give buffers whose size depends on the data (a memory of normal patches) the size that they have in ``state``."""
    for key, value in state.items():
        owner_name, _, name = key.rpartition(".")
        try:
            owner = module.get_submodule(owner_name)
        except AttributeError:
            continue
        buffer = owner._buffers.get(name)  # noqa: SLF001 - torch has no public way to replace a buffer's storage
        if buffer is not None and buffer.shape != value.shape:
            owner._buffers[name] = torch.empty_like(value, device=buffer.device)  # noqa: SLF001


def read_backbone_arguments(
    backbone: str, pretrained: str | Path | None, auto: tuple[str, str], position_mode: str
) -> ClipBackbone:
    """Load the backbone that a model's arguments name."""
    return ClipBackbone.load(
        backbone, str(pretrained) if pretrained is not None else None, auto=auto, position_mode=position_mode
    )
