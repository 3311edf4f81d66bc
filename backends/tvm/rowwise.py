"""Operators along the last axis as row kernels: normalizations, softmax, functions that are more than arithmetic."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Any

from qcc.backends.native.rows_expression import Node, call, column, layer_norm, rms_norm, softmax, tensor
from qcc.backends.native.rows_spec import RowsSpec
from qcc.ir.dialects.onnx import OnnxOp

from .lower import extents_of
from .toolchain import Tvm

if TYPE_CHECKING:
    from .lower import Lowering

X = tensor("x")
MOST = 1 << 16
"""Columns of a row that a kernel is generated for."""


def lower(op: OnnxOp, inputs: list[Tvm | None], lowering: Lowering) -> Tvm | None:
    """The result of an operator as a call of a row kernel; None where it is none, or its rows are not known."""
    rule, x = _RULES.get(op.op_type), inputs[0] if inputs else None
    extents = None if x is None or x.ty.dtype.dtype != "float32" else extents_of(x)
    if rule is None or not extents or not isinstance(extents[-1], int) or extents[-1] > MOST or len(op.results) != 1:
        return None
    expression = rule(op, len(extents))
    if expression is None:
        return None
    named: dict[str, Tvm] = {"x": x}
    for name, value in zip(("w", "b"), inputs[1:], strict=False):
        if value is None or extents_of(value) != [extents[-1]] or value.ty.dtype.dtype != "float32":
            return None
        named[name] = value
    spec = RowsSpec.of(extents[-1], expression(set(named)))
    return lowering.rows(spec, named, extents)


Expression = Callable[[set[str]], Node]
"""The expression for the operands that are there."""


def _layer_norm(op: OnnxOp, rank: int) -> Expression | None:
    if op.get("axis", -1) not in (-1, rank - 1) or op.get("stash_type", 1) != 1:
        return None
    epsilon = _number(op, "epsilon", 1e-5)
    return lambda named: layer_norm(X, column("w"), column("b") if "b" in named else 0.0, epsilon)


def _rms_norm(op: OnnxOp, rank: int) -> Expression | None:
    if op.get("axis", -1) not in (-1, rank - 1) or op.get("stash_type", 1) != 1:
        return None
    epsilon = _number(op, "epsilon", 1e-5)
    return lambda named: rms_norm(X, column("w"), epsilon)


def _softmax(op: OnnxOp, rank: int) -> Expression | None:
    return (lambda named: softmax(X)) if op.get("axis", -1) in (-1, rank - 1) else None


def _gelu(op: OnnxOp, rank: int) -> Expression | None:
    form = "gelu_tanh" if op.get("approximate", "none") == "tanh" else "gelu"
    return lambda named: call(form, X)


def _unary(name: str) -> Callable[[OnnxOp, int], Expression]:
    return lambda op, rank: lambda named: call(name, X)


def _number(op: OnnxOp, name: str, default: float) -> float:
    value: Any = op.get(name, default)
    return float(value)


_RULES: Mapping[str, Callable[[OnnxOp, int], Expression | None]] = {
    "Erf": _unary("erf"),
    "Exp": _unary("exp"),
    "Gelu": _gelu,
    "LayerNormalization": _layer_norm,
    "RMSNormalization": _rms_norm,
    "Sigmoid": _unary("sigmoid"),
    "Softmax": _softmax,
    "Tanh": _unary("tanh"),
}
