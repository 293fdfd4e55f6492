"""What a Lightning checkpoint of our models holds, and what is compared before one is believed.

It holds what was learned and decided, never the CLIP, and beside it what all of that was made with. Text that the arguments
can make anew is not an obstacle: :mod:`readiness` makes it anew. Learned weights and remembered images cannot be made of
arguments: a contradiction there is an error that names the argument, the value in the file and the value given.
"""

from __future__ import annotations

import dataclasses
import logging
import zipfile
from collections.abc import Iterable, Mapping, Sequence
from numbers import Real
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from anomalib_zsclip.clip.archives import check_archive
from anomalib_zsclip.errors import CheckpointError
from anomalib_zsclip.heads.base import LearnableHead
from anomalib_zsclip.heads.options import Recipe, plain

from .arguments import IN_CHECKPOINT, WEIGHT_FILES
from .detector import Bindings, Detector
from .readiness import differences

logger = logging.getLogger(__name__)

BACKBONE_PREFIX = "model.backbone."
COMPONENTS = (
    "post_processor.",
    "pre_processor.",
    "evaluator.",
    "visualizer.",
    "model.namer.",
    "model.memory_bank.",
    "model.mutual.",
)
"""Parts that a model may have and a file not, or the other way round: they are made anew, or left out."""

OLD_NAMES = {
    "model.memory.memory": "model.memory_bank.patches",
    "model.memory.reference": "model.memory_bank.reference",
}
"""Names in checkpoints of version 0.1."""


# ---------------------------------------------------------------------- writing
def write_record(module: Detector, checkpoint: dict[str, Any]) -> None:
    """Leave the frozen CLIP out of a checkpoint, and write down what the rest was made with."""
    state = checkpoint["state_dict"]
    checkpoint["state_dict"] = {key: value for key, value in state.items() if not key.startswith(BACKBONE_PREFIX)}
    checkpoint["zsclip_backbone"] = module.model.backbone.identity.as_dict()
    checkpoint["zsclip"] = {
        "model": type(module).__name__,
        "heads": {name: _learned(head) for name, head in module.model.heads.items()},
        "k_shot": module.k_shot,
        "bindings": module.bindings.as_dict(),
    }
    arguments = checkpoint.get("hyper_parameters", {})
    published = {module.weight_argument(head) for head in module.published}
    checkpoint["hyper_parameters"] = {
        name: IN_CHECKPOINT if name in published or (name in WEIGHT_FILES and value) else _plain_options(value)
        for name, value in arguments.items()
    }


def _learned(head: object) -> Recipe | None:
    return plain(head.learned_recipe()) if isinstance(head, LearnableHead) else None


def _plain_options(value: Any) -> Any:  # noqa: ANN401
    """Typed arguments as a mapping, and no numbers of NumPy's, since a checkpoint holds no classes."""
    if dataclasses.is_dataclass(value):
        return plain(vars(value))
    if isinstance(value, (list, tuple)):
        return type(value)(_plain_options(item) for item in value)
    own = isinstance(value, (Real, Sequence, Mapping)) and not isinstance(value, (str, bytes))
    return plain(value) if own else value


# ---------------------------------------------------------------------- reading
def check_file(path: object) -> None:
    """Refuse a damaged archive.

    Raises:
        CheckpointError: If a checksum is wrong.
    """
    if not isinstance(path, (str, Path)) or not Path(path).is_file():
        return
    try:
        check_archive(path)
    except zipfile.BadZipFile as error:
        msg = f"The checkpoint {path} is damaged: {error}."
        raise CheckpointError(msg) from error


