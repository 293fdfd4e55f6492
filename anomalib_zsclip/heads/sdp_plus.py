"""SDP+ of CLIP-AD (arXiv 2311.00453, section 3.4): one learned linear layer per stage, added to SDP."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import NamedTuple, cast

import torch
from safetensors.torch import save_file
from torch import Tensor, nn

from anomalib_zsclip.clip import ClipBackbone, FeatureRequest, ImageFeatures
from anomalib_zsclip.clip.precision import full_precision
from anomalib_zsclip.errors import ArgumentError, CheckpointError, is_number

from .base import HeadOutput, LearnableHead
from .linear_layers import PREFIX, check_linear_layers, read_linear_layers
from .losses import dice_loss, focal_loss
from .maps import smooth, tokens_to_grid, upsample
from .options import Recipe, combine_image_score
from .sdp import LOGIT_SCALE, SdpHead, SdpOptions, compared_layers


class SdpPlusRaw(NamedTuple):
    """The quantities of the paper, before they are brought to [0, 1].

    Attributes:
        layer_maps: Probability of anomalous of each linear layer, upsampled. Shape ``[layers, B, H, W]``.
        map_zero_shot: SDP's map before smoothing. Shape ``[B, H, W]``.
        map_raw: Sum of ``map_zero_shot`` and of the layers' maps. Shape ``[B, H, W]``.
        map: The same, smoothed: the paper's anomaly map. Shape ``[B, H, W]``.
        score: Probability of anomalous from the class token, as in SDP. Shape ``[B]``.
    """

    layer_maps: Tensor
    map_zero_shot: Tensor
    map_raw: Tensor
    map: Tensor
    score: Tensor


class SdpPlusHead(LearnableHead):
    """SDP, and for each of its layers a linear layer that brings the ordinary patch tokens to the joint space.

    Args:
        sdp: The zero-shot head that it extends: layers, smoothing, prompts and image score are its.
        backbone: The CLIP that the head is sized for. It is not kept.
        learning_rate: Of Adam, above 0. The paper's is 1e-4.

    Raises:
        ArgumentError: If the learning rate is not positive and finite.
    """

    needs_masks = True
    learned: Tensor

    def __init__(self, sdp: SdpHead, backbone: ClipBackbone, learning_rate: float = 1e-4) -> None:
        super().__init__()
        if not is_number(learning_rate) or learning_rate <= 0:
            msg = f"learning_rate={learning_rate!r} must be positive and finite; the paper's is 1e-4."
            raise ArgumentError(msg)
        self.sdp = sdp
        self.learning_rate = learning_rate
        self.backbone_identity = backbone.identity
        self.fc = nn.ModuleList(nn.Linear(backbone.width, backbone.embed_dim) for _ in sdp.layers)
        self.fc.requires_grad_(requires_grad=False)  # until somebody asks for the optimiser
        self.register_buffer("learned", torch.tensor(data=False))
        self._texts: dict[str, Tensor] = {}

    @property  # type: ignore[override] # an attribute of other heads
    def options(self) -> SdpOptions:
        """Those of the zero-shot head; its blocks stay those of the linear layers.

        Raises:
            ArgumentError: If options with other blocks are set.
        """
        return self.sdp.options

    @options.setter
    def options(self, options: SdpOptions) -> None:
        if compared_layers(options, self.sdp.depth) != self.sdp.layers:
            own = list(self.sdp.layers)
            msg = f"The linear layers belong to layers={own}: make a new head for layers={options.layers}."
            raise ArgumentError(msg)
        self.sdp.options = options

    def recipe(self, class_name: str) -> Recipe:
        """As the zero-shot head's."""
        return self.sdp.recipe(class_name)

    def learned_recipe(self) -> Recipe:
        """Blocks that the layers read; see :class:`LearnableHead`."""
        return {"layers": list(self.sdp.layers)}

    def learned_state(self) -> dict[str, Tensor]:
        """The linear layers; see :class:`LearnableHead`."""
        return {PREFIX + key: value for key, value in self.fc.state_dict().items()} if self.is_learned else {}

    @property
    def is_learned(self) -> bool:
        """Whether the linear layers were learned or loaded."""
        return bool(self.learned)

    def request(self, backbone: ClipBackbone) -> FeatureRequest:
        """What SDP reads, and all tokens of the last block where its layer is used."""
        depth = self.sdp.depth
        return self.sdp.request(backbone) | FeatureRequest.of(tokens={depth} & set(self.sdp.layers))

    def setup(self, backbone: ClipBackbone, class_name: str) -> None:
        """Compile the text features of ``class_name``."""
        self.sdp.setup(backbone, class_name)

    def forward(self, features: ImageFeatures, backbone: ClipBackbone, size: tuple[int, int]) -> HeadOutput:
        """Score a batch; see :class:`Head`.

        The paper's map is a sum of probabilities and of small similarities around zero, so its mean over the layers
        may leave [0, 1] a little. The sigmoid that touches the identity at 0.5 bounds it and keeps its ranking.
        """
        raw = self.raw(features, backbone, size)
        with full_precision(raw.map):
            probabilities = torch.sigmoid(4 * (raw.map / len(self.fc) - 0.5))
            return HeadOutput(combine_image_score(self.options.image_score, raw.score, probabilities), probabilities)

    def paper_map(self, anomaly_map: Tensor) -> Tensor:
        """Undo the sigmoid; see :class:`Head`. Values within 1e-7 of 0 and 1 are as good as there."""
        return anomaly_map.logit(eps=1e-7)

    def raw(
        self, features: ImageFeatures, backbone: ClipBackbone, size: tuple[int, int], text: Tensor | None = None
    ) -> SdpPlusRaw:
        """Compute the quantities of the paper; arguments as in :meth:`SdpHead.raw`."""
        text = self.sdp.text_features if text is None else text
        similarity, score = self.sdp.similarity(features, backbone, text)
        logits = self.layer_logits(self.patch_tokens(features), text, next(backbone.parameters()).dtype)
        with full_precision(similarity):
            zero_shot = upsample(tokens_to_grid(similarity[:, 1:, 1], features.grid), size)
            layer_maps = upsample(logits, size, align_corners=True).sigmoid()
            map_raw = zero_shot + layer_maps.sum(dim=0)
            return SdpPlusRaw(layer_maps, zero_shot, map_raw, smooth(map_raw, self.options.sigma_for(size)), score)

    def patch_tokens(self, features: ImageFeatures) -> Tensor:
        """Tokens that the linear layers read, on their grid: ``[B, layers, h, w, W]``."""
        tokens = torch.stack([original_tokens(features, layer, self.sdp.depth) for layer in self.sdp.layers], dim=1)
        return tokens[:, :, 1:].unflatten(2, features.grid)

    def layer_logits(self, patch_tokens: Tensor, text: Tensor, dtype: torch.dtype = torch.float32) -> Tensor:
        """Logit of anomalous minus logit of normal, per layer and patch.

        Resizing is linear, so the sigmoid of the resized difference is the softmax of the two resized logits.

        Args:
            patch_tokens: ``[B, layers, h, w, W]``.
            text: Unit text vectors ``[E, 2]`` or ``[B, E, 2]``.
            dtype: Precision of the linear layers; the logits are float32.

        Returns:
            ``[layers, B, h, w]``.
        """
        direction = LOGIT_SCALE * (text[..., 1] - text[..., 0])  # [E] or [B, E]
        direction = direction.reshape(-1, 1, 1, direction.shape[-1])  # [1 or B, 1, 1, E]
        logits = []
        for index, layer in enumerate(cast(Iterable[nn.Linear], self.fc)):
            tokens = patch_tokens[:, index].to(dtype)
            embeddings = nn.functional.linear(tokens, layer.weight.to(dtype), layer.bias.to(dtype)).float()
            with full_precision(embeddings):
                norms = embeddings.norm(dim=-1).clamp_min(1e-12)
                # Not a matrix product: OpenVINO would take the text for a weight of four dimensions and fail to compress it.
                logits.append((embeddings * direction).sum(dim=-1) / norms)
        return torch.stack(logits)

    def learning_inputs(
        self, features: ImageFeatures, backbone: ClipBackbone, class_names: Sequence[str]
    ) -> dict[str, Tensor]:
        """Patch tokens ``[B, layers, h, w, W]`` and text features ``[B, E, 2]`` of each image."""
        keys = [repr(self.recipe(name)) for name in class_names]
        for key, name in zip(keys, class_names, strict=True):
            if key not in self._texts:
                self._texts[key] = self.sdp.compile_text(backbone, name)
        text = torch.stack([self._texts[key] for key in keys])
        return {"tokens": self.patch_tokens(features).detach(), "text": text}

    def learning_loss(
        self, backbone: ClipBackbone, inputs: dict[str, Tensor], masks: Tensor | None, labels: Tensor
    ) -> dict[str, Tensor]:
        """Focal and dice loss of each linear layer's map, added up.

        Raises:
            ArgumentError: If there are no masks.
        """
        del backbone, labels
        if masks is None:
            msg = "SDP+ learns from masks, and the auxiliary data has none: use data with pixel annotations."
            raise ArgumentError(msg)
        logits = self.layer_logits(inputs["tokens"], inputs["text"].to(inputs["tokens"]))
        with full_precision(logits):
            focal, dice = layer_losses(upsample(logits, (masks.shape[-2], masks.shape[-1]), align_corners=True), masks)
        loss = (focal + dice).sum()
        return {"loss": loss, "focal": focal.sum().detach(), "dice": dice.sum().detach()}

    def configure_optimizer(self) -> torch.optim.Optimizer:
        """Adam with its default betas, as the paper."""
        self.fc.requires_grad_(requires_grad=True)
        return torch.optim.Adam(self.fc.parameters(), lr=self.learning_rate)

    def finish_learning(self, backbone: ClipBackbone) -> None:
        """Mark the linear layers as learned; they need no compilation."""
        del backbone
        self.learned.fill_(value=True)

    def save_linear_layers(self, path: str | Path) -> None:
        """Write the linear layers, their blocks and the identity of their backbone to a ``.safetensors`` file."""
        tensors = {PREFIX + key: value.detach().cpu().contiguous() for key, value in self.fc.state_dict().items()}
        identity = self.backbone_identity
        metadata = {
            "layers": " ".join(map(str, self.sdp.layers)),
            "backbone": identity.name,
            "pretrained": identity.pretrained,
            "fingerprint": identity.fingerprint,
        }
        save_file(tensors, path, metadata)

    def load_linear_layers(self, path: str | Path) -> None:
        """Load linear layers of :meth:`save_linear_layers`, or the official ``{"linear_layers": state_dict}``.

        Nothing in the file is executed. A file of ours also says which blocks and which backbone it belongs to, and
        that is checked; the official ones do not.

        Raises:
            CheckpointError: If the file cannot be read safely, or does not fit the backbone or the layers.
        """
        tensors, metadata = read_linear_layers(Path(path).expanduser())
        layers = " ".join(map(str, self.sdp.layers))
        if metadata.get("layers", layers) != layers:
            msg = f"{path} belongs to layers={metadata['layers']} of the image tower, the model has layers={layers}."
            raise CheckpointError(msg)
        identity = self.backbone_identity
        if not identity.matches(metadata.get("fingerprint", identity.fingerprint)):
            theirs = " / ".join(metadata.get(name, "?") for name in ("backbone", "pretrained"))
            msg = (
                f"{path} was learned on the backbone {theirs}, the model has {identity.name} / {identity.pretrained} with "
                "other weights: load it with the backbone of the file."
            )
            raise CheckpointError(msg)
        check_linear_layers(tensors, {PREFIX + key: value for key, value in self.fc.state_dict().items()}, path)
        self.fc.load_state_dict({key.removeprefix(PREFIX): value for key, value in tensors.items()})
        self.learned.fill_(value=True)


def original_tokens(features: ImageFeatures, layer: int, depth: int) -> Tensor:
    """Ordinary tokens of a layer as the published program hands them to its linear layers, ``[B, 1 + L, W]``.

    It keeps a reference to the stream after block ``layer``, to which the next block then adds its attention output in
    place. The published layers were learned on that sum, so it is the stream inside block ``layer + 1``.
    """
    return features.tokens[layer] if layer == depth else features.attention_tokens[layer + 1]


def layer_losses(logits: Tensor, masks: Tensor) -> tuple[Tensor, Tensor]:
    """Focal and dice loss of each layer.

    Args:
        logits: Logit of anomalous minus logit of normal, ``[layers, B, H, W]``.
        masks: Ground truth, anomalous above 0.5, ``[B, H, W]``.

    Returns:
        The focal and the dice losses, each ``[layers]``.
    """
    masks = (masks > 0.5).to(logits)
    # Both probabilities from the logit: one minus the other would lose digits where one is close to 1.
    true = [torch.where(masks.bool(), layer, -layer).sigmoid() for layer in logits]
    focal = torch.stack([focal_loss(layer) for layer in true])
    dice = torch.stack([dice_loss(layer.sigmoid(), masks) for layer in logits])
    return focal, dice
