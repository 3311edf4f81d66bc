"""GPTQ: quantize one input channel after another, and let the channels still to come make up for each error.

    min |X W^T - X decode(codes)^T|^2,   H = X^T X + damping,   U = upper Cholesky factor of H^-1
    column j: e = (w_j - decode(round(w_j))) / U_jj;   w_k -= e U_jk for every later k

(Frantar et al. 2022, "GPTQ: Accurate Post-Training Quantization for Generative Pre-trained Transformers", algorithm 1.)
Columns go in the order of falling H_jj, with the scales of each group searched beforehand, so storage keeps its order.
"""

from __future__ import annotations

import numpy as np
from scipy import linalg

from qcc.ir.format import Format

from . import Fitted, rtn

NEEDS_HESSIAN = True

_DAMPING = 0.01
"""Of the mean diagonal, added to every diagonal element."""
_BLOCK = 64
"""Columns whose errors are gathered before they reach the columns behind the block."""


def fit(weight: np.ndarray, fmt: Format, hessian: np.ndarray | None = None) -> Fitted:
    """Codes of `weight` [N, K] for inputs with second moment `hessian` [K, K].

    Weights without statistics (convolutions, tables) are rounded to nearest.
    """
    start = rtn.fit(weight, fmt)
    if hessian is None or weight.ndim != 2 or hessian.shape != (weight.shape[1],) * 2:
        return start
    order = np.argsort(-np.diag(hessian), kind="stable")
    factor = _factor(hessian[np.ix_(order, order)])
    w = np.ascontiguousarray(weight[:, order], np.float32)
    scale = fmt.spread(start.scale, weight.shape)
    scale = np.broadcast_to(scale, weight.shape)[:, order]
    zero = None if start.zero is None else np.broadcast_to(fmt.spread(start.zero, weight.shape), weight.shape)[:, order]
    codes = _compensate(w, scale, zero, factor, fmt)
    return Fitted(np.ascontiguousarray(codes[:, np.argsort(order)]), start.scale, start.zero)


def _factor(hessian: np.ndarray) -> np.ndarray:
    """The upper Cholesky factor of the damped inverse, float32 [K, K]; channels that are always zero count as 1."""
    h = hessian.copy()
    dead = np.diag(h) == 0
    h[dead, dead] = 1.0
    h[np.diag_indices_from(h)] += _DAMPING * float(np.mean(np.diag(h)))
    inverse = linalg.cho_solve(linalg.cho_factor(h, lower=True), np.eye(len(h)))
    return linalg.cholesky(inverse, lower=False).astype(np.float32)


def _compensate(
    w: np.ndarray, scale: np.ndarray, zero: np.ndarray | None, factor: np.ndarray, fmt: Format
) -> np.ndarray:
    """Quantize the columns of `w` [N, K], which is used up, from left to right."""
    codes = np.empty(w.shape, np.int8 if fmt.family.signed else np.uint8)
    for begin in range(0, w.shape[1], _BLOCK):
        end = min(begin + _BLOCK, w.shape[1])
        errors = np.empty((len(w), end - begin), np.float32)
        for j in range(begin, end):
            shift = np.float32(0) if zero is None else zero[:, j].astype(np.float32)
            codes[:, j] = fmt.family.encode(np.rint(w[:, j] / scale[:, j]) + shift)
            decoded = (fmt.family.decode(codes[:, j]) - shift) * scale[:, j]
            error = (w[:, j] - decoded) / factor[j, j]
            w[:, j:end] -= np.outer(error, factor[j, j:end])
            errors[:, j - begin] = error
        w[:, end:] -= errors @ factor[begin:end, end:]
    return codes
