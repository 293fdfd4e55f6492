"""The one door: what must be in place before a picture is judged, for which settings, which CLIP and which data.

A model is ready when its text is compiled, its references are filled and its thresholds are set. For each of these three
:class:`~anomalib_zsclip.models.detector.Bindings` keeps what it was made for, in plain values. :func:`make_ready` compares
that with what is wanted now, leaves what fits, makes anew what does not, and refuses what cannot be made. Every way in
passes it: fit, validate, test, predict, plain calls, exports, models from checkpoints, a second data module, a changed
attribute. No caller decides what may be skipped.
"""

from __future__ import annotations

import logging
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from lightning.pytorch import Trainer
from torch import Tensor
from tqdm.auto import tqdm

from anomalib_zsclip.errors import ArgumentError, CheckpointError
from anomalib_zsclip.heads.base import LearnableHead
from anomalib_zsclip.heads.options import Recipe
from anomalib_zsclip.heads.published_weights import way_out
from anomalib_zsclip.images import ClipPreProcessor, NormalImages, find_normal_images
from anomalib_zsclip.outputs import MonotonePostProcessor
from anomalib_zsclip.outputs.post_processing import FOLDER, NO_DATA, NORMAL_IMAGES

from .arguments import resolve_precision
from .detector import Detector
from .folder_references import fill_unlabelled
from .pretrained_heads import bring_published
from .verdicts import Verdicts

logger = logging.getLogger(__name__)

DEFAULT_CLASS_NAME = "object"
"""What images show where neither the user nor the data says it; as in the papers' prompts that name no category."""

MANY = 8
"""Normal images from which on their judging shows a progress bar: on a large CLIP each takes seconds."""


def make_ready(module: Detector, trainer: Trainer | None = None, *, decide: bool = True) -> None:
    """Bring text, references and thresholds in line with the arguments and the data, as far as they are not.

    Args:
        module: The model.
        trainer: Its data module knows the category and may have normal training images.
        decide: Set thresholds too; not before a validation, which does that.

    Raises:
        ArgumentError: If there are too few normal or unlabelled images.
        CheckpointError: If a head has no learned weights, or references of other settings cannot be made anew.
    """
    module.verdicts = None
    precision = resolve_precision(module.precision_name, module.model.backbone)
    if precision != "float32":
        module.model.backbone.set_precision(precision)
    with torch.inference_mode(mode=False), torch.no_grad():
        _set_view_size(module)
        bring_published(module, trainer)
        normal = _normal_images(module, trainer)
        _compile_text(module, _class_name(module, trainer))
        _fill_references(module, normal)
        quiet = trainer is not None and trainer.progress_bar_callback is None
        if not fill_unlabelled(module, trainer, _unlabelled_recipe(module), quiet=quiet):
            return  # a validation without data: the images to compare with come with the next stage
        if decide:
            _decide(module, normal, quiet=quiet)
    made_for = snapshot(module)
    module.ready_for = made_for if decide else None
    if module.verdicts is not None:
        module.verdicts.made_for = made_for


def snapshot(module: Detector) -> tuple[Any, ...]:
    """Everything that :func:`make_ready` compares and that can change between two plain calls; cheap to make."""
    model = module.model
    folders = [None if path is None else Path(path).expanduser() for path in (module.normal_dir, module.unlabelled_dir)]
    return (
        (model.backbone.fingerprint, module.class_name, module.precision_name),
        tuple(head.options for head in model.heads.values()),
        (tuple(model.weights.items()), model.map_share, model.memory_share),
        (model.views, str(_input(module))),
        model.namer.words if model.namer is not None else None,
        (module.k_shot, module.normal_images, module.false_alarms),
        (module.unlabelled, module.expected_defects, model.mutual.share if model.mutual is not None else None),
        *((path, path.stat().st_mtime_ns if path is not None and path.is_dir() else None) for path in folders),
        module.reading,
    )


def valid_verdicts(module: Detector) -> Verdicts | None:
    """What is known of images, as long as the model is as it was then."""
    verdicts = module.verdicts
    return verdicts if verdicts is not None and verdicts.made_for == snapshot(module) else None


