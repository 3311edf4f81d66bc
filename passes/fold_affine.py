"""Carry multiplications and additions by constants into convolutions.

    Conv(x, w, b) * a + c  =  Conv(x, w * a, b * a + c)        a, c: one number, or one a channel
    Conv(x * a + c, w, b)  =  Conv(x, w * a, b + sum(w * c))   the addition only where nothing is padded

What is left has fewer passes over memory, and its activations quantize better: an affine map between a convolution and
its quantizer stretches the range.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from xdsl.ir import Operation, SSAValue
from xdsl.rewriter import InsertPoint, Rewriter

from qcc.ir import types
from qcc.ir.builder import Builder
from qcc.ir.dialects.onnx import OnnxOp, operator
from qcc.ir.program import Program
from qcc.ir.rewrite import Rewrite, array_of, builder, has_one_use, producer, rank_of, replace, weight_name

_CONVOLUTIONS = ("onnx.Conv", "onnx.ConvTranspose")


@dataclass(frozen=True)
class FoldAffine(Rewrite):
    """Look at each Mul, Div, Add and Sub by a constant: first at the convolution above it, then at the one below."""

    name = "fold_affine"
    roots = ("onnx.Mul", "onnx.Div", "onnx.Add", "onnx.Sub")

    def rewrite(self, op: Operation, program: Program) -> bool | str:
        """Guards: a constant per channel, a convolution with constant weight beside it, no other reader in between."""
        assert isinstance(op, OnnxOp)
        x, factor, shift = _affine(op, program)
        if x is None:
            return False
        above = producer(x, *_CONVOLUTIONS)
        if above is not None and has_one_use(x) and array_of(above.slot(1), program) is not None:
            return _into_conv_above(op, above, factor, shift, program)
        use = op.results[0].get_unique_use()
        below = use.operation if use is not None and use.index == 0 else None
        if not isinstance(below, OnnxOp) or below.name != "onnx.Conv" or array_of(below.slot(1), program) is None:
            return False
        return _into_conv_below(op, below, x, factor, shift, program)


def _affine(op: OnnxOp, program: Program) -> tuple[SSAValue | None, np.ndarray, np.ndarray]:
    """`(x, a, c)` where `op` computes x * a + c with constants per channel ([C] or one number); x is None otherwise."""
    nothing = (None, np.ones(1), np.zeros(1))
    left, right = op.operands[0], op.operands[1]
    constant, x = _per_channel(right, left, program), left
    if constant is None and op.op_type in ("Mul", "Add"):
        constant, x = _per_channel(left, right, program), right
    if constant is None:
        return nothing
    match op.op_type:
        case "Mul":
            return x, constant, np.zeros(1)
        case "Div":
            return (x, 1.0 / constant, np.zeros(1)) if (constant != 0).all() else nothing
        case "Add":
            return x, np.ones(1), constant
        case _:
            return x, np.ones(1), -constant


def _per_channel(value: SSAValue, x: SSAValue, program: Program) -> np.ndarray | None:
    """The constant as float64 of shape [C] or [1], if it varies along the channel axis (1) of `x` alone."""
    array, rank = array_of(value, program), rank_of(x)
    if array is None or array.dtype.kind != "f" or rank is None or rank < 3 or array.ndim > rank:
        return None
    shape = (1,) * (rank - array.ndim) + array.shape
    if any(d != 1 for i, d in enumerate(shape) if i != 1):
        return None
    return array.reshape(-1).astype(np.float64)


def _into_conv_above(op: OnnxOp, conv: OnnxOp, factor: np.ndarray, shift: np.ndarray, program: Program) -> bool | str:
    weight = array_of(conv.slot(1), program)
    assert weight is not None
    transposed = conv.op_type == "ConvTranspose"
    group = conv.integer("group", 1)
    if transposed and group != 1:
        return "the transposed convolution before it has groups"
    channels = weight.shape[1] if transposed else weight.shape[0]
    if max(factor.size, shift.size) not in (1, channels):
        return "the constant does not match the channels of the convolution before it"
    bias = array_of(conv.slot(2), program)
    if conv.slot(2) is not None and bias is None:
        return "the bias of the convolution before it is computed"
    axis = 1 if transposed else 0
    scaled = weight * np.broadcast_to(factor, channels).reshape([-1 if i == axis else 1 for i in range(weight.ndim)])
    moved = (np.zeros(channels) if bias is None else bias) * factor + shift
    _replace_conv(op, conv, conv.operands[0], scaled, moved, program)
    return True


def _into_conv_below(
    op: OnnxOp, conv: OnnxOp, x: SSAValue, factor: np.ndarray, shift: np.ndarray, program: Program
) -> bool | str:
    weight = array_of(conv.slot(1), program)
    assert weight is not None
    group = conv.integer("group", 1)
    channels = weight.shape[1] * group
    if max(factor.size, shift.size) not in (1, channels):
        return "the constant does not match the channels of the convolution after it"
    if max(factor.size, shift.size) > 1 and (types.dims_of(x.type) or ())[1:2] != (channels,):
        return "the constant may give the value more channels than it has"
    bias = array_of(conv.slot(2), program)
    if conv.slot(2) is not None and bias is None:
        return "the bias of the convolution after it is computed"
    if shift.any() and (any(conv.integers("pads")) or conv.get("auto_pad", "NOTSET") not in ("NOTSET", "VALID")):
        return "the convolution after it pads with zeros, which the addition would not reach"
    per_group = (group, weight.shape[0] // group, weight.shape[1], -1)
    by_input = weight.astype(np.float64).reshape(per_group)
    factors = np.broadcast_to(factor, channels).reshape(group, 1, weight.shape[1], 1)
    shifts = np.broadcast_to(shift, channels).reshape(group, 1, weight.shape[1], 1)
    scaled = (by_input * factors).reshape(weight.shape)
    moved = (by_input * shifts).sum(axis=(2, 3)).reshape(-1) + (0 if bias is None else bias)
    _replace_conv(conv, conv, x, scaled, moved, program)
    return True


def _replace_conv(
    op: OnnxOp, conv: OnnxOp, x: SSAValue, weight: np.ndarray, bias: np.ndarray, program: Program
) -> None:
    """A convolution with new weights in the place of `op`."""
    old = array_of(conv.slot(1), program)
    assert old is not None
    build = builder(op, program)
    w = build.weight(
        program.weights.add(weight_name(conv.operands[1], f"{conv.node}.weight"), weight.astype(old.dtype)),
        weight.astype(old.dtype),
    )
    b = _bias(build, program, conv, bias.astype(old.dtype))
    new = operator("onnx", conv.op_type)([x, w, b], [op.results[0].type], dict(conv.parameters), node=conv.node)
    Rewriter.insert_op(new, InsertPoint.before(op))
    replace(op, new.results[0])


def _bias(build: Builder, program: Program, conv: OnnxOp, bias: np.ndarray) -> SSAValue:
    return build.weight(program.weights.add(f"{conv.node}.bias", bias), bias)
