"""Small floats against ml_dtypes (every type it has), torch's and ONNX Runtime's casts.

Ours saturates where those overflow, and writes 0 where they write -0: values are compared, inside the finite range.
"""

from __future__ import annotations

import dataclasses

import ml_dtypes
import numpy as np
import onnxruntime
import pytest
from onnx import TensorProto, helper

from qcc.ir.errors import BadInput
from qcc.ir.formats import load_element
from qcc.ir.formats.small_float import SmallFloat, parse
from tests.ir.formats.points import telling_points

TYPES = {
    "e4m3": ml_dtypes.float8_e4m3fn,
    "e4m3ieee": ml_dtypes.float8_e4m3,
    "e5m2": ml_dtypes.float8_e5m2,
    "e3m4ieee": ml_dtypes.float8_e3m4,
    "e4m3fnuz": ml_dtypes.float8_e4m3fnuz,
    "e5m2fnuz": ml_dtypes.float8_e5m2fnuz,
    "e4m3b11fnuz": ml_dtypes.float8_e4m3b11fnuz,
    "e2m3": ml_dtypes.float6_e2m3fn,
    "e3m2": ml_dtypes.float6_e3m2fn,
    "e2m1": ml_dtypes.float4_e2m1fn,
}


def element_of(name: str) -> SmallFloat:
    element = parse(name)
    assert element is not None
    return element


def in_range(element: SmallFloat, seed: int = 0) -> np.ndarray:
    x = telling_points(element.table, seed, 20000)
    return x[np.abs(x) <= element.high]


def check_against_ml_dtypes(element: SmallFloat, dtype: type) -> None:
    codes = np.arange(1 << element.bits, dtype=np.uint8)
    np.testing.assert_array_equal(element.table, codes.view(dtype).astype(np.float32))
    np.testing.assert_array_equal(element.decode(codes), codes.view(dtype).astype(np.float32))
    x = in_range(element)
    np.testing.assert_array_equal(element.decode(element.encode(x)), x.astype(dtype).astype(np.float32))
    assert element.high == float(ml_dtypes.finfo(dtype).max)
    assert element.low == float(ml_dtypes.finfo(dtype).min)


@pytest.mark.parametrize("name", TYPES)
def test_ml_dtypes_has_the_same_codes_and_rounding(name: str) -> None:
    check_against_ml_dtypes(element_of(name), TYPES[name])


@pytest.mark.parametrize("name", TYPES)
@pytest.mark.parametrize("shift", [-1, 1])
def test_a_shifted_bias_would_be_noticed(name: str, shift: int) -> None:
    element = element_of(name)
    with pytest.raises(AssertionError):
        check_against_ml_dtypes(dataclasses.replace(element, bias=element.bias + shift), TYPES[name])


@pytest.mark.parametrize(("name", "policy"), [("e4m3", "ieee"), ("e5m2", "fn"), ("e3m2", "fn"), ("e4m3fnuz", "finite")])
def test_another_policy_would_be_noticed(name: str, policy: str) -> None:
    with pytest.raises(AssertionError):
        check_against_ml_dtypes(dataclasses.replace(element_of(name), policy=policy), TYPES[name])


@pytest.mark.parametrize("name", ["e4m3", "e5m2", "e4m3fnuz", "e5m2fnuz"])
def test_torch_casts_alike(name: str) -> None:
    torch = pytest.importorskip("torch")
    names = {
        "e4m3": "float8_e4m3fn",
        "e5m2": "float8_e5m2",
        "e4m3fnuz": "float8_e4m3fnuz",
        "e5m2fnuz": "float8_e5m2fnuz",
    }
    dtype = getattr(torch, names[name])
    element = element_of(name)
    x = in_range(element, seed=1)
    cast = torch.from_numpy(x).to(dtype)
    np.testing.assert_array_equal(element.decode(element.encode(x)), cast.float().numpy())
    ours, theirs = element.encode(x), cast.view(torch.uint8).numpy()
    np.testing.assert_array_equal(ours[ours > 0], theirs[ours > 0])  # the codes too, but for -0


