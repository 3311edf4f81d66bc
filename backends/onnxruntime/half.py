"""A network in float16: `y = cast(f(half(x)))`, with float32 where float16 would overflow, vanish or miscount.

Every operation is computed in one of both types. It is float16, unless

    a value of it does not fit into float16 (`half_range.measure`), or a constant does not
    it lies between positions and a sine (`half_range.angles`)
    the provider has no float16 kernel of it, or it has branches

Casts stand where the two meet and at inputs and outputs, which keep their types, except for the caches of a decoder.
Sums inside normalizations (`stash_type` 1, the default), softmax and products are the provider's: float32, but for the
4-bit product of one row, which adds up parts in float16.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping

import numpy as np
from xdsl.dialects import builtin
from xdsl.ir import Attribute, Block, Operation, SSAValue
from xdsl.rewriter import Rewriter

from qcc.ir import types
from qcc.ir.builder import Builder
from qcc.ir.dialects.onnx import OnnxOp
from qcc.ir.dialects.q import Conv, Dequantize, Embedding, Linear, Quantize, QuantizedOp, Weight, part
from qcc.ir.dialects.q_attention import Attention
from qcc.ir.emit_onnx import types_opset
from qcc.ir.errors import NotSupported
from qcc.ir.program import Program
from qcc.ir.rewrite import array_of, remove_dead
from qcc.ir.types import QuantizedType

from .cuda_kernels import has_kernel
from .half_range import angles, is_float, unfit

F16, F32 = builtin.f16, builtin.f32
_HINT = "this network needs bfloat16, which this target does not have yet: compile it for cpu"


def to_half(program: Program, unfit_values: Mapping[SSAValue, str]) -> None:
    """Rewrite a program with kernels and without packed weights, in place; decisions say what stays float32.

    Raises `NotSupported` where attention would overflow: it has no float32 kernel.
    """
    _Half(program, unfit_values).run()


class _Half:
    def __init__(self, program: Program, unfit_values: Mapping[SSAValue, str]) -> None:
        self.program = program
        self.unfit = dict(unfit_values)
        self.angles = angles(program)
        self.cast: dict[tuple[SSAValue, Attribute], SSAValue] = {}
        """The other form of a value."""
        self.judged: dict[SSAValue, str] = {}
        """Why a constant does not fit."""

    def run(self) -> None:
        wide = self._wide_weights()
        for op in [op for op in self.program.body.ops if isinstance(op, OnnxOp | QuantizedOp | Attention)]:
            if isinstance(op, Quantize | Dequantize):
                raise NotSupported(f"{op.where()}: float16 networks have float activations")
            if op.name == "onnx.Constant":
                continue
            reason = self._reason(op) or wide.get(op, "")
            if not any(map(is_float, (*op.operands, *op.results))) and not _halves(op):
                self._visit_branches(op)
                continue
            if reason:
                self._keep(op, reason)
            else:
                self._halve(op)
        self._finish()
        remove_dead(self.program)

    def _reason(self, op: Operation) -> str:
        """Why an operation stays float32; empty where it becomes float16."""
        touched = [*_convertible(op), *(r for r in _float_results(op))]
        reasons = [self.unfit[v] for v in touched if v in self.unfit] + [
            r for v in touched if (r := self._constant_reason(v))
        ]
        if isinstance(op, Attention):
            if reasons:
                raise NotSupported(f"{op.where()}: {reasons[0]}, and attention has no float32 kernel", hint=_HINT)
            return ""
        if reasons:
            return reasons[0]
        if op in self.angles:
            return "positions and angles: float16 counts to 2048"
        if op.regions:
            return "it has branches"
        if isinstance(op, OnnxOp) and not has_kernel(op, {F32: F16}):
            return "the provider has no float16 kernel of it"
        if isinstance(op, OnnxOp) and op.op_type != "Cast" and _float_results(op) and not _follows(op):
            return "its result has a type of its own"
        return ""

    def _constant_reason(self, value: SSAValue) -> str:
        if not is_float(value) or isinstance(value.type, QuantizedType):
            return ""
        if value not in self.judged:
            array = array_of(value, self.program)
            self.judged[value] = "" if array is None else unfit(array)
        return self.judged[value]

    def _wide_weights(self) -> dict[Operation, str]:
        """Operations whose weight stays in float32 scales: its scales do not fit, or another reader is float32."""
        readers: dict[SSAValue, list[Operation]] = {}
        for op in self.program.body.ops:
            if isinstance(op, Linear | Conv | Embedding):
                readers.setdefault(op.operands[1], []).append(op)
        wide: dict[Operation, str] = {}
        for weight, ops in readers.items():
            owner = weight.owner
            assert isinstance(owner, Weight)
            reasons = [self._reason(op) for op in ops]
            lost = unfit(self.program.weights[part(owner.weight, "scale")])
            reason = f"scales: {lost}" if lost else next((r for r in reasons if r), "")
            if reason:
                wide.update(dict.fromkeys(ops, reason))
                continue
            self._halve_weight(owner)
        return wide

    def _halve_weight(self, weight: Weight) -> None:
        """Scales become float16: they must have the type of the activations. It moves a weight by at most 2^-11."""
        type_ = weight.result.type
        assert isinstance(type_, QuantizedType)
        key = part(weight.weight, "scale")
        self.program.weights[key] = self.program.weights[key].astype(np.float16)
        scales = tuple(dataclasses.replace(s, dtype="f16") for s in type_.format.scales)
        fmt = dataclasses.replace(type_.format, scales=scales)
        expressed = types.tensor_type(F16, types.dims_of(type_))
        Rewriter.replace_value_with_new_type(weight.result, QuantizedType.of(expressed, fmt, type_.layout))

    def _halve(self, op: Operation) -> None:
        if isinstance(op, OnnxOp) and op.op_type == "Cast":
            _retarget(op)
        else:
            positions = _convertible_positions(op)
            for index, value in enumerate(op.operands):
                element = F16 if index in positions else F32
                if types.element_type(value.type) in (F16, F32) and not isinstance(value.type, QuantizedType):
                    op.operands[index] = self._as(value, element, op)
        for result in _float_results(op):
            Rewriter.replace_value_with_new_type(result, _with_element(result.type, F16))

    def _keep(self, op: Operation, reason: str) -> None:
        for index, value in enumerate(op.operands):
            if types.element_type(value.type) == F16 and not isinstance(value.type, QuantizedType):
                op.operands[index] = self._as(value, F32, op)
        self._visit_branches(op)
        node = getattr(op, "node", "")
        if node:
            self.program.decide(node, "float32", reason)

    def _visit_branches(self, op: Operation) -> None:
        """Branches keep float32: what they read of the network around them is cast in front of the operation."""
        for region in op.regions:
            for inner in region.walk():
                for index, value in enumerate(inner.operands):
                    outside = isinstance(value.owner, Block) or value.owner.parent is self.program.body
                    if outside and types.element_type(value.type) == F16:
                        inner.operands[index] = self._as(value, F32, op)

    def _as(self, value: SSAValue, element: Attribute, before: Operation) -> SSAValue:
        """A value in another type: a rewritten constant, the value it was cast from, or a cast behind its producer."""
        if types.element_type(value.type) == element:
            return value
        if (value, element) not in self.cast:
            new = self._converted(value, element, before)
            self.cast[value, element], self.cast[new, types.element_type(value.type)] = new, value
        return self.cast[value, element]

    def _converted(self, value: SSAValue, element: Attribute, before: Operation) -> SSAValue:
        array = array_of(value, self.program)
        owner = value.owner
        build = Builder(self._behind(value) or before, types_opset(self.program, ""))
        dtype = types.element_of(element).numpy
        if array is None:
            new = build.cast(value, element)
        elif isinstance(owner, Weight):
            key = f"{owner.weight}.{types.element_of(element).schema}"
            self.program.weights[key] = array.astype(dtype)
            new = build.weight(key, self.program.weights[key])
        else:
            new = build.constant(array.astype(dtype))
        new.name_hint = f"{value.name_hint}_{types.element_of(element).schema}" if value.name_hint else None
        return new

    def _behind(self, value: SSAValue) -> Operation | None:
        """The operation behind the producer of a value: every reader sees what is inserted before it."""
        owner = value.owner
        return owner.next_op if isinstance(owner, Operation) else self.program.body.first_op

    def _finish(self) -> None:
        """Outputs in their old types, caches in float16, and the signature that follows."""
        last = self.program.body.last_op
        assert last is not None
        for index, value in enumerate(last.operands):
            if types.element_type(value.type) == F16 and not _is_cache(value):
                last.operands[index] = self._as(value, F32, last)
        for argument in list(self.program.body.args):
            half = self.cast.get((argument, F16))
            readers = [use.operation for use in argument.uses]
            if half is not None and all(op is half.owner for op in readers) and _feeds_attention(half):
                new = Rewriter.replace_value_with_new_type(argument, _with_element(argument.type, F16))
                half.replace_all_uses_with(new)
        self.program.main.update_function_type()


def _convertible_positions(op: Operation) -> set[int]:
    """The operands that float16 may take the place of, as places in `op.operands`."""
    if isinstance(op, OnnxOp):
        given = [i for i, v in enumerate(op.slots) if v is not None]
        return {place for place, i in enumerate(given) if "tensor(float16)" in op.schema.input_at(i).types}
    if isinstance(op, Attention):
        return set(range(5))
    return {0, 2}


def _convertible(op: Operation) -> list[SSAValue]:
    positions = _convertible_positions(op)
    return [v for i, v in enumerate(op.operands) if i in positions and is_float(v)]


def _float_results(op: Operation) -> list[SSAValue]:
    """The float32 results whose type follows that of the operands."""
    if isinstance(op, OnnxOp):
        formals = [op.schema.output_at(i) for i in range(len(op.results))]
        return [r for r, f in zip(op.results, formals, strict=True) if is_float(r) and "tensor(float16)" in f.types]
    return [r for r in op.results if is_float(r)]


def _halves(op: Operation) -> bool:
    """Whether an operand has become float16 already."""
    return any(types.element_type(v.type) == F16 for v in op.operands)


def _follows(op: OnnxOp) -> bool:
    """Whether an operand says of which float type the results are."""
    positions = _convertible_positions(op)
    return any(i in positions and types.element_type(v.type) in (F16, F32) for i, v in enumerate(op.operands))


def _retarget(op: OnnxOp) -> None:
    if is_float(op.results[0]):
        op.properties["to"] = builtin.IntegerAttr(types.element_of(F16).onnx, 64)


def _with_element(type_: Attribute, element: Attribute) -> Attribute:
    return types.tensor_type(element, types.dims_of(type_))


def _is_cache(value: SSAValue) -> bool:
    """Whether an output is a cache: it is what attention gives as one, and nothing else."""
    return isinstance(value.owner, Attention) and value is not value.owner.results[0]


def _feeds_attention(value: SSAValue) -> bool:
    return all(isinstance(use.operation, Attention) and use.index in (3, 4) for use in value.uses)
