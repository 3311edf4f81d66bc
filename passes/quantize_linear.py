"""`MatMul(x, W) = q.linear(x, quantize(W^T))`, and `Gemm` likewise: the weight becomes codes [N, K]."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from xdsl.dialects import builtin
from xdsl.dialects.builtin import TensorType
from xdsl.ir import Operation, SSAValue
from xdsl.rewriter import InsertPoint, Rewriter

from qcc.ir.dialects.onnx import OnnxOp
from qcc.ir.dialects.q import Linear, Weight, part
from qcc.ir.format import Format
from qcc.ir.program import Program
from qcc.ir.rewrite import Rewrite, array_of, builder, rank_of, replace, weight_name
from qcc.ir.types import QuantizedType

from . import algorithms, schemes
from .calibrate import key_of
from .selection import Selection, constant_weight


@dataclass(frozen=True)
class QuantizeLinear(Rewrite):
    """Quantize the constant weights of MatMul and Gemm as a scheme says."""

    name = "quantize_linear"
    roots = ("onnx.MatMul", "onnx.Gemm")

    scheme: str = "W4A16"
    group_size: int = 0
    algorithm: str = "rtn"
    ignore: tuple[str, ...] = ()
    include: tuple[str, ...] = ()

    def rewrite(self, op: Operation, program: Program) -> bool | str:
        """Guards: a float weight of rank 2, plain transposition, not left out."""
        assert isinstance(op, OnnxOp)
        scheme = schemes.load(self.scheme)
        if not scheme.weight:
            return False
        reason = _obstacle(op, program) or Selection(self.ignore, self.include).skip_reason(
            op, op.operands[1], scheme.bits, program
        )
        if reason:
            program.decide(op.node, "skipped", reason)
            return False
        weight, bias = _weight_and_bias(op, program)
        fmt = scheme.linear_format(self.group_size)
        hessian = program.hessians.get(key_of(op.operands[0])) if program.hessians else None
        key = weight_name(op.operands[1], op.node)
        w = quantized_weight(op, key, weight, fmt, self.algorithm, program, hessian)
        linear = Linear([op.operands[0], w, bias], [op.results[0].type], node=op.node)
        Rewriter.insert_op(linear, InsertPoint.before(op))
        replace(op, linear.results[0])
        program.decide(op.node, "quantized", f"weight [{weight.shape[0]}, {weight.shape[1]}] as {fmt}")
        return True


def _obstacle(op: OnnxOp, program: Program) -> str:
    if not constant_weight(op.slot(1), program):
        left = constant_weight(op.slot(0), program)
        return "the constant is the left operand" if left else "both operands are computed"
    if rank_of(op.operands[1]) != 2:
        return f"the weight has rank {rank_of(op.operands[1])}, not 2"
    if (rank_of(op.operands[0]) or 2) < 2:
        return "the activation is a vector"
    if op.op_type == "Gemm" and op.integer("transA"):
        return "its first operand is transposed"
    return ""


def _weight_and_bias(op: OnnxOp, program: Program) -> tuple[np.ndarray, SSAValue | None]:
    """The weight as [N, K] with alpha in it, and the bias [N] with beta in it, where it can stand inside."""
    weight = array_of(op.operands[1], program)
    assert weight is not None
    if op.op_type == "MatMul":
        return np.ascontiguousarray(weight.T), None
    weight = weight if op.integer("transB") else weight.T
    alpha, beta, c = op.get("alpha", 1.0), op.get("beta", 1.0), op.slot(2)
    assert isinstance(alpha, float) and isinstance(beta, float)
    weight = np.ascontiguousarray(weight * np.float32(alpha) if alpha != 1.0 else weight)
    if c is None or beta == 1.0:
        return weight, c
    build = builder(op, program)
    return weight, build.binary("Mul", c, build.constant(np.array(beta, np.float32)))


def quantized_weight(
    op: Operation,
    key: str,
    weight: np.ndarray,
    fmt: Format,
    algorithm: str,
    program: Program,
    hessian: np.ndarray | None = None,
) -> SSAValue:
    """Fit `weight` in `fmt`, put its parts into the store, and give the `q.weight` before `op`. Equal ones share it.

    One stored tensor may serve as several weights (transposed, scaled), so the codes decide, not the name.
    """
    type_ = QuantizedType.of(TensorType(builtin.f32, weight.shape), fmt)
    fitted = algorithms.load(algorithm)(weight, fmt, hessian)
    for other in program.weight_ops():
        if (
            other.result.type == type_
            and other.weight.rstrip("'") == f"{key}.q"
            and other.parent is op.parent
            and np.array_equal(program.weights[part(other.weight, "codes")], fitted.codes)
            and np.array_equal(program.weights[part(other.weight, "scale")], fitted.scale)
        ):
            if not other.is_before_in_block(op):
                other.detach()
                Rewriter.insert_op(other, InsertPoint.before(op))
            return other.result
    unique = f"{key}.q"
    while part(unique, "codes") in program.weights:
        unique += "'"
    program.weights[part(unique, "codes")] = fitted.codes
    program.weights[part(unique, "scale")] = fitted.scale
    if fitted.zero is not None:
        program.weights[part(unique, "zero")] = fitted.zero
    new = Weight(unique, type_)
    Rewriter.insert_op(new, InsertPoint.before(op))
    return new.result
