"""Rows of a byte table with one scale a row: gather the codes, gather the scales, multiply."""

from __future__ import annotations

from xdsl.dialects import builtin
from xdsl.ir import SSAValue

from qcc.ir import types
from qcc.ir.dialects.q import QuantizedOp
from qcc.ir.kernel_task import Choice, KernelTask

from ..lower import Lowering
from ..speed import Speed
from . import natural


def offers(task: KernelTask, speed: Speed) -> list[Choice]:
    """One choice for symmetric bytes with one scale a row."""
    if task.op != "q.embedding" or str(task.weight_format) != "i8, f32 per *":
        return []
    rows, width = task.weight
    return [
        Choice(
            "gather_rows", natural(2), None, (), speed.float_matmul * rows * width, "rows are decoded as they are read"
        )
    ]


def lower(op: QuantizedOp, choice: Choice, lowering: Lowering) -> SSAValue:
    """Two Gathers, a Cast and a Mul."""
    del choice
    type_, _ = lowering.weight(op)
    rows, width = type_.shape
    codes, scale = lowering.part(op, "codes", (rows, width), "int8"), lowering.part(op, "scale", (rows, 1))
    build, indices, result = lowering.build(op), op.operands[0], op.results[0].type
    dims = types.dims_of(result)
    picked = build.op(
        "onnx.Gather", [codes, indices], types.tensor_type(builtin.IntegerType(8), dims), {"axis": 0}, node=op.node
    )
    column = None if dims is None else [*dims[:-1], 1]
    scales = build.op("onnx.Gather", [scale, indices], types.tensor_type(builtin.f32, column), {"axis": 0})
    return build.binary("Mul", build.cast(picked, builtin.f32), scales)
