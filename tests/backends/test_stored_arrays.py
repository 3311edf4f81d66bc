"""Arrays in `.npz` files: written under any name, text included, and read without trust; the samples of an artifact."""

from __future__ import annotations

import io
import zipfile
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from qcc.backends.arrays import read_arrays, write_arrays
from qcc.backends.samples import SPOTS, StoredSamples, spot_values
from qcc.ir.errors import BadInput
from tests.networks import normal


def test_any_name_and_dtype_comes_back(tmp_path: Path) -> None:
    arrays = {
        "file": normal(2, 3),
        "allow_pickle": np.arange(5),
        "a/b.c": np.array(True),
        "": np.zeros((0, 4), np.float16),
        "text": np.array([["ja", "näin"], ["", "x"]], np.object_),
    }
    for compress in (False, True):
        write_arrays(tmp_path / "x.npz", arrays, compress=compress)
        found = read_arrays(tmp_path / "x.npz", hint="")
        assert list(found) == list(arrays)
        for name, array in arrays.items():
            assert np.array_equal(found[name], array)
            assert name == "text" or found[name].dtype == array.dtype
        with np.load(tmp_path / "x.npz", allow_pickle=False) as data:
            assert np.array_equal(data["file"], arrays["file"]), "numpy reads it too"


def test_equal_arrays_give_equal_bytes(tmp_path: Path) -> None:
    for name in ("a", "b"):
        write_arrays(tmp_path / name, {"x": normal(100)}, compress=True)
    assert (tmp_path / "a").read_bytes() == (tmp_path / "b").read_bytes()


def archive(**members: bytes) -> bytes:
    stream = io.BytesIO()
    with zipfile.ZipFile(stream, "w") as file:
        for name, data in members.items():
            file.writestr(f"{name}.npy", data)
    return stream.getvalue()


def npy(array: np.ndarray) -> bytes:
    stream = io.BytesIO()
    np.save(stream, array, allow_pickle=True)
    return stream.getvalue()


def damaged(data: bytes) -> bytes:
    """A compressed archive with some bytes of its first member changed."""
    return data[:60] + bytes(b ^ 0xFF for b in data[60:80]) + data[80:]


def compressed() -> bytes:
    stream = io.BytesIO()
    np.savez_compressed(stream, x=normal(50, 50))
    return stream.getvalue()


FILES: dict[str, Callable[[], bytes]] = {
    "empty": lambda: b"",
    "text": lambda: b"hello",
    "an .npy file": lambda: npy(normal(3)),
    "cut": lambda: compressed()[:-30],
    "half": lambda: compressed()[: len(compressed()) // 2],
    "changed bytes": lambda: damaged(compressed()),
    "pickled": lambda: archive(x=npy(np.array([{}], np.object_))),
    "no array": lambda: archive(x=b"not an array"),
    "a cut member": lambda: archive(x=npy(normal(50))[:-8]),
    "a huge shape": lambda: archive(x=npy(normal(7)).replace(b"(7,)", b"(700000000000000,)"[:18])),
}


@pytest.mark.parametrize("kind", FILES)
def test_a_file_that_holds_no_plain_arrays_is_refused(kind: str, tmp_path: Path) -> None:
    path = tmp_path / "x.npz"
    path.write_bytes(FILES[kind]())
    with pytest.raises(BadInput) as caught:
        read_arrays(path, hint="do this")
    assert str(path) in caught.value.message
    assert caught.value.hint == "do this"


def test_a_missing_file_and_a_folder_are_refused(tmp_path: Path) -> None:
    with pytest.raises(BadInput, match="no such file"):
        read_arrays(tmp_path / "nowhere.npz", hint="")
    with pytest.raises(BadInput):
        read_arrays(tmp_path, hint="")


def stored() -> StoredSamples:
    inputs = [{"x": normal(2, 3, seed=s), "file": np.arange(2)} for s in range(3)]
    outputs = [{"y": normal(2, seed=s), "words": np.array(["a", "bc"], np.object_)} for s in range(3)]
    return StoredSamples(inputs, outputs, [normal(SPOTS), np.zeros(0, np.float32)])


def test_samples_come_back(tmp_path: Path) -> None:
    before = stored()
    before.save(tmp_path / "s.npz", ["x", "file"], ["y", "words"])
    after = StoredSamples.open(tmp_path / "s.npz", ["x", "file"], ["y", "words"])
    for mine, theirs in ((before.inputs, after.inputs), (before.outputs, after.outputs)):
        assert len(mine) == len(theirs)
        for a, b in zip(mine, theirs, strict=True):
            assert all(np.array_equal(a[name], b[name]) for name in a)
    assert [s.shape for s in after.spots] == [(SPOTS,), (0,)]


def test_samples_of_a_network_without_inputs_come_back(tmp_path: Path) -> None:
    StoredSamples([{}, {}], [{"y": normal(2)}] * 2, []).save(tmp_path / "s.npz", [], ["y"])
    assert len(StoredSamples.open(tmp_path / "s.npz", [], ["y"]).inputs) == 2


def test_damaged_samples_are_refused(tmp_path: Path) -> None:
    path = tmp_path / "s.npz"
    stored().save(path, ["x", "file"], ["y", "words"])
    with pytest.raises(BadInput, match=r"in\.0\.2.*missing"):
        StoredSamples.open(path, ["x", "file", "more"], ["y", "words"])
    path.write_bytes(path.read_bytes()[:-40])
    with pytest.raises(BadInput) as caught:
        StoredSamples.open(path, ["x", "file"], ["y", "words"])
    assert "compile the model again" in caught.value.hint


def test_spot_values_are_the_same_places_for_the_same_layer() -> None:
    array = normal(7, 11, 13)
    assert np.array_equal(spot_values(array, 3), spot_values(array, 3))
    assert not np.array_equal(spot_values(array, 3), spot_values(array, 4))
    assert np.isin(spot_values(array, 3), array).all()
    assert spot_values(np.zeros((0, 5)), 1).shape == (0,)
    assert spot_values(np.array([2.0]), 1).tolist() == [2.0] * SPOTS
