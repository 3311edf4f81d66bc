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
from qcc.ir.program import Program, StoredCodes
from qcc.ir.quantized import Quantized
from qcc.ir.rewrite import Rewrite, array_of, builder, producer, rank_of, replace, weight_name
from qcc.ir.types import QuantizedType

from . import algorithms, schemes
from .calibrate import key_of
from .fixed_point_form import obstacle
from .selection import Selection, constant_weight, shares_table


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
        source = _source(op)
        key = weight_name(source, op.node)
        reason = _obstacle(op, program)
        stored = None if reason or scheme.is_fixed_point or self._ignores(op, source) else program.stored.get(key)
        reason = reason or self._skip_reason(op, source, scheme, program)
        if reason and stored is None:
            program.decide(op.node, "skipped", reason)
            return False
        weight, bias = _weight_and_bias(op, program)
        if stored is not None and (reason or stored.format.bits <= scheme.bits) and stored.decodes_to(weight):
            w = kept_weight(op, key, stored, program)
            done = f"weight {list(weight.shape)} kept as {stored.format}, the {stored.source} of its file"
        elif reason:
            program.decide(op.node, "skipped", reason)
            return False
        else:
            fmt = scheme.linear_format(self.group_size)
            hessian = program.hessians.get(key_of(op.operands[0])) if program.hessians else None
            w = quantized_weight(op, key, weight, fmt, self.algorithm, program, hessian)
            done = f"weight {list(weight.shape)} as {fmt}"
        linear = Linear([op.operands[0], w, bias], [op.results[0].type], node=op.node)
        Rewriter.insert_op(linear, InsertPoint.before(op))
        replace(op, linear.results[0])
        program.decide(op.node, "quantized", done)
        return True

    def _ignores(self, op: OnnxOp, source: SSAValue) -> bool:
        return bool(Selection(self.ignore, self.include).ignores(op, source))

    def _skip_reason(self, op: OnnxOp, source: SSAValue, scheme: schemes.Scheme, program: Program) -> str:
        """Why a layer that could be quantized is left alone; the codes that its file holds are kept all the same."""
        selection = Selection(self.ignore, self.include)
        reason = selection.skip_reason(op, source, scheme.bits, program)
        if not reason and shares_table(source) and not selection.includes(op, source):
            reason = "output head that shares its table with the embedding (include it by name to quantize it)"
        return reason or (obstacle(op, program) if scheme.is_fixed_point else "")


def _source(op: OnnxOp) -> SSAValue:
    """The weight behind the second operand: itself, or what a transposition of a shared table reads."""
    value = op.operands[1]
    turned = producer(value, "onnx.Transpose") if op.op_type == "MatMul" else None
    return turned.operands[0] if turned is not None and turned.integers("perm") == [1, 0] else value


def _obstacle(op: OnnxOp, program: Program) -> str:
    if not constant_weight(_source(op), program):
        left = constant_weight(op.slot(0), program)
        return "the constant is the left operand" if left else "both operands are computed"
    if rank_of(_source(op)) != 2:
        return f"the weight has rank {rank_of(_source(op))}, not 2"
    if (rank_of(op.operands[0]) or 2) < 2:
        return "the activation is a vector"
    if op.op_type == "Gemm" and op.integer("transA"):
        return "its first operand is transposed"
    return ""


def _weight_and_bias(op: OnnxOp, program: Program) -> tuple[np.ndarray, SSAValue | None]:
    """The weight as [N, K] with alpha in it, and the bias [N] with beta in it, where it can stand inside."""
    source = _source(op)
    weight = array_of(source, program)
    assert weight is not None
    if source is not op.operands[1]:
        return weight, None
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


def kept_weight(op: Operation, key: str, stored: StoredCodes, program: Program) -> SSAValue:
    """The `q.weight` of stored codes before `op`."""
    return _shared_weight(op, key, stored.value, program)


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
    return _shared_weight(op, key, algorithms.load(algorithm)(weight, fmt, hessian), program)


def _shared_weight(op: Operation, key: str, fitted: Quantized, program: Program) -> SSAValue:
    type_ = QuantizedType.of(TensorType(builtin.f32, fitted.shape), fitted.format)
    for other in program.weight_ops():
        if (
            other.result.type == type_
            and other.weight.rstrip("'") == f"{key}.q"
            and other.parent is op.parent
            and all(np.array_equal(program.weights[part(other.weight, p)], a) for p, a in fitted.parts.items())
        ):
            if not other.is_before_in_block(op):
                other.detach()
                Rewriter.insert_op(other, InsertPoint.before(op))
            return other.result
    unique = f"{key}.q"
    while part(unique, "codes") in program.weights:
        unique += "'"
    for name, array in fitted.parts.items():
        program.weights[part(unique, name)] = array
    new = Weight(unique, type_)
    Rewriter.insert_op(new, InsertPoint.before(op))
    return new.result
