"""The parts of a record back from its bytes, in standard operators: bits are gathered, summed, and put in their order.

Every bit becomes an int32 on the way, so this is the definition and no way to run a large network.
"""

from __future__ import annotations

from dataclasses import replace
from math import prod

import numpy as np
from xdsl.ir import SSAValue

from . import types
from .builder import F32, I32, Builder
from .expand_layout import undone
from .layout import Layout, Record, lowering
from .levels import LevelDtype


class RecordParts:
    """Unpacks parts of the tensor of `shape` that `packed` [records, bytes] holds; `bits` of a number of each part."""

    def __init__(
        self, packed: SSAValue, record: Record, bits: dict[str, int], shape: tuple[int, ...], build: Builder
    ) -> None:
        self.record, self.bits, self.shape, self.build = record, bits, shape, build
        self.one = tuple(dimension.block for dimension in record.dimensions)  # a tensor of few records
        self.places = _bits_of(packed, self._flips(), build)

    def raw(self, part: str) -> SSAValue:
        """The numbers of a part as int32 of its shape, their bits read as an unsigned number."""
        chain, count = self._chain(part)
        coords = chain.inverse(np.arange(count), self.record.part_shape(part, self.one))
        width = self.bits[part]
        where = [self.record.index(part, coords, self.one, self.bits, bit) for bit in range(width)]
        index = np.stack([np.broadcast_to(w, (count,)) for w in where]).reshape(-1).astype(np.int64)
        dims = types.dims_of(self.places.type)
        assert dims is not None and isinstance(dims[0], int)
        records, build = dims[0], self.build
        gathered = types.tensor_type(I32, [records, width * count])
        found = build.op("onnx.Gather", [self.places, build.constant(index)], gathered, {"axis": 1})
        weights = build.constant((1 << np.arange(width)).astype(np.int32).reshape(1, width, 1))
        scaled = build.binary("Mul", build.reshape(found, [records, width, count]), weights)
        summed = types.tensor_type(I32, [records, count])
        codes = build.op("onnx.ReduceSum", [scaled, build.constant(np.array([1], np.int64))], summed, {"keepdims": 0})
        steps = lowering(chain, self.record.part_shape(part, self.shape))
        return undone(steps, build.reshape(codes, [records * count]), build)

    def numbers(self, part: str, dtype: LevelDtype) -> SSAValue:
        """The numbers of a level as float32."""
        raw = self.raw(part)
        if dtype.is_integer:
            return self.build.cast(raw if dtype.low >= 0 else signed(raw, dtype.bits, self.build), F32)
        if dtype.bits > 16:
            return _float32(raw, self.build)
        values = np.arange(1 << dtype.bits).astype(f"u{dtype.bits // 8}").view(dtype.numpy).astype(np.float32)
        table = self.build.constant(np.where(np.isfinite(values), values, 0).astype(np.float32))
        type_ = types.tensor_type(F32, types.dims_of(raw.type))
        return self.build.op("onnx.Gather", [table, raw], type_, {"axis": 0})

    def _chain(self, part: str) -> tuple[Layout, int]:
        """The part's own digits, those of one record last, and how many numbers a record has."""
        held = self.record.parts()[part]
        dimensions = tuple(
            replace(dimension, digits=tuple(digit for digit in dimension.digits if digit.name in held))
            for dimension in self.record.dimensions
        )
        inner = tuple(name for name in held if name not in self.record.outer)
        chain = Layout(dimensions, (*self.record.outer, *inner))
        extents = chain.extents(self.record.part_shape(part, self.one))
        return chain, prod(extents[name] for name in inner)

    def _flips(self) -> np.ndarray:
        """The bytes of a record whose numbers are all 0: the bits that it stores flipped."""
        kinds = {8: np.uint8, 16: np.uint16, 32: np.uint32}
        nothing = {
            part: np.zeros(self.record.part_shape(part, self.one), kinds.get(self.bits[part], np.uint8))
            for part in self.record.parts()
        }
        return self.record.pack(nothing, self.bits, self.one)[0]


def _bits_of(packed: SSAValue, flips: np.ndarray, build: Builder) -> SSAValue:
    """int32 [records, bits of one], least significant bit first."""
    dims = types.dims_of(packed.type)
    assert dims is not None and isinstance(dims[0], int)
    records, size = dims[0], flips.size
    wide = build.reshape(build.cast(packed, I32), [records, size])
    if flips.any():
        wide = build.binary("BitwiseXor", wide, build.constant(flips.astype(np.int32)))
    apart = types.tensor_type(I32, [records, size, 8])
    powers = build.constant((1 << np.arange(8)).astype(np.int32))
    shifted = build.op("onnx.Div", [build.reshape(wide, [records, size, 1]), powers], apart)
    return build.reshape(
        build.binary("BitwiseAnd", shifted, build.constant(np.array(1, np.int32))), [records, 8 * size]
    )


def signed(raw: SSAValue, bits: int, build: Builder) -> SSAValue:
    """Unsigned bits read as two's complement."""
    half = build.constant(np.array(1 << (bits - 1), np.int32))
    return build.binary("Sub", build.binary("BitwiseXor", raw, half), half)


def _float32(raw: SSAValue, build: Builder) -> SSAValue:
    """A finite normal float32 (or 0) from its 32 bits: (1 + mantissa / 2^23) * 2^(exponent - 127) with its sign."""
    dims = types.dims_of(raw.type)
    fraction = build.binary("BitwiseAnd", raw, build.constant(np.array((1 << 23) - 1, np.int32)))
    above = build.binary("Sub", raw, fraction)
    exponent = build.binary(
        "BitwiseAnd",
        build.binary("Div", above, build.constant(np.array(1 << 23, np.int32))),
        build.constant(np.array(255, np.int32)),
    )
    table = build.constant(np.where(np.arange(256) % 255, np.exp2(np.arange(256.0) - 127), 0).astype(np.float32))
    power = build.op("onnx.Gather", [table, exponent], types.tensor_type(F32, dims), {"axis": 0})
    part = build.binary("Mul", build.cast(fraction, F32), build.scalar(2.0**-23))
    value = build.binary("Mul", build.binary("Add", part, build.scalar(1.0)), power)
    negative = types.tensor_type(types.element_of("bool").ir, dims)
    sign = build.op("onnx.Less", [raw, build.constant(np.array(0, np.int32))], negative)
    return build.op("onnx.Where", [sign, build.unary("Neg", value), value], value.type)
