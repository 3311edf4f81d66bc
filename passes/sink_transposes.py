"""`Transpose(f(Transpose(x))) = f(x)`, where the two undo each other and f works on rows that stay whole.

Attention is written as `[batch, length, heads, size] -> [batch, heads, length, size]`, a norm and a rotation of every
head, and back: nothing that needs the exchange. `RotaryEmbedding` takes `[batch, length, heads * size]` too.
"""

from __future__ import annotations

from dataclasses import dataclass

from xdsl.ir import Attribute, Operation, SSAValue
from xdsl.rewriter import InsertPoint, Rewriter

from qcc.ir import types
from qcc.ir.builder import Builder
from qcc.ir.dialects.onnx import OnnxOp
from qcc.ir.program import Program
from qcc.ir.rewrite import Rewrite, builder, has_one_use, producer, rank_of, replace, scalar_of

_UNARY = {
    "Abs", "Cast", "Ceil", "Erf", "Exp", "Floor", "Gelu", "HardSigmoid", "HardSwish", "LeakyRelu", "Neg", "Relu",
    "Round", "Sigmoid", "Sqrt", "Tanh",
}  # fmt: skip
_BINARY = {"Add", "Sub", "Mul", "Div"}
_NORMS = {"RMSNormalization", "LayerNormalization"}
_HEADS_FIRST = [0, 2, 1, 3]


@dataclass(frozen=True)
class SinkTransposes(Rewrite):
    """Look at the second transposition, and up from it to the first."""

    name = "sink_transposes"
    roots = ("onnx.Transpose",)

    def rewrite(self, op: Operation, program: Program) -> bool | str:
        """Guards: the orders undo each other, and all between is read once and keeps the axis of its rows."""
        assert isinstance(op, OnnxOp)
        order, between = op.integers("perm"), list[OnnxOp]()
        value = op.operands[0]
        while (inner := producer(value, "onnx.Transpose")) is None:
            owner = value.owner
            if not isinstance(owner, OnnxOp) or not _passes(owner, order, program) or not has_one_use(value):
                return False
            between.append(owner)
            value = owner.operands[0]
        if not between or [inner.integers("perm")[i] for i in order] != sorted(order):
            return False
        if inner.parent is not op.parent or any(each.parent is not op.parent for each in between):
            return "what stands between is in another graph"
        x = inner.operands[0]
        for each in reversed(between):
            x = _without(each, x, order, program)
        replace(op, x)
        return True


def _passes(op: OnnxOp, order: list[int], program: Program) -> bool:
    """Whether an operator of rows in one order of axes is the same operator in another."""
    if op.domain or len(op.results) != 1 or rank_of(op.results[0]) != len(order):
        return False
    rest = op.slots[1:]
    if op.op_type in _UNARY:
        return not rest
    if op.op_type in _BINARY:
        return scalar_of(rest[0], program) is not None and rank_of(op.operands[1]) in (0, 1)
    if op.op_type in _NORMS:
        last = order[-1] == len(order) - 1 and op.integer("axis", -1) in (-1, len(order) - 1)
        return last and all(v is None or rank_of(v) == 1 for v in rest)
    if op.op_type == "Gather":
        return rank_of(op.operands[1]) == 1
    if op.op_type == "RotaryEmbedding":
        return order == _HEADS_FIRST and _heads(op) is not None
    return False


def _heads(op: OnnxOp) -> tuple[int, int] | None:
    """Heads and size of the operand [batch, heads, length, size], where both are known."""
    dims = types.dims_of(op.operands[0].type)
    if dims is None or len(dims) != 4 or not isinstance(dims[1], int) or not isinstance(dims[3], int):
        return None
    return dims[1], dims[3]


def _without(op: OnnxOp, x: SSAValue, order: list[int], program: Program) -> SSAValue:
    """The same operator on `x`, which lies as it did before the first transposition."""
    build, wanted = builder(op, program), _permuted(op.results[0].type, order)
    if op.op_type == "Gather":
        return _again(op, x, wanted, {"axis": order.index(op.integer("axis") % len(order))})
    if op.op_type != "RotaryEmbedding":
        return _again(op, x, wanted, {})
    found, dims = _heads(op), types.dims_of(wanted)
    assert found is not None and dims is not None
    heads, size = found
    flat = build.reshape(x, [0, 0, heads * size])
    turned = _again(op, flat, types.tensor_type(types.element_type(wanted), [*dims[:2], heads * size]),
                    {"num_heads": heads})  # fmt: skip
    return _reshaped(turned, [0, 0, heads, size], build, wanted)


def _again(op: OnnxOp, x: SSAValue, type_: Attribute, more: dict[str, object]) -> SSAValue:
    new = type(op)([x, *op.slots[1:]], [type_], {**op.parameters, **more}, node=op.node)
    Rewriter.insert_op(new, InsertPoint.before(op))
    return new.results[0]


def _reshaped(x: SSAValue, shape: list[int], build: Builder, wanted: Attribute) -> SSAValue:
    made = build.reshape(x, shape)
    assert types.dims_of(made.type) == types.dims_of(wanted)
    return made


def _permuted(type_: Attribute, order: list[int]) -> Attribute:
    """The type of a tensor whose axes are put in `order`."""
    dims = types.dims_of(type_)
    assert dims is not None
    return types.tensor_type(types.element_type(type_), [dims[i] for i in order])
