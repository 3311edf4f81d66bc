"""The values of an element as whole numbers: `value = step * (sum_p 256^(P-1-p) * byte_p(code) - offset * 256^(P-1))`.

Every kernel is then a sum of products of bytes. Integers, ternary and binary codes are their own byte; a table of up
to 256 entries gives the bytes of the others: e2m1 in halves, IQ4_NL as it is, e4m3 in units of 2^-9 (three bytes), FP4
in units of 1/192, of which its table holds what float32 can.
Where no common unit exists (NF4), or 24 bits do not hold it (e5m2), values are rounded to 16 or 24 bits: the error is
at most `rounding` of the largest value.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cache

import numpy as np

from qcc.ir.errors import NotSupported
from qcc.ir.formats import load_element


@dataclass(frozen=True)
class Lattice:
    """How the codes of an element become bytes. `tables` holds P tables of 2^bits bytes, or none for P = 1."""

    bits: int
    flip: int
    """Bits of a code that are flipped when it is packed: the sign of two's complement."""
    tables: tuple[bytes, ...]
    multiplier: int
    """Without tables: byte = multiplier * packed code."""
    offset: int
    """What the first byte is above its value, 0 to 128."""
    step: float
    rounding: float
    """The largest error of a value over the largest value; 0 where the bytes are exact."""

    @property
    def parts(self) -> int:
        """P, the bytes of a value, the most significant first."""
        return max(1, len(self.tables))

    @property
    def high(self) -> int:
        """The largest byte."""
        return max(map(max, self.tables)) if self.tables else self.multiplier * ((1 << self.bits) - 1)

    def integers(self, codes: np.ndarray) -> np.ndarray:
        """int64: the values of `codes` (int8 or uint8, unpacked) in units of `step`; what kernels sum exactly."""
        packed = codes.astype(np.int64) & ((1 << self.bits) - 1) ^ self.flip
        if not self.tables:
            return packed * self.multiplier - self.offset
        found = np.zeros(codes.shape, np.int64)
        for table in self.tables:
            found = 256 * found + np.frombuffer(table, np.uint8).astype(np.int64)[packed]
        return found - self.offset * 256 ** (self.parts - 1)


@cache
def lattice_of(element: str) -> Lattice:
    """The lattice of an element; `NotSupported` for trained codebooks, whose values lie beside the codes."""
    family = load_element(element)
    if family.trained:
        raise NotSupported(f"generated kernels need values that are known beforehand; those of {element} are trained")
    values = family.table.astype(np.float64)
    flip = 1 << (family.bits - 1) if family.signed else 0
    packed = values[np.arange(values.size) ^ flip]
    return _affine(family.bits, flip, packed) or _tabled(family.bits, flip, packed)


def _affine(bits: int, flip: int, values: np.ndarray) -> Lattice | None:
    """Values that grow by one step a code: `step * (multiplier * code - offset)`."""
    known = np.flatnonzero(np.isfinite(values))
    first, last = int(known[0]), int(known[-1])
    gap = (values[last] - values[first]) / (last - first)
    zero = first - values[first] / gap
    if gap <= 0 or not np.allclose(values[known], (known - zero) * gap, rtol=0, atol=1e-9 * abs(gap)):
        return None
    multiplier = 1 if float(zero).is_integer() else 2
    offset = zero * multiplier
    if not (float(offset).is_integer() and 0 <= offset <= 128):
        return None
    return Lattice(bits, flip, (), multiplier, int(offset), float(gap / multiplier), 0.0)


def _tabled(bits: int, flip: int, values: np.ndarray) -> Lattice:
    """Values from a table: in their common unit where they have one, else rounded to 16 or 24 bits."""
    values = np.where(np.isfinite(values), values, 0.0)
    sizes = np.abs(values[values != 0])
    high, unit = float(sizes.max()), _common_unit(sizes)
    room = [127, 127 * 256, 127 * 65536]
    if unit is None or high / unit > room[2]:
        span = room[1] if sizes.max() / sizes.min() < 1 << 12 else room[2]
        unit = high / span
    units = np.rint(values / unit).astype(np.int64)
    largest = int(np.abs(units).max())
    parts = next(p for p, most in enumerate(room, 1) if largest <= most)
    offset = -(-largest // 256 ** (parts - 1))
    raised = units + offset * 256 ** (parts - 1)
    tables = tuple(bytes((raised >> (8 * (parts - 1 - p)) & 255).astype(np.uint8)) for p in range(parts))
    error = float(np.abs(units * unit - values).max() / high)
    return Lattice(bits, flip, tables, 1, offset, unit, error)


def _common_unit(sizes: np.ndarray) -> float | None:
    """The smallest value, where all others are whole multiples of it as far as float32 tells."""
    unit = float(sizes.min())
    ratio = sizes / unit
    return unit if np.all(np.abs(ratio - np.rint(ratio)) <= 2e-6 * ratio) else None
