"""What formats keep apart before codes are chosen: outliers beside them, and the n largest of each m neighbours."""

from __future__ import annotations

import numpy as np

from .errors import BadInput
from .format import Format
from .level import Level
from .levels import level_dtype
from .quantized import outlier_rows


def outliers(x: np.ndarray, fmt: Format, share: float) -> dict[str, np.ndarray]:
    """The values to keep, as parts: columns, or single values by row."""
    if fmt.outliers is None:
        return {}
    if x.ndim != 2:
        raise BadInput(f"format {fmt}: outliers are of matrices, found shape {list(x.shape)}")
    dtype = level_dtype(fmt.outliers.dtype)
    if fmt.outliers.columns:
        count = round(share * x.shape[1])
        columns = np.sort(np.argsort(-np.abs(x).max(axis=0, initial=0), kind="stable")[:count]).astype(np.int32)
        return {"outlier_columns": columns, "outlier_values": dtype.round(x[:, columns])}
    count = round(share * x.size)
    chosen = np.sort(np.argpartition(-np.abs(x).reshape(-1), count - 1)[:count]) if count else np.zeros(0, np.int64)
    rows, columns = np.divmod(chosen, max(1, x.shape[1]))
    start = np.zeros(x.shape[0] + 1, np.int32)
    np.cumsum(np.bincount(rows, minlength=x.shape[0]), out=start[1:])
    return {
        "outlier_start": start,
        "outlier_columns": columns.astype(np.int32),
        "outlier_values": dtype.round(x[rows, columns]),
    }


def without(x: np.ndarray, kept: dict[str, np.ndarray]) -> np.ndarray:
    """`x` with 0 where a value is kept beside the codes."""
    if not kept:
        return x
    x = np.array(x)
    if "outlier_start" in kept:
        x[outlier_rows(kept["outlier_start"]), kept["outlier_columns"]] = 0
    else:
        x[:, kept["outlier_columns"]] = 0
    return x


def pruned(x: np.ndarray, fmt: Format) -> np.ndarray:
    """`x` with all but the n largest of each m neighbours set to 0; the first ones where equal."""
    if fmt.sparsity is None:
        return x
    n, m = fmt.sparsity
    groups = Level("f32", (m,)).blocks(x)
    order = np.argsort(-np.abs(groups), axis=1, kind="stable")
    groups = np.array(groups)
    np.put_along_axis(groups, order[:, n:], 0, axis=1)
    return Level("f32", (m,)).restore(groups, x.shape)
