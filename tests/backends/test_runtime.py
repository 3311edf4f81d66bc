"""Loading and running artifacts: arguments are checked, threads share a session, torch is never needed."""

from __future__ import annotations

import subprocess
import sys
import threading
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from qcc.backends.artifact import read_manifest, write_manifest
from qcc.backends.runtime import Artifact, load
from qcc.ir.errors import BadInput
from tests.networks import normal

X, I = normal(3, 32), np.arange(6).reshape(3, 2)  # noqa: E741 - the network calls it i


@pytest.fixture(scope="module")
def loaded(compiled: Path) -> Artifact:
    return load(compiled, threads=1)


def test_arrays_go_in_by_order_by_name_or_as_one_mapping(loaded: Artifact) -> None:
    expected = loaded(X, I)
    assert list(expected) == ["y", "z"]
    assert expected["y"].shape == (3, 8)
    assert np.array_equal(expected["z"], I.astype(np.float32))
    for outputs in (loaded(x=X, i=I), loaded({"x": X, "i": I}), loaded(X, i=I), loaded({"x": X}, i=I)):
        assert all(np.array_equal(outputs[name], expected[name]) for name in expected)


@pytest.mark.parametrize(
    ("args", "named", "message"),
    [
        ((), {}, "input 'x' is missing"),
        ((X,), {}, "input 'i' is missing"),
        ((X, I, X), {}, "3 arrays were given"),
        ((), {"x": X, "i": I, "mask": X}, "unknown input 'mask'"),
        ((X[:, :31], I), {}, r"input 'x' has shape \[3, 31\]"),
        ((X[0], I), {}, r"input 'x' has shape \[32\]"),
        ((X, I[..., None]), {}, r"input 'i' has shape \[3, 2, 1\]"),
        ((X.astype(np.complex64), I), {}, "dtype complex64"),
        ((X.astype(np.int32), I), {}, "dtype int32"),
        ((X, I.astype(np.float32)), {}, "dtype float32"),
        ((X, I.astype(np.uint64)), {}, "dtype uint64"),
        ((X.astype("U"), I), {}, "dtype str"),
        ((np.full((3, 32), None), I), {}, "dtype object"),
    ],
)
def test_wrong_arguments_are_named(
    args: tuple[Any, ...], named: dict[str, Any], message: str, loaded: Artifact
) -> None:
    with pytest.raises(BadInput, match=message) as caught:
        loaded(*args, **named)
    if "were given" not in message:
        assert "float32 [N, 32]" in caught.value.hint or "int64 [N, K]" in caught.value.hint


@pytest.mark.parametrize("dtype", [np.float64, np.float16, np.float32])
def test_other_floats_are_converted(dtype: type, loaded: Artifact) -> None:
    given = X.astype(dtype)
    assert np.array_equal(loaded(given, I)["y"], loaded(given.astype(np.float32), I)["y"])


@pytest.mark.parametrize("dtype", [np.int8, np.uint8, np.int32, np.uint32])
def test_narrower_integers_are_widened(dtype: type, loaded: Artifact) -> None:
    assert np.array_equal(loaded(X, I.astype(dtype))["z"], loaded(X, I)["z"])


def test_lists_views_and_other_byte_orders_are_taken(loaded: Artifact) -> None:
    expected = loaded(X, I)["y"]
    assert np.array_equal(loaded(X.tolist(), I.tolist())["y"], expected)
    assert np.array_equal(loaded(np.asfortranarray(X), I[:, ::-1])["y"], expected)
    assert np.array_equal(loaded(X.astype(">f4"), I.astype(">i8"))["y"], expected)
    assert loaded(X[:0], I[:0])["y"].shape == (0, 8)


