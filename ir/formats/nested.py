"""`n3..8`: nested bit planes (Any-Precision LLM, Park et al. 2024): the first b bits of a code are its code at b bits.

Each precision has a table of its own, 2^b values a block, beside the codes; they lie one behind another, the highest
precision first. `fit_nested` makes them by incremental upscaling: k-means at the lowest precision, then every cluster
is cut in two at the best place, once for each bit.
"""

from __future__ import annotations

import re
from dataclasses import dataclass

import numpy as np

from ..errors import BadInput, NotSupported
from ._kmeans import Moments, clusters
from ._rounding import as_float32
from .codebook import Codebook, Trained

EXAMPLES = ("n3..8", "n2..4")


@dataclass(frozen=True)
class Nested(Trained):
    """Codes of `bits` bits that serve every precision from `least` bits on."""

    least: int
    bits: int

    def __str__(self) -> str:
        return f"n{self.least}..{self.bits}"

    def at(self, bits: int) -> Codebook:
        """What the first `bits` bits of the codes are codes of; `BadInput` for a precision that is not there."""
        if not self.least <= bits <= self.bits:
            raise BadInput(f"element {self} has no precision of {bits} bits", hint=f"{self.least} to {self.bits}")
        return Codebook(1 << bits)

    def codes_at(self, codes: np.ndarray, bits: int) -> np.ndarray:
        """The codes at `bits` bits: the upper bits of uint8 `codes`."""
        self.at(bits)
        return codes >> np.uint8(self.bits - bits)

    @property
    def entries(self) -> int:
        """How many values a block has in all tables together."""
        return (2 << self.bits) - (1 << self.least)

    def fit(self, blocks: np.ndarray, weights: np.ndarray | None = None) -> np.ndarray:
        """float32 [B, entries]: what `fit_nested` finds, the highest precision first."""
        tables = fit_nested(blocks, self.least, self.bits, weights)
        return np.concatenate([tables[bits] for bits in range(self.bits, self.least - 1, -1)], axis=1)

    def tables_at(self, tables: np.ndarray, bits: int) -> np.ndarray:
        """[B, 2^bits]: the table of one precision among `tables` [B, entries]."""
        begin = (2 << self.bits) - (2 << bits)
        return tables[:, begin : begin + self.at(bits).entries]

    def encode(
        self, values: np.ndarray, rng: np.random.Generator | None = None, tables: np.ndarray | None = None
    ) -> np.ndarray:
        """uint8 codes [B, n] of `values` [B, n] in `tables` [B, entries], as `fit` orders them.

        The nearest at the lowest precision, then of each pair the nearer, ties to the even code: every precision is
        served, so at the highest a value near the rim of a cluster may lie nearer to another cluster's entry.
        """
        if rng is not None:
            raise NotSupported(f"element {self} has no stochastic rounding", hint="its bits depend on one another")
        tables = self._checked(tables)
        codes = self.at(self.least).encode(values, tables=self.tables_at(tables, self.least))
        x = as_float32(values, self)
        for bits in range(self.least + 1, self.bits + 1):
            pairs = self.tables_at(tables, bits).astype(np.float64)
            low, high = pairs[:, 0::2], pairs[:, 1::2]
            cut = np.where(low < high, (low + high) / 2, np.inf)  # two equal entries: the first
            codes = 2 * codes + (x > np.take_along_axis(cut, codes.astype(np.intp), axis=1))
        return codes.astype(np.uint8, copy=False)

    def decode(self, codes: np.ndarray, tables: np.ndarray | None = None, bits: int | None = None) -> np.ndarray:
        """float32 [B, n]: the values of the first `bits` bits (all of them where None) of `codes` [B, n]."""
        bits = self.bits if bits is None else bits
        return self.at(bits).decode(self.codes_at(codes, bits), self.tables_at(self._checked(tables), bits))

    def _checked(self, tables: np.ndarray | None) -> np.ndarray:
        if tables is None:
            self.lacks("table")
        if tables.ndim != 2 or tables.shape[1] != self.entries:
            raise BadInput(f"element {self} has tables of {self.entries} values, and these are {list(tables.shape)}")
        return tables


