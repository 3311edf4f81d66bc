"""Export: a program becomes a model that the ONNX library accepts and that computes the same."""

from __future__ import annotations

from pathlib import Path

import ml_dtypes
import numpy as np
import onnx
import onnxruntime
import pytest
from onnx import ModelProto, TensorProto, helper

from qcc.frontend.onnx_file import from_model, read
from qcc.ir import attributes as attr
from qcc.ir.emit_onnx import emit
from qcc.ir.errors import NotSupported
from qcc.ir.execute import run
from qcc.ir.types import ELEMENTS, Element
from qcc.ir.weights import locate
from tests.ir.helpers import floats, onnx_model, program, run_model, same_array

RNG = np.random.default_rng(0)


def exported(model: ModelProto) -> ModelProto:
    imported = from_model(model)
    return emit(imported).embed(imported.weights)


def test_every_part_of_the_interface_is_rebuilt() -> None:
    node = helper.make_node("MatMul", ["x", "w"], ["y"], name="the node")
    model = onnx_model(
        [node], {"x": floats("batch", None, 8)}, {"y": floats("batch", None, 40)}, {"w": np.ones((8, 40), np.float32)}
    )
    helper.set_model_props(model, {"author": "größe", "b": '"quoted"'})
    made = exported(model)
    onnx.checker.check_model(made, full_check=True)
    assert {p.key: p.value for p in made.metadata_props} == {"author": "größe", "b": '"quoted"'}
    assert [n.name for n in made.graph.node] == ["the node"]
    x, y = made.graph.input[0], made.graph.output[0]
    assert [d.dim_param or d.dim_value for d in x.type.tensor_type.shape.dim] == ["batch", 0, 8]
    assert [d.dim_param or d.dim_value for d in y.type.tensor_type.shape.dim] == ["batch", 0, 40]
    assert (made.producer_name, made.opset_import[0].version) == ("qcc", 21)


@pytest.mark.parametrize(("opset", "ir_version"), [(21, 10), (22, 10), (23, 11), (24, 12), (25, 13), (26, 13)])
def test_ir_version_fits_the_opset(opset: int, ir_version: int) -> None:
    made = exported(
        onnx_model([helper.make_node("Relu", ["x"], ["y"])], {"x": floats(2)}, {"y": floats(2)}, opset=opset)
    )
    assert (made.opset_import[0].version, made.ir_version) == (opset, ir_version)
    assert helper.find_min_ir_version_for(made.opset_import) <= ir_version
    np.testing.assert_array_equal(run_model(made, {"x": np.array([-1, 1], np.float32)})[0], [0, 1])


def test_only_the_domains_in_use_are_imported() -> None:
    nodes = [helper.make_node("Gelu", ["x"], ["y"], domain="com.microsoft")]
    domains = {"com.microsoft": 1, "ai.onnx.ml": 3}
    made = exported(onnx_model(nodes, {"x": floats(2)}, {"y": floats(2)}, domains=domains))
    assert {o.domain: o.version for o in made.opset_import} == {"": 21, "com.microsoft": 1}


LARGE = {"small": np.ones(4, np.float32), "large": RNG.normal(size=(4, 300)).astype(np.float32)}


def large_model() -> ModelProto:
    nodes = [helper.make_node("Add", ["x", "small"], ["h"]), helper.make_node("MatMul", ["h", "large"], ["y"])]
    return onnx_model(nodes, {"x": floats("n", 4)}, {"y": floats("n", 300)}, LARGE)


X = RNG.normal(size=(2, 4)).astype(np.float32)
Y = (X + 1) @ LARGE["large"]


def test_large_weights_are_left_for_the_caller_to_place() -> None:
    imported = from_model(large_model())
    emitted = emit(imported)
    assert emitted.external == {"large": "large"}
    assert emitted.proto.ByteSize() < 1000
    assert {t.name: t.data_location for t in emitted.proto.graph.initializer} == {
        "small": TensorProto.DEFAULT,
        "large": TensorProto.EXTERNAL,
    }


def test_embedded_weights_travel_inside_the_model() -> None:
    np.testing.assert_allclose(run_model(exported(large_model()), {"x": X})[0], Y, rtol=1e-5, atol=1e-6)


