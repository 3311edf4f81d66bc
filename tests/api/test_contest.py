"""`--backend auto` in whole compilations: who takes part, who is kept, and that the record says so.

A second backend stands in for TVM: ONNX Runtime's own, under another name, slower, wrong or unwilling as a test wants
it. What needs TVM runs with the other tests of large downloads.
"""

from __future__ import annotations

import json
import sys
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from importlib.machinery import ModuleSpec
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import onnx
import pytest

from qcc import api
from qcc.api import contest, package
from qcc.backends import select
from qcc.backends.artifact import ContestRecord, Manifest, changed_files, read_manifest
from qcc.backends.onnxruntime import build as ort_build
from qcc.backends.onnxruntime import run as ort_run
from qcc.cli import run
from qcc.ir import target as targets
from qcc.ir.errors import BadInput, CheckFailed, MissingExtra, NotSupported, QccError
from tests.backends.test_tvm_linear import needs_tvm
from tests.networks import model, normal

NETWORK = "(float[N,32] x) => (float[N,8] y) { [fc1] a = MatMul(x, w) [act] b = Relu(a) [fc2] y = MatMul(b, v) }"
TARGET = targets.load("cpu")
SAMPLES = [{"x": normal(4, 32, seed=9)}]


def network() -> onnx.ModelProto:
    return model(NETWORK, w=normal(32, 48), v=normal(48, 8, seed=1))


# A backend beside ONNX Runtime


@dataclass
class Second:
    """How it is to behave, and what was done with it. It stands before ONNX Runtime or behind it by its name."""

    name: str = "second"
    obstacle: str | QccError = ""
    refuses: QccError | None = None
    fails: QccError | None = None
    noise: float = 0.0
    slow: Mapping[str, float] = field(default_factory=dict[str, float])
    """Seconds that a call takes longer, by backend."""
    built: int = 0


Enter = Callable[[Second], Second]


@pytest.fixture
def enter(monkeypatch: pytest.MonkeyPatch) -> Enter:
    """Let a second backend take part for this test; rounds are few, their rests short."""

    def entered(second: Second) -> Second:
        make, open_runner = _modules(second), package.open_runner
        for part, module in make.items():
            module.__spec__ = ModuleSpec(f"qcc.backends.{second.name}.{part}", None)
            monkeypatch.setitem(sys.modules, f"qcc.backends.{second.name}.{part}", module)
        monkeypatch.setattr(select, "names", lambda: sorted(["onnxruntime", second.name]))
        monkeypatch.setattr(select, "fitting", lambda target: select.names())
        monkeypatch.setattr(package, "open_runner", lambda b, *a, **k: _Slowed(open_runner(b, *a, **k), second, b))
        monkeypatch.setattr(contest, "ROUNDS", 4)
        monkeypatch.setattr(contest, "REST", 0.001)
        monkeypatch.setattr(contest, "BURST", 0.002)
        return second

    return entered