def note_decisions(module: Detector, trainer: Trainer | None) -> None:
    """Remember what thresholds were made for that a validation has just set."""
    if isinstance(module.post_processor, MonotonePostProcessor) and int(module.post_processor.source) != NO_DATA:
        normal = _normal_images(module, trainer)
        module.bindings.decisions = {
            "settings": _settings(module),
            "normal": None if normal is None else normal.identity(_order(module, normal)),
        }


def differences(made: Recipe, wanted: Recipe, prefix: str = "") -> list[str]:
    """Entries in which two recipes differ, as ``sdp.sigma=8.0 instead of 4.0``, what is wanted first."""
    found = []
    for name in [*made, *(name for name in wanted if name not in made)]:
        before, now = made.get(name), wanted.get(name)
        if before == now:
            continue
        if isinstance(before, dict) and isinstance(now, dict):
            found += differences(before, now, f"{prefix}{name}.")
        else:
            found.append(f"{prefix}{name}={_short(now)} instead of {_short(before)}")
    return found


def _short(value: object) -> str:
    text = " ".join(repr(value).replace("\\n", " ").split())  # transforms are written over several lines
    return text if len(text) <= 60 else f"{text[:57]}..."


def _listed(entries: list[str]) -> str:
    return ", ".join(entries[:4]) + (", ..." if len(entries) > 4 else "")


# ---------------------------------------------------------------------- the data
def _normal_images(module: Detector, trainer: Trainer | None) -> NormalImages | None:
    """Normal images at hand; ``None`` where a checkpoint has what was made of a folder that is not on this machine."""
    folder = module.normal_dir
    made = module.bindings.references is not None if module.k_shot else module.bindings.has_normal
    if folder is not None and made and not Path(folder).expanduser().is_dir():
        return None
    return find_normal_images(folder, trainer, module.reading)


def _class_name(module: Detector, trainer: Trainer | None) -> str:
    """What the images show: as the user says, else the data; where the data does not know, what was compiled last."""
    return module.class_name or _category(trainer) or module.bindings.class_name or DEFAULT_CLASS_NAME


def _category(trainer: Trainer | None) -> str | None:
    datamodule = getattr(trainer, "datamodule", None)
    if datamodule is not None:
        return getattr(datamodule, "category", None)
    for name in ("test_dataloaders", "val_dataloaders", "predict_dataloaders"):
        loaders = getattr(trainer, name, None)
        for loader in loaders if isinstance(loaders, (list, tuple)) else [loaders]:
            category = getattr(getattr(loader, "dataset", None), "category", None)
            if category:
                return str(category)
    return None


def _order(module: Detector, normal: NormalImages) -> list[int]:
    """Normal images in use: first those of the memory bank."""
    return normal.pick(module.k_shot + module.normal_images)


def _set_view_size(module: Detector) -> None:
    """Let the model cut what the pre-processor lays out: a checkpoint may have brought another size."""
    resize = getattr(module.pre_processor, "resize", None)
    if resize is not None:
        module.model.views = replace(module.model.views, tile=(resize.size[0], resize.size[1]))


# ---------------------------------------------------------------------- text
def _compile_text(module: Detector, class_name: str) -> None:
    model, bindings = module.model, module.bindings
    for name, part in model.text_parts.items():
        recipe = {"backbone": model.backbone.fingerprint, **part.recipe(class_name)}
        made = bindings.text.get(name)
        if made == recipe:
            continue
        if made is not None:
            logger.info("The text of %s is made anew: %s.", name, _listed(differences(made, recipe)))
        part.setup(model.backbone, class_name)
        if isinstance(part, LearnableHead) and not part.is_learned and not module.learn:
            argument = module.weight_argument(name)
            msg = (
                f"The head {name!r} has no learned weights for the backbone {model.backbone.name!r}. Give a file of them "
                f"({argument}=<file>), or {way_out(name, model.backbone, argument)}, or learn them (learn=True with the "
                "data module ZeroShotTransfer), or use backbone='builtin', for which they are shipped."
            )
            raise CheckpointError(msg)
        bindings.text[name] = recipe
    bindings.class_name = class_name


