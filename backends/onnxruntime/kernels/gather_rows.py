"""Rows of a byte table with a scale a row or a group: gather the codes, gather their scales, DequantizeLinear."""

from __future__ import annotations

import math

from xdsl.dialects import builtin
from xdsl.ir import SSAValue

from qcc.ir import types
from qcc.ir.dialects.q import QuantizedOp
from qcc.ir.kernel_task import Choice, KernelTask

from ..lower import Lowering
from ..speed import Speed
from . import natural


def offers(task: KernelTask, speed: Speed) -> list[Choice]:
    """One choice for symmetric bytes in blocks along a row."""
    fmt, block = task.weight_format, task.weight_format.scale.block
    if task.op != "q.embedding" or fmt.element != "i8" or fmt.zero is not None or fmt.scale.dtype != "f32":
        return []
    if block is None or len(block) != 1:
        return []
    rows, width = task.weight
    cost = 1.01 * speed.float_matmul * rows * width
    return [Choice("gather_rows", natural(2), None, (), cost, "rows are decoded as they are read")]


def lower(op: QuantizedOp, choice: Choice, lowering: Lowering) -> SSAValue:
    """Two Gathers, and what turns the picked codes into numbers."""
    del choice
    type_, _ = lowering.weight(op)
    (rows, width), block = type_.shape, type_.format.scale.block
    size = (block[0] if block else None) or width
    blocks = math.ceil(width / size)
    codes, scale = lowering.part(op, "codes", (rows, width), "int8"), lowering.part(op, "scale", (rows, blocks))
    build, indices, result = lowering.build(op), op.operands[0], op.results[0].type
    dims, element = types.dims_of(result), types.element_type(result)
    picked = build.op(
        "onnx.Gather", [codes, indices], types.tensor_type(builtin.IntegerType(8), dims), {"axis": 0}, node=op.node
    )
    few = None if dims is None else [*dims[:-1], blocks]
    scales = build.op("onnx.Gather", [scale, indices], types.tensor_type(element, few), {"axis": 0})
    if blocks == 1:
        return build.binary("Mul", build.cast(picked, element), scales)
    return build.op("onnx.DequantizeLinear", [picked, scales], result, {"axis": -1, "block_size": size})
