"""The caches of a network while it runs: memory that calls append to, as float32, float16, or codes with scales."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from qcc.backends.native.memory import aligned
from qcc.ir.errors import BadInput

DTYPES = {"f32": "float32", "f16": "float16", "i8": "int8"}
"""What entries of a cache are kept in."""


@dataclass(frozen=True)
class Cache:
    """A cache of a network: its names as input and as output, and what its entries are kept in."""

    past: str
    present: str
    form: str
    """Of `DTYPES`. i8 has one float32 scale for each entry of a head: the largest value is 127."""


@dataclass(frozen=True)
class Held:
    """Memory of caches [batch, heads, capacity, size], and of the scales of those that hold codes, in their order."""

    caches: Sequence[Cache]
    entries: Sequence[np.ndarray]
    scales: Sequence[np.ndarray]

    @staticmethod
    def empty(caches: Sequence[Cache], shape: tuple[int, ...]) -> Held:
        """Caches of zeros, all of one shape."""
        entries = [_zeros(shape, DTYPES[cache.form]) for cache in caches]
        return Held(caches, entries, [_zeros(shape[:-1], "float32") for cache in caches if cache.form == "i8"])

    @staticmethod
    def of(caches: Sequence[Cache], given: Mapping[str, np.ndarray], more: int) -> Held:
        """Caches that hold float32 arrays, by name, and have room for `more` entries. `BadInput` for other shapes."""
        first = given[caches[0].past].shape
        for cache in caches:
            if (shape := given[cache.past].shape) != first:
                raise BadInput(
                    f"{cache.past!r} is {list(shape)}, {caches[0].past!r} is {list(first)}", hint="caches of one length"
                )
        held = Held.empty(caches, (*first[:2], first[2] + more, *first[3:]))
        scales = iter(held.scales)
        for cache, entries in zip(caches, held.entries, strict=True):
            past = given[cache.past]
            if cache.form != "i8":
                entries[:, :, : past.shape[2]] = past
                continue
            step = np.maximum(np.abs(past).max(-1, initial=0), np.float32(2.0**-126)) / np.float32(127)
            entries[:, :, : past.shape[2]] = np.rint(past / step[..., None])
            next(scales)[:, :, : past.shape[2]] = step
        return held

    def arrays(self) -> list[np.ndarray]:
        """Everything, in the order in which a network takes it."""
        return [*self.entries, *self.scales]

    def outputs(self) -> dict[str, np.ndarray]:
        """Copies in float32, by the names of the outputs."""
        scales, found = iter(self.scales), dict[str, np.ndarray]()
        for cache, entries in zip(self.caches, self.entries, strict=True):
            numbers = entries.astype(np.float32)
            found[cache.present] = numbers * next(scales)[..., None] if cache.form == "i8" else numbers
        return found


def _zeros(shape: tuple[int, ...], dtype: str) -> np.ndarray:
    size = int(np.prod(shape, dtype=np.int64)) * np.dtype(dtype).itemsize
    return aligned(size).view(dtype).reshape(shape)
