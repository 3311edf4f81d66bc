"""A program on its way through `compile`, with what later stages need of earlier ones."""

from __future__ import annotations

from dataclasses import dataclass, field

import numpy as np

from qcc.ir.dialects.q import Weight
from qcc.ir.layout import Record
from qcc.ir.program import Program, weight_parts
from qcc.ir.types import QuantizedType

from .data import Data
from .language import Language
from .progress import PassCheck


@dataclass
class State:
    """`program` is rewritten in place; `simplified` is the copy from before quantization, the reference for layers."""

    name: str
    program: Program
    data: Data
    float_bytes: int
    simplified: Program
    language: Language | None = None
    references: list[dict[str, np.ndarray]] = field(default_factory=list[dict[str, np.ndarray]])
    checks: list[PassCheck] = field(default_factory=list[PassCheck])

    def release_weights(self) -> None:
        """Forget the tensors: the last stage, which loads the artifact, needs their memory."""
        for program in (self.program, self.simplified):
            program.weights.keep(set())
            program.stored = {}

    def quantized_bytes(self) -> int:
        """Bytes of all weights once each code takes its bits."""
        return sum(weight_bytes(op, self.program) for op in self.program.weight_ops())


def weight_bytes(op: Weight, program: Program) -> int:
    """Bytes that a `q.weight` takes when its codes are packed, scales and zero points included."""
    type_ = op.result.type
    parts = [program.weights[p].nbytes for p in weight_parts(op)]
    if not isinstance(type_, QuantizedType):
        return sum(parts)
    if isinstance(type_.layout, Record) or (type_.layout is not None and type_.format.sparsity):
        return sum(parts)
    count = int(np.prod(type_.shape, dtype=np.int64))
    return -(-count * type_.format.bits // 8) + sum(parts[1:])
