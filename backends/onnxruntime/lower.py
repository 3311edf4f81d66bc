"""From `q` operations with chosen kernels to operators that ONNX Runtime runs: the step before emission."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from xdsl.dialects import builtin
from xdsl.ir import Operation, SSAValue
from xdsl.rewriter import Rewriter

from qcc.ir import types
from qcc.ir.builder import Builder
from qcc.ir.dialects.q import Conv, Dequantize, Embedding, Linear, Quantize, QuantizedOp, Weight, part
from qcc.ir.errors import BadInput, NotSupported
from qcc.ir.format import Format
from qcc.ir.infer import constant_of
from qcc.ir.program import Program
from qcc.ir.rewrite import array_of, builder, remove_dead
from qcc.ir.types import QuantizedType


@dataclass(frozen=True)
class Lowered:
    """A program in standard and contrib operators only, and the value that each `q` operation became, by node."""

    program: Program
    results: dict[str, SSAValue]
    fuses: bool
    """Whether it has QuantizeLinear nodes, with which ONNX Runtime fuses others."""


def lower(program: Program) -> Lowered:
    """A lowered copy of a program whose operations have kernels and whose weights are packed."""
    from . import kernels
    from .attention import lower_attention
    from .integer_hard_swish import integer_hard_swish
    from .tasks import choice_of

    lowering = Lowering(program.clone())
    module = lowering.program.module
    results: dict[str, SSAValue] = {}
    for op in [op for op in module.walk() if isinstance(op, Linear | Conv | Embedding)]:
        choice = choice_of(op)
        value = kernels.load(choice.kernel).lower(op, choice, lowering)
        results[op.node] = value
        _replace(op, value)
    lower_attention(lowering.program)
    for op in [op for op in module.walk() if isinstance(op, Dequantize)]:
        _replace(op, lowering.dequantized_operand(op))
    remove_dead(lowering.program)
    leftover = [op.name for op in module.walk() if op.name.startswith("q.") and not isinstance(op, Weight)]
    if leftover:
        raise NotSupported(f"ONNX Runtime has no form for {leftover[0]}")
    integer_hard_swish(lowering.program)
    return Lowered(lowering.program, results, lowering.fuses)


def _replace(op: Operation, value: SSAValue) -> None:
    if op.results[0].name_hint:
        value.name_hint = op.results[0].name_hint
    op.results[0].replace_all_uses_with(value)
    Rewriter.erase_op(op)


class Lowering:
    """A program while its operations are replaced, with what every kernel needs."""

    def __init__(self, program: Program) -> None:
        self.program = program
        self._codes: dict[SSAValue, SSAValue] = {}
        self.fuses = any(isinstance(op, Quantize) and op.slot(1) is not None for op in program.module.walk())
        """Whether activations have calibrated scales: QuantizeLinear nodes, with which ONNX Runtime fuses others."""

    def build(self, op: Operation) -> Builder:
        """A builder that inserts before `op`."""
        return builder(op, self.program)

    def array(self, value: SSAValue) -> np.ndarray | None:
        """The array behind a constant."""
        return array_of(value, self.program)

    def weight(self, op: QuantizedOp) -> tuple[QuantizedType, str]:
        """The type of the weight of `op` and its name in the store."""
        owner = op.operands[1].owner
        assert isinstance(owner, Weight)
        return op.weight_type(), owner.weight

    def part(self, op: QuantizedOp, which: str, shape: tuple[int, ...], dtype: str | None = None) -> SSAValue:
        """A part of the weight of `op` in the shape that the kernel takes: the same bytes under the same name."""
        _, key = self.weight(op)
        array = self.program.weights[part(key, which)]
        view = (array if dtype is None else array.view(dtype)).reshape(shape)
        self.program.weights[part(key, which)] = view
        return self.build(op).weight(part(key, which), view)

    def float_operand(self, op: QuantizedOp) -> SSAValue:
        """The float value of `x`: a kernel that quantizes by itself takes what stands before a dynamic `q.quantize`."""
        x = op.operands[0]
        if not isinstance(x.type, QuantizedType):
            return x
        assert isinstance(x.owner, Quantize)
        return x.owner.operands[0]

    def activation_scale(self, op: QuantizedOp) -> float | None:
        """The calibrated scale of `x`, None where it is computed."""
        x = op.operands[0]
        scale = x.owner.slot(1) if isinstance(x.owner, Quantize) else None
        array = None if scale is None else constant_of(scale)
        return None if array is None else float(array)

    def dequantized_operand(self, op: QuantizedOp) -> SSAValue:
        """`x` through QuantizeLinear and DequantizeLinear; each reader has one of the latter to itself, for fusion."""
        x = op.operands[0]
        quantize = x.owner
        if not isinstance(quantize, Quantize):
            return x
        if quantize.slot(1) is None:
            raise BadInput(f"{op.where()}: its activation has no calibrated scale")
        scale, zero = quantize.slot(1), quantize.slot(2)
        type_ = x.type
        assert isinstance(type_, QuantizedType)
        if x not in self._codes:
            self._codes[x] = _quantize_linear(quantize, type_.format, self.build(quantize))
        codes = self._codes[x]
        return self.build(op).op("onnx.DequantizeLinear", [codes, scale, zero], quantize.operands[0].type)

    def dequantize_linear(
        self, op: Operation, codes: SSAValue, scale: SSAValue, zero: SSAValue | None, *, axis: int
    ) -> SSAValue:
        """One DequantizeLinear with a scale for each index of `axis`."""
        type_ = types.tensor_type(types.element_type(scale.type), types.dims_of(codes.type))
        return self.build(op).op("onnx.DequantizeLinear", [codes, scale, zero], type_, {"axis": axis})

    def add_bias(self, op: QuantizedOp, product: SSAValue) -> SSAValue:
        """The product plus the bias of a linear, if it has one."""
        bias = op.slot(2)
        return product if bias is None else self.build(op).binary("Add", product, bias)


def _quantize_linear(op: Quantize, fmt: Format, build: Builder) -> SSAValue:
    signed = fmt.family.signed
    element = builtin.IntegerType(8, builtin.Signedness.SIGNLESS if signed else builtin.Signedness.UNSIGNED)
    zero = op.slot(2)
    if zero is None:
        zero = build.constant(np.array(0, np.int8 if signed else np.uint8))
    type_ = types.tensor_type(element, types.dims_of(op.operands[0].type))
    return build.op("onnx.QuantizeLinear", [op.operands[0], op.slot(1), zero], type_)
