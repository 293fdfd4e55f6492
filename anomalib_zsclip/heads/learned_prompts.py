"""What heads with learned object-agnostic prompts share (AnomalyCLIP, Crane): getting, compiling, keeping the prompts."""

from __future__ import annotations

from abc import abstractmethod
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar

import torch
import torch.nn.functional as F
from anomalib.models.components import DynamicBufferMixin
from torch import Tensor

from anomalib_zsclip.clip import ClipBackbone, loading
from anomalib_zsclip.errors import ArgumentError, CheckpointError, check_flag, check_whole_number, is_number
from anomalib_zsclip.prompts.learned import CRANE, OFFICIAL, PromptLearner, load_prompts

from .base import LearnableHead
from .options import HeadOptions, Recipe
from .published_weights import way_out

LEARNING_RATE = 1e-3  # of Adam, in both papers


@dataclass(frozen=True)
class LearnedPromptsOptions(HeadOptions):
    """Arguments that heads with learned prompts share; see those of each head."""

    PAPER_SIZE: ClassVar[int] = 518

    n_ctx: int = 12
    depth: int = 9
    t_n_ctx: int = 4
    temperature: float = 0.07
    round_prompts: bool | None = None

    def __post_init__(self) -> None:
        """Refuse values that cannot work."""
        super().__post_init__()
        for name in ("n_ctx", "depth", "t_n_ctx"):
            check_whole_number(name, getattr(self, name), 1)
        if self.round_prompts is not None:
            check_flag("round_prompts", self.round_prompts)
        # Below, cosines over the temperature leave float32's range and the softmax becomes NaN.
        usable = is_number(self.temperature) and self.temperature >= 1e-6
        require(usable, f"temperature={self.temperature!r} must be finite and at least 1e-6.")


