"""`ternary`: the codes 0, 1, 2 stand for -1, 0, 1, and code 3 for nothing (ggml's TQ2_0; BitNet b1.58's weights).

A tie goes to the even code as everywhere, which here is away from zero: 0.5 becomes 1, as ggml's rounding has it.
"""

from __future__ import annotations

from ._table import FixedTable

EXAMPLES = ("ternary",)


def parse(name: str) -> FixedTable | None:
    """`ternary`."""
    return FixedTable("ternary", 2, (-1.0, 0.0, 1.0)) if name == "ternary" else None
