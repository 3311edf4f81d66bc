"""Types of the IR: one mapping under four names, and a way there and back to ONNX and to text."""

from __future__ import annotations

import numpy as np
import onnx
import pytest
from hypothesis import given
from hypothesis import strategies as st
from onnx import TensorProto, TypeProto
from xdsl.dialects import builtin
from xdsl.ir import Attribute
from xdsl.parser import Parser
from xdsl.utils.exceptions import VerifyException

from qcc.ir import types
from qcc.ir.errors import NotSupported
from qcc.ir.format import Format
from qcc.ir.layout import Layout
from qcc.ir.text import context
from qcc.ir.types import ELEMENTS, Element, QuantizedType, element_of

CONTEXT = context()


def reparsed(type_: Attribute) -> Attribute:
    return Parser(CONTEXT, str(type_)).parse_type()


def row_id(row: Element) -> str:
    return row.schema


@pytest.mark.parametrize("row", ELEMENTS, ids=row_id)
def test_element_is_found_by_each_of_its_names(row: Element) -> None:
    for key in (row.onnx, row.ir, row.numpy, row.schema):
        assert element_of(key) is row


def test_every_element_type_of_onnx_is_known() -> None:
    known = {row.onnx for row in ELEMENTS} | {TensorProto.UNDEFINED}
    assert known == set(TensorProto.DataType.values())
    assert len({row.schema for row in ELEMENTS}) == len({row.ir for row in ELEMENTS}) == len(ELEMENTS)


@pytest.mark.parametrize("row", ELEMENTS, ids=row_id)
def test_numpy_dtype_agrees_with_the_onnx_library(row: Element) -> None:
    assert onnx.helper.tensor_dtype_to_np_dtype(row.onnx) == row.numpy
    assert f"tensor({row.schema})" in {s for o in onnx.defs.get_all_schemas() for f in o.inputs for s in f.types}


@pytest.mark.parametrize("row", [r for r in ELEMENTS if r.schema != "string"], ids=row_id)
def test_bits_are_what_the_onnx_library_stores(row: Element) -> None:
    stored = onnx.numpy_helper.from_array(np.zeros(16, row.numpy))
    assert len(stored.raw_data) * 8 == 16 * row.bits


@pytest.mark.parametrize("key", [0, 999, builtin.IntegerType(3), np.dtype("S4"), "tensor(float)"])
def test_unknown_element_is_not_supported(key: object) -> None:
    with pytest.raises(NotSupported, match="not known to the IR"):
        element_of(key)


ELEMENT_NUMBERS = st.sampled_from([row.onnx for row in ELEMENTS])
SYMBOLS = st.text(min_size=1, max_size=5).filter(lambda s: s != "?")
DIMS = st.lists(st.one_of(st.integers(0, 2**40), SYMBOLS, st.none()), max_size=4)


def tensor_proto(element: int, dims: list[types.Dim] | None) -> TypeProto:
    return onnx.helper.make_tensor_type_proto(element, dims)


TENSORS = st.builds(tensor_proto, ELEMENT_NUMBERS, st.none() | DIMS)
KEYS = st.sampled_from([TensorProto.INT64, TensorProto.STRING])
PROTOS = st.recursive(
    TENSORS,
    lambda inner: (
        st.builds(onnx.helper.make_sequence_type_proto, inner)
        | st.builds(onnx.helper.make_optional_type_proto, inner)
        | st.builds(onnx.helper.make_map_type_proto, KEYS, inner)
    ),
    max_leaves=3,
)


@given(PROTOS)
def test_onnx_type_comes_back(proto: TypeProto) -> None:
    assert types.to_proto(types.from_proto(proto)) == proto


@given(PROTOS)
def test_type_prints_and_parses(proto: TypeProto) -> None:
    type_ = types.from_proto(proto)
    assert reparsed(type_) == type_


@given(ELEMENT_NUMBERS, DIMS)
def test_dimensions_come_back(element: int, dims: list[types.Dim]) -> None:
    type_ = types.tensor_type(element_of(element).ir, dims)
    assert types.dims_of(type_) == tuple(dims)
    assert types.element_type(type_) == element_of(element).ir


def test_symbols_print_as_an_encoding() -> None:
    type_ = types.tensor_type(builtin.f32, ["batch", 3, None, "width"])
    assert str(type_) == 'tensor<?x3x?x?xf32, #onnx.dims<"batch,,,width">>'


@pytest.mark.parametrize("dims", [("a,b", "%2C"), ("%", "%25", ","), ("größe", None, 3), (",",)])
def test_symbols_may_hold_what_separates_them(dims: tuple[types.Dim, ...]) -> None:
    type_ = types.tensor_type(builtin.f32, dims)
    assert types.dims_of(type_) == types.dims_of(reparsed(type_)) == dims


def test_names_that_inference_invents_are_unknown_dimensions() -> None:
    proto = onnx.helper.make_tensor_type_proto(TensorProto.FLOAT, ["unk__12", "batch"])
    assert types.dims_of(types.from_proto(proto)) == (None, "batch")


