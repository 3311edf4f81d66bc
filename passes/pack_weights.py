"""Put the codes of every weight that has a layout where it says: one byte a code becomes packed bytes. It runs last."""

from __future__ import annotations

from dataclasses import dataclass

from qcc.ir.dialects.q import part
from qcc.ir.format import Format
from qcc.ir.formats import load_element
from qcc.ir.layout import pack
from qcc.ir.program import Program
from qcc.ir.rewrite import Pass, ProgramContext
from qcc.ir.types import QuantizedType


@dataclass(frozen=True)
class PackWeights(Pass):
    """Pack codes, and zero points that have a layout of their own, one tensor at a time."""

    name = "pack_weights"

    def run(self, program: Program, ctx: ProgramContext) -> None:
        """A weight shared by several operations is packed once."""
        del ctx
        done: set[str] = set()
        for op in program.weight_ops():
            type_ = op.result.type
            if not isinstance(type_, QuantizedType) or type_.layout is None or op.weight in done:
                continue
            done.add(op.weight)
            codes, zero = part(op.weight, "codes"), part(op.weight, "zero")
            if program.weights[codes].shape == type_.shape:
                program.weights[codes] = pack(program.weights[codes], type_.format.bits, type_.layout)
            if op.zero_layout is not None and program.weights[zero].shape == type_.format.scale_shape(type_.shape):
                program.weights[zero] = pack(program.weights[zero], zero_bits(type_.format), op.zero_layout)


def zero_bits(fmt: Format) -> int:
    """Bits of a zero point."""
    return load_element(fmt.zero_dtype).bits
