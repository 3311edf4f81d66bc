"""The ONNX door: what comes in computes the same at every opset, and what cannot come in is refused with its reason."""

from __future__ import annotations

import io
import os
import pickle
import tracemalloc
import zipfile
from collections.abc import Callable
from pathlib import Path

import ml_dtypes
import numpy as np
import onnx
import pytest
from onnx import ModelProto, TensorProto, helper

from qcc.frontend.onnx_file import HIGHEST_OPSET, LOWEST_OPSET, Shapes, from_model, read
from qcc.ir import types
from qcc.ir.emit_onnx import emit
from qcc.ir.errors import BadInput, NotSupported, QccError
from qcc.ir.execute import run
from tests import networks
from tests.ir.helpers import floats, onnx_model, run_model

RNG = np.random.default_rng(0)


def normal(*shape: int) -> np.ndarray:
    return RNG.normal(size=shape).astype(np.float32)


def feeds_of(model: ModelProto) -> dict[str, np.ndarray]:
    """Random inputs; dynamic dimensions get 2."""
    feeds: dict[str, np.ndarray] = {}
    for value in model.graph.input:
        shape = [d.dim_value or 2 for d in value.type.tensor_type.shape.dim]
        dtype = helper.tensor_dtype_to_np_dtype(value.type.tensor_type.elem_type)
        feeds[value.name] = np.asarray(RNG.normal(size=shape) * 3).astype(dtype)
    return feeds


