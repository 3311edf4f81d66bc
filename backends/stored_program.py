"""The program of an artifact, read back: the module as it stands there, weights one code a byte again."""

from __future__ import annotations

from pathlib import Path

import numpy as np
from xdsl.rewriter import Rewriter

from qcc.ir.dialects.q import Weight, part
from qcc.ir.errors import BadInput
from qcc.ir.formats import load_element
from qcc.ir.layout import Layout, unpack
from qcc.ir.program import INDEX, Program, index_bits, stored_value
from qcc.ir.sparsity import restore
from qcc.ir.text import parse
from qcc.ir.types import QuantizedType
from qcc.ir.weights import WeightStore

from .artifact import MODULE, WEIGHTS, read_manifest, require_unchanged


def open_program(folder: Path) -> Program:
    """The program of an artifact, its codes unpacked.

    Raises `BadInput` where a file was changed or a weight is missing.
    """
    require_unchanged(folder, read_manifest(folder))
    program = Program(parse((folder / MODULE).read_text(), str(folder / MODULE)), WeightStore.open(folder / WEIGHTS))
    done: set[str] = set()
    for op in list(program.weight_ops()):
        if isinstance(op.result.type, QuantizedType):
            _unpack(op, op.result.type, program, first=op.weight not in done)
            done.add(op.weight)
    return program


def _unpack(op: Weight, type_: QuantizedType, program: Program, *, first: bool) -> None:
    """One code a byte, no layout; a weight that several operations read is unpacked once."""
    fmt, store = type_.format, program.weights
    if first:
        codes = part(op.weight, "codes")
        if type_.layout is not None and fmt.sparsity is not None:
            store[codes] = _dense(op, type_, program)
        elif type_.layout is not None:
            store[codes] = _codes(
                store[codes], fmt.bits, type_.shape, type_.layout, signed=fmt.family.signed, key=codes
            )
        if op.zero_layout is not None and fmt.zero_level is not None:
            zero, element = part(op.weight, "zero"), load_element(fmt.zero_level.dtype)
            shape = fmt.zero_level.shape_of(type_.shape)
            store[zero] = _codes(store[zero], element.bits, shape, op.zero_layout, signed=element.signed, key=zero)
    op.properties.pop("zero", None)
    Rewriter.replace_value_with_new_type(op.result, QuantizedType.of(type_.expressed, fmt))
    if first:
        stored_value(op, program).check(op.weight)


def _dense(op: Weight, type_: QuantizedType, program: Program) -> np.ndarray:
    """Sparse codes with those of 0 between them again."""
    fmt, store, key = type_.format, program.weights, part(op.weight, "codes")
    assert fmt.sparsity is not None and fmt.zero_code is not None
    n, m = fmt.sparsity
    shape = (*type_.shape[:-1], -(-type_.shape[-1] // m) * n)
    kept = _codes(store[key], fmt.bits, shape, type_.layout, signed=fmt.family.signed, key=key)
    index = _codes(store[part(op.weight, "index")], index_bits(fmt), shape, INDEX, signed=False, key=key)
    return restore(kept, index, n, m, fmt.zero_code, type_.shape[-1])


def _codes(
    packed: np.ndarray, bits: int, shape: tuple[int, ...], layout: object, *, signed: bool, key: str
) -> np.ndarray:
    if not isinstance(layout, Layout):
        raise BadInput(f"weight {key!r} lies in the record `{layout}`, which is not taken apart here")
    return unpack(np.ascontiguousarray(packed).reshape(-1).view(np.uint8), bits, shape, layout, signed)
