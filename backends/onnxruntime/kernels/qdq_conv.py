"""A convolution between DequantizeLinear nodes and a QuantizeLinear: ONNX Runtime fuses the four into QLinearConv."""

from __future__ import annotations

import numpy as np
from xdsl.ir import SSAValue

from qcc.ir.dialects.q import Conv, QuantizedOp
from qcc.ir.errors import NotSupported
from qcc.ir.expand import conv_attributes
from qcc.ir.kernel_task import Choice, KernelTask

from ..lower import Lowering
from ..speed import Speed
from . import natural

_TINY = np.finfo(np.float32).tiny


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
    codes = lowering.part(op, "codes", type_.shape, "int8")
    scale = lowering.part(op, "scale", (type_.shape[0],))
    bias, x_scale = op.slot(2), lowering.activation_scale(op)
    values = None if bias is None else lowering.array(bias)
    if values is not None and x_scale is not None:
        bias = _integer_bias(op, key, scale, values, x_scale, lowering)
    w = lowering.dequantize_linear(op, codes, scale, None, axis=0)
    return lowering.build(op).op(
        "onnx.Conv", [lowering.dequantized_operand(op), w, bias], op.results[0].type, conv_attributes(op), node=op.node
    )


def _integer_bias(
    op: QuantizedOp, key: str, scale: SSAValue, bias: np.ndarray, x_scale: float, lowering: Lowering
) -> SSAValue:
    steps = lowering.array(scale)
    assert steps is not None
    step = (steps.astype(np.float64) * x_scale).astype(np.float32)
    codes = np.rint(bias / np.maximum(step, _TINY).astype(np.float64))
    if np.abs(codes).max(initial=0) > np.iinfo(np.int32).max:
        raise NotSupported(f"{op.where()}: its bias does not fit int32 with the scales of its weight and activation")
    codes = codes.astype(np.int32)
    build = lowering.build(op)
    integer = build.weight(lowering.program.weights.add(f"{key}.bias", codes), codes)
    step_value = build.weight(lowering.program.weights.add(f"{key}.bias_scale", step), step)
    return lowering.dequantize_linear(op, integer, step_value, None, axis=0)
