"""Attributes: every ONNX attribute comes back from the IR and from IR text to the bit."""

from __future__ import annotations

import math

import numpy as np
import onnx
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp
from onnx import AttributeProto, TensorProto, helper
from xdsl.dialects.builtin import ArrayAttr, DenseArrayBase, FloatAttr, IntegerAttr, IntegerType, UnitAttr, f64
from xdsl.ir import Attribute
from xdsl.parser import Parser
from xdsl.utils.exceptions import VerifyException

from qcc.ir import attributes as attr
from qcc.ir.attributes import TensorAttr
from qcc.ir.errors import NotSupported
from qcc.ir.text import context
from qcc.ir.types import ELEMENTS, Element
from tests.ir.helpers import same_array

CONTEXT = context()
INT64 = st.integers(-(2**63), 2**63 - 1)
FLOAT32 = st.floats(width=32)
TEXT = st.binary(max_size=12) | st.text(max_size=8).map(str.encode)


def proto_of(kind: int, field: str, value: object) -> AttributeProto:
    proto = AttributeProto(name="a", type=kind)
    if isinstance(value, list):
        getattr(proto, field).extend(value)
    else:
        setattr(proto, field, value)
    return proto


def scalar(kind: int, field: str, values: st.SearchStrategy[object]) -> st.SearchStrategy[AttributeProto]:
    return values.map(lambda value: proto_of(kind, field, value))


def several(kind: int, field: str, values: st.SearchStrategy[object]) -> st.SearchStrategy[AttributeProto]:
    return st.lists(values, max_size=5).map(lambda value: proto_of(kind, field, value))


PROTOS = st.one_of(
    scalar(AttributeProto.INT, "i", INT64),
    scalar(AttributeProto.FLOAT, "f", FLOAT32),
    scalar(AttributeProto.STRING, "s", TEXT),
    several(AttributeProto.INTS, "ints", INT64),
    several(AttributeProto.FLOATS, "floats", FLOAT32),
    several(AttributeProto.STRINGS, "strings", TEXT),
)


def reparsed(attribute: Attribute) -> Attribute:
    return Parser(CONTEXT, str(attribute)).parse_attribute()


def same_proto(left: AttributeProto, right: AttributeProto) -> bool:
    """Equal, NaN counting as NaN."""
    if (left.name, left.type, left.i, left.s) != (right.name, right.type, right.i, right.s):
        return False
    if (list(left.ints), list(left.strings)) != (list(right.ints), list(right.strings)):
        return False
    floats = [np.array([p.f, *p.floats], np.float32) for p in (left, right)]
    return same_array(floats[0], floats[1])


@given(PROTOS)
def test_attribute_comes_back_from_the_ir_and_from_text(proto: AttributeProto) -> None:
    held = attr.from_proto(proto, "a node")
    assert attr.proto_type(held) == proto.type
    assert same_proto(attr.to_proto("a", held), proto)
    assert same_proto(attr.to_proto("a", reparsed(held)), proto)


@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf, -0.0, 1e-45, 3.4028235e38, 1 / 3])
def test_unusual_floats_survive_text(value: float) -> None:
    for proto in (proto_of(AttributeProto.FLOAT, "f", value), proto_of(AttributeProto.FLOATS, "floats", [value, 1.0])):
        assert same_proto(attr.to_proto("a", reparsed(attr.from_proto(proto, "a node"))), proto)


@st.composite
def arrays(draw: st.DrawFn, row: Element) -> np.ndarray:
    """An array of that element type with every bit pattern it has, NaN and infinities included."""
    shape = draw(hnp.array_shapes(min_dims=0, max_dims=3, min_side=0, max_side=3))
    if row.schema == "string":
        flat = draw(st.lists(TEXT, min_size=math.prod(shape), max_size=math.prod(shape)))
        array = np.empty(len(flat), np.object_)
        array[:] = flat
        return array.reshape(shape)
    if row.schema == "bool":
        return draw(hnp.arrays(np.bool_, shape))
    if row.bits < 8:
        return (
            draw(hnp.arrays(np.uint8, shape, elements=st.integers(0, 2**row.bits - 1)))
            .astype(np.float32)
            .astype(row.numpy)
        )
    raw = draw(hnp.arrays(np.uint8, (*shape, row.numpy.itemsize)))
    return raw.view(row.numpy).reshape(shape)


@pytest.mark.parametrize("row", ELEMENTS, ids=lambda row: row.schema)
@settings(max_examples=25)
@given(data=st.data())
def test_tensor_of_every_element_type_comes_back(row: Element, data: st.DataObject) -> None:
    array = data.draw(arrays(row))
    held = attr.from_proto(helper.make_attribute("a", attr.from_array(array)), "a node")
    assert isinstance(held, TensorAttr)
    again = reparsed(held)
    assert isinstance(again, TensorAttr)
    assert again == held
    back = attr.to_proto("a", again)
    assert back.t.data_type == row.onnx
    assert same_array(attr.to_array(back.t), array)


