"""`HardSwish` on codes, in two integer steps: ONNX Runtime has kernels that add and multiply codes, none for HardSwish.

t = quantize(x + 3; scale 6/255, zero 0)      saturation is the clip to [0, 6]
y = quantize(x * t; scale 6 s, zero z)        read back with scale s: the division by 6 costs nothing
"""

from __future__ import annotations

import numpy as np
from xdsl.ir import SSAValue
from xdsl.rewriter import Rewriter

from qcc.ir import types
from qcc.ir.builder import Builder
from qcc.ir.dialects.onnx import OnnxOp
from qcc.ir.infer import constant_of
from qcc.ir.program import Program
from qcc.ir.rewrite import builder, has_one_use, producer, remove_dead

_STEP = np.array(6 / 255, np.float32)


def integer_hard_swish(program: Program) -> None:
    """Rewrite every HardSwish between a DequantizeLinear and one QuantizeLinear to unsigned bytes, in place."""
    for op in list(program.body.ops):
        if (
            not isinstance(op, OnnxOp)
            or op.name != "onnx.HardSwish"
            or op.parent is None
            or not has_one_use(op.results[0])
        ):
            continue
        source = producer(op.operands[0], "onnx.DequantizeLinear")
        use = op.results[0].get_unique_use()
        target = use.operation if use is not None else None
        if source is None or not isinstance(target, OnnxOp) or target.name != "onnx.QuantizeLinear":
            continue
        scale, zero = (constant_of(v) if v is not None else None for v in (target.slot(1), target.slot(2)))
        if scale is None or zero is None or scale.size != 1 or zero.dtype != np.uint8:
            continue
        _rewrite(source, target, scale, builder(target, program))
    remove_dead(program)


def _rewrite(source: OnnxOp, target: OnnxOp, scale: np.ndarray, build: Builder) -> None:
    type_ = source.results[0].type

    def again() -> SSAValue:
        """x once more: ONNX Runtime fuses each DequantizeLinear with one reader."""
        return build.op("onnx.DequantizeLinear", source.slots, type_)

    three, step, nothing = build.scalar(3.0), build.constant(_STEP), build.constant(np.array(0, np.uint8))
    fixed = build.op(
        "onnx.QuantizeLinear", [three, step, nothing], types.tensor_type(types.element_type(target.results[0].type), ())
    )
    shifted = build.binary("Add", again(), build.op("onnx.DequantizeLinear", [fixed, step, nothing], three.type))
    gate = build.op("onnx.QuantizeLinear", [shifted, step, nothing], target.results[0].type)
    product = build.binary("Mul", again(), build.op("onnx.DequantizeLinear", [gate, step, nothing], type_))
    sixfold = build.constant((scale * 6).astype(np.float32).reshape(scale.shape))
    codes = build.op("onnx.QuantizeLinear", [product, sixfold, target.slot(2)], target.results[0].type)
    codes.name_hint = target.results[0].name_hint
    target.results[0].replace_all_uses_with(codes)
    Rewriter.erase_op(target)
