"""Which kernel each `q` operation gets: a generated C function, or its expansion where there is none."""

from __future__ import annotations

from collections.abc import Sequence

from xdsl.dialects.builtin import StringAttr
from xdsl.ir import Operation
from xdsl.rewriter import InsertPoint, Rewriter

from qcc.backends.native.isa import Isa
from qcc.backends.native.linear import generate
from qcc.ir import types
from qcc.ir.dialects.q import Conv, Embedding, Linear, Quantize, QuantizedOp, Weight
from qcc.ir.errors import NotSupported
from qcc.ir.kernel_task import Assignment, Choice, KernelTask, Picker, assign
from qcc.ir.layout import Layout, Record
from qcc.ir.program import Program
from qcc.ir.target import Target
from qcc.ir.types import QuantizedType

from . import blocked
from .quantized import linear_spec, table_spec

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
    native = [a.op for a in assignments if a.choice.kernel == NATIVE]
    for op in native:
        if isinstance(op, Linear):
            _resolve(op, generate(linear_spec(op), isa).storage.layout, program)
    for op in native:  # last: their tables lie as linear operations want them
        if isinstance(op, Embedding) and not _shared(op, program):
            _resolve(op, generate(table_spec(op), isa).storage.layout, program)
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
    try:
        _ = table_spec(op) if isinstance(op, Embedding) else linear_spec(op)
    except NotSupported as error:
        return error.message
    return ""


def _shared(op: Embedding, program: Program) -> bool:
    """Let a table be read where a linear operation has it already."""
    for other in program.weight_ops():
        type_ = other.result.type
        if isinstance(type_, QuantizedType) and type_.layout is not None and _same_table(other, op):
            op.operands[1] = other.result
            return True
    return False


def _same_table(other: Weight, op: QuantizedOp) -> bool:
    owner = op.operands[1].owner
    return isinstance(owner, Weight) and other.weight.split("@")[0] == owner.weight.split("@")[0]


def _resolve(op: QuantizedOp, layout: Record, program: Program) -> None:
    """Give the weight of an operation the layout that its kernel reads; a copy where another reads it too."""
    value, owner = op.operands[1], op.operands[1].owner
    assert isinstance(owner, Weight)
    laid_out = QuantizedType.of(op.weight_type().expressed, op.weight_type().format, layout)
    if value.type == laid_out:
        return
    for other in program.weight_ops():
        if other.result.type == laid_out and _same_table(other, op):
            op.operands[1] = other.result
            return
    others = [use.operation for use in value.uses if use.operation is not op and not _is_native_table(use.operation)]
    new = Weight(owner.weight if not others else _copied(owner, program), laid_out)
    new.result.name_hint = value.name_hint
    Rewriter.insert_op(new, InsertPoint.before(owner))
    op.operands[1] = new.result
    if value.first_use is None:
        Rewriter.erase_op(owner)


def _is_native_table(op: Operation) -> bool:
    """Whether an operation reads rows of a table in any layout."""
    return isinstance(op, Embedding) and op.get("kernel") == NATIVE


def _copied(weight: Weight, program: Program) -> str:
    """The name of a copy of a weight's parts."""
    from qcc.ir.program import weight_parts

    name = f"{weight.weight}@kernel"
    for part in weight_parts(weight):
        program.weights[part.replace(weight.weight, name, 1)] = program.weights[part]
    return name
