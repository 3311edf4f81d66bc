"""Which nodes are quantized: the user's patterns first, then the defaults, each with the reason that is shown."""

from __future__ import annotations

import re
from dataclasses import dataclass

from xdsl.dialects.func import ReturnOp
from xdsl.ir import BlockArgument, Operation, SSAValue

from qcc.ir import types
from qcc.ir.dialects.graph_op import GraphOp
from qcc.ir.dialects.onnx import OnnxOp
from qcc.ir.dialects.q import Weight
from qcc.ir.errors import BadInput
from qcc.ir.program import Program
from qcc.ir.rewrite import array_of

_PLAIN = {
    "Softmax",
    "LogSoftmax",
    "Sigmoid",
    "Identity",
    "Cast",
    "Reshape",
    "Flatten",
    "Squeeze",
    "Unsqueeze",
    "Transpose",
    "ArgMax",
    "Add",
}
"""Operators between the last layer and the outputs that keep it the last layer."""


@dataclass(frozen=True)
class Selection:
    """Patterns are `re:REGULAR EXPRESSION`, searched in node and weight names, or a whole name."""

    ignore: tuple[str, ...] = ()
    include: tuple[str, ...] = ()

    def skip_reason(self, op: GraphOp, weight: SSAValue, bits: int, program: Program) -> str:
        """Why a node with a constant weight stays float; empty where it is quantized."""
        ignored = self.ignores(op, weight)
        if ignored or self.includes(op, weight):
            return ignored
        if bits < 8 and _is_first(op):
            return "first layer: it reads the network's input (include it by name to quantize it below 8 bits)"
        if bits < 8 and _is_last(op, program):
            return "last layer: it gives the network's output (include it by name to quantize it below 8 bits)"
        return ""

    def ignores(self, op: GraphOp, weight: SSAValue) -> str:
        """Why the user wants this node or weight left float; empty where that is not asked for."""
        names = (op.node, weight.owner.weight if isinstance(weight.owner, Weight) else "")
        found = [p for p in self.ignore if any(matches(p, name) for name in names)]
        return f"ignored by {found[0]!r}" if found else ""

    def includes(self, op: GraphOp, weight: SSAValue) -> bool:
        """Whether the user asked for this node or weight by name."""
        names = (op.node, weight.owner.weight if isinstance(weight.owner, Weight) else "")
        return any(matches(pattern, name) for pattern in self.include for name in names)


def matches(pattern: str, name: str) -> bool:
    """Whether a pattern of `--ignore` or `--include` covers a name."""
    if not pattern.startswith("re:"):
        return pattern == name
    try:
        return bool(name) and re.search(pattern[3:], name) is not None
    except re.error as error:
        raise BadInput(
            f"pattern {pattern!r} is not a regular expression: {error}", hint='write it like "re:.*attention.*"'
        ) from error


def check_patterns(patterns: tuple[str, ...], names: list[str], flag: str) -> None:
    """`BadInput` for a pattern that matches nothing: it is a typing error more often than not."""
    for pattern in patterns:
        if not any(name and matches(pattern, name) for name in names):
            raise BadInput(
                f"{flag} {pattern!r} matches no node and no weight", hint="`qcc inspect MODEL` lists their names"
            )


def shares_table(weight: SSAValue) -> bool:
    """Whether a weight is also the table of an embedding, as a tied output head is."""
    return any(use.operation.name == "onnx.Gather" and use.index == 0 for use in weight.uses)


def constant_weight(value: SSAValue | None, program: Program) -> bool:
    """Whether a value is a float tensor of the store."""
    array = array_of(value, program)
    return array is not None and array.dtype.kind == "f" and array.dtype.itemsize == 4


def _is_first(op: Operation) -> bool:
    value, seen = op.operands[0], 0
    while isinstance(value.owner, OnnxOp) and value.owner.op_type in _PLAIN and seen < 8:
        value, seen = value.owner.operands[0], seen + 1
    return isinstance(value, BlockArgument) and _is_float(value)


def _is_last(op: Operation, program: Program) -> bool:
    del program
    value = op.results[0]
    for _ in range(8):
        readers = [use.operation for use in value.uses]
        if any(isinstance(r, ReturnOp) for r in readers):
            return True
        if len(readers) != 1 or not isinstance(readers[0], OnnxOp) or readers[0].op_type not in _PLAIN:
            return False
        value = readers[0].results[0]
    return False


def _is_float(value: SSAValue) -> bool:
    return types.schema_string(value.type) in ("tensor(float)", "tensor(float16)")