def test_referred_weights_lie_beside_the_model(tmp_path: Path) -> None:
    imported = from_model(large_model())
    imported.weights.save(tmp_path / "weights.safetensors")
    model = emit(imported).refer("weights.safetensors", locate(tmp_path / "weights.safetensors"))
    onnx.save_model(model, tmp_path / "model.onnx")
    onnx.checker.check_model(tmp_path / "model.onnx", full_check=True)
    session = onnxruntime.InferenceSession(tmp_path / "model.onnx", providers=["CPUExecutionProvider"])
    np.testing.assert_allclose(session.run(None, {"x": X})[0], Y, rtol=1e-5, atol=1e-6)
    np.testing.assert_allclose(run(read(tmp_path / "model.onnx"), {"x": X})["y"], Y, rtol=1e-5, atol=1e-6)


CASTABLE = [r for r in ELEMENTS if r.schema not in ("string", "complex64", "complex128", "int2", "uint2", "float8e8m0")]
RUNNABLE = [r for r in CASTABLE if r.schema != "float4e2m1"]


def cast_model(row: Element) -> tuple[ModelProto, np.ndarray]:
    """A model that gives a weight of 41 x 33 of that element type as float32, and what it should give."""
    codes = RNG.integers(0, 2 if row.schema == "bool" else 4, (41, 33)).astype(np.float32)
    node = helper.make_node("Cast", ["w"], ["y"], to=TensorProto.FLOAT)
    nodes = [node, helper.make_node("Identity", ["x"], ["z"])]
    model = onnx_model(
        nodes, {"x": floats(1)}, {"y": floats(41, 33), "z": floats(1)}, {"w": codes.astype(row.numpy)}, opset=23
    )
    return model, codes.astype(row.numpy).astype(np.float32)


@pytest.mark.parametrize("row", CASTABLE, ids=lambda row: row.schema)
def test_weight_of_every_element_type_is_written_as_the_onnx_library_reads_it(row: Element, tmp_path: Path) -> None:
    model, expected = cast_model(row)
    imported = from_model(model)
    imported.weights.save(tmp_path / "weights")
    onnx.save_model(emit(imported).refer("weights", locate(tmp_path / "weights")), tmp_path / "model.onnx")
    loaded = onnx.load_model(tmp_path / "model.onnx")
    found = attr.to_array(next(t for t in loaded.graph.initializer if t.name == "w"))
    assert same_array(found.astype(np.float32), expected)


@pytest.mark.parametrize("row", RUNNABLE, ids=lambda row: row.schema)
def test_weight_of_every_element_type_runs(row: Element) -> None:
    model, expected = cast_model(row)
    np.testing.assert_array_equal(run_model(model, {"x": np.zeros(1, np.float32)})[0], expected)
    found = run(from_model(model), {"x": np.zeros(1, np.float32)})
    np.testing.assert_array_equal(found["y"], expected)


def test_narrow_weights_pack_several_to_a_byte() -> None:
    weight = np.arange(-8, 8).repeat(200).reshape(40, 80).astype(ml_dtypes.int4)
    node = helper.make_node("DequantizeLinear", ["w", "s"], ["y"])
    model = onnx_model([node], {"s": floats()}, {"y": floats(40, 80)}, {"w": weight})
    emitted = emit(from_model(model))
    assert emitted.external == {}
    assert len(emitted.proto.graph.initializer[0].raw_data) == 1600


RELU, NEG = helper.make_node("Relu", ["x"], ["y"]), helper.make_node("Neg", ["y"], ["z"])
ODD_OUTPUTS = {
    "an input is returned": onnx_model([RELU], {"x": floats(2)}, {"y": floats(2), "x": floats(2)}),
    "a value is returned twice": onnx_model(
        [RELU, helper.make_node("Identity", ["y"], ["z"])], {"x": floats(2)}, {"y": floats(2), "z": floats(2)}
    ),
    "a weight is returned": onnx_model(
        [RELU], {"x": floats(2)}, {"y": floats(2), "w": floats(300)}, {"w": np.ones(300, np.float32)}
    ),
    "a constant is returned": onnx_model(
        [RELU], {"x": floats(2)}, {"y": floats(2), "w": floats(2)}, {"w": np.ones(2, np.float32)}
    ),
    "an output is read on": onnx_model([RELU, NEG], {"x": floats(2)}, {"y": floats(2), "z": floats(2)}),
}


@pytest.mark.parametrize("case", ODD_OUTPUTS)
def test_unusual_outputs_keep_their_names_and_values(case: str) -> None:
    model, feeds = ODD_OUTPUTS[case], {"x": np.array([-1, 2], np.float32)}
    copy = ModelProto()
    copy.CopyFrom(model)
    made = exported(copy)
    assert [o.name for o in made.graph.output] == [o.name for o in model.graph.output]
    for found, expected in zip(run_model(made, feeds), run_model(model, feeds), strict=True):
        np.testing.assert_array_equal(found, expected)


