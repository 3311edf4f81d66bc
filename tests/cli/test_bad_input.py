"""Whatever is wrong with the input or the usage: an exit code, one clear line, a hint, and no artifact."""

from __future__ import annotations

import json
import os
import pickle
import shutil
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from qcc.backends.artifact import read_manifest, write_manifest
from qcc.ir.errors import MissingExtra

Command = Callable[..., Any]


def check(done: Any, code: int, message: str) -> None:
    """The contract of a failure under `--json`."""
    assert done.code == code, done.err
    assert message in done.err.replace("\n", " "), done.err
    assert "Traceback" not in done.err
    assert set(done.json) == {"error", "code", "hint"}
    assert done.json["code"] == code
    assert done.json["error"]
    assert len(done.out.splitlines()) == 1


@pytest.fixture
def place(tmp_path: Path, network: Path, digits: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A working folder with files of many kinds."""
    monkeypatch.chdir(tmp_path)
    data = network.read_bytes()
    (tmp_path / "empty.onnx").write_bytes(b"")
    (tmp_path / "cut.onnx").write_bytes(data[: len(data) // 2])
    (tmp_path / "noise.onnx").write_bytes(np.random.default_rng(0).bytes(4000))
    (tmp_path / "zeros.onnx").write_bytes(b"\0" * 100)
    (tmp_path / "text.onnx").write_text("hello")
    (tmp_path / "pickle.onnx").write_bytes(pickle.dumps({"model": 1}))
    (tmp_path / "model.gguf").write_bytes(b"GGUF" + b"\0" * 100)
    (tmp_path / "gguf.onnx").write_bytes(b"GGUF" + b"\0" * 100)
    (tmp_path / "folder").mkdir()
    (tmp_path / "pickle.pt2").write_bytes(pickle.dumps({"model": 1}))
    with zipfile.ZipFile(tmp_path / "zip.onnx", "w") as archive:
        archive.writestr("a", "b")
    (tmp_path / "file").write_text("mine")
    np.savez(tmp_path / "wrong_key.npz", pictures=np.zeros((4, 1, 8, 8), np.float32))
    np.savez(tmp_path / "wrong_shape.npz", images=np.zeros((4, 1, 8, 9), np.float32))
    np.savez(tmp_path / "wrong_type.npz", images=np.array([["a"] * 8] * 8))
    np.savez(tmp_path / "none.npz", images=np.zeros((0, 1, 8, 8), np.float32))
    np.savez(tmp_path / "nan.npz", images=np.full((4, 1, 8, 8), np.nan, np.float32))
    np.savez(tmp_path / "infinite.npz", images=np.full((4, 1, 8, 8), np.inf, np.float32))
    np.savez(tmp_path / "object.npz", images=np.array([{}], np.object_))
    np.save(tmp_path / "array.npy", np.zeros((4, 1, 8, 8), np.float32))
    (tmp_path / "empty.npz").write_bytes(b"")
    (tmp_path / "cut.npz").write_bytes((digits / "calibration.npz").read_bytes()[:-50])
    shutil.copy(network, tmp_path / "digits.onnx")
    return tmp_path


MODELS = [
    ("nowhere.onnx", 2, "no such file"),
    ("empty.onnx", 2, "is empty"),
    ("cut.onnx", 2, "truncated"),
    ("noise.onnx", 2, "noise.onnx"),
    ("zeros.onnx", 2, "zeros.onnx"),
    ("text.onnx", 2, "text.onnx"),
    ("pickle.onnx", 2, "pickle, which qcc never loads"),
    ("zip.onnx", 2, "zip archive"),
    ("gguf.onnx", 2, "GGUF"),
    ("model.gguf", 3, "GGUF of version 0"),
    ("folder", 2, "no config.json"),
    ("array.npy", 2, "array.npy"),
]


@pytest.mark.parametrize(("model", "code", "message"), MODELS)
def test_models_that_cannot_be_read(model: str, code: int, message: str, qcc: Command, place: Path) -> None:
    before = sorted(os.listdir(place))
    check(qcc("compile", model, "--scheme", "float", "-o", "out", "--json"), code, message)
    check(qcc("compile", model, "--dry-run", "--json"), code, message)
    assert sorted(os.listdir(place)) == before
    if Path(model).suffix == ".onnx":
        check(qcc("inspect", model, "--json"), code, message.replace("no such file", "o such file"))
        check(qcc("opt", model, "--json"), code, message.replace("no such file", "o such file"))


@pytest.mark.slow
def test_a_pickled_pt2_is_refused_unread(qcc: Command, place: Path) -> None:
    check(qcc("compile", "pickle.pt2", "-o", "out", "--json"), 2, "pickle.pt2")


OPTIONS: list[tuple[list[str], int, str]] = [
    (["--scheme", "W5A5"], 2, "no scheme is called 'W5A5'"),
    (["--target", "abacus"], 2, "no target is called 'abacus'"),
    (["--backend", "fpga9"], 2, "no backend is called 'fpga9'"),
    (["--observer", "crystal"], 2, "no observer called 'crystal'"),
    (["--algorithm", "alchemy"], 2, "no algorithm is called 'alchemy'"),
    (["--group-size", "48"], 2, "not a power of two"),
    (["--group-size", "-1"], 2, "not a power of two"),
    (["--group-size", "many"], 2, "--group-size"),
    (["--scheme", "W8A8_DYNAMIC", "--group-size", "32"], 2, "takes no group size"),
    (["--seed", "-1"], 2, "seed"),
    (["--seed", "1.5"], 2, "--seed"),
    (["--min-sqnr", "nan"], 2, "min_sqnr is not a number"),
    (["--max-error", "nan"], 2, "max_error is not a number"),
    (["--min-sqnr", "loud"], 2, "--min-sqnr"),
    (["--input-shape", "images"], 2, "is not NAME=VALUE"),
    (["--input-shape", "=1,2"], 2, "is not NAME=VALUE"),
    (["--input-shape", "images=1,x,8,8"], 2, "is not a list of integers"),
    (["--input-shape", "images=0,1,8,8"], 2, "below 1"),
    (["--input-shape", "images=99999999999999999999,1,8,8"], 2, "cannot be"),
    (["--input-shape", "images=1,1,8"], 2, "does not fit"),
    (["--input-shape", "images=1,1,8,9"], 2, "fixed at 8"),
    (["--input-shape", "pictures=1,1,8,8"], 2, "no input is called 'pictures'"),
    (["--dynamic", "images=batch"], 2, "is not AXIS:NAME"),
    (["--dynamic", "images=9:batch"], 2, "does not fit"),
    (["--ignore", "re:("], 2, "not a regular expression"),
    (["--ignore", "nothing_like_it"], 2, "matches no node"),
    (["--include", "re:^nothing$"], 2, "matches no node"),
    (["--ignore", ""], 2, "matches no node"),
    (["--image-size", "8"], 2, "is not HEIGHTxWIDTH"),
    (["--image-mean", "a,b"], 2, "is not a list of numbers"),
    (["--image-order", "cmyk"], 2, "neither rgb nor bgr"),
    (["--calibration-limit", "0"], 2, "limit"),
    (["--scheme", "W8A8"], 2, "needs calibration data"),
    (["--bits", "4"], 2, "No such option"),
    (["extra"], 2, "extra"),
    (["--min-sqnr", "300"], 1, "less than --min-sqnr"),
    (["--max-error", "0"], 1, "more than --max-error"),
]


@pytest.mark.parametrize(("options", "code", "message"), OPTIONS, ids=[" ".join(o) for o, _, _ in OPTIONS])
def test_options_that_cannot_be(options: list[str], code: int, message: str, qcc: Command, place: Path) -> None:
    before = sorted(os.listdir(place))
    check(qcc("compile", "digits.onnx", "-o", "out/deep", *options, "--json"), code, message)
    assert sorted(os.listdir(place)) == before, "nothing was written"


CALIBRATIONS = [
    ("nowhere.npz", "no such file"),
    ("empty.npz", "empty, truncated"),
    ("cut.npz", "cut.npz"),
    ("wrong_key.npz", "no key 'images'"),
    ("wrong_shape.npz", "expected 'images'"),
    ("wrong_type.npz", "expected 'images'"),
    ("none.npz", "is empty"),
    ("nan.npz", "NaN"),
    ("infinite.npz", "infinite"),
    ("object.npz", "cannot be read"),
    ("array.npy", "array.npy"),
    ("file", "file"),
    ("folder", "neither .npz files nor images"),
]


@pytest.mark.parametrize(("calibration", "message"), CALIBRATIONS)
def test_calibration_data_that_cannot_be_used(calibration: str, message: str, qcc: Command, place: Path) -> None:
    before = sorted(os.listdir(place))
    arguments = ("compile", "digits.onnx", "--scheme", "W8A8", "--calibration", calibration, "-o", "out", "--json")
    check(qcc(*arguments), 2, message)
    assert sorted(os.listdir(place)) == before


@pytest.mark.parametrize(
    ("output", "flags", "message"),
    [
        ("file", (), "exists"),
        ("file", ("--force",), "is not an artifact"),
        ("folder", (), "exists"),
        (".", ("--force",), "is not an artifact"),
        ("file/below", (), "cannot be written"),
        ("/proc/out", (), "cannot be written"),
        ("x" * 300, (), "cannot be written"),
    ],
)
def test_places_that_cannot_be_written(
    output: str, flags: tuple[str, ...], message: str, qcc: Command, place: Path
) -> None:
    before = sorted(os.listdir(place))
    check(qcc("compile", "digits.onnx", "--scheme", "float", "-o", output, *flags, "--json"), 2, message)
    assert sorted(os.listdir(place)) == before
    assert (place / "file").read_text() == "mine"


def test_an_artifact_is_not_replaced_unasked(qcc: Command, place: Path, compiled: Path) -> None:
    shutil.copytree(compiled, place / "out")
    check(qcc("compile", "digits.onnx", "-o", "out", "--json"), 2, "exists")
    assert qcc("verify", "out").code == 0


@pytest.fixture
def artifact(compiled: Path, place: Path) -> Path:
    return Path(shutil.copytree(compiled, place / "damaged.qcc"))


def test_a_changed_file_fails_verify_and_refuses_to_run(
    qcc: Command, artifact: Path, digits: Path, place: Path
) -> None:
    data = bytearray((artifact / "weights.safetensors").read_bytes())
    data[-1] ^= 1
    (artifact / "weights.safetensors").write_bytes(bytes(data))
    verified = qcc("verify", artifact, "--json")
    assert verified.code == 1
    assert verified.json["files_ok"] is False
    assert verified.json["ok"] is False
    assert "weights.safetensors" in verified.json["failures"][0]
    ran = qcc("run", artifact, "--input", digits / "test.npz", "--output", "y.npz", "--json")
    check(ran, 2, "changed since it was compiled")
    check(qcc("bench", artifact, "--json"), 2, "changed since it was compiled")
    assert not (place / "y.npz").exists()


def test_a_gate_of_verify(qcc: Command, compiled: Path) -> None:
    for gate in (("--min-sqnr", 150), ("--max-error", 0)):
        done = qcc("verify", compiled, *gate, "--json")
        assert done.code == 1
        assert done.json["ok"] is False
        assert done.json["files_ok"] is True
        assert done.json["failures"]


@pytest.mark.parametrize("command", ["verify", "run", "bench", "inspect"])
@pytest.mark.parametrize(
    ("damage", "message"),
    [
        ("no folder", "damaged.qcc"),
        ("no manifest", "manifest.json"),
        ("no JSON", "damaged"),
        ("a newer version", "newer qcc"),
        ("a field too many", "damaged"),
    ],
)
def test_folders_that_are_no_artifacts(
    command: str, damage: str, message: str, qcc: Command, artifact: Path, digits: Path
) -> None:
    manifest = artifact / "manifest.json"
    match damage:
        case "no folder":
            shutil.rmtree(artifact)
        case "no manifest":
            manifest.unlink()
        case "no JSON":
            manifest.write_text("{")
        case "a newer version":
            manifest.write_text(json.dumps({**json.loads(manifest.read_text()), "schema_version": 99}))
        case _:
            manifest.write_text(json.dumps({**json.loads(manifest.read_text()), "more": 1}))
    extra = ("--input", digits / "test.npz", "--output", "y.npz") if command == "run" else ()
    check(qcc(command, artifact, *extra, "--json"), 2, message)


def test_a_model_that_does_not_load_although_its_hash_is_right(qcc: Command, artifact: Path, digits: Path) -> None:
    manifest = read_manifest(artifact)
    (artifact / "model.onnx").write_bytes(b"garbage")
    write_manifest(artifact, manifest)
    for command, extra in (
        ("verify", ()),
        ("run", ("--input", digits / "test.npz", "--output", "y.npz")),
        ("bench", ()),
    ):
        check(qcc(command, artifact, *extra, "--json"), 2, "does not load the model")


RUNS = [
    ("nowhere.npz", "y.npz", "no such file"),
    ("empty.npz", "y.npz", "not an .npz file"),
    ("cut.npz", "y.npz", "cut.npz"),
    ("array.npy", "y.npz", "not an .npz file"),
    ("object.npz", "y.npz", "cannot be read"),
    ("folder", "y.npz", "folder"),
    ("wrong_key.npz", "y.npz", "unknown input 'pictures'"),
    ("wrong_shape.npz", "y.npz", "has shape [4, 1, 8, 9]"),
    ("wrong_type.npz", "y.npz", "images"),
    ("good", "folder", "cannot be written"),
    ("good", "nowhere/y.npz", "cannot be written"),
]


@pytest.mark.parametrize(("given", "output", "message"), RUNS)
def test_runs_that_cannot_be(
    given: str, output: str, message: str, qcc: Command, compiled: Path, place: Path, digits: Path
) -> None:
    before = sorted(os.listdir(place))
    source = digits / "test.npz" if given == "good" else given
    check(qcc("run", compiled, "--input", source, "--output", output, "--json"), 2, message)
    assert sorted(os.listdir(place)) == before


OTHERS: list[tuple[list[str], str]] = [
    (["nope"], "No such command"),
    (["compile"], "Missing argument"),
    (["run", "x"], "nothing to run on"),
    (["list", "everything"], "there is no list of 'everything'"),
    (["bench", "ARTIFACT", "--rounds", "0"], "rounds"),
    (["bench", "ARTIFACT", "--threads", "-2"], "threads"),
    (["bench", "ARTIFACT", "--against", "onnxruntime"], "a baseline needs a model"),
    (["bench", "ARTIFACT", "--against", "abacus"], "no baseline is called 'abacus'"),
    (["bench", "ARTIFACT", "--against", "onnxruntime", "--model", "noise.onnx"], "does not load the model"),
    (["run", "ARTIFACT", "--input", "x.npz", "--output", "y.npz", "--threads", "-2"], "threads"),
    (["verify", "ARTIFACT", "--against", "nowhere.onnx"], "no such file"),
    (["verify", "ARTIFACT", "--against", "digits.onnx", "--samples", "0"], "count is 0"),
    (["verify", "ARTIFACT", "--min-sqnr", "nan"], "is not a number"),
    (["inspect", "ARTIFACT", "--node", "nowhere"], "no node is called 'nowhere'"),
    (["inspect", "digits.onnx", "--node", "nowhere"], "no node is called 'nowhere'"),
    (["inspect", "nowhere"], "nowhere"),
    (["opt", "nowhere.mlir"], "cannot be read"),
    (["opt", "folder"], "cannot be read"),
    (["opt", "file"], "file"),
    (["opt", "digits.onnx", "-p", "nope"], "no pass is called 'nope'"),
    (["opt", "digits.onnx", "-p", "{{"], "-p"),
    (["opt", "digits.onnx", "-p", "quantize_linear{bits=4}"], "bits"),
    (["opt", "digits.onnx", "-p", 'quantize_linear{scheme="W5"}'], "no scheme"),
    (["opt", "ARTIFACT/module.mlir", "--weights", "nowhere"], "nowhere"),
    (["opt", "ARTIFACT/module.mlir", "--weights", "noise.onnx"], "not a safetensors file"),
]


@pytest.mark.parametrize(("arguments", "message"), OTHERS, ids=[" ".join(a) for a, _ in OTHERS])
def test_other_commands_used_wrongly(
    arguments: list[str], message: str, qcc: Command, compiled: Path, place: Path
) -> None:
    before = sorted(os.listdir(place))
    check(qcc(*(a.replace("ARTIFACT", str(compiled)) for a in arguments), "--json"), 2, message)
    assert sorted(os.listdir(place)) == before


def test_inspect_ir_of_an_artifact_without_its_text(qcc: Command, artifact: Path) -> None:
    (artifact / "module.mlir").unlink()
    check(qcc("inspect", artifact, "--ir", "--json"), 2, "module.mlir")


def test_without_json_the_message_and_the_hint_go_to_stderr(qcc: Command, place: Path) -> None:
    done = qcc("compile", "nowhere.onnx")
    assert (done.code, done.out) == (2, "")
    assert done.err.count("\n  try: ") == 1
    assert "qcc: nowhere.onnx: no such file" in done.err
    quiet = qcc("compile", "nowhere.onnx", "--quiet")
    assert quiet.err.startswith("qcc: nowhere.onnx")


def test_debug_shows_the_traceback(qcc: Command, place: Path) -> None:
    done = qcc("compile", "cut.onnx", "--debug", "--json")
    assert done.code == 2
    assert "Traceback (most recent call last)" in done.err
    assert "Traceback" not in qcc("compile", "cut.onnx").err


def test_an_error_that_nobody_expected_is_reported_as_a_bug(
    qcc: Command, place: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from qcc import api

    def broken(*args: object, **options: object) -> None:
        raise ZeroDivisionError("a bug")

    monkeypatch.setattr(api, "compile", broken)
    done = qcc("compile", "digits.onnx", "--json")
    check(done, 70, "internal error: ZeroDivisionError: a bug")
    assert "--debug" in done.json["hint"]


@pytest.mark.parametrize(
    ("error", "code", "message"),
    [
        (MemoryError(), 2, "out of memory"),
        (KeyboardInterrupt(), 130, "interrupted"),
        (MissingExtra("reading images needs Pillow", hint='pip install "qcc[images]"'), 4, "needs Pillow"),
    ],
)
def test_other_ends_have_their_codes(
    error: BaseException, code: int, message: str, qcc: Command, place: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def failing(*args: object, **options: object) -> None:
        raise error

    monkeypatch.setattr("qcc.frontend.onnx_file.read", failing)
    before = sorted(os.listdir(place))
    check(qcc("compile", "digits.onnx", "-o", "out", "--json"), code, message)
    assert sorted(os.listdir(place)) == before


def test_a_closed_pipe_is_no_error(network: Path) -> None:
    import subprocess
    import sys

    script = f"{sys.executable} -m qcc inspect {network} --ir | head -1"
    done = subprocess.run(["bash", "-c", f"set -o pipefail; {script}"], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert done.stdout.startswith("builtin.module")
    assert "Traceback" not in done.stderr
    assert "Broken" not in done.stderr
