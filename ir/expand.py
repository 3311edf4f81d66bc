"""What each `q` operation means: standard ONNX operators over the integer codes.

    dequantize(q) = (decode(codes) - zero) * scale          `expand_weight.py`, `expand_quantize.py`
    linear(x, w, b) = MatMul(x, transpose(dequantize(w))) + b

The expansion is the definition of the dialect, the reference that passes are checked against, and what a backend runs
where it has no kernel. Packed weights are unpacked by their `Layout` first, with shifts, masks, reshapes and a
transpose.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

from xdsl.ir import Operation, SSAValue
from xdsl.rewriter import Rewriter

from .builder import Builder
from .dialects.q import Conv, Dequantize, Embedding, Linear, Quantize, Weight
from .dialects.q_attention import Attention
from .emit_onnx import types_opset
from .errors import NotSupported
from .expand_attention import expand_attention
from .expand_quantize import Decode, quantized_value
from .expand_weight import decoded_weight
from .program import Program
from .types import QuantizedType


def expand(program: Program) -> Program:
    """A copy of `program` in which every `q` operation is replaced by its expansion."""
    return expand_with(program, ())[0]


def expand_with(program: Program, values: Sequence[SSAValue]) -> tuple[Program, list[SSAValue]]:
    """The expanded copy, and what `values` of `program` have become in it."""
    copies: dict[SSAValue, SSAValue] = {}
    out = program.clone(copies)
    parts: dict[SSAValue, Decode] = {}
    became: dict[SSAValue, SSAValue] = {}
    for op in list(out.module.walk()):
        if isinstance(op, Weight) and not isinstance(op.result.type, QuantizedType):
            continue
        if isinstance(op, Weight | Quantize | Dequantize | Linear | Conv | Embedding | Attention):
            became |= _expand_op(op, out, parts)
    for op in reversed(list(out.module.walk())):
        if isinstance(op, Weight | Quantize | Dequantize | Linear | Conv | Embedding | Attention) and not any(
            r.first_use for r in op.results
        ):
            Rewriter.erase_op(op)
    return out, [became.get(copies[v], copies[v]) for v in values]


def expand_one(op: Operation, program: Program) -> SSAValue:
    """The value of a `q.linear`, `q.conv`, `q.embedding` or `q.dequantize`, expanded before it; `op` stays."""
    build = Builder(op, types_opset(program, ""))
    parts: dict[SSAValue, Decode] = {}
    for operand in op.operands:
        if isinstance(operand.owner, Weight) and isinstance(operand.type, QuantizedType):
            parts[operand] = _given(decoded_weight(operand.owner, program, build))
        elif isinstance(operand.owner, Quantize):
            parts[operand] = quantized_value(operand.owner, build)
    return _float_value(op, parts, build)


def _given(value: SSAValue) -> Decode:
    """A weight is decoded once, whoever reads it."""
    return lambda build: value


def _expand_op(op: Operation, program: Program, parts: dict[SSAValue, Decode]) -> dict[SSAValue, SSAValue]:
    """Expand before `op` and let its readers read that; gives the new values by the old ones."""
    build = Builder(op, types_opset(program, ""))
    match op:
        case Weight():
            parts[op.result] = _given(decoded_weight(op, program, build))
            return {}
        case Quantize():
            parts[op.results[0]] = quantized_value(op, build)
            return {}
        case Attention():
            values = expand_attention(op, build)
        case _:
            values = [_float_value(op, parts, build)]
    for old, value in zip(op.results, values, strict=True):
        value.name_hint = old.name_hint or value.name_hint
        old.replace_all_uses_with(value)
    return dict(zip(op.results, values, strict=True))


def _float_value(op: Operation, parts: dict[SSAValue, Decode], build: Builder) -> SSAValue:
    def dequantized(value: SSAValue) -> SSAValue:
        return parts[value](build) if value in parts else value

    match op:
        case Dequantize():
            return dequantized(op.operands[0])
        case Linear():
            return _linear(op, dequantized, build)
        case Conv():
            return _conv(op, dequantized, build)
        case Embedding():
            table = dequantized(op.operands[1])
            return build.op("onnx.Gather", [table, op.operands[0]], op.results[0].type, {"axis": 0}, node=op.node)
        case _:
            raise NotSupported(f"{op.name} has no expansion")


def _linear(op: Linear, dequantized: Callable[[SSAValue], SSAValue], build: Builder) -> SSAValue:
    x, w, bias = dequantized(op.operands[0]), dequantized(op.operands[1]), op.slot(2)
    product = build.op("onnx.MatMul", [x, build.transpose(w, [1, 0])], op.results[0].type, node=op.node)
    return product if bias is None else build.binary("Add", product, bias)


def _conv(op: Conv, dequantized: Callable[[SSAValue], SSAValue], build: Builder) -> SSAValue:
    operands = [dequantized(op.operands[0]), dequantized(op.operands[1]), op.slot(2)]
    kind = "onnx.ConvTranspose" if op.integer("transposed") else "onnx.Conv"
    return build.op(kind, operands, op.results[0].type, conv_attributes(op), node=op.node)


def conv_attributes(op: Conv) -> dict[str, object]:
    """The ONNX attributes of a `q.conv`."""
    return {name: value for name, value in op.parameters.items() if name in Conv.convolution}
