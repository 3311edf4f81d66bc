"""Integer codes as ONNX Runtime's kernels read them: the next width that they have, and one float32 scale a block.

Codes of 1, 3, 5, 6 and 7 bits take 2, 4 or 8; levels of scales are multiplied, which is what decoding them does first;
codes and zero points move together to where a kernel wants them: signed ones with zero points become unsigned, and
unsigned ones around the middle signed. The numbers stay the same, bit by bit.
"""

from __future__ import annotations

import dataclasses

import numpy as np
from xdsl.rewriter import Rewriter

from qcc.ir.dialects.q import Weight, part
from qcc.ir.format import Format, Offset
from qcc.ir.level import Level
from qcc.ir.program import Program, stored_value
from qcc.ir.quantized import combined, combined_scale, part_names
from qcc.ir.types import QuantizedType

_WIDTH = {1: 2, 3: 4, 5: 8, 6: 8, 7: 8}


def widened(fmt: Format) -> Format:
    """The format that a kernel could read the same numbers in; `fmt` itself where nothing needs to change."""
    if not _is_read_by_kernels(fmt):
        return fmt
    sign, zero, _ = _moved(fmt)
    single = len(fmt.scales) == 1 and fmt.mean is None and fmt.offset is None and fmt.scale.dtype in ("f32", "e8m0")
    shared = fmt.scale if single else Level("f32", fmt.scale.block)
    offset = fmt.offset and Offset(fmt.offset.negative, (shared,))
    element = f"{sign}{_WIDTH.get(fmt.bits, fmt.bits)}"
    return dataclasses.replace(fmt, element=element, scales=(shared,), zero=zero, mean=None, offset=offset)


def widen(op: Weight, program: Program) -> None:
    """Give a weight its `widened` format, in place."""
    type_ = op.result.type
    assert isinstance(type_, QuantizedType)
    fmt, wide, store = type_.format, widened(type_.format), program.weights
    if wide == fmt:
        return
    value = stored_value(op, program)
    _, _, shift = _moved(fmt)
    parts = {name: _shifted(value.parts[name], shift) for name in ("codes", "zero") if shift and name in value.parts}
    if wide.scales != fmt.scales or fmt.mean is not None:
        parts["scale"] = np.ascontiguousarray(combined_scale(value))
    if fmt.offset is not None:
        parts[fmt.offset.word] = np.ascontiguousarray(combined(value, fmt.offset.word, fmt.offset.levels))
    for name in set(part_names(fmt)) - set(part_names(wide)):
        del store[part(op.weight, name)]
    for name, array in parts.items():
        store[part(op.weight, name)] = array
    if len(fmt.scales) > 1:
        _note(op, f"scales of scales are multiplied, {fmt.scale.dtype} by {fmt.scales[1].dtype} into f32", program)
    if wide.bits != fmt.bits:
        _note(
            op, f"{fmt.bits}-bit codes take {wide.bits} bits each: ONNX Runtime has no kernel for {fmt.bits}", program
        )
    Rewriter.replace_value_with_new_type(op.result, QuantizedType.of(type_.expressed, wide))


def _moved(fmt: Format) -> tuple[str, Level | float | None, int]:
    """The sign of the codes that a kernel wants, its zero points, and how far both move."""
    sign, zero, bits = fmt.element[0], fmt.zero, _WIDTH.get(fmt.bits, fmt.bits)
    if not isinstance(zero, Level):
        return ("i", None, -int(zero)) if zero is not None else (sign, None, 0)
    if zero.dtype[0] not in "iu":
        return sign, zero, 0
    width = int(zero.dtype[1:])
    if sign == zero.dtype[0] == "i" and width == fmt.bits:
        return "u", dataclasses.replace(zero, dtype=f"u{bits}"), 1 << (bits - 1)
    return sign, dataclasses.replace(zero, dtype=f"{zero.dtype[0]}{_WIDTH.get(width, width)}"), 0


def _shifted(codes: np.ndarray, shift: int) -> np.ndarray:
    """Codes plus a number, as signed ones where they were unsigned, and the other way round: both wrap alike."""
    moved = codes.view(np.uint8) + np.uint8(shift % 256)
    return moved.view(np.uint8 if codes.dtype == np.int8 else np.int8)


def _is_read_by_kernels(fmt: Format) -> bool:
    """Whether kernels could take such codes: integers by blocks, with at most a zero point or an offset beside."""
    more = fmt.lookup or fmt.permuted or fmt.sparsity or fmt.outliers
    zero = fmt.zero is None or (fmt.zero_level is not None and fmt.zero_level.block == fmt.scale.block)
    zero = zero or (fmt.element[0] == "u" and fmt.zero == 1 << (fmt.bits - 1))
    offset = fmt.offset is None or (fmt.offset.levels[0].block == fmt.scale.block and fmt.zero is None)
    return fmt.is_integer and not more and zero and offset


def _note(op: Weight, reason: str, program: Program) -> None:
    for use in op.result.uses:
        program.decide(getattr(use.operation, "node", ""), "widened", reason)
