"""A full disk and Ctrl-C: the new artifact is absent, an old one is untouched, and no temporary folder stays."""

from __future__ import annotations

import errno
import json
import os
import shutil
import signal
import subprocess
import sys
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import onnx
import pytest

from qcc.backends import arrays

Command = Callable[..., Any]


def contents(folder: Path) -> dict[str, bytes]:
    return {p.name: p.read_bytes() for p in folder.iterdir()}


@pytest.fixture
def old(compiled: Path, tmp_path: Path) -> Path:
    """An artifact that must survive."""
    return Path(shutil.copytree(compiled, tmp_path / "out.qcc"))


def fill_disk_at(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Let writing the file `name` of an artifact fail half-way, as on a full disk."""
    full = OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
    path_open, save, write = Path.open, onnx.save, arrays.write_arrays

    def fail(path: Path) -> None:
        if path.name == name:
            with open(path, "w") as file:
                file.write("half")
            raise full

    def opened(path: Path, mode: str = "r", *args: Any, **options: Any) -> Any:
        if "w" in mode:
            fail(path)
        return path_open(path, mode, *args, **options)

    def saved(proto: Any, target: Any, *args: Any, **options: Any) -> None:
        fail(Path(target))
        save(proto, target, *args, **options)

    def archived(path: Path, *args: Any, **options: Any) -> None:
        fail(path)
        write(path, *args, **options)

    monkeypatch.setattr(Path, "open", opened)
    monkeypatch.setattr(onnx, "save", saved)
    monkeypatch.setattr("qcc.backends.samples.write_arrays", archived)


@pytest.mark.parametrize("name", ["weights.safetensors", "model.onnx", "module.mlir", "samples.npz", "manifest.json"])
def test_a_full_disk(
    name: str, qcc: Command, network: Path, old: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    before = contents(old)
    with monkeypatch.context() as full:
        fill_disk_at(name, full)
        replaced = qcc("compile", network, "--scheme", "W8A8_DYNAMIC", "-o", old, "--force", "--json")
        fresh = qcc("compile", network, "--scheme", "W8A8_DYNAMIC", "-o", tmp_path / "deep" / "new.qcc", "--json")
    for done in (replaced, fresh):
        assert done.code == 2
        assert "No space left on device" in done.json["error"]
        assert "free some space" in done.json["hint"]
    assert contents(old) == before
    assert os.listdir(tmp_path) == ["out.qcc"]


def test_a_full_disk_while_the_output_of_run_is_written(
    qcc: Command, compiled: Path, digits: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    output = tmp_path / "y.npz"
    output.write_text("old")
    write = arrays.write_arrays

    def half(path: Path, *args: Any, **options: Any) -> None:
        write(path, *args, **options)
        path.write_bytes(path.read_bytes()[:100])
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(arrays, "write_arrays", half)
    done = qcc("run", compiled, "--input", digits / "test.npz", "--output", output, "--json")
    assert done.code == 2
    assert "No space left" in done.json["error"]
    assert output.read_text() == "old"
    assert os.listdir(tmp_path) == ["y.npz"]


@pytest.mark.skipif(sys.platform != "linux", reason="the limit is one of Linux")
@pytest.mark.parametrize("limit", [2_000, 30_000])
def test_a_limit_on_the_size_of_files(limit: int, network: Path, old: Path, tmp_path: Path) -> None:
    """The real thing: the kernel refuses to let a file grow."""
    before = contents(old)
    script = (
        f"import resource, sys; resource.setrlimit(resource.RLIMIT_FSIZE, ({limit}, {limit}));"
        "from qcc.cli import run; sys.exit(run(sys.argv[1:]))"
    )
    arguments = ["compile", str(network), "--scheme", "W8A16", "-o", str(old), "--force", "--json"]
    environment = {**os.environ, "QCC_CACHE": str(tmp_path / "cache")}
    command = [sys.executable, "-c", script, *arguments]
    done = subprocess.run(command, capture_output=True, text=True, check=False, env=environment)
    assert done.returncode == 2, done.stderr
    assert "File too large" in json.loads(done.stdout)["error"]
    assert contents(old) == before
    shutil.rmtree(tmp_path / "cache", ignore_errors=True)
    assert os.listdir(tmp_path) == ["out.qcc"]


@pytest.mark.parametrize(
    ("stage", "number"), [("import", signal.SIGINT), ("calibrate", signal.SIGINT), ("calibrate", signal.SIGTERM)]
)
def test_ctrl_c_and_a_time_limit_in_the_middle(
    stage: str, number: signal.Signals, network: Path, digits: Path, old: Path, tmp_path: Path
) -> None:
    before = contents(old)
    command = [
        sys.executable, "-m", "qcc", "compile", str(network), "--scheme", "W8A8", "--observer", "entropy",
        "--calibration", str(digits / "test.npz"), "--calibration-limit", "500", "-o", str(old), "--force", "--json",
    ]  # fmt: skip
    process = subprocess.Popen(
        command,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),  # a job in the background ignores it
    )
    watchdog = threading.Timer(120, process.kill)
    watchdog.start()
    assert process.stderr is not None
    seen: list[str] = []
    for line in process.stderr:
        seen.append(line)
        if stage in line:
            process.send_signal(number)
            break
    out, rest = process.communicate()
    watchdog.cancel()
    assert process.returncode == 130, "".join(seen) + rest
    assert json.loads(out) == {"error": "interrupted; nothing was written", "code": 130, "hint": ""}
    assert "Traceback" not in rest
    assert "pack and write" not in "".join(seen) + rest
    assert contents(old) == before
    assert os.listdir(tmp_path) == ["out.qcc"]
