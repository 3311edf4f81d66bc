"""The range between two percentiles: the rarest values on either side are clipped, whatever their size."""

from __future__ import annotations

import numpy as np

from qcc.ir.errors import BadInput

from .statistics import Bins, Histogram


def range_of(
    statistics: Histogram, *, bits: int, signed: bool, symmetric: bool, percentile: float = 99.99
) -> tuple[float, float]:
    """From the `100 - percentile`th to the `percentile`th percentile; symmetric, the `percentile`th of `|x|`.

    Exact to one bin of the histogram. See `Observer.range_of`; BadInput also when `percentile` is not in (50, 100].
    """
    if not 50 < percentile <= 100:
        raise BadInput(f"percentile {percentile:g} is not above 50 and at most 100", hint="use 99.9 to 99.9999")
    low, high = statistics.full_range(bits=bits, signed=signed, symmetric=symmetric)
    fraction = percentile / 100
    if symmetric:
        bound = _quantile(statistics.magnitudes(), fraction) * statistics.width
        return max(low, -bound), min(high, bound)
    bins = statistics.bins()
    lower = min(_quantile(bins, 1 - fraction) * statistics.width, 0.0)
    upper = max(_quantile(bins, fraction) * statistics.width, 0.0)
    return max(low, lower), min(high, upper)


def _quantile(bins: Bins, fraction: float) -> float:
    """Position that `fraction` of the values do not exceed, the values of a bin taken as evenly spread over it.

    The zeros enter as a bin of no width in front of the bin that starts at zero.
    """
    zero = -bins.first
    counts = np.insert(bins.counts, zero, bins.zeros)
    left = np.insert(np.arange(bins.first, bins.first + bins.counts.size), zero, 0)
    reached = np.cumsum(counts)
    rank = min(max(fraction, 0.0) * float(reached[-1]), float(reached[-1]))
    at = int(np.searchsorted(reached, max(rank, np.finfo(np.float64).tiny)))
    if at == zero:
        return 0.0
    return float(left[at]) + (rank - float(reached[at] - counts[at])) / float(counts[at])