# ---------------------------------------------------------------------- references
def _fill_references(module: Detector, normal: NormalImages | None) -> None:
    bank, bindings, backbone = module.model.memory_bank, module.bindings, module.model.backbone
    if bank is None or not module.k_shot:
        if bank is not None and bank.has_normal:
            bank.clear()
        bindings.references = None
        return
    recipe = references_recipe(module)
    made = bindings.references
    if normal is None:
        fits = bank.has_normal and made is not None and not differences(made, recipe | {"images": made.get("images")})
        if not fits:
            wrong = differences(made, recipe | {"images": made.get("images")}) if made else []
            why = f" The memory bank at hand was filled with other settings: {_listed(wrong)}." if wrong else ""
            msg = (
                f"k_shot={module.k_shot} needs as many normal images, and 0 are at hand. Give normal_dir=<folder "
                f"of normal images>, or a data module with normal training images.{why}"
            )
            raise CheckpointError(msg) if wrong else ArgumentError(msg)
        return
    if len(normal) < module.k_shot:
        msg = (
            f"k_shot={module.k_shot} needs as many normal images, and {len(normal)} are at hand ({normal.origin}). Give "
            "normal_dir=<folder of normal images>, or a data module with normal training images."
        )
        raise ArgumentError(msg)
    chosen = _order(module, normal)[: module.k_shot]
    recipe["images"] = normal.identity(chosen)
    if bank.has_normal and made == recipe:
        return
    if made is not None:
        logger.info("The memory bank is filled anew: %s.", _listed(differences(made, recipe)))
    request = bank.request(backbone)
    bank.clear()
    bank.fill((module.model.view_features(batch, request) for batch in _batches(module, normal, chosen)), backbone)
    bindings.references = recipe


def references_recipe(module: Detector) -> Recipe:
    """What the memory bank depends on, besides its images."""
    bank, backbone = module.model.memory_bank, module.model.backbone
    assert bank is not None
    return {
        "k_shot": module.k_shot,
        "backbone": backbone.fingerprint,
        **_input(module),
        **bank.recipe(backbone),
    }


def _unlabelled_recipe(module: Detector) -> Recipe:
    """What the unlabelled images of the memory bank, and the scales of their scores, depend on, besides the images."""
    model = module.model
    if model.memory_bank is None or model.mutual is None or not module.unlabelled:
        return {}
    others = {name: value for name, value in _settings(module).items() if name != "unlabelled"}
    bank = model.memory_bank.recipe(model.backbone)
    return {
        **others,
        **bank,
        **model.mutual.recipe(),
        "count": module.unlabelled,
        "backbone": model.backbone.fingerprint,
    }


def _input(module: Detector) -> Recipe:
    """What is done to an image before the tower."""
    pre_processor, depth = module.pre_processor, module.reading.depth_range
    recipe: Recipe = {"steps": repr(getattr(pre_processor, "transform", None))}
    if isinstance(pre_processor, ClipPreProcessor) and pre_processor.resize is not None:
        recipe["image_size"] = list(pre_processor.resize.size)
    return recipe if depth is None else recipe | {"depth_range": list(depth)}


def _batches(module: Detector, normal: NormalImages, indices: list[int], batch_size: int = 8) -> Iterator[Tensor]:
    transform = module.pre_processor.transform if module.pre_processor else None
    if module.model.views.tiling.is_on:  # each picture brings a batch of its own, of its own size
        batch_size = 1
    return normal.batches(indices, transform, module.model.backbone.device, batch_size)


# ---------------------------------------------------------------------- thresholds
def _settings(module: Detector) -> Recipe:
    """Everything that raw scores depend on."""
    return {
        **_input(module),
        **module.model.recipe(),
        "text": {name: recipe for name, recipe in module.bindings.text.items() if name != "defect_words"},
        "references": module.bindings.references,
        **({"unlabelled": module.bindings.unlabelled} if module.bindings.unlabelled else {}),
        **({"published": dict(module.bindings.published)} if module.bindings.published else {}),
    }


