"""Bytes with a scale a row or a group, decoded by DequantizeLinear, which ONNX Runtime folds when it loads the model.

Float speed and memory afterwards, like the expansion, but decoded in one step instead of ten copies of the weight. The
product is a FusedMatMul that reads rows: the pair DequantizeLinear and MatMul would become a MatMulNBits, which
quantizes the activations too.
"""

from __future__ import annotations

import math

from xdsl.ir import SSAValue

from qcc.ir import types
from qcc.ir.dialects.q import QuantizedOp
from qcc.ir.expand import expand_one
from qcc.ir.kernel_task import Choice, KernelTask

from ..lower import Lowering
from ..speed import Speed
from . import natural


def offers(task: KernelTask, speed: Speed) -> list[Choice]:
    """One choice for symmetric bytes of a linear layer with float activations."""
    fmt, block = task.weight_format, task.weight_format.scale.block
    if task.op != "q.linear" or task.activation_format is not None or fmt.element != "i8" or fmt.zero is not None:
        return []
    if block is None or len(block) != 1 or fmt.scale.dtype != "f32":
        return []
    n, k = task.weight
    cost = 0.99 * speed.decoded_matmul * n * k
    return [Choice("decoded_bytes", natural(2), None, (), cost, "decoded when loaded: float speed and memory")]


def lower(op: QuantizedOp, choice: Choice, lowering: Lowering) -> SSAValue:
    """DequantizeLinear of the weight [N, K], and a product with its rows."""
    del choice
    if lowering.fuses:  # then DequantizeLinear is kept for fusion, and would decode at every call
        return expand_one(op, lowering.program)
    type_, _ = lowering.weight(op)
    (n, k), block = type_.shape, type_.format.scale.block
    size = (block[0] if block else None) or k
    codes = lowering.part(op, "codes", (n, k), "int8")
    scale = lowering.part(op, "scale", (n,) if size >= k else (n, math.ceil(k / size)))
    attributes: dict[str, object] = {"axis": 0} if size >= k else {"axis": 1, "block_size": size}
    build = lowering.build(op)
    decoded = build.op(
        "onnx.DequantizeLinear", [codes, scale], types.tensor_type(types.element_type(scale.type), (n, k)), attributes
    )
    operands = [lowering.float_operand(op), decoded]
    product = build.op("msft.FusedMatMul", operands, op.results[0].type, {"transB": 1}, node=op.node)
    return lowering.add_bias(op, product)
