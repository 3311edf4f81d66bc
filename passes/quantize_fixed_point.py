"""Round every tensor between the nodes of the fixed-point form to int8 with a power of two as scale.

    y = node(x)  ->  y = dequantize(quantize(node(dequantize(quantize(x)))))

Unlike the passes for CPUs, which quantize where it pays, this decides node by node whether the form holds it
(`fixed_point_form.py`) and then leaves no float tensor around it: a node that adds or pools follows a layer into codes.
Nodes outside stay float and are recorded as skipped, with the reason. Operators that move or average codes give one
scale to all their tensors (AlignConcat, AlignPool, AlignPad, AlignSlice of AMD Quark's ONNX quantizer); a Relu, Clip or
LeakyRelu behind a layer or an addition runs before rounding (its RemoveQDQConvRelu).
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from xdsl.dialects.func import ReturnOp
from xdsl.ir import Block, BlockArgument, Operation, OpResult, SSAValue
from xdsl.rewriter import InsertPoint, Rewriter

from qcc.ir import types
from qcc.ir.dialects.graph_op import GraphOp
from qcc.ir.dialects.onnx import OnnxOp
from qcc.ir.dialects.q import Conv, Dequantize, Linear, Quantize, Weight, part
from qcc.ir.errors import BadInput, NotSupported
from qcc.ir.format import Format
from qcc.ir.program import Program
from qcc.ir.rewrite import Pass, ProgramContext, array_of, builder, weight_name
from qcc.ir.types import QuantizedType

from . import schemes
from .calibrate import key_of
from .fixed_point_form import JOINED, LAYERS, SHARING, data_operands, obstacle
from .observers.statistics import Histogram
from .power_of_two import exponent_of, scale_of
from .quantize_bias import step_of_sum
from .quantize_linear import quantized_weight
from .selection import Selection

FIXED = "fixed point"
"""The action under which a node of the form is recorded."""
_SHIFTS = 16
"""Bits by which DPUs shift a sum to the right (AdjustShiftCut of AMD Quark's ONNX quantizer)."""
_APART = 7
"""Bits by which DPUs shift one operand of an addition to meet the other (AdjustShiftRead)."""


@dataclass(frozen=True)
class QuantizeFixedPoint(Pass):
    """Choose the nodes of the form and quantize every tensor around them, with scales from `ctx.statistics`."""

    name = "quantize_fixed_point"

    scheme: str = "XINT8"
    observer: str = "mse"
    ignore: tuple[str, ...] = ()

    def run(self, program: Program, ctx: ProgramContext) -> None:
        """Nothing where the scheme is another; `NotSupported` where the form holds no node at all."""
        scheme = schemes.load(self.scheme)
        fmt = scheme.activation_format()
        if not scheme.is_fixed_point or fmt is None:
            return
        held = _held_nodes(program, self.ignore)
        if not any(isinstance(op, Conv | Linear) for op in held):
            raise NotSupported(
                "no layer of the network fits the fixed-point form",
                hint="it holds convolutions and products of matrices, with constant weights; see --explain",
            )
        tensors = _Tensors(held)
        scales = {
            leader: scale_of([_statistics(v, ctx.statistics) for v in members], fmt, self.observer)
            for leader, members in tensors.groups().items()
        }
        for value in list(tensors.values):
            _quantize(value, scales[tensors.leader(value)], fmt, set(held), program)
        for op in held:
            _quantize_constants(op, fmt, program)
        for op in held:
            _record(op, program)


def _held_nodes(program: Program, ignore: tuple[str, ...]) -> list[GraphOp]:
    """The nodes of the form from the top down; the others are recorded as skipped."""
    selection, held = Selection(ignore), dict[GraphOp, None]()
    skipped = {d.node for d in program.decisions if d.action == "skipped"}
    for op in program.body.ops:
        if isinstance(op, Conv | Linear):
            held[op] = None
        if not isinstance(op, OnnxOp) or op.op_type == "Constant" or not _is_float(op):
            continue
        reason = selection.ignores(op, op.results[0]) or obstacle(op, program)
        if not reason and op.op_type in LAYERS:
            reason = "its weight is left float"
        if not reason and not any(_owner(v) in held for v in data_operands(op)):
            reason = "none of its operands comes from a node of the form"
        if not reason:
            held[op] = None
        elif op.node not in skipped:
            program.decide(op.node, "skipped", reason)
    return list(held)


class _Tensors:
    """The values to quantize, in groups of one scale."""

    def __init__(self, held: list[GraphOp]) -> None:
        self._held = set(held)
        self._parent: dict[SSAValue, SSAValue] = {}
        for op in held:
            around = [v for v in self._operands(op) if not self._joins(v)]
            around += [r for r in op.results if r.first_use is not None and not self._joins(r)]
            for value in around:
                self._parent.setdefault(value, value)
            if isinstance(op, OnnxOp) and op.op_type in SHARING:
                for value in around[1:]:
                    self._parent[self.leader(value)] = self.leader(around[0])

    @property
    def values(self) -> list[SSAValue]:
        """All of them, in the order of the network."""
        return list(self._parent)

    def leader(self, value: SSAValue) -> SSAValue:
        """The value that stands for the group."""
        while self._parent[value] is not value:
            value = self._parent[value]
        return value

    def groups(self) -> dict[SSAValue, list[SSAValue]]:
        """The members of each group, by leader."""
        found: dict[SSAValue, list[SSAValue]] = {}
        for value in self._parent:
            found.setdefault(self.leader(value), []).append(value)
        return found

    def _operands(self, op: GraphOp) -> list[SSAValue]:
        operands = data_operands(op) if isinstance(op, OnnxOp) else [op.operands[0]]
        return [v for v in operands if _is_computed(v)]

    def _joins(self, value: SSAValue) -> bool:
        """Whether a value is the sum that the one activation function behind it takes in before rounding."""
        owner, use = _owner(value), value.get_unique_use()
        if owner not in self._held or use is None or use.operation not in self._held:
            return False
        sums = isinstance(owner, Conv | Linear) or (isinstance(owner, OnnxOp) and owner.op_type == "Add")
        return sums and isinstance(use.operation, OnnxOp) and use.operation.op_type in JOINED


def _statistics(value: SSAValue, statistics: dict[str, Histogram]) -> Histogram:
    key = key_of(value)
    if key not in statistics:
        raise BadInput(f"no calibration statistics for the value {key}", hint="calibrate the same program")
    return statistics[key]


def _quantize(value: SSAValue, scale: float, fmt: Format, held: set[GraphOp], program: Program) -> None:
    """Let the readers of `value` read it through codes: layers the codes themselves.

    What the host computed it has in float as well, so nodes outside the form go on reading that.
    """
    from_host = _owner(value) not in held
    readers = [(use.operation, use.index) for use in value.uses if not from_host or use.operation in held]
    before = _after(value)
    quantize = Quantize(
        [value, builder(before, program).constant(np.array(scale, np.float32))], [QuantizedType.of(value.type, fmt)]
    )
    dequantize = Dequantize([quantize.results[0]], [value.type])
    for op in (quantize, dequantize):
        Rewriter.insert_op(op, InsertPoint.before(before))
    for reader, index in readers:
        takes_codes = index == 0 and isinstance(reader, Conv | Linear)
        reader.operands[index] = (quantize if takes_codes else dequantize).results[0]
    if dequantize.results[0].first_use is None:
        Rewriter.erase_op(dequantize)


def _quantize_constants(op: GraphOp, fmt: Format, program: Program) -> None:
    """The constant operand of an addition or product, as codes of its own scale."""
    if not isinstance(op, OnnxOp):
        return
    for index, value in enumerate(op.operands):
        array = array_of(value, program)
        if value not in data_operands(op) or array is None:
            continue
        name = weight_name(value, f"{op.node}.{index}")
        weight = quantized_weight(op, name, array, fmt, "rtn", program)
        dequantize = Dequantize([weight], [value.type])
        Rewriter.insert_op(dequantize, InsertPoint.before(op))
        op.operands[index] = dequantize.results[0]


def _record(op: GraphOp, program: Program) -> None:
    """What a node was given; a shift or a distance of operands that DPUs cannot take is said so."""
    scale = _scale_behind(op, program)
    told = "its result is read by nobody" if scale is None else f"result in 2^{scale}"
    if scale is not None and isinstance(op, Conv | Linear):
        shift = scale - exponent_of(step_of_sum(op, program))
        told += f", its sum shifted by {shift}" + _beyond(shift, 0, _SHIFTS, "shift by")
    if isinstance(op, OnnxOp) and op.op_type == "Add":
        found = [e for v in op.operands if (e := _exponent(v, program)) is not None]
        apart = max(found) - min(found)
        told += f", operands {apart} bits apart" + _beyond(apart, 0, _APART, "take")
    program.decide(op.node, FIXED, told)


def _beyond(value: int, low: int, high: int, verb: str) -> str:
    return "" if low <= value <= high else f" (DPUs {verb} {low} to {high} only)"


def _scale_behind(op: GraphOp, program: Program) -> int | None:
    """The exponent in which the result of a node is rounded, behind its activation function where it has one."""
    value = op.results[0]
    while True:
        for use in value.uses:
            if isinstance(use.operation, Quantize):
                return _exponent(use.operation.results[0], program)
        use = value.get_unique_use()
        if use is None or not isinstance(use.operation, OnnxOp):
            return None
        value = use.operation.results[0]


def _exponent(value: SSAValue, program: Program) -> int | None:
    """The exponent of the scale behind a dequantized value or codes."""
    owner = value.owner
    if isinstance(owner, Dequantize):
        return _exponent(owner.operands[0], program)
    if isinstance(owner, Weight):
        return exponent_of(float(program.weights[part(owner.weight, "scale")].reshape(())))
    scale = array_of(owner.slot(1), program) if isinstance(owner, Quantize) else None
    return None if scale is None else exponent_of(float(scale))


def _owner(value: SSAValue) -> object:
    return value.owner if isinstance(value, OpResult) else None


def _is_computed(value: SSAValue) -> bool:
    owner = _owner(value)
    return owner is None or (isinstance(owner, GraphOp) and owner.name != "onnx.Constant")


def _is_float(op: OnnxOp) -> bool:
    return any(types.schema_string(r.type) in ("tensor(float)", "tensor(float16)") for r in op.results)


def _after(value: SSAValue) -> Operation:
    """The operation right behind the definition of a value."""
    owner = value.owner
    if isinstance(value, BlockArgument):
        assert isinstance(owner, Block) and owner.first_op is not None
        return owner.first_op
    assert isinstance(owner, Operation) and not isinstance(owner, ReturnOp) and owner.next_op is not None
    return owner.next_op