def parse(name: str) -> Nested | None:
    """`nA..B` with 2 <= A < B <= 8; `BadInput` otherwise."""
    match = re.fullmatch(r"n(\d{1,2})\.\.(\d{1,2})", name)
    if match is None:
        return None
    least, most = int(match[1]), int(match[2])
    if not 2 <= least < most <= 8:
        raise BadInput(f"nested element {name!r}: {least} to {most} bits", hint='the lower first, from 2 to 8: "n3..8"')
    return Nested(least, most)


def fit_nested(blocks: np.ndarray, low: int, high: int, weights: np.ndarray | None = None) -> dict[int, np.ndarray]:
    """{bits: float32 [B, 2^bits], ascending} for low..high bits, of `blocks` [B, n] weighted by `weights` [B, n].

    A cluster of one distinct value is cut into two entries of that value. `BadInput` as `fit_codebook`.
    """
    tables = {bits: np.empty((len(blocks), 1 << bits), np.float32) for bits in range(low, high + 1)}
    rows = max(1, (1 << 21) // max(1, blocks.shape[1]))
    for begin in range(0, len(blocks), rows):
        part = slice(begin, begin + rows)
        moments = Moments(blocks[part], None if weights is None else weights[part])
        every = np.arange(len(moments.sorted), dtype=np.intp)
        bounds = clusters(moments, 1 << low)
        tables[low][part] = moments.means(bounds, every)
        for bits in range(low + 1, high + 1):
            bounds = _cut_in_two(moments, bounds)
            tables[bits][part] = moments.means(bounds, every)
    return tables


def _cut_in_two(moments: Moments, bounds: np.ndarray) -> np.ndarray:
    """intp [B, 2N + 1]: each run between `bounds` [B, N + 1] cut where the squared error falls most.

    With moments about the mean of a run, cutting off a first part of weight w, moment s gains s^2 / w + s^2 / (W - w).
    """
    blocks, n = moments.sorted.shape
    lengths = np.diff(bounds, axis=1).reshape(-1)
    every = np.arange(blocks, dtype=np.intp)
    weight, first, _ = moments.sums(bounds, every)
    mean = first / np.where(weight > 0, weight, 1.0)

    def each(per_run: np.ndarray) -> np.ndarray:
        return np.repeat(per_run.reshape(-1), lengths)

    begin = bounds[:, :-1]
    before = moments.weight[:, :-1].reshape(-1) - each(np.take_along_axis(moments.weight, begin, axis=1))
    moment = moments.first[:, :-1].reshape(-1) - each(np.take_along_axis(moments.first, begin, axis=1))
    moment -= before * each(mean)
    values = moments.sorted.reshape(-1)
    inside = np.diff(values, prepend=values[0]) > 0  # a cut parts values that differ
    starts: np.ndarray = (begin + (every * n)[:, None]).reshape(-1)
    filled = lengths > 0
    inside[starts[filled]] = False
    after = each(weight) - before
    gain = np.where(inside, moment**2 / np.where(inside, before, 1.0) + moment**2 / np.where(inside, after, 1.0), -1.0)
    best = np.maximum.reduceat(gain, starts[filled])
    hits = np.flatnonzero((gain == np.repeat(best, lengths[filled])) & inside)
    run = np.repeat(np.arange(len(lengths)), lengths)[hits]
    cut_runs, which = np.unique(run, return_index=True)  # the first of equal gains
    cuts = bounds[:, 1:].reshape(-1).copy()  # a run without a cut keeps all in its first half
    cuts[cut_runs] = hits[which] % n
    out = np.empty((blocks, 2 * begin.shape[1] + 1), np.intp)
    out[:, 0::2] = bounds
    out[:, 1::2] = cuts.reshape(begin.shape)
    return out