@pytest.mark.parametrize(
    ("name", "to"),
    [
        ("e4m3", TensorProto.FLOAT8E4M3FN),
        ("e5m2", TensorProto.FLOAT8E5M2),
        ("e4m3fnuz", TensorProto.FLOAT8E4M3FNUZ),
        ("e5m2fnuz", TensorProto.FLOAT8E5M2FNUZ),
    ],
)
def test_onnx_runtime_casts_alike_and_saturates_alike(name: str, to: int) -> None:
    nodes = [
        helper.make_node("Cast", ["x"], ["c"], to=to, saturate=1),
        helper.make_node("Cast", ["c"], ["y"], to=TensorProto.FLOAT),
    ]
    ends = [helper.make_tensor_value_info(n, TensorProto.FLOAT, [None]) for n in "xy"]
    graph = helper.make_graph(nodes, "g", ends[:1], ends[1:])
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 21)], ir_version=10)
    session = onnxruntime.InferenceSession(model.SerializeToString(), providers=["CPUExecutionProvider"])
    element = element_of(name)
    x = np.append(telling_points(element.table), np.float32([np.inf, -np.inf]))
    np.testing.assert_array_equal(element.decode(element.encode(x)), session.run(None, {"x": x})[0])


def test_bare_names_follow_ocp() -> None:
    highs = {"e4m3": 448, "e5m2": 57344, "e3m2": 28, "e2m3": 7.5, "e2m1": 6, "e3m3": 30, "e1m2": 3.5, "e2m0": 4}
    assert {name: load_element(name).high for name in highs} == highs
    np.testing.assert_array_equal(load_element("e2m1").table[:8], [0, 0.5, 1, 1.5, 2, 3, 4, 6])
    table = load_element("e5m2").table
    assert table[0x7C] == np.inf and table[0xFC] == -np.inf and np.isnan(table[0x7D])
    assert np.flatnonzero(np.isnan(load_element("e4m3").table)).tolist() == [0x7F, 0xFF]
    assert np.isfinite(load_element("e4m3finite").table).all()


@pytest.mark.parametrize("special", [5.0, -5.0, 8.0, -8.0])
def test_special_values_take_the_code_of_minus_zero(special: float) -> None:
    """BitMoD's 4-bit elements: E2M1 with +-5 (extra resolution) or +-8 (extra range)."""
    element, plain = load_element(f"e2m1z{special:g}"), load_element("e2m1")
    np.testing.assert_array_equal(np.delete(element.table, 8), np.delete(plain.table, 8))
    assert element.table[8] == special
    np.testing.assert_array_equal(element.encode(np.float32([special, 0, -0.0])), [8, 0, 0])
    x = np.float32([4.4, 5.2, 5.6, 6.9, 7.1, 100])
    np.testing.assert_array_equal(load_element("e2m1z5").decode(load_element("e2m1z5").encode(x)), [4, 5, 6, 6, 6, 6])
    np.testing.assert_array_equal(load_element("e2m1z8").decode(load_element("e2m1z8").encode(x)), [4, 6, 6, 6, 8, 8])


def test_a_bias_scales_by_a_power_of_two() -> None:
    """The exponent bias of LLM-FP4 is a scale 2^-bias; a whole one can be part of the element."""
    x = telling_points(load_element("e3m2").table)
    shifted, plain = load_element("e3m2b5"), load_element("e3m2")
    np.testing.assert_array_equal(shifted.table, plain.table / 4)
    np.testing.assert_array_equal(shifted.encode(x / 4), plain.encode(x))


def test_names_of_one_element_are_equal() -> None:
    assert load_element("e4m3fn") == load_element("e4m3b7") == load_element("e4m3")
    assert str(load_element("e4m3b8fnuz")) == "e4m3fnuz"


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("e9m9", "'e9m9' has 19 bits"),
        ("e5m3", "'e5m3' has 9 bits"),
        ("e8m0", "'e8m0' has no sign: it is a type of scales"),
        ("e0m3", "has no exponent"),
        ("e3m0ieee", "an infinity but no NaN"),
        ("e1m0fn", "no finite value but 0"),
        ("e4m3z5", "only where all codes are finite"),
        ("e2m1fnuzz5", "only where all codes are finite"),
        ("e2m1z6", "6 already has a code"),
        ("e2m1z0", "0 already has a code"),
        ("e4m3b200", "with bias 200 not all values are float32"),
        ("e4m3b-200", "with bias -200 not all values are float32"),
        ("e4m3foo", "no element type is called"),
        ("e4m3fnb8", "no element type is called"),
        ("e2m1znan", "no element type is called"),
    ],
)
def test_names_that_cannot_be(name: str, message: str) -> None:
    with pytest.raises(BadInput, match=message) as caught:
        load_element(name)
    assert caught.value.hint
