"""Put the parts of every weight that has a layout where it says: one byte a code becomes packed bytes. It runs last."""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np

from qcc.ir.dialects.q import Weight, part
from qcc.ir.layout import AnyLayout, Layout, Record, pack
from qcc.ir.layout.bits import refuse_codes
from qcc.ir.program import INDEX, Program, index_bits, stored_value
from qcc.ir.quantized import Quantized, part_bits
from qcc.ir.rewrite import Pass, ProgramContext
from qcc.ir.sparsity import compress
from qcc.ir.types import QuantizedType

_CHUNK = 1 << 22
"""Codes that are packed at a time where storage follows the rows: the temporaries stay small."""


@dataclass(frozen=True)
class PackWeights(Pass):
    """Pack codes, and zero points that have a layout of their own, one tensor at a time.

    Of codes that are n:m sparse only the kept ones are stored, and a part `index` says where each stood. A record takes
    all parts of a weight into one: its bytes become the part `codes`, and the other parts go.
    """

    name = "pack_weights"

    def run(self, program: Program, ctx: ProgramContext) -> None:
        """A weight shared by several operations is packed once."""
        del ctx
        done: set[str] = set()
        for op in program.weight_ops():
            type_ = op.result.type
            if isinstance(type_, QuantizedType) and type_.layout is not None and op.weight not in done:
                done.add(op.weight)
                _pack(op, type_, type_.layout, program)


def _pack(op: Weight, type_: QuantizedType, layout: AnyLayout | Record, program: Program) -> None:
    fmt, store = type_.format, program.weights
    codes, zero = part(op.weight, "codes"), part(op.weight, "zero")
    if store[codes].shape != type_.shape:
        return  # packed before
    if isinstance(layout, Record):
        value = stored_value(op, program)
        for name in value.parts:
            del store[part(op.weight, name)]
        store[codes] = pack_record(value, layout)
        return
    dense = store[codes]
    if fmt.sparsity is not None and fmt.zero_code is not None:
        dense, index = compress(dense, *fmt.sparsity, fmt.zero_code, f"weight {op.weight!r}")
        store[part(op.weight, "index")] = pack(index, index_bits(fmt), INDEX)
    store[codes] = pack_rows(dense, fmt.bits, layout)
    if op.zero_layout is not None and store[zero].shape == fmt.scale_shape(type_.shape):
        store[zero] = pack(store[zero], part_bits(fmt)["zero"], op.zero_layout)


def pack_rows(codes: np.ndarray, bits: int, layout: AnyLayout) -> np.ndarray:
    """`pack`, some rows at a time where the slots of some rows follow those of the rows before."""
    rows = _rows_at_a_time(codes, bits, layout)
    if not rows:
        return pack(codes, bits, layout)
    refuse_codes(codes, bits, 0)  # here, where it can say which row
    packed = np.empty(-(-_stored_bits(codes.shape, bits, layout) // 8), np.uint8)
    place = 0
    for begin in range(0, len(codes), rows):
        piece = pack(codes[begin : begin + rows], bits, layout)
        packed[place : place + piece.size] = piece
        place += piece.size
    return packed


def _rows_at_a_time(codes: np.ndarray, bits: int, layout: AnyLayout) -> int:
    """Whole blocks of rows that fill whole bytes, or 0: the free digit of the rows must be stored outermost."""
    if not isinstance(layout, Layout) or codes.ndim < 2 or codes.size <= _CHUNK or layout.swizzles:
        return 0
    first = layout.dimensions[0]
    if layout.bit_axis == 0 or first.digits[0].radix is not None or layout.order[0] != first.digits[0].name:
        return 0
    block = first.block
    rows = max(1, _CHUNK // (math.prod(codes.shape[1:]) * block or 1)) * block
    return rows if _stored_bits((rows, *codes.shape[1:]), bits, layout) % 8 == 0 else rows * 8


def _stored_bits(shape: tuple[int, ...], bits: int, layout: AnyLayout) -> int:
    """Bits of all slots: each holds a code, or one bit of it."""
    planes = layout.bits_first()
    return layout.size(shape) * bits if planes is None else planes.size((bits, *shape))


def pack_record(value: Quantized, record: Record) -> np.ndarray:
    """The bytes [records, bytes] of all parts of a tensor in a record that names them, some rows at a time."""
    first, levels, bits = record.dimensions[0], value.format.levels(), part_bits(value.format)
    rows = max(1, _CHUNK // (math.prod(value.shape[1:]) * first.block or 1)) * first.block
    apart = set(value.parts) == {"codes", *levels} and all(v.block_of(value.shape)[0] == 1 for v in levels.values())
    if rows >= value.shape[0] or not apart or first.digits[0].radix or record.outer[0] != first.digits[0].name:
        return record.pack(dict(value.parts), bits, value.shape)
    return np.concatenate([record.pack(dict(some.parts), bits, some.shape) for _, some in value.chunks(rows)])