class _Slowed:
    def __init__(self, runner: Any, second: Second, backend: str) -> None:
        self._runner, self._second, self._backend, self.device = runner, second, backend, runner.device

    def run(self, feeds: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
        time.sleep(self._second.slow.get(self._backend, 0.0))
        return self._runner.run(feeds)


def _modules(second: Second) -> dict[str, Any]:
    """`build` and `run`, as a folder of a backend has them."""
    building, running = ModuleType("build"), ModuleType("run")

    def obstacle(scheme: str, target: object) -> str:
        if isinstance(second.obstacle, QccError):
            raise second.obstacle
        return second.obstacle

    def build(*args: Any) -> select.Built:
        second.built += 1
        made = ort_build.build(*args)
        if second.refuses is not None:  # after it has packed the weights and written files
            raise second.refuses
        return made

    class Runner(ort_run.SessionRunner):
        def run(self, feeds: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
            if second.fails is not None:
                raise second.fails
            return {n: a * np.float32(1 + second.noise) for n, a in super().run(feeds).items()}

    building.__dict__.update(DEVICES=("cpu",), obstacle=obstacle, resolve=ort_build.resolve, build=build)
    running.__dict__.update(
        open_folder=lambda folder, threads, frugal=False: Runner(str(folder / "model.onnx"), folder, threads)
    )
    return {"build": building, "run": running}


def records(manifest: Manifest) -> dict[str, ContestRecord]:
    return {record.backend: record for record in manifest.contest}


def compiled(**options: Any) -> Manifest:
    return api.compile(network(), scheme="W8A16", calibration=SAMPLES, **options).manifest


# Whole compilations


@pytest.mark.parametrize("name", ["another", "second"])
def test_the_faster_is_kept_and_the_manifest_says_by_how_much(name: str, enter: Enter) -> None:
    enter(Second(name, slow={"onnxruntime": 0.02}))
    manifest = compiled()
    theirs, ours = records(manifest)[name], records(manifest)["onnxruntime"]
    assert manifest.backend == name
    assert (theirs.kept, ours.kept) == (True, False)
    assert theirs.latency_ms is not None and ours.latency_ms is not None
    assert ours.latency_ms.median >= 20 > theirs.latency_ms.median
    assert ours.latency_ms.p10 <= ours.latency_ms.median <= ours.latency_ms.p90
    ratio = ours.latency_ms.median / theirs.latency_ms.median
    assert theirs.reason == f"{ratio:.2f}x faster than onnxruntime"
    assert ours.reason == f"{ratio:.2f}x slower than {name}"
    assert theirs.sqnr_db == ours.sqnr_db == manifest.error.sqnr_db


@pytest.mark.parametrize("name", ["another", "second"])
def test_the_slower_leaves_nothing_behind(name: str, enter: Enter, tmp_path: Path) -> None:
    """The same bytes as without a contest, whichever builds first: the first changes nothing that the second reads."""
    alone = compiled(backend="onnxruntime")
    second = enter(Second(name, slow={name: 0.02}))
    manifest = compiled(output=tmp_path / "net.qcc")
    assert second.built == 1
    assert manifest.backend == "onnxruntime"
    assert manifest.files == alone.files
    assert manifest == alone.model_copy(update={"name": "net", "contest": manifest.contest})
    assert changed_files(tmp_path / "net.qcc", manifest) == []
    assert [p.name for p in tmp_path.iterdir()] == ["net.qcc"]
    assert api.verify(tmp_path / "net.qcc").ok


def test_the_second_builds_what_it_builds_alone(enter: Enter) -> None:
    enter(Second(slow={"onnxruntime": 0.02}))
    assert compiled().files == compiled(backend="second").files


def test_a_backend_that_was_asked_for_meets_no_other(enter: Enter) -> None:
    second = enter(Second(slow={"onnxruntime": 0.02}))
    manifest = compiled(backend="onnxruntime")
    assert (manifest.backend, manifest.contest, second.built) == ("onnxruntime", [], 0)


@pytest.mark.parametrize("name", ["another", "second"])
@pytest.mark.parametrize(
    ("error", "reason"),
    [
        (NotSupported("it has no form for onnx.CumSum"), "it has no form for onnx.CumSum"),
        (MissingExtra("no linker", hint="apt install ld"), "not installed: no linker (apt install ld)"),
    ],
)
def test_one_that_refuses_is_left_out_with_its_reason(name: str, error: QccError, reason: str, enter: Enter) -> None:
    alone = compiled(backend="onnxruntime")
    enter(Second(name, refuses=error))
    manifest = compiled()
    assert manifest.files == alone.files
    assert records(manifest)[name] == ContestRecord(backend=name, kept=False, reason=reason)
    kept = records(manifest)["onnxruntime"]
    assert (kept.kept, kept.reason, kept.latency_ms) == (True, "no other is left", None)


def test_an_error_of_another_kind_is_not_hidden(enter: Enter) -> None:
    enter(Second(refuses=BadInput("the weights are damaged")))
    with pytest.raises(BadInput, match="damaged"):
        compiled()


def test_where_all_refuse_the_first_says_why(enter: Enter, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    enter(Second("another", refuses=NotSupported("the first reason")))

    def refuse(*_: object) -> None:
        raise NotSupported("the second reason")

    monkeypatch.setattr(ort_build, "build", refuse)
    with pytest.raises(NotSupported, match="reason"):
        compiled(output=tmp_path / "net.qcc")
    assert list(tmp_path.iterdir()) == []


def test_one_that_does_not_run_on_the_samples_is_left_out(enter: Enter) -> None:
    enter(Second(fails=BadInput("a shape it never saw"), slow={"onnxruntime": 0.02}))
    manifest = compiled()
    assert manifest.backend == "onnxruntime"
    assert records(manifest)["second"].reason == "does not run: a shape it never saw"


def test_a_fast_one_that_is_wrong_is_not_kept(enter: Enter) -> None:
    enter(Second(noise=0.1, slow={"onnxruntime": 0.02}))
    manifest = compiled()
    wrong, right = records(manifest)["second"], records(manifest)["onnxruntime"]
    assert manifest.backend == "onnxruntime"
    assert wrong.sqnr_db is not None and wrong.sqnr_db < 21
    assert (
        wrong.reason == f"reaches {wrong.sqnr_db:.2f} dB, more than 1 dB below the {right.sqnr_db:.2f} of onnxruntime"
    )
    assert wrong.latency_ms is not None and right.latency_ms is not None, "what exactness costs"
    assert right.reason.endswith("x slower than second, but exact enough")


def test_gates_hold_for_whatever_is_kept(enter: Enter, tmp_path: Path) -> None:
    enter(Second(noise=0.001))
    with pytest.raises(CheckFailed, match=r"reaches \d+\.\d\d dB, less than --min-sqnr 190"):
        compiled(min_sqnr=190, output=tmp_path / "net.qcc")
    assert list(tmp_path.iterdir()) == []


def test_the_command_line_tells_who_was_kept(enter: Enter, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    enter(Second(slow={"onnxruntime": 0.02}))
    onnx.save(network(), tmp_path / "net.onnx")
    command = ["compile", str(tmp_path / "net.onnx"), "--scheme", "W8A16", "--json"]
    assert run([*command, "-o", str(tmp_path / "net.qcc")]) == 0
    printed = capsys.readouterr()
    found = json.loads(printed.out.splitlines()[-1])
    assert found["backend"] == "second"
    first, second = found["backends"]
    assert (first["backend"], second["backend"]) == ("onnxruntime", "second")
    assert second["kept"] and second["reason"] in printed.err
    assert first["latency_ms"]["median"] > second["latency_ms"]["median"]
    assert read_manifest(tmp_path / "net.qcc").contest == [ContestRecord(**record) for record in found["backends"]]


def test_a_plan_names_who_would_compete(enter: Enter, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    second = enter(Second())
    assert [(d.node, d.action) for d in api.plan(network()).decisions[-2:]] == [
        ("onnxruntime", "competes"),
        ("second", "competes"),
    ]
    second.obstacle = MissingExtra("it needs a compiler", hint="apt install gcc")
    onnx.save(network(), tmp_path / "net.onnx")
    assert run(["compile", str(tmp_path / "net.onnx"), "--dry-run", "--json"]) == 0
    found = json.loads(capsys.readouterr().out.splitlines()[-1])
    assert found["backend"] == "onnxruntime"
    assert found["backends"] == [
        {"backend": "onnxruntime", "competes": True, "reason": "no other is left"},
        {
            "backend": "second",
            "competes": False,
            "reason": "not installed: it needs a compiler (apt install gcc)",
        },
    ]
    assert second.built == 0
    assert api.plan(network(), backend="onnxruntime").decisions == api.plan(network()).decisions[:-2]


def test_a_manifest_from_before_contests_is_read(tmp_path: Path) -> None:
    folder = tmp_path / "net.qcc"
    api.compile(network(), scheme="W8A16", output=folder, backend="onnxruntime")
    data = json.loads((folder / "manifest.json").read_text())
    del data["contest"]
    (folder / "manifest.json").write_text(json.dumps(data))
    assert read_manifest(folder).contest == []
    assert api.verify(folder).ok


# Who may take part


def reasons(target: targets.Target, scheme: str = "W8A16") -> dict[str, str]:
    return {c.backend: c.obstacle for c in select.candidates(target, "auto", scheme)}


def test_an_obstacle_keeps_a_backend_out_before_anything_is_read(enter: Enter) -> None:
    second = enter(Second("another", obstacle="no kernels"))
    assert reasons(TARGET) == {
        "another": "target cpu does not take scheme W8A16: no kernels",
        "onnxruntime": "",
    }
    manifest = compiled()
    assert (manifest.backend, second.built) == ("onnxruntime", 0)
    assert records(manifest)["another"].reason == "target cpu does not take scheme W8A16: no kernels"
    with pytest.raises(NotSupported, match="no kernels"):
        compiled(backend="another")


def test_where_none_can_the_first_says_why(enter: Enter) -> None:
    enter(Second("another", obstacle=MissingExtra("it is not there", hint="get it")))
    with pytest.raises(MissingExtra, match="it is not there"):
        select.candidates(TARGET, "auto", "XINT8")
    with pytest.raises(MissingExtra, match="it is not there"):
        compiled(backend="another")


def test_for_another_machine_the_first_that_can_is_taken_unmeasured(enter: Enter) -> None:
    board = replace(TARGET, name="board", machine="", isa=())
    enter(Second("another", obstacle="no kernels"))
    assert reasons(board)["onnxruntime"] == ""
    enter(Second("second"))
    found = reasons(board)
    assert found["onnxruntime"] == ""
    assert found["second"] == "not tried: board is not this machine, where they could be compared"


def test_targets_with_one_backend_have_no_contest() -> None:
    assert select.candidates(targets.load("cuda"), "auto", "W4A16") == [select.Candidate("onnxruntime")]
    assert select.candidates(targets.load("fpga"), "auto", "XINT8") == [select.Candidate("fpga")]


# TVM itself


@pytest.fixture
def both(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(select, "fitting", lambda target: ["onnxruntime", "tvm"])


@needs_tvm
def test_a_small_network_by_both(both: None, tmp_path: Path) -> None:
    text = """(float[n,3,h,w] x) => (float[n,10] y) {
        a = Conv<kernel_shape=[3,3], pads=[1,1,1,1]>(x, w0)
        b = HardSwish(a)
        c = Conv<kernel_shape=[1,1]>(b, w1)
        d = Relu(c)
        e = GlobalAveragePool(d)
        f = Flatten(e)
        y = MatMul(f, w2) }"""
    proto = model(text, w0=normal(24, 3, 3, 3), w1=normal(32, 24, 1, 1), w2=normal(32, 10))
    samples = [{"x": normal(1, 3, 24, 24, seed=s)} for s in range(3)]
    artifact = api.compile(proto, scheme="W8A8", calibration=samples, output=tmp_path / "net.qcc")
    found = records(artifact.manifest)
    assert set(found) == {"onnxruntime", "tvm"}
    times = {name: r.latency_ms.median for name, r in found.items() if r.latency_ms}
    assert len(times) == 2
    assert artifact.manifest.backend == min(times, key=lambda name: times[name])
    assert api.verify(artifact).ok
    files = {"onnxruntime": "model.onnx", "tvm": "network.so"}
    assert [name for name, file in files.items() if (artifact.folder / file).exists()] == [artifact.manifest.backend]


@needs_tvm
def test_a_network_that_tvm_has_no_form_for_is_left_to_onnx_runtime(both: None) -> None:
    proto = model(
        """(float[n,32] x) => (float[n,8] y) {
            h = MatMul(x, w)
            s = LpNormalization<axis=1, p=2>(h)
            y = MatMul(s, v) }""",
        w=normal(32, 32), v=normal(32, 8),
    )  # fmt: skip
    manifest = api.compile(proto, scheme="W8A16", calibration=SAMPLES).manifest
    assert manifest.backend == "onnxruntime"
    assert "onnx.LpNormalization" in records(manifest)["tvm"].reason


@needs_tvm
def test_a_language_model_by_both(both: None, tmp_path: Path) -> None:
    from tests.language import decoder, save

    folder = save(decoder("llama"), tmp_path)
    manifest = api.compile(folder, scheme="W4A8", group_size=32).manifest
    times = {name: r.latency_ms.median for name, r in records(manifest).items() if r.latency_ms}
    assert set(times) == {"onnxruntime", "tvm"}
    assert manifest.backend == min(times, key=lambda name: times[name])
