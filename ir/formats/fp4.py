"""`fp4`, the 4-bit float of bitsandbytes (`get_4bit_type("fp4")`): a sign and eight magnitudes, the largest 1."""

from __future__ import annotations

from ._table import FixedTable

EXAMPLES = ("fp4",)

_TWELFTHS = (0.0, 0.0625, 8.0, 12.0, 4.0, 6.0, 2.0, 3.0)  # by code: the order is not that of the values
_FP4 = tuple(v / 12 for v in _TWELFTHS) + tuple(-v / 12 for v in _TWELFTHS)


def parse(name: str) -> FixedTable | None:
    """`fp4`. Two bits of exponent, one of mantissa, but not `e2m1`: the values differ."""
    return FixedTable("fp4", 4, _FP4) if name == "fp4" else None
