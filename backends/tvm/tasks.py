"""Which kernel each `q` operation gets: a generated C function, or its expansion where there is none."""

from __future__ import annotations

from collections.abc import Sequence

from xdsl.dialects.builtin import StringAttr
from xdsl.rewriter import InsertPoint, Rewriter

from qcc.backends.native.calls import linear_function
from qcc.backends.native.isa import Isa
from qcc.ir import types
from qcc.ir.dialects.q import Conv, Embedding, Linear, Quantize, QuantizedOp, Weight
from qcc.ir.errors import NotSupported
from qcc.ir.kernel_task import Assignment, Choice, KernelTask, Picker, assign
from qcc.ir.layout import Layout
from qcc.ir.program import Program
from qcc.ir.target import Target
from qcc.ir.types import QuantizedType

from . import blocked
from .quantized import linear_spec

NATIVE, EXPANSION = "generated C", "expansion"


def choose(program: Program, target: Target, isa: Isa, pick: Picker) -> list[Assignment]:
    """A kernel for every operation with a weight; the layout that it reads is put into the weight's type."""
    ops = [op for op in program.module.walk() if isinstance(op, Linear | Conv | Embedding)]
    offers = {op: _offers(op, isa) for op in ops}
    assignments: list[Assignment] = []
    for op in ops:
        assignments += assign([(op, task_of(op, target))], lambda _, op=op: offers[op], pick)
    for each in assignments:
        each.op.properties["kernel"] = StringAttr(each.choice.kernel)
        if isinstance(each.op, Linear) and each.choice.kernel == NATIVE:
            _resolve(each.op, isa, program)
    return assignments


def task_of(op: QuantizedOp, target: Target) -> KernelTask:
    """What must be computed for an operation."""
    x, weight = op.operands[0], op.weight_type()
    quantize = x.owner if isinstance(x.owner, Quantize) else None
    attributes = tuple(sorted((name, str(op.get(name))) for name in op.parameters if name != "kernel"))
    fmt = x.type.format if isinstance(x.type, QuantizedType) else None
    dynamic = quantize is not None and quantize.slot(1) is None
    return KernelTask(
        op.name, types.dims_of(x.type), weight.shape, weight.format, fmt, dynamic, target.name, attributes
    )


def _offers(op: QuantizedOp, isa: Isa) -> Sequence[Choice]:
    """The generated function, or the expansion with what stands in the way of it."""
    names = "abcdefgh"[: len(op.weight_type().shape)]
    natural = Layout.parse(" ".join(f"{n}({n}0)" for n in names) + " -> " + " ".join(f"{n}0" for n in names))
    reason = _obstacle(op)
    if reason:
        return [Choice(EXPANSION, natural, reason=f"decoded to float32 when it is compiled: {reason}")]
    return [Choice(NATIVE, natural, reason=f"for {isa.name}, in a layout of its own")]


def _obstacle(op: QuantizedOp) -> str:
    if isinstance(op, Conv):
        return blocked.obstacle(op)
    if isinstance(op, Embedding):
        return "rows of a table have no kernel yet"
    try:
        linear_spec(op)
    except NotSupported as error:
        return error.message
    return ""


def _resolve(op: Linear, isa: Isa, program: Program) -> None:
    """Give the weight of an operation the layout that its kernel reads; a copy where another reads it too."""
    value, owner = op.operands[1], op.operands[1].owner
    assert isinstance(owner, Weight)
    _, text = linear_function(linear_spec(op), isa)
    laid_out = QuantizedType.of(op.weight_type().expressed, op.weight_type().format, text.storage.layout)
    if value.type == laid_out:
        return
    others = [use.operation for use in value.uses if use.operation is not op]
    for other in program.weight_ops():
        if other.result.type == laid_out and other.weight.split("@")[0] == owner.weight.split("@")[0]:
            op.operands[1] = other.result
            return
    new = Weight(owner.weight if not others else _copied(owner, program), laid_out)
    new.result.name_hint = value.name_hint
    Rewriter.insert_op(new, InsertPoint.before(owner))
    op.operands[1] = new.result
    if value.first_use is None:
        Rewriter.erase_op(owner)


def _copied(weight: Weight, program: Program) -> str:
    """The name of a copy of a weight's parts."""
    from qcc.ir.program import weight_parts

    name = f"{weight.weight}@kernel"
    for part in weight_parts(weight):
        program.weights[part.replace(weight.weight, name, 1)] = program.weights[part]
    return name