def test_inputs_that_contradict_each_other_are_an_error_of_the_user(compiled: Path, tmp_path: Path) -> None:
    from qcc import api
    from tests.networks import model

    artifact = api.compile(model("(float[N,4] x, float[N,4] v) => (float[N,4] y) { y = Add(x, v) }"), scheme="float")
    with pytest.raises(BadInput, match="does not run on these inputs"):
        artifact(normal(3, 4), normal(2, 4))


def test_threads_share_a_session(compiled: Path) -> None:
    artifact = load(compiled, threads=1)
    inputs = [normal(3, 32, seed=s) for s in range(8)]
    expected = [load(compiled, threads=1)(x, I)["y"] for x in inputs]
    wrong: list[int] = []
    start = threading.Barrier(8)

    def work(index: int) -> None:
        start.wait()
        for _ in range(20):
            if not np.array_equal(artifact(inputs[index], I)["y"], expected[index]):
                wrong.append(index)

    threads = [threading.Thread(target=work, args=(index,)) for index in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not wrong


def test_running_needs_neither_torch_nor_the_compiler(compiled: Path) -> None:
    script = f"""
import sys
import numpy as np
import qcc
artifact = qcc.load({str(compiled)!r}, threads=1)
y = artifact(np.zeros((3, 32), np.float32), np.zeros((3, 2), np.int64))["y"]
assert y.shape == (3, 8)
for name in ("torch", "transformers", "onnxscript", "tvm"):
    assert name not in sys.modules, name
"""
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr


def test_an_artifact_can_be_saved_elsewhere(compiled: Path, tmp_path: Path) -> None:
    artifact = load(compiled)
    copy = artifact.save(tmp_path / "sub" / "copy.qcc")
    assert copy.folder == tmp_path / "sub" / "copy.qcc"
    assert {p.name: p.read_bytes() for p in copy.folder.iterdir()} == {
        p.name: p.read_bytes() for p in compiled.iterdir()
    }
    with pytest.raises(BadInput, match="exists"):
        artifact.save(copy.folder)
    assert load(copy.save(copy.folder, force=True).folder)(X, I)["y"].shape == (3, 8)


def test_loading_refuses_what_was_changed(artifact: Path) -> None:
    (artifact / "model.onnx").write_bytes(b"")
    with pytest.raises(BadInput, match="changed since it was compiled"):
        load(artifact)


def test_a_model_that_onnxruntime_does_not_load_is_an_error_of_the_user(artifact: Path) -> None:
    manifest = read_manifest(artifact)
    (artifact / "model.onnx").write_bytes(b"\x08\x0a\x12")
    write_manifest(artifact, manifest)
    with pytest.raises(BadInput, match="does not load the model"):
        load(artifact)(X, I)
    (artifact / "model.onnx").unlink()
    write_manifest(artifact, manifest)
    with pytest.raises(BadInput, match="does not load the model"):
        load(artifact)(X, I)


@pytest.mark.parametrize("backend", ["tvm2", "..", "__pycache__", ""])
def test_a_backend_that_is_not_there_is_named(backend: str, artifact: Path) -> None:
    write_manifest(artifact, read_manifest(artifact).model_copy(update={"backend": backend}))
    with pytest.raises(BadInput, match="which this qcc does not have"):
        load(artifact)(X, I)


def test_threads_must_not_be_negative(compiled: Path) -> None:
    with pytest.raises(BadInput, match="-1 threads"):
        load(compiled, threads=-1)


def test_the_object_says_what_it_is(loaded: Artifact) -> None:
    text = repr(loaded)
    assert "W8A16" in text
    assert "dB" in text
    assert [p.name for p in loaded.inputs] == ["x", "i"]
    assert [p.shape for p in loaded.outputs] == [["N", 8], ["N", "K"]]


def test_results_do_not_change_when_their_inputs_do(loaded: Artifact) -> None:
    given: NDArray[np.float32] = X.copy()
    first = loaded(given, I)["y"]
    kept = first.copy()
    given[:] = 0
    loaded(given, I)
    assert np.array_equal(first, kept)