IMAGE = "(float[2,3,8,8] x)"
TWICE = {"s": np.array([1, 1, 2, 2], np.float32)}
NO_ROI = {"r": np.empty(0, np.float32)}
NORM = {"a": normal(3), "b": normal(3), "v": np.abs(normal(3))}
OLD_MODELS: dict[str, tuple[int, str, dict[str, np.ndarray]]] = {
    "7 clip, dropout": (
        7,
        f"{IMAGE} => (float[2,3,8,8] y) {{ d = Dropout<ratio=0.3>(x) y = Clip<min=0.0, max=0.5>(d) }}",
        {},
    ),
    "7 batch norm": (7, f"{IMAGE} => (float[2,3,8,8] y) {{ y = BatchNormalization(x, a, b, b, v) }}", NORM),
    "7 pad, slice": (
        7,
        f"{IMAGE} => (float[2,3,2,9] y) {{ p = Pad<pads=[0,0,1,0,0,0,1,1], value=2.0>(x) "
        "y = Slice<axes=[2], starts=[1], ends=[3]>(p) }",
        {},
    ),
    "7 top k": (7, f"{IMAGE} => (float[2,3,8,2] y, int64[2,3,8,2] i) {{ y, i = TopK<k=2>(x) }}", {}),
    "7 gemm": (
        7,
        "(float[2,4] x) => (float[2,3] y) { y = Gemm<transB=1>(x, w, b) }",
        {"w": normal(3, 4), "b": normal(3)},
    ),
    "7 lstm": (
        7,
        "(float[5,2,4] x) => (float[5,1,2,3] y) { y = LSTM<hidden_size=3>(x, w, r) }",
        {"w": normal(1, 12, 4), "r": normal(1, 12, 3)},
    ),
    "7 upsample nearest": (
        7,
        f'{IMAGE} => (float[2,3,12,24] y) {{ y = Upsample<mode="nearest", scales=[1.0,1.0,1.5,3.0]>(x) }}',
        {},
    ),
    "7 upsample linear": (
        7,
        f'{IMAGE} => (float[2,3,16,16] y) {{ y = Upsample<mode="linear", scales=[1.0,1.0,2.0,2.0]>(x) }}',
        {},
    ),
    "9 upsample linear": (9, f'{IMAGE} => (float[2,3,16,16] y) {{ y = Upsample<mode="linear">(x, s) }}', TWICE),
    "9 upsample by computed scales": (
        9,
        "(float[2,3,8,8] x, float[4] s) => (float[a,b,c,d] y) { k = Constant<value = float[4] {0.0, 0.0, 0.0, 0.0}>() "
        "t = Mul(s, k) o = Exp(t) y = Upsample(x, o) }",
        {},
    ),
    "9 scatter": (
        9,
        "(float[3,3] x) => (float[3,3] y) { y = Scatter<axis=0>(x, i, u) }",
        {"i": np.array([[1, 0, 2]]), "u": normal(1, 3)},
    ),
    "10 resize linear": (10, f'{IMAGE} => (float[2,3,16,16] y) {{ y = Resize<mode="linear">(x, s) }}', TWICE),
    "10 resize nearest, larger": (10, f'{IMAGE} => (float[2,3,16,16] y) {{ y = Resize<mode="nearest">(x, s) }}', TWICE),
    "10 resize nearest, smaller": (
        10,
        f'{IMAGE} => (float[2,3,6,4] y) {{ y = Resize<mode="nearest">(x, s) }}',
        {"s": np.array([1, 1, 0.75, 0.6], np.float32)},
    ),
    "10 resize by a constant node": (
        10,
        f"{IMAGE} => (float[2,3,16,16] y) "
        "{ s = Constant<value = float[4] {1.0, 1.0, 2.0, 2.0}>() y = Resize(x, s) }",
        {},
    ),
    "10 quantize": (
        10,
        "(float[2,3] x) => (float[2,3] y) { q = QuantizeLinear(x, s, z) y = DequantizeLinear(q, s, z) }",
        {"s": np.array(0.1, np.float32), "z": np.array(3, np.uint8)},
    ),
    "11 softmax over several axes": (11, f"{IMAGE} => (float[2,3,8,8] y) {{ y = Softmax(x) }}", {}),
    "11 log softmax, dynamic": (11, "(float[n,3,h,8] x) => (float[n,3,h,8] y) { y = LogSoftmax<axis=2>(x) }", {}),
    "11 axes as attributes": (
        11,
        f"{IMAGE} => (float[2,3] y) {{ u = Unsqueeze<axes=[0,2]>(x) q = Squeeze<axes=[0,2]>(u) "
        "r = ReduceSum<axes=[2], keepdims=0>(q) y = ReduceMax<axes=[-1], keepdims=0>(r) }",
        {},
    ),
    "11 split": (11, f"{IMAGE} => (float[2,3,3,8] y, float[2,3,5,8] z) {{ y, z = Split<axis=2, split=[3,5]>(x) }}", {}),
    "11 resize": (11, f'{IMAGE} => (float[2,3,16,16] y) {{ y = Resize<mode="cubic">(x, r, s) }}', {**TWICE, **NO_ROI}),
    "11 in subgraphs": (
        11,
        "(float[2,3] x, bool c) => (float[2,3] y) { y = If<"
        "then_branch = t () => (float[2,3] a) { u = Unsqueeze<axes=[0]>(x) a = Squeeze<axes=[0]>(u) }, "
        "else_branch = e () => (float[2,3] b) { b = Softmax<axis=0>(x) }>(c) }",
        {},
    ),
    "11 contrib": (
        11,
        "(float[2,3] x) => (float[2] y) { h = com.microsoft.Gelu(x) y = ReduceSum<axes=[1], keepdims=0>(h) }",
        {},
    ),
    "12 dropout, arg max": (12, f"{IMAGE} => (int64[2,3,1,8] y) {{ d = Dropout(x) y = ArgMax<axis=2>(d) }}", {}),
    "13 split, reduce": (
        13,
        f"{IMAGE} => (float[2,3,4,1] y, float[2,3,4,8] z) {{ h, z = Split<axis=2>(x) y = ReduceMean<axes=[3]>(h) }}",
        {},
    ),
    "16 grid sample": (
        16,
        '(float[1,1,4,4] x, float[1,2,2,2] g) => (float[1,1,2,2] y) { y = GridSample<mode="bicubic">(x, g) }',
        {},
    ),
    "17 layer norm": (
        17,
        "(float[2,3,8] x) => (float[2,3,8] y) { y = LayerNormalization(x, a, b) }",
        {"a": normal(8), "b": normal(8)},
    ),
    "17 dft": (17, "(float[1,8,6,1] x) => (float[1,8,6,2] y) { y = DFT<axis=2>(x) }", {}),
    "18 split": (18, "(float[2,7] x) => (float[2,4] y, float[2,3] z) { y, z = Split<axis=1, num_outputs=2>(x) }", {}),
    "20 gelu": (20, f'{IMAGE} => (float[2,3,8,8] y) {{ y = Gelu<approximate="tanh">(x) }}', {}),
    "21 blocked weights": (
        21,
        "(float[2,64] x) => (float[2,4] y) { d = DequantizeLinear<axis=0, block_size=32>(w, s) y = MatMul(x, d) }",
        {"w": RNG.integers(-8, 8, (64, 4)).astype(ml_dtypes.int4), "s": np.abs(normal(2, 4))},
    ),
    "23 rms norm, attention": (
        23,
        "(float[1,2,5,8] x) => (float[1,2,5,8] y) { h = RMSNormalization(x, a) y = Attention(h, h, h) }",
        {"a": normal(8)},
    ),
}


