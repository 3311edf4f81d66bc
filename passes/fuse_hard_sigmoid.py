"""`clip(x + 3, 0, 6) / 6 = HardSigmoid(x; 1/6, 1/2)`: what exporters write out, as one operator again."""

from __future__ import annotations

from dataclasses import dataclass

from xdsl.ir import Operation, SSAValue

from qcc.ir import types
from qcc.ir.dialects.onnx import OnnxOp
from qcc.ir.program import Program
from qcc.ir.rewrite import Rewrite, builder, producer, rank_of, replace, scalar_of


@dataclass(frozen=True)
class FuseHardSigmoid(Rewrite):
    """Match the division (or multiplication by 1/6) and look upward."""

    name = "fuse_hard_sigmoid"
    roots = ("onnx.Div", "onnx.Mul")

    def rewrite(self, op: Operation, program: Program) -> bool | str:
        """Guards: the constants are 3, 0, 6 and 6, of floating point, and add no axes."""
        assert isinstance(op, OnnxOp)
        clipped = sixth_of(op, program)
        x = shifted_relu6(clipped, program) if clipped is not None else None
        if x is None or not same_form(x, op.results[0]):
            return False
        new = builder(op, program).op(
            "onnx.HardSigmoid", [x], op.results[0].type, {"alpha": 1 / 6, "beta": 0.5}, node=op.node
        )
        replace(op, new)
        return True


def sixth_of(op: OnnxOp, program: Program) -> SSAValue | None:
    """`v` where `op` computes v / 6 or v * (1/6); None otherwise."""
    left, right = op.operands[0], op.operands[1]
    if op.op_type == "Div":
        return left if scalar_of(right, program) == 6 else None
    for value, other in ((left, right), (right, left)):
        factor = scalar_of(other, program)
        if factor is not None and abs(factor - 1 / 6) < 1e-6:
            return value
    return None


def shifted_relu6(value: SSAValue, program: Program) -> SSAValue | None:
    """`x` where `value` is clip(x + 3, 0, 6); None otherwise."""
    clip = producer(value, "onnx.Clip")
    if clip is None or scalar_of(clip.slot(1), program) != 0 or scalar_of(clip.slot(2), program) != 6:
        return None
    add = producer(clip.operands[0], "onnx.Add")
    if add is None:
        return None
    for x, other in ((add.operands[0], add.operands[1]), (add.operands[1], add.operands[0])):
        if scalar_of(other, program) == 3:
            return x
    return None


def same_form(x: SSAValue, result: SSAValue) -> bool:
    """Whether both are floating point and of one rank: a constant of one element may still bring axes of its own."""
    is_float = types.schema_string(x.type) in ("tensor(float)", "tensor(double)", "tensor(float16)")
    return is_float and rank_of(x) == rank_of(result)
