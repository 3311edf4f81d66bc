"""`qcc report`: where the page goes, what it refuses to replace, and what `--json` says."""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

Command = Callable[..., Any]


def test_report(qcc: Command, compiled: Path, tmp_path: Path) -> None:
    page = tmp_path / "page.html"
    done = qcc("report", compiled, "-o", page, "--json")
    assert done.code == 0
    assert len(done.out.splitlines()) == 1
    manifest = json.loads((compiled / "manifest.json").read_text())
    assert done.json == {"report": str(page), "bytes": page.stat().st_size, "layers": len(manifest["layers"])}
    assert "page.html" in done.err
    assert os.listdir(tmp_path) == ["page.html"]
    quiet = qcc("report", compiled, "-o", page, "-q")
    assert (quiet.code, quiet.out, quiet.err) == (0, "", "")


def test_the_page_is_named_after_the_artifact(
    qcc: Command, compiled: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    assert qcc("report", compiled, "-q").code == 0
    monkeypatch.chdir(shutil.copytree(compiled, tmp_path / "two.parts"))
    assert qcc("report", ".", "-q", "--json").json["report"] == "two.parts.html"
    assert (tmp_path / "digits.html").is_file()


def test_bench_and_its_baseline(qcc: Command, compiled: Path, network: Path, tmp_path: Path) -> None:
    page = tmp_path / "page.html"
    assert qcc("report", compiled, "-o", page, "--bench", "--model", network, "--rounds", 1).code == 0
    assert "ONNX Runtime in float" in page.read_text(encoding="utf-8")
    alone = qcc("report", compiled, "-o", page, "--model", network, "--json")
    assert alone.code == 2
    assert "--bench" in alone.json["hint"]


def test_only_a_report_is_replaced_without_force(qcc: Command, compiled: Path, tmp_path: Path) -> None:
    page = tmp_path / "page.html"
    page.write_text("mine")
    refused = qcc("report", compiled, "-o", page, "--json")
    assert refused.code == 2
    assert "not a qcc report" in refused.json["error"]
    assert page.read_text() == "mine"
    assert qcc("report", compiled, "-o", page, "--force").code == 0
    assert qcc("report", compiled, "-o", page).code == 0
    for place in (tmp_path, tmp_path / "nowhere" / "page.html"):
        assert qcc("report", compiled, "-o", place, "--force", "--json").code == 2
    assert os.listdir(tmp_path) == ["page.html"]


def test_what_is_no_artifact_is_one_clear_error(qcc: Command, compiled: Path, tmp_path: Path) -> None:
    damaged = Path(shutil.copytree(compiled, tmp_path / "damaged.qcc"))
    (damaged / "weights.safetensors").write_bytes(b"")
    cut = Path(shutil.copytree(compiled, tmp_path / "cut.qcc"))
    (cut / "manifest.json").write_text((compiled / "manifest.json").read_text()[:500])
    for folder in (damaged, cut, tmp_path / "nowhere", tmp_path):
        done = qcc("report", folder, "-o", tmp_path / "page.html", "--json")
        assert done.code == 2, folder
        assert set(done.json) == {"error", "code", "hint"}
        assert "Traceback" not in done.err
    assert not (tmp_path / "page.html").exists()
