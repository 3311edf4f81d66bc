"""`com.microsoft.GatherBlockQuantized`: rows of a table of 2, 4 or 8 bits in blocks, decoded as they are read."""

from __future__ import annotations

import math

from xdsl.ir import SSAValue

from qcc.ir.dialects.q import QuantizedOp
from qcc.ir.kernel_task import Choice, KernelTask
from qcc.ir.layout import Layout

from ..lower import Lowering
from ..speed import Speed


def offers(task: KernelTask, speed: Speed) -> list[Choice]:
    """One choice for blocks of 16, 32 ... along a row whose codes fill whole bytes."""
    fmt, block = task.weight_format, task.weight_format.scale.block
    if (
        task.op != "q.embedding"
        or block is None
        or len(block) != 1
        or block[0] is None
        or block[0] < 16
        or block[0] & (block[0] - 1)
    ):
        return []
    rows, width = task.weight
    if fmt.bits not in (2, 4, 8) or width * fmt.bits % 8 or not (fmt.family.signed and fmt.zero is None):
        return []
    codes = Layout.parse(f"v(v0) h(h0) -> v0 h0 xor {1 << (fmt.bits - 1)}")
    return [
        Choice(
            "gather_block_quantized",
            codes,
            None,
            (("block_size", block[0]),),
            speed.float_matmul * rows * width,
            "rows are decoded as they are read",
        )
    ]


def lower(op: QuantizedOp, choice: Choice, lowering: Lowering) -> SSAValue:
    """One node on bytes [V, H * bits / 8] and scales [V, blocks]."""
    block = dict(choice.parameters)["block_size"]
    type_, _ = lowering.weight(op)
    rows, width = type_.shape
    codes = lowering.part(op, "codes", (rows, width * type_.format.bits // 8))
    scale = lowering.part(op, "scale", (rows, math.ceil(width / block)))
    attributes: dict[str, object] = {
        "bits": type_.format.bits,
        "block_size": block,
        "gather_axis": 0,
        "quantize_axis": 1,
    }
    return lowering.build(op).op(
        "msft.GatherBlockQuantized", [codes, op.operands[0], scale], op.results[0].type, attributes, node=op.node
    )
