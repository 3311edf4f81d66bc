"""From fixed-point `q` operations to QDQ: QuantizeLinear and DequantizeLinear of int8, scale a scalar, zero point 0.

    q.quantize(x)    ->  QuantizeLinear(x, s, 0)          q.weight          ->  int8 initializer
    q.dequantize(c)  ->  DequantizeLinear(c, s, 0)        q.linear(x, w, b) ->  Gemm(DQ x, DQ w, DQ b, transB = 1)

Each tensor has one pair, whoever reads it, as the tool chains' own quantizers write it. Weights and biases are codes
behind a DequantizeLinear.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
from xdsl.dialects import builtin
from xdsl.ir import Operation, SSAValue
from xdsl.rewriter import Rewriter

from qcc.ir import types
from qcc.ir.builder import Builder
from qcc.ir.dialects.onnx import OnnxOp
from qcc.ir.dialects.q import Conv, Dequantize, Linear, Quantize, QuantizedOp, Weight, part
from qcc.ir.errors import NotSupported
from qcc.ir.expand import conv_attributes
from qcc.ir.program import Program
from qcc.ir.rewrite import builder, remove_dead
from qcc.ir.types import QuantizedType

_I8 = builtin.IntegerType(8)


@dataclass(frozen=True)
class Lowered:
    """A program in standard operators only, and the value that each layer became, by node."""

    program: Program
    results: dict[str, SSAValue]


def lower(program: Program) -> Lowered:
    """A lowered copy. `NotSupported` where a `q` operation is outside the form."""
    out = program.clone()
    lowering, results = _Lowering(out), dict[str, SSAValue]()
    for op in list(out.module.walk()):
        match op:
            case Dequantize():
                _replace(op, lowering.float_value(op.operands[0], op))
            case Conv() | Linear():
                results[op.node] = lowering.layer(op)
                _replace(op, results[op.node])
            case OnnxOp(op_type="MaxPool" | "AveragePool"):
                _replace(op, _pool(op, out))
            case _:
                pass
    remove_dead(out)
    left = [o for o in out.module.walk() if o.name.startswith("q.") and not isinstance(o, Weight)]
    if left:
        raise NotSupported(f"the fixed-point form has no {left[0].name}")
    return Lowered(out, results)


class _Lowering:
    def __init__(self, program: Program) -> None:
        self.program = program
        self._floats: dict[SSAValue, SSAValue] = {}

    def layer(self, op: Conv | Linear) -> SSAValue:
        """A convolution or Gemm between float values."""
        x, w = self.float_value(op.operands[0], op), self.float_value(op.operands[1], op)
        operands, build = [x, w, op.slot(2)], builder(op, self.program)
        if isinstance(op, Linear):
            return build.op("onnx.Gemm", operands, op.results[0].type, {"transB": 1}, node=op.node)
        kind = "onnx.ConvTranspose" if op.integer("transposed") else "onnx.Conv"
        return build.op(kind, operands, op.results[0].type, _written_out(op), node=op.node)

    def float_value(self, codes: SSAValue, reader: Operation) -> SSAValue:
        """What codes stand for, behind their DequantizeLinear."""
        if codes not in self._floats:
            self._floats[codes] = self._dequantized(codes, reader)
        return self._floats[codes]

    def _dequantized(self, codes: SSAValue, reader: Operation) -> SSAValue:
        owner, type_ = codes.owner, codes.type
        if not isinstance(type_, QuantizedType) or not _is_held(type_):
            raise NotSupported(f"{_where(reader)}: {type_} is not int8 with one power of two as scale")
        if isinstance(owner, Weight):
            return self._constant(owner, type_)
        if not isinstance(owner, Quantize) or owner.slot(1) is None:
            raise NotSupported(f"{_where(reader)}: its codes have no calibrated scale")
        following = owner.next_op
        assert following is not None
        build = Builder(following, builder(owner, self.program).opset)
        integers = types.tensor_type(_I8, types.dims_of(type_.expressed))
        zero = build.constant(np.array(0, np.int8))
        code = build.op("onnx.QuantizeLinear", [owner.operands[0], owner.slot(1), zero], integers)
        return build.op("onnx.DequantizeLinear", [code, owner.slot(1), zero], type_.expressed)

    def _constant(self, weight: Weight, type_: QuantizedType) -> SSAValue:
        build, store = builder(weight, self.program), self.program.weights
        scale = store[part(weight.weight, "scale")].astype(np.float32)
        if not type_.format.holds_scale(scale):
            raise NotSupported(f"q.weight {weight.weight!r}: its scale {scale} is not a power of two")
        codes = build.weight(part(weight.weight, "codes"), store[part(weight.weight, "codes")])
        operands = [codes, build.constant(scale.reshape(())), build.constant(np.array(0, np.int8))]
        return build.op("onnx.DequantizeLinear", operands, type_.expressed)


def _written_out(op: Conv) -> dict[str, object]:
    kernel = list(op.weight_type().shape[2:])
    return {"kernel_shape": kernel, "group": 1, **_window(len(kernel), conv_attributes(op))}


def _pool(op: OnnxOp, program: Program) -> SSAValue:
    attributes = _window(len(op.integers("kernel_shape") or ()), dict(op.parameters))
    if op.op_type == "AveragePool" and not op.integers("dilations"):
        attributes.pop("dilations")  # new in opset 19: tools know none
    return builder(op, program).op(op.name, op.operands, op.results[0].type, attributes, node=op.node)


def _window(axes: int, given: Mapping[str, object]) -> dict[str, object]:
    """The attributes of a sliding window with ONNX's defaults written out: tools look for them."""
    ones = [1] * axes
    places_itself = any(name in given for name in ("auto_pad", "output_shape"))
    pads: dict[str, object] = {} if places_itself else {"pads": [0] * 2 * axes}
    return {"strides": ones, "dilations": ones, **pads, **given}


def _is_held(type_: QuantizedType) -> bool:
    fmt = type_.format
    return fmt.is_plain and str(fmt) == "i8, e8m0 per tensor"


def _where(op: Operation) -> str:
    return op.where() if isinstance(op, QuantizedOp) else op.name


def _replace(op: Operation, value: SSAValue) -> None:
    if op.results[0].name_hint:
        value.name_hint = value.name_hint or op.results[0].name_hint
    op.results[0].replace_all_uses_with(value)
    Rewriter.erase_op(op)
