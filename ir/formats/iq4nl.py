"""`iq4nl`, the 4-bit table of ggml's IQ4_NL and IQ4_XS (`kvalues_iq4nl`): whole numbers, denser around zero."""

from __future__ import annotations

from ._table import FixedTable

EXAMPLES = ("iq4nl",)

_IQ4NL = (-127.0, -104.0, -83.0, -65.0, -49.0, -35.0, -22.0, -10.0, 1.0, 13.0, 25.0, 38.0, 53.0, 69.0, 89.0, 113.0)


def parse(name: str) -> FixedTable | None:
    """`iq4nl`."""
    return FixedTable("iq4nl", 4, _IQ4NL) if name == "iq4nl" else None
