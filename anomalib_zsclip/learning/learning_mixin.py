"""Learning a head from labelled auxiliary images, on top of the frozen tower.

The tower's features do not change while a head learns. So the tower sees each image once, before the first epoch; what
the loss needs is kept in a :class:`TokenCache`, and all epochs run on that without decoding an image.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import Any

import torch
from anomalib import LearningType, TaskType
from anomalib.data import AnomalibDataModule, ImageBatch
from lightning.pytorch import Callback, LightningModule, Trainer
from lightning.pytorch.trainer.states import TrainerFn
from torch import Tensor
from torch.utils.data import DataLoader
from tqdm.auto import tqdm

from anomalib_zsclip.errors import ArgumentError, check_flag, check_whole_number, is_number
from anomalib_zsclip.heads.base import LearnableHead
from anomalib_zsclip.images.pre_processing import whole_only

from .token_cache import GIGABYTE, TokenBatch, TokenCache

logger = logging.getLogger(__name__)

HOW_TO_LEARN = """\
ZeroShotTransfer is the data module for that: it trains on the labelled test images of auxiliary data and tests on
another data set. Save for example as transfer.yaml, and pass it with --data transfer.yaml:

    class_path: anomalib_zsclip.data.ZeroShotTransfer
    init_args:
      auxiliary:
        class_path: anomalib.data.Visa
      target:
        class_path: anomalib.data.MVTecAD
        init_args:
          category: bottle

More examples are in the folder configs/data of this package's repository."""


