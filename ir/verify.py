"""How far two sets of outputs are apart: signal to quantization noise in decibels, and the largest difference."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np

EXACT = 200.0
"""Decibels reported where nothing differs: float64 rounding lies near 300, float32 near 140."""


@dataclass(frozen=True)
class Difference:
    """`sqnr_db = 10 log10(sum ref^2 / sum (ref - got)^2)`, capped at 200, and `max_abs_error`."""

    sqnr_db: float
    max_abs_error: float


class Comparison:
    """Adds up pairs of arrays; `result` gives the difference over all of them."""

    def __init__(self) -> None:
        self.signal = 0.0
        self.noise = 0.0
        self.largest = 0.0

    def add(self, reference: np.ndarray, got: np.ndarray) -> None:
        """Compare one pair. Equal infinities and NaN at the same places count as equal; other ones as endless noise."""
        if reference.dtype.kind in "OSU" or got.dtype.kind in "OSU":
            self._count(not np.array_equal(reference, got))
            return
        a, b = reference.astype(np.float64), got.astype(np.float64)
        if a.shape != b.shape:
            self._count(True)
            return
        with np.errstate(invalid="ignore"):
            finite = np.isfinite(a) & np.isfinite(b)
            same = (a == b) | (np.isnan(a) & np.isnan(b))
        if not (finite | same).all():
            self._count(True)
        a, b = a[finite], b[finite]
        self.signal += float(np.dot(a.ravel(), a.ravel()))
        self.noise += float(np.dot((a - b).ravel(), (a - b).ravel()))
        self.largest = max(self.largest, float(np.abs(a - b).max(initial=0.0)))

    def _count(self, different: bool) -> None:
        if different:
            self.noise, self.largest = math.inf, math.inf

    @property
    def result(self) -> Difference:
        """The difference so far."""
        if not self.noise:
            return Difference(EXACT, self.largest)
        if not math.isfinite(self.noise) or not self.signal:
            return Difference(-EXACT, min(self.largest, np.finfo(np.float64).max))
        return Difference(min(EXACT, 10 * math.log10(self.signal / self.noise)), self.largest)


def compare(references: Sequence[Mapping[str, np.ndarray]], outputs: Sequence[Mapping[str, np.ndarray]]) -> Difference:
    """The difference over all samples and outputs."""
    comparison = Comparison()
    for reference, got in zip(references, outputs, strict=True):
        for name, array in reference.items():
            comparison.add(array, got[name])
    return comparison.result
