"""Every command on the happy road: exit code 0, tables on stderr, one JSON object as the last line of stdout."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

Command = Callable[..., Any]

COMPILED_KEYS = {
    "artifact", "backend", "backends", "target", "scheme", "bytes", "float_bytes", "bits_per_weight", "quantized",
    "skipped", "sqnr_db", "max_abs_error", "ran_on", "not_run", "seconds", "peak_rss_bytes",
}  # fmt: skip


def test_compile(qcc: Command, network: Path, tmp_path: Path) -> None:
    folder = tmp_path / "out.qcc"
    done = qcc("compile", network, "--scheme", "W4A16", "-o", folder, "--json")
    assert done.code == 0
    assert len(done.out.splitlines()) == 1, "stdout holds the JSON and nothing else"
    assert set(done.json) == COMPILED_KEYS
    assert done.json["artifact"] == str(folder)
    assert done.json["bytes"] < done.json["float_bytes"]
    assert done.json["quantized"] > 0
    assert all(set(s) == {"node", "reason"} for s in done.json["skipped"])
    assert "signal to noise" in done.err
    assert (folder / "manifest.json").is_file()


def test_compile_without_json_prints_nothing_on_stdout(qcc: Command, network: Path, tmp_path: Path) -> None:
    done = qcc("compile", network, "--scheme", "float", "-o", tmp_path / "out.qcc")
    assert (done.code, done.out) == (0, "")
    assert "import" in done.err


def test_compile_goes_to_the_working_folder_by_default(
    qcc: Command, network: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    assert qcc("compile", network, "--scheme", "float", "-q").code == 0
    assert os.listdir(tmp_path) == ["digits.qcc"]


@pytest.mark.parametrize("name", ["a[/b].qcc", "[bold]x.qcc", "mit Leerzeichen ü.qcc", "-dash.qcc"])
def test_names_with_markup_and_other_letters_are_shown_as_they_are(
    name: str, qcc: Command, network: Path, tmp_path: Path
) -> None:
    folder = tmp_path / Path(name).parent / name
    assert qcc("compile", network, "--scheme", "W8A16", "-o", folder).code == 0
    assert qcc("inspect", folder).code == 0
    assert qcc("verify", folder, "--json").json["ok"]


def test_nodes_with_markup_in_their_names_are_shown_as_they_are(qcc: Command, tmp_path: Path) -> None:
    import onnx

    from tests.networks import model, normal

    proto = model("(float[N,32] x) => (float[N,8] y) { y = MatMul(x, w) }", w=normal(32, 8))
    proto.graph.node[0].name = "[/layer][red]0"
    onnx.save(proto, tmp_path / "net.onnx")
    assert qcc("compile", tmp_path / "net.onnx", "--scheme", "W8A16", "--explain", "-o", tmp_path / "a").code == 0
    for arguments in (("inspect", tmp_path / "a"), ("verify", tmp_path / "a"), ("inspect", tmp_path / "net.onnx")):
        done = qcc(*arguments)
        assert done.code == 0
        assert "[/layer]" in done.err.replace("\n", "")


def test_quiet_says_nothing_on_success(
    qcc: Command, network: Path, compiled: Path, digits: Path, tmp_path: Path
) -> None:
    for arguments in (
        ("compile", network, "--scheme", "float", "-o", tmp_path / "out.qcc"),
        ("run", compiled, "--input", digits / "test.npz", "--output", tmp_path / "y.npz"),
        ("verify", compiled),
        ("bench", compiled, "--rounds", 1),
        ("inspect", compiled),
        ("inspect", network),
        ("list", "schemes"),
    ):
        done = qcc(*arguments, "--quiet")
        assert (done.code, done.out, done.err) == (0, "", ""), arguments
        assert (
            len(qcc(*arguments, *(("--force",) if arguments[0] == "compile" else ()), "-q", "--json").out.splitlines())
            == 1
        )


def test_dry_run_shows_the_plan_and_writes_nothing(
    qcc: Command, network: Path, digits: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    done = qcc(
        "compile", network, "--scheme", "W8A8", "--calibration", digits / "calibration.npz", "--dry-run", "--json"
    )
    assert done.code == 0
    assert os.listdir(tmp_path) == []
    assert done.json["dry_run"] is True
    assert {"node", "reason", "kernel"} == set(done.json["quantized"][0])
    assert "nothing was written" in " ".join(done.err.split())


def test_explain_shows_every_decision(qcc: Command, network: Path, tmp_path: Path) -> None:
    done = qcc("compile", network, "--scheme", "W4A16", "--ignore", "re:stem", "--explain", "-o", tmp_path / "out")
    assert "ignored by 're:stem'" in done.err.replace("\n", " ")
    assert "last layer" in done.err.replace("\n", " ")


def test_random_calibration_warns(qcc: Command, network: Path, tmp_path: Path) -> None:
    done = qcc("compile", network, "--scheme", "W8A8", "--calibration", "random", "-o", tmp_path / "out", "--json")
    assert done.code == 0
    assert "accuracy will not" in done.err
    assert done.json["sqnr_db"] > 20


def test_the_flags_of_compile_reach_the_artifact(qcc: Command, network: Path, digits: Path, tmp_path: Path) -> None:
    done = qcc(
        "compile", network, "-o", tmp_path / "out", "--target", "cpu", "--backend", "onnxruntime", "--scheme", "w8a8",
        "--observer", "percentile", "--calibration", digits / "calibration.npz", "--calibration-limit", 5,
        "--ignore", "re:stem", "--ignore", "re:head", "--input-shape", "images=2x1x8x8", "--seed", 3,
        "--min-sqnr", 10, "--max-error", 100, "--verify-passes", "--algorithm", "rtn", "--json",
    )  # fmt: skip
    assert done.code == 0
    manifest = json.loads((tmp_path / "out" / "manifest.json").read_text())
    assert manifest["scheme"] == "W8A8"
    assert manifest["seed"] == 3
    options = manifest["options"]
    assert options["observer"] == "percentile"
    assert options["calibration_limit"] == 5
    assert options["ignore"] == ["re:stem", "re:head"]
    assert options["input_shapes"] == {"images": [2, 1, 8, 8]}
    assert manifest["inputs"][0]["shape"] == [2, 1, 8, 8]


def test_force_replaces_an_artifact(qcc: Command, network: Path, tmp_path: Path) -> None:
    for scheme, flags in (("W8A16", ()), ("float", ("--force",))):
        assert qcc("compile", network, "--scheme", scheme, "-o", tmp_path / "out", *flags).code == 0
    assert json.loads((tmp_path / "out" / "manifest.json").read_text())["scheme"] == "float"
    assert os.listdir(tmp_path) == ["out"]


def test_run_writes_an_array_for_each_output(qcc: Command, compiled: Path, digits: Path, tmp_path: Path) -> None:
    done = qcc(
        "run", compiled, "--input", digits / "test.npz", "--output", tmp_path / "y.npz", "--threads", 1, "--json"
    )
    assert done.code == 0
    assert done.json["outputs"] == {"logits": {"dtype": "float32", "shape": [500, 10]}}
    assert done.json["seconds"] > 0
    with np.load(tmp_path / "y.npz") as found, np.load(digits / "labels.npz") as answers:
        assert (found["logits"].argmax(1) == answers["labels"]).mean() > 0.97
    assert os.listdir(tmp_path) == ["y.npz"]


def test_verify(qcc: Command, compiled: Path, network: Path) -> None:
    done = qcc("verify", compiled, "--json")
    assert done.code == 0
    assert {"ok", "sqnr_db", "max_abs_error", "worst", "files_ok", "ran_on", "not_run"} <= set(done.json)
    assert done.json["ok"]
    assert {"node", "sqnr_db"} == set(done.json["worst"][0])
    against = qcc("verify", compiled, "--against", network, "--samples", 2, "--json")
    assert against.code == 0
    assert "random inputs" in against.err


def test_bench(qcc: Command, compiled: Path, network: Path) -> None:
    done = qcc("bench", compiled, "--against", "onnxruntime", "--model", network, "--rounds", 2, "--json")
    assert done.code == 0
    assert set(done.json["latency_ms"]) == {"median", "p10", "p90"}
    assert set(done.json["baselines"]) == {"onnxruntime"}
    assert done.json["rounds"] == 2


def test_inspect_artifact_and_model(qcc: Command, compiled: Path, network: Path) -> None:
    artifact = qcc("inspect", compiled, "--json")
    assert artifact.code == 0
    assert artifact.json["scheme"] == "W8A16"
    node = artifact.json["layers"][0]["node"]
    one = qcc("inspect", compiled, "--node", node, "--json")
    assert one.json["node"] == node
    assert one.json["kernel"]
    text = qcc("inspect", compiled, "--ir", "--json")
    assert "q.conv" in text.out
    assert text.json["scheme"] == "W8A16"
    model = qcc("inspect", network, "--json")
    assert model.json["operators"]["Conv"] == 5
    assert qcc("inspect", network, "--node", node).code == 0
    assert "onnx.Conv" in qcc("inspect", network, "--ir").out


@pytest.mark.parametrize("what", ["targets", "schemes", "formats", "algorithms", "observers", "passes", "kernels"])
def test_list(what: str, qcc: Command) -> None:
    done = qcc("list", what, "--json")
    assert done.code == 0
    rows = done.json[what]
    assert rows
    assert all(row["name"] and row["summary"] for row in rows)
    assert all(row["name"] in done.err for row in rows)


@pytest.mark.slow
def test_list_probe_measures_the_runtime(qcc: Command) -> None:
    done = qcc("list", "targets", "--probe", "--json")
    assert done.code == 0
    assert done.json["onnxruntime_ps_per_weight"]["float"] > 0
    assert done.json["host"]["reads"][0]["gb_s"] > 0


def test_opt_runs_passes_over_a_model_and_over_text(
    qcc: Command, network: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    import io

    plain = qcc("opt", network)
    assert plain.code == 0
    assert plain.out.count("onnx.BatchNormalization") == 5
    done = qcc("opt", network, "-p", "fuse_batch_norm,fold_affine", "--explain", "--json", "--quiet")
    assert done.code == 0
    assert "onnx.BatchNormalization" not in done.out
    assert set(done.json) == {"operations", "decisions"}
    text = 'builtin.module { func.func @main(%x: tensor<4xf32> {onnx.name = "x"}) -> (tensor<4xf32> {onnx.name = "y"}) {\n %y = onnx.Identity(%x) : tensor<4xf32>\n func.return %y : tensor<4xf32> } }'  # noqa: E501
    (tmp_path / "a.mlir").write_text(text)
    assert "Identity" not in qcc("opt", tmp_path / "a.mlir", "-p", "canonicalize").out
    monkeypatch.setattr("sys.stdin", io.StringIO(text))
    assert "Identity" in qcc("opt", "-").out


def test_help_and_version(qcc: Command) -> None:
    assert qcc("--version").out.startswith("qcc ")
    for arguments in (("--help",), ("compile", "--help"), ("opt", "--help")):
        done = qcc(*arguments)
        assert done.code == 0
        assert "Usage" in done.out
    bare = qcc()
    assert bare.code == 2
    assert "Commands:" in bare.err


def test_the_command_is_also_a_module_and_starts_quickly() -> None:
    script = "import sys; from qcc.cli import run; code = run(['--help']); heavy = {'numpy', 'onnx', 'onnxruntime', 'torch', 'pydantic', 'xdsl', 'rich.table'} & set(sys.modules); sys.exit(str(heavy) if heavy else code)"  # noqa: E501
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    version = subprocess.run([sys.executable, "-m", "qcc", "--version"], capture_output=True, text=True, check=False)
    assert version.stdout.startswith("qcc ")
