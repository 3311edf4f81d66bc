"""What a stored weight means: standard operators from its parts to float values.

    unpack by shifts, masks and one transpose  ->  Cast, or Gather in a table  ->  (codes - zero) * scale +- offset
    outliers by ScatterND

Levels in float8 are bytes that a table of 256 values decodes: runtimes have few kernels for such tensors.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from xdsl.ir import SSAValue

from . import types
from .builder import F32, I32, I64, Builder
from .dialects.q import Weight, part
from .expand_layout import unpacked
from .expand_record import RecordParts, signed
from .formats import load_element
from .layout import AnyLayout, Record
from .level import Level
from .levels import level_dtype
from .program import INDEX, Program, index_bits
from .quantized import inner_blocks, outlier_rows, part_bits
from .types import QuantizedType


def decoded_weight(op: Weight, program: Program, build: Builder) -> SSAValue:
    """The value of a quantized `q.weight`, in the element type that it expresses."""
    type_ = op.result.type
    assert isinstance(type_, QuantizedType)
    value = _Weight(op, type_, program, build).decoded()
    element = types.element_type(type_)
    return value if element == F32 else build.cast(value, element)


class _Weight:
    """A weight while its operators are written."""

    def __init__(self, op: Weight, type_: QuantizedType, program: Program, build: Builder) -> None:
        self.op, self.format, self.shape = op, type_.format, type_.shape
        self.layout, self.store, self.build = type_.layout, program.weights, build
        self.levels = self.format.levels()
        self.record: RecordParts | None = None
        if isinstance(self.layout, Record):
            bits = part_bits(self.format)
            self.record = RecordParts(self._weight("codes"), self.layout, bits, self.shape, build)

    def decoded(self) -> SSAValue:
        fmt, build = self.format, self.build
        value = self._elements()
        if fmt.zero_level is not None:
            value = build.binary("Sub", value, self._wide(self._zero_points(fmt.zero_level), fmt.zero_level))
        elif isinstance(fmt.zero, float):
            value = build.binary("Sub", value, build.scalar(fmt.zero))
        if fmt.scales:
            scale = self._product("scale", fmt.scales)
            if fmt.mean is not None:
                mean = self._to_inner(self._numbers("mean", fmt.mean), fmt.mean, fmt.scale)
                scale = build.binary("Add", scale, mean)
            value = build.binary("Mul", value, self._wide(scale, fmt.scale))
        if fmt.offset is not None:
            offset = self._wide(self._product(fmt.offset.word, fmt.offset.levels), fmt.offset.levels[0])
            value = build.binary("Sub" if fmt.offset.negative else "Add", value, offset)
        return self._with_outliers(value)

    def _elements(self) -> SSAValue:
        """Codes as the unscaled values of their elements."""
        fmt, build = self.format, self.build
        codes = self._codes()
        if fmt.is_integer:
            return build.cast(codes, F32)
        index = build.cast(codes, I32)
        if fmt.codebook is not None:
            assert fmt.lookup is not None
            table = self._numbers("table", fmt.lookup, (*fmt.lookup.shape_of(self.shape), fmt.codebook.entries))
            index = self._shifted(index, np.arange(self._blocks(fmt.lookup)), fmt.codebook.entries)
            return self._gather(build.reshape(table, [-1]), index)
        tables = np.stack([family.table for family in fmt.families])
        if fmt.family.signed:  # a table is by bit pattern
            index = build.binary("BitwiseAnd", index, build.constant(np.array((1 << fmt.bits) - 1, np.int32)))
        if len(fmt.choices) > 1:
            assert fmt.lookup is not None
            choice = build.cast(self._weight("choice"), I32)
            step = build.binary("Mul", choice, build.constant(np.array(1 << fmt.bits, np.int32)))
            index = build.binary("Add", index, self._wide(step, fmt.lookup))
        values = np.where(np.isnan(tables), 0, tables).astype(np.float32)
        return self._gather(build.constant(values.reshape(-1)), index)

    def _codes(self) -> SSAValue:
        fmt = self.format
        if self.record is not None:
            raw = self.record.raw("codes")
            return signed(raw, fmt.bits, self.build) if fmt.family.signed else raw
        codes = self._weight("codes")
        if self.layout is None or isinstance(self.layout, Record):
            return codes
        if fmt.sparsity is None:
            return unpacked(codes, fmt.bits, fmt.family.signed, self.layout, self.shape, self.build)
        return self._scattered(codes, self.layout, fmt.sparsity)

    def _scattered(self, packed: SSAValue, layout: AnyLayout, sparsity: tuple[int, int]) -> SSAValue:
        """Kept codes at their places among codes of 0."""
        fmt, build, (n, m) = self.format, self.build, sparsity
        rows, extent = self.shape
        count = -(-extent // m)
        kept = unpacked(packed, fmt.bits, fmt.family.signed, layout, (rows, count * n), build)
        index = unpacked(self._weight("index"), index_bits(fmt), False, INDEX, (rows, count * n), build)
        starts = np.repeat(np.arange(count, dtype=np.int32) * m, n)
        where = build.cast(build.binary("Add", index, build.constant(starts)), I64)
        whole = types.tensor_type(I32, [rows, count * m])
        fill = build.op(
            "onnx.ConstantOfShape",
            [build.constant(np.array([rows, count * m], np.int64))],
            whole,
            {"value": np.array([fmt.zero_code], np.int32)},
        )
        scattered = build.op("onnx.ScatterElements", [fill, where, kept], whole, {"axis": 1})
        return build.crop(scattered, self.shape)

    def _blocks(self, level: Level) -> int:
        return int(np.prod(level.shape_of(self.shape), dtype=np.int64))

    def _shifted(self, index: SSAValue, blocks: np.ndarray, entries: int) -> SSAValue:
        assert self.format.lookup is not None
        if len(blocks) == 1:
            return index
        starts = self.build.constant(
            (blocks * entries).astype(np.int32).reshape(self.format.lookup.shape_of(self.shape))
        )
        return self.build.binary("Add", index, self._wide(starts, self.format.lookup))

    def _gather(self, table: SSAValue, index: SSAValue) -> SSAValue:
        type_ = types.tensor_type(F32, self.shape)
        return self.build.op("onnx.Gather", [table, index], type_, {"axis": 0})

    def _zero_points(self, level: Level) -> SSAValue:
        if self.op.zero_layout is None:
            return self._as_float("zero", level)
        zero = self._weight("zero")
        family = load_element(level.dtype)
        shape = level.shape_of(self.shape)
        codes = unpacked(zero, family.bits, family.signed, self.op.zero_layout, shape, self.build)
        return self.build.cast(codes, F32)

    def _product(self, name: str, levels: Sequence[Level]) -> SSAValue:
        """The product of levels, one number for each innermost block, from the outermost inwards."""
        product: SSAValue | None = None
        for i in reversed(range(len(levels))):
            numbers = self._numbers(f"{name}{i}" if i else name, levels[i])
            if i:
                numbers = self._to_inner(numbers, levels[i], levels[0])
            if product is None:
                product = numbers
            else:  # the inner one has the larger shape
                product = (
                    self.build.binary("Mul", numbers, product) if i == 0 else self.build.binary("Mul", product, numbers)
                )
        assert product is not None
        return product

    def _numbers(self, name: str, level: Level, shape: tuple[int, ...] | None = None) -> SSAValue:
        """The numbers of a level as float32 in the shape of its blocks."""
        return self.build.reshape(self._as_float(name, level), shape or level.shape_of(self.shape))

    def _as_float(self, name: str, level: Level) -> SSAValue:
        """Numbers as float32: bytes of float8 through a table of all 256."""
        if self.record is not None:
            return self.record.numbers(name, level_dtype(level.dtype))
        array, value = self.store[part(self.op.weight, name)], self._weight(name)
        if array.dtype.itemsize > 1 or array.dtype.kind in "iu":
            return self.build.cast(value, F32) if array.dtype != np.float32 else value
        table = np.arange(256, dtype=np.uint8).view(array.dtype).astype(np.float32)
        table[~np.isfinite(table)] = 0
        key = part(self.op.weight, name)
        self.store[key] = array.view(np.uint8)
        index = self.build.cast(self.build.weight(key, self.store[key]), I32)
        type_ = types.tensor_type(F32, array.shape)
        return self.build.op("onnx.Gather", [self.build.constant(table), index], type_, {"axis": 0})

    def _weight(self, name: str) -> SSAValue:
        key = part(self.op.weight, name)
        return self.build.weight(key, self.store[key])

    def _to_inner(self, numbers: SSAValue, level: Level, inner: Level) -> SSAValue:
        return spread_value(numbers, inner_blocks(level, inner, self.shape), inner.shape_of(self.shape), self.build)

    def _wide(self, numbers: SSAValue, level: Level) -> SSAValue:
        """Numbers of blocks in a shape that broadcasts against the tensor, its columns in their own order."""
        numbers = self.build.reshape(numbers, level.shape_of(self.shape))
        wide = spread_value(numbers, level.block_of(self.shape), self.shape, self.build)
        dims = types.dims_of(wide.type)
        assert dims is not None
        if not self.format.permuted or dims[-1] == 1:
            return wide
        place = np.argsort(self.store[part(self.op.weight, "order")]).astype(np.int64)
        operands = [wide, self.build.constant(place)]
        return self.build.op("onnx.Gather", operands, wide.type, {"axis": len(dims) - 1})

    def _with_outliers(self, value: SSAValue) -> SSAValue:
        fmt, build = self.format, self.build
        columns = self.store[part(self.op.weight, "outlier_columns")] if fmt.outliers else np.zeros(0, np.int32)
        if not columns.size:
            return value
        kept = self._weight("outlier_values")
        kept = kept if types.element_type(kept.type) == F32 else build.cast(kept, F32)
        assert fmt.outliers is not None
        if fmt.outliers.columns:
            turned = build.transpose(value, [1, 0])
            index = self._derived("outlier_index", columns.astype(np.int64).reshape(-1, 1))
            scattered = build.op("onnx.ScatterND", [turned, index, build.transpose(kept, [1, 0])], turned.type)
            return build.transpose(scattered, [1, 0])
        rows = outlier_rows(self.store[part(self.op.weight, "outlier_start")])
        index = self._derived("outlier_index", np.stack([rows, columns], axis=1).astype(np.int64))
        return build.op("onnx.ScatterND", [value, index, kept], value.type)

    def _derived(self, name: str, array: np.ndarray) -> SSAValue:
        """A tensor that follows from the parts, under a name beside them."""
        key = part(self.op.weight, name)
        self.store[key] = array
        return self.build.weight(key, array)


def spread_value(value: SSAValue, blocks: Sequence[int], shape: Sequence[int], build: Builder) -> SSAValue:
    """One value a block, in a shape that broadcasts against `shape`: whole axes stay 1, partial blocks are repeated."""
    dims = types.dims_of(value.type)
    assert dims is not None
    extents = [int(d) for d in dims if isinstance(d, int)]
    for axis, (block, extent) in enumerate(zip(blocks, shape, strict=True)):
        if block == 1 or extents[axis] in (1, extent):
            continue
        apart = [*extents[: axis + 1], block, *extents[axis + 1 :]]
        ones = [*extents[: axis + 1], 1, *extents[axis + 1 :]]
        type_ = types.tensor_type(types.element_type(value.type), apart)
        operands = [build.reshape(value, ones), build.constant(np.array(apart, np.int64))]
        repeated = build.op("onnx.Expand", operands, type_)
        extents[axis] *= block
        value = build.reshape(repeated, extents)
        extents[axis] = extent
        value = build.crop(value, extents)
    return value