def test_branches_may_give_values_from_around_them_and_one_value_twice() -> None:
    body = """%n = onnx.Neg(%x) : tensor<2xf32>
    %y, %z = onnx.If(%c) ({
      onnx.yield %n, %x
    }, {
      %r = onnx.Relu(%x) : tensor<2xf32>
      onnx.yield %r, %r
    }) : tensor<2xf32>, tensor<2xf32>"""
    made = program({"x": "tensor<2xf32>", "c": "tensor<i1>"}, body, {"y": "tensor<2xf32>", "z": "tensor<2xf32>"})
    x = np.array([-1, 2], np.float32)
    model = emit(made).embed(made.weights)
    onnx.checker.check_model(model, full_check=True)
    for flag, expected in ((True, [np.maximum(x, 0)] * 2), (False, [-x, x])):
        np.testing.assert_array_equal(run_model(model, {"x": x, "c": np.array(flag)}), expected)


def test_values_with_one_name_are_told_apart() -> None:
    nodes = [
        helper.make_node("Relu", ["x"], ["a b"]),
        helper.make_node("Neg", ["a b"], ["a/b"]),
        helper.make_node("Abs", ["a/b"], ["y"]),
    ]
    made = exported(onnx_model(nodes, {"x": floats(2)}, {"y": floats(2)}))
    onnx.checker.check_model(made, full_check=True)
    np.testing.assert_array_equal(run_model(made, {"x": np.array([-1, 2], np.float32)})[0], [0, 2])


def test_second_result_that_nothing_reads_is_left_out() -> None:
    node = helper.make_node("MaxPool", ["x"], ["y", "indices"], kernel_shape=[2])
    made = exported(onnx_model([node], {"x": floats(1, 1, 4)}, {"y": floats(1, 1, 3)}))
    assert list(made.graph.node[0].output) == ["y", ""]
    np.testing.assert_array_equal(
        run_model(made, {"x": np.arange(4, dtype=np.float32).reshape(1, 1, 4)})[0], [[[1, 2, 3]]]
    )


def test_further_values_may_be_returned() -> None:
    imported = from_model(onnx_model([RELU, NEG], {"x": floats(2)}, {"z": floats(2)}))
    inner = next(op for op in imported.body.ops if op.name == "onnx.Relu").results[0]
    emitted = emit(imported, also=(inner, imported.outputs[0]))
    assert [o.name for o in emitted.proto.graph.output] == ["z", "y"]
    assert emitted.value_names[inner] == "y"


def test_quantized_operations_have_no_onnx_form() -> None:
    type_ = '!q.tensor<tensor<2xf32>, "u8, f32 per tensor, zero u8">'
    body = f"%q = q.quantize(%x) : {type_}\n    %y = q.dequantize(%q) : tensor<2xf32>"
    quantized = program({"x": "tensor<2xf32>"}, body, {"y": "tensor<2xf32>"})
    with pytest.raises(NotSupported, match=r"q\.quantize has no ONNX form"):
        emit(quantized)


def test_constants_of_every_form_come_back() -> None:
    given: dict[str, object] = {
        "value_int": 3,
        "value_ints": [1, 2],
        "value_float": 0.5,
        "value_floats": [0.5, 1.5],
        "value_string": "größe",
        "value_strings": ["a", "ü"],
    }
    nodes = [helper.make_node("Constant", [], [name], **{name: value}) for name, value in given.items()]
    kinds = [TensorProto.INT64] * 2 + [TensorProto.FLOAT] * 2 + [TensorProto.STRING] * 2
    outputs = {n: (kind, [2] if n.endswith("s") else []) for n, kind in zip(given, kinds, strict=True)}
    model = onnx_model([*nodes, helper.make_node("Relu", ["x"], ["y"])], {"x": floats(1)}, {"y": floats(1), **outputs})
    feeds = {"x": np.zeros(1, np.float32)}
    for found, expected in zip(run_model(exported(model), feeds), run_model(model, feeds), strict=True):
        np.testing.assert_array_equal(found, expected)
        assert found.dtype == expected.dtype


def test_a_program_is_cloned_without_copying_weights() -> None:
    imported = from_model(large_model())
    other = imported.clone()
    other.weights["large"] = np.zeros((4, 300), np.float32)
    other.decide("n", "did", "why")
    assert imported.weights["large"].any()
    assert (len(imported.decisions), len(other.decisions)) == (0, 1)
    np.testing.assert_allclose(run(imported, {"x": X})["y"], Y, rtol=1e-5, atol=1e-6)
    assert not run(other, {"x": X})["y"].any()
