"""How a zero-shot detector behaves inside anomalib: the hooks of Lightning and anomalib, and nothing else."""

from __future__ import annotations

import logging
import pickle
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from types import MappingProxyType
from typing import Any

import torch
from anomalib import LearningType
from anomalib.data import Batch, InferenceBatch
from anomalib.metrics import Evaluator
from anomalib.pre_processing import PreProcessor
from lightning.pytorch import Callback, Trainer
from torch import Tensor
from typing_extensions import Self

from anomalib_zsclip.benchmark import PapersEvaluator
from anomalib_zsclip.clip import ClipBackbone
from anomalib_zsclip.clip.archives import check_archive
from anomalib_zsclip.clip.published import OPENAI_MEAN, OPENAI_STD
from anomalib_zsclip.errors import ArgumentError, CheckpointError, ZsClipError
from anomalib_zsclip.heads.base import Head
from anomalib_zsclip.images import DEFAULT_RULES, ClipPreProcessor, OneByOne, ReadAhead, ReadingRules, UnreadableImages
from anomalib_zsclip.images.input_check import check_images
from anomalib_zsclip.images.predict_door import open_door
from anomalib_zsclip.outputs import (
    FixedScaleVisualizer,
    FreshResults,
    ImageProgress,
    MapFiles,
    MonotonePostProcessor,
    PredictionsFile,
    default_evaluator,
    quiet_command,
    with_results,
)
from anomalib_zsclip.outputs.post_processing import NO_DATA, check_false_alarms, check_threshold
from anomalib_zsclip.outputs.regions import DEFAULT_MIN_REGION, check_min_region
from anomalib_zsclip.outputs.thresholds import DEFAULT_EXPECTED_DEFECTS, DEFAULT_FALSE_ALARMS

from .arguments import check_common_arguments, check_normal_images
from .checkpoints import check_file, read_record, write_record
from .detector import Bindings
from .export import ExportMixin
from .readiness import make_ready, note_decisions, snapshot, valid_verdicts
from .tiles import TilesMixin
from .trainer_checks import check_trainer
from .verdicts import Verdicts, judge
from .zero_shot_model import ZeroShotModel

logger = logging.getLogger(__name__)


