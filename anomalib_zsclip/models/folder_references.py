"""The folder itself as reference: filling the memory bank with unlabelled images, and what their own scores say."""

from __future__ import annotations

import logging
from collections.abc import Iterator
from dataclasses import dataclass
from numbers import Integral
from pathlib import Path
from typing import Any

import torch
from lightning.pytorch import Trainer
from torch import Tensor
from tqdm.auto import tqdm

from anomalib_zsclip.clip import ImageFeatures
from anomalib_zsclip.errors import ArgumentError, CheckpointError, is_number
from anomalib_zsclip.heads.base import HeadOutput
from anomalib_zsclip.heads.explanation import Evidence
from anomalib_zsclip.heads.memory_bank import distinct_images
from anomalib_zsclip.heads.mutual_scoring import FolderScores, unit_embeddings
from anomalib_zsclip.heads.options import Recipe
from anomalib_zsclip.images import NormalImages, find_unlabelled_images

from .detector import Detector
from .verdicts import Verdict, Verdicts, key_of
from .views import Seen
from .zero_shot_model import ZeroShotModel

logger = logging.getLogger(__name__)

FEWEST = 5
"""Images below which there is nothing to average: the lowest 30 % of the distances to three others are none."""

MANY = 8
"""Images from which on a progress bar is shown."""

ALL = "all"
"""``unlabelled="all"``: every image of the folder is a reference, as published."""


def check_unlabelled(value: int | str, least: int = 0) -> int | str:
    """Number of unlabelled references, or "all".

    Args:
        value: The user's.
        least: 0 if the model can do without.

    Raises:
        ArgumentError: If it is neither, or too few.
    """
    number = isinstance(value, Integral) and not isinstance(value, bool)
    if value == ALL or (number and (int(value) >= FEWEST or value == 0 == least)):
        return value
    msg = f"unlabelled={value!r} must be {'' if least else '0, '}a number of images of at least {FEWEST}, or 'all'."
    raise ArgumentError(msg)


def refuse_without_unlabelled(unlabelled: int | str, **arguments: object) -> None:
    """Refuse arguments that say how to compare with unlabelled images where there is no comparison.

    Raises:
        ArgumentError: If one of them is given and ``unlabelled`` is 0.
    """
    given = {name: str(value) if isinstance(value, Path) else value for name, value in arguments.items()}
    idle = [f"{name}={value!r}" for name, value in given.items() if value is not None]
    if idle and not unlabelled:
        msg = f"{' and '.join(idle)} has no effect with unlabelled=0. Give unlabelled=48 as well, or 'all', or leave it out."
        raise ArgumentError(msg)


def check_expected_defects(value: float) -> float:
    """Share of defective parts in a folder.

    Raises:
        ArgumentError: If it is not in [0, 0.5): most parts must be good for the folder to judge itself.
    """
    if is_number(value) and 0 <= value < 0.5:
        return float(value)
    msg = f"expected_defects={value!r} must be a share of the parts, at least 0 and below 0.5."
    raise ArgumentError(msg)


def fill_unlabelled(module: Detector, trainer: Trainer | None, recipe: Recipe, *, quiet: bool) -> bool:
    """Bring the unlabelled images of the memory bank in line with the arguments and the data.

    Args:
        module: The model.
        trainer: What it judges are the unlabelled images, unless the user names a folder.
        recipe: What their contents depend on, besides the images; empty where the model wants none.
        quiet: Whether to show no progress.

    Returns:
        Whether the model may go on; not where a validation has no data, and the images come with a later stage.

    Raises:
        ArgumentError: If there are no images, or too few and the model has nothing else to judge by.
        CheckpointError: If those of a checkpoint belong to other settings and there are no others.
    """
    model, bindings = module.model, module.bindings
    bank = model.memory_bank
    if not recipe or bank is None:
        if bank is not None and bank.has_unlabelled:
            bank.clear_unlabelled()
        bindings.unlabelled = None
        return True
    if model.views.tiling.is_auto:
        msg = (
            f"unlabelled={module.unlabelled} compares each tile with the same one of other pictures, and tiles='auto' gives "
            "each picture its own: give a number, such as tiles=2 or tiles=(2, 3)."
        )
        raise ArgumentError(msg)
    images = _images_at_hand(module, trainer)
    if images is None:
        return _keep(module, recipe, must=trainer is None or trainer.state.fn != "validate")
    if len(images) < FEWEST and module.unlabelled_dir is None and bank.has_unlabelled and not _misfits(module, recipe):
        logger.info(
            "Compared with the %d unlabelled images of before: the %s are too few for each other.",
            bank.unlabelled.shape[1],
            images.origin.removeprefix("the "),
        )
        return True
    chosen = images.pick(len(images) if module.unlabelled == ALL else int(module.unlabelled))
    recipe = {**recipe, "images": images.identity(chosen)}
    if bindings.unlabelled == recipe and bank.has_unlabelled:
        return True
    transform = module.pre_processor.transform if module.pre_processor else None
    # Where Lightning computes in another precision, so would a second pass.
    verdicts = Verdicts() if trainer is not None and trainer.precision == "32-true" else None
    try:
        fill(model, images, sorted(chosen), transform, verdicts, quiet=quiet)
    except ArgumentError as error:
        bank.clear_unlabelled()
        bindings.unlabelled = None
        if not len(model.heads):
            raise
        logger.warning("%s This folder is judged without that comparison.", error)
        return True
    bindings.unlabelled, module.verdicts = recipe, verdicts
    return True