@pytest.mark.parametrize("case", OLD_MODELS)
def test_model_computes_the_same_after_import(case: str) -> None:
    opset, text, weights = OLD_MODELS[case]
    model = networks.model(text, opset=opset, **weights)
    feeds = feeds_of(model)
    expected = run_model(model, feeds)
    imported = from_model(model)
    for found in (list(run(imported, feeds).values()), run_model(emit(imported).embed(imported.weights), feeds)):
        for left, right in zip(found, expected, strict=True):
            assert left.dtype == right.dtype
            np.testing.assert_allclose(left, right, rtol=1e-6, atol=1e-6)
    assert emit(imported).proto.opset_import[0].version == max(opset, LOWEST_OPSET)


REFUSED_OPSETS = {
    "hardmax over several axes": (
        11,
        f"{IMAGE} => (float[2,3,8,8] y) {{ [h] y = Hardmax(x) }}",
        {},
        "node 'h': Hardmax had another meaning",
    ),
    "resize by scales on both sides of 1": (
        10,
        f"{IMAGE} => (float[2,3,4,16] y) {{ [r] y = Resize(x, s) }}",
        {"s": np.array([1, 1, 0.5, 2], np.float32)},
        "node 'r': how Resize rounded at opset 10 depends on its scales",
    ),
    "resize by computed scales": (
        10,
        "(float[2,3,8,8] x, float[4] s) => (float[a,b,c,d] y) { [r] y = Resize(x, s) }",
        {},
        "node 'r': how Resize rounded at opset 10 depends on its scales",
    ),
}


@pytest.mark.parametrize("case", REFUSED_OPSETS)
def test_old_operator_that_would_compute_something_else_is_not_supported(case: str) -> None:
    opset, text, weights, message = REFUSED_OPSETS[case]
    with pytest.raises(NotSupported, match=message) as caught:
        from_model(networks.model(text, opset=opset, **weights))
    assert "opset" in caught.value.hint


def test_scan_of_opset_8_is_not_supported() -> None:
    body = helper.make_graph(
        [helper.make_node("Add", ["s", "r"], ["t"]), helper.make_node("Identity", ["t"], ["o"])],
        "body",
        [helper.make_tensor_value_info(n, TensorProto.FLOAT, [2]) for n in ("s", "r")],
        [helper.make_tensor_value_info(n, TensorProto.FLOAT, [2]) for n in ("t", "o")],
    )
    node = helper.make_node("Scan", ["", "i", "x"], ["y", "z"], body=body, num_scan_inputs=1)
    model = onnx_model(
        [node], {"i": floats(1, 2), "x": floats(1, 3, 2)}, {"y": floats(1, 2), "z": floats(1, 3, 2)}, opset=8
    )
    with pytest.raises(NotSupported, match="Scan had another meaning before opset 9"):
        from_model(model)


