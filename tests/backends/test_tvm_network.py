"""Whole networks through TVM: what the expansion defines, at every size, and clear words for what there is no form for.

What needs TVM runs with the other tests of large downloads.
"""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

import qcc
from qcc.backends.tvm import symbolic, toolchain
from qcc.backends.tvm.chains import chain_of
from qcc.ir import target
from qcc.ir.dialects.onnx import OnnxOp
from qcc.ir.dialects.q import Conv
from qcc.ir.errors import BadInput, MissingExtra, NotSupported
from qcc.ir.execute import Reference
from qcc.ir.kernel_task import cheapest
from qcc.ir.program import Program
from qcc.ir.verify import compare
from tests.backends.lowering import Feeds, quantized
from tests.backends.test_tvm_linear import needs_tvm
from tests.networks import normal, program

CORES = target.load("cpu").cores


def built(subject: Program, folder: Path, threads: int = 1):
    """The program compiled by this backend, opened."""
    from qcc.backends.tvm.build import build
    from qcc.backends.tvm.run import open_folder

    folder.mkdir(parents=True, exist_ok=True)
    build(subject.clone(), target.load("cpu"), folder, "weights.safetensors", cheapest)
    return open_folder(folder, threads)


def least(subject: Program, folder: Path, samples: list[Feeds], threads: int = 1) -> float:
    """The worst agreement with the expansion, in decibels."""
    runner, reference = built(subject, folder, threads), Reference(subject, threads=1)
    return min(compare([reference.run(s)], [runner.run(s)]).sqnr_db for s in samples)


def image(n: int, c: int, h: int, w: int, seed: int = 0) -> Feeds:
    return {"x": normal(n, c, h, w, seed=seed)}


def convolutions() -> Program:
    """A first layer, a depthwise and a pointwise one, a gate, a residual sum, a pooled head; its sizes are symbols."""
    return program(
        """(float[n,3,h,w] x) => (float[n,10] y) {
            a = Conv<kernel_shape=[3,3], strides=[2,2], pads=[1,1,1,1]>(x, w0, b0)
            b = HardSwish(a)
            c = Conv<kernel_shape=[5,5], pads=[2,2,2,2], group=24>(b, w1, b1)
            d = Relu(c)
            e = Conv<kernel_shape=[1,1]>(d, w2, b2)
            f = GlobalAveragePool(e)
            g = Conv<kernel_shape=[1,1]>(f, w3, b3)
            s = Sigmoid(g)
            m = Mul(e, s)
            r = Add(m, e)
            t = Conv<kernel_shape=[1,3], pads=[0,1,0,1]>(r, w4)
            p = GlobalAveragePool(t)
            z = Flatten(p)
            y = MatMul(z, w5) }""",
        w0=normal(24, 3, 3, 3), b0=normal(24, seed=1), w1=normal(24, 1, 5, 5, scale=0.3), b1=normal(24),
        w2=normal(20, 24, 1, 1, scale=0.3), b2=normal(20), w3=normal(20, 20, 1, 1), b3=normal(20),
        w4=normal(17, 20, 1, 3, scale=0.3), w5=normal(17, 10),
    )  # fmt: skip


@needs_tvm
@pytest.mark.parametrize("threads", [1, min(2, CORES)])
def test_convolutions_at_every_size(threads: int, tmp_path: Path) -> None:
    """Codes may differ by one where a float lies between two: the agreement is that of chained layers."""
    subject = quantized(convolutions(), "W8A8", [image(2, 3, 32, 40, seed=s) for s in range(4)])
    sizes = [(1, 32, 40), (3, 17, 23), (1, 2, 2), (2, 64, 9)]
    samples = [image(n, 3, h, w, seed=9) for n, h, w in sizes]
    assert least(subject, tmp_path, samples, threads) >= 28


@needs_tvm
def test_a_network_of_no_images_gives_none(tmp_path: Path) -> None:
    subject = quantized(convolutions(), "W8A8", [image(2, 3, 16, 16)])
    assert built(subject, tmp_path).run(image(0, 3, 16, 16))["y"].shape == (0, 10)


def mlp(k: int = 96) -> Program:
    return program(
        f"""(float[n,l,{k}] x) => (float[n,l,13] y) {{
            a = LayerNormalization<axis=-1>(x, g, c)
            h = MatMul(a, w0)
            i = Add(h, b0)
            j = Gelu(i)
            y = MatMul(j, w1) }}""",
        g=normal(k), c=normal(k), w0=normal(k, 64), b0=normal(64), w1=normal(64, 13),
    )  # fmt: skip


