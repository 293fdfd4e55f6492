"""What tells one CLIP from another."""

from __future__ import annotations

import hashlib
from dataclasses import asdict, dataclass

from .image_tower import OpenClipModule


@dataclass(frozen=True)
class BackboneIdentity:
    """What a checkpoint remembers of the backbone that it was made with.

    Attributes:
        name: Architecture.
        pretrained: Tag or file of its weights.
        fingerprint: See :func:`fingerprint`.
    """

    name: str
    pretrained: str
    fingerprint: str

    def as_dict(self) -> dict[str, str]:
        """Plain data for a checkpoint."""
        return asdict(self)

    def matches(self, fingerprint: str) -> bool:
        """Whether a remembered fingerprint is this backbone's; files of version 0.1 remember that of the weights alone."""
        return fingerprint in (self.fingerprint, self.fingerprint.split("-")[0])


def fingerprint(model: OpenClipModule, samples: int = 1024) -> str:
    """Hash of an open_clip model, then its activation and its numbers of attention heads: ``<32 hex>-gelu-12-8``.

    The hash is over names, shapes and evenly spread values of all parameters: it tells weights apart in milliseconds. The
    rest is what the same weights can be run with in more than one way.

    Args:
        model: An open_clip model with OpenAI's layout.
        samples: Values of each parameter that count.
    """
    digest = hashlib.sha256()
    for key, value in sorted(model.state_dict().items()):
        flat = value.detach().reshape(-1)
        step = max(1, flat.numel() // samples)
        digest.update(f"{key}|{tuple(value.shape)}|".encode())
        digest.update(flat[::step].float().cpu().numpy().astype("<f4").tobytes())
    blocks = [tower.resblocks[0] for tower in (model.visual.transformer, model.transformer)]
    activation = "quickgelu" if "quick" in type(blocks[0].mlp.gelu).__name__.lower() else "gelu"
    heads = "-".join(str(block.attn.num_heads) for block in blocks)
    return f"{digest.hexdigest()[:32]}-{activation}-{heads}"
