"""Round to nearest, with the scale of each block searched for the least squared error.

    codes = clip(round(w / s) + z),   s = argmin over c in grid of |w - decode(codes)|^2, range = c * (min, max)

Clipping the range helps when few codes must cover outliers; at 8 bits nothing is gained, and the full range is kept.
(Choukroun et al. 2019, "Low-bit Quantization of Neural Networks for Efficient Inference", section 3.)

Scales that are powers of two leave no such fine choice: the least that clips nothing may be nearly twice what the range
needs, and half of it, which clips, may be better. The grid is then the least one that clips nothing, and its halvings.
"""

from __future__ import annotations

import math

import numpy as np

from qcc.ir.format import Format

from . import Fitted

_GRID = np.linspace(1.0, 0.55, 19, dtype=np.float32)
_HALVINGS = np.exp2(-np.arange(13, dtype=np.float32))
"""Coarser scales than the first are never better: their values are among those of the first."""
_CHUNK = 1 << 16


def fit(weight: np.ndarray, fmt: Format, hessian: np.ndarray | None = None) -> Fitted:
    """Codes of `weight` [any shape, float] in an integer format with one level of scales (float32, or powers of two).

    The statistics of its input are not used.
    """
    del hessian
    shape = weight.shape
    grid = _HALVINGS if fmt.by_powers_of_two else _GRID if fmt.bits < 8 else _GRID[:1]
    blocks, restore = _as_blocks(weight, fmt)
    scale = np.empty(len(blocks), np.float32)
    zero = np.empty(len(blocks), np.float32)
    rows = max(1, _CHUNK // max(1, blocks.shape[1]))
    for begin in range(0, len(blocks), rows):
        part = slice(begin, begin + rows)
        scale[part], zero[part] = _search(blocks[part].astype(np.float32, copy=False), fmt, grid)
    scales = scale.reshape(fmt.scale_shape(shape))
    zeros = None
    if fmt.zero is not None:
        zeros = zero.reshape(fmt.scale_shape(shape)).astype(np.int8 if fmt.zero[0] == "i" else np.uint8)
    codes = np.empty(blocks.shape, np.int8 if fmt.family.signed else np.uint8)
    for begin in range(0, len(blocks), rows):
        part = slice(begin, begin + rows)
        scaled = np.rint(blocks[part].astype(np.float32, copy=False) / scale[part, None]) + zero[part, None]
        codes[part] = fmt.family.encode(scaled)
    return Fitted(restore(codes), scales, zeros)


def _as_blocks(weight: np.ndarray, fmt: Format) -> tuple[np.ndarray, _Restore]:
    """The weight as [blocks, elements of a block], ragged ends padded with zeros, and the way back."""
    shape, block = weight.shape, fmt.block_of(weight.shape)
    counts = fmt.scale_shape(shape)
    padded = tuple(c * b for c, b in zip(counts, block, strict=True))
    if padded != shape:
        weight = np.pad(weight, [(0, p - d) for p, d in zip(padded, shape, strict=True)])
    apart = weight.reshape([e for pair in zip(counts, block, strict=True) for e in pair])
    rank = len(shape)
    order = [*range(0, 2 * rank, 2), *range(1, 2 * rank, 2)]
    split = apart.transpose(order)
    return split.reshape(math.prod(counts), math.prod(block)), _Restore(
        shape, padded, split.shape, tuple(np.argsort(order))
    )


class _Restore:
    """From [blocks, elements] back to the shape of the weight."""

    def __init__(
        self, shape: tuple[int, ...], padded: tuple[int, ...], split: tuple[int, ...], order: tuple[int, ...]
    ) -> None:
        self.shape, self.padded, self.split, self.order = shape, padded, split, order

    def __call__(self, codes: np.ndarray) -> np.ndarray:
        whole = codes.reshape(self.split).transpose(self.order).reshape(self.padded)
        return np.ascontiguousarray(whole[tuple(slice(0, d) for d in self.shape)]).reshape(self.shape)


def _search(blocks: np.ndarray, fmt: Format, grid: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """The best (scale, zero) of each row of `blocks` over the grid of clipping ratios."""
    low = np.minimum(blocks.min(axis=1), 0.0)
    high = np.maximum(blocks.max(axis=1), 0.0)
    best_scale, best_zero = _parameters(low, high, fmt)
    if len(grid) == 1:
        return best_scale, best_zero
    best_error = np.full(len(blocks), np.inf, np.float32)
    for ratio in grid:
        scale, zero = _parameters(low * ratio, high * ratio, fmt)
        scaled = np.rint(blocks / scale[:, None])
        scaled += zero[:, None]
        np.clip(scaled, fmt.family.low, fmt.family.high, out=scaled)
        scaled -= zero[:, None]
        scaled *= scale[:, None]
        scaled -= blocks
        error = np.einsum("ij,ij->i", scaled, scaled)
        better = error < best_error
        best_error = np.where(better, error, best_error)
        best_scale = np.where(better, scale, best_scale)
        best_zero = np.where(better, zero, best_zero)
    return best_scale, best_zero


def _parameters(low: np.ndarray, high: np.ndarray, fmt: Format) -> tuple[np.ndarray, np.ndarray]:
    """Scale and zero point that map [low, high], which holds zero, onto the codes. Empty ranges get scale 1."""
    family = fmt.family
    if fmt.zero is None:
        scale = np.maximum(*(v / end if end else v * 0 for v, end in ((low, family.low), (high, family.high))))
        scale = _as_scale(scale, fmt)
        return scale, np.zeros_like(scale)
    scale = _as_scale((high.astype(np.float64) - low) / (family.high - family.low), fmt)
    zero = np.clip(np.rint(family.low - low / scale), family.low, family.high).astype(np.float32)
    return scale, zero


def _as_scale(steps: np.ndarray, fmt: Format) -> np.ndarray:
    """Steps as scales of the format: 1 for what is next to nothing, the next power of two where scales are such."""
    scale = np.where(steps > np.finfo(np.float32).tiny, steps, 1.0)
    if fmt.by_powers_of_two:
        mantissa, exponent = np.frexp(scale)
        scale = np.ldexp(1.0, exponent - (mantissa == 0.5))
    return scale.astype(np.float32)