@needs_tvm
@pytest.mark.parametrize(
    ("scheme", "decibels"),
    [
        ("W8A8", 28),
        ("W4A16", 60),
        ("W4A8", 30),
        ("W8A8_GROUP", 30),
        ("NF4", 60),
        ("W3A16", 60),
        ("Q4_K", 60),
        ("FP8A16", 55),
        ("NVFP4A16", 55),
    ],
)
def test_linear_layers_in_every_kind_of_format(scheme: str, decibels: float, tmp_path: Path) -> None:
    """16-bit fixed point stands for float activations, and rows scale themselves where the scheme says so."""
    k = 256 if scheme == "Q4_K" else 96
    samples: list[Feeds] = [{"x": normal(2, 5, k, seed=s)} for s in range(3)]
    subject = quantized(mlp(k), scheme, samples if scheme == "W8A8" else ())
    assert least(subject, tmp_path, [*samples, {"x": normal(1, 1, k)}, {"x": normal(3, 40, k)}]) >= decibels


def attention() -> Program:
    return program(
        """(float[n,l,64] x, bool[n,1,l,l] mask) => (float[n,l,64] y) {
            s = Shape(x)
            two = Slice(s, zero, end, zero)
            heads = Constant<value_ints=[4, 16]>()
            shape = Concat<axis=0>(two, heads)
            q0 = MatMul(x, w0)
            q1 = Reshape(q0, shape)
            q = Transpose<perm=[0,2,1,3]>(q1)
            k0 = MatMul(x, w1)
            k1 = Reshape(k0, shape)
            k = Transpose<perm=[0,2,1,3]>(k1)
            v0 = MatMul(x, w2)
            v1 = Reshape(v0, shape)
            v = Transpose<perm=[0,2,1,3]>(v1)
            a = Attention(q, k, v, mask)
            b = Transpose<perm=[0,2,1,3]>(a)
            c = Reshape(b, all)
            y = Add(x, c) }""",
        opset=23, w0=normal(64, 64, scale=0.2), w1=normal(64, 64, scale=0.2), w2=normal(64, 64), zero=np.array([0]),
        end=np.array([2]), all=np.array([0, 0, 64]),
    )  # fmt: skip


@needs_tvm
def test_attention_over_symbols(tmp_path: Path) -> None:
    """Shapes are computed from shapes; what a mask leaves out has no part in the result."""
    mask = np.ones((2, 1, 9, 9), bool)
    mask[1, 0, :, 5:] = False
    one = mask[:1, :, :1, :1]
    samples: list[Feeds] = [{"x": normal(2, 9, 64), "mask": mask}, {"x": normal(1, 1, 64), "mask": one}]
    assert least(quantized(attention(), "W4A16"), tmp_path, samples) >= 55


@needs_tvm
def test_an_operator_without_a_form_is_named(tmp_path: Path) -> None:
    subject = program("(float[n,4] x) => (float[n,4] y) { [strange] y = com.microsoft.BiasGelu(x, b) }", b=normal(4))
    with pytest.raises(NotSupported, match=r"strange.*TVM has no form for BiasGelu") as caught:
        built(subject, tmp_path)
    assert "--backend onnxruntime" in str(caught.value.hint)
    assert not (tmp_path / "network.so").exists()


@needs_tvm
def test_inputs_that_do_not_fit_are_refused(tmp_path: Path) -> None:
    runner = built(quantized(mlp(), "W4A16"), tmp_path)
    with pytest.raises(BadInput, match="does not run on these inputs"):
        runner.run({"x": normal(1, 2, 95)})
    assert runner.run({"x": normal(1, 2, 96)})["y"].shape == (1, 2, 13), "and it runs on after that"


@needs_tvm
def test_damaged_artifacts_are_refused(tmp_path: Path) -> None:
    from qcc.backends.tvm.run import open_folder

    built(quantized(mlp(), "W4A16"), tmp_path)
    record = json.loads((tmp_path / "network.json").read_text())
    for change, words in {
        ("tvm_ffi", "0.0.1"): "compiled with apache-tvm-ffi 0.0.1",
        ("isa", "amx"): "amx_tile" if "amx_tile" not in target.load("cpu").isa else "",
        ("inputs", None): "cannot be read",
    }.items():
        broken = {**record, change[0]: change[1]}
        if change[1] is None:
            del broken[change[0]]
        (tmp_path / "network.json").write_text(json.dumps(broken))
        if words:
            with pytest.raises((BadInput, NotSupported), match=words):
                open_folder(tmp_path, 1)
    (tmp_path / "network.json").write_text(json.dumps(record))
    (tmp_path / "network.so").write_bytes(b"no library")
    with pytest.raises(BadInput, match="does not load it"):
        open_folder(tmp_path, 1)


