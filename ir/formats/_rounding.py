"""Where one code ends and the next begins, exact in float32: `index(x) = how many cuts are <= x`."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np

from ..errors import BadInput

CHUNK = 1 << 16
"""Elements handled at once: their buffers stay in the second-level cache."""


def as_float32(values: np.ndarray, element: object) -> np.ndarray:
    """`values` as contiguous float32 (infinities are kept); a NaN is `BadInput` that says where it is."""
    with np.errstate(over="ignore"):
        x = np.asarray(values, np.float32, order="C")
    refuse_nan(x, element)
    return x


def refuse_nan(x: np.ndarray, element: object, begin: int = 0) -> None:
    """`BadInput` naming the index (plus `begin`) of the first NaN of `x`."""
    if x.size and np.isnan(x.min()):
        at = begin + int(np.isnan(x).argmax())
        raise BadInput(f"element {element} has no code for NaN, which is value {at} of the data", hint="mend the data")


def chunks(size: int) -> Iterator[slice]:
    """Consecutive slices of at most `CHUNK` that cover `size`."""
    return (slice(begin, min(begin + CHUNK, size)) for begin in range(0, size, CHUNK))


def nearest_cuts(values: np.ndarray, codes: np.ndarray) -> np.ndarray:
    """The smallest float32 that rounds to the upper of each two neighbours.

    `values` float32 [..., n] ascending, `codes` [..., n] their codes -> float32 [..., n-1]. A tie goes to the even
    code; where both or neither are even (a special value between two others), to the value nearer zero.
    """
    below, above = values[..., :-1].astype(np.float64), values[..., 1:].astype(np.float64)
    total = below + above
    part = total - below
    lost = (below - (total - part)) + (above - part)  # what the sum rounded away: Knuth's two-sum
    even, even_above = codes[..., :-1] % 2 == 0, codes[..., 1:] % 2 == 0
    tie_up = np.where(even == even_above, np.abs(above) < np.abs(below), even_above)
    tie_up = np.where(lost == 0, tie_up, lost < 0)
    middle = total / 2
    near = middle.astype(np.float32)
    beyond = np.nextafter(near, np.float32(np.inf))
    return np.where((near > middle) | ((near == middle) & tie_up), near, beyond)


class Bins:
    """The index of float32 values among at most 255 ascending `cuts`.

    The upper 16 bits of a float32 name one of 65536 intervals. Where none holds more than one cut, which is so for all
    tables of this folder, one look-up and one comparison give the index: seven times as fast as a binary search.
    """

    def __init__(self, cuts: np.ndarray) -> None:
        self._cuts = cuts
        first, last = _ends_of_intervals()
        begin = cuts.searchsorted(np.minimum(first, last), side="right")
        end = cuts.searchsorted(np.maximum(first, last), side="right")
        self._sparse = bool((end - begin <= 1).all())
        padded = np.append(cuts, np.float32(np.nan))
        self._begin = begin.astype(np.uint8)
        self._cut = np.where(end > begin, padded[begin], np.float32(np.nan))  # no value is >= NaN

    def index(self, x: np.ndarray) -> np.ndarray:
        """uint8: how many cuts are <= x, for contiguous float32 `x` [n] without NaN."""
        if not self._sparse:
            return self._cuts.searchsorted(x, side="right").astype(np.uint8)
        interval = (x.view(np.uint32) >> 16).astype(np.intp)
        found = self._begin.take(interval, mode="clip")
        found += x >= self._cut.take(interval, mode="clip")
        return found


def _ends_of_intervals() -> tuple[np.ndarray, np.ndarray]:
    """float32 [65536] twice: the values of least and of greatest magnitude with the same upper 16 bits."""
    patterns = np.arange(1 << 16, dtype=np.uint32) << 16
    ends: list[np.ndarray] = [patterns.view(np.float32), (patterns | 0xFFFF).view(np.float32)]
    first, last = (np.where(np.isnan(x), np.copysign(np.float32(np.inf), x), x) for x in ends)
    return first, last


def count_cuts(cuts: np.ndarray, x: np.ndarray, rows: np.ndarray | None = None) -> np.ndarray:
    """How many of a row's ascending cuts are <= each value: cuts [R, m], x [B, n] -> intp [B, n]; a binary search.

    Row b of `x` belongs to row `rows[b]` of `cuts`, or to row b.
    """
    m = cuts.shape[1]
    flat = np.ascontiguousarray(cuts).reshape(-1)
    first = ((np.arange(len(x)) if rows is None else rows) * m)[:, None]
    found = np.zeros(x.shape, np.intp)
    step = (1 << m.bit_length()) >> 1
    full = 2 * step == m + 1  # then no step can lead beyond the row
    while step:
        reach = found + step
        if full:
            found += step * (flat.take(first + (reach - 1), mode="clip") <= x)
        else:
            inside = flat.take(first + np.minimum(reach, m) - 1, mode="clip") <= x
            found += step * (inside & (reach <= m))
        step //= 2
    return found


def stochastic_steps(x: np.ndarray, below: np.ndarray, above: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """True where x goes up to `above` rather than down to `below`, with probability (x - below) / (above - below)."""
    gap = above.astype(np.float64) - below
    chance = (x.astype(np.float64) - below) / np.where(gap > 0, gap, 1.0)
    return rng.random(x.shape) < chance
