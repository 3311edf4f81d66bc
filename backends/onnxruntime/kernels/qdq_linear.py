"""A linear layer between DequantizeLinear nodes: ONNX Runtime fuses them into an integer product with one scale."""

from __future__ import annotations

from xdsl.ir import SSAValue

from qcc.ir.dialects.q import QuantizedOp
from qcc.ir.kernel_task import Choice, KernelTask
from qcc.ir.layout import Layout

from ..lower import Lowering
from ..speed import Speed

_LAYOUT = Layout.parse("n(n0) k(k0) -> k0 n0")


def offers(task: KernelTask, speed: Speed) -> list[Choice]:
    """One choice for calibrated 8-bit activations and int8 weights by output channel."""
    activation = task.activation_format
    if task.op != "q.linear" or task.dynamic or activation is None or activation.scale.block is not None:
        return []
    if activation.bits != 8 or str(task.weight_format) != "i8, f32 per *":
        return []
    n, k = task.weight
    return [Choice("qdq_linear", _LAYOUT, None, (), speed.int8_matmul * n * k, "integer dot products")]


def lower(op: QuantizedOp, choice: Choice, lowering: Lowering) -> SSAValue:
    """DequantizeLinear on both sides of a MatMul."""
    del choice
    type_, _ = lowering.weight(op)
    n, k = type_.shape
    w = lowering.dequantize_linear(
        op, lowering.part(op, "codes", (k, n), "int8"), lowering.part(op, "scale", (n,)), None, axis=1
    )
    product = lowering.build(op).op(
        "onnx.MatMul", [lowering.dequantized_operand(op), w], op.results[0].type, node=op.node
    )
    return lowering.add_bias(op, product)
