"""Kernel tasks of a program, a choice for each, and its mark in the IR: the operation's kernel, its weight's layout."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

from xdsl.dialects.builtin import StringAttr
from xdsl.rewriter import InsertPoint, Rewriter

from qcc.ir import types
from qcc.ir.dialects.q import Conv, Embedding, Linear, Quantize, QuantizedOp, Weight, part
from qcc.ir.kernel_task import Assignment, Choice, KernelTask, Picker, assign, cheapest
from qcc.ir.layout import Layout
from qcc.ir.program import Program
from qcc.ir.target import Target
from qcc.ir.types import QuantizedType

from . import kernels
from .speed import Speed, measured
from .traffic import stated
from .widen import widen, widened


def kernel_tasks(program: Program, target: Target) -> list[tuple[QuantizedOp, KernelTask]]:
    """Every `q` operation with a weight, with its task, from the top down."""
    return [(op, task_of(op, target)) for op in program.module.walk() if isinstance(op, Linear | Conv | Embedding)]


def task_of(op: QuantizedOp, target: Target) -> KernelTask:
    """What must be computed for an operation."""
    x, weight = op.operands[0], op.weight_type()
    quantize = x.owner if isinstance(x.owner, Quantize) else None
    attributes = tuple(sorted((name, str(op.get(name))) for name in op.parameters if name != "kernel"))
    return KernelTask(
        op.name,
        types.dims_of(x.type),
        weight.shape,
        weight.format,
        x.type.format if isinstance(x.type, QuantizedType) else None,
        quantize is not None and quantize.slot(1) is None,
        target.name,
        attributes,
    )


def choose(program: Program, target: Target, pick: Picker = cheapest) -> list[Assignment]:
    """Pick a choice for every task and resolve its layouts in the IR; packing itself is a pass."""
    speed = measured(target.machine) if target.gpu is None else stated(target.gpu)
    _widen_for_kernels(program, target, speed, pick)
    tasks = kernel_tasks(program, target)
    assignments = _one_copy(assign(tasks, lambda task: kernels.offers(task, speed), pick), speed)
    resolved: dict[_Place, Weight] = {}
    for assignment in assignments:
        _resolve(assignment.op, assignment.choice, program, resolved)
    return assignments


def _widen_for_kernels(program: Program, target: Target, speed: Speed, pick: Picker) -> None:
    """Give a weight the format that kernels read, where one of them is chosen then; else its own is smaller."""
    for weight in list(program.weight_ops()):
        type_ = weight.result.type
        wide = widened(type_.format) if isinstance(type_, QuantizedType) else None
        if not isinstance(type_, QuantizedType) or wide in (None, type_.format):
            continue
        readers = [use.operation for use in weight.result.uses if isinstance(use.operation, Linear | Conv | Embedding)]
        tasks = [replace(task_of(op, target), weight_format=wide) for op in readers]
        if any(pick(task, kernels.offers(task, speed)).kernel != "expansion" for task in tasks):
            widen(weight, program)


def _one_copy(assignments: Sequence[Assignment], speed: Speed) -> list[Assignment]:
    """A table that is an output head too takes the bytes that the head reads, where some kernel can read them."""
    heads = {a.op.operands[1]: a.choice for a in assignments if isinstance(a.op, Linear)}
    made: list[Assignment] = []
    for each in assignments:
        head = heads.get(each.op.operands[1]) if isinstance(each.op, Embedding) else None
        if head is not None and not each.choice.layout.agrees_with(head.layout, each.task.weight):
            offered = [
                c for c in kernels.offers(each.task, speed) if c.layout.agrees_with(head.layout, each.task.weight)
            ]
            each = Assignment(each.op, each.task, cheapest(each.task, offered)) if offered else each
        made.append(each)
    return made


_Place = tuple[Weight, Layout, Layout | None]
"""A weight without a layout, and where its codes and zero points shall lie."""


def _resolve(op: QuantizedOp, choice: Choice, program: Program, resolved: dict[_Place, Weight]) -> None:
    value = op.operands[1]
    weight = value.owner
    assert isinstance(weight, Weight)
    type_ = op.weight_type()
    laid_out = QuantizedType.of(type_.expressed, type_.format, choice.layout)
    op.properties["kernel"] = StringAttr(" ".join([choice.kernel, *(f"{k}={v}" for k, v in choice.parameters)]))
    if value.type == laid_out:
        return
    alike = [
        other
        for other in resolved
        if other[0] is weight
        and other[2] == choice.zero_layout
        and other[1].agrees_with(choice.layout, op.weight_type().shape)
    ]
    place = alike[0] if alike else (weight, choice.layout, choice.zero_layout)
    if place not in resolved:
        is_first = not any(other is weight for other, _, _ in resolved)
        new = Weight(weight.weight if is_first else _copied(weight, choice, program), laid_out, choice.zero_layout)
        new.result.name_hint = value.name_hint
        Rewriter.insert_op(new, InsertPoint.before(weight))
        resolved[place] = new
    op.operands[1] = resolved[place].result
    if value.first_use is None:
        Rewriter.erase_op(weight)


def _copied(weight: Weight, choice: Choice, program: Program) -> str:
    """The name of a copy, for a second layout of the same weight."""
    key = f"{weight.weight}@{choice.kernel}"
    while part(key, "codes") in program.weights:
        key += "'"
    for which in ("codes", "scale", "zero"):
        if part(weight.weight, which) in program.weights:
            program.weights[part(key, which)] = program.weights[part(weight.weight, which)]
    return key


def choice_of(op: QuantizedOp) -> Choice:
    """The choice that was resolved into an operation, read back from the IR."""
    text = op.get("kernel")
    assert isinstance(text, str)
    kernel, *parameters = text.split()
    layout, weight = op.weight_type().layout, op.operands[1].owner
    assert isinstance(layout, Layout) and isinstance(weight, Weight)
    pairs = tuple((name, int(value)) for name, value in (p.split("=") for p in parameters))
    return Choice(kernel, layout, weight.zero_layout, pairs)
