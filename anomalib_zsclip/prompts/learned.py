"""Learned object-agnostic prompts (AnomalyCLIP, ICLR 2024, sections 3.2 and 3.3) and the files that keep them.

Crane (arXiv 2504.11055) learns the same kind of prompts, with an embedding of the image among the tokens of the sentences.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from pathlib import Path

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor, nn

from anomalib_zsclip.clip import ClipBackbone
from anomalib_zsclip.clip.archives import check_archive, reading
from anomalib_zsclip.errors import ArgumentError, CheckpointError

OFFICIAL = "official"
"""Value of ``info["layout"]`` for prompts of the published programs."""

ANOMALY_CLIP, CRANE = "anomaly_clip", "crane"
"""Values of ``variant``: the method that prompts were learned with. Those of one method mean little to the other."""

_ENDINGS = ("object.", "damaged object.")
_NAMES = ("ctx_pos", "ctx_neg", "deep_prompts")


class PromptLearner(nn.Module):
    """The learned tokens of the two sentences ``[V1]..[VE] object.`` and ``[W1]..[WE] damaged object.``.

    Besides the tokens at its input, the text tower gets learned tokens between its blocks (deep prompts): they replace
    the first ones behind the start token before block 1, 2, ... (blocks counted from 0) and serve both sentences. All
    of them start from a normal distribution with standard deviation 0.02.

    Args:
        text_width: Width ``W`` of the text tower.
        n_ctx: Learned tokens of each sentence.
        depth: Blocks of the text tower that see learned tokens; the first one sees those of the input.
        t_n_ctx: Tokens of a deep prompt.
        variant: Method that they are learned with: ``"anomaly_clip"`` or ``"crane"``; ``None`` where a file does not tell.

    Attributes:
        ctx_pos: Learned tokens of the normal sentence, ``[n_ctx, W]``.
        ctx_neg: Learned tokens of the anomalous sentence, ``[n_ctx, W]``.
        deep_prompts: Deep prompts, ``[depth - 1, t_n_ctx, W]``.
        info: Where the prompts come from, as plain text by name: ``backbone``, ``fingerprint``, ``learned_from``,
            ``layout``. It is kept in the files of :func:`save_prompts`.
    """

    def __init__(
        self, text_width: int, n_ctx: int = 12, depth: int = 9, t_n_ctx: int = 4, variant: str | None = ANOMALY_CLIP
    ) -> None:
        super().__init__()
        self.variant = variant
        self.ctx_pos = nn.Parameter(0.02 * torch.randn(n_ctx, text_width))
        self.ctx_neg = nn.Parameter(0.02 * torch.randn(n_ctx, text_width))
        self.deep_prompts = nn.Parameter(0.02 * torch.randn(depth - 1, t_n_ctx, text_width))
        self.info: dict[str, str] = {}

    @property
    def dimensions(self) -> dict[str, int]:
        """Prompt length, depth, length of a deep prompt and width, by their names as arguments."""
        deep, t_n_ctx, width = self.deep_prompts.shape
        return {"n_ctx": self.ctx_pos.shape[0], "depth": deep + 1, "t_n_ctx": t_n_ctx, "text_width": width}

    def forward(self, backbone: ClipBackbone, *, round_prompts: bool = False) -> Tensor:
        """Encode both sentences; gradients flow back to the learned tokens.

        Args:
            backbone: The frozen CLIP.
            round_prompts: Round the deep prompts to float16, and with them, per sentence, the gradient that reaches
                them: the published program keeps them in half precision there.

        Returns:
            Text embeddings, not normalised, normal before anomalous, ``[2, E]``.
        """
        context = torch.stack([self.ctx_pos, self.ctx_neg]).float()  # [2, n_ctx, W]
        length = context.shape[1]
        ids = backbone.tokenize([" ".join(["X"] * length + [ending]) for ending in _ENDINGS])
        tokens = backbone.embed_tokens(ids).float()  # [2, context_length, W]
        tokens = torch.cat([tokens[:, :1], context, tokens[:, 1 + length :]], dim=1)
        # One copy per sentence, so that each copy's gradient is rounded before the two are added.
        deep = [prompt.float().expand(2, -1, -1) for prompt in self.deep_prompts]
        if round_prompts:
            deep = [prompt.half().float() for prompt in deep]
        return backbone.encode_prompts(tokens, ids.argmax(dim=-1), deep)

    def encode_for_images(self, backbone: ClipBackbone, image_tokens: Tensor, *, round_prompts: bool = False) -> Tensor:
        """Encode both sentences once per image, an embedding of which stands behind the learned tokens (Crane).

        Args:
            backbone: The frozen CLIP, whose joint space is as wide as its text tower.
            image_tokens: Unit image embeddings, ``[B, E]``.
            round_prompts: As in :meth:`forward`; the gradient is rounded per sentence and image.

        Returns:
            Text embeddings, not normalised, normal before anomalous, ``[B, 2, E]``.
        """
        batch, tokenizer = image_tokens.shape[0], backbone.tokenizer  # len() would fix the batch of an export
        deep = [prompt.float().expand(batch, -1, -1) for prompt in self.deep_prompts]
        embeddings = []
        for context, ending in zip((self.ctx_pos, self.ctx_neg), _ENDINGS, strict=True):
            ids = [tokenizer.sot_token_id, *tokenizer.encode(ending), tokenizer.eot_token_id]
            fixed = backbone.embed_tokens(torch.tensor(ids)).float()
            shared = [part.expand(batch, -1, -1) for part in (fixed[:1], context.float(), fixed[1:])]
            tokens = torch.cat([*shared[:2], image_tokens.float()[:, None], shared[2]], dim=1)  # [B, n_ctx + 4 or 5, W]
            # Rounded per sentence too, so that each copy's gradient is rounded before all are added.
            rounded = [prompt.half().float() for prompt in deep] if round_prompts else deep
            embeddings.append(backbone.encode_prompts(tokens, tokens.shape[1] - 1, rounded))
        return torch.stack(embeddings, dim=1)


def load_prompts(path: str | Path) -> PromptLearner:
    """Read learned prompts without executing anything in the file.

    Args:
        path: Our ``.safetensors``, or a ``.pth`` of the published program: ``{"prompt_learner": state_dict}``.

    Returns:
        The prompts in float32, on the CPU.

    Raises:
        CheckpointError: If the file is missing, damaged or of another format, holds pickled objects, lacks a tensor, or
            a tensor has an impossible shape or values that are not finite.
    """
    path = Path(path).expanduser()
    if not path.is_file():
        msg = f"prompts={str(path)!r}: there is no such file."
        raise CheckpointError(msg)
    if path.suffix == ".safetensors":
        tensors, info = _read_safetensors(path)
        variant = info.pop("format", "").removesuffix("_prompts")
        return _make_learner(tensors, info, variant if variant in (ANOMALY_CLIP, CRANE) else None, path)
    state_dict = _read_official(path)
    return _make_learner(_from_official(state_dict, path), {"layout": OFFICIAL}, _official_variant(state_dict), path)


def save_prompts(prompts: PromptLearner, path: str | Path) -> None:
    """Write learned prompts, a few hundred kB, to a ``.safetensors`` with ``info`` and their dimensions as metadata.

    Raises:
        ArgumentError: If the name does not end in ``.safetensors``.
    """
    path = Path(path).expanduser()
    if path.suffix != ".safetensors":
        msg = f"The file for the prompts must end in .safetensors, not {path.name!r}."
        raise ArgumentError(msg)
    tensors = {name: getattr(prompts, name).detach().float().cpu().contiguous() for name in _NAMES}
    metadata = {"format": f"{prompts.variant}_prompts"} | prompts.info
    metadata |= {name: str(value) for name, value in prompts.dimensions.items()}
    path.parent.mkdir(parents=True, exist_ok=True)
    save_file(tensors, path, metadata)


def _read_safetensors(path: Path) -> tuple[dict[str, Tensor], dict[str, str]]:
    try:
        with safe_open(path, framework="pt") as file:
            tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118 - not a mapping
            metadata = file.metadata() or {}
    except (SafetensorError, OSError, ValueError) as error:
        msg = f"The prompts in {path} cannot be read: the file is damaged, cut short, or no safetensors ({error})."
        raise CheckpointError(msg) from error
    missing = [name for name in _NAMES if name not in tensors]
    if missing:
        msg = f"{path} holds no learned prompts: {', '.join(missing)} missing among {_some(tensors)}."
        raise CheckpointError(msg)
    derived = {"n_ctx", "depth", "t_n_ctx", "text_width"}
    return tensors, {key: value for key, value in metadata.items() if key not in derived}


def _read_official(path: Path) -> dict[str, Tensor]:
    advice = "Give the published layout {'prompt_learner': state_dict} with nothing but tensors."
    with reading(f"The prompt file {path}", CheckpointError, advice):
        check_archive(path)
        content = torch.load(path, map_location="cpu", weights_only=True)
    state_dict = content.get("prompt_learner") if isinstance(content, Mapping) else None
    if not isinstance(state_dict, Mapping):
        found = _some(content) if isinstance(content, Mapping) else type(content).__name__
        msg = (
            f"{path} is not of the published layout {{'prompt_learner': state_dict}}: it holds {found}. "
            "A checkpoint of a whole training run is given as ckpt_path, not as prompts."
        )
        raise CheckpointError(msg)
    return {str(key): value for key, value in state_dict.items() if isinstance(value, Tensor)}


def _from_official(state_dict: Mapping[str, Tensor], path: Path) -> dict[str, Tensor]:
    """Bring the published names and shapes to ours.

    What follows from the token embedding (prefix, suffix, token ids) and what nothing uses (projections) is left out.
    """
    pattern = re.compile(r"compound_prompts_text\.(\d+)")
    numbers = [int(match[1]) for match in map(pattern.fullmatch, state_dict) if match]
    deep = [f"compound_prompts_text.{number}" for number in range(max(numbers, default=-1) + 1)]
    missing = [name for name in ("ctx_pos", "ctx_neg", *deep) if name not in state_dict]
    if missing:
        msg = f"{path} lacks {', '.join(missing)} of the prompt learner; it holds {_some(state_dict)}."
        raise CheckpointError(msg)
    tensors = {}
    for name in ("ctx_pos", "ctx_neg"):
        shape = tuple(state_dict[name].shape)
        if len(shape) != 4 or shape[:2] != (1, 1):
            msg = f"{path}: {name} has the shape {shape} instead of (1, 1, n_ctx, text_width)."
            raise CheckpointError(msg)
        tensors[name] = state_dict[name][0, 0]
    shapes = {tuple(state_dict[name].shape) for name in deep}
    if len(shapes) > 1:
        msg = f"{path}: the deep prompts compound_prompts_text differ in shape: {sorted(shapes)}."
        raise CheckpointError(msg)
    width = tensors["ctx_pos"].shape[-1]
    tensors["deep_prompts"] = torch.stack([state_dict[name] for name in deep]) if deep else torch.zeros(0, 1, width)
    return tensors


def _official_variant(state_dict: Mapping[str, Tensor]) -> str | None:
    """AnomalyCLIP's files have a projection per deep prompt, which nothing uses; Crane's do not, and are alike otherwise."""
    if any(name.startswith("compound_prompt_projections.") for name in state_dict):
        return ANOMALY_CLIP
    return CRANE if "compound_prompts_text.0" in state_dict else None


def _make_learner(
    tensors: Mapping[str, Tensor], info: dict[str, str], variant: str | None, path: Path
) -> PromptLearner:
    shapes = {name: tuple(tensors[name].shape) for name in _NAMES}
    ranks = {"ctx_pos": 2, "ctx_neg": 2, "deep_prompts": 3}
    fits = all(len(shapes[name]) == rank for name, rank in ranks.items())
    if not fits or len({shape[-1] for shape in shapes.values()}) > 1 or shapes["ctx_pos"] != shapes["ctx_neg"]:
        msg = (
            f"{path}: the shapes {shapes} do not belong together; wanted are [n_ctx, text_width] twice and "
            "[depth - 1, t_n_ctx, text_width]."
        )
        raise CheckpointError(msg)
    for name in _NAMES:
        if not torch.isfinite(tensors[name]).all():
            msg = f"{path} is damaged: {name} has values that are not finite."
            raise CheckpointError(msg)
    n_ctx, width = shapes["ctx_pos"]
    deep, t_n_ctx, _ = shapes["deep_prompts"]
    learner = PromptLearner(width, n_ctx, deep + 1, t_n_ctx, variant)
    learner.load_state_dict({name: tensors[name].float() for name in _NAMES})
    learner.info = info
    return learner


def _some(names: Mapping[str, object]) -> str:
    """First few keys of a mapping, for messages."""
    shown = [repr(name) for name in list(names)[:6]]
    return ", ".join(shown) + (", ..." if len(names) > len(shown) else "") if shown else "nothing"
