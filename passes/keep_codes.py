"""`MatMul(x, DequantizeLinear(codes)) = q.linear(x, codes)`, and `MatMulNBits` likewise: a file's codes stay its codes.

    MatMul(x, DequantizeLinear(c, s, z))              c a constant matrix [K, N]
    MatMul(x, Transpose(DequantizeLinear(c, s, z)))   c [N, K]; Gemm likewise
    MatMulNBits(x, B, scales, zero_points, bias)

No weight is quantized here, so every scheme keeps these codes, `float` too. Quantized activations stay as they are.
"""

from __future__ import annotations

from dataclasses import dataclass

from xdsl.ir import Operation, SSAValue
from xdsl.rewriter import InsertPoint, Rewriter

from qcc.ir import types
from qcc.ir.builder import F32
from qcc.ir.codecs import matmul_nbits, qdq
from qcc.ir.dialects.onnx import OnnxOp
from qcc.ir.dialects.q import Linear
from qcc.ir.errors import NotSupported
from qcc.ir.program import Program, StoredCodes
from qcc.ir.quantized import Quantized
from qcc.ir.rewrite import Rewrite, array_of, producer, rank_of, replace, weight_name

from .quantize_linear import kept_weight


@dataclass(frozen=True)
class KeepCodes(Rewrite):
    """Read constant codes that a model was quantized to."""

    name = "keep_codes"
    roots = ("onnx.MatMul", "onnx.Gemm", "msft.MatMulNBits")

    def rewrite(self, op: Operation, program: Program) -> bool | str:
        """Guards: float32, codes and scales constant, a matrix as the second operand."""
        assert isinstance(op, OnnxOp)
        if op.name != "msft.MatMulNBits" and _dequantized(op.operands[1]) is None:
            return False
        reason = _obstacle(op)
        if reason:
            return reason
        try:
            found = _of_matmul_nbits(op, program) if op.name == "msft.MatMulNBits" else _of_dequantize(op, program)
        except NotSupported as error:
            return error.message
        if isinstance(found, str):
            return found
        value, source, bias = found
        stored = StoredCodes(value, "MatMulNBits" if op.name == "msft.MatMulNBits" else "DequantizeLinear")
        weight = kept_weight(op, weight_name(source, op.node), stored, program)
        linear = Linear([op.operands[0], weight, bias], [op.results[0].type], node=op.node)
        Rewriter.insert_op(linear, InsertPoint.before(op))
        replace(op, linear.results[0])
        program.decide(op.node, "quantized", f"kept as {value.format}, the {stored.source} of its file")
        return True


_Found = tuple[Quantized, SSAValue, SSAValue | None]
"""The weight [N, K], what its name is taken from, and the bias [N]."""


def _obstacle(op: OnnxOp) -> str:
    if any(types.element_type(v.type) != F32 for v in (op.operands[0], op.results[0])):
        return "it does not compute in float32"
    if (rank_of(op.operands[0]) or 2) < 2:
        return "the activation is a vector"
    if op.name == "onnx.Gemm" and (op.integer("transA") or op.get("alpha", 1.0) != 1.0 or op.get("beta", 1.0) != 1.0):
        return "its first operand is transposed, or its product scaled"
    return ""


def _dequantized(value: SSAValue) -> tuple[OnnxOp, bool] | None:
    """The DequantizeLinear behind the second operand, and whether a transposition lies between."""
    turned = producer(value, "onnx.Transpose")
    is_turned = turned is not None and turned.integers("perm", [1, 0]) == [1, 0]
    found = producer(turned.operands[0] if turned is not None and is_turned else value, "onnx.DequantizeLinear")
    return None if found is None else (found, is_turned)


def _of_dequantize(op: OnnxOp, program: Program) -> _Found | str:
    found = _dequantized(op.operands[1])
    assert found is not None
    node, turned = found
    codes, scale, zero = (array_of(slot, program) for slot in [*node.slots, None][:3])
    if codes is None:
        return "the second operand is computed"
    if scale is None or (node.slot(2) is not None and zero is None):
        return "its scales are computed"
    where = f"node {node.node!r}"
    value = qdq.decode(codes, scale, zero, node.integer("axis", 1), node.integer("block_size"), where)
    is_rows = turned != bool(op.name == "onnx.Gemm" and op.integer("transB"))
    return value if is_rows else qdq.transposed(value), node.operands[0], op.slot(2)


def _of_matmul_nbits(op: OnnxOp, program: Program) -> _Found | str:
    slots = [*op.slots, *[None] * 6][:6]
    b, scales, zeros = (array_of(slot, program) for slot in slots[1:4])
    if b is None or scales is None or (slots[3] is not None and zeros is None):
        return "its codes or scales are computed"
    if slots[4] is not None:
        return "it has the column order g_idx, which was deprecated"
    if op.integer("weight_prepacked"):
        return "its codes lie in an order of a GPU kernel"
    s = matmul_nbits.Settings(op.integer("N"), op.integer("K"), op.integer("bits", 4), op.integer("block_size"))
    assert slots[1] is not None
    return matmul_nbits.decode(b, scales, zeros, s, f"node {op.node!r}"), slots[1], slots[5]
