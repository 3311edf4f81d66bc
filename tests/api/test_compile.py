"""`compile`: every source, every scheme, its gates, and what it leaves behind."""

from __future__ import annotations

import gc
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from numpy.typing import NDArray

from qcc import api
from qcc.api import Artifact
from qcc.api.capture import default_scheme
from qcc.backends.artifact import read_manifest
from qcc.ir.errors import BadInput, CheckFailed, NotSupported
from qcc.ir.kernel_task import Choice, KernelTask
from qcc.passes import schemes
from tests.networks import model, normal

InScheme = Callable[..., Artifact]
LEAST = {
    "float": 90,
    "W8A16": 38,
    "W8A8": 30,
    "W8A8_DYNAMIC": 38,
    "W4A16": 30,
    "W4A16_ASYM": 30,
    "W4A8": 30,
    "W2A16": 30,
    "W3A16": 30,
    "W8A8_GROUP": 36,
}
"""Decibels on the digits network, whose convolutions stay at 8 bits."""


@pytest.fixture(scope="module")
def images(digits: Path) -> NDArray[np.float32]:
    with np.load(digits / "test.npz") as data:
        return data["images"]


@pytest.fixture(scope="module")
def labels(digits: Path) -> NDArray[np.int64]:
    with np.load(digits / "labels.npz") as data:
        return data["labels"]


def test_every_scheme_is_tried_here() -> None:
    loaded = {name: schemes.load(name) for name in schemes.names()}
    by_element = {name for name, s in loaded.items() if not s.is_fixed_point and (s.is_element or not s.weight)}
    assert set(LEAST) == by_element, "fixed point: test_fpga.py; whole formats: tests/passes/test_every_scheme.py"


@pytest.mark.parametrize("scheme", LEAST)
def test_every_scheme_compiles_and_verifies(scheme: str, in_scheme: InScheme) -> None:
    artifact = in_scheme(scheme)
    manifest = artifact.manifest
    assert manifest.scheme == scheme
    assert manifest.error.sqnr_db >= LEAST[scheme]
    report = api.verify(artifact)
    assert report.ok
    assert report.files_ok
    assert report.sqnr_db == pytest.approx(manifest.error.sqnr_db, abs=0.5)
    assert manifest.bytes < 1.2 * manifest.float_bytes
    if scheme == "float":
        assert not manifest.layers
        assert manifest.bits_per_weight == 32
    else:
        assert manifest.bytes < 0.45 * manifest.float_bytes
        assert report.worst
        assert report.worst[0].sqnr_db <= report.worst[-1].sqnr_db


@pytest.mark.parametrize("scheme", ["W8A8", "W4A16"])
def test_accuracy_on_digits_falls_by_at_most_three_tenths_of_a_point(
    scheme: str, in_scheme: InScheme, digits: Path, images: NDArray[np.float32], labels: NDArray[np.int64]
) -> None:
    import onnxruntime

    session = onnxruntime.InferenceSession(digits / "digits.onnx", providers=["CPUExecutionProvider"])
    float_hits = int((session.run(["logits"], {"images": images})[0].argmax(1) == labels).sum())
    hits = int((in_scheme(scheme)(images)["logits"].argmax(1) == labels).sum())
    assert len(labels) == 500
    assert float_hits - hits <= 1.5, f"{hits} of 500 right, {float_hits} in float"


def test_the_manifest_says_everything_about_the_artifact(in_scheme: InScheme) -> None:
    manifest = in_scheme("W8A8").manifest
    assert manifest == read_manifest(in_scheme("W8A8").folder)
    assert manifest.name == "digits"
    assert manifest.target == "cpu"
    assert manifest.backend == "onnxruntime"
    assert manifest.ran_on == ["cpu"]
    assert manifest.not_run == []
    assert manifest.samples == "first calibration samples of calibration.npz"
    assert manifest.options["calibration"] == "calibration.npz", "no path of this machine"
    assert set(manifest.versions) >= {"qcc", "numpy", "onnx", "onnxruntime", "xdsl", "python"}
    assert [p.shape for p in manifest.inputs] == [["batch", 1, 8, 8]]
    assert {layer.op for layer in manifest.layers} == {"q.conv", "q.linear"}
    for layer in manifest.layers:
        assert layer.kernel
        assert layer.reason
        assert layer.float_bytes == 4 * np.prod(layer.shape)
        assert 0.2 < layer.bytes / layer.float_bytes < 0.6
    assert sum(d.action == "quantized" for d in manifest.decisions) == len(manifest.layers)


