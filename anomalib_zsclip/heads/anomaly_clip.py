"""AnomalyCLIP (ICLR 2024): learned object-agnostic prompts against the tokens of the refined (DPAM) stream."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar

import torch
import torch.nn.functional as F
from anomalib.models.components import DynamicBufferMixin
from torch import Tensor

from anomalib_zsclip.clip import BlockRange, ClipBackbone, FeatureRequest, ImageFeatures, loading
from anomalib_zsclip.errors import ArgumentError, CheckpointError
from anomalib_zsclip.prompts.learned import OFFICIAL, PromptLearner, load_prompts

from .base import HeadOutput, LearnableHead
from .options import HeadOptions, Recipe, combine_image_score, naming_fields
from .two_sentences import class_probabilities, image_loss, map_losses, summed_map

BUILTIN_PROMPTS = loading.BUILTIN_FOLDER / "anomaly_clip_prompts.safetensors"
"""Prompts that this package ships for the built-in backbone."""

MAP_LOSS_WEIGHT = 4.0
LEARNING_RATE = 1e-3
ADAM_BETAS = (0.5, 0.999)


@dataclass(frozen=True)
class AnomalyClipOptions(HeadOptions):
    """Arguments of the head of AnomalyCLIP.

    Args:
        sigma: Gaussian smoothing of the map in pixels; default: 4 at 518 px, in proportion to the image size.
        image_score: Image score: "text" for the image embedding's probability of the damaged sentence (the paper),
            "map_max" for the maximum of the map, "mean" for the mean of both.
        n_ctx: Learned tokens of each sentence.
        depth: Blocks of the text tower that see learned tokens; all of them where it has fewer.
        t_n_ctx: Learned tokens before each of the blocks behind the first.
        layers: Blocks of the image tower whose patches are compared, counted from 1, in any order; default: the last one
            alone, which gives the published numbers.
        value_value_blocks: Number of blocks, from the last one backwards, whose value-value attention makes up the
            refined stream; default: 19 of 24 as published (DPAM_layer=20 there), and the same share of other depths. 0
            compares ordinary tokens.
        temperature: Temperature of the softmax over the two sentences.
        round_prompts: Round the deep prompts to float16 as the published program does; default: where published prompts
            are used as they are, so not in learning.
    """

    PAPER_SIZE: ClassVar[int] = 518

    n_ctx: int = 12
    depth: int = 9
    t_n_ctx: int = 4
    layers: Sequence[int] | None = None
    value_value_blocks: int | None = None
    temperature: float = 0.07
    round_prompts: bool | None = None

    def __post_init__(self) -> None:
        """Refuse values that cannot work."""
        super().__post_init__()
        for name in ("n_ctx", "depth", "t_n_ctx"):
            value = getattr(self, name)
            _require(value >= 1, f"{name}={value} must be at least 1.")
        dual = self.value_value_blocks
        _require(dual is None or dual >= 0, f"value_value_blocks={dual} must not be negative.")
        # Below, cosines over the temperature leave float32's range and the softmax becomes NaN.
        usable = 1e-6 <= self.temperature < float("inf")
        _require(usable, f"temperature={self.temperature} must be finite and at least 1e-6.")
        named = self.layers is None or len(self.layers) > 0
        _require(named, "layers=[] must name at least one block, or be None for the last.")


class AnomalyClipHead(DynamicBufferMixin, LearnableHead):
    """Compares image and patches with two learned sentences, one of a flawless and one of a damaged object.

    The learned prompts are parameters; what inference needs of them is compiled into two vectors, ``text_features``.
    Both are in the state dict, and a head takes their shapes from a state dict that is loaded into it.

    Args:
        prompts: File with learned prompts, see :func:`~anomalib_zsclip.prompts.learned.load_prompts`. Default: the
            shipped ones where the backbone is the built-in one. With ``learn`` they are where learning starts from.
        learn: The prompts will be learned, so that :meth:`setup` may start from random ones.
        **options: Fields of :class:`AnomalyClipOptions`.

    Raises:
        ArgumentError: If an argument has a value that cannot work.
    """

    options: AnomalyClipOptions
    prompts: PromptLearner
    text_features: Tensor

    def __init__(self, prompts: str | Path | None = None, *, learn: bool = False, **options: Any) -> None:  # noqa: ANN401
        super().__init__()
        with naming_fields(AnomalyClipOptions):
            self.options = AnomalyClipOptions(**options)
        self.prompts_file = prompts
        self.learn = learn
        self.register_module("prompts", None)
        self.register_buffer("text_features", torch.empty(0))  # [2, E] once compiled, of unit length

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

    def blocks(self, backbone: ClipBackbone) -> list[int]:
        """Blocks whose patches are compared, ascending.

        Raises:
            ArgumentError: If one is outside the image tower.
        """
        layers = list(self.options.layers or [])
        blocks = sorted(set(layers or [backbone.layers]))
        outside = [block for block in blocks if not 1 <= block <= backbone.layers]
        _require(
            not outside,
            f"layers={layers}: {outside} is outside the image tower of {backbone.name!r}, "
            f"which has blocks 1 to {backbone.layers}.",
        )
        return blocks

    def first_dual_block(self, backbone: ClipBackbone) -> int:
        """First block of the refined stream, counted from 1; one behind the last block where there is none."""
        dual = self.options.value_value_blocks
        dual = round(19 / 24 * backbone.layers) if dual is None else min(dual, backbone.layers)
        return backbone.layers - dual + 1

    def request(self, backbone: ClipBackbone) -> FeatureRequest:
        """Stream where the refined one branches off, and the sums of value-value outputs up to each block."""
        first = self.first_dual_block(backbone)
        blocks = self.blocks(backbone)
        refined = [block for block in blocks if block >= first]
        ordinary = [block for block in blocks if block < first]
        return FeatureRequest.of(
            tokens=[*ordinary, first - 1] if refined else ordinary,
            value_value=[(first, block) for block in refined],
        )

    def setup(self, backbone: ClipBackbone, class_name: str) -> None:
        """Get the prompts and compile them. With ``learn`` and no file they are random, and the head not ready yet.

        Raises:
            ArgumentError: If there is nothing to get them from, or ``layers`` or ``n_ctx`` do not fit the backbone.
            CheckpointError: If the file cannot be read or holds prompts for another text tower or backbone.
        """
        del class_name  # The prompts are object-agnostic.
        self.blocks(backbone)
        if self.prompts is not None:
            self._check_dimensions(self.prompts, backbone, "The checkpoint")
        else:
            self.prompts = self._initial_prompts(backbone).to(next(backbone.parameters()).device)
            self.prompts.requires_grad_(requires_grad=False)  # until somebody asks for the optimiser
            if self.learn and self.prompts_file is None:
                return
        self.finish_learning(backbone)

    def _initial_prompts(self, backbone: ClipBackbone) -> PromptLearner:
        wanted = self._wanted_dimensions(backbone)
        free = backbone.tokenize(["object"]).shape[1] - 5  # start, "damaged", "object", ".", end
        n_ctx = self.options.n_ctx
        _require(n_ctx <= free, f"n_ctx={n_ctx} is too long for the text tower: at most {free} tokens fit.")
        path = self.prompts_file
        origin = {"backbone": backbone.name, "fingerprint": backbone.fingerprint}
        if path is None and self.learn:
            prompts = PromptLearner(wanted["text_width"], wanted["n_ctx"], wanted["depth"], wanted["t_n_ctx"])
            prompts.info = origin
            return prompts
        if path is None and backbone.name == loading.BUILTIN and BUILTIN_PROMPTS.is_file():
            path = BUILTIN_PROMPTS
        if path is None:
            msg = (
                f"AnomalyCLIP has no learned prompts for the backbone {backbone.name!r}. Three ways out: give a file "
                "of learned prompts (checkpoint=<path of a .safetensors, or of the published .pth>; "
                "anomaly_clip_checkpoint= for ZsClip) or the checkpoint of a trained model (ckpt_path); learn them on "
                "labelled auxiliary images (learn=True, with the data module ZeroShotTransfer); or take the built-in "
                "backbone, for which learned prompts are shipped (backbone='builtin')."
            )
            raise ArgumentError(msg)
        prompts = load_prompts(path)
        self._check_dimensions(prompts, backbone, f"The file {path}")
        theirs = prompts.info.get("fingerprint", backbone.fingerprint)
        if not backbone.identity.matches(theirs):
            msg = (
                f"The prompts in {path} were learned with the backbone {prompts.info.get('backbone', '?')!r} "
                f"(fingerprint {theirs}); this one is {backbone.name!r} (fingerprint {backbone.fingerprint})."
            )
            raise CheckpointError(msg)
        if self.learn:
            prompts.info = origin
        return prompts

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

    def encode_text(self, backbone: ClipBackbone) -> Tensor:
        """Embeddings of both sentences, of unit length, normal before anomalous, ``[2, E]``; with gradient."""
        rounded = self.options.round_prompts
        if rounded is None:
            rounded = self.prompts.info.get("layout") == OFFICIAL
        return F.normalize(self.prompts(backbone, round_prompts=rounded), dim=-1)

    def image_embedding(self, features: ImageFeatures, backbone: ClipBackbone) -> Tensor:
        """Class token of the ordinary stream in the joint space, without ``ln_post`` as published, ``[B, E]``."""
        return backbone.project_tokens(features.class_token, normalize_first=False)

    def patch_features(self, features: ImageFeatures, backbone: ClipBackbone) -> Tensor:
        """Tokens of the refined stream in the joint space (section 3.3), class token first.

        Returns:
            Not normalised, blocks ascending, ``[layers, B, 1 + L, E]``.
        """
        first = self.first_dual_block(backbone)
        tokens = [_refined_tokens(features, first, block) for block in self.blocks(backbone)]
        return torch.stack([backbone.project_tokens(stream) for stream in tokens])

    def forward(self, features: ImageFeatures, backbone: ClipBackbone, size: tuple[int, int]) -> HeadOutput:
        """Score a batch.

        The map is the mean over the layers, so that it is a probability; the published program adds them up.

        Raises:
            ArgumentError: If the head has no compiled prompts yet.
        """
        _require(self.is_learned, "AnomalyCLIP has no learned prompts yet: set it up, learn, or load them.")
        embedding = self.image_embedding(features, backbone)
        patches = self.patch_features(features, backbone)[:, :, 1:]
        probabilities = class_probabilities(patches, self.text_features, self.options.temperature)  # [layers, B, L, 2]
        anomaly_map = summed_map(probabilities, features.grid, size, self.options.sigma_for(size)) / len(probabilities)
        # Rounding can leave [0, 1] by an ulp.
        anomaly_map = anomaly_map.clamp(0, 1)
        score = class_probabilities(embedding, self.text_features, self.options.temperature)[..., 1]
        return HeadOutput(combine_image_score(self.options.image_score, score, anomaly_map), anomaly_map)

    @torch.no_grad()
    def learning_inputs(
        self, features: ImageFeatures, backbone: ClipBackbone, class_names: Sequence[str]
    ) -> dict[str, Tensor]:
        """Unit image embedding ``[B, E]`` and unit patch features on their grid ``[B, layers, h, w, E]``."""
        del class_names  # The prompts are object-agnostic.
        patches = F.normalize(self.patch_features(features, backbone)[:, :, 1:], dim=-1)
        return {
            "image_embedding": F.normalize(self.image_embedding(features, backbone), dim=-1),
            "patch_features": patches.transpose(0, 1).unflatten(2, features.grid),
        }

    def learning_loss(
        self, backbone: ClipBackbone, inputs: dict[str, Tensor], masks: Tensor | None, labels: Tensor
    ) -> dict[str, Tensor]:
        """Weighted map losses plus cross-entropy of the image (section 3.3); without masks the cross-entropy alone.

        Returns:
            ``loss``, and detached ``image`` and, with masks, ``focal``, ``dice_anomalous`` and ``dice_normal``, each
            summed over the layers.
        """
        text_features = self.encode_text(backbone)
        image = image_loss(inputs["image_embedding"], text_features, labels, self.options.temperature)
        if masks is None:
            return {"loss": image, "image": image.detach()}
        terms = map_losses(inputs["patch_features"], text_features, masks, self.options.temperature)
        sums = {name: values.sum() for name, values in terms.items()}
        loss = MAP_LOSS_WEIGHT * torch.stack(list(sums.values())).sum() + image
        return {"loss": loss, "image": image.detach()} | {name: value.detach() for name, value in sums.items()}

    def configure_optimizer(self) -> torch.optim.Optimizer:
        """Adam with learning rate 1e-3 and betas (0.5, 0.999) over the prompts, as published."""
        self.prompts.requires_grad_(requires_grad=True)
        return torch.optim.Adam(self.prompts.parameters(), lr=LEARNING_RATE, betas=ADAM_BETAS)

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
                self.prompts = PromptLearner(width, n_ctx, number + 1, t_n_ctx).to(self.text_features.device)
                self.prompts.requires_grad_(requires_grad=False)
        super()._load_from_state_dict(state_dict, prefix, *args)


def _refined_tokens(features: ImageFeatures, first: int, block: int) -> Tensor:
    """Refined stream after ``block``; the ordinary one before the first dual block."""
    if block < first:
        return features.tokens[block]
    span: BlockRange = (first, block)
    return features.tokens[first - 1] + features.value_value[span]


def _differences(found: dict[str, int], wanted: dict[str, int]) -> str:
    """Dimensions of prompts that are not the wanted ones, in words; empty where all fit."""
    # Without deep prompts their length means nothing.
    names = [name for name in wanted if name != "t_n_ctx" or found["depth"] > 1]
    return ", ".join(f"{name}={found[name]} instead of {wanted[name]}" for name in names if found[name] != wanted[name])


def _require(condition: bool, message: str) -> None:
    if not condition:
        raise ArgumentError(message)