@pytest.mark.parametrize(
    ("opset", "word"), [(5, "older than 7"), (6, "older than 7"), (27, f"newer than {HIGHEST_OPSET}")]
)
def test_opset_outside_the_range_is_not_supported(opset: int, word: str) -> None:
    model = networks.model("(float[2] x) => (float[2] y) { y = Relu(x) }")
    model.opset_import[0].version = opset
    with pytest.raises(NotSupported, match=f"opset {opset} is {word}") as caught:
        from_model(model)
    assert caught.value.code == 3


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


def external(tensor: TensorProto, location: str, offset: object = 0, length: object = None) -> None:
    """Let `tensor` say that its data lie in a file."""
    tensor.ClearField("raw_data")
    tensor.data_location = TensorProto.EXTERNAL
    for key, value in (("location", location), ("offset", offset), ("length", length)):
        if value is not None:
            tensor.external_data.add(key=key, value=str(value))


def external_model(location: str = "w.bin", offset: object = 0, length: object = None) -> ModelProto:
    model = networks.model("(float[2,40] x) => (float[2,50] y) { y = MatMul(x, w) }", w=LARGE)
    external(model.graph.initializer[0], location, offset, length)
    return model


def mapped(array: np.ndarray) -> bool:
    while isinstance(array, np.ndarray):
        if isinstance(array, np.memmap):
            return True
        array = array.base  # pyright: ignore[reportAssignmentType]
    return False


@pytest.mark.parametrize("offset", [0, 64, 3])
def test_external_data_are_mapped_where_they_lie(tmp_path: Path, offset: int) -> None:
    (tmp_path / "w.bin").write_bytes(bytes(offset) + LARGE.tobytes())
    imported = read(save(external_model(offset=offset, length=LARGE.nbytes), tmp_path))
    assert mapped(imported.weights["w"])
    x = normal(2, 40)
    np.testing.assert_allclose(run(imported, {"x": x})["y"], x @ LARGE, rtol=1e-5, atol=1e-5)


def test_external_data_as_the_onnx_library_writes_them(tmp_path: Path) -> None:
    text = (
        "(float[2,40] x) => (float[2,50] y) { h = MatMul(x, w) i = Add(h, b) d = DequantizeLinear(q, s) y = Add(i, d) }"
    )
    codes = RNG.integers(-8, 8, (2, 50)).astype(ml_dtypes.int4)
    weights = {"w": LARGE, "b": normal(50), "q": codes, "s": np.array(0.5, np.float32)}
    onnx.save_model(
        networks.model(text, **weights),
        tmp_path / "model.onnx",
        save_as_external_data=True,
        location="weights/all.bin" if os.name == "nt" else "all.bin",
        size_threshold=0,
    )
    imported = read(tmp_path / "model.onnx")
    assert mapped(imported.weights["w"])
    x = normal(2, 40)
    expected = x @ LARGE + weights["b"] + codes.astype(np.float32) * 0.5
    np.testing.assert_allclose(run(imported, {"x": x})["y"], expected, rtol=1e-5, atol=1e-5)


