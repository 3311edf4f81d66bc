"""Integer codes of 3, 5, 6 and 7 bits in the next width that ONNX Runtime reads: the same numbers, more bytes."""

from __future__ import annotations

import dataclasses

from xdsl.rewriter import Rewriter

from qcc.ir.dialects.q import Weight
from qcc.ir.program import Program
from qcc.ir.types import QuantizedType

_WIDTH = {3: 4, 5: 8, 6: 8, 7: 8}


def widen(program: Program) -> None:
    """Change the element type of every such weight, in place; codes, scales and zero points stay what they are."""
    for op in list(program.weight_ops()):
        type_ = op.result.type
        if isinstance(type_, QuantizedType) and type_.format.element[0] in "iu" and type_.format.bits in _WIDTH:
            _widen(op, type_, program)


def _widen(op: Weight, type_: QuantizedType, program: Program) -> None:
    bits = type_.format.bits
    element = f"{type_.format.element[0]}{_WIDTH[bits]}"
    zero = type_.format.zero
    zero = f"{zero[0]}{_WIDTH[bits]}" if zero and zero[0] in "iu" else zero
    wide = QuantizedType.of(type_.expressed, dataclasses.replace(type_.format, element=element, zero=zero))
    reason = f"{bits}-bit codes take {_WIDTH[bits]} bits each: ONNX Runtime has no kernel for {bits}"
    for use in op.result.uses:
        program.decide(getattr(use.operation, "node", ""), "widened", reason)
    Rewriter.replace_value_with_new_type(op.result, wide)
