"""What all our Lightning models share: how a zero-shot detector behaves inside anomalib."""

from __future__ import annotations

import logging
import pickle
import zipfile
from collections.abc import Iterator, Sequence
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
from typing_extensions import Self

from anomalib_zsclip.archives import check_archive
from anomalib_zsclip.clip import ClipBackbone
from anomalib_zsclip.clip.backbone import OPENAI_MEAN, OPENAI_STD
from anomalib_zsclip.errors import ArgumentError, CheckpointError, ImageReadError, ZsClipError
from anomalib_zsclip.heads.base import Head
from anomalib_zsclip.heads.few_shot import FewShotMemory
from anomalib_zsclip.post_processing import NO_DATA, MonotonePostProcessor
from anomalib_zsclip.pre_processing import ClipPreProcessor
from anomalib_zsclip.predictions_file import PredictionsFile
from anomalib_zsclip.reading import ReadAhead
from anomalib_zsclip.visualization import FixedScaleVisualizer

from .normal_images import find_normal_images, load_batches, pick
from .zero_shot_model import ZeroShotModel

logger = logging.getLogger(__name__)

UNREADABLE = (OSError, ValueError, SyntaxError, Image.DecompressionBombError)
"""What Pillow raises for images that it cannot read."""

BACKBONE_PREFIX = "model.backbone."
DEFAULT_CLASS_NAME = "object"
WEIGHT_FILES = ("checkpoint", "sdp_plus_checkpoint", "anomaly_clip_checkpoint")
"""Arguments that name files with learned parameters."""
IN_CHECKPOINT = "(in the checkpoint)"
"""What a checkpoint has in place of such a file: it holds the parameters, and the file may be gone."""


class AveragePrecision(AnomalibMetric, BinaryAveragePrecision):  # type: ignore[misc]
    """Average precision of torchmetrics, for anomalib's batches."""


