"""The ONNX door: what comes in computes the same at every opset, and what cannot come in is refused with its reason."""

from __future__ import annotations

import io
import pickle
import zipfile
from collections.abc import Callable
from pathlib import Path

import ml_dtypes
import numpy as np
import onnx
import pytest
from onnx import ModelProto, helper

from qcc.frontend.onnx_file import Shapes, from_model, read
from qcc.ir import types
from qcc.ir.emit_onnx import emit
from qcc.ir.errors import BadInput, NotSupported, QccError
from qcc.ir.execute import run
from tests import networks
from tests.ir.helpers import floats, onnx_model, run_model
from tests.networks import normal


def save(model: ModelProto, folder: Path) -> Path:
    path = folder / "model.onnx"
    path.write_bytes(model.SerializeToString())
    return path


LARGE = normal(40, 50)


def test_large_weights_move_to_the_store_and_small_ones_into_the_text() -> None:
    text = "(float[2,40] x) => (float[2,50] y) { h = MatMul(x, w) i = Add(h, b) y = Mul(i, s) }"
    imported = from_model(networks.model(text, w=LARGE, b=normal(50), s=np.array(2, np.float32)))
    assert {name: imported.weights[name].shape for name in imported.weights} == {"w": (40, 50), "b": (50,)}
    assert str(imported.module).count("onnx.Constant") == 1


def test_weights_in_constant_nodes_are_weights() -> None:
    constant = helper.make_node("Constant", [], ["w"], value=onnx.numpy_helper.from_array(LARGE, "inner"))
    model = onnx_model(
        [constant, helper.make_node("MatMul", ["x", "w"], ["y"])], {"x": floats(2, 40)}, {"y": floats(2, 50)}
    )
    imported = from_model(model)
    assert list(imported.weights) == ["w"]
    x = normal(2, 40)
    np.testing.assert_allclose(run(imported, {"x": x})["y"], x @ LARGE, rtol=1e-5, atol=1e-5)


def test_weights_inside_subgraphs_are_weights() -> None:
    text = (
        "(float[2,40] x, bool c) => (float[2,50] y) { y = If<"
        "then_branch = t () => (float[2,50] a) { a = MatMul(x, w) }, "
        "else_branch = e () => (float[2,50] b) { b = MatMul(x, v) }>(c) }"
    )
    model = networks.model(text)
    for attribute in model.graph.node[0].attribute:
        name = "w" if attribute.name == "then_branch" else "v"
        attribute.g.initializer.append(onnx.numpy_helper.from_array(LARGE if name == "w" else -LARGE, name))
    imported = from_model(model)
    assert set(imported.weights) == {"w", "v"}
    x = normal(2, 40)
    for flag, sign in ((True, 1), (False, -1)):
        np.testing.assert_allclose(
            run(imported, {"x": x, "c": np.array(flag)})["y"], sign * (x @ LARGE), rtol=1e-5, atol=1e-5
        )


def test_an_initializer_that_is_also_an_input_is_a_weight() -> None:
    model = networks.model("(float[2,40] x, float[40,50] w) => (float[2,50] y) { y = MatMul(x, w) }", w=LARGE)
    assert [port.name for port in from_model(model).inputs()] == ["x"]


def test_local_functions_are_inlined() -> None:
    text = """<ir_version: 10, opset_import: ["": 21, "own": 1]>
main (float[2,3] x) => (float[2,3] y) { h = own.Twice<scale = 3.0>(x) y = own.Twice(h) }
<domain: "own", opset_import: ["": 21]>
Twice <scale: float = 2.0> (v) => (w) { s = Constant<value_float: float = @scale>() w = Mul(v, s) }"""
    model = onnx.parser.parse_model(text)
    x = normal(2, 3)
    expected = run_model(model, {"x": x})[0]
    imported = from_model(model)
    np.testing.assert_allclose(run(imported, {"x": x})["y"], expected)
    assert [op.name for op in imported.body.ops if op.name == "onnx.Mul"] == ["onnx.Mul", "onnx.Mul"]


def test_functions_that_call_functions_keep_their_defaults() -> None:
    text = """<ir_version: 10, opset_import: ["": 21, "own": 1]>
main (float[2,3] x) => (float[2,3] y) { y = own.Outer(x) }
<domain: "own", opset_import: ["": 21, "own": 1]>
Outer (v) => (w) { u = own.Leaky(v) w = own.Leaky<slope = 0.5>(u) }
<domain: "own", opset_import: ["": 21]>
Leaky <slope: float = 0.25> (v) => (w) { w = LeakyRelu<alpha: float = @slope>(v) }"""
    found = run(from_model(onnx.parser.parse_model(text)), {"x": np.full((2, 3), -8, np.float32)})["y"]
    np.testing.assert_array_equal(found, np.full((2, 3), -1))


