"""One view of the operator schemas of ONNX and of ONNX Runtime: `lookup(domain, name, opset)`.

The ONNX registry (`onnx.defs`) describes the standard domains at every version; ONNX Runtime exposes the schemas of
`com.microsoft`. Both become the same frozen values here, and everything else in qcc asks this module alone.
"""

from __future__ import annotations

from dataclasses import dataclass
from enum import IntEnum
from functools import cache
from typing import cast

import onnx
from onnx import AttributeProto

DIALECTS = {
    "": "onnx",
    "ai.onnx.ml": "onnx_ml",
    "ai.onnx.preview": "onnx_preview",
    "ai.onnx.preview.training": "onnx_training",
    "com.microsoft": "msft",
}
"""The dialect of each operator domain."""

DOMAINS = {dialect: domain for domain, dialect in DIALECTS.items()}


@dataclass(frozen=True)
class Formal:
    """One formal input or output. `types` are schema strings such as `tensor(float)`; `type_var` binds formals."""

    name: str
    option: str
    """`single`, `optional` or `variadic`."""
    type_var: str
    types: frozenset[str]
    homogeneous: bool


@dataclass(frozen=True)
class AttributeSpec:
    """One attribute: its `AttributeProto` type number, whether it must be given, and its default."""

    type: int
    required: bool
    default: AttributeProto | None


@dataclass(frozen=True)
class OperatorSchema:
    """What an operator takes, gives and means, at one version."""

    domain: str
    name: str
    since_version: int
    inputs: tuple[Formal, ...]
    outputs: tuple[Formal, ...]
    arity_in: tuple[int, int]
    arity_out: tuple[int, int]
    attributes: dict[str, AttributeSpec]
    native: onnx.defs.OpSchema | None
    """For inference; None for schemas of ONNX Runtime, which that library does not expose."""

    def __hash__(self) -> int:
        return hash((self.domain, self.name, self.since_version))

    def input_at(self, index: int) -> Formal:
        """The formal of operand `index`: the last one repeats where variadic."""
        return self.inputs[min(index, len(self.inputs) - 1)]

    def output_at(self, index: int) -> Formal:
        """The formal of result `index`."""
        return self.outputs[min(index, len(self.outputs) - 1)]


@cache
def lookup(domain: str, name: str, opset: int) -> OperatorSchema | None:
    """The schema of an operator in force at `opset` of its domain; None where there is none or it is deprecated."""
    if domain == "com.microsoft":
        return _microsoft().get(name)
    try:
        schema = onnx.defs.get_schema(name, opset, domain)
    except onnx.defs.SchemaError:
        return None
    return None if schema.deprecated else _from_onnx(schema)


@cache
def operator_names(domain: str) -> tuple[str, ...]:
    """Every operator name of a domain, at any version."""
    if domain == "com.microsoft":
        return tuple(sorted(_microsoft()))
    return tuple(sorted({s.name for s in onnx.defs.get_all_schemas_with_history() if s.domain == domain}))


@cache
def latest_opset(domain: str) -> int:
    """The newest version of a domain that the registry knows."""
    if domain == "com.microsoft":
        return 1
    return max(s.since_version for s in onnx.defs.get_all_schemas_with_history() if s.domain == domain)


def _from_onnx(schema: onnx.defs.OpSchema) -> OperatorSchema:
    """The casts say what onnx's own type hints leave out: these two are enumerations."""

    def formal(f: onnx.defs.OpSchema.FormalParameter) -> Formal:
        option = cast(IntEnum, f.option).name.lower()
        return Formal(f.name, option, f.type_str, frozenset(f.types), f.is_homogeneous)

    def attribute(a: onnx.defs.OpSchema.Attribute) -> AttributeSpec:
        default = a.default_value if a.default_value.name else None
        return AttributeSpec(cast(IntEnum, a.type).value, a.required, default)

    return OperatorSchema(
        schema.domain,
        schema.name,
        schema.since_version,
        tuple(map(formal, schema.inputs)),
        tuple(map(formal, schema.outputs)),
        (schema.min_input, schema.max_input),
        (schema.min_output, schema.max_output),
        {name: attribute(a) for name, a in schema.attributes.items()},
        schema,
    )


def _microsoft() -> dict[str, OperatorSchema]:
    from .msft import operator_schemas

    return operator_schemas()
