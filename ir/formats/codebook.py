"""`kN`: a trained codebook of N values, which lie beside the codes, one table a block; a code is an index in it.

`fit_codebook` finds the tables: one-dimensional k-means, weighted where some values matter more (SqueezeLLM).
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import NoReturn

import numpy as np

from ..errors import BadInput, NotSupported
from ._kmeans import Moments, clusters, first_row
from ._rounding import CHUNK, as_float32, count_cuts, nearest_cuts, stochastic_steps

EXAMPLES = ("k16", "k8", "k256")


class Trained:
    """What has no values of its own: they lie beside the codes."""

    signed = False
    trained = True

    @property
    def table(self) -> np.ndarray:
        """Not supported."""
        self.lacks("table")

    @property
    def low(self) -> float:
        """Not supported."""
        self.lacks("smallest value")

    @property
    def high(self) -> float:
        """Not supported."""
        self.lacks("largest value")

    @property
    def half_gap(self) -> float:
        """Not supported."""
        self.lacks("error bound")

    def lacks(self, what: str) -> NoReturn:
        """Raise `NotSupported`."""
        raise NotSupported(f"element {self} has no {what} of its own", hint="its values lie beside the codes")


@dataclass(frozen=True)
class Codebook(Trained):
    """A codebook of `entries` values."""

    entries: int

    def __str__(self) -> str:
        return f"k{self.entries}"

    @property
    def bits(self) -> int:
        """ceil(log2(entries))."""
        return (self.entries - 1).bit_length()

    def fit(self, blocks: np.ndarray, weights: np.ndarray | None = None) -> np.ndarray:
        """float32 [B, entries]: see `fit_codebook`."""
        return fit_codebook(blocks, self.entries, weights)

    def encode(
        self, values: np.ndarray, rng: np.random.Generator | None = None, tables: np.ndarray | None = None
    ) -> np.ndarray:
        """uint8 codes [B, n] of `values` [B, n] in `tables` [B, entries] (in any order): the nearest, ties to even.

        With `rng` one of the two neighbours, by distance. `BadInput` for a NaN or infinity in a table.
        """
        x = as_float32(values, self)
        tables = self._checked(tables, len(x))
        order = np.argsort(tables, axis=1, kind="stable")
        ascending = np.take_along_axis(tables, order, axis=1)
        repeated = np.zeros(order.shape, bool)
        repeated[:, 1:] = ascending[:, 1:] == ascending[:, :-1]
        first = np.maximum.accumulate(np.where(repeated, 0, np.arange(self.entries)), axis=1)
        codes = np.take_along_axis(order, first, axis=1).astype(np.uint8)  # of equal values, the first code
        cuts = nearest_cuts(ascending, codes) if rng is None else ascending[:, 1:]
        out = np.empty(x.shape, np.uint8)
        rows = max(1, CHUNK // max(1, x.shape[1]))
        for begin in range(0, len(x), rows):
            part = slice(begin, begin + rows)
            if rng is None:
                index = count_cuts(cuts[part], x[part])
            else:
                index = _stochastic(x[part], ascending[part], rng)
            out[part] = np.take_along_axis(codes[part], index, axis=1)
        return out

    def decode(self, codes: np.ndarray, tables: np.ndarray | None = None) -> np.ndarray:
        """float32 [B, n]: the values of `codes` [B, n] in `tables` [B, entries]; `BadInput` for a code beyond them."""
        tables = self._checked(tables, len(codes))
        if codes.size and int(codes.max()) >= self.entries:
            raise BadInput(f"element {self} has codes below {self.entries}, and the data holds {int(codes.max())}")
        out = np.empty(codes.shape, np.float32)
        rows = max(1, CHUNK // max(1, codes.shape[1]))
        for begin in range(0, len(codes), rows):
            part = codes[begin : begin + rows]
            first = np.arange(begin, begin + len(part))[:, None] * self.entries
            tables.take(part + first, out=out[begin : begin + rows], mode="clip")
        return out

    def _checked(self, tables: np.ndarray | None, blocks: int) -> np.ndarray:
        if tables is None:
            self.lacks("table")
        if tables.shape != (blocks, self.entries):
            raise BadInput(f"element {self} of {blocks} blocks has tables of shape {list(tables.shape)}")
        tables = np.ascontiguousarray(tables, np.float32)
        if not np.isfinite(tables).all():
            raise BadInput(f"element {self}: the table of block {first_row(~np.isfinite(tables))} is not finite")
        return tables


def parse(name: str) -> Codebook | None:
    """`k4`..`k256`; `BadInput` for other sizes."""
    match = re.fullmatch(r"k(\d{1,6})", name)
    if match is None:
        return None
    if not 4 <= int(match[1]) <= 256:
        raise BadInput(f"codebook {name!r} has {int(match[1])} entries", hint="k4 to k256")
    return Codebook(int(match[1]))


def fit_codebook(blocks: np.ndarray, entries: int, weights: np.ndarray | None = None) -> np.ndarray:
    """float32 [B, entries], ascending: the table of each of `blocks` [B, n] that k-means finds; `entries` >= 2.

    Deterministic, and a local minimum of the squared error, which `weights` [B, n] >= 0 weigh; a block of no more than
    `entries` distinct values loses nothing. `BadInput`: no values, NaN or infinite ones, negative weights.
    """
    tables = np.empty((len(blocks), entries), np.float32)
    rows = max(1, (1 << 22) // max(1, blocks.shape[1]))
    for begin in range(0, len(blocks), rows):
        part = slice(begin, begin + rows)
        moments = Moments(blocks[part], None if weights is None else weights[part])
        tables[part] = moments.means(clusters(moments, entries), np.arange(len(moments.sorted), dtype=np.intp)).astype(
            np.float32
        )
    return tables


def _stochastic(x: np.ndarray, ascending: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    x = np.clip(x, ascending[:, :1], ascending[:, -1:])
    index = count_cuts(ascending[:, 1:], x)
    below = np.take_along_axis(ascending, index, axis=1)
    above = np.take_along_axis(ascending, np.minimum(index + 1, ascending.shape[1] - 1), axis=1)
    return index + stochastic_steps(x, below, above, rng)
