"""The clip that loses least information: `min over t of KL(P || Q_t)`, where Q_t is P quantized within `|x| <= t`."""

from __future__ import annotations

import numpy as np

from .statistics import Bins, Histogram

_CANDIDATES = 128
_UNSEEN = 1e-4
"""Count that Q takes for a bin where only clipped values fall: far less than one value, and not nothing."""


def range_of(statistics: Histogram, *, bits: int, signed: bool, symmetric: bool) -> tuple[float, float]:
    """The full range cut at the threshold `|x| <= t` of least Kullback-Leibler divergence; see `Observer.range_of`.

    After S. Migacz, "8-bit Inference with TensorRT", GTC 2017: on the histogram of `|x|` when symmetric, with its sign
    otherwise. Exact zeros are left out, since every range keeps them. Thresholds start where the range has one bin a
    level, so the result is never below `2^bits` bins; with more levels than bins nothing is clipped.
    """
    low, high = statistics.full_range(bits=bits, signed=signed, symmetric=symmetric)
    bins = statistics.magnitudes() if symmetric else statistics.bins()
    levels = 2 ** (bits - 1) if symmetric and signed else 2**bits
    bound = _threshold(bins, levels) * statistics.width
    return max(low, -bound), min(high, bound)


def _threshold(bins: Bins, levels: int) -> int:
    """Best threshold in bin widths; of equal ones the widest."""
    start, stop = bins.occupied()
    below, above = max(-start, 0), max(stop, 0)
    widest = max(below, above)
    thresholds = np.arange(1, widest + 1)
    wide_enough = thresholds[np.minimum(thresholds, below) + np.minimum(thresholds, above) >= levels]
    if wide_enough.size == 0:
        return widest
    picked = np.linspace(widest, int(wide_enough[0]), min(_CANDIDATES, wide_enough.size), dtype=np.int64)
    return min(map(int, picked), key=lambda t: _divergence(bins, min(t, below), min(t, above), levels))


def _divergence(bins: Bins, below: int, above: int, levels: int) -> float:
    """`KL(P || Q)` in nats for the range from `below` bins under zero to `above` bins over it.

    P holds the clipped values in its outermost bins. Q spreads the values of each level evenly over the bins of that
    level in which P has any. Q has no share of the clipped values and is not scaled up to make good for them: scaled, a
    clip that piles every value onto one bin would look like a perfect match.
    """
    start, stop = -bins.first - below, -bins.first + above
    kept = bins.counts[start:stop].astype(np.float64)
    clipped = kept.copy()
    clipped[0] += bins.counts[:start].sum()
    clipped[-1] += bins.counts[stop:].sum()
    held = np.flatnonzero(clipped)
    level = held * levels // kept.size
    total, members = np.bincount(level, kept[held]), np.bincount(level)
    p = clipped[held]
    q = np.maximum(total[level] / members[level], _UNSEEN)
    return float(p @ np.log(p / q)) / float(p.sum())
