"""Settings of the trainer that cannot work with these models: refused before anything runs, with what to do instead."""

from __future__ import annotations

from typing import Any

from anomalib_zsclip.errors import ArgumentError

TRUE_HALF = {"bf16-true": "bf16", "16-true": "fp16"}
"""Lightning's precision -> ours."""


TILES_ALONE = "TileCollater"
"""What anomalib's tiled ensemble puts into a data module: batches have one tile of each picture."""


def check_trainer(trainer: Any, model: Any = None) -> None:  # noqa: ANN401 - Lightning's trainer, or none, and a model of ours
    """Look at a trainer that a model is attached to.

    Raises:
        ArgumentError: If its precision rounds what must not be rounded, it brings anomalib's own tiles, or it judges
            tiles with a model that compares them with other pictures.
    """
    collate = getattr(getattr(trainer, "datamodule", None), "external_collate_fn", None)
    if type(collate).__name__ == TILES_ALONE and any(getattr(model, name, None) for name in ("k_shot", "unlabelled")):
        msg = (
            "anomalib's tiled ensemble shows a model one tile of each picture, and k_shot and unlabelled would compare it "
            "with whole pictures. Leave them out, or use this model's own tiles: model.tiles=2 without the ensemble."
        )
        raise ArgumentError(msg)
    precision = getattr(trainer, "precision", None)
    if precision in TRUE_HALF:
        msg = (
            f"trainer.precision={precision!r} would round text, thresholds and maps too, which changes decisions. Give "
            f"model.precision={TRUE_HALF[precision]!r} instead: it computes the tower so, and keeps the rest in float32."
        )
        raise ArgumentError(msg)
    from anomalib.callbacks import TilerConfigurationCallback  # anomalib's models are imported before its callbacks

    for callback in getattr(trainer, "callbacks", None) or []:
        if isinstance(callback, TilerConfigurationCallback) and callback.enable:
            msg = (
                "anomalib's Tiler cuts feature maps of convolutional networks, which a CLIP has none of. These models have "
                'tiles of their own: give model.tiles=2 for 2 x 2 of them, or model.tiles="auto", without the callback.'
            )
            raise ArgumentError(msg)
