"""`q.linear(x, w) + b = q.linear(x, w, b)` for a constant b of one number an output feature."""

from __future__ import annotations

from dataclasses import dataclass

from xdsl.ir import Operation
from xdsl.rewriter import InsertPoint, Rewriter

from qcc.ir import types
from qcc.ir.dialects.onnx import OnnxOp
from qcc.ir.dialects.q import Linear
from qcc.ir.program import Program
from qcc.ir.rewrite import Rewrite, array_of, has_one_use, replace


@dataclass(frozen=True)
class FuseBias(Rewrite):
    """Match the addition; the linear may stand on either side."""

    name = "fuse_bias"
    roots = ("onnx.Add",)

    def rewrite(self, op: Operation, program: Program) -> bool | str:
        """Guards: the sum alone reads the product, in the same block; no bias yet; the constant has shape [N]."""
        assert isinstance(op, OnnxOp)
        for product, bias in ((op.operands[0], op.operands[1]), (op.operands[1], op.operands[0])):
            linear = product.owner
            if not isinstance(linear, Linear) or linear.slot(2) is not None or not has_one_use(product):
                continue
            array = array_of(bias, program)
            if array is None or linear.parent is not op.parent:
                continue
            if array.shape != linear.weight_type().shape[:1]:
                return f"the constant has shape {list(array.shape)}, not one number an output feature"
            if types.dims_of(product.type) != types.dims_of(op.results[0].type):
                return "the sum has another shape than the product"
            constant = bias.owner
            assert isinstance(constant, Operation)
            if constant.parent is op.parent and not constant.is_before_in_block(linear):
                constant.detach()
                Rewriter.insert_op(constant, InsertPoint.before(linear))
            new = Linear(
                [linear.operands[0], linear.operands[1], bias],
                [op.results[0].type],
                dict(linear.parameters),
                node=linear.node,
            )
            Rewriter.insert_op(new, InsertPoint.before(linear))
            replace(op, new.results[0])
            return True
        return False
