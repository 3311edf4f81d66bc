"""`--target cuda` on the command line without a GPU: it compiles, says what was not run, and runs on the CPU."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from .conftest import Command


@pytest.fixture
def for_gpu(qcc: Command, network: Path, digits: Path, tmp_path: Path) -> Path:
    folder = tmp_path / "digits.qcc"
    done = qcc(
        "compile", network, "--target", "cuda", "--calibration", digits / "calibration.npz", "-o", folder, "--json"
    )
    assert done.code == 0
    assert (done.json["target"], done.json["scheme"]) == ("cuda", "W4A16")
    assert (done.json["ran_on"], done.json["not_run"]) == (["cpu"], ["cuda"])
    assert "checked    on cpu, not on cuda" in done.err
    return folder


def test_verify_says_where_it_ran(qcc: Command, for_gpu: Path) -> None:
    done = qcc("verify", for_gpu, "--json")
    assert done.code == 0
    assert (done.json["ran_on"], done.json["not_run"]) == (["cpu"], ["cuda"])
    assert "ran on cpu, not on cuda" in done.err


def test_run_says_on_one_line_that_it_runs_on_the_cpu(
    qcc: Command, for_gpu: Path, compiled: Path, digits: Path, tmp_path: Path
) -> None:
    images = tmp_path / "images.npz"
    np.savez(images, images=np.load(digits / "test.npz")["images"][:4])
    done = qcc("run", for_gpu, "--input", images, "--output", tmp_path / "out.npz", "--quiet")
    assert done.code == 0
    assert done.err.splitlines() == ["qcc: compiled for cuda, which is not here: it runs on the CPU"]
    assert np.load(tmp_path / "out.npz")["logits"].dtype == np.float32
    assert qcc("run", compiled, "--input", images, "--output", tmp_path / "cpu.npz", "--quiet").err == ""


def test_quantized_activations_are_not_supported(qcc: Command, network: Path, digits: Path, tmp_path: Path) -> None:
    done = qcc(
        "compile", network, "--target", "cuda", "--scheme", "W8A8", "--calibration", digits / "calibration.npz",
        "-o", tmp_path / "no.qcc",
    )  # fmt: skip
    assert done.code == 3
    assert "no kernels for quantized activations" in done.err
    assert not (tmp_path / "no.qcc").exists()


def test_a_plan_is_made_without_samples(qcc: Command, network: Path) -> None:
    done = qcc("compile", network, "--target", "cuda-sm80", "--dry-run", "--json")
    assert done.code == 0
    assert done.json["target"] == "cuda-sm80"


def test_targets_are_listed_with_their_boards(qcc: Command) -> None:
    listed = {t["name"]: t["summary"] for t in qcc("list", "targets", "--json").json["targets"]}
    assert "sm_90 as on H100 SXM5, 3350 GB/s" in listed["cuda"]
    assert {"cuda-sm80", "cuda-sm89", "cuda-sm90"} <= set(listed)
