"""The range of all values seen: `low = min(x, 0)`, `high = max(x, 0)`; nothing is clipped, outliers set the step."""

from __future__ import annotations

from .statistics import Histogram

READS_BINS = False


def range_of(statistics: Histogram, *, bits: int, signed: bool, symmetric: bool) -> tuple[float, float]:
    """The exact minimum and maximum with zero between them; see `Observer.range_of`."""
    return statistics.full_range(bits=bits, signed=signed, symmetric=symmetric)
