"""MatMulNBits and DequantizeLinear: ONNX Runtime decodes the very values, and what is written reads back."""

from __future__ import annotations

from typing import Any

import ml_dtypes
import numpy as np
import onnx
import onnxruntime
import pytest
from numpy.typing import NDArray
from onnx import TensorProto, helper

from qcc.ir.attributes import from_array
from qcc.ir.codecs import matmul_nbits, qdq
from qcc.ir.convert import convert
from qcc.ir.errors import BadInput, NotSupported
from qcc.ir.format import Format
from qcc.ir.quantized import Quantized

Array = NDArray[Any]


def random(text: str, shape: tuple[int, int], seed: int = 0) -> Quantized:
    """Random parts of a format of integers or floats with one level of scales."""
    fmt, rng = Format.parse(text), np.random.default_rng(seed)
    codes = rng.integers(0, 1 << fmt.bits, shape).astype(np.uint8)
    if not fmt.is_integer:
        codes = np.where(np.isfinite(fmt.family.table[codes]), codes, np.uint8(0))
    elif fmt.family.signed:
        codes = (codes.astype(np.int16) - (1 << fmt.bits - 1)).astype(np.int8)
    scale = rng.uniform(0.01, 0.02, fmt.scale_shape(shape)).astype(np.float32)
    zero = rng.integers(0, 1 << fmt.bits, scale.shape).astype(np.uint8) if fmt.zero_level else None
    return Quantized.plain(fmt, codes, scale, zero)


def run(nodes: list[Any], weights: dict[str, Array], x: Array) -> Array:
    """One graph over `x` with constant `weights`, in ONNX Runtime."""
    tensors = [from_array(array, name) for name, array in weights.items()]
    given = helper.make_tensor_value_info("a", TensorProto.FLOAT, x.shape)
    graph = helper.make_graph(nodes, "g", [given], [helper.make_empty_tensor_value_info("y")], tensors)
    opsets = [helper.make_opsetid("", 25), helper.make_opsetid("com.microsoft", 1)]
    model = helper.make_model(graph, opset_imports=opsets, ir_version=13)
    options = onnxruntime.SessionOptions()
    options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_DISABLE_ALL
    session = onnxruntime.InferenceSession(model.SerializeToString(), options, providers=["CPUExecutionProvider"])
    return session.run(None, {"a": x})[0]


@pytest.mark.parametrize("shape", [(8, 64), (5, 96), (3, 80)])
@pytest.mark.parametrize(
    "text", ["i4, f32 per 32", "u4, f32 per 32, zero u4", "u8, f32 per 16, zero u8", "i8, f32 per 64"]
)
def test_matmul_nbits_is_what_onnx_runtime_multiplies(text: str, shape: tuple[int, int]) -> None:
    value = random(text, shape)
    b, scales, zeros, settings = matmul_nbits.encode(value)
    back = matmul_nbits.decode(b, scales, zeros, settings, "w")
    assert back.format == value.format
    np.testing.assert_array_equal(back.decode(), value.decode())
    names = ["a", "b", "s", *(["z"] if zeros is not None else [])]
    attributes = {"N": settings.n, "K": settings.k, "bits": settings.bits, "block_size": settings.block}
    node = helper.make_node("MatMulNBits", names, ["y"], domain="com.microsoft", **attributes)
    weights = {"b": b, "s": scales, "z": zeros} if zeros is not None else {"b": b, "s": scales}
    found = run([node], weights, np.eye(shape[1], dtype=np.float32))
    np.testing.assert_allclose(found.T, value.decode(), rtol=0, atol=1e-6)


@pytest.mark.parametrize("shape", [(8, 64), (5, 96)])
@pytest.mark.parametrize(
    "text",
    [
        "i4, f32 per 32",
        "u4, f32 per 32, zero u4",
        "i8, f32 per *",
        "u8, f32 per tensor, zero u8",
        "i2, f32 per 16",
        "e4m3, f32 per *",
        "e5m2, f32 per 32",
    ],
)
def test_dequantize_linear_gives_the_very_values(text: str, shape: tuple[int, int]) -> None:
    value = random(text, shape)
    x, scale, zero, axis, block = qdq.encode(value)
    assert x.shape == shape[::-1]
    back = qdq.transposed(qdq.decode(x, scale, zero, axis, block, "w"))
    assert back.format == value.format
    names = ["x", "s", *(["z"] if zero is not None else [])]
    node = helper.make_node("DequantizeLinear", names, ["w"], axis=axis, block_size=block)
    multiply = helper.make_node("MatMul", ["a", "w"], ["y"])
    weights = {"x": x, "s": scale} | ({"z": zero} if zero is not None else {})
    found = run([node, multiply], weights, np.eye(shape[1], dtype=np.float32))
    np.testing.assert_array_equal(found.T, value.decode())


