"""Operators along the last axis as row kernels: normalizations, softmax, functions, and the arithmetic between them.

Their results are not computed where they stand, but where something else reads one: it takes the whole expression then,
over all such operators before it. What is read elsewhere too becomes another result of the same kernel.

    h = r + rms_norm(o);  n = rms_norm(h)      ->      rows 640: f32(n); f32(h)
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from xdsl.ir import SSAValue

from qcc.backends.native.rows_expression import (
    Node,
    as_node,
    call,
    column,
    layer_norm,
    power,
    rms_norm,
    row,
    softmax,
    tensor,
)
from qcc.backends.native.rows_spec import RowsSpec
from qcc.ir import types
from qcc.ir.dialects.onnx import OnnxOp
from qcc.ir.rewrite import scalar_of

from .lower import extents_of
from .toolchain import Tvm, tvm

if TYPE_CHECKING:
    from .lower import Lowering

MOST = 1 << 16
"""Columns of a row that a kernel is generated for."""
LARGEST, DEEPEST, MOST_RESULTS = 160, 40, 3
"""Nodes of an expression, those above each other, and results of a kernel; where there are more, a part goes before."""


@dataclass
class Rows:
    """The operators of a network that wait for a reader, by their results, and their extents."""

    lowering: Lowering
    waiting: dict[SSAValue, OnnxOp] = field(default_factory=dict[SSAValue, OnnxOp])
    extents: dict[SSAValue, list[Any]] = field(default_factory=dict[SSAValue, Any])
    """Any: int, or an expression of TVM's."""
    of_rows: dict[SSAValue, list[Any]] = field(default_factory=dict[SSAValue, Any])
    """What is one number for each row, and the extents of the rows. Any: as before."""

    def takes(self, op: OnnxOp) -> bool:
        """Whether an operator is one of rows; it waits then."""
        if op.domain or len(op.results) != 1 or not _is_float(op.results[0]):
            return False
        if op.op_type in _REDUCTIONS:
            return self._takes_reduction(op)
        if op.op_type not in _RULES:
            return False
        shapes = [None if v is None else self._shape(v) for v in op.slots]
        reduced = [self.of_rows[v] for v in op.slots if v is not None and v in self.of_rows]
        whole = [s for s, v in zip(shapes, op.slots, strict=True) if s is not None and v not in self.of_rows]
        wanted: list[Any] = max(whole, key=len) if whole else []
        narrow = bool(reduced) and all(v is None or v in self.of_rows or self.number(v) is not None for v in op.slots)
        if narrow:
            wanted = reduced[0]
        if not wanted or not isinstance(wanted[-1], int) or wanted[-1] > MOST:
            return False
        if not all(v is None or self._fits(v, s, wanted) for v, s in zip(op.slots, shapes, strict=True)):
            return False
        numbers = [None if v is None else self.number(v) for v in op.slots]
        some = [
            None if v is None else tensor("x") if n is None else as_node(n)
            for v, n in zip(op.slots, numbers, strict=True)
        ]
        if _RULES[op.op_type](op, some, len(wanted)) is None:
            return False
        self._wait(op, [*wanted[:-1], 1] if narrow else wanted, wanted if narrow else None)
        return True

    def _takes_reduction(self, op: OnnxOp) -> bool:
        """One along the last axis, which stays as one of extent 1."""
        x = self._shape(op.operands[0])
        axes = op.integers("axes") if len(op.slots) == 1 else self.lowering.integers(op.operands[1])
        last = x is not None and axes is not None and [int(a) for a in axes] in ([-1], [len(x) - 1])
        if x is None or not last or op.get("keepdims", 1) != 1 or not isinstance(x[-1], int) or not 1 < x[-1] <= MOST:
            return False
        self._wait(op, [*x[:-1], 1], x)
        return True

    def _wait(self, op: OnnxOp, extents: list[Any], of_rows: list[Any] | None) -> None:
        self.waiting[op.results[0]], self.extents[op.results[0]] = op, extents
        if of_rows is not None:
            self.of_rows[op.results[0]] = of_rows

    def tensor(self, value: SSAValue) -> Tvm:
        """What waits, computed with all that it waits for; a number for each row by an operator of TVM's."""
        lowering, extents = self.lowering, self.extents[value]
        if value in self.of_rows:
            from .operators import eager

            eager(self.waiting.pop(value), lowering)
            return lowering.values[value]
        region = _Region(self)
        root = region.expression(value)
        results = {value: root, **region.read_elsewhere(value)}
        spec = RowsSpec.of(extents[-1], *results.values())
        made = lowering.rows(spec, region.inputs, extents)
        lowering.values.update(zip(results, made, strict=True))
        return lowering.values[value]

    def _shape(self, value: SSAValue) -> list[Any] | None:
        """Extents of an operand. Any: int, or an expression of TVM's."""
        if value in self.extents:
            return self.extents[value]
        return None if not _is_float(value) else self.lowering.dims(value)

    def number(self, value: SSAValue) -> float | None:
        number = scalar_of(value, self.lowering.program)
        return number if number is not None and math.isfinite(number) else None

    def _fits(self, value: SSAValue, own: list[Any] | None, wanted: list[Any]) -> bool:
        """Whether an operand has the extents of the result, or is one number, one for each column, or for each row."""
        if own is None:
            return False
        if value in self.of_rows and value not in self.lowering.values:
            return _same(self.of_rows[value], wanted)
        return self.number(value) is not None or is_column(own, wanted) or _same(own, wanted)