class ZeroShotMixin(LightningModule):
    """Hooks of a zero-shot detector; stands before ``AnomalibModule`` in the bases of a model.

    A model calls :meth:`assemble` at the end of its constructor. The text side is compiled once, when it is first needed
    and after the weights of a checkpoint are in place (:meth:`prepare`).
    """

    model: ZeroShotModel
    class_name: str | None = None
    learn: bool = False
    epochs: int = 1
    k_shot: int = 0
    normal_dir: str | Path | None = None
    normal_images: int = 32

    def assemble(
        self,
        backbone: ClipBackbone,
        heads: dict[str, Head],
        *,
        image_size: tuple[int, int],
        precision: str,
        pre_processor: object,
        class_name: str | None = None,
        **model_arguments: Any,  # noqa: ANN401
    ) -> None:
        """Put backbone and heads together.

        Args:
            backbone: The frozen CLIP.
            heads: The heads by name.
            image_size: Height and width that images are resized to; see :func:`resolve_size`.
            precision: ``"float32"``, ``"bf16"``, ``"fp16"``, or ``"auto"``.
            pre_processor: The constructor's argument; ``True`` asks for the default one.
            class_name: What the images show; ``None`` takes the data module's category, else "object".
            **model_arguments: Further arguments of :class:`ZeroShotModel`.
        """
        if precision not in ("float32", "bf16", "fp16", "auto"):
            msg = f"precision={precision!r} must be 'float32', 'bf16', 'fp16' or 'auto'."
            raise ArgumentError(msg)
        if class_name is not None and not isinstance(class_name, str):
            msg = f"class_name={class_name!r} must be a text: what the images show."
            raise ArgumentError(msg)
        self.model = ZeroShotModel(backbone, heads, **model_arguments)
        self.class_name = class_name
        self.precision_name = precision
        self._compiled_class: str | None = None
        self._from_checkpoint = False
        if pre_processor is True:
            self.pre_processor: PreProcessor | None = ClipPreProcessor.for_size(image_size, backbone.mean, backbone.std)

    # ------------------------------------------------------------------ text side
    def prepare(self, trainer: Trainer | None = None) -> None:
        """Compile the text side if that has not been done for this class name.

        Args:
            trainer: Its data module may know the category.
        """
        backbone = self.model.backbone
        precision = _resolve_precision(self.precision_name, backbone)
        if precision != "float32":
            backbone.set_precision(precision)
        category = getattr(getattr(trainer, "datamodule", None), "category", None)
        if self._compiled_class is not None and (self._from_checkpoint or self.class_name or not category):
            return
        class_name = self.class_name or category or self._compiled_class or DEFAULT_CLASS_NAME
        if class_name == self._compiled_class:
            return
        with torch.inference_mode(mode=False), torch.no_grad():
            for head in self.model.heads.values():
                head.setup(backbone, class_name)  # type: ignore[operator]
            if self.model.namer is not None:
                self.model.namer.setup(backbone)
        self._compiled_class = class_name

    def on_fit_start(self) -> None:
        """Compile the text side on the device."""
        super().on_fit_start()
        self.prepare(self.trainer)

    def on_validation_start(self) -> None:
        """Compile the text side on the device, and fill the memory of normal patches."""
        self.prepare(self.trainer)
        self.fill_memory(self.trainer)

    def on_test_start(self) -> None:
        """Compile the text side, fill the memory, and decide from normal images if there was no validation data."""
        self.on_validation_start()
        self.decide(self.trainer)
        if isinstance(self.post_processor, MonotonePostProcessor):
            logger.info("Decisions from %s.", self.post_processor.describe())

    def on_predict_start(self) -> None:
        """Compile the text side, fill the memory, and decide from normal images if there was no validation data."""
        self.on_test_start()

    def teardown(self, stage: str) -> None:
        """Decide from the training images where there was nothing to validate on: Lightning then skips its hooks."""
        super().teardown(stage)
        undecided = (
            isinstance(self.post_processor, MonotonePostProcessor) and int(self.post_processor.source) == NO_DATA
        )
        if stage == "validate" and undecided and find_normal_images(self.normal_dir, self.trainer) is not None:
            self.prepare(self.trainer)
            self.fill_memory(self.trainer)
            self.decide(self.trainer)

    # ------------------------------------------------------------------ normal images
    @torch.no_grad()
    def fill_memory(self, trainer: Trainer | None = None) -> None:
        """Remember the patches of ``k_shot`` normal images, once.

        Raises:
            ArgumentError: If there are fewer normal images than ``k_shot``.
        """
        memory = self.model.memory
        if memory is None or memory.is_filled:
            return
        dataset = find_normal_images(self.normal_dir, trainer)
        available = 0 if dataset is None else len(dataset)
        if available < self.k_shot:
            msg = (
                f"k_shot={self.k_shot} needs as many normal images, and {available} are at hand. Give normal_dir=<folder "
                "of normal images>, or a data module with normal training images."
            )
            raise ArgumentError(msg)
        batches = self._normal_batches(dataset, pick(self.k_shot, available))
        with torch.inference_mode(mode=False), torch.no_grad():
            memory.fill((self.model.features(batch) for batch in batches), self.model.backbone)

    @torch.no_grad()
    def decide(self, trainer: Trainer | None = None) -> None:
        """Set the thresholds from normal images, where no validation data did."""
        post_processor = self.post_processor
        if not isinstance(post_processor, MonotonePostProcessor):
            return
        dataset = find_normal_images(self.normal_dir, trainer) if int(post_processor.source) == NO_DATA else None
        if dataset is not None:
            order = pick(self.k_shot + self.normal_images, len(dataset))
            # Images of the memory know themselves there: others are taken, or, if there are none, each is left out.
            unseen = order[self.k_shot :]
            scores, peaks = [], []
            for number, batch in enumerate(self._normal_batches(dataset, unseen or order, batch_size=1)):
                size = (batch.shape[-2], batch.shape[-1])
                leave_out = number if not unseen and self.k_shot > 1 else None
                verdict = self.model.verdict(self.model.features(batch), size, leave_out)
                scores.append(verdict.pred_score)
                peaks.append(verdict.anomaly_map.amax(dim=(-2, -1)))  # type: ignore[union-attr]
            post_processor.decide_from_normal(torch.cat(scores), torch.cat(peaks))  # type: ignore[arg-type]

    def _normal_batches(self, dataset: Any, indices: list[int], batch_size: int = 8) -> Iterator[Tensor]:  # noqa: ANN401
        transform = self.pre_processor.transform if self.pre_processor else None
        return load_batches(dataset, indices, transform, self.model.backbone.device, batch_size)

    def forward(self, batch: Tensor, *args: object, **kwargs: object) -> InferenceBatch:
        """Images in [0, 1], ``[B, 3, H, W]``, to post-processed predictions."""
        if self._compiled_class is None:
            self.prepare()
        return super().forward(batch, *args, **kwargs)

    # ------------------------------------------------------------------ steps
    def validation_step(self, batch: Batch, *args: object, **kwargs: object) -> Batch:  # type: ignore[override]
        """Predict, so that threshold and range can be found."""
        del args, kwargs
        predictions = self.model(batch.image)
        return batch.update(**predictions._asdict())

    def test_step(self, batch: Batch, *args: object, **kwargs: object) -> Batch:  # type: ignore[override]
        """Predict, and say what it is that was found."""
        del args, kwargs
        predictions, explanation = self.model.explain(batch.image)  # type: ignore[arg-type]
        return batch.update(**predictions._asdict(), explanation=explanation)

    def predict_step(self, batch: Batch, *args: object, **kwargs: object) -> Batch:
        """Predict, and say what it is that was found."""
        return self.test_step(batch, *args, **kwargs)

    def val_dataloader(self) -> list[object]:
        """No validation data of the model's own; a data module's goes first.

        anomalib validates before it predicts or tests with a zero-shot model, whether there is data for it or not.
        """
        return []

    def configure_optimizers(self) -> Any:  # noqa: ANN401 - Lightning's own type
        """Nothing to optimise."""
        return None

    def configure_callbacks(self) -> Sequence[Callback]:
        """Anomalib's callbacks, those that read ahead and name unreadable images, and the one for the table of scores."""
        return [*super().configure_callbacks(), ReadAhead(), UnreadableImages(), PredictionsFile()]  # type: ignore[misc]

    @property
    def learning_type(self) -> LearningType:
        """Zero- or few-shot: anomalib validates and tests, and does not train."""
        return LearningType.FEW_SHOT if self.k_shot else LearningType.ZERO_SHOT

    @property
    def trainer_arguments(self) -> dict[str, Any]:
        """A learning model says how long it learns; Lightning's own default is 1000 epochs."""
        return {"max_epochs": self.epochs, "num_sanity_val_steps": 0} if self.learn else {}

    # ------------------------------------------------------------------ components
    @classmethod
    def configure_pre_processor(cls, image_size: tuple[int, int] | None = None) -> ClipPreProcessor:
        """CLIP's pre-processing for ``image_size``; a model made with a backbone uses that backbone's default size."""
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
        image: dict[str, Any] = {"fields": ["pred_score", "gt_label"], "prefix": "image_"}
        pixel: dict[str, Any] = {"fields": ["anomaly_map", "gt_mask"], "prefix": "pixel_", "strict": False}
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
        super().on_save_checkpoint(checkpoint)
        state = checkpoint["state_dict"]
        checkpoint["state_dict"] = {key: value for key, value in state.items() if not key.startswith(BACKBONE_PREFIX)}
        checkpoint["zsclip_backbone"] = self.model.backbone.identity.as_dict()
        checkpoint["zsclip_class_name"] = self._compiled_class
        arguments = checkpoint.get("hyper_parameters", {})
        given = {name: IN_CHECKPOINT for name in WEIGHT_FILES if arguments.get(name)}
        checkpoint["hyper_parameters"] = {**arguments, **given}

    @classmethod
    def load_from_checkpoint(  # type: ignore[override] # a file, no stream
        cls,
        checkpoint_path: str | Path,
        *args: Any,  # noqa: ANN401
        **kwargs: Any,  # noqa: ANN401
    ) -> Self:
        """Load a model without executing anything in the file; arguments as Lightning's.

        Raises:
            CheckpointError: If the file is damaged, holds pickled code, or does not fit.
        """
        try:
            check_archive(checkpoint_path)
            return super().load_from_checkpoint(checkpoint_path, *args, **kwargs)
        except (ZsClipError, FileNotFoundError):
            raise
        except pickle.UnpicklingError as error:
            msg = (
                f"The checkpoint {checkpoint_path} is damaged or holds pickled Python objects, which are not loaded "
                "because they can run any code."
            )
            raise CheckpointError(msg) from error
        except Exception as error:
            # Damaged archives and foreign contents raise whatever their reader stumbles over.
            msg = (
                f"The checkpoint {checkpoint_path} cannot be loaded: it is damaged, of another format, or of another "
                f"model ({type(error).__name__}: {error})."
            )
            raise CheckpointError(msg) from error

    def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Check that the backbone is the one that the checkpoint was made with, and put its weights back."""
        path = getattr(self._trainer, "ckpt_path", None)
        if path is not None and Path(path).is_file():
            try:
                check_archive(path)
            except zipfile.BadZipFile as error:
                msg = f"The checkpoint {path} is damaged: {error}."
                raise CheckpointError(msg) from error
        super().on_load_checkpoint(checkpoint)
        saved = checkpoint.get("zsclip_backbone")
        own = self.model.backbone.identity
        if not saved:
            msg = (
                "This checkpoint was not made by a model of anomalib-zsclip: it does not say which CLIP it belongs to."
            )
            raise CheckpointError(msg)
        if saved["fingerprint"] != own.fingerprint:
            msg = (
                f"This checkpoint was made with the backbone {saved['name']!r} (weights {saved['pretrained']!r}), but the "
                f"model has {own.name!r} (weights {own.pretrained!r}). Pass backbone={saved['name']!r} and "
                f"pretrained={saved['pretrained']!r}."
            )
            raise CheckpointError(msg)
        state = checkpoint["state_dict"]
        for key, value in state.items():
            # Those of the post-processor are NaN as long as it has seen no data.
            if key.startswith("model.") and not torch.isfinite(value).all():
                msg = f"The checkpoint is damaged: {key} has values that are not finite."
                raise CheckpointError(msg)
        _fit_buffers(self, state)
        state.update({BACKBONE_PREFIX + key: value for key, value in self.model.backbone.state_dict().items()})
        self._compiled_class = checkpoint.get("zsclip_class_name")
        self._from_checkpoint = self._compiled_class is not None

    # ------------------------------------------------------------------ export
    def to_torch(self, *args: object, **kwargs: object) -> Path:
        """Export as a torch file; see anomalib."""
        self.prepare()
        return super().to_torch(*args, **kwargs)  # type: ignore[misc]

    def to_onnx(self, *args: object, **kwargs: object) -> Path:  # type: ignore[override]
        """Export as ONNX; see anomalib. The text side is compiled in."""
        self.prepare()
        self._warm_up()
        # torch's exporter writes opset 18; the conversion to anomalib's default of 14 fails, with a stack of frames.
        kwargs.setdefault("opset_version", 18)
        return super().to_onnx(*args, **kwargs)  # type: ignore[arg-type, return-value]

    def to_openvino(self, *args: object, **kwargs: object) -> Path:
        """Export for OpenVINO; see anomalib."""
        self.prepare()
        return super().to_openvino(*args, **kwargs)  # type: ignore[misc]

    def _warm_up(self) -> None:
        """Run once, so that what depends on the image size alone is made outside the exported graph."""
        height, width = self.input_size or resolve_size(None, self.model.backbone)  # type: ignore[misc]
        device = self.model.backbone.device
        with torch.no_grad():
            self.model(torch.zeros(1, 3, height, width, device=device))


class UnreadableImages(Callback):
    """Names the files where a data loader stumbles over an image that cannot be read, or would read it wrongly."""

    def on_test_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Refuse images whose values anomalib's reader would cut off at 255."""
        del pl_module
        deep = [path for path in _image_paths(trainer) if _is_deep(path)]
        if deep:
            msg = (
                f"{len(deep)} image file(s) have one channel of more than 8 bits, which would be read as white: "
                f"{_shown(deep)}. Convert them to 8 bits."
            )
            raise ImageReadError(msg)

    def on_predict_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """As for a test."""
        self.on_test_start(trainer, pl_module)

    def on_exception(self, trainer: Trainer, pl_module: LightningModule, exception: BaseException) -> None:
        """Look for the unreadable files of the data sets in use."""
        del pl_module
        if not isinstance(exception, UNREADABLE) or isinstance(exception, ImageReadError):
            return
        bad = [path for path in _image_paths(trainer) if not _is_readable(path)]
        if bad:
            msg = f"{len(bad)} image file(s) cannot be read: {_shown(bad)}. Remove or replace them."
            raise ImageReadError(msg) from None


