"""`f(x) = f(x)`: what an earlier operation computes already is read from there (common subexpression elimination)."""

from __future__ import annotations

from dataclasses import dataclass

from xdsl.ir import Attribute, SSAValue
from xdsl.rewriter import Rewriter

from qcc.ir.dialects.onnx import OnnxOp
from qcc.ir.program import Program
from qcc.ir.rewrite import Pass, ProgramContext

from .fold_constants import RANDOM

_Key = tuple[str, tuple[SSAValue | None, ...], tuple[tuple[str, Attribute], ...], tuple[Attribute, ...]]


@dataclass(frozen=True)
class MergeDuplicates(Pass):
    """Merge equal operations of the main block; those with subgraphs or chance in them stay."""

    name = "merge_duplicates"

    def run(self, program: Program, ctx: ProgramContext) -> None:
        """From the top down, so that readers of merged values become equal in turn."""
        del ctx
        first: dict[_Key, OnnxOp] = {}
        for op in list(program.body.ops):
            if not isinstance(op, OnnxOp) or op.regions or op.op_type in RANDOM:
                continue
            types_ = tuple(r.type for r in op.results)
            key = (op.name, tuple(op.slots), tuple(sorted(op.parameters.items())), types_)
            same = first.setdefault(key, op)
            if same is op:
                continue
            for old, kept in zip(op.results, same.results, strict=True):
                hint = kept.name_hint
                old.replace_all_uses_with(kept)
                kept.name_hint = hint
            Rewriter.erase_op(op)
