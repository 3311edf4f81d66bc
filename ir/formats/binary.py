"""`binary`: the codes 0 and 1 stand for -1 and 1. Zero is a tie, and goes to the even code: -1."""

from __future__ import annotations

from ._table import FixedTable

EXAMPLES = ("binary",)


def parse(name: str) -> FixedTable | None:
    """`binary`."""
    return FixedTable("binary", 1, (-1.0, 1.0)) if name == "binary" else None