def test_external_data_of_constant_nodes_and_subgraphs_are_read(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir("/")
    (tmp_path / "w.bin").write_bytes(LARGE.tobytes() * 2)
    then_branch = helper.make_graph(
        [helper.make_node("Add", ["k", "v"], ["a"])], "t", [], [helper.make_tensor_value_info("a", 1, [40, 50])]
    )
    else_branch = helper.make_graph(
        [helper.make_node("Neg", ["k"], ["b"])], "e", [], [helper.make_tensor_value_info("b", 1, [40, 50])]
    )
    for graph, name in ((then_branch, "v"),):
        tensor = graph.initializer.add(name=name, data_type=TensorProto.FLOAT, dims=[40, 50])
        external(tensor, "w.bin", LARGE.nbytes, LARGE.nbytes)
    inner = TensorProto(data_type=TensorProto.FLOAT, dims=[40, 50])
    external(inner, "w.bin", 0, LARGE.nbytes)
    nodes = [
        helper.make_node("Constant", [], ["k"], value=inner),
        helper.make_node("If", ["c"], ["y"], then_branch=then_branch, else_branch=else_branch),
    ]
    model = onnx_model(nodes, {"c": (TensorProto.BOOL, [])}, {"y": floats(40, 50)})
    imported = read(save(model, tmp_path))
    np.testing.assert_array_equal(run(imported, {"c": np.array(True)})["y"], 2 * LARGE)


BAD_EXTERNAL = {
    "missing file": (external_model("none.bin"), "the external data file 'none.bin' of tensor 'w' is missing"),
    "no location": (external_model(""), "the external data file '' of tensor 'w' is missing"),
    "parent folder": (
        external_model("../secret.bin"),
        r"tensor 'w' points outside the model's folder: '\.\./secret\.bin'",
    ),
    "absolute path": (external_model("/etc/passwd"), "tensor 'w' points outside the model's folder: '/etc/passwd'"),
    "a folder": (external_model("sub"), "the external data file 'sub' of tensor 'w' is missing"),
    "link to the outside": (external_model("link.bin"), "tensor 'w' points outside the model's folder: 'link.bin'"),
    "too short": (external_model("short.bin"), r"tensor 'w' needs 8000 bytes at 0 of short\.bin, which has 7999"),
    "offset past the end": (external_model(offset=1), r"tensor 'w' needs 8000 bytes at 1 of w\.bin, which has 8000"),
    "negative offset": (external_model(offset=-4), "tensor 'w' needs 8000 bytes at -4"),
    "offset is no number": (external_model(offset="x"), "tensor 'w': its external offset or length is not a number"),
    "another length": (external_model(length=4000), "tensor 'w' needs 8000 bytes"),
}


@pytest.mark.parametrize("case", BAD_EXTERNAL)
def test_external_data_that_cannot_be_read_are_refused(tmp_path: Path, case: str) -> None:
    folder = tmp_path / "model"
    (folder / "sub").mkdir(parents=True)
    (folder / "w.bin").write_bytes(LARGE.tobytes())
    (folder / "short.bin").write_bytes(LARGE.tobytes()[:-1])
    (tmp_path / "secret.bin").write_bytes(LARGE.tobytes())
    (folder / "link.bin").symlink_to(tmp_path / "secret.bin")
    model, message = BAD_EXTERNAL[case]
    with pytest.raises(BadInput, match=message) as caught:
        read(save(model, folder))
    assert caught.value.code == 2


def test_a_model_in_memory_must_hold_its_weights() -> None:
    with pytest.raises(BadInput, match="tensor 'w' lies in a file"):
        from_model(external_model())


@pytest.mark.slow
def test_external_data_beyond_2_gib_are_mapped_not_read(tmp_path: Path) -> None:
    rows, columns = 550_000, 1000
    model = networks.model(f"(float[1,{rows}] x) => (float[1,{columns}] y) {{ y = MatMul(x, w) }}")
    tensor = model.graph.initializer.add(name="w", data_type=TensorProto.FLOAT, dims=[rows, columns])
    external(tensor, "w.bin", 0, rows * columns * 4)
    with (tmp_path / "w.bin").open("wb") as file:
        os.truncate(file.fileno(), rows * columns * 4)
    path = save(model, tmp_path)
    tracemalloc.start()
    imported = read(path)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert imported.weights["w"].nbytes > 1 << 31
    assert mapped(imported.weights["w"])
    assert peak < 50_000_000


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
