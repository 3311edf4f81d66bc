"""xDSL's own tools find the dialects and passes of qcc through the entry point, and read and write its text."""

from __future__ import annotations

import subprocess
import sys
from importlib.metadata import entry_points
from pathlib import Path

from xdsl.universe import Universe

from qcc.ir.dialects.schema import DIALECTS
from qcc.universe import UNIVERSE
from tests.ir.test_text import MODULE

NAMES = {*DIALECTS.values(), "q"}


def test_entry_point_loads() -> None:
    (entry,) = entry_points(group="xdsl.universe", name="qcc")
    assert entry.load() is UNIVERSE


def test_multiverse_of_xdsl_holds_every_dialect() -> None:
    held = Universe.get_multiverse().all_dialects
    assert set(held) >= NAMES
    for name in NAMES:
        dialect = held[name]()
        assert dialect.name == name
        assert list(dialect.operations)


def test_xdsl_opt_reads_and_writes_our_text(tmp_path: Path) -> None:
    file = tmp_path / "module.mlir"
    file.write_text(MODULE)
    command = [Path(sys.executable).with_name("xdsl-opt"), file]
    done = subprocess.run(command, capture_output=True, text=True, timeout=60, check=False)
    assert done.stderr == ""
    assert done.stdout.rstrip("\n") + "\n" == MODULE


def test_xdsl_opt_runs_our_passes(tmp_path: Path) -> None:
    file = tmp_path / "module.mlir"
    file.write_text(
        """builtin.module attributes {onnx.opset = {"" = 21 : i64}} {
  func.func @main(%x: tensor<2xf32> {onnx.name = "x"}) -> (tensor<2xf32> {onnx.name = "y"}) {
    %i = onnx.Identity "i"(%x) : tensor<2xf32>
    %y = onnx.Relu "r"(%i) : tensor<2xf32>
    func.return %y : tensor<2xf32>
  }
}
"""
    )
    command = [Path(sys.executable).with_name("xdsl-opt"), file, "-p", "qcc-canonicalize"]
    done = subprocess.run(command, capture_output=True, text=True, timeout=60, check=False)
    assert "onnx.Relu" in done.stdout and "Identity" not in done.stdout, done.stderr