def read_record(module: Detector, checkpoint: dict[str, Any]) -> None:
    """Compare a checkpoint with the model, and make its state dict one that fits.

    Raises:
        CheckpointError: If it is of another CLIP or another model, or holds what contradicts the arguments.
    """
    _check_backbone(module, checkpoint.get("zsclip_backbone"))
    state: dict[str, Tensor] = checkpoint["state_dict"]
    for old, new in OLD_NAMES.items():
        if old in state:
            state[new] = state.pop(old)
    for key, value in state.items():
        # Those of the post-processor are NaN as long as it has seen no data.
        if key.startswith("model.") and not torch.isfinite(value).all():
            msg = f"The checkpoint is damaged: {key} has values that are not finite."
            raise CheckpointError(msg)
    record = checkpoint.get("zsclip") or _record_of_old_version(module, checkpoint)
    if record["model"] != type(module).__name__:
        msg = f"The checkpoint is one of the model {record['model']}, and this is {type(module).__name__}."
        raise CheckpointError(msg)
    bindings = Bindings(**record["bindings"])
    _match_heads(module, record["heads"], bindings, state)
    _match_references(module, record["k_shot"], bindings, state)
    _match_unlabelled(module, bindings, state)
    _match_components(module, state)
    state.update({BACKBONE_PREFIX + key: value for key, value in module.model.backbone.state_dict().items()})
    module.bindings, module.ready_for = bindings, None


def _check_backbone(module: Detector, saved: dict[str, str] | None) -> None:
    own = module.model.backbone.identity
    if not saved:
        msg = "This checkpoint was not made by a model of anomalib-zsclip: it does not say which CLIP it belongs to."
        raise CheckpointError(msg)
    if own.matches(saved["fingerprint"]):
        return
    same = saved["fingerprint"].split("-")[0] == own.fingerprint.split("-")[0]
    how = (
        f" The weights are the same, but run in another way (activation and heads: {saved['fingerprint'].split('-')[1:]} "
        f"in the checkpoint, {own.fingerprint.split('-')[1:]} here)."
        if same
        else ""
    )
    msg = (
        f"This checkpoint was made with the backbone {saved['name']!r} (weights {saved['pretrained']!r}), but the "
        f"model has {own.name!r} (weights {own.pretrained!r}).{how} Pass backbone={saved['name']!r} and "
        f"pretrained={saved['pretrained']!r}."
    )
    raise CheckpointError(msg)


def _record_of_old_version(module: Detector, checkpoint: dict[str, Any]) -> Recipe:
    """What version 0.1, which wrote down the class name alone, is believed without a comparison."""
    name = checkpoint.get("zsclip_class_name")
    model = module.model
    text = {
        part: {"backbone": model.backbone.fingerprint, **value.recipe(name)}
        for part, value in model.text_parts.items()
        if name
    }
    images = checkpoint["state_dict"].get("model.memory_bank.patches")
    heads = {key.split(".")[2] for key in checkpoint["state_dict"] if key.startswith("model.heads.")}
    return {
        "model": type(module).__name__,
        "heads": {head: _learned(model.heads[head]) if head in model.heads else None for head in heads},
        "k_shot": images.shape[1] if images is not None and images.ndim == 4 else 0,
        "bindings": Bindings(class_name=name, text=text).as_dict(),
    }


def _match_heads(
    module: Detector, saved: dict[str, Recipe | None], bindings: Bindings, state: dict[str, Tensor]
) -> None:
    model = module.model
    for name, learned in saved.items():
        if name in model.heads or learned is None or not module.adopts_heads:
            continue
        module.adopt_head(name)  # its weights are in the file alone
    for name in saved.keys() - set(model.heads):
        logger.info("The head %r of the checkpoint is left out: heads=%s.", name, list(model.heads))
        _drop(state, f"model.heads.{name}.")
        bindings.text.pop(name, None)
    for name, head in model.heads.items():
        prefix = f"model.heads.{name}."
        if name not in saved:
            _take_own(module, state, prefix)
        elif isinstance(head, LearnableHead):
            _check_learned(module, name, head, saved[name], state)
        elif differences(_without_class(bindings.text.get(name)), _without_class(head.recipe(""))):  # type: ignore[operator]
            _take_own(module, state, prefix)  # of other sizes, perhaps; it is made anew in any case
    if model.namer is None:
        bindings.text.pop("defect_words", None)
    if model.namer is None or model.namer.recipe("") != _without_backbone(bindings.text.get("defect_words")):
        _take_own(module, state, "model.namer.")


def _without_backbone(recipe: Recipe | None) -> Recipe:
    return {name: value for name, value in (recipe or {}).items() if name != "backbone"}


def _without_class(recipe: Recipe | None) -> Recipe:
    return {
        name: value for name, value in (recipe or {}).items() if name not in ("backbone", "class_name", "sentences")
    }


