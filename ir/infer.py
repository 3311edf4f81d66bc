"""Shapes and element types, by the ONNX library's own inference: of one operation, or of a whole module."""

from __future__ import annotations

from typing import TYPE_CHECKING

import onnx
from onnx import NodeProto, TensorProto, TypeProto, shape_inference
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


def infer_results(op: OnnxOp, schema: OperatorSchema) -> list[Attribute | None]:
    """The result types that the operand types, attributes and constant operands of `op` imply; None where nothing follows.

    Raises `VerifyException` with the library's reason where the operation cannot be right.
    """
    inputs: list[str] = []
    input_types: dict[str, TypeProto] = {}
    input_data: dict[str, TensorProto] = {}
    for index, value in enumerate(op.slots):
        name = "" if value is None else f"i{index}"
        inputs.append(name)
        if value is None:
            continue
        proto = types.to_proto(value.type)
        if proto.WhichOneof("value") is None:
            return []
        input_types[name] = proto
        constant = constant_of(value)
        if constant is not None:
            input_data[name] = attr.from_array(constant, name)
    node = NodeProto(
        op_type=op.op_type, domain=op.domain, input=inputs, output=[f"o{i}" for i in range(len(op.results))]
    )
    node.attribute.extend(attr.to_proto(name, value) for name, value in op.parameters.items())
    from .dialects.onnx import opset_of

    opsets = [
        onnx.helper.make_opsetid("", opset_of(op, "")),
        onnx.helper.make_opsetid(op.domain, opset_of(op, op.domain)),
    ]
    try:
        found = shape_inference.infer_node_outputs(schema.native, node, input_types, input_data, None, opsets)
    except (shape_inference.InferenceError, onnx.checker.ValidationError, ValueError) as error:
        raise VerifyException(f"{op.where()}: {str(error).strip().splitlines()[0]}") from error
    return [types.from_proto(found[name]) if name in found else None for name in node.output]


def constant_of(value: SSAValue) -> attr.np.ndarray | None:
    """The array behind a small constant written into the text; None where the value is anything else."""
    owner = value.owner
    if isinstance(owner, Operation) and owner.name == "onnx.Constant":
        tensor = owner.properties.get("value")
        if isinstance(tensor, attr.TensorAttr):
            return tensor.array
    return None


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
