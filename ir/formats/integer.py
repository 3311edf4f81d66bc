"""Two's complement and unsigned integers of 1 to 8 bits: `decode(code) = code`."""

from __future__ import annotations

import re
from dataclasses import dataclass

import numpy as np

EXAMPLES = ("i8", "u8", "i4", "u4", "i2", "u2")


@dataclass(frozen=True)
class Integer:
    """An integer element. `i1` holds -1 and 0, as two's complement does."""

    bits: int
    signed: bool

    @property
    def low(self) -> float:
        """-2^(bits-1), or 0 where unsigned."""
        return float(-(1 << (self.bits - 1))) if self.signed else 0.0

    @property
    def high(self) -> float:
        """2^(bits-1) - 1, or 2^bits - 1 where unsigned."""
        return float((1 << (self.bits - 1)) - 1) if self.signed else float((1 << self.bits) - 1)

    def encode(self, values: np.ndarray) -> np.ndarray:
        """Round half to even, then clip to [low, high]."""
        return np.clip(np.rint(values), self.low, self.high).astype(np.int8 if self.signed else np.uint8)

    def decode(self, codes: np.ndarray) -> np.ndarray:
        """Codes as float32."""
        return codes.astype(np.float32)


def parse(name: str) -> Integer | None:
    """`i1`..`i8` and `u1`..`u8`."""
    match = re.fullmatch(r"([iu])([1-8])", name)
    return Integer(int(match[2]), match[1] == "i") if match else None
