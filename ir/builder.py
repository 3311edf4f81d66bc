"""Append standard operators to a program: what expansions, passes and lowerings write graphs with."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from xdsl.dialects import builtin
from xdsl.ir import Attribute, Operation, SSAValue
from xdsl.rewriter import InsertPoint, Rewriter

from . import types
from .dialects.onnx import operator
from .dialects.q import Weight

F32 = builtin.f32
I32 = builtin.IntegerType(32)
I64 = builtin.IntegerType(64)


class Builder:
    """Appends standard operators before one operation; every method gives the new value."""

    def __init__(self, before: Operation, opset: int) -> None:
        self.before = before
        self.opset = opset

    def op(
        self,
        name: str,
        operands: Sequence[SSAValue | None],
        type_: Attribute,
        attributes: dict[str, object] | None = None,
        *,
        node: str = "",
    ) -> SSAValue:
        """One operator of a generated dialect, as in `op("onnx.Add", [a, b], type)`."""
        dialect, op_type = name.split(".", 1)
        new = operator(dialect, op_type)(operands, [type_], attributes, node=node)
        Rewriter.insert_op(new, InsertPoint.before(self.before))
        return new.results[0]

    def constant(self, array: np.ndarray | np.generic) -> SSAValue:
        """A small tensor written into the text."""
        array = np.asarray(array)
        return self.op("onnx.Constant", [], types.numpy_type(array), {"value": array})

    def scalar(self, value: float) -> SSAValue:
        """A float32 scalar."""
        return self.constant(np.array(value, np.float32))

    def weight(self, key: str, array: np.ndarray, name: str = "") -> SSAValue:
        """A tensor of the weight store."""
        op = Weight(key, types.numpy_type(array))
        op.result.name_hint = name or None
        Rewriter.insert_op(op, InsertPoint.before(self.before))
        return op.result

    def cast(self, value: SSAValue, element: Attribute) -> SSAValue:
        """`value` converted to another element type."""
        type_ = types.tensor_type(element, types.dims_of(value.type))
        return self.op("onnx.Cast", [value], type_, {"to": types.element_of(element).onnx})

    def reshape(self, value: SSAValue, shape: Sequence[int]) -> SSAValue:
        """Reshape; 0 keeps the extent."""
        old = types.dims_of(value.type)
        dims = [(old[i] if old else None) if d == 0 else (d if d > 0 else None) for i, d in enumerate(shape)]
        type_ = types.tensor_type(types.element_type(value.type), dims)
        return self.op("onnx.Reshape", [value, self.constant(np.array(shape, np.int64))], type_)

    def transpose(self, value: SSAValue, order: Sequence[int]) -> SSAValue:
        """Permute the axes."""
        dims = types.dims_of(value.type)
        assert dims is not None
        type_ = types.tensor_type(types.element_type(value.type), [dims[i] for i in order])
        return self.op("onnx.Transpose", [value], type_, {"perm": list(order)})

    def crop(self, value: SSAValue, shape: Sequence[int]) -> SSAValue:
        """The leading corner of static extents `shape`; the value itself where nothing is cut."""
        dims = types.dims_of(value.type)
        assert dims is not None
        axes = [i for i, d in enumerate(shape) if dims[i] != d]
        if not axes:
            return value
        bounds = [np.array(b, np.int64) for b in ([0] * len(axes), [shape[i] for i in axes], axes)]
        new = [shape[i] if i in axes else d for i, d in enumerate(dims)]
        type_ = types.tensor_type(types.element_type(value.type), new)
        return self.op("onnx.Slice", [value, *map(self.constant, bounds)], type_)

    def binary(self, name: str, left: SSAValue, right: SSAValue) -> SSAValue:
        """An elementwise operator whose result has the shape of `left`."""
        return self.op(f"onnx.{name}", [left, right], left.type)

    def unary(self, name: str, value: SSAValue) -> SSAValue:
        """An elementwise operator of one operand."""
        return self.op(f"onnx.{name}", [value], value.type)
