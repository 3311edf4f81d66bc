"""`qcc inspect --layout` writes a picture, prints a table, and refuses what it cannot draw; `qcc list layouts`."""

from __future__ import annotations

import os
from pathlib import Path
from xml.etree import ElementTree

import pytest

from .conftest import Command


def test_a_named_layout(qcc: Command, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    done = qcc("inspect", "--layout", "marlin", "--json")
    assert done.code == 0
    assert done.json == {
        "layout": "marlin",
        "text": "k(k3 k2:2 k1:4 k0:2) n(n3 n2:4 n1:2 n0:8) -> k3 n3 n0 k1 n2 k0 n1 k2",
        "bits": 4,
        "shape": [16, 64],
        "bytes": 512,
        "file": "marlin.svg",
    }
    assert os.listdir(tmp_path) == ["marlin.svg"]
    ElementTree.parse(tmp_path / "marlin.svg")
    assert "codes (0,0) (8,0)" in done.err
    assert "marlin.svg" in done.err


def test_a_layout_with_options_and_one_that_is_spelled_out(qcc: Command, tmp_path: Path) -> None:
    file = tmp_path / "a.svg"
    done = qcc("inspect", "--layout", "onnxruntime_matmul_nbits{element=u8,block=16}", "-o", file, "--json")
    assert (done.json["bits"], done.json["text"]) == (8, "n(n0) k(k1 k0:16) -> n0 k1 k0")
    text = "n(n0) k(k1 k0:4) -> n0 k1 k0 xor 4"
    done = qcc("inspect", "--layout", text, "--shape", "2x6", "--bits", 3, "-o", file, "--force", "--json")
    assert done.json == {
        "layout": "layout", "text": text, "bits": 3, "shape": [2, 6], "bytes": 6, "file": str(file),
    }  # fmt: skip
    assert "codes (0,0) (0,1) (0,2)[0:2]" not in done.err  # a code that crosses a byte is told whole in both
    assert "codes (0,2) (0,3) (0,4) (0,5)" in done.err
    assert "(0,5)  padding" in done.err


def test_a_file_is_replaced_only_by_force(qcc: Command, tmp_path: Path) -> None:
    file = tmp_path / "mine.svg"
    file.write_text("mine")
    done = qcc("inspect", "--layout", "awq", "-o", file, "--json")
    assert done.code == 2
    assert "exists" in done.json["error"]
    assert "--force" in done.json["hint"]
    assert file.read_text() == "mine"
    assert qcc("inspect", "--layout", "awq", "-o", file, "--force").code == 0
    assert file.read_text().startswith("<svg")
    assert os.listdir(tmp_path) == ["mine.svg"]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ((), "nothing to inspect"),
        (("--shape", "16x64"), "belong to --layout"),
        (("model.onnx", "--layout", "marlin"), "takes no model"),
        (("--layout", "marlin", "--ir"), "takes no model"),
        (("--layout", "marlim"), "no layout is called 'marlim'"),
        (("--layout", "marlin", "--bits", "4"), "--bits goes with the text"),
        (("--layout", "marlin", "--shape", "16,64"), "is not a shape"),
        (("--layout", "marlin", "--shape", "16x64x2"), "rank 3"),
        (("--layout", "marlin", "--shape", "999x999"), "998001 elements"),
        (("--layout", "marlin", "--shape", "0x64"), "0 elements"),
        (("--layout", "gptq{element=u3}", "--shape", "64x8"), "holds exactly 32"),
        (("--layout", "n(n0) -> n1"), "n1"),
        (("--layout", "n(n0) -> n0", "--bits", "0"), "0 bits"),
        (("--layout", "marlin", "-o", "no/such/folder.svg"), "cannot be written"),
    ],
)
def test_bad_usage(
    arguments: tuple[str, ...], message: str, qcc: Command, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    done = qcc("inspect", *arguments, "--json")
    assert done.code == 2
    assert message in done.json["error"]
    assert "internal" not in done.json["error"]
    assert os.listdir(tmp_path) == []


def test_layouts_are_listed(qcc: Command) -> None:
    done = qcc("list", "layouts", "--json")
    assert done.code == 0
    rows = {row["name"]: row["summary"] for row in done.json["layouts"]}
    assert {"marlin", "gptq", "llama_cpp_q4_k", "onnxruntime_matmul_nbits"} <= set(rows)
    assert all(rows.values())
