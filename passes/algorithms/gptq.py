"""GPTQ: quantize one input channel after another, and let the channels still to come make up for each error.

    min |X W^T - X decode(codes)^T|^2,   H = X^T X + damping,   U = upper Cholesky factor of H^-1
    column j: e = (w_j - decode(round(w_j))) / U_jj;   w_k -= e U_jk for every later k

(Frantar et al. 2022, "GPTQ: Accurate Post-Training Quantization for Generative Pre-trained Transformers", algorithm 1.)
Columns go in the order of falling H_jj, with the scales of each group searched beforehand, so storage keeps its order.
"""

from __future__ import annotations

import numpy as np
from scipy import linalg

from qcc.ir.errors import NotSupported
from qcc.ir.format import Format
from qcc.ir.quantized import Quantized, combined, combined_scale

from . import rtn

NEEDS_HESSIAN = True

_DAMPING = 0.01
"""Of the mean diagonal, added to every diagonal element."""
_BLOCK = 64
"""Columns whose errors are gathered before they reach the columns behind the block."""


def fit(weight: np.ndarray, fmt: Format, hessian: np.ndarray | None = None) -> Quantized:
    """Codes of `weight` [N, K] for inputs with second moment `hessian` [K, K].

    Weights without statistics (convolutions, tables) are rounded to nearest.
    """
    start = rtn.fit(weight, fmt)
    if hessian is None or weight.ndim != 2 or hessian.shape != (weight.shape[1],) * 2:
        return start
    if fmt.family.trained or len(fmt.choices) > 1 or fmt.sparsity or fmt.outliers:
        raise NotSupported(f"gptq does not fit codes of {fmt} yet", hint="use --algorithm rtn")
    order = np.argsort(-np.diag(hessian), kind="stable")
    factor = _factor(hessian[np.ix_(order, order)])
    w = np.ascontiguousarray(weight[:, order], np.float32)
    scale, shift, offset = (np.broadcast_to(v, weight.shape)[:, order] for v in _affine(start))
    codes = _compensate(w, scale, shift, offset, factor, fmt)
    return Quantized(fmt, {**start.parts, "codes": np.ascontiguousarray(codes[:, np.argsort(order)])})


def _affine(value: Quantized) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Scale, zero point and offset as they broadcast against the weight: `(decode(code) - zero) * scale + offset`."""
    fmt, nothing = value.format, np.zeros((1, 1), np.float32)
    scale = value.arranged(combined_scale(value), fmt.scale)
    scale = np.where(scale == 0, np.float32(1), scale)
    shift = nothing + (fmt.zero if isinstance(fmt.zero, float) else np.float32(0))
    if fmt.zero_level is not None:
        shift = value.arranged(np.asarray(value.parts["zero"], np.float32), fmt.zero_level)
    if fmt.offset is None:
        return scale, shift, nothing
    offset = value.arranged(combined(value, fmt.offset.word, fmt.offset.levels), fmt.offset.levels[0])
    return scale, shift, -offset if fmt.offset.negative else offset


def _factor(hessian: np.ndarray) -> np.ndarray:
    """The upper Cholesky factor of the damped inverse, float32 [K, K]; channels that are always zero count as 1."""
    h = hessian.copy()
    dead = np.diag(h) == 0
    h[dead, dead] = 1.0
    h[np.diag_indices_from(h)] += _DAMPING * float(np.mean(np.diag(h)))
    inverse = linalg.cho_solve(linalg.cho_factor(h, lower=True), np.eye(len(h)))
    return linalg.cholesky(inverse, lower=False).astype(np.float32)


def _compensate(
    w: np.ndarray, scale: np.ndarray, shift: np.ndarray, offset: np.ndarray, factor: np.ndarray, fmt: Format
) -> np.ndarray:
    """Quantize the columns of `w` [N, K], which is used up, from left to right."""
    family = fmt.family
    codes = np.empty(w.shape, np.int8 if family.signed else np.uint8)
    for begin in range(0, w.shape[1], _BLOCK):
        end = min(begin + _BLOCK, w.shape[1])
        errors = np.empty((len(w), end - begin), np.float32)
        for j in range(begin, end):
            scaled = (w[:, j] - offset[:, j]) / scale[:, j]
            codes[:, j] = family.encode((np.rint(scaled) if fmt.is_integer else scaled) + shift[:, j])
            decoded = (family.decode(codes[:, j]) - shift[:, j]) * scale[:, j] + offset[:, j]
            error = (w[:, j] - decoded) / factor[j, j]
            w[:, j:end] -= np.outer(error, factor[j, j:end])
            errors[:, j - begin] = error
        w[:, end:] -= errors @ factor[begin:end, end:]
    return codes