@needs_tvm
def test_an_artifact_runs_without_compiler_and_torch(tmp_path: Path) -> None:
    """Compiled and verified by the API; a new process loads it without the packages `tvm` and `torch`."""
    path = tmp_path / "m.qcc"
    artifact = qcc.compile(onnx_of(mlp()), scheme="W4A16", backend="tvm", include=["re:.*"], output=path)
    assert artifact.manifest.backend == "tvm"
    assert {layer.kernel for layer in artifact.manifest.layers} == {"generated C"}
    code = f"""
import sys, numpy as np, qcc
y = qcc.load({str(path)!r})(np.ones((1, 3, 96), np.float32))["y"]
assert y.shape == (1, 3, 13) and np.isfinite(y).all()
assert "torch" not in sys.modules and "tvm" not in sys.modules, sorted(m for m in sys.modules if m.startswith("t"))
"""
    run = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert run.returncode == 0, run.stderr[-2000:]


def onnx_of(subject: Program):
    """The network as a model with its weights inside."""
    from qcc.ir.emit_onnx import emit

    return emit(subject).embed(subject.weights)


# Without TVM


def test_what_is_missing_is_said_before_anything_is_done(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(toolchain, "find_spec", lambda name: None)
    with pytest.raises(MissingExtra, match="--backend tvm needs TVM") as caught:
        qcc.compile(onnx_of(mlp()), scheme="W4A16", backend="tvm", output=tmp_path / "m.qcc")
    assert "pip install" in str(caught.value.hint)
    assert not (tmp_path / "m.qcc").exists()


def known(text: str, **inputs: list[object]) -> list[object] | None:
    """What becomes of known integers by the last operator of a network."""
    subject = program(text)
    op = [op for op in subject.body.ops if isinstance(op, OnnxOp)][-1]
    by_name = dict(zip([p.name for p in subject.inputs()], subject.body.args, strict=True))
    values = {by_name[name]: symbolic.array(given) for name, given in inputs.items()}
    made = symbolic.evaluate(op, [values.get(v) if v is not None else None for v in op.slots])
    return None if made is None else list(made.reshape(-1))


def test_shapes_are_followed() -> None:
    two = "(int64[2] a, int64[2] b) => (int64[m] y) { y = %s(a, b) }"
    assert known(two % "Concat<axis=0>", a=[1, 2], b=[3, 4]) == [1, 2, 3, 4]
    assert known(two % "Mul", a=[2, 3], b=[4, 5]) == [8, 15]
    assert known(two % "Sub", a=[2, 3], b=[4, 1]) == [-2, 2]
    assert known(two % "Div", a=[7, 9], b=[2, 3]) == [3, 3]
    assert known(two % "Gather", a=[7, 9], b=[1, 0]) == [9, 7]
    assert known(two % "Mul", a=[2, 3]) is None, "an operand is not known"
    assert known(two % "Pow", a=[2, 3], b=[1, 1]) is None, "there is no rule"


def test_chains_end_where_a_value_is_read_twice() -> None:
    text = "(float[1,4,5,5] x) => (float[1,4,5,5] y) { a = Conv(x, w)  b = Relu(a)  c = Mul(b, s)  %s }"
    s, w = np.float32(2), normal(4, 4, 1, 1)
    for rest, operations in {"y = Add(c, s)": 3, "y = Add(c, a)": 0, "y = Add(c, b)": 1, "y = Tan(c)": 2}.items():
        subject = quantized(program(text % rest, w=w, s=s), "W8A8", [image(1, 4, 5, 5)])
        op = next(op for op in subject.body.ops if isinstance(op, Conv))
        chain = chain_of(op.results[0], subject)
        assert len([o for o in chain.operations if isinstance(o, OnnxOp)]) == operations, rest


@needs_tvm
def test_what_tvm_fails_to_compile_is_not_supported(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """Another backend may take the network: `--backend auto` goes on with it."""

    def fail(*_: object) -> None:
        raise toolchain.tvm().error.InternalError("Traceback\nInternalError: a loop has no end")

    def slip(*_: object) -> None:
        raise TypeError("a slip of ours")

    monkeypatch.setattr(toolchain.tvm(), "compile", fail)
    with pytest.raises(NotSupported, match="TVM does not compile the network: InternalError: a loop has no end"):
        built(convolutions(), tmp_path)
    monkeypatch.setattr(toolchain.tvm(), "compile", slip)
    with pytest.raises(TypeError, match="a slip of ours"):
        built(convolutions(), tmp_path)
