"""An artifact folder is whole or absent; what was changed after it was written is refused."""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from qcc.backends.artifact import (
    MANIFEST,
    changed_files,
    read_manifest,
    require_unchanged,
    write_manifest,
    writing,
)
from qcc.ir.errors import BadInput


def contents(folder: Path) -> dict[str, bytes]:
    return {p.name: p.read_bytes() for p in folder.iterdir()}


def make(destination: Path, text: str, *, force: bool = False) -> None:
    with writing(destination, force=force) as temporary:
        (temporary / MANIFEST).write_text(text)


def test_the_folder_appears_whole_when_the_block_ends(tmp_path: Path) -> None:
    destination = tmp_path / "deep" / "er" / "out.qcc"
    with writing(destination, force=False) as temporary:
        assert temporary.parent == destination.parent, "a rename must not cross file systems"
        (temporary / "file").write_text("x")
        assert not destination.exists()
    assert contents(destination) == {"file": b"x"}
    assert os.listdir(destination.parent) == ["out.qcc"]


@pytest.mark.parametrize("error", [ValueError("a bug"), KeyboardInterrupt(), SystemExit(1)])
def test_an_exception_leaves_nothing_behind(error: BaseException, tmp_path: Path) -> None:
    with pytest.raises(type(error)), writing(tmp_path / "a" / "b" / "out.qcc", force=False) as temporary:
        (temporary / "file").write_text("x")
        raise error
    assert os.listdir(tmp_path) == [], "not even the folders made on the way"


def test_a_failed_write_says_where_and_leaves_nothing(tmp_path: Path) -> None:
    with pytest.raises(BadInput, match="No space left") as caught, writing(tmp_path / "out.qcc", force=False):
        raise OSError(28, "No space left on device")
    assert "out.qcc" in caught.value.message
    assert "space" in caught.value.hint
    assert os.listdir(tmp_path) == []


def test_an_existing_folder_is_replaced_only_by_force(tmp_path: Path) -> None:
    destination = tmp_path / "out.qcc"
    make(destination, "old")
    with pytest.raises(BadInput, match="exists") as caught:
        make(destination, "new")
    assert "--force" in caught.value.hint
    assert contents(destination) == {MANIFEST: b"old"}
    make(destination, "new", force=True)
    assert contents(destination) == {MANIFEST: b"new"}
    assert os.listdir(tmp_path) == ["out.qcc"]


