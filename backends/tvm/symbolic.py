"""Integers that are known while a network is lowered: `Shape -> Gather -> Concat -> Reshape`.

A small tensor of whole numbers is an array of Python integers and of TVM's expressions over the symbols of dimensions.
What operators do to such tensors is computed here, so that the shapes they end in are known to the compiler.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any, TypeAlias

import numpy as np

from qcc.ir.dialects.onnx import OnnxOp

Integers: TypeAlias = np.ndarray
"""An array of objects: int, or an expression of TVM's."""
MOST = 64
"""Numbers in a tensor that is followed; shapes have fewer."""
_END = 1 << 62


def evaluate(op: OnnxOp, inputs: list[Integers | None]) -> Integers | None:
    """The result of an operator on known integers; None where it has no rule below, or an input is not known."""
    rule = _RULES.get(op.op_type)
    if rule is None or len(op.results) != 1 or any(x is None for x, v in zip(inputs, op.slots, strict=True) if v):
        return None
    known = rule(op, inputs)
    return known if known is None or known.size <= MOST else None


def shape_slice(op: OnnxOp, dims: list[Any]) -> Integers:
    """The result of `Shape` for an operand of these extents. Any: int or an expression."""
    start, end = op.get("start", 0), op.get("end")
    assert isinstance(start, int)
    return array(dims[start : end if isinstance(end, int) else None])


def array(values: list[Any]) -> Integers:
    """A vector of integers and expressions. Any: either."""
    made = np.empty(len(values), object)
    for i, value in enumerate(values):
        made[i] = as_int(value)
    return made


def as_int(value: Any) -> Any:
    """A constant expression as an int. Any: int or an expression of TVM's."""
    if isinstance(value, int):
        return int(value)
    if hasattr(value, "item"):
        return int(value.item())
    constant = getattr(value, "value", None)
    return int(constant) if isinstance(constant, int) else value


def constant(values: Integers) -> np.ndarray | None:
    """The integers as int64, where all are."""
    return np.array(values, np.int64) if all(isinstance(v, int) for v in values.flat) else None


def _whole(values: Integers | None) -> list[int] | None:
    found = None if values is None else constant(values)
    return None if found is None else [int(v) for v in found.reshape(-1)]


def _gather(op: OnnxOp, inputs: list[Any]) -> Integers | None:
    places = constant(inputs[1])
    return None if places is None else np.asarray(np.take(inputs[0], places, _integer(op, "axis", 0)), object)


def _slice(op: OnnxOp, inputs: list[Any]) -> Integers | None:
    data, *ends = inputs
    if data.ndim != 1:
        return None
    starts, stops, axes, steps = ([*map(_whole, ends)] + [None] * 4)[:4]
    if starts is None or stops is None or (steps or [1])[0] == 0 or (axes or [0])[0] not in (0, -1):
        return None
    step = (steps or [1])[0]
    stop = None if abs(stops[0]) >= 1 << 31 else stops[0]
    return data[slice(starts[0], stop, step)]


def _squeeze(op: OnnxOp, inputs: list[Any]) -> Integers:
    axes = _whole(inputs[1]) if len(inputs) > 1 else None
    return inputs[0].reshape([d for i, d in enumerate(inputs[0].shape) if d != 1 or (axes and i not in axes)])


def _unsqueeze(op: OnnxOp, inputs: list[Any]) -> Integers | None:
    axes = _whole(inputs[1]) if len(inputs) > 1 else None
    return None if axes is None else np.expand_dims(inputs[0], tuple(axes))


def _reshape(op: OnnxOp, inputs: list[Any]) -> Integers | None:
    shape = _whole(inputs[1])
    return None if shape is None else inputs[0].reshape(shape)


def _concat(op: OnnxOp, inputs: list[Any]) -> Integers:
    return np.concatenate(inputs, _integer(op, "axis", 0))


def _binary(compute: Callable[[Any, Any], Any]) -> Callable[[OnnxOp, list[Any]], Integers]:
    def rule(op: OnnxOp, inputs: list[Any]) -> Integers:
        left, right = np.broadcast_arrays(*inputs)
        made = np.empty(left.shape, object)
        for place in np.ndindex(left.shape):
            made[place] = as_int(compute(left[place], right[place]))
        return made

    return rule


def _divide(left: Any, right: Any) -> Any:
    """Any: int or an expression. Extents are not negative, so that rounding down is what ONNX does."""
    return left // right


def _integer(op: OnnxOp, name: str, default: int) -> int:
    value = op.get(name, default)
    assert isinstance(value, int)
    return value


def _same(op: OnnxOp, inputs: list[Any]) -> Integers:
    return inputs[0]


_RULES: Mapping[str, Callable[[OnnxOp, list[Any]], Integers | None]] = {
    "Add": _binary(lambda a, b: a + b),
    "Cast": _same,
    "Concat": _concat,
    "Div": _binary(_divide),
    "Gather": _gather,
    "Identity": _same,
    "Mul": _binary(lambda a, b: a * b),
    "Reshape": _reshape,
    "Slice": _slice,
    "Squeeze": _squeeze,
    "Sub": _binary(lambda a, b: a - b),
    "Unsqueeze": _unsqueeze,
}
"""Any: an object array, whose items numpy does not type."""