def _shown(paths: Sequence[Path]) -> str:
    return ", ".join(str(path) for path in paths[:5]) + (", ..." if len(paths) > 5 else "")


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
            image.convert("RGB")
    except UNREADABLE:
        return False
    return True


def _is_deep(path: Path) -> bool:
    """Whether Pillow keeps the image in a mode whose conversion to RGB cuts off at 255: 16 or 32 bits of grey."""
    try:
        with Image.open(path) as image:
            return image.mode.startswith(("I", "F"))
    except UNREADABLE:
        return False


def resolve_size(image_size: int | Sequence[int] | None, backbone: ClipBackbone) -> tuple[int, int]:
    """Height and width that images are resized to: a side or both given, or the backbone's default.

    Raises:
        ArgumentError: If it is smaller than a patch or of another form.
    """
    if image_size is None:
        return (backbone.default_size, backbone.default_size)
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
    if backbone.device.type == "cuda":
        return "bf16" if torch.cuda.is_bf16_supported(including_emulation=False) else "float32"
    native = torch.backends.mkldnn.is_available() and torch.ops.mkldnn._is_mkldnn_bf16_supported()
    return "bf16" if native else "float32"


def _fit_buffers(module: torch.nn.Module, state: dict[str, Tensor]) -> None:
    """Give buffers whose size depends on the data (a memory of normal patches) the size that they have in ``state``."""
    for key, value in state.items():
        owner_name, _, name = key.rpartition(".")
        try:
            owner = module.get_submodule(owner_name)
        except AttributeError:
            continue
        buffer = owner._buffers.get(name)
        if buffer is None or (buffer.numel() and not isinstance(owner, FewShotMemory)):
            continue
        if buffer.shape != value.shape:
            owner._buffers[name] = torch.empty_like(value, device=buffer.device)


def read_backbone_arguments(
    backbone: str, pretrained: str | Path | None, auto: tuple[str, str], position_mode: str
) -> ClipBackbone:
    """Load the backbone that a model's arguments name."""
    return ClipBackbone.load(
        backbone, str(pretrained) if pretrained is not None else None, auto=auto, position_mode=position_mode
    )


def scaled_sigma(sigma: float | None, paper_sigma: float, paper_size: int, size: tuple[int, int]) -> float:
    """Smoothing in pixels: as given, or the paper's in proportion to the image size."""
    return paper_sigma * min(size) / paper_size if sigma is None else sigma