def _images_at_hand(module: Detector, trainer: Trainer | None) -> NormalImages | None:
    """Unlabelled images; ``None`` where there are none, or a checkpoint has those of a folder that is not here."""
    folder = module.unlabelled_dir
    if folder is not None and module.bindings.unlabelled is not None and not Path(folder).expanduser().is_dir():
        return None
    return find_unlabelled_images(folder, trainer, module.reading)


def _keep(module: Detector, recipe: Recipe, *, must: bool) -> bool:
    """Go on with the unlabelled images that are in the memory bank."""
    bank = module.model.memory_bank
    assert bank is not None
    if bank.has_unlabelled and module.bindings.unlabelled is not None:
        wrong = _misfits(module, recipe)
        if not wrong:
            return True
        msg = (
            f"The unlabelled images in the memory bank were remembered with other settings ({', '.join(wrong)}), and there "
            "are none at hand to make it anew. Give unlabelled_dir=<folder>, or the settings of then."
        )
        raise CheckpointError(msg)
    if not must:
        return False
    msg = (
        f"unlabelled={module.unlabelled} needs images to compare with, and there are none. Give unlabelled_dir=<folder of "
        "images, most of them good>, or predict or test a folder: its own images are taken then."
    )
    raise ArgumentError(msg)


def _misfits(module: Detector, recipe: Recipe) -> list[str]:
    """Settings in which the unlabelled images of the memory bank differ from what is wanted, besides the images."""
    made = module.bindings.unlabelled or {}
    return [name for name in recipe if made.get(name) != recipe[name]]


@dataclass
class Folder:
    """What was read of the folder, copies left out.

    Attributes:
        patches: For the memory bank, ``[rows, R, V, L, W]``.
        embeddings: Embeddings of the whole images, of unit length, ``[R, E]``.
        grid: Height and width of the patch grid.
        size: Height and width of a view.
        shape: Height and width of what comes from the pre-processor: of whole images, or of sheets with tiles.
        text: What heads and good parts say of the views ``[R * V]``, where there are any.
        copies: Images that were left out as copies of others.
        unreadable: Files that could not be read.
        seen: Of those images that verdicts are kept of: key, and what defects are named by in all views.
    """

    patches: Tensor
    embeddings: Tensor
    grid: tuple[int, int]
    size: tuple[int, int]
    shape: tuple[int, int]
    text: HeadOutput | None
    copies: int
    unreadable: list[str]
    seen: list[tuple[bytes, Evidence | None] | None]


def fill(
    model: ZeroShotModel,
    images: NormalImages,
    indices: list[int],
    transform: Any,  # noqa: ANN401
    verdicts: Verdicts | None = None,
    *,
    quiet: bool,
) -> None:
    """Remember unlabelled images and take the scales of their scores.

    Args:
        model: The detector, its text compiled and its good parts in place.
        images: The folder.
        indices: Which of its images.
        transform: What is done to an image before the tower.
        verdicts: Gets what each image is given in comparison with the others, as far as they fit in there.
        quiet: Whether to show no progress.

    Raises:
        ArgumentError: If fewer than :data:`FEWEST` different images can be read.
    """
    bank, mutual = model.memory_bank, model.mutual
    assert bank is not None
    assert mutual is not None
    bank.clear_unlabelled()
    pictures = _images(images, indices, transform, model.backbone.device, quiet=quiet)
    folder = _read(model, pictures, len(indices), verdicts)
    count = 0 if folder is None else folder.patches.shape[1]
    left_out = "" if folder is None else _left_out(folder)
    if folder is None or count < FEWEST:
        there = "There is 1 different image" if count == 1 else f"There are {count} different images"
        msg = (
            f"{there} to compare with ({images.origin}{left_out}), and {FEWEST} are needed: add "
            "images, or give unlabelled_dir=<folder of images, most of them good>."
        )
        raise ArgumentError(msg)
    bank.remember_unlabelled(folder.patches)
    shown = tqdm(range(count), desc="Comparing them", disable=quiet or count < MANY, leave=False)
    numbers = range(folder.patches.shape[2])
    patches = torch.cat([bank.mutual(folder.patches[:, index], folder.grid, numbers)[0] for index in shown])
    text = folder.text or (None, None)
    own = mutual.fit(FolderScores(patches, folder.grid, folder.embeddings, *text), folder.size)
    mutual.remember_own(*_fuse_views(model, own, folder, verdicts))
    log = logger.info if mutual.suits or len(model.heads) else logger.warning
    log("Compared with %d unlabelled images: %s%s.%s", count, images.origin, left_out, mutual.describe())


