"""`qcc simulate`: tables for people on stderr, numbers for machines on stdout, one plot, and nothing where it fails."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

import onnx
import pytest

from tests.networks import model, normal

Command = Callable[..., Any]


@pytest.fixture
def place(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A working folder of its own."""
    monkeypatch.chdir(tmp_path)
    return tmp_path


def test_the_result_for_machines(qcc: Command, network: Path, place: Path) -> None:
    done = qcc("simulate", network, "--schemes", "W4A16,W8A16,nf4, f32 per 64", "--include", "/head/Gemm", "--json")
    assert done.code == 0, done.err
    assert len(done.out.splitlines()) == 1
    found = done.json
    assert set(found) == {"schemes", "samples", "file"}
    assert found["file"] == "simulation.svg"
    assert found["samples"].startswith("random, seed 0")
    assert [row["scheme"] for row in found["schemes"]] == ["W4A16", "W8A16", "nf4, f32 per 64"]
    keys = {"scheme", "bits_per_weight", "bytes", "float_bytes", "sqnr_db", "max_abs_error", "layers", "skipped"}
    for row in found["schemes"]:
        assert set(row) == keys
        assert len(row["layers"]) == 6
        for layer in row["layers"]:
            assert set(layer) == {"node", "format", "weight_sqnr_db", "output_sqnr_db", "bytes"}
        assert row["skipped"] == []
        assert 8 * sum(layer["bytes"] for layer in row["layers"]) > 8 * 40_000
    head = [row["layers"][-1] for row in found["schemes"]]
    assert [layer["format"] for layer in head] == ["i4, f32 per 128", "i8, f32 per 128", "nf4, f32 per 64"]
    assert head[0]["output_sqnr_db"] < head[1]["output_sqnr_db"]
    root = ElementTree.fromstring((place / "simulation.svg").read_text())
    sizes = next(g for g in root.iter() if g.get("class") == "sizes")
    assert len([e for e in sizes.iter() if (e.get("class") or "").startswith("mark")]) == 3


def test_the_tables_for_people(qcc: Command, network: Path, place: Path) -> None:
    done = qcc("simulate", network, "--schemes", "W4A16,W8A16", "--top", "2", "--ignore", "re:stem", "-o", "p.svg")
    assert done.code == 0
    assert done.out == ""
    rows = [line.split() for line in done.err.splitlines()]
    table = {row[0]: row for row in rows if row and row[0] in ("W4A16", "W8A16")}
    assert float(table["W4A16"][1]) < float(table["W8A16"][1])
    assert table["W8A16"][3] == "kB"
    assert "the most sensitive of 5 layers" in done.err
    assert "left float in every scheme: /stem/stem.0/Conv" in done.err
    assert "left float in W4A16: /head/Gemm: last layer" in done.err
    assert rows[-1] == ["p.svg"]
    assert [p.name for p in place.iterdir()] == ["p.svg"]
    assert qcc("simulate", network, "--schemes", "W8A16", "-o", "q.svg", "--quiet").err == ""


def test_many_schemes_take_several_tables(qcc: Command, network: Path, place: Path) -> None:
    names = [f"i{bits}, f32 per 32" for bits in range(2, 9)]
    done = qcc("simulate", network, "--schemes", ";".join(names), "--include", "/head/Gemm", "--top", "1")
    assert done.code == 0, done.err
    heads = [line for line in done.err.splitlines() if line.strip().startswith("layer alone, dB")]
    assert len(heads) > 1
    assert [name for line in heads for name in names if name in line] == names
    assert sum(line.strip().startswith("/head/Gemm") for line in done.err.splitlines()) == len(heads)
    assert max(map(len, heads)) <= 80


def test_convolutions_that_stay_at_eight_bits_are_told(qcc: Command, network: Path, place: Path) -> None:
    done = qcc("simulate", network, "--schemes", "W4A16,W8A16", "--include", "/head/Gemm")
    assert "W4A16: 5 in i8, 1 in i4" in done.err
    assert "W8A16:" not in done.err


def test_flags_reach_the_work(qcc: Command, network: Path, digits: Path, place: Path) -> None:
    flags = ["--calibration", digits / "calibration.npz", "--calibration-limit", 16, "--algorithm", "gptq"]
    flags += ["--group-size", 32, "--include", "re:.", "--schemes", "W4A16", "--schemes", "W8A16", "--seed", 3]
    done = qcc("simulate", network, *flags, "--json")
    assert done.code == 0, done.err
    assert "take second moments" in done.err
    formats = {layer["node"]: layer["format"] for layer in done.json["schemes"][0]["layers"]}
    assert formats["/head/Gemm"] == "i4, f32 per 32"
    assert done.json["samples"] == "first calibration samples of calibration.npz"


