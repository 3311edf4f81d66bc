"""A convolution between DequantizeLinear nodes and, below it, a QuantizeLinear: ONNX Runtime fuses the four into QLinearConv."""

from __future__ import annotations

import numpy as np
from xdsl.ir import SSAValue

from qcc.ir.dialects.q import Conv, QuantizedOp
from qcc.ir.expand import conv_attributes
from qcc.ir.kernel_task import Choice, KernelTask
from qcc.ir.types import QuantizedType

from ..lower import Lowering
from ..speed import Speed
from . import natural


def offers(task: KernelTask, speed: Speed) -> list[Choice]:
    """One choice for calibrated 8-bit activations and int8 weights with one scale an output channel."""
    fmt, activation = task.weight_format, task.activation_format
    if task.op != "q.conv" or task.dynamic or activation is None or activation.scale.block is not None:
        return []
    rank = len(task.weight)
    if activation.bits != 8 or fmt.element != "i8" or fmt.zero is not None or fmt.scale.block != (None,) * (rank - 1):
        return []
    if dict(task.attributes).get("transposed") == "1":
        return []
    return [
        Choice(
            "qdq_conv", natural(rank), None, (), speed.int8_matmul * int(np.prod(task.weight)), "integer dot products"
        )
    ]


def lower(op: QuantizedOp, choice: Choice, lowering: Lowering) -> SSAValue:
    """The bias is quantized to int32 with the product of both scales, as the integer kernel adds it."""
    del choice
    assert isinstance(op, Conv)
    type_, key = lowering.weight(op)
    assert isinstance(type_, QuantizedType)
    scale = lowering.part(op, "scale", (type_.shape[0],))
    w = lowering.dequantize_linear(op, lowering.part(op, "codes", type_.shape, "int8"), scale, None, axis=0)
    bias = op.slot(2)
    if bias is not None:
        bias = _integer_bias(op, bias, key, lowering)
    return lowering.build(op).op(
        "onnx.Conv", [lowering.dequantized_operand(op), w, bias], op.results[0].type, conv_attributes(op), node=op.node
    )


def _integer_bias(op: QuantizedOp, bias: SSAValue, key: str, lowering: Lowering) -> SSAValue:
    values, x_scale = lowering.array(bias), lowering.activation_scale(op)
    if values is None or x_scale is None:
        return bias
    step = (lowering.program.weights[f"{key}.scale"].reshape(-1).astype(np.float64) * x_scale).astype(np.float32)
    codes = np.clip(np.rint(values / step.astype(np.float64)), -(2**31) + 1, 2**31 - 1).astype(np.int32)
    build = lowering.build(op)
    integer = build.weight(lowering.program.weights.add(f"{key}.bias", codes), codes)
    scale = build.weight(lowering.program.weights.add(f"{key}.bias_scale", step), step)
    return lowering.dequantize_linear(op, integer, scale, None, axis=0)
