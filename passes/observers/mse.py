"""The range of least expected error: `min over (low, high) of E (x - dequantize(quantize(x)))^2`, on a grid."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from .statistics import Bins, Histogram

_Floats = NDArray[np.float64]

_GRIDS: tuple[_Floats, ...] = (
    np.exp2(np.linspace(0.0, -10.0, 11)),
    np.exp2(np.linspace(1.0, -1.0, 9)),
    np.exp2(np.linspace(0.25, -0.25, 9)),
)
"""Clip ratios by octaves from 1 to 1/1024, then by quarters and sixteenths of one around the best so far."""


def range_of(statistics: Histogram, *, bits: int, signed: bool, symmetric: bool) -> tuple[float, float]:
    """The full range with its ends shrunk (together when symmetric, else each by its own ratio) to the least error.

    The error is that of a uniform quantizer with a zero point, on the density the histogram stands for; of equal
    candidates the widest is taken. See `Observer.range_of`.
    """
    low, high = statistics.full_range(bits=bits, signed=signed, symmetric=symmetric)
    if low == high:
        return low, high
    bins, steps = statistics.bins(), 2**bits - (2 if symmetric and signed else 1)
    below, above = 1.0, 1.0
    for grid in _GRIDS:
        belows, aboves = _candidates(np.minimum(below * grid, 1), np.minimum(above * grid, 1), low, symmetric)
        lows, highs = belows * (low / statistics.width), aboves * (high / statistics.width)
        best = int(np.argmin(squared_error(bins, lows, highs, steps)))
        below, above = float(belows[best]), float(aboves[best])
    return low * below, high * above


def _candidates(belows: _Floats, aboves: _Floats, low: float, symmetric: bool) -> tuple[_Floats, _Floats]:
    """The pairs of ratios to try, widest first: equal ones when symmetric, else every combination."""
    if symmetric:
        return aboves, aboves
    if low == 0:
        return np.ones_like(aboves), aboves
    grid = np.meshgrid(belows, aboves, indexing="ij")
    return grid[0].ravel(), grid[1].ravel()


def squared_error(bins: Bins, lows: _Floats, highs: _Floats, steps: int) -> _Floats:
    """Sum of squared errors over the values of `bins`, one for each of the ranges `(lows, highs)` in bin widths.

    Values are evenly spread over their bin, so a bin adds `count * (G(right) - G(left))`, where `G` is the integral of
    the squared error: `step^3 F(x / step)` with `F(u) = round(u) / 12 + (u - round(u))^3 / 3` between the outermost
    grid points, and a third of the cube of the excess beyond them. Sampling bins at their middle instead would alias
    with steps near the bin width.
    """
    start, stop = bins.occupied()
    edges = np.arange(start, stop + 1, dtype=np.float64)
    counts = bins.counts[start - bins.first : stop - bins.first].astype(np.float64)
    errors = np.empty(lows.size)
    for index, (low, high) in enumerate(zip(lows.tolist(), highs.tolist(), strict=True)):
        step = (high - low) / steps
        lowest = round(low / step)
        inside = np.clip(edges / step, lowest, lowest + steps)
        nearest = np.rint(inside)
        rounding, excess = inside - nearest, edges - inside * step
        integral = step**3 * (nearest / 12 + rounding * rounding * rounding / 3) + excess * excess * excess / 3
        errors[index] = counts @ np.diff(integral)
    return errors
