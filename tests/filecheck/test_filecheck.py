"""Runs the `.mlir` files beside this one: each `// RUN: qcc opt %s ... | filecheck %s` line, in this process.

A file shows one pass on the smallest input that it rewrites, and beside it what it must leave alone.
"""

from __future__ import annotations

import re
import shlex
import subprocess
import sys
from pathlib import Path

import pytest
from filecheck.finput import FInput
from filecheck.matcher import Matcher
from filecheck.options import DumpInputKind, Options
from filecheck.parser import Parser

from qcc import cli, passes

HERE = Path(__file__).parent
FILES = sorted(HERE.glob("*.mlir"))
RUN = re.compile(r"^// RUN: qcc (?P<command>.*?) (?P<both>2>&1 )?\| filecheck %s$", re.MULTILINE)

ELSEWHERE = {
    "pack_weights": "changes bytes of the store, not IR: tests/passes/test_pack_weights.py",
    "permute_inputs": "reads the order of columns in the store: tests/passes/test_permute_inputs.py",
    "quantize_bias": "reads scales from the store: tests/passes/test_fixed_point.py",
    "quantize_fixed_point": "needs statistics from calibration: tests/passes/test_fixed_point.py",
    "smooth_activations": "needs peaks from calibration",
}
"""Passes that no `.mlir` file can show."""


def commands(file: Path) -> list[tuple[list[str], bool]]:
    """Each RUN line of `file`: the arguments of `qcc`, and whether stderr is checked too."""
    quoted = [
        (m["command"].replace("{", "'{").replace("}", "}'"), bool(m["both"])) for m in RUN.finditer(file.read_text())
    ]
    return [([str(file) if word == "%s" else word for word in shlex.split(text)], both) for text, both in quoted]


def check(output: str, file: Path) -> int:
    """The exit code of `filecheck file` on `output`."""
    options = Options(str(file), dump_input=DumpInputKind.FAIL)
    return Matcher(options, FInput("-", output), Parser.from_opts(options)).run()


@pytest.mark.parametrize("file", FILES, ids=lambda file: file.stem)
def test_file(file: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("COLUMNS", "1000")
    runs = commands(file)
    assert runs, "no RUN line was recognized"
    for arguments, both in runs:
        cli.build()(arguments, standalone_mode=False)
        captured = capsys.readouterr()
        assert check(captured.out + captured.err if both else captured.out, file) == 0, captured.out


@pytest.mark.parametrize("name", [n for n in passes.names() if n not in ELSEWHERE])
def test_every_pass_is_shown(name: str) -> None:
    assert any(re.search(rf"-p {name}\b", file.read_text()) for file in FILES), f"write tests/filecheck/{name}.mlir"


def test_only_passes_that_exist_are_excused() -> None:
    assert set(ELSEWHERE) <= set(passes.names())


def test_a_check_that_does_not_hold_fails(tmp_path: Path) -> None:
    file = tmp_path / "wrong.mlir"
    file.write_text("// CHECK: onnx.Relu\n// CHECK-NEXT: onnx.Neg\n")
    assert check("%0 = onnx.Relu(%x)\n%1 = onnx.Neg(%0)\n", file) == 0
    assert check("%0 = onnx.Relu(%x)\n%2 = onnx.Abs(%x)\n%1 = onnx.Neg(%0)\n", file) == 1


def test_the_command_line_as_a_person_types_it() -> None:
    file = HERE / "canonicalize.mlir"
    opt = subprocess.run(
        [sys.executable, "-m", "qcc", "opt", file, "-p", "canonicalize", "--explain"],
        capture_output=True,
        text=True,
        timeout=120,
        check=True,
    )
    assert check(opt.stdout + opt.stderr, file) == 0
