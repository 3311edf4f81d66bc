"""The dialects of ONNX operators, one class an operator, generated from the schemas.

The version of a schema in force is the opset that the module imports (`onnx.opset` on the module), so one class serves
every version of its operator. The verifier holds an operation to that schema: which operands and results it may have
and of which types, which attributes with which types and values, and whatever the operator's own shape inference has to
say.
"""

from __future__ import annotations

from functools import cache
from typing import TYPE_CHECKING

from xdsl.dialects.builtin import DictionaryAttr, IntegerAttr, ModuleOp
from xdsl.ir import Attribute, Dialect, Operation
from xdsl.utils.exceptions import VerifyException

from .. import attributes as attr
from .. import types
from . import schema as schemas
from .attribute_values import check_values
from .graph_op import GraphOp, Yield
from .schema import AttributeSpec, Formal, OperatorSchema

if TYPE_CHECKING:
    from collections.abc import Sequence

OPSET = "onnx.opset"
"""Module attribute: a dictionary from operator domain to version."""

_GRAPH = 5


class OnnxOp(GraphOp):
    """An operator with a schema."""

    @property
    def domain(self) -> str:
        """The operator domain, empty for the standard one."""
        return schemas.DOMAINS[self.name.split(".")[0]]

    @property
    def op_type(self) -> str:
        """The name of the operator, as in `Conv`."""
        return self.name.split(".", 1)[1]

    @property
    def schema(self) -> OperatorSchema:
        """The schema in force here; `VerifyException` where the module's opset has none."""
        opset = opset_of(self, self.domain)
        found = schemas.lookup(self.domain, self.op_type, opset)
        if found is None:
            raise VerifyException(
                f"{self.where()}: opset {opset} of domain {self.domain or 'ai.onnx'!r} has no such operator"
            )
        return found

    def formal_names(self) -> tuple[str, ...]:
        """The names of the operands in the schema."""
        return tuple(f.name for f in self.schema.inputs)

    def graph_names(self) -> list[str]:
        """The names of the attributes that hold graphs, in the order of the regions."""
        return sorted(name for name, spec in self.schema.attributes.items() if spec.type == _GRAPH)

    def get(self, name: str, default: object = None) -> object:
        """An attribute as a Python value: given here, else the default of the schema, else `default`."""
        if name in self.properties:
            return attr.to_python(self.properties[name])
        spec = self.schema.attributes.get(name)
        if spec is None or spec.default is None:
            return default
        return attr.to_python(attr.from_proto(spec.default, self.where()))

    def verify_(self) -> None:
        """Hold the operation to its schema."""
        schema = self.schema
        _check_formals(self, "operand", schema.inputs, schema.arity_in, [s and s.type for s in self.slots])
        _check_formals(self, "result", schema.outputs, schema.arity_out, [r.type for r in self.results])
        _check_attributes(self, schema)
        _check_inference(self, schema)


def opset_of(op: Operation, domain: str) -> int:
    """The version of `domain` that the module around `op` imports; the latest known where it names none."""
    parent: Operation | None = op
    while parent is not None and not isinstance(parent, ModuleOp):
        parent = parent.parent_op()
    table = parent.attributes.get(OPSET) if parent is not None else None
    version = table.data.get(domain) if isinstance(table, DictionaryAttr) else None
    return version.value.data if isinstance(version, IntegerAttr) else schemas.latest_opset(domain)


