"""Remove what does nothing: `Identity(x) = x`, inference `Dropout(x) = x`, casts to the same type, and unread code.

Pairs that undo each other go too (`Transpose(Transpose(x))`, `Reshape(Reshape(x))`), and a `Shape` whose extents are
known becomes a constant.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from xdsl.ir import Operation

from qcc.ir import attributes as attr
from qcc.ir import types
from qcc.ir.dialects.onnx import OnnxOp
from qcc.ir.program import Program
from qcc.ir.rewrite import Rewrite, array_of, builder, producer, replace


@dataclass(frozen=True)
class Canonicalize(Rewrite):
    """Bypass operators whose result is their first operand."""

    name = "canonicalize"
    roots = (
        "onnx.Identity",
        "onnx.Dropout",
        "onnx.Cast",
        "onnx.Transpose",
        "onnx.Reshape",
        "onnx.Expand",
        "onnx.Shape",
    )

    def rewrite(self, op: Operation, program: Program) -> bool | str:
        """`op` is the first operand itself."""
        assert isinstance(op, OnnxOp)
        if op.op_type == "Shape":
            return _fold_shape(op, program)
        _look_through(op, program)
        x = op.slot(0)
        if x is None or not _does_nothing(op, program):
            return False
        hint = x.name_hint
        if op.results[0].type != x.type and types.dims_of(x.type) is None:
            return False
        for result in op.results[1:]:
            if result.first_use is not None:
                return "its second result is read"
        op.results[0].replace_all_uses_with(x)
        x.name_hint = hint
        return True


def _does_nothing(op: OnnxOp, program: Program) -> bool:
    x = op.operands[0]
    match op.op_type:
        case "Identity":
            return True
        case "Dropout":
            training = array_of(op.slot(2), program)
            return op.slot(2) is None or (training is not None and not bool(training))
        case "Cast":
            return types.element_of(types.element_type(x.type)).onnx == op.integer("to") if _is_tensor(op) else False
        case "Transpose":
            order = op.integers("perm")
            return bool(order) and order == sorted(order)
        case "Reshape" | "Expand":
            before, after = types.dims_of(x.type), types.dims_of(op.results[0].type)
            return before is not None and before == after and all(d is not None for d in before)
        case _:
            return False


def _look_through(op: OnnxOp, program: Program) -> None:
    """Let the second of two transpositions or reshapes read what the first reads."""
    inner = producer(op.slot(0), op.name)
    if inner is None:
        return
    if op.op_type == "Transpose" and op.integers("perm") and inner.integers("perm"):
        first = inner.integers("perm")
        op.properties["perm"] = attr.from_python([first[i] for i in op.integers("perm")])
        op.operands[0] = inner.operands[0]
    if op.op_type == "Reshape":
        shape = array_of(op.operands[1], program)
        if shape is not None and 0 not in shape:
            op.operands[0] = inner.operands[0]


def _fold_shape(op: OnnxOp, program: Program) -> bool:
    dims = types.dims_of(op.operands[0].type)
    if dims is None:
        return False
    end = op.get("end")
    known = [d for d in dims[op.integer("start") : end if isinstance(end, int) else None] if isinstance(d, int)]
    length = types.dims_of(op.results[0].type)
    if length != (len(known),):
        return False
    replace(op, builder(op, program).constant(np.array(known, np.int64)))
    return True


def _is_tensor(op: OnnxOp) -> bool:
    return not isinstance(types.element_type(op.operands[0].type), types.UnknownType)
