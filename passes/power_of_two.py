"""The power of two that serves as scale: `s = argmin over e of sum |x - s clip(round(x / s))|^2, s = 2^e`.

Rounding a range up to the next power of two wastes up to one bit of eight, and rounding it down may clip what matters:
which is better depends on the distribution, so the error decides. Values that must share a scale are judged together.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np

from qcc.ir.format import Format

from . import observers
from .observers.mse import squared_error
from .observers.statistics import Histogram

_HALVINGS = 13
_TINY = float(np.finfo(np.float32).tiny)


def scale_of(values: Sequence[Histogram], fmt: Format, observer: str = "mse") -> float:
    """The power of two for tensors that share a scale, in a symmetric format, from their statistics.

    `mse` takes the least squared error, relative to the energy of each tensor, over the least power of two that clips
    nothing and its halvings. Another observer's range lies between two powers of two: the better one is taken. Where it
    keeps no distribution (`minmax`), nothing is clipped. Raises `BadInput` as `Observer.range_of` does.
    """
    if not observers.reads_bins(observer):
        return least_that_holds(*_full_range(values, fmt), fmt)
    if observer == "mse":
        widest = least_that_holds(*_full_range(values, fmt), fmt)
        candidates = [math.ldexp(widest, -i) for i in range(_HALVINGS)]
    else:
        found = [_range_of(v, fmt, observer) for v in values]
        above = least_that_holds(min(low for low, _ in found), max(high for _, high in found), fmt)
        candidates = [above, above / 2]
    steps = np.array([c for c in candidates if c > _TINY] or [1.0])
    return float(steps[int(np.argmin(_errors(values, steps, fmt)))])


def least_that_holds(low: float, high: float, fmt: Format) -> float:
    """The least power of two whose codes reach `low` and `high`; 1 for a range of nothing."""
    family = fmt.family
    step = max(low / family.low if family.low else 0.0, high / family.high)
    if step <= _TINY:
        return 1.0
    mantissa, exponent = math.frexp(step)
    return math.ldexp(1.0, exponent - (mantissa == 0.5))


def exponent_of(scale: float) -> int:
    """`e` of a scale `2^e`."""
    return math.frexp(scale)[1] - 1


def _full_range(values: Sequence[Histogram], fmt: Format) -> tuple[float, float]:
    """The least and the largest value seen, with zero between them."""
    for each in values:
        each.full_range(bits=fmt.bits, signed=fmt.family.signed, symmetric=True)  # raises where nothing was seen
    return min(0.0, *(v.minimum for v in values)), max(0.0, *(v.maximum for v in values))


def _range_of(value: Histogram, fmt: Format, observer: str) -> tuple[float, float]:
    return observers.load(observer).range_of(value, bits=fmt.bits, signed=fmt.family.signed, symmetric=True)


def _errors(values: Sequence[Histogram], steps: np.ndarray, fmt: Format) -> np.ndarray:
    """Noise over signal of each step, summed over the tensors."""
    total = np.zeros(len(steps))
    for each in values:
        bins, width = each.bins(), each.width
        if not bins.counts.any():
            continue
        ends = np.arange(bins.first, bins.first + bins.counts.size, dtype=np.float64) + 0.5
        signal = float(bins.counts @ (ends * ends))
        lows, highs = steps * (fmt.family.low / width), steps * (fmt.family.high / width)
        total += squared_error(bins, lows, highs, (1 << fmt.bits) - 1) / signal
    return total
