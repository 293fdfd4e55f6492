"""Representative Vector Selection: one vector for the embeddings of many sentences (CLIP-AD, arXiv 2311.00453, 3.2)."""

from __future__ import annotations

import logging
from collections.abc import Callable, Mapping
from types import MappingProxyType

import numpy as np
import torch
import torch.nn.functional as F
from sklearn.cluster import DBSCAN, MeanShift
from torch import Tensor

from anomalib_zsclip.errors import ArgumentError, is_number

logger = logging.getLogger(__name__)

RVS_DEFAULTS: Mapping[str, Mapping[str, float]] = MappingProxyType(
    {
        "mean": {},
        "pca": {},
        "kde": {"bandwidth": 0.3},
        "dbscan": {"eps": 0.5, "min_samples": 15},
        "mean_shift": {"bandwidth": 2.0},
    }
)
"""Methods and their parameters, with the paper's values. For VisA it took ``dbscan`` with eps 1.5, min_samples 25."""


def representative_vector(
    embeddings: Tensor, method: str = "mean", *, normalize: bool = True, **params: float
) -> Tensor:
    """Choose the vector that represents a set of unit vectors.

    Args:
        embeddings: Unit vectors, one per row, ``[n, E]``.
        method: ``"mean"`` of the rows; ``"pca"``, their first principal direction; ``"kde"``, their mean weighted by a
            Gaussian density estimate; ``"dbscan"`` or ``"mean_shift"``, the mean of the largest cluster.
        normalize: Divide the result by its norm.
        **params: Parameters of the method in place of those of :data:`RVS_DEFAULTS`: ``bandwidth`` of ``kde`` and
            ``mean_shift``; ``eps`` (largest distance of neighbours) and ``min_samples`` (neighbours that make a point
            a core, itself included) of ``dbscan``.

    Returns:
        The vector, ``[E]``. Where a density method finds no cluster: the mean, with a warning.

    Raises:
        ArgumentError: If the method or a parameter is unknown or out of range, or ``embeddings`` is empty.
    """
    parameters = check_rvs(method, params)
    if embeddings.ndim != 2 or not len(embeddings):
        msg = f"embeddings must have the shape [n, E] with n of at least 1, not {list(embeddings.shape)}."
        raise ArgumentError(msg)
    # Double precision: which points are neighbours must not hang on rounding. It runs once per category.
    rows = embeddings.detach().cpu().double()
    vector = _METHODS[method](rows, **parameters)
    if vector is None:
        settings = ", ".join(f"{key}={value}" for key, value in parameters.items())
        logger.warning(
            "rvs=%r with %s finds no cluster among %d text embeddings: their mean takes its place. "
            "A larger eps or fewer min_samples finds one.",
            *(method, settings, len(rows)),
        )
        vector = rows.mean(0)
    vector = vector.to(embeddings)
    return F.normalize(vector, dim=0) if normalize else vector


def check_rvs(method: str, params: Mapping[str, float]) -> dict[str, float]:
    """Complete the parameters of a method with their defaults.

    Raises:
        ArgumentError: If the method or a parameter is unknown, or a value is not positive.
    """
    if not isinstance(method, str) or method not in RVS_DEFAULTS:
        msg = f"rvs={method!r} must be one of {', '.join(RVS_DEFAULTS)}."
        raise ArgumentError(msg)
    known = RVS_DEFAULTS[method]
    if not isinstance(params, Mapping):
        msg = f"rvs_params={params!r} must be a mapping from parameters to numbers, such as {{eps: 1.5}}."
        raise ArgumentError(msg)
    for key, value in params.items():
        if key not in known:
            msg = f"rvs={method!r} has no parameter {key!r}; its parameters: {', '.join(known) or 'none'}."
            raise ArgumentError(msg)
        if not is_number(value) or value < 1e-6:
            msg = f"{key}={value!r} of rvs={method!r} must be positive; the paper's value is {known[key]}."
            raise ArgumentError(msg)
    return {**known, **params}


def _mean(rows: Tensor) -> Tensor:
    return rows.mean(0)


def _pca(rows: Tensor) -> Tensor:
    # The sentences are the variables and the E entries the observations, so each row loses its own mean. A v with the
    # first right singular vector v of A is the first left one times its singular value.
    left, values, _ = np.linalg.svd((rows - rows.mean(1, keepdim=True)).T.numpy(), full_matrices=False)
    vector = torch.from_numpy(left[:, 0] * values[0])
    return -vector if vector @ rows.mean(0) < 0 else vector


def _kde(rows: Tensor, bandwidth: float) -> Tensor:
    weights = torch.exp(-(torch.cdist(rows, rows) ** 2) / (2 * bandwidth**2)).sum(1)
    return weights @ rows / weights.sum()


def _dbscan(rows: Tensor, eps: float, min_samples: float) -> Tensor | None:
    return _largest_cluster(rows, DBSCAN(eps=eps, min_samples=int(min_samples)).fit(rows.numpy()).labels_)


def _mean_shift(rows: Tensor, bandwidth: float) -> Tensor | None:
    return _largest_cluster(rows, MeanShift(bandwidth=bandwidth).fit(rows.numpy()).labels_)


def _largest_cluster(rows: Tensor, labels: np.ndarray) -> Tensor | None:
    """Mean of the members of the largest cluster, the first one on a tie; ``None`` where all points are noise."""
    members = labels[labels >= 0]
    return rows[torch.from_numpy(labels == np.bincount(members).argmax())].mean(0) if len(members) else None


_METHODS: dict[str, Callable[..., Tensor | None]] = {
    "mean": _mean,
    "pca": _pca,
    "kde": _kde,
    "dbscan": _dbscan,
    "mean_shift": _mean_shift,
}
