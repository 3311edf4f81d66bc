"""What scales, zero points and additive terms are held as: one dtype a level, and the rounding of values to it."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cache
from typing import Literal

import ml_dtypes
import numpy as np

from .errors import BadInput, NotSupported
from .formats import integer, load_element

_FLOATS: dict[str, np.dtype[np.generic]] = {
    "f32": np.dtype(np.float32),
    "f16": np.dtype(np.float16),
    "bf16": np.dtype(ml_dtypes.bfloat16),
    "e8m0": np.dtype(ml_dtypes.float8_e8m0fnu),
    "e4m3": np.dtype(ml_dtypes.float8_e4m3fn),
    "e5m2": np.dtype(ml_dtypes.float8_e5m2),
}
_HIGHS = {
    "f32": (2 - 2.0**-23) * 2.0**127,
    "f16": 65504.0,
    "bf16": (2 - 2.0**-7) * 2.0**127,
    "e8m0": 2.0**127,
    "e4m3": 448.0,
    "e5m2": 57344.0,
}
_HINT = f"one of {', '.join(_FLOATS)}, i1..i8 and u1..u8"


@dataclass(frozen=True)
class LevelDtype:
    """The dtype of one level. `e8m0` is a power of two from 2^-127 to 2^127 (OCP Microscaling Formats 1.0, 5.4.1)."""

    name: str

    @property
    def is_integer(self) -> bool:
        """Whether it holds whole numbers only."""
        return self.name not in _FLOATS

    @property
    def numpy(self) -> np.dtype[np.generic]:
        """The dtype of an array of its values: int8 or uint8 where it is an integer."""
        if self.name in _FLOATS:
            return _FLOATS[self.name]
        return np.dtype(np.int8 if self.name[0] == "i" else np.uint8)

    @property
    def bits(self) -> int:
        """Bits of one value where it is stored."""
        return int(self.name[1:]) if self.is_integer else 8 * self.numpy.itemsize

    @property
    def low(self) -> float:
        """The smallest value; of `e8m0` 2^-127."""
        if element := integer.parse(self.name):
            return element.low
        return 2.0**-127 if self.name == "e8m0" else -self.high

    @property
    def high(self) -> float:
        """The largest finite value."""
        if element := integer.parse(self.name):
            return element.high
        return _HIGHS[self.name]

    def round(self, values: np.ndarray, mode: Literal["nearest", "floor", "ceil"] = "nearest") -> np.ndarray:
        """`values` (float32, any shape) as this dtype: the nearest, ties to even; what lies beyond its ends, the end.

        `e8m0` takes the nearest power of two, of a tie the larger, as ml_dtypes does; with `floor` the largest that is
        not above the value (OCP Microscaling Formats 1.0, 6.3), with `ceil` the smallest not below. Zero and denormals
        become 2^-127. `BadInput`: NaN, infinities, a negative value for `e8m0`, another dtype with `floor` or `ceil`.
        """
        x = np.asarray(values, np.float32)
        if not np.isfinite(x).all():
            raise BadInput(f"a level of {self.name} cannot hold NaN or infinite values", hint="mend the data")
        if self.name == "e8m0":
            return _powers_of_two(x, mode)
        if mode != "nearest":
            raise BadInput(f"only e8m0 is rounded by {mode}, and this level is {self.name}")
        if self.is_integer:
            x = np.rint(x)
        return np.clip(x, np.float32(self.low), np.float32(self.high)).astype(self.numpy)


@cache
def level_dtype(name: str) -> LevelDtype:
    """The level dtype called `name`: f32 f16 bf16 e8m0 e4m3 e5m2 i1..i8 u1..u8.

    `NotSupported` where it is another element, `BadInput` where it is nothing.
    """
    element = integer.parse(name)
    if name in _FLOATS or (element is not None and not element.fraction):
        return LevelDtype(name)
    try:
        load_element(name)
    except BadInput as error:
        raise BadInput(f"no dtype of scales is called {name!r}", hint=_HINT) from error
    raise NotSupported(f"scales cannot be held as {name!r}", hint=_HINT)


def _powers_of_two(x: np.ndarray, mode: Literal["nearest", "floor", "ceil"]) -> np.ndarray:
    if (x < 0).any():
        raise BadInput("a level of e8m0 cannot hold negative values", hint="it has no sign")
    mantissa, exponent = np.frexp(x)  # x = mantissa * 2^exponent, 1/2 <= mantissa < 1
    limit = {"nearest": 0.75, "floor": 1.0, "ceil": np.nextafter(np.float32(0.5), np.float32(1))}[mode]
    codes = exponent.astype(np.int32) + 126 + (mantissa >= limit)
    return np.where(x > 0, np.clip(codes, 0, 254), 0).astype(np.uint8).view(_FLOATS["e8m0"])
