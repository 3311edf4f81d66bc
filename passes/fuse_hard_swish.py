"""`x * HardSigmoid(x; 1/6, 1/2) = HardSwish(x)`, also where the division comes last: `x * clip(x + 3, 0, 6) / 6`."""

from __future__ import annotations

from dataclasses import dataclass

from xdsl.ir import Operation, SSAValue

from qcc.ir.dialects.onnx import OnnxOp
from qcc.ir.program import Program
from qcc.ir.rewrite import Rewrite, builder, producer, replace

from .fuse_hard_sigmoid import same_form, shifted_relu6, sixth_of


@dataclass(frozen=True)
class FuseHardSwish(Rewrite):
    """Match the outermost operation and look upward."""

    name = "fuse_hard_swish"
    roots = ("onnx.Mul", "onnx.Div")

    def rewrite(self, op: Operation, program: Program) -> bool | str:
        """Guard: both factors come from the same value, which is floating point and of the rank of the result."""
        assert isinstance(op, OnnxOp)
        x = _gated(op) or _divided(op, program)
        if x is None or not same_form(x, op.results[0]):
            return False
        replace(op, builder(op, program).op("onnx.HardSwish", [x], op.results[0].type, node=op.node))
        return True


def _gated(op: OnnxOp) -> SSAValue | None:
    """`x` where `op` is x * HardSigmoid(x; 1/6, 1/2)."""
    if op.op_type != "Mul":
        return None
    for x, gate in ((op.operands[0], op.operands[1]), (op.operands[1], op.operands[0])):
        sigmoid = producer(gate, "onnx.HardSigmoid")
        if sigmoid is None or sigmoid.operands[0] is not x:
            continue
        alpha, beta = sigmoid.get("alpha"), sigmoid.get("beta")
        if isinstance(alpha, float) and abs(alpha - 1 / 6) < 1e-6 and beta == 0.5:
            return x
    return None


def _divided(op: OnnxOp, program: Program) -> SSAValue | None:
    """`x` where `op` is (x * clip(x + 3, 0, 6)) / 6."""
    product = producer(sixth_of(op, program), "onnx.Mul")
    if product is None:
        return None
    for x, clipped in ((product.operands[0], product.operands[1]), (product.operands[1], product.operands[0])):
        if shifted_relu6(clipped, program) is x:
            return x
    return None