@pytest.mark.parametrize("failing", [1, 2])
@pytest.mark.parametrize("error", [OSError(5, "Input/output error"), KeyboardInterrupt()])
def test_the_old_artifact_survives_a_rename_that_fails(
    failing: int, error: BaseException, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    destination = tmp_path / "out.qcc"
    make(destination, "old")
    rename, calls = os.rename, []

    def failing_rename(source: Path, target: Path) -> None:
        calls.append(source)
        if len(calls) == failing:
            raise error
        rename(source, target)

    monkeypatch.setattr(os, "rename", failing_rename)
    with pytest.raises(KeyboardInterrupt if isinstance(error, KeyboardInterrupt) else BadInput):
        make(destination, "new", force=True)
    assert contents(destination) == {MANIFEST: b"old"}
    assert os.listdir(tmp_path) == ["out.qcc"]


def test_an_artifact_that_appears_meanwhile_is_not_overwritten(tmp_path: Path) -> None:
    destination = tmp_path / "out.qcc"
    with pytest.raises(BadInput, match="exists"), writing(destination, force=False):
        make(destination, "quicker")
    assert contents(destination) == {MANIFEST: b"quicker"}
    assert os.listdir(tmp_path) == ["out.qcc"]


@pytest.mark.parametrize("kind", ["file", "folder", "dangling link", "link to a folder"])
def test_what_is_no_artifact_is_never_replaced(kind: str, tmp_path: Path) -> None:
    destination, other = tmp_path / "out", tmp_path / "other"
    other.mkdir()
    (other / "thesis.txt").write_text("precious")
    match kind:
        case "file":
            destination.write_text("precious")
        case "folder":
            destination.mkdir()
            (destination / "thesis.txt").write_text("precious")
        case "dangling link":
            destination.symlink_to(tmp_path / "nowhere")
        case _:
            destination.symlink_to(other)
    before = sorted(str(p) for p in tmp_path.rglob("*"))
    with pytest.raises(BadInput, match="is not an artifact"):
        make(destination, "new", force=True)
    assert sorted(str(p) for p in tmp_path.rglob("*")) == before


def test_a_link_to_an_artifact_stays_a_link(tmp_path: Path) -> None:
    (tmp_path / "store").mkdir()
    real, link = tmp_path / "store" / "real.qcc", tmp_path / "latest.qcc"
    make(real, "old")
    link.symlink_to(real)
    make(link, "new", force=True)
    assert link.is_symlink()
    assert contents(real) == {MANIFEST: b"new"}
    assert sorted(os.listdir(tmp_path)) == ["latest.qcc", "store"]
    assert os.listdir(tmp_path / "store") == ["real.qcc"]


@pytest.mark.parametrize("name", ["x" * 300, "/dev/null/out", "/proc/nowhere/out"])
def test_a_place_that_cannot_be_written_is_an_error_of_the_user(name: str, tmp_path: Path) -> None:
    with pytest.raises(BadInput, match="cannot be written"):
        make(tmp_path / name, "new")


def test_a_fresh_artifact_is_unchanged(artifact: Path) -> None:
    manifest = read_manifest(artifact)
    assert set(manifest.files) == {p.name for p in artifact.iterdir()} - {MANIFEST}
    assert changed_files(artifact, manifest) == []
    require_unchanged(artifact, manifest)


def flip(path: Path) -> None:
    data = bytearray(path.read_bytes())
    data[len(data) // 2] ^= 1
    path.write_bytes(data)


CHANGES: dict[str, Callable[[Path], Any]] = {
    "one bit": flip,
    "cut": lambda path: path.write_bytes(path.read_bytes()[:-1]),
    "longer": lambda path: path.write_bytes(path.read_bytes() + b"\0"),
    "missing": lambda path: path.unlink(),
    "a folder": lambda path: (path.unlink(), path.mkdir()),
}


@pytest.mark.parametrize("change", CHANGES)
@pytest.mark.parametrize("name", ["model.onnx", "weights.safetensors", "module.mlir", "samples.npz"])
def test_a_changed_file_is_named(name: str, change: str, artifact: Path) -> None:
    CHANGES[change](artifact / name)
    manifest = read_manifest(artifact)
    assert changed_files(artifact, manifest) == [name]
    with pytest.raises(BadInput, match=f"changed since it was compiled: {name}"):
        require_unchanged(artifact, manifest)


def test_an_extra_file_is_named(artifact: Path) -> None:
    (artifact / "model.onnx.data").write_text("not ours")
    with pytest.raises(BadInput, match=r"model\.onnx\.data"):
        require_unchanged(artifact, read_manifest(artifact))


def test_names_that_lead_out_of_the_folder_are_never_read(artifact: Path) -> None:
    manifest = read_manifest(artifact)
    secret = artifact.parent / "secret"
    secret.write_bytes(b"")
    digest = "e3b0c44298fc1c149afbf4c8996fb92427ae41e4649b934ca495991b7852b855"
    for name in ("../secret", str(secret), "..", ""):
        listed = manifest.model_copy(update={"files": {**manifest.files, name: digest}})
        assert changed_files(artifact, listed) == [name]


def edited(**changes: Any) -> Callable[[dict[str, Any]], str]:
    return lambda data: json.dumps({**data, **changes})


def without(key: str) -> Callable[[dict[str, Any]], str]:
    return lambda data: json.dumps({k: v for k, v in data.items() if k != key})


MANIFESTS: dict[str, Callable[[dict[str, Any]], Any]] = {
    "empty": lambda data: "",
    "cut": lambda data: json.dumps(data)[:-20],
    "not JSON": lambda data: "{'a': 1}",
    "a list": lambda data: "[]",
    "a number": lambda data: "7",
    "null": lambda data: "null",
    "deep": lambda data: "[" * 100_000,
    "latin-1": lambda data: b'{"name": "\xe9"}',
    "zeros": lambda data: b"\0" * 100,
    "no version": without("schema_version"),
    "no layers": without("layers"),
    "another field": edited(surprise=1),
    "a wrong type": edited(bytes="many"),
    "a wrong list": edited(layers={"a": 1}),
    "a wrong layer": edited(layers=[{"node": "x"}]),
    "a wrong port": edited(inputs=[{"name": 1, "dtype": "float32", "shape": "x"}]),
    "files without hashes": edited(files={"model.onnx": 7}),
    "a text version": edited(schema_version="one"),
}


@pytest.mark.parametrize("damage", MANIFESTS)
def test_a_damaged_manifest_is_an_error_of_the_user(damage: str, artifact: Path) -> None:
    path = artifact / MANIFEST
    text = MANIFESTS[damage](json.loads(path.read_text()))
    path.write_bytes(text if isinstance(text, bytes) else text.encode())
    with pytest.raises(BadInput) as caught:
        read_manifest(artifact)
    assert str(artifact) in caught.value.message
    assert caught.value.hint
    assert "\n" not in caught.value.message


def test_a_newer_schema_says_to_update(artifact: Path) -> None:
    path = artifact / MANIFEST
    path.write_text(json.dumps({"schema_version": 999, "everything": "else"}))
    with pytest.raises(BadInput, match="newer qcc") as caught:
        read_manifest(artifact)
    assert caught.value.hint == "update qcc"


def test_what_is_no_artifact_folder_says_so(tmp_path: Path, artifact: Path) -> None:
    shutil.rmtree(artifact)
    for place in (artifact, tmp_path):
        with pytest.raises(BadInput, match="not an artifact"):
            read_manifest(place)


def test_writing_the_manifest_hashes_every_other_file(artifact: Path) -> None:
    manifest = read_manifest(artifact)
    flip(artifact / "module.mlir")
    written = write_manifest(artifact, manifest)
    assert written == read_manifest(artifact)
    assert changed_files(artifact, written) == []
    assert written.files["module.mlir"] != manifest.files["module.mlir"]