def _check_learned(
    module: Detector, name: str, head: LearnableHead, saved: Recipe | None, state: dict[str, Tensor]
) -> None:
    """Raise an error where the model's arguments are not those that the learned weights belong to."""
    wrong = differences(saved or {}, plain(head.learned_recipe())) if saved else []
    if wrong:
        arguments = ", ".join(f"{key}={value}" for key, value in (saved or {}).items())
        msg = (
            f"The checkpoint has weights of the head {name!r} that were learned with other arguments: {', '.join(wrong)} "
            f"in the checkpoint. Pass {arguments}."
        )
        raise CheckpointError(msg)
    argument = module.weight_argument(name)
    file = module.hparams.get(argument)
    if module.learn or file in (None, IN_CHECKPOINT) or name in module.published:
        return
    for key, value in head.learned_state().items():
        saved_value = state.get(f"model.heads.{name}.{key}")
        if saved_value is not None and (
            saved_value.shape != value.shape or not torch.equal(saved_value.cpu(), value.cpu())
        ):
            msg = (
                f"{argument}={str(file)!r} has other weights of the head {name!r} than the checkpoint has ({key} differs). "
                f"Leave out one of the two: without {argument} those of the checkpoint are used."
            )
            raise CheckpointError(msg)


def _match_references(module: Detector, saved: int, bindings: Bindings, state: dict[str, Tensor]) -> None:
    own, prefix = module.k_shot, "model.memory_bank."
    if saved and not own and module.model.memory_bank is not None:
        msg = (
            f"The checkpoint has k_shot={saved}, the model k_shot=0: its scores would be others. Pass k_shot={saved}; the "
            "normal images are in the checkpoint."
        )
        raise CheckpointError(msg)
    if saved != own:
        # Images at hand fill the bank anew; without them readiness names both values.
        bindings.references = {**(bindings.references or {}), "k_shot": saved}
        if module.model.memory_bank is not None:
            module.model.memory_bank.clear()
        _take_own(module, state, prefix)


def _match_unlabelled(module: Detector, bindings: Bindings, state: dict[str, Tensor]) -> None:
    saved = (bindings.unlabelled or {}).get("count", 0)
    if saved and not module.unlabelled:
        msg = (
            f"The checkpoint has unlabelled={saved}, the model unlabelled=0: its scores would be others. Pass "
            f"unlabelled={saved}; the references are in the checkpoint."
        )
        raise CheckpointError(msg)
    if saved != module.unlabelled and module.model.memory_bank is not None:
        # Images at hand fill the bank anew; without them readiness says so.
        bindings.unlabelled = None
        module.model.memory_bank.clear_unlabelled()
        for prefix in ("model.memory_bank.unlabelled", "model.mutual."):
            _take_own(module, state, prefix)


def _match_components(module: Detector, state: dict[str, Tensor]) -> None:
    """Fill in parts that the file lacks, and leave out those that the model lacks."""
    own = {key: value for key, value in module.state_dict().items() if not key.startswith(BACKBONE_PREFIX)}
    for key in list(state):
        known = key in own or ".prompts." in key  # those are made when they are loaded
        if not known and (key.startswith(COMPONENTS) or key.endswith(".is_ready")):
            del state[key]
        elif not known:
            msg = f"The checkpoint does not fit the model: it holds {key}, which the model has no place for."
            raise CheckpointError(msg)
    for key, value in own.items():
        if key in state:
            continue
        if not key.startswith(COMPONENTS):
            msg = f"The checkpoint does not fit the model: {key} is missing in it."
            raise CheckpointError(msg)
        state[key] = value


def _drop(state: dict[str, Tensor], prefix: str) -> None:
    for key in [key for key in state if key.startswith(prefix)]:
        del state[key]


def _take_own(module: Detector, state: dict[str, Tensor], prefix: str) -> None:
    """Replace a part of the file's state by the model's own."""
    _drop(state, prefix)
    state.update(_with_prefix(module.state_dict().items(), prefix))


def _with_prefix(entries: Iterable[tuple[str, Tensor]], prefix: str) -> dict[str, Tensor]:
    return {key: value for key, value in entries if key.startswith(prefix)}
