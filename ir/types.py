"""The types of the IR, and their one mapping to ONNX element types, numpy dtypes and type strings of operator schemas.

A tensor with symbolic dimensions is a builtin tensor whose encoding names them:
`tensor<?x3x?xf32, #onnx.dims<"batch,,width">>`. A quantized tensor is
`!q.tensor<tensor<64x32xf32>, "i4, f32 per 32">`: the tensor that it expresses, the `Format` of its codes, and, once a
kernel is chosen, the `Layout` of their bits.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache
from typing import Any, TypeGuard

import ml_dtypes
import numpy as np
from onnx import TensorProto, TypeProto
from xdsl.dialects import builtin
from xdsl.dialects.builtin import IntegerType, NoneAttr, Signedness, StringAttr, TensorType, UnrankedTensorType
from xdsl.ir import Attribute, ParametrizedAttribute, TypeAttribute
from xdsl.irdl import irdl_attr_definition
from xdsl.parser import AttrParser
from xdsl.printer import Printer
from xdsl.utils.exceptions import VerifyException

from .errors import NotSupported
from .format import Format
from .layout import AnyLayout, Record, parse_layout
from .strings import parse_string

Dim = int | str | None
"""A dimension: its extent, its symbol, or None where nothing is known."""


@irdl_attr_definition
class DimsAttr(ParametrizedAttribute):
    """Names of symbolic dimensions, separated by commas; empty where the dimension is fixed or has no name."""

    name = "onnx.dims"
    text: StringAttr

    @staticmethod
    def of(symbols: Sequence[str]) -> DimsAttr:
        """The attribute for one name a dimension; a comma inside a name is written `%2C`."""
        return DimsAttr(StringAttr(",".join(s.replace("%", "%25").replace(",", "%2C") for s in symbols)))

    @property
    def symbols(self) -> list[str]:
        """One name a dimension."""
        return [s.replace("%2C", ",").replace("%25", "%") for s in self.text.data.split(",")]

    @classmethod
    def parse_parameters(cls, parser: AttrParser) -> Sequence[Attribute]:
        """Parse `<"batch,,width">`."""
        with parser.in_angle_brackets():
            return [StringAttr(parse_string(parser))]

    def print_parameters(self, printer: Printer) -> None:
        """Print `<"batch,,width">`."""
        with printer.in_angle_brackets():
            printer.print_string_literal(self.text.data)


@irdl_attr_definition
class StringType(ParametrizedAttribute, TypeAttribute):
    """The element type of an ONNX string tensor."""

    name = "onnx.string"


@irdl_attr_definition
class UnknownType(ParametrizedAttribute, TypeAttribute):
    """The type of a value about which inference can say nothing."""

    name = "onnx.unknown"


@irdl_attr_definition
class SequenceType(ParametrizedAttribute, TypeAttribute):
    """An ONNX sequence."""

    name = "onnx.seq"
    element: Attribute


@irdl_attr_definition
class OptionalType(ParametrizedAttribute, TypeAttribute):
    """An ONNX optional value."""

    name = "onnx.optional"
    element: Attribute


@irdl_attr_definition
class MapType(ParametrizedAttribute, TypeAttribute):
    """An ONNX map from integer or string keys."""

    name = "onnx.map"
    key: Attribute
    value: Attribute


@irdl_attr_definition
class QuantizedType(ParametrizedAttribute, TypeAttribute):
    """A tensor held as codes: `!q.tensor<tensor<NxKxf32>, "format"[, "layout"]>`."""

    name = "q.tensor"
    expressed: TensorType[Attribute]
    format_text: StringAttr
    layout_text: StringAttr

    @staticmethod
    def of(expressed: Attribute, fmt: Format, layout: AnyLayout | Record | None = None) -> QuantizedType:
        """The type of the tensor `expressed` held in `fmt`, with its bits where `layout` says."""
        if not is_ranked(expressed):
            raise VerifyException(f"!q.tensor: expected a tensor of known rank, found {expressed}")
        return QuantizedType(expressed, StringAttr(str(fmt)), StringAttr(str(layout) if layout else ""))

    @property
    def format(self) -> Format:
        """What the codes mean."""
        return Format.parse(self.format_text.data)

    @property
    def layout(self) -> AnyLayout | Record | None:
        """Where the bits lie; None until a kernel is chosen."""
        return parse_layout(self.layout_text.data) if self.layout_text.data else None

    @property
    def shape(self) -> tuple[int, ...]:
        """Extents of the expressed tensor, negative where dynamic."""
        return self.expressed.get_shape()

    def verify(self) -> None:
        """The format and the layout parse, and both fit the shape where it is known."""
        try:
            fmt, layout = self.format, self.layout
            if all(extent >= 0 for extent in self.shape):
                for level in fmt.levels().values():
                    level.shape_of(self.shape)
                if layout is not None and fmt.sparsity is None:
                    _fit(layout, fmt, self.shape)
        except Exception as error:
            raise VerifyException(f"!q.tensor: {error}") from error

    @classmethod
    def parse_parameters(cls, parser: AttrParser) -> Sequence[Attribute]:
        """Parse `<tensor, "format"[, "layout"]>`."""
        with parser.in_angle_brackets():
            expressed = parser.parse_type()
            parser.parse_punctuation(",")
            format_text = parser.parse_str_literal()
            layout_text = parser.parse_str_literal() if parser.parse_optional_punctuation(",") else ""
        return [expressed, StringAttr(format_text), StringAttr(layout_text)]

    def print_parameters(self, printer: Printer) -> None:
        """Print `<tensor, "format"[, "layout"]>`."""
        with printer.in_angle_brackets():
            printer.print_attribute(self.expressed)
            for text in (self.format_text.data, self.layout_text.data):
                if text:
                    printer.print_string(", ")
                    printer.print_string_literal(text)


def _fit(layout: AnyLayout | Record, fmt: Format, shape: tuple[int, ...]) -> None:
    """Raise `BadInput` where a layout has no place for a tensor of `shape`."""
    if isinstance(layout, Record):
        layout.extents(shape)
    elif (planes := layout.bits_first()) is not None:
        planes.size((fmt.bits, *shape))
    else:
        layout.size(shape)


@dataclass(frozen=True)
class Element:
    """One row of the mapping: an element type under its four names."""

    onnx: int
    ir: Attribute
    numpy: np.dtype[np.generic]
    schema: str
    safetensors: str = ""
    """Name in a safetensors header; empty where that format has none."""

    @property
    def bits(self) -> int:
        """Bits of one element in an ONNX file, where narrow ones share a byte; numpy holds one a byte."""
        return _NARROW.get(self.schema, 8 * self.numpy.itemsize)


_NARROW = {"int4": 4, "uint4": 4, "int2": 2, "uint2": 2, "float4e2m1": 4}


def _rows() -> list[Element]:
    def integer(bits: int, signed: bool) -> IntegerType:
        return IntegerType(bits, Signedness.SIGNLESS if signed else Signedness.UNSIGNED)

    t = TensorProto
    table: list[tuple[int, Attribute, type[Any], str, str]] = [
        (t.FLOAT, builtin.f32, np.float32, "float", "F32"),
        (t.DOUBLE, builtin.f64, np.float64, "double", "F64"),
        (t.FLOAT16, builtin.f16, np.float16, "float16", "F16"),
        (t.BFLOAT16, builtin.bf16, ml_dtypes.bfloat16, "bfloat16", "BF16"),
        (t.BOOL, IntegerType(1), np.bool_, "bool", "BOOL"),
        (t.INT8, integer(8, True), np.int8, "int8", "I8"),
        (t.INT16, integer(16, True), np.int16, "int16", "I16"),
        (t.INT32, integer(32, True), np.int32, "int32", "I32"),
        (t.INT64, integer(64, True), np.int64, "int64", "I64"),
        (t.UINT8, integer(8, False), np.uint8, "uint8", "U8"),
        (t.UINT16, integer(16, False), np.uint16, "uint16", "U16"),
        (t.UINT32, integer(32, False), np.uint32, "uint32", "U32"),
        (t.UINT64, integer(64, False), np.uint64, "uint64", "U64"),
        (t.INT4, integer(4, True), ml_dtypes.int4, "int4", ""),
        (t.UINT4, integer(4, False), ml_dtypes.uint4, "uint4", ""),
        (t.INT2, integer(2, True), ml_dtypes.int2, "int2", ""),
        (t.UINT2, integer(2, False), ml_dtypes.uint2, "uint2", ""),
        (t.FLOAT8E4M3FN, builtin.Float8E4M3FNType(), ml_dtypes.float8_e4m3fn, "float8e4m3fn", "F8_E4M3"),
        (t.FLOAT8E5M2, builtin.Float8E5M2Type(), ml_dtypes.float8_e5m2, "float8e5m2", "F8_E5M2"),
        (t.FLOAT8E4M3FNUZ, builtin.Float8E4M3FNUZType(), ml_dtypes.float8_e4m3fnuz, "float8e4m3fnuz", ""),
        (t.FLOAT8E5M2FNUZ, builtin.Float8E5M2FNUZType(), ml_dtypes.float8_e5m2fnuz, "float8e5m2fnuz", ""),
        (t.FLOAT8E8M0, builtin.Float8E8M0FNUType(), ml_dtypes.float8_e8m0fnu, "float8e8m0", "F8_E8M0"),
        (t.FLOAT4E2M1, builtin.Float4E2M1FNType(), ml_dtypes.float4_e2m1fn, "float4e2m1", ""),
        (t.COMPLEX64, builtin.ComplexType(builtin.f32), np.complex64, "complex64", "C64"),
        (t.COMPLEX128, builtin.ComplexType(builtin.f64), np.complex128, "complex128", ""),
        (t.STRING, StringType(), np.object_, "string", ""),
    ]
    return [Element(o, ir, np.dtype(n), s, st) for o, ir, n, s, st in table]


ELEMENTS = _rows()


@cache
def element_of(key: object) -> Element:
    """The element type behind an ONNX number, an IR type, a numpy dtype or a schema name; `NotSupported` if none is."""
    for row in ELEMENTS:
        if (isinstance(key, int) and key == row.onnx) or key == row.ir or (isinstance(key, str) and key == row.schema):
            return row
    for row in ELEMENTS:
        if isinstance(key, np.dtype) and key == row.numpy:
            return row
    raise NotSupported(f"element type {key} is not known to the IR")


def tensor_type(
    element: Attribute, dims: Sequence[Dim] | None
) -> TensorType[Attribute] | UnrankedTensorType[Attribute]:
    """The type of a tensor of `element` (an IR type) with `dims`; unranked where `dims` is None."""
    if dims is None:
        return UnrankedTensorType(element)
    symbols = [d if isinstance(d, str) else "" for d in dims]
    encoding = DimsAttr.of(symbols) if any(symbols) else NoneAttr()
    return TensorType(element, [d if isinstance(d, int) else builtin.DYNAMIC_INDEX for d in dims], encoding)


def is_ranked(type_: Attribute) -> TypeGuard[TensorType[Attribute]]:
    """Whether a type is a tensor of known rank."""
    return isinstance(type_, TensorType)


def dims_of(type_: Attribute) -> tuple[Dim, ...] | None:
    """The dimensions of a tensor type (of the expressed tensor where quantized); None where the rank is unknown."""
    if isinstance(type_, QuantizedType):
        type_ = type_.expressed
    if not isinstance(type_, TensorType):
        return None
    extents = [d.data for d in type_.shape.data]
    symbols = type_.encoding.symbols if isinstance(type_.encoding, DimsAttr) else [""] * len(extents)
    if len(symbols) != len(extents):
        raise VerifyException(f"{type_}: the names do not fit the rank")
    return tuple(e if e >= 0 else (s or None) for e, s in zip(extents, symbols, strict=True))


def numpy_type(array: np.ndarray) -> TensorType[Attribute]:
    """The type of a numpy array."""
    return TensorType(element_of(array.dtype).ir, array.shape)


def element_type(type_: Attribute) -> Attribute:
    """The element type of a tensor (of the expressed one where quantized); `UnknownType` where there is none."""
    match type_:
        case QuantizedType():
            return type_.expressed.element_type
        case TensorType() | UnrankedTensorType():
            return type_.element_type
        case _:
            return UnknownType()


def from_proto(proto: TypeProto) -> Attribute:
    """An ONNX `TypeProto` as an IR type."""
    match proto.WhichOneof("value"):
        case "tensor_type":
            if not proto.tensor_type.elem_type:
                return UnknownType()
            element = element_of(proto.tensor_type.elem_type).ir
            if not proto.tensor_type.HasField("shape"):
                return UnrankedTensorType(element)
            dims = proto.tensor_type.shape.dim
            return tensor_type(element, [_dim(d.dim_value if d.HasField("dim_value") else d.dim_param) for d in dims])
        case "sequence_type":
            return SequenceType(from_proto(proto.sequence_type.elem_type))
        case "optional_type":
            return OptionalType(from_proto(proto.optional_type.elem_type))
        case "map_type":
            return MapType(element_of(proto.map_type.key_type).ir, from_proto(proto.map_type.value_type))
        case None:
            return UnknownType()
        case other:
            raise NotSupported(
                f"values of ONNX type {other} are not supported", hint="convert sparse tensors to dense ones"
            )


_INVENTED = re.compile(r"unk__\d+")
"""Names that ONNX shape inference gives to dimensions it knows nothing about."""


def _dim(value: int | str) -> Dim:
    if isinstance(value, int):
        return value if value >= 0 else None
    return None if value in ("", "?") or _INVENTED.fullmatch(value) else value


def to_proto(type_: Attribute) -> TypeProto:
    """An IR type as an ONNX `TypeProto`; empty for `UnknownType`."""
    proto = TypeProto()
    match type_:
        case TensorType() | UnrankedTensorType():
            proto.tensor_type.elem_type = element_of(type_.element_type).onnx
            dims = dims_of(type_)
            if dims is not None:
                proto.tensor_type.shape.SetInParent()
                for d in dims:
                    dim = proto.tensor_type.shape.dim.add()
                    if isinstance(d, int):
                        dim.dim_value = d
                    elif d:
                        dim.dim_param = d
        case SequenceType():
            proto.sequence_type.elem_type.CopyFrom(to_proto(type_.element))
        case OptionalType():
            proto.optional_type.elem_type.CopyFrom(to_proto(type_.element))
        case MapType():
            proto.map_type.key_type = element_of(type_.key).onnx
            proto.map_type.value_type.CopyFrom(to_proto(type_.value))
        case UnknownType():
            pass
        case _:
            raise NotSupported(f"type {type_} has no ONNX form", hint="expand the q dialect first")
    return proto


@cache
def schema_string(type_: Attribute) -> str:
    """The name of a type in operator schemas, such as `tensor(float)` or `seq(tensor(int64))`; empty where unknown."""
    match type_:
        case TensorType() | UnrankedTensorType():
            return f"tensor({element_of(type_.element_type).schema})"
        case SequenceType():
            return f"seq({schema_string(type_.element)})"
        case OptionalType():
            return f"optional({schema_string(type_.element)})"
        case MapType():
            return f"map({element_of(type_.key).schema},{schema_string(type_.value)})"
        case _:
            return ""
