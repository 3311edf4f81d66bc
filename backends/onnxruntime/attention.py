"""`q.attention` as ONNX Runtime's `GroupQueryAttention`, which appends to the cache in place where both share a buffer.

Where a caller binds the same memory as past and present, the kernel writes the new entries behind the first `total - S`
and copies nothing; else it copies the cache into the new one. It takes heads of a multiple of 8 values. When it runs,
it refuses several rows with several new positions each behind a cache that holds some, and a cache that has free
positions but not enough.
"""

from __future__ import annotations

import numpy as np
from xdsl.dialects import builtin
from xdsl.ir import SSAValue
from xdsl.rewriter import InsertPoint, Rewriter

from qcc.ir import types
from qcc.ir.builder import I32, I64, Builder
from qcc.ir.dialects.onnx import operator
from qcc.ir.dialects.q_attention import Attention
from qcc.ir.errors import NotSupported
from qcc.ir.expand_attention import round_entries
from qcc.ir.program import Program
from qcc.ir.rewrite import builder

_ELEMENTS = (builtin.f32, builtin.f16)
_LANES = 8


def lower_attention(program: Program) -> None:
    """Replace every `q.attention` of a program, in place."""
    ends: dict[SSAValue, SSAValue] = {}
    for op in [op for op in program.module.walk() if isinstance(op, Attention)]:
        if types.element_type(op.operands[0].type) not in _ELEMENTS:
            raise NotSupported(f"{op.where()}: ONNX Runtime's attention takes float32 or float16")
        size = op.head_size
        if size is not None and size % _LANES:
            raise NotSupported(
                f"{op.where()}: heads of {size} values; ONNX Runtime's attention takes multiples of {_LANES}",
                hint="another size of head, or another backend",
            )
        _lower(op, builder(op, program), ends)


def _lower(op: Attention, build: Builder, ends: dict[SSAValue, SSAValue]) -> None:
    total = op.operands[5]
    if total not in ends:
        ends[total] = _last_positions(op, total, build)
    attributes: dict[str, object] = {
        "num_heads": op.heads,
        "kv_num_heads": op.kv_heads,
        "scale": op.scale,
        **({"local_window_size": op.window} if op.window else {}),
        **({"softcap": op.softcap} if op.softcap else {}),
    }
    q, *new = op.operands[:3]
    new = [round_entries(x, op, build) for x in new]
    operands = [q, *new, *op.operands[3:5], ends[total], total]
    new = operator("msft", "GroupQueryAttention")(operands, [r.type for r in op.results], attributes, node=op.node)
    Rewriter.insert_op(new, InsertPoint.before(op))
    for old, value in zip(op.results, new.results, strict=True):
        value.name_hint = old.name_hint
        old.replace_all_uses_with(value)
    Rewriter.erase_op(op)


def _last_positions(op: Attention, total: SSAValue, build: Builder) -> SSAValue:
    """`total - 1` for each row of the batch: int32 [B]."""
    one = build.constant(np.array([1], np.int32))
    last = build.op("onnx.Sub", [build.reshape(total, [1]), one], types.tensor_type(I32, [1]))
    dims = types.dims_of(op.operands[0].type)
    if dims is not None and dims[0] == 1:
        return last
    batch = build.op("onnx.Shape", [op.operands[0]], types.tensor_type(I64, [1]), {"start": 0, "end": 1})
    return build.op("onnx.Expand", [last, batch], types.tensor_type(I32, [None]))