def test_contrib_operators_come_in_with_their_domain() -> None:
    text = "(float[2,40] x) => (float[2,50] y) { h = com.microsoft.FusedMatMul(x, w) y = com.microsoft.Gelu(h) }"
    model = networks.model(text, w=LARGE)
    x = normal(2, 40)
    expected = run_model(model, {"x": x})[0]
    imported = from_model(model)
    np.testing.assert_allclose(run(imported, {"x": x})["y"], expected, rtol=1e-6, atol=1e-6)
    assert {op.name for op in imported.body.ops} >= {"msft.FusedMatMul", "msft.Gelu"}


@pytest.mark.parametrize("opset", [11, 21])
def test_metadata_and_dynamic_dimensions_are_kept(opset: int) -> None:
    model = networks.model("(float[batch,3,h,w] x) => (float[batch,3,h,w] y) { y = Relu(x) }", opset=opset)
    helper.set_model_props(model, {"stride": "32", "names": "{0: 'größe'}"})
    imported = from_model(model)
    assert types.dims_of(imported.inputs()[0].type) == ("batch", 3, "h", "w")
    assert types.dims_of(imported.results()[0].type) == ("batch", 3, "h", "w")
    assert {p.key: p.value for p in emit(imported).proto.metadata_props} == {"stride": "32", "names": "{0: 'größe'}"}


def test_nodes_without_names_get_one_each() -> None:
    nodes = [helper.make_node("Relu", ["x"], ["a"]), helper.make_node("Relu", ["a"], ["b"], name="n")]
    nodes += [helper.make_node("Relu", ["b"], ["y"], name="n")]
    imported = from_model(onnx_model(nodes, {"x": floats(2)}, {"y": floats(2)}))
    assert [n.name for n in emit(imported).proto.graph.node] == ["Relu:a", "n", "n.1"]


def test_shapes_of_the_user_are_applied_and_inferred_on() -> None:
    model = networks.model(
        "(float[n,3,h,w] x) => (float[n,3,h2,w2] y) { y = MaxPool<kernel_shape=[2,2], strides=[2,2]>(x) }"
    )
    fixed = from_model(_copy(model), shapes=Shapes(fixed={"x": (1, 3, 48, 320)}))
    assert types.dims_of(fixed.results()[0].type) == (1, 3, 24, 160)
    named = from_model(_copy(model), shapes=Shapes(symbols={"x": {0: "batch"}}))
    assert types.dims_of(named.inputs()[0].type) == ("batch", 3, "h", "w")
    for shapes, message in (
        (Shapes(fixed={"z": (1,)}), "no input is called 'z'"),
        (Shapes(fixed={"x": (1, 3)}), "input 'x' has 4 axes"),
        (Shapes(fixed={"x": (1, 4, 8, 8)}), "axis 1 of input 'x' is fixed at 3, not 4"),
    ):
        with pytest.raises(BadInput, match=message):
            from_model(_copy(model), shapes=shapes)


def _copy(model: ModelProto) -> ModelProto:
    other = ModelProto()
    other.CopyFrom(model)
    return other


def zip_file() -> bytes:
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w") as archive:
        archive.writestr("a", "b")
    return buffer.getvalue()


BAD_FILES: dict[str, tuple[bytes, str]] = {
    "empty": (b"", r"bad\.onnx is empty"),
    "zip": (zip_file(), r"bad\.onnx is a zip archive"),
    "GGUF": (b"GGUF\x03\x00\x00\x00", "is a GGUF file"),
    "HDF5": (b"\x89HDF\r\n\x1a\n", "is an HDF5 file"),
    **{
        f"pickle {v}": (pickle.dumps({"a": 1}, protocol=v), "is a Python pickle, which qcc never loads")
        for v in range(2, 6)
    },
    "pickle 0": (pickle.dumps({"a": 1}, protocol=0), "not an ONNX model"),
    "text": (b"builtin.module {}\n", "not an ONNX model"),
    "noise": (np.random.default_rng(1).bytes(1000), "not an ONNX model"),
    "zeros": (bytes(100), "not an ONNX model"),
    "no graph": (ModelProto(ir_version=10).SerializeToString(), "not an ONNX model: it has no graph"),
}


@pytest.mark.parametrize("case", BAD_FILES)
def test_file_that_is_no_model_is_refused(tmp_path: Path, case: str) -> None:
    content, message = BAD_FILES[case]
    path = tmp_path / "bad.onnx"
    path.write_bytes(content)
    with pytest.raises(BadInput, match=message) as caught:
        read(path)
    assert str(path) in caught.value.message
    assert caught.value.hint
    assert caught.value.code == 2


def test_missing_file_and_folder_are_refused(tmp_path: Path) -> None:
    for path, message in ((tmp_path / "none.onnx", "No such file"), (tmp_path, "Is a directory")):
        with pytest.raises(BadInput, match=message):
            read(path)


def test_truncation_anywhere_is_refused_or_leaves_a_whole_model(tmp_path: Path) -> None:
    model = networks.model("(float[2,4] x) => (float[2,4] y) { h = Relu(x) y = MatMul(h, w) }", w=normal(4, 4))
    content = model.SerializeToString()
    path = tmp_path / "cut.onnx"
    refused = 0
    for length in range(len(content)):
        path.write_bytes(content[:length])
        try:
            read(path)
        except QccError as error:
            assert error.code in (2, 3)
            refused += 1
    assert refused >= len(content) - 8


