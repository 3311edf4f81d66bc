"""Packed bytes back into codes, in standard operators: the steps of a layout's lowering, undone in reverse.

bytes -> one int32 a slot (shifts and masks) -> reshapes, transposes, gathers -> two's complement
"""

from __future__ import annotations

from collections.abc import Sequence
from math import gcd, prod

import numpy as np
from xdsl.ir import SSAValue

from . import types
from .builder import I32, Builder
from .layout import AnyLayout, lowering
from .layout.steps import Cut, Pad, Reshape, Step, Swizzle, Transpose, Xor


def unpacked(
    packed: SSAValue, bits: int, signed: bool, layout: AnyLayout, shape: tuple[int, ...], build: Builder
) -> SSAValue:
    """int32 codes of `shape` from the bytes that `pack` made of them."""
    planes = layout.bits_first()
    slots, width = (layout.size(shape), bits) if planes is None else (planes.size((bits, *shape)), 1)
    flat = build.crop(_slots(build.reshape(packed, [-1]), _count(packed), width, build), [slots])
    if planes is None:
        codes = undone(lowering(layout, shape), flat, build)
    else:  # the bits of codes are flipped, and each slot holds one of them
        steps = [step for step in lowering(planes, (bits, *shape)) if not isinstance(step, Xor)]
        codes = _joined(undone(steps, flat, build), bits, shape, build)
        codes = _flipped(codes, layout.xor, build) if layout.xor else codes
    if signed:
        half = build.constant(np.array(1 << (bits - 1), np.int32))
        codes = build.binary("Sub", build.binary("BitwiseXor", codes, half), half)
    return codes


def undone(steps: Sequence[Step], value: SSAValue, build: Builder) -> SSAValue:
    """The steps of a lowering, the last one first."""
    for step in reversed(steps):
        match step:
            case Pad():
                value = build.crop(value, step.before)
            case Reshape():
                value = build.reshape(value, step.before)
            case Transpose():
                value = build.transpose(value, [step.axes.index(axis) for axis in range(len(step.axes))])
            case Swizzle():
                value = _swizzled(value, step, build)
            case Xor():
                value = _flipped(value, step.bits, build)
            case Cut():
                value = _rejoined(value, step, build)
    return value


def _flipped(value: SSAValue, bits: int, build: Builder) -> SSAValue:
    return build.binary("BitwiseXor", value, build.constant(np.array(bits, np.int32)))


def _swizzled(value: SSAValue, step: Swizzle, build: Builder) -> SSAValue:
    """Row p along the partner is gathered at v xor p: both axes as one, which a constant permutes."""
    dims = _static(value)
    rows, places = dims[step.partner], dims[step.axis]
    order = [step.partner, step.axis, *(i for i in range(len(dims)) if i not in (step.partner, step.axis))]
    front = build.reshape(build.transpose(value, order), [rows * places, -1])
    r, v = np.divmod(np.arange(rows * places), places)
    index = build.constant((r * places + (v ^ r % places)).astype(np.int64))
    rest = prod(dims) // (rows * places) if rows * places else 0
    type_ = types.tensor_type(I32, [rows * places, rest])
    moved = build.op("onnx.Gather", [front, index], type_, {"axis": 0})
    apart = build.reshape(moved, [dims[i] for i in order])
    return build.transpose(apart, [order.index(i) for i in range(len(dims))])


def _rejoined(value: SSAValue, step: Cut, build: Builder) -> SSAValue:
    """Both sides of a cut, each through its own steps; one alone where the other is empty."""
    total = _static(value)[0]
    if step.body_size in (0, total):
        return undone(step.body if step.body_size else step.tail, value, build)
    sides: list[SSAValue] = []
    for steps, begin, end in ((step.body, 0, step.body_size), (step.tail, step.body_size, total)):
        bounds = [build.constant(np.array([v], np.int64)) for v in (begin, end, 0)]
        part = build.op("onnx.Slice", [value, *bounds], types.tensor_type(I32, [end - begin]))
        sides.append(undone(steps, part, build))
    dims = [list(_static(side)) for side in sides]
    dims[0][step.axis] += dims[1][step.axis]
    return build.op("onnx.Concat", sides, types.tensor_type(I32, dims[0]), {"axis": step.axis})


def _joined(planes: SSAValue, bits: int, shape: tuple[int, ...], build: Builder) -> SSAValue:
    """Codes from their bits [bits, *shape]."""
    weights = (1 << np.arange(bits)).astype(np.int32).reshape([bits] + [1] * len(shape))
    scaled = build.binary("Mul", planes, build.constant(weights))
    operands = [scaled, build.constant(np.array([0], np.int64))]
    return build.op("onnx.ReduceSum", operands, types.tensor_type(I32, shape), {"keepdims": 0})


def _slots(flat: SSAValue, held: int, bits: int, build: Builder) -> SSAValue:
    """`held` bytes as one int32 a slot, maybe more than there are; a code may cross from one byte into the next."""
    wide = build.cast(flat, I32)
    if bits == 8:
        return wide
    group = 8 // gcd(bits, 8)
    size = group * bits // 8
    if held % size:
        pads = build.constant(np.array([0, -held % size], np.int64))
        wide = build.op("onnx.Pad", [wide, pads], types.tensor_type(I32, [held + -held % size]))
    rows = -(-held // size)
    groups = build.reshape(wide, [rows, size])
    fields = [_field(groups, i * bits, bits, rows, build) for i in range(group)]
    joined = types.tensor_type(I32, [rows, group])
    return build.reshape(build.op("onnx.Concat", fields, joined, {"axis": 1}), [rows * group])


def _field(groups: SSAValue, begin: int, bits: int, rows: int, build: Builder) -> SSAValue:
    """Bits `begin` to `begin + bits` of every group of bytes, [rows, 1]."""

    def byte(index: int) -> SSAValue:
        bounds = [build.constant(np.array([v], np.int64)) for v in (index, index + 1, 1)]
        return build.op("onnx.Slice", [groups, *bounds], types.tensor_type(I32, [rows, 1]))

    first, shift = divmod(begin, 8)
    value = byte(first)
    if shift:  # a byte is not negative, so that division shifts it
        value = build.binary("Div", value, build.constant(np.array(1 << shift, np.int32)))
    if shift + bits > 8:
        high = build.binary("Mul", byte(first + 1), build.constant(np.array(1 << (8 - shift), np.int32)))
        value = build.binary("Add", value, high)
    return build.binary("BitwiseAnd", value, build.constant(np.array((1 << bits) - 1, np.int32)))


def _count(value: SSAValue) -> int:
    return prod(_static(value))


def _static(value: SSAValue) -> tuple[int, ...]:
    dims = types.dims_of(value.type)
    assert dims is not None
    extents = tuple(d for d in dims if isinstance(d, int))
    assert len(extents) == len(dims), "weights have known shapes"
    return extents
