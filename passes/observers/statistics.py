"""Streamed statistics of one activation: counts by `bin = floor(x / 2^e)`, joined exactly as the range grows."""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray

from qcc.ir.errors import BadInput

BINS = 2048
_LEAST_EXPONENT = -1000
_CHUNK = 1 << 20


@dataclass(frozen=True)
class Bins:
    """Counts as an observer reads them, positions in units of the bin width.

    Bin `i` counts the values other than zero with `first + i <= x / width < first + i + 1`; `first <= 0`, so position 0
    is always the left edge of bin `-first`. Exact zeros are counted apart in `zeros`: every range represents them.
    """

    counts: NDArray[np.int64]
    first: int
    zeros: int

    def occupied(self) -> tuple[int, int]:
        """Left edge of the first bin with a value and right edge of the last, `(0, 0)` where there is none."""
        held = np.flatnonzero(self.counts)
        return (self.first + int(held[0]), self.first + int(held[-1]) + 1) if held.size else (0, 0)


@dataclass(eq=False)
class Histogram:
    """What is known of the values of the tensor called `name`: exact count, minimum, maximum and zeros, and 2048 bins.

    The bin width is a power of two and bins start at its multiples, so doubling the width joins whole bins, and the
    window is a function of minimum and maximum alone. The state is therefore the same for every order of the values,
    however they came in batches, and two histograms merge into the one that a single pass would have given. (Float64
    values smaller than the width by a factor beyond 2^1000 may fall on the other side of zero.)
    """

    name: str
    binned: bool = True
    """Off: count, minimum and maximum alone are kept, which is all that `minmax` reads and costs a tenth."""
    count: int = 0
    zeros: int = 0
    minimum: float = math.inf
    maximum: float = -math.inf
    exponent: int = _LEAST_EXPONENT
    first: int = 0
    counts: NDArray[np.int64] = field(default_factory=lambda: np.zeros(BINS, np.int64))

    @property
    def width(self) -> float:
        """Width of a bin in the units of the tensor: `2^exponent`."""
        return math.ldexp(1.0, self.exponent)

    def update(self, array: NDArray[Any]) -> None:
        """Count the values of `array` (any shape, a real dtype); BadInput on NaN or infinity, with nothing counted."""
        values = np.asarray(array).reshape(-1)
        if values.size == 0:
            return
        with np.errstate(invalid="ignore"):
            low, high = float(values.min()), float(values.max())
        if not (math.isfinite(low) and math.isfinite(high)):
            raise _not_finite(self.name, values)
        self._widen(low, high)
        self.count += values.size
        if not self.binned:
            return
        for start in range(0, values.size, _CHUNK):
            chunk = values[start : start + _CHUNK].astype(np.float64)
            zeros = chunk.size - int(np.count_nonzero(chunk))
            chunk *= math.ldexp(1.0, -self.exponent)
            index = np.floor(chunk, out=chunk).astype(np.int64) - self.first
            self.counts += np.bincount(index, minlength=BINS)
            self.counts[-self.first] -= zeros
            self.zeros += zeros

    def merge(self, other: Histogram) -> None:
        """Add what `other` counted, as if its values had been seen here."""
        self._widen(other.minimum, other.maximum)
        self.counts += _rebin(other, self.exponent, self.first)
        self.count += other.count
        self.zeros += other.zeros

    def bins(self) -> Bins:
        """The counts of the values, with their sign."""
        return Bins(self.counts, self.first, self.zeros)

    def magnitudes(self) -> Bins:
        """The counts of the absolute values: the bins below zero folded onto those above."""
        above, below = self.counts[-self.first :], self.counts[: -self.first][::-1]
        folded = np.zeros(BINS, np.int64)
        folded[: above.size] += above
        folded[: below.size] += below
        return Bins(folded, 0, self.zeros)

    def full_range(self, *, bits: int, signed: bool, symmetric: bool) -> tuple[float, float]:
        """The narrowest range of the asked kind that clips no value: where every observer starts.

        Raises BadInput as `Observer.range_of` does.
        """
        if self.count == 0:
            raise BadInput(f"tensor '{self.name}': no value was seen", hint="calibrate with at least one sample")
        if not 2 <= bits <= 32:
            raise BadInput(f"tensor '{self.name}': a range for {bits} bits was asked for", hint="use 2 to 32 bits")
        low, high = min(self.minimum, 0.0), max(self.maximum, 0.0)
        if not symmetric:
            return low, high
        if signed:
            bound = max(high, -low)
            return 0.0 - bound, bound
        if low < 0:
            raise BadInput(
                f"tensor '{self.name}': a symmetric unsigned range holds no negative values, and {low:g} was seen",
                hint="use a signed or an asymmetric activation format",
            )
        return 0.0, high

    def _widen(self, low: float, high: float) -> None:
        """Take `low` and `high` into the range, and move the counts to the window this asks for."""
        self.minimum, self.maximum = min(self.minimum, low), max(self.maximum, high)
        exponent, first = _window(min(self.minimum, 0.0), max(self.maximum, 0.0))
        if (exponent, first) != (self.exponent, self.first):
            self.counts = _rebin(self, exponent, first)
            self.exponent, self.first = exponent, first


def _window(low: float, high: float) -> tuple[int, int]:
    """The least exponent, and its first bin, for which bins of width `2^exponent` cover `low <= 0 <= high`."""
    largest = max(-low, high)
    if largest == 0:
        return _LEAST_EXPONENT, 0
    exponent = max(math.frexp(largest)[1] - (BINS.bit_length() - 1), _LEAST_EXPONENT)
    if _bin(high, exponent) - _bin(low, exponent) >= BINS:
        exponent += 1
    return exponent, _bin(low, exponent)


def _bin(value: float, exponent: int) -> int:
    return math.floor(math.ldexp(value, -exponent))


def _rebin(histogram: Histogram, exponent: int, first: int) -> NDArray[np.int64]:
    """The counts of `histogram` in a window that contains its own: `floor(floor(x / w) / 2) = floor(x / 2w)`."""
    held = np.flatnonzero(histogram.counts)
    doublings = min(exponent - histogram.exponent, 63)
    counts = np.zeros(BINS, np.int64)
    np.add.at(counts, ((held + histogram.first) >> doublings) - first, histogram.counts[held])
    return counts


def _not_finite(name: str, values: NDArray[Any]) -> BadInput:
    nans, infinities = int(np.isnan(values).sum()), int(np.isinf(values).sum())
    return BadInput(
        f"tensor '{name}': {nans} NaN and {infinities} infinite among {values.size} values",
        hint="look for a sample that the float model itself cannot run, and leave it out of the calibration data",
    )
