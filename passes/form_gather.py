"""`GatherND(x, Unsqueeze(i, -1)) = Gather(x, i)`: indices of one number each pick along the first axis.

torch exports `x[:, i]` as a transposition, a `GatherND` and a transposition back.
"""

from __future__ import annotations

from dataclasses import dataclass

from xdsl.ir import Operation, SSAValue

from qcc.ir import types
from qcc.ir.dialects.onnx import OnnxOp
from qcc.ir.program import Program
from qcc.ir.rewrite import Rewrite, array_of, builder, producer, rank_of, replace


@dataclass(frozen=True)
class FormGather(Rewrite):
    """Look at every GatherND."""

    name = "form_gather"
    roots = ("onnx.GatherND",)

    def rewrite(self, op: Operation, program: Program) -> bool | str:
        """Guards: no axes are batched, and the indices are a tensor with an axis of one put behind."""
        assert isinstance(op, OnnxOp)
        indices = _unsqueezed(op.operands[1], program)
        if indices is None:
            return False
        if op.integer("batch_dims"):
            return "its batches pick rows of their own"
        build, result = builder(op, program), op.results[0]
        replace(op, build.op("onnx.Gather", [op.operands[0], indices], result.type, {"axis": 0}, node=op.node))
        return True


def _unsqueezed(value: SSAValue, program: Program) -> SSAValue | None:
    """What became `value` by an axis of one behind its last."""
    made = producer(value, "onnx.Unsqueeze")
    if made is None or rank_of(value) is None or types.dims_of(made.operands[0].type) is None:
        return None
    axes = array_of(made.slot(1), program)
    last = axes is not None and axes.size == 1 and int(axes.reshape(-1)[0]) in (-1, (rank_of(value) or 0) - 1)
    return made.operands[0] if last else None
