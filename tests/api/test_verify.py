"""`verify` finds what is wrong with an artifact: changed files, changed numbers, and the layer that is worst."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from onnx import ModelProto, TensorProto, numpy_helper

from qcc import api
from qcc.api import Artifact, VerifyReport
from qcc.backends.artifact import read_manifest, write_manifest
from qcc.ir.errors import BadInput
from qcc.ir.weights import locate
from tests.networks import model, normal

InScheme = Callable[..., Artifact]

NETWORK = """(float[N,64] x) => (float[N,24] y) {
    t = Tanh(x) [fc1] a = MatMul(t, w1) [act] b = Relu(a) [fc2] c = MatMul(b, w2) y = Tanh(c) }"""
SCHEMES = ["W8A16", "W4A16", "W4A16_ASYM", "W2A16", "W8A8", "W8A8_DYNAMIC", "W4A8"]


def network() -> ModelProto:
    """Rows of the weights differ in size, as those of trained networks do: exchanging scales must show."""
    sizes = np.exp(np.linspace(-1.5, 1.5, 48, dtype=np.float32))
    return model(NETWORK, w1=normal(64, 48, scale=0.2) * sizes, w2=normal(48, 24, seed=1, scale=0.1))


@pytest.fixture(scope="module")
def originals(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    folders = {scheme: tmp_path_factory.mktemp("originals") / f"{scheme}.qcc" for scheme in SCHEMES}
    samples = [{"x": normal(4, 64, seed=s)} for s in range(3)]
    for scheme, folder in folders.items():
        api.compile(network(), scheme=scheme, include="re:fc", calibration=samples, output=folder)
    return folders


def bytes_of(folder: Path, key: str, change: Callable[[np.ndarray], np.ndarray], dtype: Any = np.uint8) -> None:
    """Rewrite a tensor in place, and the manifest's hashes, so that only numbers can tell.

    The model reads large tensors from the weights file and has small ones inside.
    """
    path = folder / "weights.safetensors"
    weight, part = key.split(".")  # smoothing may have put a word between them
    (extent,) = (e for name, e in locate(path).items() if name.startswith(f"{weight}.") and name.endswith(f".{part}"))
    data = bytearray(path.read_bytes())
    place = slice(extent.offset, extent.offset + extent.length)
    before = bytes(data[place])
    after = change(np.frombuffer(before, dtype).copy()).astype(dtype).tobytes()
    assert after != before
    data[place] = after
    path.write_bytes(bytes(data))
    in_model(folder, lambda proto: _exchange(proto, before, after))


def _exchange(proto: ModelProto, before: bytes, after: bytes) -> None:
    for tensor in proto.graph.initializer:
        if tensor.data_location != TensorProto.EXTERNAL and tensor.raw_data == before:
            tensor.raw_data = after


def swap_nibbles(array: np.ndarray) -> np.ndarray:
    return (array >> 4) | (array << 4)


def swap_pairs(array: np.ndarray) -> np.ndarray:
    return array.reshape(-1, 2)[:, ::-1].reshape(-1)


def swap_two(array: np.ndarray) -> np.ndarray:
    """Exchange the scales of the first and the last row."""
    rows = array.reshape(48, -1).copy()
    rows[[0, -1]] = rows[[-1, 0]]
    return rows.reshape(-1)


def shift(array: np.ndarray) -> np.ndarray:
    """One more in the low nibble of each byte: every second zero point moves by one."""
    return (array & 0xF0) | ((array + 1) & 0x0F)


def in_model(folder: Path, change: Callable[[ModelProto], None]) -> None:
    proto = onnx.load(folder / "model.onnx", load_external_data=False)
    change(proto)
    onnx.save(proto, folder / "model.onnx")
    write_manifest(folder, read_manifest(folder))


def shift_activation_zero_point(proto: ModelProto) -> None:
    """Let the first QuantizeLinear use another zero point than the DequantizeLinear that reads its codes."""
    quantize = next(n for n in proto.graph.node if n.op_type == "QuantizeLinear")
    zero = next(numpy_helper.to_array(t) for t in proto.graph.initializer if t.name == quantize.input[2])
    proto.graph.initializer.append(numpy_helper.from_array(zero + np.uint8(6), "shifted"))
    quantize.input[2] = "shifted"


def take_the_scale_of_another_activation(proto: ModelProto) -> None:
    """Of one only: exchanging both would cancel out."""
    tensors = {t.name: numpy_helper.to_array(t) for t in proto.graph.initializer if t.data_type == TensorProto.FLOAT}
    nodes = [n for n in proto.graph.node if n.op_type == "DequantizeLinear" and tensors[n.input[1]].ndim == 0]
    first, second = nodes[0], next(n for n in nodes if tensors[n.input[1]] != tensors[nodes[0].input[1]])
    first.input[1] = second.input[1]


MUTATIONS: dict[str, tuple[str, Callable[[Path], None]]] = {
    "nibbles swapped": ("W4A16", lambda f: bytes_of(f, "w1.codes", swap_nibbles)),
    "nibbles swapped, int8 activations": ("W4A8", lambda f: bytes_of(f, "w1.codes", swap_nibbles)),
    "pairs of bytes swapped": ("W8A16", lambda f: bytes_of(f, "w1.codes", swap_pairs)),
    "crumbs swapped": ("W2A16", lambda f: bytes_of(f, "w2.codes", swap_nibbles)),
    "columns swapped": ("W8A8_DYNAMIC", lambda f: bytes_of(f, "w1.codes", swap_pairs)),
    "sign bits flipped": ("W8A8", lambda f: bytes_of(f, "w2.codes", lambda a: a ^ 0x80)),
    "offset left out": ("W4A16", lambda f: bytes_of(f, "w2.codes", lambda a: a ^ 0x88)),
    "scales of two rows exchanged": ("W4A16", lambda f: bytes_of(f, "w1.scale", swap_two, np.float32)),
    "scales of two columns exchanged": ("W8A8", lambda f: bytes_of(f, "w1.scale", swap_two, np.float32)),
    "zero points shifted by one": ("W4A16_ASYM", lambda f: bytes_of(f, "w1.zero", shift)),
    "zero points of two bits shifted": ("W2A16", lambda f: bytes_of(f, "w1.zero", lambda a: a ^ 0x55)),
    "zero point of an activation shifted": ("W8A8", lambda f: in_model(f, shift_activation_zero_point)),
    "scale of another activation": ("W8A8", lambda f: in_model(f, take_the_scale_of_another_activation)),
}


@pytest.mark.parametrize("mutation", MUTATIONS)
def test_a_silent_error_in_the_numbers_is_found(mutation: str, originals: dict[str, Path], tmp_path: Path) -> None:
    scheme, mutate = MUTATIONS[mutation]
    folder = Path(shutil.copytree(originals[scheme], tmp_path / "mutant.qcc"))
    whole = api.verify(folder)
    assert whole.ok
    mutate(folder)
    found = api.verify(folder)
    assert found.files_ok, "the hashes were mended: only the numbers are wrong"
    assert not found.ok
    assert found.sqnr_db < whole.sqnr_db - 2.5
    assert "but the manifest says" in found.failures[0]


def test_the_worst_layer_is_the_one_that_was_damaged(originals: dict[str, Path], tmp_path: Path) -> None:
    for layer, key in (("fc1", "w1.codes"), ("fc2", "w2.codes")):
        folder = Path(shutil.copytree(originals["W8A16"], tmp_path / layer))
        if layer == "fc2":
            bytes_of(folder, key, lambda a: a ^ 0x80)
        else:
            bytes_of(folder, key, swap_pairs)
        worst = api.verify(folder).worst
        assert {w.node for w in worst} == {"fc1", "fc2"}
        assert (worst[0].node == layer) or layer == "fc1", "what follows a damaged layer is wrong as well"
        assert next(w for w in worst if w.node == layer).sqnr_db < 10


@pytest.mark.parametrize("scheme", SCHEMES)
def test_an_untouched_artifact_is_right_everywhere(scheme: str, originals: dict[str, Path]) -> None:
    report = api.verify(originals[scheme])
    assert report.ok
    assert not report.failures
    assert report.ran_on == ("cpu",)
    assert [w.sqnr_db for w in report.worst] == sorted(w.sqnr_db for w in report.worst)
    assert {w.node for w in report.worst} == {"fc1", "fc2"}


def test_changed_files_are_a_report_and_not_an_error(originals: dict[str, Path], tmp_path: Path) -> None:
    folder = Path(shutil.copytree(originals["W8A16"], tmp_path / "changed.qcc"))
    (folder / "weights.safetensors").unlink()
    (folder / "notes.txt").write_text("mine")
    report = api.verify(folder)
    assert not report.ok
    assert not report.files_ok
    assert set(report.changed) == {"weights.safetensors", "notes.txt"}
    assert "weights.safetensors" in report.failures[0]


def test_gates_are_kept(originals: dict[str, Path]) -> None:
    folder = originals["W8A16"]
    assert api.verify(folder, min_sqnr=30, max_error=1).ok
    for gates in ({"min_sqnr": 150.0}, {"max_error": 1e-9}):
        report = api.verify(folder, **gates)
        assert not report.ok
        assert report.files_ok
        assert len(report.failures) == 1
        with pytest.raises(BadInput, match="is not a number"):
            api.verify(folder, **dict.fromkeys(gates, float("nan")))


def test_against_the_model_new_inputs_are_compared(originals: dict[str, Path], tmp_path: Path) -> None:
    path = tmp_path / "net.onnx"
    onnx.save(network(), path)
    for subject in (path, network()):
        report = api.verify(originals["W8A16"], subject, samples=3)
        assert report.ok
        assert report.sqnr_db > 30
    other = model(NETWORK, w1=normal(64, 48, seed=5), w2=normal(48, 24, seed=6))
    assert api.verify(originals["W8A16"], other).sqnr_db < 5
    with pytest.raises(BadInput, match="the model takes"):
        api.verify(originals["W8A16"], model("(float[N,64] q) => (float[N,64] y) { y = Relu(q) }"))
    with pytest.raises(BadInput, match="count is 0"):
        api.verify(originals["W8A16"], path, samples=0)


def test_samples_that_were_exchanged_are_refused(originals: dict[str, Path], tmp_path: Path) -> None:
    folder = Path(shutil.copytree(originals["W8A16"], tmp_path / "other.qcc"))
    other = api.compile(network(), scheme="W8A16")
    shutil.copy(other.folder / "samples.npz", folder / "samples.npz")
    write_manifest(folder, read_manifest(folder))
    with pytest.raises(BadInput, match="not those that were measured"):
        api.verify(folder)


def test_an_artifact_object_is_verified_where_it_lies(in_scheme: InScheme) -> None:
    artifact = in_scheme("W8A8")
    report = api.verify(artifact)
    assert isinstance(report, VerifyReport)
    assert report == api.verify(artifact.folder)
