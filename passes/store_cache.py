"""`q.attention` rounds new keys and values to what a cache keeps: float16, or 8 bits with a scale for each entry."""

from __future__ import annotations

from dataclasses import dataclass

from xdsl.ir import Operation

from qcc.ir import attributes as attr
from qcc.ir.dialects.q_attention import CACHES, Attention
from qcc.ir.errors import BadInput
from qcc.ir.program import Program
from qcc.ir.rewrite import Rewrite


@dataclass(frozen=True)
class StoreCache(Rewrite):
    """Mark every attention that does not say yet what its cache keeps."""

    name = "store_cache"
    roots = ("q.attention",)

    form: str = "f16"
    """One of `CACHES`."""

    def __post_init__(self) -> None:
        if self.form not in CACHES:
            raise BadInput(f"a cache of {self.form!r}", hint=f"one of: {', '.join(CACHES)}")

    def rewrite(self, op: Operation, program: Program) -> bool | str:
        """Guard: it does not say so already."""
        assert isinstance(op, Attention)
        if op.cache:
            return False
        op.properties["cache"] = attr.from_python(self.form)
        program.decide(op.node, "cache", f"entries are kept in {self.form}")
        return True
