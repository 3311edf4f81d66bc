"""External data: mapped where they lie, never from outside the model's folder, never beyond the end of a file."""

from __future__ import annotations

import os
import tracemalloc
from pathlib import Path

import ml_dtypes
import numpy as np
import onnx
import pytest
from onnx import ModelProto, TensorProto, helper

from qcc.frontend.onnx_file import from_model, read
from qcc.ir.errors import BadInput
from qcc.ir.execute import run
from tests import networks
from tests.ir.helpers import floats, onnx_model
from tests.networks import normal

LARGE = normal(40, 50)


def save(model: ModelProto, folder: Path) -> Path:
    path = folder / "model.onnx"
    path.write_bytes(model.SerializeToString())
    return path


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
    codes = np.random.default_rng(0).integers(-8, 8, (2, 50)).astype(ml_dtypes.int4)
    weights = {"w": LARGE, "b": normal(50), "q": codes, "s": np.array(0.5, np.float32)}
    onnx.save_model(
        networks.model(text, **weights),
        tmp_path / "model.onnx",
        save_as_external_data=True,
        location="all.bin",
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
