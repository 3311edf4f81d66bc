"""Give the channels between two layers ranges that one scale can serve: `W1 / s`, `b1 / s`, `s W2`, s for each channel.

    s_c = sqrt(max |W1_c, b1_c| / max |W2_c|)

A layer whose weights share one scale loses the channels that training left small. What stands between the layers must
let a positive factor through, as Relu, LeakyRelu and pools do: the network computes the same numbers. (Nagel et al.
2019, "Data-Free Quantization Through Weight Equalization and Bias Correction", section 4.1; the bias is counted with
the weights, as CLEScaleAppendBias of AMD Quark does, because it is quantized as well.)
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from xdsl.ir import OpResult, SSAValue

from qcc.ir.dialects.onnx import OnnxOp
from qcc.ir.dialects.q import Weight
from qcc.ir.program import Program
from qcc.ir.rewrite import Pass, ProgramContext, array_of, builder, has_one_use, remove_dead, weight_name

from .selection import constant_weight

_THROUGH = ("Relu", "LeakyRelu", "MaxPool", "AveragePool", "GlobalAveragePool")
_ROUNDS = 8
"""A layer stands in two pairs; factors settle to within a percent in so many rounds."""
_LIMIT = 2.0**10
"""The most that one round scales a channel by: a channel of next to nothing would take the scale of all others."""


@dataclass(frozen=True)
class EqualizeLayers(Pass):
    """Equalize every pair of convolutions with one reader after another, from the top down, in several rounds."""

    name = "equalize_layers"

    def run(self, program: Program, ctx: ProgramContext) -> None:
        """The network keeps its meaning up to rounding."""
        del ctx
        pairs = [(op, second) for op in program.body.ops if (second := _second_of(op, program)) is not None]
        for _ in range(_ROUNDS):
            for first, second in pairs:
                assert isinstance(first, OnnxOp)
                _equalize(first, second, program)
        for first, second in pairs:
            assert isinstance(first, OnnxOp)
            program.decide(first.node, "equalized", f"its channels against those of {second.node}")
        remove_dead(program)


def _second_of(op: object, program: Program) -> OnnxOp | None:
    """The convolution that alone reads what `op` gives, through operators that scale with their operand."""
    if not isinstance(op, OnnxOp) or not _is_layer(op, program):
        return None
    value: SSAValue = op.results[0]
    while has_one_use(value):
        use = value.get_unique_use()
        reader = use.operation if use is not None else None
        if use is None or not isinstance(reader, OnnxOp) or use.index != 0 or reader.parent is not op.parent:
            return None
        if _is_layer(reader, program):
            return reader if _reads_by_channel(reader, program) else None
        if reader.op_type not in _THROUGH:
            return None
        value = reader.results[0]
    return None


def _is_layer(op: OnnxOp, program: Program) -> bool:
    bias = op.slot(2) if op.op_type == "Conv" else None
    fixed = bias is None or array_of(bias, program) is not None
    return op.op_type == "Conv" and constant_weight(op.slot(1), program) and fixed


def _reads_by_channel(op: OnnxOp, program: Program) -> bool:
    """Whether each input channel meets weights of its own: one group, or as many as channels."""
    weight, groups = _weight(op, program), op.integer("group", 1)
    return groups == 1 or (groups == weight.shape[0] and weight.shape[1] == 1)


def _equalize(first: OnnxOp, second: OnnxOp, program: Program) -> None:
    w1, w2, bias = _weight(first, program), _weight(second, program), array_of(first.slot(2), program)
    depthwise = second.integer("group", 1) > 1
    range1 = np.abs(w1).reshape(len(w1), -1).max(axis=1)
    if bias is not None:
        range1 = np.maximum(range1, np.abs(bias.reshape(-1)))
    by_input = w2 if depthwise else np.swapaxes(w2, 0, 1)
    range2 = np.abs(by_input).reshape(len(by_input), -1).max(axis=1)
    alive = (range1 > 0) & (range2 > 0)
    factor = np.sqrt(np.where(alive, range1, 1.0) / np.where(alive, range2, 1.0))
    factor = np.clip(factor, 1 / _LIMIT, _LIMIT).astype(np.float32)
    column = (-1,) + (1,) * (w1.ndim - 1)
    _put(first, 1, w1 / factor.reshape(column), program)
    if bias is not None:
        _put(first, 2, bias / factor, program)
    row = column if depthwise else (1, -1) + (1,) * (w2.ndim - 2)
    _put(second, 1, w2 * factor.reshape(row), program)


def _weight(op: OnnxOp, program: Program) -> np.ndarray:
    array = array_of(op.operands[1], program)
    assert array is not None
    return array


def _put(op: OnnxOp, index: int, array: np.ndarray, program: Program) -> None:
    """Replace a constant operand: under its own name where `op` alone reads that, else as a copy."""
    value = op.operands[index]
    owner = value.owner if isinstance(value, OpResult) else None
    if isinstance(owner, Weight) and has_one_use(value) and _names(owner.weight, program) == 1:
        program.weights[owner.weight] = array
        return
    name = weight_name(value, f"{op.node}.{index}")
    op.operands[index] = builder(op, program).weight(program.weights.add(f"{name}.equalized", array), array)


def _names(key: str, program: Program) -> int:
    return sum(op.weight == key for op in program.weight_ops())
