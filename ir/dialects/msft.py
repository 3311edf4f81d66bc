"""The operators of `com.microsoft`, from the schemas that the installed ONNX Runtime exposes."""

from __future__ import annotations

from functools import cache
from typing import TYPE_CHECKING

from onnx import AttributeProto
from onnxruntime.capi.onnxruntime_pybind11_state import get_all_operator_schema

from .schema import AttributeSpec, Formal, OperatorSchema

if TYPE_CHECKING:
    from onnxruntime.capi.onnxruntime_pybind11_state.schemadef import OpSchema

_ATTRIBUTE_TYPES: dict[str, int] = dict(AttributeProto.AttributeType.items())


@cache
def operator_schemas() -> dict[str, OperatorSchema]:
    """The schemas by operator name; deprecated ones are left out."""
    return {s.name: _convert(s) for s in get_all_operator_schema() if s.domain == "com.microsoft" and not s.deprecated}


def _convert(schema: OpSchema) -> OperatorSchema:
    def formal(f: OpSchema.FormalParameter) -> Formal:
        return Formal(f.name, f.option.name.lower(), f.typeStr, frozenset(f.types), f.isHomogeneous)

    return OperatorSchema(
        schema.domain,
        schema.name,
        schema.since_version,
        tuple(map(formal, schema.inputs)),
        tuple(map(formal, schema.outputs)),
        (schema.min_input, schema.max_input),
        (schema.min_output, schema.max_output),
        {name: AttributeSpec(_ATTRIBUTE_TYPES[a.type.name], a.required, None) for name, a in schema.attributes.items()},
        None,
    )