def edited(text: str, edit: Callable[[ModelProto], object], **weights: np.ndarray) -> ModelProto:
    model = networks.model(text, **weights)
    edit(model)
    return model


PLAIN = "(float[2,40] x) => (float[2,50] y) { [fc] h = MatMul(x, w) y = Relu(h) }"


def set_input(index: int, name: str) -> Callable[[ModelProto], None]:
    def edit(model: ModelProto) -> None:
        model.graph.node[index].input[0] = name

    return edit


def set_value(value: float) -> np.ndarray:
    array = LARGE.copy()
    array[3, 7] = value
    return array


def sparse(model: ModelProto) -> None:
    values = onnx.numpy_helper.from_array(np.ones(1, np.float32), "w")
    indices = onnx.numpy_helper.from_array(np.zeros(1, np.int64), "indices")
    model.graph.sparse_initializer.append(helper.make_sparse_tensor(values, indices, [40, 50]))


BAD_MODELS: dict[str, tuple[ModelProto, type[QccError], str]] = {
    "cyclic": (
        edited(PLAIN, set_input(0, "y"), w=LARGE),
        BadInput,
        "'y'|cyclic|topologically|not output of any previous",
    ),
    "unknown value": (edited(PLAIN, set_input(1, "nothing"), w=LARGE), BadInput, "'?nothing'?"),
    "unknown domain": (
        edited(
            "(float[2] x) => (float[2] y) { [odd] y = other.Thing(x) }",
            lambda m: m.opset_import.append(helper.make_opsetid("other", 1)),
        ),
        NotSupported,
        "node 'odd': operator 'Thing' is of the unknown domain 'other'",
    ),
    "unknown contrib operator": (
        networks.model("(float[2] x) => (float[2] y) { [odd] y = com.microsoft.Thing(x) }"),
        NotSupported,
        "node 'odd': com.microsoft has no operator 'Thing'",
    ),
    "unknown operator": (
        networks.model("(float[2] x) => (float[2] y) { [odd] y = Thing(x) }"),
        BadInput,
        "No Op registered for Thing with domain_version of 21",
    ),
    "NaN": (networks.model(PLAIN, w=set_value(np.nan)), BadInput, r"weight 'w' holds nan at \[3, 7\]"),
    "infinity": (networks.model(PLAIN, w=set_value(-np.inf)), BadInput, r"weight 'w' holds -inf at \[3, 7\]"),
    "NaN in half precision": (
        networks.model(
            "(float16[2,40] x) => (float16[2,50] y) { y = MatMul(x, w) }", w=set_value(np.nan).astype(np.float16)
        ),
        BadInput,
        r"weight 'w' holds nan at \[3, 7\]",
    ),
    "NaN in bfloat16": (
        networks.model(
            "(float[2,40] x) => (float[2,50] y) { c = Cast<to = 1>(w) y = MatMul(x, c) }",
            w=set_value(np.nan).astype(ml_dtypes.bfloat16),
        ),
        BadInput,
        r"weight 'w' holds nan at \[3, 7\]",
    ),
    "sparse": (edited(PLAIN, sparse), NotSupported, "sparse initializer 'w'"),
    "shapes that do not fit": (
        networks.model(PLAIN, w=LARGE.T.copy()),
        BadInput,
        "onnx.MatMul 'fc': .*Incompatible dimensions",
    ),
    "attribute of the constant": (
        edited(
            "(float[2] x) => (float[2] y) { [c] k = Constant<value_float = 1.0>() y = Add(x, k) }",
            lambda m: m.graph.node[0].attribute.append(helper.make_attribute("extra", 1)),
        ),
        BadInput,
        "Unrecognized attribute: extra|'extra'",
    ),
    "data shorter than the shape": (
        edited(PLAIN, lambda m: m.graph.initializer[0].dims.append(2), w=LARGE),
        BadInput,
        "tensor 'w'",
    ),
}


@pytest.mark.parametrize("case", BAD_MODELS)
def test_model_that_cannot_be_compiled_is_refused_by_name(tmp_path: Path, case: str) -> None:
    model, error, message = BAD_MODELS[case]
    path = save(_copy(model), tmp_path)
    with pytest.raises(error, match=message) as caught:
        read(path)
    assert str(path) in caught.value.message or case == "sparse"
    assert caught.value.code == (2 if error is BadInput else 3)


def test_infinite_small_constants_are_meant() -> None:
    """A mask of -inf is no damaged weight."""
    text = "(float[2,4] x) => (float[2,4] y) { y = Add(x, mask) }"
    mask = np.array([0, 0, -np.inf, -np.inf], np.float32)
    found = run(from_model(networks.model(text, mask=mask)), {"x": np.zeros((2, 4), np.float32)})["y"]
    np.testing.assert_array_equal(found, np.broadcast_to(mask, (2, 4)))
