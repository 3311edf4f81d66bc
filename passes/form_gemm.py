"""`MatMul(x, W) + b = Gemm(x, W, b)` for a matrix x, a constant W and a constant b of one number an output feature.

Fixed-point flows add the bias to the sum before they round it: as one node it also has one range in calibration.
"""

from __future__ import annotations

from dataclasses import dataclass

from xdsl.ir import Operation
from xdsl.rewriter import InsertPoint, Rewriter

from qcc.ir import types
from qcc.ir.dialects.onnx import OnnxOp, operator
from qcc.ir.program import Program
from qcc.ir.rewrite import Rewrite, array_of, has_one_use, producer, rank_of, replace

from .selection import constant_weight


@dataclass(frozen=True)
class FormGemm(Rewrite):
    """Match the addition; the product may stand on either side. The node keeps the name of the product."""

    name = "form_gemm"
    roots = ("onnx.Add",)

    def rewrite(self, op: Operation, program: Program) -> bool | str:
        """Guards: the sum alone reads the product, of a matrix with a constant matrix; the constant has shape [N]."""
        assert isinstance(op, OnnxOp)
        for left, right in ((op.operands[0], op.operands[1]), (op.operands[1], op.operands[0])):
            product, bias = producer(left, "onnx.MatMul"), array_of(right, program)
            if product is None or bias is None or not has_one_use(left) or product.parent is not op.parent:
                continue
            weight = array_of(product.operands[1], program)
            if weight is None or weight.ndim != 2 or not constant_weight(product.operands[1], program):
                continue
            if rank_of(product.operands[0]) != 2:
                return f"the operand has rank {rank_of(product.operands[0])}, not 2"
            if bias.shape != weight.shape[1:] or types.dims_of(left.type) != types.dims_of(op.results[0].type):
                return f"the constant has shape {list(bias.shape)}, not one number an output feature"
            gemm = operator("onnx", "Gemm")(
                [product.operands[0], product.operands[1], right], [op.results[0].type], node=product.node
            )
            Rewriter.insert_op(gemm, InsertPoint.before(op))
            replace(op, gemm.results[0])
            return True
        return False
