"""`--target fpga` from end to end: digits keep their answers, and what cannot be held is refused with words."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import onnx
import pytest

import qcc
from benchmarks import fpga
from qcc import api
from qcc.api import Artifact
from qcc.api.options import Options
from qcc.backends import select
from qcc.cli import run as run_command_line
from qcc.ir import target
from qcc.ir.errors import BadInput, NotSupported
from tests import qonnx_forms as forms
from tests.networks import model, normal


@pytest.fixture(scope="module")
def compiled(digits: Path, tmp_path_factory: pytest.TempPathFactory) -> Artifact:
    """The digits network for an FPGA, one image at a time."""
    return api.compile(
        digits / "digits.onnx",
        target="fpga",
        calibration=digits / "calibration.npz",
        input_shapes={"images": (1, 1, 8, 8)},
        output=tmp_path_factory.mktemp("fpga") / "digits.qcc",
    )


def test_digits_keep_their_answers() -> None:
    row = fpga.compare(fpga.digits())
    assert row.samples == 500
    assert row.same_answer_percent >= 98
    assert row.right_percent >= row.right_float_percent - 0.5
    assert row.nodes_skipped == 0
    assert row.bytes < 0.3 * row.float_bytes


def test_the_manifest_says_what_ran_and_what_did_not(compiled: Artifact) -> None:
    manifest = compiled.manifest
    assert (manifest.target, manifest.backend, manifest.scheme) == ("fpga", "fpga", "XINT8")
    assert (manifest.ran_on, manifest.not_run) == (["cpu"], ["fpga"])
    assert {layer.format for layer in manifest.layers} == {"i8, e8m0 per tensor"}
    assert {layer.kernel for layer in manifest.layers} == {"fixed_point"}
    assert {"model.onnx", "model.qonnx.onnx"} <= set(manifest.files)
    assert sum(d.action == "fixed point" for d in manifest.decisions) == 14


def test_the_artifact_verifies_loads_and_measures(compiled: Artifact) -> None:
    report = api.verify(compiled.folder)
    assert report.ok
    assert report.not_run == ("fpga",)
    assert len(report.worst) == 5
    assert report.worst[0].sqnr_db > 15, "layers are compared with the equalized network"
    assert api.bench(compiled.folder, rounds=3).latency_ms.median > 0


def test_both_forms_of_digits_give_the_same_logits(compiled: Artifact, digits: Path) -> None:
    with np.load(digits / "test.npz") as test:
        images = test["images"]
    qonnx = forms.qonnx(compiled.folder)
    for image in images[:10]:
        np.testing.assert_array_equal(compiled(image[None])["logits"], forms.run_qonnx(qonnx, [image[None]])[0])


def test_a_wrong_exponent_in_digits_is_noticed(compiled: Artifact, digits: Path) -> None:
    with np.load(digits / "test.npz") as test:
        image = test["images"][:1]
    made = forms.qdq(compiled.folder)
    right = forms.run_qdq(made, {"images": image})[0]
    for node in [n for n in forms.quantizers(made) if n.op_type == "DequantizeLinear"]:
        assert not np.array_equal(right, forms.run_qdq(forms.shifted(made, node), {"images": image})[0])


def test_weights_are_in_the_files_themselves(compiled: Artifact) -> None:
    for made in (forms.qdq(compiled.folder), forms.qonnx(compiled.folder)):
        assert not any(t.HasField("data_location") and t.data_location for t in made.graph.initializer)
        onnx.checker.check_model(made)


def test_compiling_twice_gives_the_same_files(compiled: Artifact, digits: Path) -> None:
    again = api.compile(
        digits / "digits.onnx",
        target="fpga",
        calibration=digits / "calibration.npz",
        input_shapes={"images": (1, 1, 8, 8)},
    )
    assert again.manifest.files == compiled.manifest.files


def test_the_default_scheme_is_the_targets() -> None:
    assert Options().scheme == "W4A16"
    assert Options(target="fpga").scheme == Options(target="fpga-kv260").scheme == "XINT8"
    assert Options(target="fpga", scheme="W8A8").scheme == "W8A8"
    with pytest.raises(BadInput, match="no target is called 'fgpa'"):
        Options(target="fgpa")


@pytest.mark.parametrize("name", ["float", "W8A8", "W4A16", "W8A8_DYNAMIC"])
def test_schemes_that_the_form_cannot_hold_are_refused_with_a_reason(name: str, digits: Path) -> None:
    with pytest.raises(NotSupported, match=f"fpga does not take scheme {name}: the form holds 8-bit") as raised:
        api.compile(digits / "digits.onnx", target="fpga", scheme=name, calibration="random")
    assert "XINT8" in raised.value.hint


def test_cpus_gain_nothing_from_fixed_point(digits: Path) -> None:
    with pytest.raises(NotSupported, match="cpu does not take scheme XINT8"):
        api.compile(digits / "digits.onnx", scheme="XINT8", calibration="random")


def test_a_backend_for_another_device_is_refused(digits: Path) -> None:
    with pytest.raises(NotSupported, match="--backend onnxruntime"):
        api.compile(digits / "digits.onnx", target="fpga", backend="onnxruntime", calibration="random")
    assert select.choose(target.load("fpga-u55c"), "auto") == "fpga"


def test_boards_are_data() -> None:
    assert target.load("fpga").fabric is None
    for name in ("fpga-u55c", "fpga-kv260"):
        fabric = target.load(name).fabric
        assert fabric is not None
        assert min(fabric.luts, fabric.dsps, fabric.bram_kib, fabric.uram_kib) > 0
        assert f"{fabric.dsps} DSPs" in target.load(name).details


@pytest.mark.parametrize(
    ("arguments", "code", "words"),
    [
        (["--target", "fpga"], 2, "needs calibration data"),
        (["--target", "fpga", "--calibration", "random", "--scheme", "W8A8"], 3, "does not take scheme W8A8"),
        (["--target", "fpga", "--calibration", "random", "--group-size", "32"], 2, "takes no group size"),
        (["--target", "fpga", "--calibration", "random", "--ignore", "re:."], 3, "no layer"),
        (["--target", "fpga-zcu102", "--calibration", "random"], 2, "no target is called"),
        (["--target", "fpga", "--calibration", "random", "--min-sqnr", "90"], 1, "--min-sqnr"),
    ],
)
def test_exit_codes(
    arguments: list[str], code: int, words: str, digits: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    place = tmp_path / "out.qcc"
    command = ["compile", str(digits / "digits.onnx"), *arguments, "-o", str(place), "--json", "--quiet"]
    found = run_command_line(command)
    answer = json.loads(capsys.readouterr().out.splitlines()[-1])
    assert (found, answer["code"]) == (code, code)
    assert words in answer["error"]
    assert not place.exists()


def test_a_network_of_matrices_in_three_axes_is_refused() -> None:
    network = model("(float[1,3,8] x) => (float[1,3,4] y) { y = MatMul(x, w) }", w=normal(8, 4))
    with pytest.raises(NotSupported, match="no layer of the network fits") as raised:
        qcc.compile(network, target="fpga", calibration="random")
    assert "--explain" in raised.value.hint
