"""Remove what does nothing: `Identity(x) = x`, inference `Dropout(x) = x`, casts to the same type, and unread code."""

from __future__ import annotations

from dataclasses import dataclass

from xdsl.ir import Operation

from qcc.ir import types
from qcc.ir.dialects.onnx import OnnxOp
from qcc.ir.program import Program
from qcc.ir.rewrite import Rewrite, array_of


@dataclass(frozen=True)
class Canonicalize(Rewrite):
    """Bypass operators whose result is their first operand."""

    name = "canonicalize"
    roots = ("onnx.Identity", "onnx.Dropout", "onnx.Cast", "onnx.Transpose", "onnx.Reshape")

    def rewrite(self, op: Operation, program: Program) -> bool | str:
        """`op` is the first operand itself."""
        assert isinstance(op, OnnxOp)
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
        case "Reshape":
            before, after = types.dims_of(x.type), types.dims_of(op.results[0].type)
            return before is not None and before == after and all(d is not None for d in before)
        case _:
            return False


def _is_tensor(op: OnnxOp) -> bool:
    return not isinstance(types.element_type(op.operands[0].type), types.UnknownType)
