"""What the arguments that all models share stand for: backbone, image size, precision."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import torch
from anomalib.metrics import Evaluator

from anomalib_zsclip.benchmark import PapersEvaluator
from anomalib_zsclip.clip import ClipBackbone
from anomalib_zsclip.errors import ArgumentError, check_flag, check_path, check_whole_number

WEIGHT_FILES = ("checkpoint", "sdp_plus_checkpoint", "anomaly_clip_checkpoint", "crane_checkpoint")
"""Arguments that name files with learned parameters."""

PAPER_SIZE = 518
"""Side of images for ViT-L-14-336 in the papers that use it."""

IN_CHECKPOINT = "(in the checkpoint)"
"""What a checkpoint has in place of such a file: it holds the parameters, and the file may be gone."""


def read_backbone_arguments(
    backbone: str, pretrained: str | Path | None, auto: tuple[str, str], position_mode: str
) -> ClipBackbone:
    """Load the backbone that a model's arguments name."""
    return ClipBackbone.load(backbone, pretrained, auto=auto, position_mode=position_mode)


def check_normal_images(normal_dir: str | Path | None, k_shot: int, normal_images: int) -> None:
    """Refuse what cannot say where good parts are, and how many of them to take.

    Raises:
        ArgumentError: If one has a value that cannot work.
    """
    check_path("normal_dir", normal_dir)
    check_whole_number("k_shot", k_shot, 0)
    check_whole_number("normal_images", normal_images, 1)


def check_common_arguments(precision: str, class_name: str | None, **flags: bool) -> None:
    """Refuse what these arguments of every model cannot be.

    Raises:
        ArgumentError: If one is something else.
    """
    for name, flag in flags.items():
        check_flag(name, flag)
    if precision not in ("float32", "bf16", "fp16", "auto"):
        msg = f"precision={precision!r} must be 'float32', 'bf16', 'fp16' or 'auto'."
        raise ArgumentError(msg)
    if class_name is not None and not isinstance(class_name, str):
        msg = f"class_name={class_name!r} must be a text: what the images show."
        raise ArgumentError(msg)


def resolve_size(image_size: int | Sequence[int] | None, backbone: ClipBackbone) -> tuple[int, int]:
    """Height and width that images are resized to: a side or both given, or the backbone's default.

    Raises:
        ArgumentError: If it is smaller than a patch or of another form.
    """
    if image_size is None:
        return (backbone.default_size, backbone.default_size)
    size = image_size if isinstance(image_size, Sequence) else (image_size, image_size)
    whole = all(isinstance(side, int) and not isinstance(side, bool) and side >= backbone.patch_size for side in size)
    if len(size) != 2 or not whole:
        msg = (
            f"image_size={image_size!r} must be a side or (height, width) of at least one patch of "
            f"{backbone.patch_size} pixels."
        )
        raise ArgumentError(msg)
    return (size[0], size[1])


def size_of_papers(image_size: int | Sequence[int] | None, backbone: ClipBackbone) -> int | Sequence[int] | None:
    """The size that AnomalyCLIP, Crane and MuSc publish for ViT-L-14-336, where the user names none; else as given."""
    return PAPER_SIZE if image_size is None and (backbone.image_size, backbone.patch_size) == (336, 14) else image_size


def resolve_precision(precision: str, backbone: ClipBackbone) -> str:
    """``"auto"``: bf16 where the device multiplies it natively."""
    if precision != "auto":
        return precision
    if backbone.device.type == "cuda":
        return "bf16" if torch.cuda.is_bf16_supported(including_emulation=False) else "float32"
    native = torch.backends.mkldnn.is_available() and torch.ops.mkldnn._is_mkldnn_bf16_supported()
    return "bf16" if native else "float32"


def resolve_evaluator(evaluator: Evaluator | bool | str) -> Evaluator | bool:
    """``"papers"``: the metrics of the zero-shot papers, as their programs compute them; anything else as anomalib's.

    Raises:
        ArgumentError: If it is another text.
    """
    if not isinstance(evaluator, str):
        return evaluator
    if evaluator == "papers":
        return PapersEvaluator()
    msg = f"evaluator={evaluator!r} must be 'papers', true, false, or an Evaluator of anomalib."
    raise ArgumentError(msg)