def test_names_with_markup_are_shown_as_they_are(qcc: Command, place: Path) -> None:
    proto = model("(float[N,32] x) => (float[N,8] y) { [node] y = MatMul(x, w) }", w=normal(32, 8))
    proto.graph.node[0].name = "[bold]x[/y]"
    onnx.save(proto, place / "m.onnx")
    done = qcc("simulate", "m.onnx", "--schemes", "W8A16", "-o", "[red].svg")
    assert done.code == 0, done.err
    assert "[bold]x[/y]" in done.err
    assert done.err.splitlines()[-1] == "[red].svg"
    assert "[bold]x[/y]" in (place / "[red].svg").read_text()


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--schemes", "W9A9"], "no scheme is called 'W9A9'"),
        (["--schemes", ""], "no scheme to simulate"),
        (["--schemes", "W4A16,W4A16"], "asked for twice"),
        (["--schemes", "float"], "quantizes nothing"),
        (["--schemes", "W8A8"], "needs calibration data"),
        (["--schemes", "i4, f32 each 32"], "cannot read 'f32 each 32'"),
        (["--schemes", "W4A16", "--top", "-1"], "negative"),
        (["--schemes", "W4A16", "--ignore", "nothing"], "matches no node"),
        (["--schemes", "W4A16", "--group-size", "7"], "not a power of two"),
        (["--schemes", "W4A16", "--input-shape", "images"], "NAME=VALUE"),
        (["--schemes", "W4A16", "--calibration", "missing.npz"], "missing.npz"),
        (["--schemes", "W4A16", "-o", "no/folder.svg"], "no such folder"),
        (["--schemes", "W4A16", "-o", "taken.svg"], "taken.svg exists"),
        (["--schemes", "W4A16", "-o", ".", "--force"], "not a file"),
        ([], "--schemes"),
    ],
)
def test_what_cannot_be(arguments: list[str], message: str, qcc: Command, network: Path, place: Path) -> None:
    (place / "taken.svg").write_text("mine")
    done = qcc("simulate", network, *arguments, "--json")
    assert done.code == 2, done.err
    assert message in done.json["error"]
    assert set(done.json) == {"error", "code", "hint"}
    assert "Traceback" not in done.err
    assert [p.name for p in place.iterdir()] == ["taken.svg"]
    assert (place / "taken.svg").read_text() == "mine"


def test_a_damaged_weight(qcc: Command, place: Path) -> None:
    weight = normal(32, 8)
    weight[3, 4] = float("nan")
    onnx.save(model("(float[N,32] x) => (float[N,8] y) { y = MatMul(x, w) }", w=weight), place / "m.onnx")
    done = qcc("simulate", "m.onnx", "--schemes", "W8A16,W4A16", "--json")
    assert done.code == 2
    assert "holds nan at [3, 4]" in done.json["error"]
    assert [p.name for p in place.iterdir()] == ["m.onnx"]


def test_force_replaces_the_plot(qcc: Command, network: Path, place: Path) -> None:
    (place / "p.svg").write_text("old")
    done = qcc("simulate", network, "--schemes", "W8A16", "-o", "p.svg", "--force", "--quiet")
    assert (done.code, done.err, done.out) == (0, "", "")
    assert (place / "p.svg").read_text().startswith("<svg")


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_ctrl_c_and_a_time_limit_in_the_middle(number: signal.Signals, network: Path, place: Path) -> None:
    (place / "p.svg").write_text("old")
    temporary = place / "temporary"
    temporary.mkdir()
    names = ";".join(f"i4, f32 per {count}" for count in range(8, 400))
    command = [sys.executable, "-m", "qcc", "simulate", str(network), "--schemes", names, "--include", "re:."]
    process = subprocess.Popen(
        [*command, "-o", "p.svg", "--force", "--json"],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        env={**os.environ, "TMPDIR": str(temporary)},
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),  # a job in the background ignores it
    )
    watchdog = threading.Timer(120, process.kill)
    watchdog.start()
    assert process.stderr is not None
    for line in process.stderr:
        if "simulate i4, f32 per 12" in line:
            process.send_signal(number)
            break
    out, rest = process.communicate()
    watchdog.cancel()
    assert process.returncode == 130, rest
    assert json.loads(out) == {"error": "interrupted; nothing was written", "code": 130, "hint": ""}
    assert "Traceback" not in rest
    assert (place / "p.svg").read_text() == "old"
    assert sorted(os.listdir(place)) == ["p.svg", "temporary"]
    assert not list(temporary.glob("qcc*"))