class LearnedPromptsHead(DynamicBufferMixin, LearnableHead):
    """Base of the heads that compare images with two learned sentences, one of a flawless and one of a damaged object.

    The learned prompts are parameters; what inference needs of them is compiled into two vectors, ``text_features``.
    Both are in the state dict, and a head takes their shapes from a state dict that is loaded into it.

    Args:
        options: Arguments of the head.
        prompts: File with learned prompts, see :func:`~anomalib_zsclip.prompts.learned.load_prompts`. Default: the
            shipped ones where the backbone is the built-in one. With ``learn`` they are where learning starts from.
        learn: The prompts will be learned, so that :meth:`setup` may start from random ones.

    Attributes:
        METHOD: Name of the method in messages.
        VARIANT: The ``variant`` of its prompts.
        ADAM_BETAS: Of the optimiser.
        LONGEST_END: Tokens of the longer sentence besides the learned ones: start, "damaged", "object", ".", end.
    """

    METHOD: ClassVar[str]
    VARIANT: ClassVar[str]
    ADAM_BETAS: ClassVar[tuple[float, float]]
    LONGEST_END: ClassVar[int] = 5

    options: LearnedPromptsOptions
    prompts: PromptLearner
    text_features: Tensor

    def __init__(self, options: LearnedPromptsOptions, prompts: str | Path | None, *, learn: bool) -> None:
        super().__init__()
        self.options = options
        self.prompts_file = prompts
        self.learn = learn
        self.register_module("prompts", None)
        self.register_buffer("text_features", torch.empty(0))  # [2, E] once compiled, of unit length

    @property
    @abstractmethod
    def shipped_prompts(self) -> Path:
        """Where this package has prompts for the built-in backbone, if it ships some."""

    @abstractmethod
    def check_backbone(self, backbone: ClipBackbone) -> None:
        """Raise ``ArgumentError`` where the options do not fit the backbone."""

    def recipe(self, class_name: str) -> Recipe:
        """How the prompts are encoded; the prompts themselves are learned. See :class:`Head`."""
        del class_name  # The prompts are object-agnostic.
        return {"round_prompts": self.options.round_prompts} | self.learned_recipe()

    def learned_recipe(self) -> Recipe:
        """Lengths of the prompts; see :class:`LearnableHead`."""
        return {name: getattr(self.options, name) for name in ("n_ctx", "depth", "t_n_ctx")}

    def learned_state(self) -> dict[str, Tensor]:
        """The prompts; see :class:`LearnableHead`."""
        prompts = self.prompts
        if prompts is None and self.prompts_file is not None:
            prompts = load_prompts(self.prompts_file)
        return {} if prompts is None else {f"prompts.{key}": value for key, value in prompts.state_dict().items()}

    @property
    def is_learned(self) -> bool:
        """Whether the head has compiled prompts: learned, read from a file, or from a state dict."""
        return self.text_features.numel() > 0

    def setup(self, backbone: ClipBackbone, class_name: str) -> None:
        """Get the prompts and compile them. With ``learn`` and no file they are random, and the head not ready yet.

        Raises:
            ArgumentError: If there is nothing to get them from, or ``layers`` or ``n_ctx`` do not fit the backbone.
            CheckpointError: If the file cannot be read or holds prompts for another text tower or backbone.
        """
        del class_name  # The prompts are object-agnostic.
        self.check_backbone(backbone)
        if self.prompts is not None:
            self._check_dimensions(self.prompts, backbone, "The checkpoint")
        else:
            self.prompts = self._initial_prompts(backbone).to(next(backbone.parameters()).device)
            self.prompts.requires_grad_(requires_grad=False)  # until somebody asks for the optimiser
        if self.learn and self.prompts_file is None and not self.is_learned:
            return  # they are random still, however often the head is set up
        self.finish_learning(backbone)

    def _initial_prompts(self, backbone: ClipBackbone) -> PromptLearner:
        wanted = self._wanted_dimensions(backbone)
        free = backbone.tokenize(["object"]).shape[1] - self.LONGEST_END
        n_ctx = self.options.n_ctx
        require(n_ctx <= free, f"n_ctx={n_ctx} is too long for the text tower: at most {free} tokens fit.")
        path = self.prompts_file
        origin = {"backbone": backbone.name, "fingerprint": backbone.fingerprint}
        if path is None and self.learn:
            prompts = PromptLearner(**wanted, variant=self.VARIANT)
            prompts.info = origin
            return prompts
        shipped = self.shipped_prompts.is_file()
        if path is None and backbone.name == loading.BUILTIN and shipped:
            path = self.shipped_prompts
        if path is None:
            ways = [
                "give a file of learned prompts (checkpoint=<path of a .safetensors, or of the published .pth>; "
                f"{self.VARIANT}_checkpoint= for ZsClip) or the checkpoint of a trained model (ckpt_path)",
                way_out(self.VARIANT, backbone, "checkpoint"),
                "learn them on labelled auxiliary images (learn=True, with the data module ZeroShotTransfer)",
            ]
            if shipped:
                ways.append("take the built-in backbone, for which learned prompts are shipped (backbone='builtin')")
            msg = (
                f"{self.METHOD} has no learned prompts for the backbone {backbone.name!r}. Ways out: {'; '.join(ways)}."
            )
            raise ArgumentError(msg)
        prompts = load_prompts(path)
        self._check_variant(prompts, path)
        self._check_dimensions(prompts, backbone, f"The file {path}")
        theirs = prompts.info.get("fingerprint", backbone.fingerprint)
        if not backbone.identity.matches(theirs):
            msg = (
                f"The prompts in {path} were learned with the backbone {prompts.info.get('backbone', '?')!r} "
                f"(fingerprint {theirs}); this one is {backbone.name!r} (fingerprint {backbone.fingerprint})."
            )
            raise CheckpointError(msg)
        if self.learn:
            prompts.info, prompts.variant = origin, self.VARIANT
        return prompts

    def _check_variant(self, prompts: PromptLearner, path: str | Path) -> None:
        if prompts.variant in (None, self.VARIANT):
            return
        sign = "has no" if prompts.variant == CRANE else "has"
        known = (
            f" (it {sign} compound_prompt_projections.*, and AnomalyCLIP's files alone have them)"
            if prompts.info.get("layout") == OFFICIAL
            else ""
        )
        msg = (
            f"The file {path} has prompts of variant={prompts.variant!r}{known}, and this is variant={self.VARIANT!r}. "
            f"Pass variant={prompts.variant!r} to AnomalyClip, {prompts.variant}_checkpoint= to ZsClip, or give a file "
            f"with prompts of {self.METHOD}."
        )
        raise CheckpointError(msg)

    def _wanted_dimensions(self, backbone: ClipBackbone) -> dict[str, int]:
        return {
            "n_ctx": self.options.n_ctx,
            "depth": min(self.options.depth, backbone.text_layers),
            "t_n_ctx": self.options.t_n_ctx,
            "text_width": backbone.text_width,
        }

    def _check_dimensions(self, prompts: PromptLearner, backbone: ClipBackbone, source: str) -> None:
        differences = _differences(prompts.dimensions, self._wanted_dimensions(backbone))
        if differences:
            msg = (
                f"{source} has prompts with {differences}. The text tower of {backbone.name!r} has "
                f"{backbone.text_layers} blocks of width {backbone.text_width}; the arguments are "
                f"{', '.join(f'{name}={value}' for name, value in self.learned_recipe().items())}."
            )
            raise CheckpointError(msg)

    @property
    def rounds_prompts(self) -> bool:
        """Whether the deep prompts are rounded to float16: as told, else where published ones are used as they are."""
        rounded = self.options.round_prompts
        return self.prompts.info.get("layout") == OFFICIAL if rounded is None else rounded

    def encode_text(self, backbone: ClipBackbone) -> Tensor:
        """Embeddings of both sentences, of unit length, normal before anomalous, ``[2, E]``; with gradient."""
        return F.normalize(self.prompts(backbone, round_prompts=self.rounds_prompts), dim=-1)

    def configure_optimizer(self) -> torch.optim.Optimizer:
        """Adam over the prompts, with the rate and the betas of the paper."""
        self.prompts.requires_grad_(requires_grad=True)
        return torch.optim.Adam(self.prompts.parameters(), lr=LEARNING_RATE, betas=self.ADAM_BETAS)

    def finish_learning(self, backbone: ClipBackbone) -> None:
        """Compile the prompts into ``text_features``."""
        # Validation may run in inference mode, whose tensors could not be overwritten by a checkpoint later.
        with torch.inference_mode(mode=False), torch.no_grad():
            self.text_features = self.encode_text(backbone)

    def _load_from_state_dict(self, state_dict: dict[str, Any], prefix: str, *args: Any) -> None:  # noqa: ANN401
        """Make prompts of the shapes that the state dict holds: they are known only with a backbone, or from there."""
        context, deep = (state_dict.get(f"{prefix}prompts.{name}") for name in ("ctx_pos", "deep_prompts"))
        if context is not None and deep is not None:
            (n_ctx, width), (number, t_n_ctx, _) = context.shape, deep.shape
            found = {"n_ctx": n_ctx, "depth": number + 1, "t_n_ctx": t_n_ctx, "text_width": width}
            own = {name: getattr(self.options, name) for name in ("n_ctx", "t_n_ctx")}
            differences = _differences(found, own if self.prompts is None else self.prompts.dimensions)
            if differences:
                msg = f"The checkpoint has prompts with {differences}: give the arguments that it was learned with."
                raise CheckpointError(msg)
            if self.prompts is None:
                self.prompts = PromptLearner(width, n_ctx, number + 1, t_n_ctx, self.VARIANT).to(
                    self.text_features.device
                )
                self.prompts.requires_grad_(requires_grad=False)
        super()._load_from_state_dict(state_dict, prefix, *args)


def first_dual_block(dual: int | None, backbone: ClipBackbone) -> int:
    """First of the last ``dual`` blocks, counted from 1; one behind the last block for 0.

    ``None`` is 19 of 24, the published number, and the same share of other depths.
    """
    dual = round(19 / 24 * backbone.layers) if dual is None else min(dual, backbone.layers)
    return backbone.layers - dual + 1


def _differences(found: dict[str, int], wanted: dict[str, int]) -> str:
    """Dimensions of prompts that are not the wanted ones, in words; empty where all fit."""
    # Without deep prompts their length means nothing.
    names = [name for name in wanted if name != "t_n_ctx" or found["depth"] > 1]
    return ", ".join(f"{name}={found[name]} instead of {wanted[name]}" for name in names if found[name] != wanted[name])


def require(condition: bool, message: str) -> None:
    """Raise ``ArgumentError`` with the message unless the condition holds."""
    if not condition:
        raise ArgumentError(message)
