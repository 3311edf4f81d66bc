"""Round to nearest, with the scale of each block searched for the least squared error.

    codes = encode(w / s + z),   s = argmin over c in grid of |w - decode(codes)|^2, range = c * (min, max)

Clipping the range helps when few codes must cover outliers; at 8 bits nothing is gained, and the full range is kept.
(Choukroun et al. 2019, "Low-bit Quantization of Neural Networks for Efficient Inference", section 3.)

Scales that are powers of two leave no such fine choice: the least that clips nothing may be nearly twice what the range
needs, and half of it, which clips, may be better. The grid is then the least one that clips nothing, and its halvings.
Levels around the innermost scales, zero points on other blocks, tables and outliers follow as in `qcc.ir.quantize`.
"""

from __future__ import annotations

import numpy as np

from qcc.ir.format import Format
from qcc.ir.formats import ElementFamily
from qcc.ir.quantize import Steps, quantize, steps_of
from qcc.ir.quantized import Quantized

_GRID = np.linspace(1.0, 0.55, 19, dtype=np.float32)
_COARSE = _GRID[::3]
"""For elements whose codes are found in a table, which takes longer than rounding."""
_WIDE = np.linspace(1.0, 0.1, 19, dtype=np.float32)
"""For ternary and binary elements, whose best scale is nearer to the mean magnitude than to the largest."""
_HALVINGS = np.exp2(-np.arange(13, dtype=np.float32))
"""Coarser scales than the first are never better: their values are among those of the first."""
_CHUNK = 1 << 16


def fit(weight: np.ndarray, fmt: Format, hessian: np.ndarray | None = None) -> Quantized:
    """Codes of `weight` [any shape, float] in any format. The statistics of its input are not used.

    Raises `BadInput` for NaN and infinity, and for scales that their dtype does not hold.
    """
    del hessian
    return quantize(weight, fmt, choose=_search)


def _search(blocks: np.ndarray, fmt: Format, family: ElementFamily) -> Steps:
    """The best of each row of `blocks` over the grid of clipping ratios, some rows at a time."""
    powers = fmt.scale.dtype == "e8m0" and len(fmt.scales) == 1
    grid = _HALVINGS if powers else _GRID if fmt.is_integer else _COARSE if fmt.bits > 2 else _WIDE
    grid = grid[:1] if fmt.bits >= 8 and not powers else grid
    found = Steps(*(np.empty(len(blocks), np.float32) for _ in range(3)))
    rows = max(1, _CHUNK // max(1, blocks.shape[1]))
    for begin in range(0, len(blocks), rows):
        part = slice(begin, begin + rows)
        best = _best(blocks[part].astype(np.float32, copy=False), fmt, family, grid, powers=powers)
        found.scale[part], found.offset[part], found.low[part] = best.scale, best.offset, best.low
    return found


def _best(blocks: np.ndarray, fmt: Format, family: ElementFamily, grid: np.ndarray, *, powers: bool) -> Steps:
    low, high = blocks.min(axis=1, initial=0.0), blocks.max(axis=1, initial=0.0)
    best = _parameters(low, high, fmt, family, powers=powers)
    if len(grid) == 1:
        return best
    least = np.full(len(blocks), np.inf, np.float32)
    for ratio in grid:
        tried = _parameters(low * ratio, high * ratio, fmt, family, powers=powers)
        error = _error(blocks, low * ratio, tried, fmt, family)
        better = error < least
        least = np.where(better, error, least)
        pairs = zip((tried.scale, tried.offset, tried.low), (best.scale, best.offset, best.low), strict=True)
        best = Steps(*(np.where(better, new, old) for new, old in pairs))
    return best


def _error(blocks: np.ndarray, low: np.ndarray, tried: Steps, fmt: Format, family: ElementFamily) -> np.ndarray:
    """The squared error of each block."""
    scale = np.where(tried.scale == 0, np.float32(1), tried.scale)[:, None]
    shift = _shift(low, tried, fmt, family)[:, None]
    scaled = blocks / scale
    if fmt.is_integer:
        np.rint(scaled, out=scaled)
        scaled += shift
        np.clip(scaled, family.low, family.high, out=scaled)
        scaled -= shift
    else:
        scaled = family.decode(family.encode(scaled + shift)) - shift
    scaled *= scale
    scaled -= blocks
    return np.einsum("ij,ij->i", scaled, scaled)


def _shift(low: np.ndarray, tried: Steps, fmt: Format, family: ElementFamily) -> np.ndarray:
    """What is added to values in steps before they become codes."""
    scale = np.where(tried.scale == 0, np.float32(1), tried.scale)
    if fmt.offset is not None:
        sign = 1 if fmt.offset.negative else -1
        return (sign * tried.offset / scale).astype(np.float32)
    if fmt.zero_level is not None:
        return np.clip(np.rint(family.low - low / scale), family.low, family.high).astype(np.float32)
    return np.full(len(low), fmt.zero if isinstance(fmt.zero, float) else 0.0, np.float32)


def _parameters(low: np.ndarray, high: np.ndarray, fmt: Format, family: ElementFamily, *, powers: bool) -> Steps:
    """Scale and offset that map [low, high] onto the codes; the next power of two where scales are such."""
    found = steps_of(low, high, fmt, family)
    if not powers:
        return found
    mantissa, exponent = np.frexp(found.scale.astype(np.float64))
    return Steps(np.ldexp(1.0, exponent - (mantissa == 0.5)).astype(np.float32), found.offset, found.low)
