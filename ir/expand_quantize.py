"""What `q.quantize` means: a tensor rounded to the codes of a format, whose scales are given or follow from the data.

    codes = clip(round(x / scale) + zero, low, high)         integers
    codes = the nearest value of the element, clipped        small floats: round(x / step) step, the step of its binade

Codes stay numbers here, int32 or the unscaled float32 values: storage is no matter of activations. Scales in `e8m0` and
levels of scales follow the rules of `ir/quantize.py`.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence

import numpy as np
from xdsl.dialects import builtin
from xdsl.ir import SSAValue

from . import types
from .builder import F32, I32, Builder
from .dialects.q import Quantize
from .errors import NotSupported
from .format import Format
from .formats import ElementFamily, load_element
from .levels import level_dtype
from .types import QuantizedType

Decode = Callable[[Builder], SSAValue]
"""Writes the float value of a quantized one."""


def quantized_value(op: Quantize, build: Builder) -> Decode:
    """Write the codes of a `q.quantize` before it; gives what writes its float value."""
    type_ = op.results[0].type
    assert isinstance(type_, QuantizedType)
    fmt = type_.format
    if fmt.lookup or fmt.offset or fmt.mean or fmt.permuted or fmt.sparsity or fmt.outliers:
        raise NotSupported(f"{op.where()}: activations in {fmt} have no expansion", hint="use this format for weights")
    x, restore = _blocked(op.operands[0], fmt, build)
    scale, zero = op.slot(1), op.slot(2)
    if scale is None:
        scale, zero = _dynamic_parameters(x, fmt, build)
    scaled = build.binary("Div", x, _nonzero(scale, build) if len(fmt.scales) > 1 else scale)
    if fmt.is_integer:
        rounded = build.unary("Round", scaled)
        if zero is not None:
            rounded = build.binary("Add", rounded, build.cast(zero, F32))
        codes = build.cast(_clipped(rounded, fmt.family, build), I32)
    else:
        codes = _rounded(scaled, fmt.element, build)

    def decode(build: Builder) -> SSAValue:
        value = build.cast(codes, F32)
        if zero is not None:
            value = build.binary("Sub", value, build.cast(zero, F32))
        return restore(build.binary("Mul", value, scale), build)

    return decode


def _clipped(value: SSAValue, family: ElementFamily, build: Builder) -> SSAValue:
    return build.op("onnx.Clip", [value, build.scalar(family.low), build.scalar(family.high)], value.type)


def _rounded(x: SSAValue, element: str, build: Builder) -> SSAValue:
    """The nearest values of a small float element: multiples of the step of the binade that holds |x|, ties to even."""
    family = load_element(element)
    values = np.unique(np.abs(family.table[np.isfinite(family.table)])).astype(np.float64)
    steps = np.diff(values)
    if len(values) < 3 or np.any(np.diff(steps) < 0):
        raise NotSupported(f"activations in {element} have no expansion", hint="use e4m3 or integers")
    starts = np.flatnonzero(np.diff(steps)) + 1  # where the step grows
    magnitude = _clipped(build.unary("Abs", x), family, build)
    step = build.scalar(float(steps[0]))
    for index in starts:
        reached = _at_least(magnitude, float(values[index]), build)
        step = build.op("onnx.Where", [reached, build.scalar(float(steps[index])), step], x.type)
    rounded = build.binary("Mul", build.unary("Round", build.binary("Div", magnitude, step)), step)
    return build.binary("Mul", rounded, build.unary("Sign", x))


def _at_least(value: SSAValue, bound: float, build: Builder) -> SSAValue:
    type_ = types.tensor_type(builtin.IntegerType(1), types.dims_of(value.type))
    return build.op("onnx.GreaterOrEqual", [value, build.scalar(bound)], type_)


def _blocked(x: SSAValue, fmt: Format, build: Builder) -> tuple[SSAValue, Callable[[SSAValue, Builder], SSAValue]]:
    """Split the last axis into blocks, padded with zeros, where the format has blocks shorter than the axis."""
    block = fmt.scale.block
    if block is None or block == (None,):
        return x, lambda v, _: v
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

    def restore(value: SSAValue, build: Builder) -> SSAValue:
        whole = build.reshape(value, [*keep, count * size])
        if count * size == extent:
            return whole
        bounds = [build.constant(np.array([v], np.int64)) for v in (0, extent, len(dims) - 1)]
        return build.op("onnx.Slice", [whole, *bounds], types.tensor_type(F32, dims))

    return out, restore


def _dynamic_parameters(x: SSAValue, fmt: Format, build: Builder) -> tuple[SSAValue, SSAValue | None]:
    """Scale (and zero point) of each block from its own range, which includes zero. All-zero blocks get scale 1."""
    per_tensor = fmt.scale.block is None
    family = fmt.family
    if fmt.zero is None:
        peak = _reduce("ReduceMax", build.unary("Abs", x), per_tensor, build)
        return _levels(peak, fmt, build), None
    low = _reduce("ReduceMin", x, per_tensor, build)
    high = _reduce("ReduceMax", x, per_tensor, build)
    low = build.op("onnx.Min", [low, build.scalar(0.0)], low.type)
    high = build.op("onnx.Max", [high, build.scalar(0.0)], high.type)
    span = build.binary("Sub", high, low)
    scale = _nonzero(build.binary("Div", span, build.scalar(family.high - family.low)), build)
    return scale, build.unary("Round", build.binary("Sub", build.scalar(family.low), build.binary("Div", low, scale)))


def _levels(peak: SSAValue, fmt: Format, build: Builder) -> SSAValue:
    """The scale of each block from its largest magnitude, rounded to what the levels of scales hold."""
    high = fmt.family.high
    scale = build.binary("Div", peak, build.scalar(high))
    outer = [str(level) for level in fmt.scales[1:]]
    if outer == ["f32 per tensor"]:
        inside = level_dtype(fmt.scale.dtype)
        largest = _reduce("ReduceMax", scale, True, build)
        whole = _nonzero(build.binary("Div", largest, build.scalar(inside.high)), build)
        inner = _rounded(build.binary("Div", scale, whole), fmt.scale.dtype, build)
        return build.binary("Mul", inner, whole)  # 0 where a block is too small for the inner scale
    if outer:
        raise NotSupported(f"activations in {fmt} have no expansion: one outer scale, per tensor, is computed")
    if fmt.scale.dtype == "e8m0":
        return _power(peak, math.floor(math.log2(high)), build)
    if fmt.scale.dtype != "f32":
        raise NotSupported(f"activations in {fmt} have no expansion: scales that are computed are f32 or e8m0")
    return _nonzero(scale, build)


def _power(peak: SSAValue, exponent: int, build: Builder) -> SSAValue:
    """2^(floor(log2 peak) - exponent), exactly: the logarithm is put right where rounding moved it; 1 for zero."""
    safe = _nonzero(peak, build)
    log = build.binary("Mul", build.unary("Log", safe), build.scalar(1 / math.log(2)))
    index = build.op("onnx.Clip", [build.unary("Floor", log), build.scalar(-126.0), build.scalar(127.0)], log.type)
    index = build.cast(build.binary("Add", index, build.scalar(126.0)), I32)
    table = build.constant(np.exp2(np.arange(-126, 128)).astype(np.float32))
    power = build.op("onnx.Gather", [table, index], peak.type, {"axis": 0})
    over = _compare("Greater", power, safe, build)
    power = build.op("onnx.Where", [over, build.binary("Mul", power, build.scalar(0.5)), power], peak.type)
    under = _compare("GreaterOrEqual", safe, build.binary("Mul", power, build.scalar(2.0)), build)
    power = build.op("onnx.Where", [under, build.binary("Mul", power, build.scalar(2.0)), power], peak.type)
    return build.binary("Mul", power, build.scalar(2.0**-exponent))


def _compare(name: str, left: SSAValue, right: SSAValue, build: Builder) -> SSAValue:
    type_ = types.tensor_type(builtin.IntegerType(1), types.dims_of(left.type))
    return build.op(f"onnx.{name}", [left, right], type_)


def _nonzero(scale: SSAValue, build: Builder) -> SSAValue:
    empty = _compare("Equal", scale, build.scalar(0.0), build)
    return build.op("onnx.Where", [empty, build.scalar(1.0), scale], scale.type)


def _reduce(name: str, value: SSAValue, per_tensor: bool, build: Builder) -> SSAValue:
    """Over everything, to a scalar, or over the last axis, which stays as 1."""
    dims = types.dims_of(value.type)
    reduced: Sequence[types.Dim] | None = () if per_tensor else (None if dims is None else [*dims[:-1], 1])
    operands = [value] if per_tensor else [value, build.constant(np.array([-1], np.int64))]
    return build.op(f"onnx.{name}", operands, types.tensor_type(F32, reduced), {"keepdims": 0 if per_tensor else 1})
