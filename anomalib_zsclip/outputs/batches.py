"""Batches of anomalib as plain values, which is what files are written of."""

from __future__ import annotations

from typing import Any

from torch import Tensor


def per_image(batch: Any, *fields: str) -> list[tuple[Any, ...]]:  # noqa: ANN401
    """Values of each image of a batch.

    Args:
        batch: A batch of anomalib; an item is taken for a batch of one.
        *fields: Names of fields with one value per image: tensors ``[B]`` or lists.

    Returns:
        For each image a value of each field: a number, or what the list has; ``None`` for a field that the batch lacks.
    """
    count = getattr(batch, "batch_size", 1)
    columns = (_listed(getattr(batch, field, None), count) for field in fields)
    return list(zip(*columns, strict=True))


def _listed(values: Any, count: int) -> list[Any]:  # noqa: ANN401
    if values is None:
        return [None] * count
    if isinstance(values, Tensor):
        return values.detach().float().flatten().tolist()
    return list(values) if isinstance(values, (list, tuple)) else [values]
