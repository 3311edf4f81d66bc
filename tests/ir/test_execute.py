"""The reference executor: outputs by name, any value in between, and errors that say why."""

from __future__ import annotations

import gc

import numpy as np
import pytest
from onnx import TensorProto, helper

from qcc.frontend.onnx_file import from_model
from qcc.ir.errors import BadInput, NotSupported
from qcc.ir.execute import Reference, run, run_all
from qcc.ir.expand import expand
from qcc.ir.program import Program
from tests.ir.helpers import floats, onnx_model, program

X = np.linspace(-2, 2, 8, dtype=np.float32).reshape(2, 4)
W = np.arange(1600, dtype=np.float32).reshape(4, 400)


def two_outputs() -> Program:
    nodes = [
        helper.make_node("Neg", ["x"], ["n"]),
        helper.make_node("MatMul", ["n", "w"], ["y"]),
        helper.make_node("Relu", ["n"], ["z"]),
    ]
    outputs = {"y": floats("batch", 400), "z": floats("batch", 4)}
    return from_model(onnx_model(nodes, {"x": floats("batch", 4)}, outputs, {"w": W}))


def test_outputs_come_by_name() -> None:
    found = run(two_outputs(), {"x": X})
    assert list(found) == ["y", "z"]
    np.testing.assert_allclose(found["y"], -X @ W, rtol=1e-5)
    np.testing.assert_array_equal(found["z"], np.maximum(-X, 0))


def test_any_value_is_fetched_in_the_order_asked_for() -> None:
    made = two_outputs()
    inner = made.body.ops.first
    negated = next(op for op in made.body.ops if op.name == "onnx.Neg").results[0]
    assert inner is not None
    wanted = [made.outputs[1], negated, made.body.args[0], negated]
    z, n, x, again = Reference(made, wanted).fetch({"x": X})
    np.testing.assert_array_equal(n, -X)
    np.testing.assert_array_equal(again, n)
    np.testing.assert_array_equal(z, np.maximum(-X, 0))
    np.testing.assert_array_equal(x, X)


def test_many_samples_of_several_sizes_run_on_one_session() -> None:
    samples = [{"x": X}, {"x": X[:1]}, {"x": X[:0]}]
    found = run_all(two_outputs(), samples)
    assert [f["y"].shape for f in found] == [(2, 400), (1, 400), (0, 400)]


def test_weights_live_as_long_as_the_session() -> None:
    made = two_outputs()
    made.weights["w"] = np.asfortranarray(W)
    reference = Reference(made)
    del made
    gc.collect()
    fill = [np.full((4, 400), 7, np.float32) for _ in range(100)]
    np.testing.assert_allclose(reference.run({"x": X})["y"], -X @ W, rtol=1e-5)
    del fill


def test_the_program_is_not_changed() -> None:
    quantized = quantize_dequantize()
    before = str(quantized.module)
    run(quantized, {"x": X})
    assert str(quantized.module) == before


def quantize_dequantize() -> Program:
    body = """%q = q.quantize(%x) : !q.tensor<tensor<2x4xf32>, "u8, f32 per tensor, zero u8">
    %y = q.dequantize(%q) : tensor<2x4xf32>"""
    return program({"x": "tensor<2x4xf32>"}, body, {"y": "tensor<2x4xf32>"})


def test_quantized_programs_run_by_their_expansion() -> None:
    quantized = quantize_dequantize()
    found = run(quantized, {"x": X})["y"]
    np.testing.assert_allclose(found, X, atol=4 / 255)
    np.testing.assert_array_equal(run(expand(quantized), {"x": X})["y"], found)
    np.testing.assert_array_equal(Reference(quantized, [quantized.outputs[0]]).fetch({"x": X})[0], found)


@pytest.mark.parametrize(
    ("feeds", "message"),
    [
        ({}, "input 'x' is missing"),
        ({"other": X}, "input 'x' is missing"),
        ({"x": X, "other": X}, "Invalid input name: other"),
        ({"x": X.astype(np.float64)}, "Unexpected input data type"),
        ({"x": X[0]}, "Invalid rank for input: x"),
        ({"x": X[:, :3]}, "Got invalid dimensions for input: x"),
    ],
)
def test_inputs_that_do_not_fit_are_refused(feeds: dict[str, np.ndarray], message: str) -> None:
    with pytest.raises(BadInput, match=message) as caught:
        run(two_outputs(), feeds)
    assert caught.value.hint


def test_values_that_an_operator_refuses_are_bad_input() -> None:
    node = helper.make_node("Gather", ["x", "i"], ["y"])
    gather = from_model(onnx_model([node], {"x": floats(3), "i": (TensorProto.INT64, [1])}, {"y": floats(1)}))
    with pytest.raises(BadInput, match=r"does not run on these inputs: .*indices element out of data bounds"):
        run(gather, {"x": np.zeros(3, np.float32), "i": np.array([9])})


def test_operator_without_a_kernel_is_not_supported() -> None:
    node = helper.make_node("Sin", ["x"], ["y"])
    ports = {"x": (TensorProto.BFLOAT16, [2])}
    with pytest.raises(NotSupported, match=r"ONNX Runtime has no kernel: .*Sin"):
        Reference(from_model(onnx_model([node], ports, {"y": (TensorProto.BFLOAT16, [2])}, opset=22)))


def test_weight_missing_from_the_store_is_bad_input() -> None:
    made = two_outputs()
    made.weights.keep(set())
    with pytest.raises(BadInput, match="weight 'w' is not in the weight store"):
        Reference(made)
