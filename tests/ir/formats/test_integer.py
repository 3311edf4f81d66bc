"""Integers and fixed point, against ONNX Runtime's QuantizeLinear and the INT8 element of MXINT8."""

from __future__ import annotations

import numpy as np
import onnx
import onnxruntime
import pytest
from onnx import TensorProto, helper

from qcc.ir.errors import BadInput
from qcc.ir.formats import load_element
from qcc.ir.formats.integer import Integer
from tests.ir.formats.points import telling_points


@pytest.mark.parametrize(("name", "dtype"), [("i8", TensorProto.INT8), ("u8", TensorProto.UINT8)])
def test_bytes_are_onnx_runtimes(name: str, dtype: int) -> None:
    element = load_element(name)
    x = telling_points(element.table)
    node = helper.make_node("QuantizeLinear", ["x", "s", "z"], ["y"])
    graph = helper.make_graph(
        [node],
        "g",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, [None])],
        [helper.make_tensor_value_info("y", dtype, [None])],
        [helper.make_tensor("s", TensorProto.FLOAT, [], [1.0]), helper.make_tensor("z", dtype, [], [0])],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 21)], ir_version=10)
    onnx.checker.check_model(model)
    session = onnxruntime.InferenceSession(model.SerializeToString(), providers=["CPUExecutionProvider"])
    x = x[np.abs(x) < 2**31]  # beyond, ONNX Runtime's conversion to int32 overflows
    np.testing.assert_array_equal(element.encode(x), session.run(None, {"x": x})[0])


def test_mxint8_has_six_bits_behind_the_point() -> None:
    element = load_element("i8q6")
    assert (element.low, element.high, element.half_gap) == (-2.0, 1.984375, 2**-7)
    np.testing.assert_array_equal(
        element.encode(np.float32([1, -1, 0.5, 2**-7, 3 * 2**-7, 9])), [64, -64, 32, 0, 2, 127]
    )
    np.testing.assert_array_equal(element.decode(np.array([-128, 127], np.int8)), np.float32([-2, 127 / 64]))


def test_values_in_double_precision_are_rounded_once() -> None:
    just_above = np.array([2.5 + 2**-40])  # a tie once it is float32
    assert load_element("i8").encode(just_above) == 3
    assert load_element("i8").encode(just_above.astype(np.float32)) == 2


def test_a_shifted_point_would_be_noticed() -> None:
    x = telling_points(load_element("i8q6").table)
    assert (Integer(8, True, 5).encode(x) != load_element("i8q6").encode(x)).any()


@pytest.mark.parametrize("name", ["i0", "i9", "u9", "i16", "i8q0", "i8q65", "i8q", "I8", "i8 ", "i-8"])
def test_names_that_are_no_integers(name: str) -> None:
    with pytest.raises(BadInput, match=f"no element type is called {name!r}") as caught:
        load_element(name)
    assert caught.value.hint