def test_equal_requests_give_equal_artifacts(in_scheme: InScheme, digits: Path) -> None:
    again = api.compile(digits / "digits.onnx", scheme="W8A8", calibration=digits / "calibration.npz")
    assert again.manifest == in_scheme("W8A8").manifest, "the same bytes: every file has the same hash"


NETWORK = "(float[N,32] x) => (float[N,8] y) { [fc1] a = MatMul(x, w) [act] b = Relu(a) [fc2] y = MatMul(b, v) }"


def network() -> onnx.ModelProto:
    return model(NETWORK, w=normal(32, 48), v=normal(48, 8, seed=1))


def test_a_model_proto_compiles_and_stays_as_it_was() -> None:
    proto = network()
    before = proto.SerializeToString()
    artifact = api.compile(proto, scheme="W8A16")
    assert artifact.manifest.name == "model"
    assert proto.SerializeToString() == before
    assert artifact(normal(3, 32))["y"].shape == (3, 8)


def test_a_path_may_be_text_or_a_path(tmp_path: Path) -> None:
    path = tmp_path / "net.onnx"
    onnx.save(network(), path)
    for given in (path, str(path)):
        assert api.compile(given, scheme="float").manifest.name == "net"


def test_samples_may_be_a_list_of_dicts() -> None:
    samples = [{"x": normal(4, 32, seed=s)} for s in range(3)]
    artifact = api.compile(network(), scheme="W8A8", calibration=samples)
    assert artifact.manifest.samples == "calibration samples"
    assert artifact.manifest.error.sqnr_db > 25
    limited = api.compile(network(), scheme="W8A8", calibration=samples, calibration_limit=1)
    assert limited.manifest.samples_sha256 != artifact.manifest.samples_sha256


def test_example_inputs_are_what_an_artifact_is_verified_on() -> None:
    artifact = api.compile(network(), {"x": normal(7, 32)}, scheme="W8A16")
    assert artifact.manifest.samples == "example inputs"
    random = api.compile(network(), scheme="W8A16")
    assert random.manifest.samples.startswith("random, seed 0")
    with pytest.raises(BadInput, match="by name"):
        api.compile(network(), (normal(7, 32),), scheme="W8A16")


