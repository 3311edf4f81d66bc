"""What each `q` operation means: standard ONNX operators over the integer codes.

    dequantize(q) = (cast(codes) - zero) * scale
    linear(x, w, b) = MatMul(x, transpose(dequantize(w))) + b

The expansion is the definition of the dialect, the reference that passes are checked against, and what a backend runs
where it has no kernel. Packed weights are unpacked by their `Layout` first, with shifts, masks, reshapes and a
transpose.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cache

import numpy as np
from xdsl.dialects import builtin
from xdsl.ir import Operation, SSAValue
from xdsl.rewriter import Rewriter

from . import types
from .builder import F32, I32, Builder
from .dialects.q import Conv, Dequantize, Embedding, Linear, Quantize, Weight, part
from .dialects.q_attention import Attention
from .emit_onnx import types_opset
from .errors import NotSupported
from .expand_attention import expand_attention
from .format import Format
from .formats import load_element
from .layout import Layout
from .program import Program
from .types import QuantizedType


@dataclass(frozen=True)
class Codes:
    """A quantized value taken apart: codes, scale and zero point that broadcast together, and the way back."""

    codes: SSAValue
    scale: SSAValue
    zero: SSAValue | None
    restore: Callable[[SSAValue], SSAValue]


def expand(program: Program) -> Program:
    """A copy of `program` in which every `q` operation is replaced by its expansion."""
    return expand_with(program, ())[0]


def expand_with(program: Program, values: Sequence[SSAValue]) -> tuple[Program, list[SSAValue]]:
    """The expanded copy, and what `values` of `program` have become in it."""
    copies: dict[SSAValue, SSAValue] = {}
    out = program.clone(copies)
    parts: dict[SSAValue, Codes] = {}
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
    parts: dict[SSAValue, Codes] = {}
    for operand in op.operands:
        if isinstance(operand.owner, Weight) and isinstance(operand.type, QuantizedType):
            parts[operand] = _weight(operand.owner, program, build)
        elif isinstance(operand.owner, Quantize):
            parts[operand] = _quantize(operand.owner, build)
    return _float_value(op, parts, build)


def _expand_op(op: Operation, program: Program, parts: dict[SSAValue, Codes]) -> dict[SSAValue, SSAValue]:
    """Expand before `op` and let its readers read that; gives the new values by the old ones."""
    build = Builder(op, types_opset(program, ""))
    match op:
        case Weight():
            parts[op.result] = _weight(op, program, build)
            return {}
        case Quantize():
            parts[op.results[0]] = _quantize(op, build)
            return {}
        case Attention():
            values = expand_attention(op, build)
        case _:
            values = [_float_value(op, parts, build)]
    for old, value in zip(op.results, values, strict=True):
        value.name_hint = old.name_hint or value.name_hint
        old.replace_all_uses_with(value)
    return dict(zip(op.results, values, strict=True))


def _float_value(op: Operation, parts: dict[SSAValue, Codes], build: Builder) -> SSAValue:
    def dequantized(value: SSAValue) -> SSAValue:
        return _dequantize(parts[value], build) if value in parts else value

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


def _dequantize(value: Codes, build: Builder) -> SSAValue:
    x = build.cast(value.codes, F32)
    if value.zero is not None:
        x = build.binary("Sub", x, build.cast(value.zero, F32))
    return value.restore(build.binary("Mul", x, value.scale))


def _weight(op: Weight, program: Program, build: Builder) -> Codes:
    type_ = op.result.type
    assert isinstance(type_, QuantizedType)
    fmt, shape, store = type_.format, type_.shape, program.weights
    if not _is_affine(fmt.element):
        raise NotSupported(
            f"q.weight {op.weight!r}: codes of {fmt.element} stand for values of a table: no expansion yet"
        )
    keys = {which: part(op.weight, which) for which in ("codes", "scale", "zero")}
    codes = build.weight(keys["codes"], store[keys["codes"]])
    if type_.layout is not None:
        codes = _unpack(codes, fmt.element, type_.layout, shape, build)
    scale = build.weight(keys["scale"], store[keys["scale"]])
    if fmt.scale.dtype == "f16":
        scale = build.cast(scale, F32)
    scale = _spread(scale, fmt, shape, build)
    zero = None
    if fmt.zero is not None:
        zero = build.weight(keys["zero"], store[keys["zero"]])
        if op.zero_layout is not None:
            zero = _unpack(zero, fmt.zero, op.zero_layout, fmt.scale_shape(shape), build)
        zero = _spread(zero, fmt, shape, build)
    element = types.element_type(type_)
    return Codes(codes, scale, zero, lambda v: v if element == F32 else build.cast(v, element))


@cache
def _is_affine(element: str) -> bool:
    """Whether every code of an element type stands for itself, as integers do."""
    family = load_element(element)
    low = -(1 << (family.bits - 1)) if family.signed else 0
    codes = np.arange(low, low + (1 << family.bits)).astype(np.int8 if family.signed else np.uint8)
    held = codes[(codes >= family.low) & (codes <= family.high)]
    return bool(np.array_equal(family.decode(held), held.astype(np.float32)))


def _unpack(packed: SSAValue, element: str, layout: Layout, shape: tuple[int, ...], build: Builder) -> SSAValue:
    """Bytes -> slots -> digits in storage order -> digits in logical order -> the shape, as int32 codes."""
    family = load_element(element)
    bits, slots = family.bits, layout.size(shape)
    if 8 % bits:
        raise NotSupported(f"packed codes of {bits} bits have no expansion yet: they cross bytes")
    flat = build.reshape(packed, [-1])
    if bits < 8:
        fields = [build.reshape(_field(flat, bits, i, build), [-1, 1]) for i in range(8 // bits)]
        joined = types.tensor_type(builtin.IntegerType(8, builtin.Signedness.UNSIGNED), [None, 8 // bits])
        flat = build.reshape(build.op("onnx.Concat", fields, joined, {"axis": 1}), [-1])
    flat = build.crop(flat, [slots])
    wide = build.cast(flat, I32)
    if layout.xor:
        wide = build.binary("BitwiseXor", wide, build.constant(np.array(layout.xor, np.int32)))
    if family.signed:
        half = build.constant(np.array(1 << (bits - 1), np.int32))
        wide = build.binary("Sub", build.binary("BitwiseXor", wide, half), half)
    extents = layout.extents(shape)
    logical = [d.name for dimension in layout.dimensions for d in dimension.digits]
    stored = build.reshape(wide, [extents[name] for name in layout.order])
    digits = build.transpose(stored, [layout.order.index(name) for name in logical])
    return build.crop(build.reshape(digits, layout.padded_shape(shape)), shape)


def _field(flat: SSAValue, bits: int, index: int, build: Builder) -> SSAValue:
    mask = build.constant(np.array((1 << bits) - 1, np.uint8))
    if index:
        shift = build.constant(np.array(index * bits, np.uint8))
        flat = build.op("onnx.BitShift", [flat, shift], flat.type, {"direction": "RIGHT"})
    return build.binary("BitwiseAnd", flat, mask)


def _spread(value: SSAValue, fmt: Format, shape: tuple[int, ...], build: Builder) -> SSAValue:
    """One value a block, in a shape that broadcasts against `shape`: whole axes stay 1, partial blocks are repeated."""
    blocks, extents = fmt.block_of(shape), list(fmt.scale_shape(shape))
    value = build.reshape(value, extents)
    for axis, (block, extent) in enumerate(zip(blocks, shape, strict=True)):
        if block == 1 or extents[axis] == 1:
            continue
        apart = [*extents[: axis + 1], block, *extents[axis + 1 :]]
        ones = [*extents[: axis + 1], 1, *extents[axis + 1 :]]
        type_ = types.tensor_type(types.element_type(value.type), apart)
        repeated = build.op(
            "onnx.Expand", [build.reshape(value, ones), build.constant(np.array(apart, np.int64))], type_
        )
        extents[axis] *= block
        value = build.reshape(repeated, extents)
        extents[axis] = extent
        value = build.crop(value, extents)
    return value


def _quantize(op: Quantize, build: Builder) -> Codes:
    type_ = op.results[0].type
    assert isinstance(type_, QuantizedType)
    fmt, x = type_.format, op.operands[0]
    x, restore = _blocked(x, fmt, build)
    scale, zero = op.slot(1), op.slot(2)
    if scale is None:
        scale, zero = _dynamic_parameters(x, fmt, build)
    rounded = build.unary("Round", build.binary("Div", x, scale))
    if zero is not None:
        rounded = build.binary("Add", rounded, build.cast(zero, F32))
    low, high = build.scalar(fmt.family.low), build.scalar(fmt.family.high)
    codes = build.cast(build.op("onnx.Clip", [rounded, low, high], rounded.type), I32)
    return Codes(codes, scale, zero, restore)


def _blocked(x: SSAValue, fmt: Format, build: Builder) -> tuple[SSAValue, Callable[[SSAValue], SSAValue]]:
    """Split the last axis into blocks, padded with zeros, where the format has blocks shorter than the axis."""
    block = fmt.scale.block
    if block is None or block == (None,):
        return x, lambda v: v
    dims = types.dims_of(x.type)
    if dims is None or len(block) != 1 or not isinstance(dims[-1], int):
        raise NotSupported(f"activations in blocks {fmt.scale} need a last axis of known extent, found {x.type}")
    extent, size = dims[-1], block[0]
    assert size is not None
    count = -(-extent // size)
    if count * size != extent:
        pads = np.zeros(2 * len(dims), np.int64)
        pads[-1] = count * size - extent
        padded = types.tensor_type(F32, [*dims[:-1], count * size])
        x = build.op("onnx.Pad", [x, build.constant(pads)], padded)
    keep = [0] * (len(dims) - 1)
    out = build.reshape(x, [*keep, count, size])

    def restore(value: SSAValue) -> SSAValue:
        whole = build.reshape(value, [*keep, count * size])
        if count * size == extent:
            return whole
        bounds = [build.constant(np.array([v], np.int64)) for v in (0, extent, len(dims) - 1)]
        return build.op("onnx.Slice", [whole, *bounds], types.tensor_type(F32, dims))

    return out, restore


def _dynamic_parameters(x: SSAValue, fmt: Format, build: Builder) -> tuple[SSAValue, SSAValue | None]:
    """Scale (and zero point) of each block from its own range, which includes zero. All-zero blocks get scale 1."""
    axes = None if fmt.scale.block is None else np.array([-1], np.int64)
    dims = types.dims_of(x.type)
    reduced = types.tensor_type(F32, () if axes is None else (None if dims is None else [*dims[:-1], 1]))

    def reduce(name: str, value: SSAValue) -> SSAValue:
        operands = [value] if axes is None else [value, build.constant(axes)]
        return build.op(f"onnx.{name}", operands, reduced, {"keepdims": 0 if axes is None else 1})

    def nonzero(scale: SSAValue) -> SSAValue:
        empty = build.op(
            "onnx.Equal", [scale, build.scalar(0.0)], types.tensor_type(builtin.IntegerType(1), types.dims_of(reduced))
        )
        return build.op("onnx.Where", [empty, build.scalar(1.0), scale], reduced)

    if fmt.zero is None:
        peak = reduce("ReduceMax", build.unary("Abs", x))
        return nonzero(build.binary("Div", peak, build.scalar(fmt.family.high))), None
    low = build.op("onnx.Min", [reduce("ReduceMin", x), build.scalar(0.0)], reduced)
    high = build.op("onnx.Max", [reduce("ReduceMax", x), build.scalar(0.0)], reduced)
    scale = nonzero(build.binary("Div", build.binary("Sub", high, low), build.scalar(fmt.family.high - fmt.family.low)))
    zero = build.unary("Round", build.binary("Sub", build.scalar(fmt.family.low), build.binary("Div", low, scale)))
    return scale, zero