@dataclass
class _Region:
    """The operators that one kernel computes, and what it reads."""

    rows: Rows
    made: dict[SSAValue, Node] = field(default_factory=dict[SSAValue, Node])
    inputs: dict[str, Tvm] = field(default_factory=dict[str, Any])
    names: dict[SSAValue, Node] = field(default_factory=dict[SSAValue, Node])

    def expression(self, value: SSAValue) -> Node:
        """The expression of something that waits; operands whose own would be too large are computed before."""
        op = self.rows.waiting[value]
        extents = self.rows.of_rows.get(value, self.rows.extents[value])
        if op.op_type in _REDUCTIONS:
            self.made[value] = call(_REDUCTIONS[op.op_type], self._operand(op.operands[0], extents))
            return self.made[value]
        rule = _RULES[op.op_type]
        args = [None if v is None else self._operand(v, extents) for v in op.slots]
        made = rule(op, args, len(extents))
        assert made is not None
        self.made[value] = made
        return made

    def read_elsewhere(self, root: SSAValue) -> dict[SSAValue, Node]:
        """What is computed on the way and something outside reads."""
        inside = {self.rows.waiting[v] for v in self.made}
        return {
            value: node
            for value, node in self.made.items()
            if value is not root
            and value not in self.rows.of_rows
            and any(use.operation not in inside for use in value.uses)
        }

    def _operand(self, value: SSAValue, wanted: list[Any]) -> Node:
        lowering = self.rows.lowering
        if value in self.made:
            return self.made[value]
        if value in self.names:
            return self.names[value]
        number = self.rows.number(value)
        if number is not None:
            return as_node(number)
        own = self.rows.of_rows.get(value, self.rows.extents.get(value, []))
        if value in self.rows.waiting and value not in lowering.values and _same(own, wanted):
            before = dict(self.made), dict(self.inputs), dict(self.names)
            node = self.expression(value)
            small = node.size <= LARGEST and node.depth <= DEEPEST
            if value in self.rows.of_rows or (small and len(self.read_elsewhere(value)) < MOST_RESULTS):
                return node
            self.made, self.inputs, self.names = before
        name, x = f"x{len(self.inputs)}", lowering.tensor(value)
        if value in self.rows.of_rows:
            self.inputs[name] = lowering.emit(lowering.relax.op.reshape(x, [math.prod(wanted[:-1], start=1)]))
            self.names[value] = row(name)
            return self.names[value]
        narrow = is_column(extents_of(x) or [], wanted)
        if narrow and len(extents_of(x) or []) > 1:
            x = lowering.emit(lowering.relax.op.reshape(x, [wanted[-1]]))
        self.inputs[name] = x
        self.names[value] = column(name) if narrow else tensor(name)
        return self.names[value]


