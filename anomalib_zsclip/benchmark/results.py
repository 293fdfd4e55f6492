"""Results of ``anomalib benchmark``, read and joined."""

from __future__ import annotations

import ast
from collections.abc import Sequence
from pathlib import Path

import pandas as pd

from anomalib_zsclip.errors import ArgumentError

METRICS = {
    "image_AUROC": "image AUROC",
    "image_AveragePrecision": "image AP",
    "image_F1Max": "image F1-max",
    "pixel_AUROC": "pixel AUROC",
    "pixel_AveragePrecision": "pixel AP",
    "pixel_F1Max": "pixel F1-max",
    "pixel_OfficialPro": "pixel PRO (published)",
    "pixel_AUPRO": "pixel AUPRO (exact)",
}
"""Metrics of the zero-shot papers in their order; others of a file follow. All are shown in per cent."""
COSTS = {
    "milliseconds_per_image": "ms / image",
    "peak_memory_mb": "peak memory (MB)",
    "fit_duration": "learning (s)",
    "test_duration": "test (s)",
}
DATASETS = {"mvtecad": "MVTecAD", "mvtec": "MVTecAD", "visa": "Visa"}
DEVIATION = "_sd"
"""Ending of the columns with the standard deviation of a metric over bootstrap samples of the test images."""

KEYS = ["model", "dataset", "category"]


def read_results(paths: Sequence[str | Path]) -> pd.DataFrame:
    """Read and join result files.

    Args:
        paths: Files that ``anomalib benchmark`` wrote, of our configurations or any other.

    Returns:
        ``model``, ``dataset`` and ``category``, then metrics in [0, 1] and costs. Runs that differ in the seed alone are
        averaged.

    Raises:
        ArgumentError: If a file is missing, is no table, or has no metrics.
    """
    frames = [_read_file(Path(path)) for path in paths]
    joined = pd.concat(frames, ignore_index=True)
    columns = [*metric_columns(joined), *deviation_columns(joined), *(name for name in COSTS if name in joined)]
    return joined.groupby(KEYS, sort=False)[columns].mean().reset_index()


def _read_file(path: Path) -> pd.DataFrame:
    if not path.is_file():
        msg = f"There is no file {path}. anomalib benchmark writes runs/benchmark/<date>/results.csv."
        raise ArgumentError(msg)
    try:
        table = pd.read_csv(path)
    except (ValueError, UnicodeDecodeError) as error:  # pandas' own errors are ValueErrors
        msg = f"{path} is not a table of comma-separated values: {error}."
        raise ArgumentError(msg) from error
    metrics = metric_columns(table)
    if not metrics or not len(table):
        msg = f"{path} has no results of anomalib benchmark: no row, or no column image_... or pixel_... with numbers."
        raise ArgumentError(msg)
    names = pd.DataFrame(
        {
            "model": [_model_name(row) for _, row in table.iterrows()],
            "dataset": [_dataset_name(row) for _, row in table.iterrows()],
            "category": [_text(row.get("data.init_args.category")) or "all" for _, row in table.iterrows()],
        }
    )
    costs = [name for name in COSTS if name in table and pd.api.types.is_numeric_dtype(table[name])]
    return pd.concat([names, table[[*metrics, *deviation_columns(table), *costs]]], axis=1)


def metric_columns(table: pd.DataFrame) -> list[str]:
    """Columns with metrics: those of the papers in their order, then others."""
    found = [
        str(name)
        for name in table
        if str(name).startswith(("image_", "pixel_"))
        and not str(name).endswith(DEVIATION)
        and pd.api.types.is_numeric_dtype(table[name])
    ]
    return [name for name in METRICS if name in found] + [name for name in found if name not in METRICS]


def deviation_columns(table: pd.DataFrame) -> list[str]:
    """Columns with standard deviations of the metrics."""
    return [name + DEVIATION for name in metric_columns(table) if name + DEVIATION in table]


def _model_name(row: pd.Series) -> str:
    """Class and arguments, as ``Patchcore (backbone=resnet18)``."""
    arguments: dict[str, object] = {}
    name = _text(row.get("model.init_args.model"))
    for column, value in row.items():
        key = str(column).removeprefix("model.init_args.")
        if key != column and key not in ("model", "arguments") and _text(value):
            arguments[key] = value
    if name:
        arguments.update(_merged(row.get("model.init_args.arguments")))
    else:
        name = (_text(row.get("model.class_path")) or _text(row.get("model")) or "unknown").split(".")[-1]
    settings = ", ".join(f"{key}={value}" for key, value in arguments.items())
    return f"{name} ({settings})" if settings else name


def _merged(arguments: object) -> dict[str, object]:
    """Arguments of :func:`anomalib_zsclip.benchmark.comparable` from their text, a list of mappings."""
    try:
        parts = ast.literal_eval(_text(arguments) or "[]")
        return {str(key): value for part in parts for key, value in part.items()}
    except (ValueError, SyntaxError, TypeError, AttributeError):
        return {"arguments": arguments}


def _dataset_name(row: pd.Series) -> str:
    name = (_text(row.get("data.class_path")) or _text(row.get("data")) or "unknown").split(".")[-1]
    return DATASETS.get(name.lower(), name)


def _text(value: object) -> str:
    return "" if value is None or (isinstance(value, float) and pd.isna(value)) else str(value)