def _check_formals(
    op: OnnxOp, kind: str, formals: tuple[Formal, ...], arity: tuple[int, int], actual: Sequence[Attribute | None]
) -> None:
    low, high = arity
    if not low <= len(actual) <= high:
        expected = str(low) if low == high else f"{low} to {high}" if high < 1 << 20 else f"at least {low}"
        raise VerifyException(f"{op.where()}: expected {expected} {kind}s, found {len(actual)}")
    bound: dict[str, str] = {}
    for index, type_ in enumerate(actual):
        formal = formals[min(index, len(formals) - 1)]
        if type_ is None:
            if formal.option == "single":
                raise VerifyException(f"{op.where()}: {kind} {formal.name!r} is missing")
            continue
        text = types.schema_string(type_)
        if not text or isinstance(type_, types.QuantizedType):
            if isinstance(type_, types.QuantizedType):
                raise VerifyException(f"{op.where()}: {kind} {formal.name!r} is quantized; dequantize it first")
            continue
        if formal.types and text not in formal.types:
            raise VerifyException(
                f"{op.where()}: {kind} {formal.name!r} has type {text}, expected one of {sorted(formal.types)}"
            )
        if formal.option == "variadic" and not formal.homogeneous:
            continue
        first = bound.setdefault(formal.type_var, text)
        if first != text:
            raise VerifyException(
                f"{op.where()}: {kind} {formal.name!r} has type {text}, but {formal.type_var} is {first}"
            )


def _check_attributes(op: OnnxOp, schema: OperatorSchema) -> None:
    for name, value in op.parameters.items():
        spec = schema.attributes.get(name)
        if spec is None:
            raise VerifyException(f"{op.where()}: no attribute is called {name!r}; known: {sorted(schema.attributes)}")
        if attr.proto_type(value) != spec.type and not _is_empty_list(value, spec):
            expected = attr.AttributeProto.AttributeType.Name(spec.type)
            raise VerifyException(f"{op.where()}: attribute {name!r} is {value}, expected type {expected}")
    for name, spec in schema.attributes.items():
        if spec.required and spec.type != _GRAPH and name not in op.properties:
            raise VerifyException(f"{op.where()}: attribute {name!r} is missing")
    required_graphs = [n for n, s in schema.attributes.items() if s.type == _GRAPH and s.required]
    if len(op.regions) < len(required_graphs):
        raise VerifyException(f"{op.where()}: expected the subgraphs {required_graphs}, found {len(op.regions)}")
    check_values(op)


def _is_empty_list(value: Attribute, spec: AttributeSpec) -> bool:
    """Lists of any item type look the same when they are empty."""
    return spec.type in (6, 7, 8) and attr.to_python(value) == []


def _check_inference(op: OnnxOp, schema: OperatorSchema) -> None:
    """Run the operator's own shape inference; what it gives must agree with the types written here."""
    if schema.native is None or not schema.native.has_type_and_shape_inference_function or op.regions:
        return
    from ..infer import infer_results

    inferred = infer_results(op, schema)
    for result, type_ in zip(op.results, inferred, strict=False):
        if type_ is not None and not compatible(type_, result.type):
            raise VerifyException(f"{op.where()}: the result is {type_} by its operands, but {result.type} is written")


def compatible(left: Attribute, right: Attribute) -> bool:
    """Whether one value can be of both types: equal where both are known."""
    a, b = types.dims_of(left), types.dims_of(right)
    texts = types.schema_string(left), types.schema_string(right)
    if all(texts) and texts[0] != texts[1]:
        return False
    if a is None or b is None:
        return True
    return len(a) == len(b) and all(
        x == y or not (isinstance(x, int) and isinstance(y, int)) for x, y in zip(a, b, strict=True)
    )


@cache
def operator(dialect: str, op_type: str) -> type[OnnxOp]:
    """The class of an operator, as in `operator("onnx", "Conv")`."""
    return type(
        op_type,
        (OnnxOp,),
        {"name": f"{dialect}.{op_type}", "__doc__": f"The operator {op_type}.", "__module__": __name__},
    )


@cache
def dialect(name: str) -> Dialect:
    """One of the generated dialects, with every operator of its domain."""
    operations = [operator(name, op_type) for op_type in schemas.operator_names(schemas.DOMAINS[name])]
    if name != "onnx":
        return Dialect(name, [*operations], [])
    own_types = [
        types.DimsAttr,
        types.StringType,
        types.UnknownType,
        types.SequenceType,
        types.OptionalType,
        types.MapType,
    ]
    return Dialect(name, [*operations, Yield], [*own_types, attr.FloatsAttr, attr.TensorAttr])
