"""Constant biases of fixed-point layers as codes: `b ~ 2^e code`, where the sum they join has the step `s_x s_w`.

An int8 bias with a power of two of its own is what DPUs take (Vitis AI UG1414; AMD Quark, "Power-of-Two Scales (Xint8)
Quantization"). It is added after a shift to the step of the sum, so `2^e` is no finer than `s_x s_w` and at most 2^15
of it (AdjustShiftBias of Quark's ONNX quantizer); between these the least squared error decides.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
from xdsl.dialects import builtin
from xdsl.ir import SSAValue
from xdsl.rewriter import InsertPoint, Rewriter

from qcc.ir import types
from qcc.ir.dialects.q import Conv, Dequantize, Linear, Quantize, Weight, part
from qcc.ir.errors import NotSupported
from qcc.ir.format import Format
from qcc.ir.program import Program, stored_value
from qcc.ir.rewrite import Pass, ProgramContext, array_of, remove_dead
from qcc.ir.types import QuantizedType

from . import schemes

_SHIFT = 15
"""The most bits by which a bias is shifted to meet the sum."""


@dataclass(frozen=True)
class QuantizeBias(Pass):
    """Quantize the biases of layers whose operand and weight have powers of two as scales."""

    name = "quantize_bias"

    scheme: str = "XINT8"

    def run(self, program: Program, ctx: ProgramContext) -> None:
        """Nothing where the scheme gives biases no format."""
        del ctx
        scheme = schemes.load(self.scheme)
        if not scheme.is_fixed_point:
            return
        for op in list(program.body.ops):
            if isinstance(op, Conv | Linear) and isinstance(op.operands[0].type, QuantizedType):
                self._quantize(op, scheme.bias_format, program)
        remove_dead(program)

    def _quantize(self, op: Conv | Linear, fmt: Format, program: Program) -> None:
        bias = array_of(op.slot(2), program)
        if bias is None:
            return
        values = bias.reshape(-1)
        step = step_of_sum(op, program)
        scale = bias_scale(values, step, fmt)
        if np.abs(values).max(initial=0.0) > 1.5 * scale * fmt.family.high:
            raise NotSupported(
                f"{op.where()}: its bias is more than 2^{_SHIFT} times the step of its sum",
                hint=f"leave it float: --ignore {op.node}",
            )
        key = f"{op.node}.bias"
        while part(key, "codes") in program.weights:
            key += "'"
        program.weights[part(key, "codes")] = fmt.encode(values, np.full(1, scale))
        program.weights[part(key, "scale")] = np.full(1, scale, np.float32)
        type_ = types.tensor_type(builtin.f32, values.shape)
        weight = Weight(key, QuantizedType.of(type_, fmt))
        dequantize = Dequantize([weight.result], [type_])
        for new in (weight, dequantize):
            Rewriter.insert_op(new, InsertPoint.before(op))
        op.operands[2] = dequantize.results[0]


def step_of_sum(op: Conv | Linear, program: Program) -> float:
    """`s_x s_w`: what one unit of the integer sum of a layer stands for."""
    quantize, weight = op.operands[0].owner, op.operands[1].owner
    assert isinstance(quantize, Quantize) and isinstance(weight, Weight)
    scale = array_of(quantize.slot(1), program)
    assert scale is not None
    return float(scale) * float(program.weights[part(weight.weight, "scale")].reshape(()))


def bias_scale(values: np.ndarray, step: float, fmt: Format) -> float:
    """The power of two in `step .. 2^15 step` by which codes of `fmt` have the least squared error on `values` [N]."""
    candidates = [math.ldexp(step, shift) for shift in range(_SHIFT + 1)]
    exact = values.astype(np.float64)

    def error(scale: float) -> float:
        codes = np.clip(np.rint(exact / scale), fmt.family.low, fmt.family.high)
        return float(np.sum((codes * scale - exact) ** 2))

    return min(candidates, key=error)


def decoded_bias(value: SSAValue | None, program: Program) -> np.ndarray | None:
    """The numbers [N] that a quantized bias stands for; None where `value` is no quantized constant."""
    weight = value.owner.operands[0].owner if value is not None and isinstance(value.owner, Dequantize) else None
    if not isinstance(weight, Weight) or not isinstance(weight.result.type, QuantizedType):
        return None
    return stored_value(weight, program).decode()