def test_type_without_a_value_is_unknown() -> None:
    assert types.from_proto(TypeProto()) == types.UnknownType()
    assert types.to_proto(types.UnknownType()) == TypeProto()
    assert types.from_proto(TypeProto(tensor_type=TypeProto.Tensor())) == types.UnknownType()


def test_negative_and_nameless_dimensions_are_unknown() -> None:
    proto = onnx.helper.make_tensor_type_proto(TensorProto.FLOAT, [-1, "?", ""])
    assert types.dims_of(types.from_proto(proto)) == (None, None, None)


def test_sparse_tensor_is_not_supported() -> None:
    proto = onnx.helper.make_sparse_tensor_type_proto(TensorProto.FLOAT, [3])
    with pytest.raises(NotSupported, match="sparse_tensor_type"):
        types.from_proto(proto)


@pytest.mark.parametrize(
    ("proto", "text"),
    [
        (tensor_proto(TensorProto.FLOAT, [2]), "tensor(float)"),
        (tensor_proto(TensorProto.BFLOAT16, None), "tensor(bfloat16)"),
        (onnx.helper.make_sequence_type_proto(tensor_proto(TensorProto.INT64, [])), "seq(tensor(int64))"),
        (
            onnx.helper.make_optional_type_proto(
                onnx.helper.make_sequence_type_proto(tensor_proto(TensorProto.STRING, []))
            ),
            "optional(seq(tensor(string)))",
        ),
        (
            onnx.helper.make_map_type_proto(TensorProto.INT64, tensor_proto(TensorProto.FLOAT, [])),
            "map(int64,tensor(float))",
        ),
        (TypeProto(), ""),
    ],
)
def test_schema_string(proto: TypeProto, text: str) -> None:
    assert types.schema_string(types.from_proto(proto)) == text


def test_schema_strings_are_those_of_the_registry() -> None:
    spelled = {s for o in onnx.defs.get_all_schemas_with_history() for f in (*o.inputs, *o.outputs) for s in f.types}
    built = {f"tensor({row.schema})" for row in ELEMENTS}
    assert {s for s in spelled if s.startswith("tensor(")} <= built


def test_numpy_type_has_the_shape_of_the_array() -> None:
    assert str(types.numpy_type(np.zeros((2, 0, 3), np.uint8))) == "tensor<2x0x3xui8>"
    assert str(types.numpy_type(np.float16(1).reshape(()))) == "tensor<f16>"


FLOAT_TENSOR = builtin.TensorType(builtin.f32, [64, 128])


def test_quantized_type_prints_and_parses() -> None:
    fmt, layout = Format.parse("i4, f32 per 32"), Layout.parse("n(n0) k(k1 k0:32) -> n0 k1 k0 xor 8")
    plain, placed = QuantizedType.of(FLOAT_TENSOR, fmt), QuantizedType.of(FLOAT_TENSOR, fmt, layout)
    assert str(plain) == '!q.tensor<tensor<64x128xf32>, "i4, f32 per 32">'
    assert str(placed) == f'!q.tensor<tensor<64x128xf32>, "i4, f32 per 32", "{layout}">'
    for type_ in (plain, placed):
        assert reparsed(type_) == type_
    assert (plain.format, plain.layout, placed.layout, placed.shape) == (fmt, None, layout, (64, 128))
    assert types.dims_of(placed) == (64, 128)
    assert types.element_type(placed) == builtin.f32
    assert types.schema_string(placed) == ""


@pytest.mark.parametrize(
    ("fmt", "layout", "message"),
    [
        ("i9, f32 per 32", "", "no element type is called 'i9'"),
        ("i4", "", "has no scale"),
        ("i4, f32 per 32", "n(n0) -> k0", "digit n0 is missing"),
    ],
)
def test_quantized_type_refuses_what_does_not_parse(fmt: str, layout: str, message: str) -> None:
    with pytest.raises(VerifyException, match=message):
        QuantizedType(FLOAT_TENSOR, builtin.StringAttr(fmt), builtin.StringAttr(layout))


def test_quantized_type_has_no_onnx_form() -> None:
    with pytest.raises(NotSupported, match="expand the q dialect first"):
        types.to_proto(QuantizedType.of(FLOAT_TENSOR, Format.parse("i8, f32 per *")))


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ('"i4, f32 per 32", "n(n0:4) k(k0) -> n0 k0"', "dimension n has extent 5, .* holds exactly 4"),
        ('"i4, f32 per 32", "n(n0) -> n0"', r"shape \(5, 64\) has rank 2, but layout .* has rank 1"),
        ('"i4, f32 per 2x2x2"', "a block of 3 axes does not fit"),
        ('"i4, f32 per 32", "n(n0) k(k1 k0:32) -> n0 k0"', "digit k1 is missing on the right"),
        ('"i4, f16 per 32, f32 per 48"', "not made of whole blocks"),
    ],
)
def test_quantized_types_that_fit_no_tensor_are_refused(text: str, message: str) -> None:
    with pytest.raises(VerifyException, match=message):
        Parser(CONTEXT, f"!q.tensor<tensor<5x64xf32>, {text}>").parse_type()