@pytest.mark.parametrize("row", [r for r in ELEMENTS if r.bits < 8], ids=lambda row: row.schema)
def test_narrow_tensor_keeps_every_code(row: Element) -> None:
    array = np.arange(2**row.bits, dtype=np.uint8).view(row.numpy)
    assert same_array(TensorAttr.of(array).array, array)


def test_type_attribute_comes_back() -> None:
    proto = helper.make_attribute("a", helper.make_tensor_type_proto(TensorProto.FLOAT, ["größe", 3]))
    held = attr.from_proto(proto, "a node")
    assert attr.proto_type(held) == AttributeProto.TYPE_PROTO
    assert attr.to_proto("a", reparsed(held)) == proto


def test_attribute_of_another_kind_is_not_supported() -> None:
    proto = AttributeProto(name="a", type=AttributeProto.SPARSE_TENSOR)
    with pytest.raises(NotSupported, match=r"node 'n': attribute 'a' of type SPARSE_TENSOR"):
        attr.from_proto(proto, "node 'n'")
    with pytest.raises(NotSupported, match="attribute 'a'"):
        attr.to_proto("a", UnitAttr())


@pytest.mark.parametrize(
    "attribute",
    [
        IntegerAttr(1, IntegerType(32)),
        FloatAttr(1.0, f64),
        DenseArrayBase.from_list(IntegerType(32), [1]),
        ArrayAttr([IntegerAttr(1, IntegerType(64))]),
        UnitAttr(),
    ],
)
def test_attribute_of_another_width_stands_for_nothing(attribute: Attribute) -> None:
    assert attr.proto_type(attribute) == 0


@pytest.mark.parametrize(
    "value",
    [0, -5, 1.5, "text", "größe", [1, 2], [1.5, 2.0], ["a", "ü"], []],
)
def test_python_value_comes_back(value: object) -> None:
    held = attr.from_python(value)
    assert attr.to_python(held) == value
    assert attr.from_python(held) is held


def test_python_array_comes_back_and_other_values_are_refused() -> None:
    array = np.arange(6, dtype=np.int8).reshape(2, 3)
    held = attr.to_python(attr.from_python(array))
    assert isinstance(held, np.ndarray)
    assert same_array(held, array)
    assert attr.to_python(attr.from_python(True)) == 1
    with pytest.raises(TypeError, match="no attribute holds"):
        attr.from_python(object())


def test_floats_are_rounded_to_float32() -> None:
    assert attr.to_python(attr.from_python(0.1)) == float(np.float32(0.1))
    assert attr.to_python(attr.from_python([0.1, 1])) == [float(np.float32(0.1)), 1.0]


def test_text_that_is_not_utf8_is_kept_as_bytes() -> None:
    proto = proto_of(AttributeProto.STRING, "s", b"\xff\x00")
    held = attr.from_proto(proto, "a node")
    assert attr.text_of(held) == "\ufffd\x00"
    assert attr.to_proto("a", reparsed(held)).s == b"\xff\x00"


def test_small_tensor_prints_as_one_reads_it() -> None:
    assert str(TensorAttr.of(np.array([0, -1]))) == '#onnx.tensor<tensor<2xi64>, "0 -1">'
    assert str(TensorAttr.of(np.array(0.1, np.float32))) == '#onnx.tensor<tensor<f32>, "0.1">'
    assert str(attr.floats_attribute([0.5, math.nan, -math.inf])) == '#onnx.floats<"0.5 nan -inf">'


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ('#onnx.tensor<tensor<2xf32>, "1 2 3">', "do not fit"),
        ('#onnx.tensor<tensor<2xf32>, "1 x">', "do not fit"),
        ('#onnx.tensor<tensor<1xi8>, "300">', "do not fit"),
        ('#onnx.tensor<tensor<1xi8>, "1.5">', "do not fit"),
        ('#onnx.tensor<tensor<1xi3>, "1">', "not known to the IR"),
        ('#onnx.tensor<tensor<1x!onnx.string>, "a">', "do not fit"),
        ('#onnx.tensor<tensor<1x!onnx.string>, "[1]">', "do not fit"),
        ('#onnx.tensor<tensor<?xf32>, "1">', "shape must be known"),
        ('#onnx.tensor<tensor<*xf32>, "1">', "shape must be known"),
        ('#onnx.tensor<f32, "1">', "shape must be known"),
        ('#onnx.floats<"1 one">', "could not convert"),
    ],
)
def test_values_that_do_not_fit_their_type_are_refused(text: str, message: str) -> None:
    with pytest.raises(VerifyException, match=message):
        Parser(CONTEXT, text).parse_attribute()


def test_string_tensor_of_onnx_comes_back() -> None:
    tensor = TensorProto(name="t", data_type=TensorProto.STRING, dims=[2], string_data=["größe".encode(), b"\xff"])
    array = attr.to_array(tensor)
    assert array.tolist() == ["größe".encode(), b"\xff"]
    assert attr.from_array(array, "t") == tensor
    assert onnx.numpy_helper.from_array(np.zeros(2), "z") == attr.from_array(np.zeros(2), "z")