class ZeroShotMixin(TilesMixin, ExportMixin):
    """Hooks of a zero-shot detector; stands before ``AnomalibModule`` in the bases of a model.

    A model calls :meth:`assemble` at the end of its constructor. Everything else that must be there before a picture is
    judged is made by :func:`~anomalib_zsclip.models.readiness.make_ready`, which every hook here calls.

    Attributes:
        bindings: What the compiled state was made for.
        published: Head -> which published weights it takes, where it takes such.
        not_zero_shot: Heads whose published weights were learned on data that were tested, and on which.
        ready_for: What it was last found ready for, for plain calls; ``None`` if it has to be looked at again.
        verdicts: What unlabelled images were given when they were read, until the end of the stage.
        keeps_rankings: Whether the scores after the default post-processor rank as the raw ones.
    """

    model: ZeroShotModel
    bindings: Bindings
    class_name: str | None = None
    save_maps: bool = False
    report: bool = True
    min_region: float | None = None
    reading: ReadingRules = DEFAULT_RULES
    learn: bool = False
    epochs: int = 1
    k_shot: int = 0
    unlabelled: int | str = 0
    unlabelled_dir: str | Path | None = None
    expected_defects: float = DEFAULT_EXPECTED_DEFECTS
    normal_dir: str | Path | None = None
    normal_images: int = 32
    published: Mapping[str, str] = MappingProxyType({})
    not_zero_shot: frozenset[tuple[str, str]] = frozenset()
    adopts_heads: bool = False
    ready_for: tuple[Any, ...] | None = None
    verdicts: Verdicts | None = None
    keeps_rankings: bool = True

    def __init__(self, *args: Any, **kwargs: Any) -> None:  # noqa: ANN401 - anomalib's components
        quiet_command()
        open_door()
        super().__init__(*args, **kwargs)

    def assemble(
        self,
        backbone: ClipBackbone,
        heads: dict[str, Head],
        *,
        image_size: tuple[int, int],
        precision: str,
        pre_processor: object,
        post_processor: object = True,
        class_name: str | None = None,
        k_shot: int = 0,
        normal_dir: str | Path | None = None,
        normal_images: int = 32,
        false_alarms: float = DEFAULT_FALSE_ALARMS,
        threshold: float | None = None,
        pixel_threshold: float | None = None,
        save_maps: bool = False,
        report: bool = True,
        regions: bool = True,
        min_region: float = DEFAULT_MIN_REGION,
        reading: ReadingRules = DEFAULT_RULES,
        **model_arguments: Any,  # noqa: ANN401
    ) -> None:
        """Put backbone, heads and components together.

        Args:
            backbone: The frozen CLIP.
            heads: The heads by name.
            image_size: Height and width that images are resized to; see :func:`resolve_size`.
            precision: ``"float32"``, ``"bf16"``, ``"fp16"``, or ``"auto"``.
            pre_processor: The constructor's argument; ``True`` asks for the default one.
            post_processor: The constructor's argument; ``True`` asks for the default one.
            class_name: What the images show; ``None`` takes the data module's category, else "object".
            k_shot: Normal images in the memory bank.
            normal_dir: Folder of normal images.
            normal_images: Most normal images besides those of the memory bank that thresholds are made from.
            false_alarms: Share of good parts that may be flagged.
            threshold: The user's own threshold for image scores.
            pixel_threshold: The user's own threshold for maps.
            save_maps: Whether to write anomaly maps as files.
            report: Whether to write the report page.
            regions: Whether to find regions and to write them as files.
            min_region: Least share of the picture that makes a region.
            reading: How image files are read.
            **model_arguments: Further arguments of :class:`ZeroShotModel`.
        """
        check_common_arguments(precision, class_name, save_maps=save_maps, report=report, regions=regions)
        check_normal_images(normal_dir, k_shot, normal_images)
        self.model = ZeroShotModel(backbone, heads, **model_arguments)
        self.bindings = Bindings()
        self.class_name = class_name
        self.precision_name = precision
        self.save_maps, self.report = save_maps, report
        self.min_region = check_min_region(min_region) if regions else None
        self.reading = reading
        self.k_shot, self.normal_dir, self.normal_images = k_shot, normal_dir, normal_images
        if pre_processor is True:
            self.pre_processor: PreProcessor | None = ClipPreProcessor.for_size(
                image_size, backbone.mean, backbone.std, self.model.views.tiling
            )
            self.model.views = replace(self.model.views, tile=image_size)
            if isinstance(self.evaluator, PapersEvaluator):
                self.pre_processor.resize.published_masks = True  # type: ignore[union-attr]
        elif self.model.views.tiling.is_on:
            msg = f"tiles={self.model.views.tiling.tiles!r} needs the default pre-processor, which lays out the tiles."
            raise ArgumentError(msg)
        if post_processor is True:
            self.post_processor: Any = MonotonePostProcessor(false_alarms, threshold, pixel_threshold)
            return
        for name, value in (("threshold", threshold), ("pixel_threshold", pixel_threshold)):
            if value is not None:
                setattr(self, name, value)
        if false_alarms != DEFAULT_FALSE_ALARMS:
            self.false_alarms = false_alarms

    # ------------------------------------------------------------------ decisions of the user's
    @property
    def threshold(self) -> float | None:
        """The user's own threshold for image scores, on the scale of the scores; ``None`` leaves it to the data."""
        return getattr(self.post_processor, "given_threshold", None)

    @threshold.setter
    def threshold(self, value: float | None) -> None:
        self._own_post_processor("threshold").given_threshold = check_threshold("threshold", value)

    @property
    def pixel_threshold(self) -> float | None:
        """The user's own threshold for maps, on the scale of the maps; ``None`` leaves it to the data."""
        return getattr(self.post_processor, "given_pixel_threshold", None)

    @pixel_threshold.setter
    def pixel_threshold(self, value: float | None) -> None:
        self._own_post_processor("pixel_threshold").given_pixel_threshold = check_threshold("pixel_threshold", value)

    @property
    def false_alarms(self) -> float:
        """Share of good parts that may be flagged, in [0, 1), where thresholds come from good parts or the folder."""
        return float(getattr(self.post_processor, "false_alarms", DEFAULT_FALSE_ALARMS))

    @false_alarms.setter
    def false_alarms(self, value: float) -> None:
        self._own_post_processor("false_alarms").false_alarms = check_false_alarms(value)

    def _own_post_processor(self, argument: str) -> MonotonePostProcessor:
        if isinstance(self.post_processor, MonotonePostProcessor):
            return self.post_processor
        msg = f"{argument}= needs the default post-processor, not {type(self.post_processor).__name__}."
        raise ArgumentError(msg)

    # ------------------------------------------------------------------ readiness
    def prepare(self, trainer: Trainer | None = None, *, decide: bool = True) -> None:
        """Make the model ready; see :func:`~anomalib_zsclip.models.readiness.make_ready`."""
        make_ready(self, trainer, decide=decide)

    def on_fit_start(self) -> None:
        """Be ready, on the device, but for the thresholds: those of a head that is about to learn are others afterwards."""
        super().on_fit_start()
        if self.learn:
            self._forget_decisions()
        make_ready(self, self.trainer, decide=False)

    def on_validation_start(self) -> None:
        """Be ready but for the thresholds, which this validation sets."""
        self._forget_decisions()
        make_ready(self, self.trainer, decide=False)

    def _forget_decisions(self) -> None:
        if isinstance(self.post_processor, MonotonePostProcessor):
            self.post_processor.reset()
            self.bindings.decisions = None

    def on_validation_epoch_end(self) -> None:
        """Remember for what the thresholds were made that the post-processor has just set."""
        super().on_validation_epoch_end()
        note_decisions(self, self.trainer)

    def on_test_start(self) -> None:
        """Be ready, and say where the decisions come from."""
        make_ready(self, self.trainer)
        if isinstance(self.post_processor, MonotonePostProcessor):
            log = logger.warning if self.post_processor.is_guess else logger.info
            log("Decisions from %s.", self.post_processor.describe())

    def on_predict_start(self) -> None:
        """Be ready, and say where the decisions come from."""
        self.on_test_start()

    def teardown(self, stage: str) -> None:
        """Decide from normal images where there was nothing to validate on: Lightning then skips its hooks."""
        super().teardown(stage)
        own = self.post_processor
        undecided = isinstance(own, MonotonePostProcessor) and int(own.source) == NO_DATA
        has_normal = self.normal_dir is not None or getattr(self.trainer, "datamodule", None) is not None
        if stage == "validate" and undecided and has_normal:
            make_ready(self, self.trainer)
        self.verdicts = None

    def forward(self, batch: Tensor, *args: object, **kwargs: object) -> InferenceBatch:
        """Images in [0, 1], ``[B, 3, H, W]``, to post-processed predictions."""
        check_images(batch)
        if not self.frozen and not torch.compiler.is_exporting() and self.ready_for != snapshot(self):
            make_ready(self)
        return super().forward(batch, *args, **kwargs)

    def weight_argument(self, head: str) -> str:
        """Argument that names the file with the learned weights of a head."""
        del head
        return "checkpoint"

    def adopt_head(self, name: str) -> None:
        """Make a head whose learned weights a checkpoint brings; only for models with ``adopts_heads``."""
        raise NotImplementedError(name)

    # ------------------------------------------------------------------ steps
    def validation_step(self, batch: Batch, *args: object, **kwargs: object) -> Batch:  # type: ignore[override]
        """Predict, so that threshold and range can be found."""
        del args, kwargs
        predictions, _ = judge(self.model, batch.image, valid_verdicts(self), explain=False)  # type: ignore[arg-type]
        return batch.update(image=self.model.views.picture(batch.image), **predictions._asdict())  # type: ignore[arg-type]

    def test_step(self, batch: Batch, *args: object, **kwargs: object) -> Batch:  # type: ignore[override]
        """Predict, and say what it is that was found."""
        del args, kwargs
        predictions, explanation = judge(self.model, batch.image, valid_verdicts(self), explain=True)  # type: ignore[arg-type]
        if isinstance(self.evaluator, PapersEvaluator):
            self.evaluator.keep_raw(predictions.pred_score, self.model.paper_map(predictions.anomaly_map))  # type: ignore[arg-type]
        image = self.model.views.picture(batch.image)  # type: ignore[arg-type]
        return batch.update(image=image, **predictions._asdict(), explanation=explanation)

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
        """Anomalib's callbacks, those that read ahead and name unreadable images, and those that write results."""
        check_trainer(self._trainer, self)
        own = [FreshResults(), OneByOne(), ReadAhead(), UnreadableImages(), PredictionsFile(), ImageProgress()]
        found = [*super().configure_callbacks(), *own, *([MapFiles()] if self.save_maps else [])]  # type: ignore[misc]
        return with_results(found, self.min_region, report=self.report)

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
        return default_evaluator()

    # ------------------------------------------------------------------ checkpoints
    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Leave the frozen CLIP out; write down what the rest was made with."""
        super().on_save_checkpoint(checkpoint)
        write_record(self, checkpoint)

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
        # Lightning has an argument of its own by that name.
        if kwargs.pop("checkpoint", None) is not None:
            msg = "checkpoint= names a file of learned weights, and a Lightning checkpoint holds them already: leave it out."
            raise CheckpointError(msg)
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
        """Compare the checkpoint with backbone and arguments, and put the backbone's weights back."""
        check_file(getattr(self._trainer, "ckpt_path", None))
        own = self.pre_processor
        transforms = {name: getattr(own, name, None) for name in ("transform", "export_transform")}
        super().on_load_checkpoint(checkpoint)
        # anomalib takes the size of the checkpoint; the one that the user asks for goes before it.
        if self.hparams.get("image_size") is not None and own is not None and self.pre_processor is own:
            for name, transform in transforms.items():
                setattr(own, name, transform)
        read_record(self, checkpoint)