def _fuse_views(
    model: ZeroShotModel, own: HeadOutput, folder: Folder, verdicts: Verdicts | None
) -> tuple[Tensor, Tensor]:
    """Scores and maxima of the maps ``[R]`` of the folder's images, of what was seen in their views."""
    count = folder.patches.shape[2]
    picture = torch.zeros(1, device=own.score.device).expand(1, 3, *folder.shape)  # only its shape counts
    scores, peaks = [], []
    for index, noted in enumerate(folder.seen):
        key, evidence = noted or (None, None)

        def see(
            views: Tensor, numbers: range, start: int = index * count, evidence: Evidence | None = evidence
        ) -> Seen:
            del views
            part = slice(start + numbers.start, start + numbers.stop)
            score, anomaly_map, words = own.score[part], own.anomaly_map[part], None
            if evidence is not None and model.namer is not None:
                words = model.namer.name(evidence.part(numbers.start, numbers.stop), anomaly_map.clamp(0, 1))
            return Seen(score, anomaly_map, words)

        seen = model.views.look(picture, see)
        scores.append(seen.score)
        peaks.append(seen.anomaly_map.amax(dim=(-2, -1)))
        if verdicts is not None and key is not None:
            text = None if seen.words is None or model.namer is None else model.namer.texts(seen.words)[0]
            whole = None if evidence is None else evidence.part(0, 1)
            # The clamps are those of a prediction; they make copies, so that no map holds on to those of all images.
            verdicts.known[key] = Verdict(seen.score[0].clamp(0, 1), seen.anomaly_map[0].clamp(0, 1), text, whole)
    return torch.cat(scores), torch.cat(peaks)


def _left_out(folder: Folder) -> str:
    parts = [f"{folder.copies} copies left out"] if folder.copies else []
    if folder.unreadable:
        parts.append(f"{len(folder.unreadable)} not readable, such as {folder.unreadable[0]}")
    return f"; {', '.join(parts)}" if parts else ""


def _images(
    images: NormalImages,
    indices: list[int],
    transform: Any,  # noqa: ANN401
    device: torch.device,
    *,
    quiet: bool,
) -> Iterator[Tensor | str]:
    """Pre-processed images ``[1, 3, H, W]``, or the names of files that cannot be read."""
    for index in tqdm(indices, desc="Unlabelled images", disable=quiet or len(indices) < MANY, leave=False):
        try:
            (batch,) = images.batches([index], transform, device)
        except Exception as error:  # noqa: PERF203 - readers raise what they like; one bad file must not stop a folder
            logger.debug("%s: %s", images.files[index], error)
            yield images.files[index].name
        else:
            yield batch


def _read(
    model: ZeroShotModel, images: Iterator[Tensor | str], expected: int, verdicts: Verdicts | None
) -> Folder | None:
    """One pass over the folder, image by image, so that nothing but what is remembered grows with it."""
    bank = model.memory_bank
    assert bank is not None
    patches: Tensor | None = None
    embeddings: list[Tensor] = []
    texts: list[HeadOutput] = []
    unreadable: list[str] = []
    seen: list[tuple[bytes, Evidence | None] | None] = []
    grid = size = shape = (0, 0)
    for image in images:
        if isinstance(image, str):
            unreadable.append(image)
            continue
        features: ImageFeatures = model.view_features(image, model.request | bank.request(model.backbone))
        own = bank.patches_of(features, model.backbone)
        if patches is None:
            patches = own.new_empty(own.shape[0], expected, *own.shape[1:])
        patches[:, len(embeddings)] = own
        shape = (image.shape[-2], image.shape[-1])
        grid, size = features.grid, shape if features.views == 1 else model.views.tile or shape
        embeddings.append(unit_embeddings(features.image_embedding)[0])
        seen.append(_note(model, image, features, len(seen), verdicts))
        text = model.predict_without_folder(features, size)
        if text is not None:
            texts.append(text)
    if patches is None:
        return None
    patches = patches[:, : len(embeddings)]
    kept = distinct_images(next(bank.unit_patches(patches[:, :, 0], grid)))
    text_kept = None
    if texts:
        text_kept = HeadOutput(*(torch.cat([part[index] for index in kept]) for part in zip(*texts, strict=True)))
    if len(kept) < len(embeddings):
        patches = patches[:, kept]
    copies = len(embeddings) - len(kept)
    noted = [seen[index] for index in kept]
    return Folder(patches, torch.stack(embeddings)[kept], grid, size, shape, text_kept, copies, unreadable, noted)


def _note(
    model: ZeroShotModel, image: Tensor, features: ImageFeatures, count: int, verdicts: Verdicts | None
) -> tuple[bytes, Evidence | None] | None:
    """Key and evidence of an image, after ``count`` others, as long as their verdicts fit."""
    if verdicts is None:
        return None
    evidence = None if model.namer is None else model.namer.see(features, model.backbone)
    size = model.views.picture(image).shape
    return (key_of(image[0]), evidence) if count < verdicts.fitting((size[-2], size[-1]), evidence) else None