class LearningMixin(LightningModule):
    """Lightning hooks of a detector whose head learns from auxiliary images; stands before ``ZeroShotMixin``.

    The class provides ``learn`` and ``learning_head``, and may set ``token_cache`` and ``cache_budget_gb``. Without
    ``learn`` every hook passes through.

    Attributes:
        learn: Whether ``fit`` learns.
        learning_head: The head that learns.
        token_cache: Keep the tokens of all images between epochs. The losses are the same without, only slower.
        cache_budget_gb: Gigabytes of memory that the tokens may take; more go to a file in the trainer's root folder.
        learned_from: The data that the head learned from, as the checkpoint tells it: a list of ``name``, ``category``,
            ``images``.
    """

    learn: bool = False
    learning_head: LearnableHead
    prepare: Callable[..., None]
    model: Any
    pre_processor: Any
    token_cache: bool = True
    cache_budget_gb: float = 4.0
    learned_from: list[dict[str, Any]] | None = None
    _replaced_data: Any = None

    def set_up_learning(self, *, learn: bool, epochs: int, token_cache: bool, cache_budget_gb: float) -> None:
        """Take the constructor's arguments for learning.

        Raises:
            ArgumentError: If one has a value that cannot work.
        """
        check_flag("learn", learn)
        check_flag("token_cache", token_cache)
        check_whole_number("epochs", epochs, 1)
        if not is_number(cache_budget_gb) or cache_budget_gb < 0:
            msg = f"cache_budget_gb={cache_budget_gb!r} must be a number of gigabytes, 0 or more."
            raise ArgumentError(msg)
        self.learn, self.epochs = learn, epochs
        self.token_cache, self.cache_budget_gb = token_cache, cache_budget_gb

    @property
    def learning_type(self) -> LearningType:
        """One-class where the head learns: anomalib does not train zero-shot models."""
        return LearningType.ONE_CLASS if self.learn else super().learning_type  # type: ignore[misc]

    def setup(self, stage: str) -> None:
        """Refuse data that the head cannot learn from before anything costly happens."""
        if self.learn and stage == TrainerFn.FITTING:
            datamodule = self._data_to_learn_from()
            self._note_data(describe_data(datamodule))
            # Heads learn from whole pictures, as published; the pre-processor does the same to batches of them.
            datamodule.train_data.augmentations = whole_only(datamodule.train_data.augmentations)
        super().setup(stage)

    def configure_callbacks(self) -> list[Callback]:
        """Add the callback that gives the data back after an exception to those of the class."""
        callbacks = super().configure_callbacks()
        # First, since another callback may answer an exception with one of its own.
        return [_GiveDataBack(), *(callbacks if isinstance(callbacks, Sequence) else [callbacks])]

    def configure_optimizers(self) -> torch.optim.Optimizer | None:
        """Return the optimiser of the paper, over the learned parameters alone."""
        if not self.learn:
            return None
        # Some heads know the size of their parameters only when they are set up; none can judge yet.
        self.prepare(self.trainer, decide=False)
        return self.learning_head.configure_optimizer()

    def on_fit_start(self) -> None:
        """Run the tower over the auxiliary images, where more than one epoch makes use of it."""
        super().on_fit_start()
        if self.learn and self.token_cache and self.trainer.max_epochs != 1:
            cache = self._fill_cache()
            self._replaced_data = self._datamodule.train_data
            self._datamodule.train_data = cache

    def training_step(self, batch: ImageBatch | TokenBatch, batch_idx: int) -> Tensor:
        """Loss of a batch of images or of cached tokens."""
        del batch_idx
        tokens = batch if isinstance(batch, TokenBatch) else self._tokens_of(batch)
        masks = None if tokens.masks is None else tokens.masks.float()
        losses = self.learning_head.learning_loss(self.model.backbone, tokens.inputs, masks, tokens.labels)
        self.log_dict(
            {f"train_{name}": value.detach() for name, value in losses.items()},
            on_step=False,
            on_epoch=True,
            prog_bar=True,
            batch_size=len(tokens.labels),
        )
        return losses["loss"]

    def on_validation_start(self) -> None:
        """Validate with what has been learned so far."""
        super().on_validation_start()
        self._finish_learning()

    def on_train_epoch_end(self) -> None:
        """Let the checkpoint that follows hold what has been learned."""
        self._finish_learning()
        super().on_train_epoch_end()

    def on_fit_end(self) -> None:
        """Give the data back to the data module."""
        super().on_fit_end()
        self._give_data_back()

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Name the data that the head learned from."""
        super().on_save_checkpoint(checkpoint)
        if self.learned_from is not None:
            checkpoint["zsclip_learned_from"] = self.learned_from

    def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Remember the data that the head learned from."""
        super().on_load_checkpoint(checkpoint)
        self._note_data(checkpoint.get("zsclip_learned_from", []))

    def _note_data(self, parts: list[dict[str, Any]]) -> None:
        """Add data to ``learned_from``: a head may go on learning on other data."""
        known = self.learned_from or []
        self.learned_from = [*known, *(part for part in parts if part not in known)] or None

    @property
    def _datamodule(self) -> Any:  # noqa: ANN401 - Lightning's trainer does not declare it
        return self.trainer.datamodule  # type: ignore[attr-defined]

    def _finish_learning(self) -> None:
        if self.learn and self.trainer.state.fn == TrainerFn.FITTING:
            # Validation may run in inference mode; tensors made there could not take part in learning again.
            with torch.inference_mode(mode=False), torch.no_grad():
                self.learning_head.finish_learning(self.model.backbone)

    def _data_to_learn_from(self) -> AnomalibDataModule:
        """Return the trainer's data module.

        Raises:
            ArgumentError: If the head cannot learn from its training images.
        """
        datamodule = self._datamodule
        if not isinstance(datamodule, AnomalibDataModule):
            msg = f"learn=True needs a data module with labelled auxiliary images (datamodule=...).\n{HOW_TO_LEARN}"
            raise ArgumentError(msg)
        data = datamodule.train_data
        if not (data.has_anomalous and data.has_normal):
            kind = "normal" if data.has_normal else "anomalous"
            msg = (
                "learn=True needs labelled auxiliary images, normal and anomalous, but the training images of "
                f"{type(datamodule).__name__} are all {kind}.\n{HOW_TO_LEARN}"
            )
            raise ArgumentError(msg)
        if data.task == TaskType.CLASSIFICATION:
            head = type(self.learning_head).__name__
            if self.learning_head.needs_masks:
                msg = f"{head} learns from pixel masks, but the auxiliary data has none: choose data with masks."
                raise ArgumentError(msg)
            logger.info("The auxiliary data has no masks: %s learns with its image loss alone.", head)
        return datamodule

    def _fill_cache(self) -> TokenCache:
        datamodule = self._datamodule
        loader = DataLoader(
            datamodule.train_data,
            batch_size=datamodule.train_batch_size,
            num_workers=datamodule.num_workers,
            collate_fn=datamodule.external_collate_fn or datamodule.train_data.collate_fn,
            # A generator of its own leaves the global one, and with it what is learned, as it is without a cache.
            generator=torch.Generator(),
        )
        hidden = self.trainer.progress_bar_callback is None
        return TokenCache(
            self._token_batches(tqdm(loader, desc="Tokens of the auxiliary images", disable=hidden, leave=False)),
            images=len(datamodule.train_data),
            budget=self.cache_budget_gb * GIGABYTE,
            folder=self.trainer.default_root_dir,
        )

    def _token_batches(self, loader: Iterable[ImageBatch]) -> Iterator[TokenBatch]:
        """Treat the batches as Lightning treats those of an epoch before it calls :meth:`training_step`."""
        precision, strategy = self.trainer.precision_plugin, self.trainer.strategy
        for index, images in enumerate(loader):
            batch = strategy.batch_to_device(precision.convert_input(images), dataloader_idx=0)
            if isinstance(self.pre_processor, Callback):
                self.pre_processor.on_train_batch_start(self.trainer, self, batch, index)
            with precision.forward_context():
                tokens = self._tokens_of(batch)
            yield tokens

    @torch.no_grad()
    def _tokens_of(self, batch: ImageBatch) -> TokenBatch:
        """Run the tower over a batch of pre-processed images."""
        assert batch.image_path is not None
        assert batch.gt_label is not None
        backbone, head = self.model.backbone, self.learning_head
        features = backbone.forward_intermediates(batch.image, head.request(backbone))
        names = [class_name_of(self._datamodule, path) for path in batch.image_path]
        masks = None if batch.gt_mask is None else batch.gt_mask.as_subclass(Tensor).bool()
        return TokenBatch(head.learning_inputs(features, backbone, names), batch.gt_label.long(), masks)

    def _give_data_back(self) -> None:
        if self._replaced_data is not None:
            self._datamodule.train_data = self._replaced_data
            self._replaced_data = None


class _GiveDataBack(Callback):
    """Lightning tells callbacks alone of exceptions."""

    def on_exception(self, trainer: Trainer, pl_module: LightningModule, exception: BaseException) -> None:
        del trainer, exception
        if isinstance(pl_module, LearningMixin):
            pl_module._give_data_back()


def class_name_of(datamodule: AnomalibDataModule, image_path: str) -> str:
    """What an image shows: the category that the data module gives for it, as it is written, else ``"object"``."""
    if hasattr(datamodule, "class_name_of"):
        return datamodule.class_name_of(image_path)
    return datamodule.category or "object"


def describe_data(datamodule: AnomalibDataModule) -> list[dict[str, Any]]:
    """Name the training data in plain values: ``name``, ``category`` and number of ``images`` of each part."""
    if hasattr(datamodule, "auxiliary_description"):
        return datamodule.auxiliary_description
    images = len(datamodule.train_data)
    return [{"name": datamodule.name, "category": datamodule.category, "images": images}]
