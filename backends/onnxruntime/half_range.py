"""Which values float16 cannot hold: above 65504, too near to zero, or whole numbers on their way into a sine.

A value is fit where `max |x| <= 65504 / 4` and `|x - half(x)|_2 <= 2^-9 |x|_2`, measured on samples: float16 rounds by
2^-11 down to 6e-5, and has steps of 6e-8 below, where epsilons and variances lie. The 4 is room for other inputs.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from xdsl.dialects import builtin
from xdsl.dialects.builtin import IntegerType
from xdsl.ir import Operation, SSAValue

from qcc.ir import types
from qcc.ir.dialects.onnx import OnnxOp
from qcc.ir.dialects.q import Weight
from qcc.ir.execute import Reference
from qcc.ir.program import Program
from qcc.ir.rewrite import array_of

LARGEST = float(np.finfo(np.float16).max)
ROOM = 4
LOSS = 2.0**-9
"""Largest share of a value, in its norm, that rounding may cost."""

_PIECE = 1 << 20

_MOVED = {"Reshape", "Unsqueeze", "Squeeze", "Transpose", "Expand", "Concat", "Slice", "Gather", "Flatten", "Identity"}
_COMPUTED = {"Add", "Sub", "Mul", "Div", "Neg", "Min", "Max", "Clip", "Floor", "Mod", "MatMul", "Where", "Cast", "Tile"}


def unfit(array: np.ndarray) -> str:
    """Why float16 cannot hold an array; empty where it can. Infinities and NaN are values of float16 too."""
    peak = signal = noise = 0.0
    flat = array.reshape(-1)
    for begin in range(0, flat.size, _PIECE):
        piece = flat[begin : begin + _PIECE]
        piece = piece[np.isfinite(piece)].astype(np.float64)
        peak = max(peak, float(np.abs(piece).max(initial=0.0)))
        if peak > LARGEST / ROOM:
            return f"values up to {np.abs(piece).max():.3g}: float16 ends at {LARGEST:.0f}"
        signal, error = signal + float(piece @ piece), piece - piece.astype(np.float16)
        noise += float(error @ error)
    lost = math.sqrt(noise / signal) if signal else 0.0
    return f"values near zero ({peak:.2g} at most), of which float16 loses {lost:.1%}" if lost > LOSS else ""


@dataclass(frozen=True)
class Measured:
    """What samples say: values that float16 cannot hold, with reasons, and whether every output was finite."""

    unfit: dict[SSAValue, str]
    finite: bool


def measure(program: Program, samples: Sequence[Mapping[str, np.ndarray]]) -> Measured:
    """Look at the float32 values of the main block on each sample."""
    finite = True
    outputs = set(program.outputs)
    found: dict[SSAValue, str] = {}
    names = [p.name for p in program.inputs()]
    inputs = [(n, a) for n, a in zip(names, program.body.args, strict=True) if is_float(a)]
    inner = [r for op in program.body.ops if not _is_constant(op) for r in op.results if is_float(r)]
    reference = Reference(program, inner) if samples else None
    for sample in samples:
        assert reference is not None
        held = [(argument, sample[name]) for name, argument in inputs]
        for value, array in [*held, *zip(inner, reference.fetch(sample), strict=True)]:
            finite = finite and (value not in outputs or bool(np.isfinite(array).all()))
            reason = "" if value in found else unfit(array)
            if reason:
                found[value] = reason
    return Measured(found, finite)


def angles(program: Program) -> set[Operation]:
    """Operations between whole numbers (positions, time steps) and a sine or cosine, both included.

    float16 counts to 2048 only, and an angle of 1000 has steps of a half.
    """
    counted: set[SSAValue] = {a for a in program.body.args if is_float(a)}
    for op in program.body.ops:
        if isinstance(op, OnnxOp) and _counts(op, program, counted):
            counted.update(r for r in op.results if is_float(r))
    marked: set[Operation] = set()
    for op in program.body.ops:
        if op.name in ("onnx.Cos", "onnx.Sin") and op.operands[0] in counted:
            _mark(op, counted, marked)
    return marked


def _counts(op: OnnxOp, program: Program, counted: set[SSAValue]) -> bool:
    """Whether the result is whole numbers times constants, as far as its operands are."""
    if op.op_type == "Range" or (
        op.op_type == "Cast" and isinstance(types.element_type(op.operands[0].type), IntegerType)
    ):
        return True
    if op.op_type not in _MOVED | _COMPUTED:
        return False
    constants = [array_of(v, program) for v in op.operands]
    computed = [v for v, c in zip(op.operands, constants, strict=True) if c is None and is_float(v)]
    if op.op_type == "MatMul" and not any(c is not None and c.ndim > 1 and 1 in c.shape[-2:] for c in constants):
        return len(computed) == len(op.operands) and all(v in counted for v in computed)  # no layer of a network
    return bool(computed) and all(v in counted for v in computed)


def _mark(op: Operation, counted: set[SSAValue], marked: set[Operation]) -> None:
    pending = [op]
    while pending:
        each = pending.pop()
        if each in marked:
            continue
        marked.add(each)
        owners = [v.owner for v in each.operands if v in counted]
        pending.extend(o for o in owners if isinstance(o, Operation))


def is_float(value: SSAValue) -> bool:
    """Whether a value is a float32 tensor."""
    return types.element_type(value.type) == builtin.f32


def _is_constant(op: Operation) -> bool:
    return isinstance(op, Weight) or op.name == "onnx.Constant"
