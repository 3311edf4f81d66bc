"""Integers of 1 to 8 bits and fixed point of them, two's complement or unsigned: `decode(code) = code / 2^fraction`."""

from __future__ import annotations

import re
from dataclasses import dataclass

import numpy as np

from ._rounding import CHUNK, chunks, refuse_nan

EXAMPLES = ("i8", "u8", "i4", "u4", "i2", "u2", "i8q6")


@dataclass(frozen=True)
class Integer:
    """An integer element. `i1` holds -1 and 0, as two's complement does.

    `fraction` bits lie behind the point: `i8q6` is the INT8 element of MXINT8 (OCP Microscaling Formats 1.0), from -2
    to 2 - 2^-6. The specification lets -2 go unused; here it is a value like the others.
    """

    bits: int
    signed: bool
    fraction: int = 0
    trained = False

    def __str__(self) -> str:
        return f"{'i' if self.signed else 'u'}{self.bits}" + (f"q{self.fraction}" if self.fraction else "")

    @property
    def low(self) -> float:
        """-2^(bits-1) / 2^fraction, or 0 where unsigned."""
        return self._limits[0] * self._step

    @property
    def high(self) -> float:
        """(2^(bits-1) - 1) / 2^fraction, or 2^bits - 1 of them where unsigned."""
        return self._limits[1] * self._step

    @property
    def half_gap(self) -> float:
        """Half a step."""
        return self._step / 2

    @property
    def table(self) -> np.ndarray:
        """float32[2**bits]: the value of each code read as an unsigned bit pattern."""
        codes = np.arange(1 << self.bits)
        signs = np.where(codes > self._limits[1], 1 << self.bits, 0)
        return ((codes - signs) * self._step).astype(np.float32)

    @property
    def _limits(self) -> tuple[int, int]:
        half = 1 << (self.bits - 1)
        return (-half, half - 1) if self.signed else (0, 2 * half - 1)

    @property
    def _step(self) -> float:
        return 2.0**-self.fraction

    def encode(self, values: np.ndarray, rng: np.random.Generator | None = None) -> np.ndarray:
        """Round half to even, then clip; see `ElementFamily.encode`. all but float64 is taken as float32."""
        x = np.asarray(values)
        x = x if x.dtype == np.float64 else x.astype(np.float32, copy=False)
        out = np.empty(x.shape, np.int8 if self.signed else np.uint8)
        flat, codes = x.reshape(-1), out.reshape(-1)
        room = np.empty(min(CHUNK, flat.size), x.dtype)
        for part in chunks(flat.size):
            units = flat[part]
            nearest = room[: units.size]
            if self.fraction:
                with np.errstate(over="ignore"):
                    units = np.multiply(units, 2.0**self.fraction, out=nearest)
            if rng is None:
                np.rint(units, out=nearest)
            else:
                np.clip(units, *self._limits, out=nearest)  # first: the distance to an infinity has no meaning
                below = np.floor(nearest)
                np.add(below, rng.random(units.size) < nearest - below, out=nearest)
            refuse_nan(nearest, self, part.start)
            np.clip(nearest, *self._limits, out=nearest)
            codes[part] = nearest
        return out

    def decode(self, codes: np.ndarray) -> np.ndarray:
        """The float32 values of `codes`."""
        values = codes.astype(np.float32)
        return np.multiply(values, np.float32(self._step), out=values) if self.fraction else values


def parse(name: str) -> Integer | None:
    """`i1`..`i8` and `u1`..`u8`; with `qF`, F = 1..64, the last F bits lie behind the point."""
    match = re.fullmatch(r"([iu])([1-8])(?:q([1-9]|[1-5]\d|6[0-4]))?", name)
    return Integer(int(match[2]), match[1] == "i", int(match[3] or 0)) if match else None
