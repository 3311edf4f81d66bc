"""`Attention(q, k, v, mask) = Attention(q, k, v, Expand(mask, [.., length of q, 1]))`: one mask for every query.

ONNX lets the mask broadcast; ONNX Runtime 1.31 wants its axis of queries in full. Padding masks arrive with 1 there.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from xdsl.ir import Operation, SSAValue

from qcc.ir import types
from qcc.ir.builder import I64, Builder
from qcc.ir.dialects.onnx import OnnxOp
from qcc.ir.program import Program
from qcc.ir.rewrite import Rewrite, builder

_MASK = 3


@dataclass(frozen=True)
class ExpandAttentionMask(Rewrite):
    """Look at the mask of every Attention."""

    name = "expand_attention_mask"
    roots = ("onnx.Attention",)

    def rewrite(self, op: Operation, program: Program) -> bool | str:
        """Guards: a mask of known rank with 1 query, and a query operand that is not known to have just 1."""
        assert isinstance(op, OnnxOp)
        mask, q = op.slot(_MASK), op.operands[0]
        dims, q_dims = None if mask is None else types.dims_of(mask.type), types.dims_of(q.type)
        if mask is None or dims is None or q_dims is None or len(dims) < 2 or dims[-2] != 1 or q_dims[-2] == 1:
            return False
        build = builder(op, program)
        queries = _axis_length(q, len(q_dims) - 2, build)
        ones = build.constant(np.ones(len(dims) - 2, np.int64))
        shape_type = types.tensor_type(I64, [len(dims)])
        one = build.constant(np.ones(1, np.int64))
        shape = build.op("onnx.Concat", [ones, queries, one], shape_type, {"axis": 0})
        expanded = types.tensor_type(types.element_type(mask.type), [*dims[:-2], q_dims[-2], dims[-1]])
        op.operands[op.slots.index(mask)] = build.op("onnx.Expand", [mask, shape], expanded)
        return True


def _axis_length(value: SSAValue, axis: int, build: Builder) -> SSAValue:
    """The extent of one axis as a vector of one int64."""
    return build.op("onnx.Shape", [value], types.tensor_type(I64, [1]), {"start": axis, "end": axis + 1})
