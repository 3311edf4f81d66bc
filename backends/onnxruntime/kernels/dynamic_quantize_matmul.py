"""`com.microsoft.DynamicQuantizeMatMul`: int8 weights by output channel, activations made u8 by tensor at run time."""

from __future__ import annotations

from xdsl.ir import SSAValue

from qcc.ir import types
from qcc.ir.dialects.q import QuantizedOp
from qcc.ir.kernel_task import Choice, KernelTask
from qcc.ir.layout import Layout

from ..lower import Lowering
from ..speed import Speed

_LAYOUT = Layout.parse("n(n0) k(k0) -> k0 n0")


def offers(task: KernelTask, speed: Speed) -> list[Choice]:
    """One choice where both formats are exactly what the kernel computes."""
    fmt, activation = task.weight_format, task.activation_format
    if task.op != "q.linear" or not task.dynamic or activation is None:
        return []
    if str(activation) != "u8, f32 per tensor, zero u8" or str(fmt) != "i8, f32 per *":
        return []
    n, k = task.weight
    return [Choice("dynamic_quantize_matmul", _LAYOUT, None, (), speed.int8_matmul * n * k, "integer dot products")]


def lower(op: QuantizedOp, choice: Choice, lowering: Lowering) -> SSAValue:
    """One node; it takes a bias of one number an output feature in, any other is added behind it."""
    del choice
    type_, _ = lowering.weight(op)
    n, k = type_.shape
    codes = lowering.part(op, "codes", (k, n), "int8")
    scale = lowering.part(op, "scale", (n,))
    bias = op.slot(2)
    inside = bias is not None and types.dims_of(bias.type) == (n,)
    operands = [lowering.float_operand(op), codes, scale, None, bias if inside else None]
    product = lowering.build(op).op("msft.DynamicQuantizeMatMul", operands, op.results[0].type, node=op.node)
    return product if inside else lowering.add_bias(op, product)