def is_column(own: Sequence[Any], wanted: Sequence[Any]) -> bool:
    """Whether extents are those of one number for each column of rows. Any: int, or an expression of TVM's."""
    ones = all(isinstance(d, int) and d == 1 for d in own[:-1])
    return bool(own) and ones and own[-1] == wanted[-1] and list(own) != list(wanted)


def _same(own: Sequence[Any], wanted: Sequence[Any]) -> bool:
    """Any: int, or an expression of TVM's."""
    prove = tvm().sym.Analyzer().can_prove_equal
    return len(own) == len(wanted) and all(
        a == b if isinstance(a, int) and isinstance(b, int) else bool(prove(a, b))
        for a, b in zip(own, wanted, strict=True)
    )


def _is_float(value: SSAValue) -> bool:
    found = types.element_type(value.type)
    return not isinstance(found, types.UnknownType) and types.element_of(found).numpy.name == "float32"


Args = list[Node | None]
Rule = Callable[[OnnxOp, Any, int], Node | None]
"""The expression of an operator for the expressions of its operands and its rank; None where it is none of rows."""


def _along_last(op: OnnxOp, rank: int) -> bool:
    return op.get("axis", -1) in (-1, rank - 1)


def _layer_norm(op: OnnxOp, args: Args, rank: int) -> Node | None:
    x, weight, bias = [*args, None][:3]
    if not _along_last(op, rank) or op.get("stash_type", 1) != 1 or x is None or weight is None:
        return None
    return layer_norm(x, weight, 0.0 if bias is None else bias, _number(op, "epsilon", 1e-5))


def _rms_norm(op: OnnxOp, args: Args, rank: int) -> Node | None:
    x, weight = args[:2]
    if not _along_last(op, rank) or op.get("stash_type", 1) != 1 or x is None or weight is None:
        return None
    return rms_norm(x, weight, _number(op, "epsilon", 1e-5))


def _softmax(op: OnnxOp, args: Args, rank: int) -> Node | None:
    return softmax(args[0]) if _along_last(op, rank) and args[0] is not None else None


def _gelu(op: OnnxOp, args: Args, rank: int) -> Node | None:
    form = "gelu_tanh" if op.get("approximate", "none") == "tanh" else "gelu"
    return None if args[0] is None else call(form, args[0])


def _plain(name: str) -> Rule:
    return lambda op, args, rank: None if None in args else call(name, *args)


def _power(op: OnnxOp, args: Args, rank: int) -> Node | None:
    x, n = args
    if x is None or n is None or n.op != "number" or (n.value != 0.5 and (n.value % 1 or abs(n.value) > 4)):
        return None
    return power(x, n.value)


def _number(op: OnnxOp, name: str, default: float) -> float:
    value: Any = op.get(name, default)
    return float(value)


_RULES: Mapping[str, Rule] = {
    "Add": _plain("add"),
    "Div": _plain("div"),
    "Erf": _plain("erf"),
    "Exp": _plain("exp"),
    "Gelu": _gelu,
    "LayerNormalization": _layer_norm,
    "Mul": _plain("mul"),
    "Neg": _plain("neg"),
    "Pow": _power,
    "RMSNormalization": _rms_norm,
    "Relu": _plain("relu"),
    "Sigmoid": _plain("sigmoid"),
    "Softmax": _softmax,
    "Sqrt": _plain("sqrt"),
    "Sub": _plain("sub"),
    "Tanh": _plain("tanh"),
}
_REDUCTIONS = {"ReduceMean": "row_mean", "ReduceMax": "row_max", "ReduceSum": "row_sum"}
