"""`x cos + concat(-x2, x1) sin = RotaryEmbedding(x, cos1, sin1)`: x1, x2 are the halves of x, cos1 is the first of cos.

(Su et al. 2021, "RoFormer: Enhanced Transformer with Rotary Position Embedding", section 3.4.2, in the half-split order
of GPT-NeoX.) The operator exists from opset 23 on. torch's exporter fuses most; this finds what other exporters write.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from xdsl.ir import Operation, SSAValue

from qcc.ir import types
from qcc.ir.builder import I64, Builder
from qcc.ir.dialects.onnx import OnnxOp
from qcc.ir.emit_onnx import types_opset
from qcc.ir.program import Program
from qcc.ir.rewrite import Rewrite, array_of, builder, producer, replace


@dataclass(frozen=True)
class FuseRotary(Rewrite):
    """Look at every Add of two products."""

    name = "fuse_rotary"
    roots = ("onnx.Add",)

    def rewrite(self, op: Operation, program: Program) -> bool | str:
        """Guards: x is [B, H, S, D] with known D, one product holds its rotated halves, angles fit and repeat."""
        assert isinstance(op, OnnxOp)
        plain, turned = (producer(v, "onnx.Mul") for v in op.operands)
        match = _match(plain, turned, program) or _match(turned, plain, program)
        if match is None:
            return False
        if types_opset(program, "") < 23:
            return f"RotaryEmbedding needs opset 23, the model has {types_opset(program, '')}"
        x, cos, sin = match
        dims = types.dims_of(x.type)
        if dims is None or len(dims) != 4 or not isinstance(dims[3], int):
            return f"x is {x.type}, not [batch, heads, length, size] with a known size"
        for angle in (cos, sin):
            if not _is_one_for_all_heads(angle, dims):
                return f"its angles are {angle.type}, not [batch, 1, length, {dims[3]}]"
            if not _repeats(angle):
                return "the angles of the second half are not known to be those of the first"
        build = builder(op, program)
        places = _places(x, build)
        caches = [_half_table(angle, dims, places, build) for angle in (cos, sin)]
        replace(op, build.op("onnx.RotaryEmbedding", [x, *caches], op.results[0].type, node=op.node))
        return True


def _match(plain: OnnxOp | None, turned: OnnxOp | None, program: Program) -> tuple[SSAValue, SSAValue, SSAValue] | None:
    """x, cos and sin of `plain = x cos`, `turned = rotated(x) sin`."""
    if plain is None or turned is None:
        return None
    for rotated, sin in (turned.operands, tuple(turned.operands)[::-1]):
        x = _source_of_rotated(rotated, program)
        if x is not None and x in plain.operands:
            return x, plain.operands[1 - list(plain.operands).index(x)], sin
    return None


def _source_of_rotated(value: SSAValue, program: Program) -> SSAValue | None:
    """x where `value = Concat(Neg(second half of x), first half of x)`."""
    concat = producer(value, "onnx.Concat")
    if concat is None or len(concat.operands) != 2:
        return None
    negated = producer(concat.operands[0], "onnx.Neg")
    second = None if negated is None else _half(negated.operands[0], program)
    first = _half(concat.operands[1], program)
    if first is None or second is None or first[0] is not second[0] or (first[1], second[1]) != (0, 1):
        return None
    return first[0]


def _half(value: SSAValue, program: Program) -> tuple[SSAValue, int] | None:
    """x and which half of its last axis `value` is, taken by Slice or Split."""
    op = producer(value, "onnx.Slice", "onnx.Split")
    dims = None if op is None else types.dims_of(op.operands[0].type)
    if op is None or dims is None or not isinstance(dims[-1], int) or dims[-1] % 2:
        return None
    x, size = op.operands[0], dims[-1]
    if op.op_type == "Split":
        halves = len(op.results) == 2 and op.integer("axis") in (-1, len(dims) - 1)
        even = types.dims_of(value.type)
        return (
            (x, next(i for i, r in enumerate(op.results) if r is value))
            if halves and even and even[-1] == size // 2
            else None
        )
    bounds = [array_of(v, program) for v in op.slots[1:]]
    if len(bounds) < 3 or any(b is None or b.size != 1 for b in bounds):
        return None
    start, end, axis, *step = (int(b.reshape(-1)[0]) for b in bounds if b is not None)
    if axis not in (-1, len(dims) - 1) or step not in ([], [1]):
        return None
    start, end = (v + size if v < 0 else min(v, size) for v in (start, end))
    return {(0, size // 2): (x, 0), (size // 2, size): (x, 1)}.get((start, end))


def _is_one_for_all_heads(angle: SSAValue, x_dims: tuple[types.Dim, ...]) -> bool:
    """Whether an angle [batch or 1, 1, length or 1, D] adds no extent to x; a leading 1 may be left out."""
    dims = types.dims_of(angle.type)
    if dims is None or len(dims) not in (3, 4) or dims[-3] != 1 or dims[-1] != x_dims[-1]:
        return False
    free = [(dims[-2], x_dims[2]), *([(dims[0], x_dims[0])] if len(dims) == 4 else [])]
    return all(of_angle == 1 or of_x != 1 for of_angle, of_x in free)


def _repeats(angle: SSAValue) -> bool:
    """Whether both halves of the last axis are the same: the value comes, element by element, from `Concat(a, a)`."""
    elementwise = ("onnx.Cos", "onnx.Sin", "onnx.Cast", "onnx.Unsqueeze", "onnx.Identity")
    dims = types.dims_of(angle.type)
    while (op := producer(angle, *elementwise)) is not None:
        angle = op.operands[0]
    concat, from_ = producer(angle, "onnx.Concat"), types.dims_of(angle.type)
    if concat is None or dims is None or from_ is None or dims[-1] != from_[-1]:
        return False
    last = concat.integer("axis") in (-1, len(from_) - 1)
    return last and len(concat.operands) == 2 and concat.operands[0] is concat.operands[1]


def _places(x: SSAValue, build: Builder) -> SSAValue:
    """[batch, length, 1] of x, as a shape."""
    vector = types.tensor_type(I64, [1])
    batch, length = (build.op("onnx.Shape", [x], vector, {"start": i, "end": i + 1}) for i in (0, 2))
    one = build.constant(np.ones(1, np.int64))
    return build.op("onnx.Concat", [batch, length, one], types.tensor_type(I64, [3]), {"axis": 0})


def _half_table(angle: SSAValue, x_dims: tuple[types.Dim, ...], places: SSAValue, build: Builder) -> SSAValue:
    """cos or sin of the first half as [batch of x, S, D/2]."""
    element, half = types.element_type(angle.type), int(str(x_dims[3])) // 2
    dims = types.dims_of(angle.type)
    assert dims is not None
    bounds = [build.constant(np.array([v], np.int64)) for v in (0, half, -1)]
    first = build.op("onnx.Slice", [angle, *bounds], types.tensor_type(element, [*dims[:-1], half]))
    flat = first if len(dims) == 3 else _without_heads(first, build)
    return build.op("onnx.Expand", [flat, places], types.tensor_type(element, [x_dims[0], x_dims[2], half]))


def _without_heads(angle: SSAValue, build: Builder) -> SSAValue:
    """[B, 1, S, D/2] as [B, S, D/2]."""
    dims = types.dims_of(angle.type)
    assert dims is not None
    type_ = types.tensor_type(types.element_type(angle.type), [dims[0], *dims[2:]])
    return build.op("onnx.Squeeze", [angle, build.constant(np.array([1], np.int64))], type_)