def _decide(module: Detector, normal: NormalImages | None, *, quiet: bool) -> None:
    """Set thresholds from normal images, else from the folder, unless those at hand were made with all of that."""
    post_processor, bindings = module.post_processor, module.bindings
    if not isinstance(post_processor, MonotonePostProcessor):
        return
    order = [] if normal is None else _order(module, normal)
    wanted: Recipe = {"settings": _settings(module), "normal": None if normal is None else normal.identity(order)}
    made = bindings.decisions
    if int(post_processor.source) != NO_DATA:
        if made is None:
            return  # set by hand, or by a version that did not write down for what: the user knows
        changed = differences(made["settings"], wanted["settings"])
        if not changed and (normal is None or made["normal"] == wanted["normal"]):
            if int(post_processor.source) == NORMAL_IMAGES and made.get("false_alarms") != post_processor.false_alarms:
                post_processor.decide_from_normal(post_processor.normal_scores, post_processor.normal_peaks)
                made["false_alarms"] = post_processor.false_alarms
            if int(post_processor.source) == FOLDER and made.get("share") != _share(module):
                _decide_from_folder(module, wanted)
            return
        reason = _listed(changed) or "other data"
        if normal is None and module.bindings.unlabelled:
            logger.info("The thresholds are made anew from the folder: %s.", reason)
        elif normal is None:
            logger.warning(
                "The thresholds at hand were made with other settings and are dropped (%s): 0.5 decides until there is "
                "data again. Validate anew, give normal_dir=<folder of good parts>, or set threshold=.",
                reason,
            )
            post_processor.reset()
            bindings.decisions = None
            return
        else:
            logger.info("The thresholds are made anew from %s: %s.", normal.origin, reason)
    elif made == wanted | {"false_alarms": post_processor.false_alarms}:
        return  # made, and one part alone gave no threshold
    if normal is not None:
        post_processor.decide_from_normal(*_judge_normal(module, normal, order, quiet=quiet))
        bindings.decisions = wanted | {"false_alarms": post_processor.false_alarms}
    elif bindings.unlabelled:
        _decide_from_folder(module, wanted)


def _share(module: Detector) -> list[float]:
    return [module.expected_defects, module.false_alarms]


def _decide_from_folder(module: Detector, wanted: Recipe) -> None:
    mutual = module.model.mutual
    assert mutual is not None
    module.post_processor.decide_from_folder(mutual.own_scores, mutual.own_peaks, module.expected_defects)
    module.bindings.decisions = wanted | {"share": _share(module)}


def _judge_normal(module: Detector, normal: NormalImages, order: list[int], *, quiet: bool) -> tuple[Tensor, Tensor]:
    """Scores and map maxima ``[n]`` of normal images, none of them compared with itself.

    An image of the memory bank is left out of it. An image outside the bank, where there is one, takes its place, so that
    every image is judged by as many others as a new one will be.
    """
    model = module.model
    bank, in_bank = model.memory_bank, module.k_shot if model.memory_bank is not None else 0
    shown = tqdm(total=len(order), desc="Normal images", disable=quiet or len(order) < MANY, leave=False)
    substitute = None
    if bank is not None and 0 < in_bank < len(order):
        (batch,) = _batches(module, normal, order[in_bank : in_bank + 1])
        substitute = bank.patches_of(model.view_features(batch, bank.request(model.backbone)), model.backbone)
    found = []
    own = order[:in_bank] if in_bank > 1 or substitute is not None else []
    with shown:
        for number, batch in enumerate(_batches(module, normal, own, batch_size=1)):
            found.append(model.judge(batch, number, substitute))
            shown.update(len(batch))
        for batch in _batches(module, normal, order[in_bank:]):
            found.append(model.judge(batch))
            shown.update(len(batch))
    if not found:  # one image, which is all that the memory bank has
        only = torch.full((1,), float("nan"))
        return only, only
    scores = torch.cat([prediction.pred_score for prediction in found])  # type: ignore[misc]
    peaks = torch.cat([prediction.anomaly_map.amax(dim=(-2, -1)) for prediction in found])  # type: ignore[union-attr]
    return scores, peaks
