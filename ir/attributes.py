"""ONNX attributes as IR attributes and back: `to_proto(name, from_proto(a), a.type) == a`.

Text is a `StringAttr` where it is ASCII and a `BytesAttr` otherwise, because only those two print and parse without
loss. Floats in lists and tensors are printed in our own attributes, exactly, infinities and NaN included.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from typing import cast

import numpy as np
import onnx
from onnx import AttributeProto, TensorProto, numpy_helper
from xdsl.dialects.builtin import (
    ArrayAttr,
    BytesAttr,
    DenseArrayBase,
    FloatAttr,
    IntegerAttr,
    IntegerType,
    StringAttr,
    f32,
)
from xdsl.ir import Attribute, ParametrizedAttribute, TypeAttribute
from xdsl.irdl import irdl_attr_definition
from xdsl.parser import AttrParser
from xdsl.printer import Printer
from xdsl.utils.exceptions import VerifyException

from . import types
from .errors import NotSupported, QccError

I64 = IntegerType(64)

Value = int | float | str | np.ndarray | list[int] | list[float] | list[str] | Attribute
"""What an attribute is to a pass."""


@irdl_attr_definition
class FloatsAttr(ParametrizedAttribute):
    """A list of float32 values: `#onnx.floats<"0.5 nan -inf">`."""

    name = "onnx.floats"
    text: StringAttr

    @property
    def values(self) -> list[float]:
        """The values, each exactly a float32."""
        return [float(np.float32(word)) for word in self.text.data.split()]

    def verify(self) -> None:
        """Every word is a number."""
        try:
            _ = self.values
        except ValueError as error:
            raise VerifyException(f"#onnx.floats: {error}") from error


@irdl_attr_definition
class TensorAttr(ParametrizedAttribute):
    """A small tensor written into the text: `#onnx.tensor<tensor<2xi64>, "0 -1">`; strings as a JSON list."""

    name = "onnx.tensor"
    type: Attribute
    text: StringAttr

    @staticmethod
    def of(array: np.ndarray) -> TensorAttr:
        """The attribute that holds `array`."""
        return TensorAttr(types.numpy_type(array), StringAttr(_write_values(array)))

    @property
    def array(self) -> np.ndarray:
        """The tensor as numpy holds it."""
        assert types.is_ranked(self.type)
        element = types.element_of(self.type.element_type)
        return _read_values(self.text.data, element.numpy).reshape(self.type.get_shape())

    def verify(self) -> None:
        """The type is a tensor of known shape, and the values fill it."""
        dims = types.dims_of(self.type)
        if not types.is_ranked(self.type) or dims is None or not all(isinstance(d, int) for d in dims):
            raise VerifyException(f"#onnx.tensor: the shape must be known, found {self.type}")
        try:
            _ = self.array
        except (ValueError, TypeError, OverflowError, AttributeError, QccError) as error:
            raise VerifyException(f"#onnx.tensor: the values do not fit {self.type}: {error}") from error

    @classmethod
    def parse_parameters(cls, parser: AttrParser) -> Sequence[Attribute]:
        """Parse `<type, "values">`."""
        with parser.in_angle_brackets():
            type_ = parser.parse_type()
            parser.parse_punctuation(",")
            return [type_, StringAttr(parser.parse_str_literal())]

    def print_parameters(self, printer: Printer) -> None:
        """Print `<type, "values">`."""
        with printer.in_angle_brackets():
            printer.print_attribute(self.type)
            printer.print_string(", ")
            printer.print_string_literal(self.text.data)


def _write_values(array: np.ndarray) -> str:
    flat = array.reshape(-1)
    if array.dtype == np.object_:
        return json.dumps([v.decode("utf-8", "surrogateescape") if isinstance(v, bytes) else str(v) for v in flat])
    if array.dtype == np.bool_:
        return " ".join("1" if v else "0" for v in flat)
    if array.dtype.kind in "iu":
        return " ".join(str(int(v)) for v in flat)
    if array.dtype.kind == "c":
        return " ".join(repr(complex(v)).strip("()") for v in flat)
    return " ".join(repr(float(v)) if array.dtype == np.float64 else str(v) for v in flat)


def _read_values(text: str, dtype: np.dtype[np.generic]) -> np.ndarray:
    if dtype == np.object_:
        return np.array([v.encode("utf-8", "surrogateescape") for v in json.loads(text)], dtype=np.object_)
    words = text.split()
    if dtype == np.bool_:
        return np.array([w == "1" for w in words], dtype=np.bool_)
    if dtype.kind == "c":
        return np.array([complex(w) for w in words], dtype=dtype)
    if dtype.kind in "iu":
        return np.array([int(w) for w in words], dtype=dtype)
    return np.array([float(w) for w in words], dtype=np.float64).astype(dtype)


def text_attribute(value: str | bytes) -> StringAttr | BytesAttr:
    """Text as the attribute that prints and parses without loss."""
    raw = value.encode() if isinstance(value, str) else value
    return StringAttr(raw.decode()) if raw.isascii() else BytesAttr(raw)


def text_of(attribute: Attribute) -> str:
    """The text of an attribute made by `text_attribute`."""
    if isinstance(attribute, BytesAttr):
        return attribute.data.decode("utf-8", "replace")
    assert isinstance(attribute, StringAttr)
    return attribute.data


def from_proto(proto: AttributeProto, where: str) -> Attribute:
    """The IR attribute of an ONNX attribute (graphs, which are regions, do not come here); `where` names its node."""
    match proto.type:
        case AttributeProto.INT:
            return IntegerAttr(proto.i, I64)
        case AttributeProto.FLOAT:
            return FloatAttr(proto.f, f32)
        case AttributeProto.STRING:
            return text_attribute(proto.s)
        case AttributeProto.TENSOR:
            return TensorAttr.of(to_array(proto.t))
        case AttributeProto.INTS:
            return DenseArrayBase.from_list(I64, list(proto.ints))
        case AttributeProto.FLOATS:
            return floats_attribute(list(proto.floats))
        case AttributeProto.STRINGS:
            return ArrayAttr([text_attribute(s) for s in proto.strings])
        case AttributeProto.TYPE_PROTO:
            return types.from_proto(proto.tp)
        case other:
            kind = AttributeProto.AttributeType.Name(other)
            raise NotSupported(f"{where}: attribute {proto.name!r} of type {kind} is not supported")


def floats_attribute(values: Sequence[float]) -> FloatsAttr:
    """A list of floats, rounded to float32."""
    return FloatsAttr(StringAttr(" ".join(str(np.float32(v)) for v in values)))


def to_proto(name: str, attribute: Attribute) -> AttributeProto:
    """The ONNX attribute of an IR attribute."""
    proto = AttributeProto(name=name)
    match attribute:
        case IntegerAttr():
            proto.type, proto.i = AttributeProto.INT, attribute.value.data
        case FloatAttr():
            proto.type, proto.f = AttributeProto.FLOAT, attribute.value.data
        case StringAttr() | BytesAttr():
            proto.type, proto.s = AttributeProto.STRING, _raw(attribute)
        case TensorAttr():
            proto.type = AttributeProto.TENSOR
            proto.t.CopyFrom(from_array(attribute.array))
        case DenseArrayBase():
            proto.type = AttributeProto.INTS
            proto.ints.extend(integers_of(attribute))
        case FloatsAttr():
            proto.type = AttributeProto.FLOATS
            proto.floats.extend(attribute.values)
        case ArrayAttr():
            proto.type = AttributeProto.STRINGS
            proto.strings.extend(_raw(a) for a in attribute.data)
        case TypeAttribute():
            proto.type = AttributeProto.TYPE_PROTO
            proto.tp.CopyFrom(types.to_proto(attribute))
        case _:
            raise NotSupported(f"attribute {name!r}: {attribute} has no ONNX form")
    return proto


def _raw(attribute: Attribute) -> bytes:
    return attribute.data if isinstance(attribute, BytesAttr) else text_of(attribute).encode()


def proto_type(attribute: Attribute) -> int:
    """The `AttributeProto` type number that an IR attribute stands for; 0 where it stands for none."""
    match attribute:
        case IntegerAttr() if attribute.type == I64:
            return AttributeProto.INT
        case FloatAttr() if attribute.type == f32:
            return AttributeProto.FLOAT
        case StringAttr() | BytesAttr():
            return AttributeProto.STRING
        case TensorAttr():
            return AttributeProto.TENSOR
        case DenseArrayBase() if attribute.elt_type == I64:
            return AttributeProto.INTS
        case FloatsAttr():
            return AttributeProto.FLOATS
        case ArrayAttr() if all(isinstance(a, StringAttr | BytesAttr) for a in attribute.data):
            return AttributeProto.STRINGS
        case TypeAttribute():
            return AttributeProto.TYPE_PROTO
        case _:
            return 0


def to_python(attribute: Attribute) -> Value:
    """The value a pass works with; an attribute that stands for none stays what it is."""
    match attribute:
        case IntegerAttr():
            return attribute.value.data
        case FloatAttr():
            return attribute.value.data
        case StringAttr() | BytesAttr():
            return text_of(attribute)
        case TensorAttr():
            return attribute.array
        case DenseArrayBase():
            return integers_of(attribute)
        case FloatsAttr():
            return attribute.values
        case ArrayAttr():
            return [text_of(a) for a in attribute.data]
        case _:
            return attribute


def integers_of(attribute: Attribute) -> list[int]:
    """The values of a list of integers."""
    assert isinstance(attribute, DenseArrayBase)
    return [int(item.value.data) for item in attribute.iter_attrs()]


def from_python(value: object) -> Attribute:
    """The attribute of an int, float, str, list or numpy array; an attribute stays what it is."""
    match value:
        case Attribute():
            return value
        case bool() | int():
            return IntegerAttr(int(value), I64)
        case float():
            return FloatAttr(float(np.float32(value)), f32)
        case str() | bytes():
            return text_attribute(value)
        case np.ndarray():
            return TensorAttr.of(value)
        case Sequence():
            return _from_items(cast(Sequence[int | float | str], value))
        case _:
            raise TypeError(f"no attribute holds {value!r}")


def _from_items(items: Sequence[int | float | str]) -> Attribute:
    if not items:
        return DenseArrayBase.from_list(I64, [])
    if all(isinstance(i, str) for i in items):
        return ArrayAttr([text_attribute(str(i)) for i in items])
    if all(isinstance(i, int) for i in items):
        return DenseArrayBase.from_list(I64, [int(i) for i in items])
    return floats_attribute([float(i) for i in items])


def to_array(tensor: TensorProto) -> np.ndarray:
    """The numpy array of an ONNX tensor; strings become an object array of bytes."""
    if tensor.data_type == TensorProto.STRING:
        return np.array(list(tensor.string_data), dtype=np.object_).reshape(tuple(tensor.dims))
    return numpy_helper.to_array(tensor)


def from_array(array: np.ndarray, name: str = "") -> TensorProto:
    """The ONNX tensor of a numpy array."""
    if array.dtype == np.object_:
        tensor = TensorProto(name=name, data_type=TensorProto.STRING, dims=array.shape)
        tensor.string_data.extend(v if isinstance(v, bytes) else str(v).encode() for v in array.reshape(-1))
        return tensor
    return onnx.numpy_helper.from_array(array, name)