def test_a_temporary_artifact_goes_with_its_object(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import tempfile

    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    artifact = api.compile(network(), scheme="float")
    assert artifact.folder.is_dir()
    kept = artifact.save(tmp_path / "kept.qcc")
    del artifact
    gc.collect()
    assert os.listdir(tmp_path) == ["kept.qcc"]
    assert kept(normal(1, 32))["y"].shape == (1, 8)
    with pytest.raises(CheckFailed):
        api.compile(network(), scheme="W4A16", include="re:.*", min_sqnr=199)
    assert os.listdir(tmp_path) == ["kept.qcc"]


@pytest.mark.parametrize("gate", [{"min_sqnr": 60.0}, {"max_error": 1e-6}])
def test_a_gate_that_does_not_hold_writes_nothing(gate: dict[str, float], tmp_path: Path) -> None:
    with pytest.raises(CheckFailed, match=next(iter(gate)).replace("_", "-")) as caught:
        api.compile(network(), scheme="W8A16", output=tmp_path / "new" / "out.qcc", **gate)
    assert caught.value.hint
    assert os.listdir(tmp_path) == []
    assert api.compile(network(), scheme="W8A16", min_sqnr=30, max_error=1.0).manifest.error.sqnr_db > 30


REFUSED: list[tuple[dict[str, Any], type[Exception], str]] = [
    ({"scheme": "W8A8"}, BadInput, "needs calibration"),
    ({"scheme": "W8A8", "calibration": []}, BadInput, "needs calibration"),
    ({"scheme": "W9A9"}, BadInput, "no scheme"),
    ({"target": "tpu"}, BadInput, "no target"),
    ({"backend": "tvm9"}, BadInput, "no backend"),
    ({"algorithm": "magic"}, BadInput, "no algorithm"),
    ({"observer": "median"}, BadInput, "observer"),
    ({"group_size": 48}, BadInput, "power of two"),
    ({"group_size": -32}, BadInput, "power of two"),
    ({"group_size": 32, "scheme": "W8A8_DYNAMIC"}, BadInput, "takes no group size"),
    ({"ignore": ["re:("]}, BadInput, "regular expression"),
    ({"ignore": ["nowhere"]}, BadInput, "matches no node"),
    ({"include": "nowhere"}, BadInput, "matches no node"),
    ({"seed": -1}, BadInput, "seed"),
    ({"calibration_limit": 0}, BadInput, "limit"),
    ({"min_sqnr": float("nan")}, BadInput, "min_sqnr"),
    ({"max_error": float("nan")}, BadInput, "max_error"),
    ({"input_shapes": {"q": [1, 32]}}, BadInput, "no input is called 'q'"),
    ({"input_shapes": {"x": [1, 33]}}, BadInput, "fixed at 32"),
    ({"input_shapes": {"x": [1 << 40, 32]}}, BadInput, "cannot be"),
    ({"dynamic": {"q": {0: "b"}}}, BadInput, "no input is called 'q'"),
    ({"calibration": "nowhere.npz"}, BadInput, "no such file"),
    ({"calibration": {"x": normal(4, 32)}}, BadInput, "neither a path nor a list"),
    ({"calibration": normal(4, 32)}, BadInput, "neither a path nor a list"),
    ({"calibration": [normal(4, 32)]}, BadInput, "neither a path nor a list"),
    ({"calibration": [{"q": normal(4, 32)}]}, BadInput, "has no input 'x'"),
    ({"calibration": [{"x": normal(4, 31)}]}, BadInput, r"shape \[4, 31\]"),
    ({"calibration": [{"x": normal(0, 32)}]}, BadInput, r"shape \[0, 32\]"),
    ({"calibration": [{"x": normal(4, 32) * np.nan}]}, BadInput, "NaN or infinity"),
]


@pytest.mark.parametrize(
    ("options", "error", "message"), REFUSED, ids=[str(list(o.items()))[:40] for o, _, _ in REFUSED]
)
def test_requests_that_cannot_be_are_refused(
    options: dict[str, Any], error: type[Exception], message: str, tmp_path: Path
) -> None:
    for function in (api.compile, api.plan):
        extra = {"output": tmp_path / "out.qcc"} if function is api.compile else {}
        with pytest.raises(error, match=message):
            function(network(), **options, **extra)
    assert os.listdir(tmp_path) == []


@pytest.mark.parametrize("subject", [42, None, b"bytes", ["list"], object()])
def test_what_is_no_model_is_refused(subject: object) -> None:
    with pytest.raises(BadInput, match="is no model that qcc reads"):
        api.compile(subject)


def test_unknown_keyword_arguments_are_refused() -> None:
    with pytest.raises(TypeError, match="bits"):
        api.compile(network(), bits=4)  # type: ignore[call-arg]
    with pytest.raises(TypeError, match="bits"):
        api.plan(network(), bits=4)


def test_outputs_that_are_no_tensors_are_not_supported() -> None:
    proto = model("(float[N] x) => (seq(float[N]) y) { y = SequenceConstruct(x, x) }")
    with pytest.raises(NotSupported, match=r"output 'y' is of type seq"):
        api.compile(proto, scheme="float")


def test_text_outputs_travel_through_samples_and_verification() -> None:
    artifact = api.compile(model("(float[N] x) => (string[N] y) { y = Cast<to=8>(x) }"), scheme="float")
    assert api.verify(artifact).sqnr_db == 200
    assert artifact(np.array([1.5], np.float32))["y"].tolist() == ["1.5"]


BRANCHES = """(float[N,32] x, bool c) => (float[N,32] y) { h = MatMul(x, w0) y = If(c)<
    then_branch = t () => (float[N,32] p) { t0 = MatMul(h, w1) t1 = Add(t0, b) p = Relu(t1) },
    else_branch = e () => (float[N,32] q) { e0 = MatMul(h, w2) e1 = Add(e0, b) q = Relu(e1) }> }"""


@pytest.mark.parametrize("scheme", ["W8A8", "W8A8_DYNAMIC", "W8A16", "W4A8"])
def test_weights_in_branches_are_quantized_where_they_are_read(scheme: str) -> None:
    weights = {f"w{i}": normal(32, 32, seed=i) for i in range(3)}
    samples = [{"x": normal(4, 32), "c": np.array(flag)} for flag in (True, False)]
    artifact = api.compile(
        model(BRANCHES, **weights, b=normal(32)),
        scheme=scheme,
        calibration=samples,
        include="re:w.",
        verify_passes=True,
    )
    assert len(artifact.manifest.layers) == 3
    assert artifact.manifest.error.sqnr_db > (15 if scheme == "W4A8" else 33)
    assert api.verify(artifact).ok


def test_symbols_and_shapes_of_the_user_reach_the_artifact() -> None:
    proto = model("(float[A,B] x) => (float[A,B] y) { y = Relu(x) }")
    fixed = api.compile(proto, scheme="float", input_shapes={"x": [2, 3]})
    assert fixed.inputs[0].shape == [2, 3]
    with pytest.raises(BadInput, match="shape"):
        fixed(normal(3, 3))
    named = api.compile(proto, scheme="float", dynamic={"x": {1: "time"}})
    assert named.inputs[0].shape == ["A", "time"]


def test_a_pick_of_the_caller_decides_the_kernel() -> None:
    def expansion(task: KernelTask, choices: Any) -> Choice:
        del task
        return next(c for c in choices if c.kernel == "expansion")

    artifact = api.compile(network(), scheme="W8A16", pick=expansion)
    assert {layer.kernel for layer in artifact.manifest.layers} == {"expansion"}
    with pytest.raises(BadInput, match="was not offered"):
        api.compile(network(), scheme="W8A16", pick=lambda task, choices: Choice("mine", choices[0].layout))


def test_progress_is_told_stage_by_stage() -> None:
    class Listener:
        def __init__(self) -> None:
            self.stages: list[str] = []
            self.steps: list[tuple[int, int]] = []

        def stage(self, name: str) -> None:
            self.stages.append(name)

        def step(self, done: int, total: int) -> None:
            self.steps.append((done, total))

    listener = Listener()
    samples = [{"x": normal(4, 32, seed=s)} for s in range(3)]
    api.compile(network(), scheme="W8A8", calibration=samples, progress=listener)
    assert listener.stages[0] == "import"
    assert "calibrate" in listener.stages
    assert listener.stages[-1] == "pack and write"
    assert (3, 3) in listener.steps
    assert all(0 < done <= total for done, total in listener.steps)


def test_a_plan_is_what_compile_would_do_and_writes_nothing(digits: Path, in_scheme: InScheme) -> None:
    plan = api.plan(digits / "digits.onnx", scheme="W8A8", calibration=digits / "calibration.npz", verify_passes=True)
    manifest = in_scheme("W8A8").manifest
    assert plan.kernels == {layer.node: layer.kernel.split()[0] for layer in manifest.layers}
    assert [d.node for d in plan.quantized] == [d.node for d in manifest.decisions if d.action == "quantized"]
    assert plan.float_bytes == manifest.float_bytes
    assert plan.bytes < manifest.bytes < 1.5 * plan.bytes
    assert [check.name for check in plan.passes][-1] == "quantize_activations"
    assert plan.passes[0].sqnr_db > 90


@pytest.mark.slow
class TestTorch:
    """Modules, exported programs and their files."""

    @pytest.fixture(scope="class")
    def module(self) -> Any:
        import torch

        torch.manual_seed(0)
        return torch.nn.Sequential(torch.nn.Linear(32, 48), torch.nn.ReLU(), torch.nn.Linear(48, 8)).eval()

    @pytest.fixture(scope="class")
    def exported(self, module: Any) -> Any:
        import torch

        return torch.export.export(module, (torch.zeros(3, 32),))

    def check(self, artifact: Artifact, module: Any) -> None:
        import torch

        x = normal(3, 32, seed=9)
        with torch.no_grad():
            expected = module(torch.from_numpy(x)).numpy()
        (got,) = artifact(x).values()
        assert got.shape == expected.shape
        assert 10 * np.log10((expected**2).sum() / ((expected - got) ** 2).sum()) > 35

    def test_a_module_with_example_inputs(self, module: Any) -> None:
        import torch

        artifact = api.compile(module, torch.zeros(3, 32) + 0.5, scheme="W8A16")
        assert artifact.manifest.name == "Sequential"
        assert artifact.manifest.samples == "example inputs"
        self.check(artifact, module)
        with pytest.raises(BadInput, match="needs example inputs"):
            api.compile(module, scheme="W8A16")

    def test_an_exported_program_and_its_file(self, exported: Any, module: Any, tmp_path: Path) -> None:
        import torch

        self.check(api.compile(exported, scheme="W8A16"), module)
        torch.export.save(exported, tmp_path / "net.pt2")
        artifact = api.compile(tmp_path / "net.pt2", scheme="W8A16")
        assert artifact.manifest.name == "net"
        self.check(artifact, module)


def test_a_bound_on_memory_changes_no_result(tmp_path: Path) -> None:
    import torch

    torch.manual_seed(0)
    module = torch.nn.Sequential(torch.nn.Linear(1024, 1024), torch.nn.ReLU(), torch.nn.Linear(1024, 8))
    free = api.compile(module, torch.ones(2, 1024), scheme="W4A16", output=tmp_path / "free.qcc")
    bound = api.compile(module, torch.ones(2, 1024), scheme="W4A16", output=tmp_path / "bound.qcc", max_ram="600MB")
    assert bound.manifest.error == free.manifest.error
    names = {f.name for f in (tmp_path / "free.qcc").iterdir()}
    assert {f.name for f in (tmp_path / "bound.qcc").iterdir()} == names
    weights = next(name for name in names if name.startswith("weights"))
    assert (tmp_path / "bound.qcc" / weights).read_bytes() == (tmp_path / "free.qcc" / weights).read_bytes()


@pytest.mark.parametrize(("size", "message"), [("6MB", "less than the compiler itself takes"), ("much", "no size")])
def test_bounds_on_memory_that_cannot_be(size: str, message: str, digits: Path) -> None:
    with pytest.raises(BadInput, match=message):
        api.compile(digits / "digits.onnx", scheme="W8A16", max_ram=size)


def test_a_model_of_codes_keeps_them_unless_asked_otherwise(tmp_path: Path) -> None:
    (tmp_path / "quantized").mkdir()
    (tmp_path / "quantized" / "config.json").write_text('{"quantization_config": {}}')
    (tmp_path / "float").mkdir()
    (tmp_path / "float" / "config.json").write_text("{}")
    schemes_of = {name: default_scheme(tmp_path / name, "cpu") for name in ("quantized", "float", "a.gguf", "a.onnx")}
    assert schemes_of == {"quantized": "W8A8_GROUP", "float": "W4A16", "a.gguf": "W8A8_GROUP", "a.onnx": "W4A16"}
    assert default_scheme("a.gguf", "cuda") == "W8A16"
    assert default_scheme("a.gguf", "fpga") == "XINT8"
    assert default_scheme(object(), "cpu") == "W4A16"