@pytest.mark.parametrize(
    "text", ["i4, f32 per 32", "u4, f32 per 32, zero u4", "u8, f32 per 16, zero u8", "i8, f32 per *"]
)
def test_one_form_becomes_the_other_and_comes_back(text: str) -> None:
    value = random(text, (8, 64))
    there = convert(value, matmul_nbits.accepted(value, "w"), "w")
    b, scales, zeros, settings = matmul_nbits.encode(there)
    again = matmul_nbits.decode(b, scales, zeros, settings, "w")
    other = convert(again, qdq.accepted(again, "w"), "w")
    x, scale, zero, axis, block = qdq.encode(other)
    back = qdq.transposed(qdq.decode(x, scale, zero, axis, block, "w"))
    np.testing.assert_array_equal(back.decode().view(np.uint32), value.decode().view(np.uint32))
    if "*" not in text:
        assert matmul_nbits.encode(convert(back, there.format, "w"))[0].tobytes() == b.tobytes()


def test_matmul_nbits_with_float_zero_points() -> None:
    value = random("u4, f32 per 32, zero u4", (8, 64))
    assert value.zero is not None
    b, scales, _, settings = matmul_nbits.encode(value)
    zeros = value.zero.astype(np.float32) + np.float32(0.25)
    found = matmul_nbits.decode(b, scales, zeros, settings, "w")
    assert found.format == Format.parse("u4, f32 per 32, zero f32")
    expected = (value.codes - np.repeat(zeros, 32, axis=1)) * np.repeat(scales, 32, axis=1)
    np.testing.assert_array_equal(found.decode(), expected)


def test_an_axis_of_the_matrix_as_it_lies() -> None:
    codes = np.arange(12, dtype=np.int8).reshape(3, 4)
    scale = np.array([1, 2, 4], np.float32)
    found = qdq.decode(codes, scale, None, 0, 0, "w")
    np.testing.assert_array_equal(found.decode(), codes * scale[:, None])
    turned = qdq.transposed(found)
    assert turned.format == Format.parse("i8, f32 per *x1")
    np.testing.assert_array_equal(turned.decode(), found.decode().T)


@pytest.mark.parametrize(
    ("x", "scale", "axis", "block", "error", "message"),
    [
        (np.zeros((4, 4), np.int16), np.ones(4, np.float32), 1, 0, NotSupported, "w: codes of int16"),
        (np.zeros((4, 4), np.int8), np.ones(3, np.float32), 1, 0, BadInput, "w: x_scale has shape"),
        (np.zeros((4, 4), np.int8), np.ones((4, 4), np.float32), 1, 2, BadInput, "w: x_scale has shape"),
        (np.zeros((4, 4), np.int8), np.ones(4, np.int32), 1, 0, BadInput, "w: x_scale is int32"),
        (np.zeros(4, np.int8), np.ones(4, np.float32), 0, 0, NotSupported, "matrices only"),
        (np.zeros((4, 4), np.int8), np.full(4, np.inf, np.float32), 1, 0, BadInput, "w: scale at block"),
    ],
)
def test_dequantize_linear_that_does_not_fit(
    x: Array, scale: Array, axis: int, block: int, error: type[Exception], message: str
) -> None:
    with pytest.raises(error, match=message):
        qdq.decode(x, scale, None, axis, block, "w")


def test_matmul_nbits_that_does_not_fit() -> None:
    settings = matmul_nbits.Settings(8, 64, 4, 32)
    with pytest.raises(BadInput, match=r"w: B is uint8 \[8, 2, 8\]"):
        matmul_nbits.decode(np.zeros((8, 2, 8), np.uint8), np.ones((8, 2), np.float32), None, settings, "w")
    with pytest.raises(BadInput, match="block_size 24"):
        matmul_nbits.Settings(8, 64, 4, 24)
    with pytest.raises(NotSupported, match="3 bits"):
        matmul_nbits.Settings(8, 64, 3, 32)


def test_types_of_onnx_are_those_of_ml_dtypes() -> None:
    assert onnx.helper.tensor_dtype_to_np_dtype(TensorProto.FLOAT8E4M3FN) == ml_dtypes.float8_e4m3fn
