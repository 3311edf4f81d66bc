"""A program as a standard ONNX file: quantized weights in operators that others read, the rest as its expansion."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from xdsl.ir import Operation, SSAValue
from xdsl.rewriter import InsertPoint, Rewriter

from qcc.ir import types
from qcc.ir.builder import F32, Builder
from qcc.ir.codecs import qdq
from qcc.ir.convert import convert
from qcc.ir.dialects.q import Conv, Dequantize, Embedding, Linear, Weight, weight_of
from qcc.ir.emit_onnx import emit, types_opset
from qcc.ir.errors import NotSupported
from qcc.ir.expand import expand
from qcc.ir.program import Program, stored_value
from qcc.ir.quantized import Quantized
from qcc.ir.rewrite import remove_dead, replace
from qcc.ir.types import QuantizedType

from . import Record

_EMBEDDED = (1 << 31) - (1 << 26)
"""Bytes of weights up to which a model is one file."""


@dataclass(frozen=True)
class Site:
    """Where operators are written: before one operation of a program, weights of which have a name."""

    program: Program
    build: Builder
    name: str

    def weight(self, which: str, array: np.ndarray) -> SSAValue:
        """A tensor of the store."""
        key = f"{self.name}.{which}"
        self.program.weights[key] = array
        return self.build.weight(key, array)


WriteLinear = Callable[[Linear, SSAValue, Quantized, Site], tuple[SSAValue, str]]
"""The product of a layer for its float input and its weight; and the format that was written."""


def write_graph(program: Program, place: Path, linear: WriteLinear) -> list[Record]:
    """Write the model; what became of each weight. `NotSupported` names a weight that the operator cannot hold."""
    records: list[Record] = []
    for op in list(program.module.walk()):
        weight = weight_of(op.operands[1]) if isinstance(op, Linear | Embedding | Conv) else None
        if weight is None or not isinstance(weight.result.type, QuantizedType):
            continue
        source = str(weight.result.type.format)
        match op:
            case Linear():
                site = Site(program, Builder(op, types_opset(program, "")), weight.weight)
                product, written = linear(op, _float_input(op), stored_value(weight, program), site)
                bias = op.slot(2)
                replace(op, product if bias is None else site.build.binary("Add", product, bias))
                records.append(Record(weight.weight, source, written))
            case Embedding():
                written = _embedding(op, weight, program)
                records.append(Record(weight.weight, source, written))
            case _:
                records.append(Record(weight.weight, source, source, "as its expansion into standard operators"))
    remove_dead(program)
    _save(expand(program), place)
    return records


def dequantized(value: Quantized, site: Site) -> tuple[SSAValue, str]:
    """`DequantizeLinear` of a weight [N, K], which gives [K, N]; and the format that was written."""
    held = convert(value, qdq.accepted(value, site.name), site.name)
    x, scale, zero, axis, block = qdq.encode(held)
    slots = [site.weight("codes.qdq", x), site.weight("scale.qdq", scale)]
    if zero is not None:
        slots.append(site.weight("zero.qdq", zero))
    n, k = value.shape
    attributes: dict[str, object] = {"axis": axis, "block_size": block} if block else {"axis": axis}
    return site.build.op("onnx.DequantizeLinear", slots, types.tensor_type(F32, [k, n]), attributes), str(held.format)


def _embedding(op: Embedding, weight: Weight, program: Program) -> str:
    build = Builder(op, types_opset(program, ""))
    table, written = dequantized(stored_value(weight, program), Site(program, build, weight.weight))
    turned = build.transpose(table, [1, 0])
    found = build.op("onnx.Gather", [turned, op.operands[0]], op.results[0].type, {"axis": 0}, node=op.node)
    replace(op, found)
    return written


def _float_input(op: Operation) -> SSAValue:
    """The input of a layer, decoded where it is codes."""
    x = op.operands[0]
    if not isinstance(x.type, QuantizedType):
        return x
    decode = Dequantize([x], [x.type.expressed])
    Rewriter.insert_op(decode, InsertPoint.before(op))
    return decode.results[0]


def _save(program: Program, place: Path) -> None:
    """One file. `NotSupported` beyond what protobuf holds in one."""
    model = emit(program)
    if program.weights.bytes > _EMBEDDED:
        raise NotSupported(
            f"the model has {program.weights.bytes} bytes of weights, and one ONNX file holds less than 2 GiB",
            hint="use the artifact itself: its model.onnx keeps weights beside it",
        )
    place.write_bytes(model.embed(program.weights).SerializeToString())
