"""Elements whose codes stand for the values of one table: `decode(code) = table[code]`, `encode(x)` the nearest."""

from __future__ import annotations

from abc import ABC, abstractmethod
from dataclasses import dataclass
from functools import cached_property

import numpy as np

from ..errors import BadInput
from ._rounding import Bins, as_float32, chunks, nearest_cuts, stochastic_steps


class TableElement(ABC):
    """What follows from `bits` and `table`. Codes are uint8 bit patterns.

    Of several codes with one value (0 and -0) `encode` emits the first; codes that stand for NaN or an infinity it
    never emits.
    """

    bits: int
    signed = False
    trained = False

    @abstractmethod
    def list_values(self) -> np.ndarray:
        """[2**bits]: the value of each code; NaN where it stands for none."""

    @cached_property
    def table(self) -> np.ndarray:
        """The values as float32[2**bits], read-only."""
        table = self.list_values().astype(np.float32)
        table.setflags(write=False)
        return table

    @property
    def low(self) -> float:
        """The smallest finite value."""
        return float(self.values[0])

    @property
    def high(self) -> float:
        """The largest finite value."""
        return float(self.values[-1])

    @property
    def half_gap(self) -> float:
        """Half the widest gap between neighbouring values."""
        return float(np.diff(self.values.astype(np.float64)).max()) / 2

    @property
    def values(self) -> np.ndarray:
        """The distinct finite values, ascending: float32."""
        return self.table[self.codes]

    @cached_property
    def codes(self) -> np.ndarray:
        """The codes of `values`, uint8: all that `encode` emits."""
        finite = np.flatnonzero(np.isfinite(self.table))
        return finite[np.unique(self.table[finite], return_index=True)[1]].astype(np.uint8)

    @cached_property
    def _nearest(self) -> Bins:
        return Bins(nearest_cuts(self.values, self.codes))

    @cached_property
    def _below(self) -> Bins:
        return Bins(self.values[1:])

    def encode(self, values: np.ndarray, rng: np.random.Generator | None = None) -> np.ndarray:
        """uint8 codes of `values` (taken as float32), any shape; see `ElementFamily.encode`."""
        x = as_float32(values, self)
        out = np.empty(x.shape, np.uint8)
        flat, found = x.reshape(-1), out.reshape(-1)
        for part in chunks(x.size):
            index = self._nearest.index(flat[part]) if rng is None else self._stochastic(flat[part], rng)
            self.codes.take(index, out=found[part], mode="clip")
        return out

    def _stochastic(self, x: np.ndarray, rng: np.random.Generator) -> np.ndarray:
        values = self.values
        x = np.clip(x, values[0], values[-1])
        index = self._below.index(x)
        index += stochastic_steps(x, values[index], values[np.minimum(index, len(values) - 2) + 1], rng)
        return index

    def decode(self, codes: np.ndarray) -> np.ndarray:
        """The float32 values of uint8 `codes`; `BadInput` where a code has more bits than the element."""
        raw = np.asarray(codes).astype(np.uint8, copy=False)
        if raw.size and (largest := int(raw.max())) >> self.bits:
            raise BadInput(f"element {self} has codes of {self.bits} bits, and the data holds {largest}")
        out = np.empty(raw.shape, np.float32)
        flat, found = raw.reshape(-1), out.reshape(-1)
        for part in chunks(raw.size):
            self.table.take(flat[part], out=found[part], mode="clip")
        return out


@dataclass(frozen=True)
class FixedTable(TableElement):
    """A table that somebody wrote down: `entries` by code; fewer than 2**bits where the rest stand for nothing."""

    name: str
    bits: int
    entries: tuple[float, ...]

    def __str__(self) -> str:
        return self.name

    def list_values(self) -> np.ndarray:
        """The entries, then NaN."""
        return np.array([*self.entries, *[np.nan] * ((1 << self.bits) - len(self.entries))])
