"""Shapes and element types, by the ONNX library's own inference: of one operation, or of a whole module."""

from __future__ import annotations

from dataclasses import dataclass
from functools import lru_cache
from typing import TYPE_CHECKING

import numpy as np
import onnx
from onnx import NodeProto, TensorProto, TypeProto, helper, shape_inference
from xdsl.dialects.builtin import ModuleOp
from xdsl.dialects.func import FuncOp
from xdsl.ir import Attribute, Operation, SSAValue
from xdsl.rewriter import Rewriter
from xdsl.utils.exceptions import VerifyException

from . import attributes as attr
from . import types

if TYPE_CHECKING:
    from .dialects.onnx import OnnxOp
    from .dialects.schema import OperatorSchema


LONGEST_VECTOR = 1 << 18
"""The library writes out the rank that a vector of lengths implies, item by item: longer ones take gigabytes."""


def infer_results(op: OnnxOp, schema: OperatorSchema) -> list[Attribute | None]:
    """The result types that operand types, attributes and constant operands of `op` imply; None where nothing follows.

    The schema is one of the ONNX library. Raises `VerifyException` with the library's reason where the operation cannot
    be right.
    """
    from .dialects.onnx import opset_of

    slots = op.slots
    question = _Question(
        schema,
        (opset_of(op, ""), opset_of(op, op.domain)),
        tuple(None if s is None else s.type for s in slots),
        tuple(None if s is None else _constant_attribute(s) for s in slots),
        tuple(op.parameters.items()),
        len(op.results),
    )
    try:
        return list(_answer(question))
    except (shape_inference.InferenceError, onnx.checker.ValidationError, ValueError) as error:
        raise VerifyException(f"{op.where()}: {str(error).strip().splitlines()[0]}") from error


@dataclass(frozen=True)
class _Question:
    """All that an inference depends on. Most operations are asked about again after every pass: answers are kept."""

    schema: OperatorSchema
    opsets: tuple[int, int]
    operand_types: tuple[Attribute | None, ...]
    constants: tuple[attr.TensorAttr | None, ...]
    parameters: tuple[tuple[str, Attribute], ...]
    results: int


@lru_cache(maxsize=1 << 14)
def _answer(q: _Question) -> tuple[Attribute | None, ...]:
    assert q.schema.native is not None
    inputs: list[str] = []
    input_types: dict[str, TypeProto] = {}
    input_data: dict[str, TensorProto] = {}
    for index, (type_, constant) in enumerate(zip(q.operand_types, q.constants, strict=True)):
        name = "" if type_ is None else f"i{index}"
        inputs.append(name)
        if type_ is None:
            continue
        proto = types.to_proto(type_)
        if proto.WhichOneof("value") is None:
            return ()
        dims = proto.tensor_type.shape.dim
        if len(dims) == 1 and dims[0].dim_value > LONGEST_VECTOR:
            dims[0].ClearField("dim_value")
        input_types[name] = proto
        if constant is not None:
            input_data[name] = attr.from_array(constant.array, name)
    outputs = [f"o{i}" for i in range(q.results)]
    node = NodeProto(op_type=q.schema.name, domain=q.schema.domain, input=inputs, output=outputs)
    node.attribute.extend(attr.to_proto(name, value) for name, value in q.parameters)
    opsets = [helper.make_opsetid("", q.opsets[0]), helper.make_opsetid(q.schema.domain, q.opsets[1])]
    found = shape_inference.infer_node_outputs(q.schema.native, node, input_types, input_data, None, opsets)
    return tuple(types.from_proto(found[name]) if name in found else None for name in node.output)


def forget() -> None:
    """Drop the kept answers, as a measurement of inference must."""
    _answer.cache_clear()


def constant_of(value: SSAValue) -> np.ndarray | None:
    """The array behind a small constant written into the text; None where the value is anything else."""
    tensor = _constant_attribute(value)
    return None if tensor is None else tensor.array


def _constant_attribute(value: SSAValue) -> attr.TensorAttr | None:
    owner = value.owner
    tensor = owner.properties.get("value") if isinstance(owner, Operation) and owner.name == "onnx.Constant" else None
    return tensor if isinstance(tensor, attr.TensorAttr) else None


def infer_types(module: ModuleOp) -> None:
    """Fill in result types that are unknown or unranked, operation by operation, from the top down."""
    from .dialects.onnx import OnnxOp

    for op in list(module.walk()):
        if not isinstance(op, OnnxOp) or op.regions:
            continue
        if all(types.dims_of(r.type) is not None for r in op.results):
            continue
        schema = op.schema
        inferred = infer_results(op, schema) if schema.native is not None else []
        for index, result in enumerate(op.results):
            type_ = inferred[index] if index < len(inferred) else None
            type_ = type_ or _by_type_variable(op, schema, index)
            if type_ is not None and types.dims_of(result.type) is None:
                Rewriter.replace_value_with_new_type(result, type_)
    for function in module.ops:
        if isinstance(function, FuncOp):
            function.update_function_type()


def _by_type_variable(op: OnnxOp, schema: OperatorSchema, index: int) -> Attribute | None:
    """An unranked tensor of the element type that an operand of the same type variable has."""
    formal = schema.output_at(index)
    for position, value in enumerate(op.slots):
        if value is not None and schema.input_at(position).type_var == formal.type_var:
            element = types.element_type(value.type)
            return None if isinstance(element, types.UnknownType) else types.tensor_type(element, None)
    return None
