"""Every scheme: a network in it computes what its expansion defines, in ONNX Runtime, and its artifact verifies.

The layers have what goes wrong: groups that do not divide K, K smaller than a group, K = 1, N = 1.
"""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

import qcc
from qcc.backends.artifact import read_manifest
from qcc.backends.onnxruntime.build import build
from qcc.backends.onnxruntime.run import open_folder
from qcc.ir import target
from qcc.ir.format import Format
from qcc.ir.program import Program
from qcc.passes import schemes
from qcc.passes.algorithms import rtn
from tests.backends.lowering import decibels, quantized
from tests.networks import model, normal, program

NETWORK = """(float[N,130] x) => (float[N,5] y, float[N,3] z) {
    [wide] a = MatMul(x, w1) [bias] b = Add(a, c1) [relu] r = Relu(b) [short] y = MatMul(r, w2)
    [narrow] s = MatMul(x, w3) [single] z = MatMul(s, w4)
}"""
WEIGHTS = {
    "w1": normal(130, 67, seed=1),
    "c1": normal(67, seed=2),
    "w2": normal(67, 5, seed=3),
    "w3": normal(130, 1, seed=4),
    "w4": normal(1, 3, seed=5),
}
SAMPLES = [{"x": normal(n, 130, seed=n)} for n in (7, 1)]
NAMES = [name for name in schemes.names() if name not in ("float", "XINT8")]
DECODED = "decoded when the model is loaded: float speed and memory"
WITH_KERNELS = {
    "NVINT4A16", "Q3_K", "Q4_0", "Q4_1", "Q4_K", "Q5_0", "Q6_K", "Q8_0", "W3A16", "W4A16", "W4A16_ASYM", "W4A8",
    "W8A16", "W8A8", "W8A8_DYNAMIC", "W8A8_GROUP",
}  # fmt: skip
"""Schemes that have a kernel beside the expansion; which one runs is a matter of the machine's speeds."""
LEAST = {1: 0.0, 2: 4.0, 3: 8.0, 4: 9.0, 5: 20.0, 6: 19.0, 8: 19.0}
"""Decibels that a network of normal weights keeps, by bits; a wrong scale, sign or order keeps none."""


def network() -> Program:
    return program(NETWORK, **WEIGHTS)


@pytest.mark.parametrize("name", NAMES)
def test_kernels_compute_what_the_expansion_defines(name: str, tmp_path: Path) -> None:
    """To 100 dB: kernels add in another order, and a code of an activation may turn at a tie."""
    samples = SAMPLES if schemes.load(name).needs_calibration else ()
    made = quantized(network(), name, samples)
    assert sum(op.name == "q.linear" for op in made.module.walk()) == 4
    built = build(made.clone(), target.load("cpu"), tmp_path, "weights.safetensors")
    runner = open_folder(tmp_path, 1)
    assert min(decibels(made, runner, SAMPLES)) > 100
    kept = min(decibels(network(), runner, SAMPLES[:1]))
    scheme = schemes.load(name)
    assert kept > (LEAST[scheme.bits] if scheme.linear_format().sparsity is None else 4)
    assert name in WITH_KERNELS or {a.choice.kernel for a in built.assignments} == {"expansion"}


ARTIFACTS = [*NAMES, "nf4, e4m3 per 64, f32 per *", "u4, f16 per 32, zero u8 per *, permuted", "k8 in bf16 per 4x*"]


@pytest.mark.parametrize("name", ARTIFACTS)
def test_artifacts_verify_and_say_what_is_decoded_when_loaded(name: str, tmp_path: Path) -> None:
    network, folder = model(NETWORK, **WEIGHTS), tmp_path / "a.qcc"
    qcc.compile(network, scheme=name, calibration=SAMPLES, include=["re:.*"], output=folder)
    found = qcc.verify(folder)
    assert found.ok
    assert not found.failures
    manifest = read_manifest(folder)
    assert {layer.node for layer in manifest.layers} == {"wide", "short", "narrow", "single"}
    for layer in manifest.layers:
        if layer.kernel == "expansion":  # others may widen codes and scales
            assert layer.reason == DECODED
            wanted = replace(schemes.load(name).linear_format(), permuted=False)  # inputs are permuted instead
            assert Format.parse(layer.format) == wanted
    assert name in WITH_KERNELS or {layer.kernel for layer in manifest.layers} == {"expansion"}
    wide = manifest.layers[0]
    assert (wide.node, wide.shape) == ("wide", [67, 130])
    ideal = Format.parse(wide.format).bits_per_weight((67, 130))
    beyond = 8 * wide.bytes / (67 * 130) - ideal  # outliers, and levels of less than a byte, which take one
    assert -0.01 < beyond < 1.25
    assert qcc.load(folder)(**SAMPLES[1])["z"].shape == (1, 3)


@pytest.mark.parametrize("group", [16, 64, 256])
@pytest.mark.parametrize("name", ["W4A16", "W4A16_ASYM", "W4A8", "W2A16", "W8A16"])
def test_groups_of_the_user_need_not_divide(name: str, group: int, tmp_path: Path) -> None:
    made = quantized(network(), name, group_size=group)
    build(made.clone(), target.load("cpu"), tmp_path, "weights.safetensors")
    assert min(decibels(made, open_folder(tmp_path, 1), SAMPLES)) > 100


@pytest.mark.parametrize("name", [n for n in NAMES if len(schemes.load(n).linear_format().scales) > 1])
def test_a_block_of_zeros_leaves_its_neighbours_as_they_are(name: str) -> None:
    """Blocks share outer scales: one that asks for nothing must not raise them."""
    fmt, weight = schemes.load(name).linear_format(), normal(4, 512, seed=6, scale=0.02)
    weight[0, :64] = 0
    without = np.where(np.arange(512) < 64, np.float32(1e-5), weight[:1])
    found, other = rtn.fit(weight, fmt), rtn.fit(np.concatenate([without, weight[1:]]), fmt)
    np.testing.assert_array_equal(found.decode()[0, :64], 0)
    errors = [np.square(value.decode()[:, 64:] - weight[:, 64:]).sum() for value in (found, other)]
    assert errors[0] < 1.1 * errors[1]


@pytest.mark.parametrize("name", [name for name in NAMES if not schemes.load(name).is_element])
def test_convolutions_take_eight_bits_where_a_scheme_is_for_matrices(name: str) -> None:
    text = "(float[N,4,6,6] x) => (float[N,8,6,6] y) { [conv] y = Conv<pads=[1,1,1,1]>(x, w) }"
    made = quantized(program(text, w=normal(8, 4, 3, 3)), name)
    assert [str(op.result.type.format) for op in made.weight_ops() if op.weight.endswith(".q")] == ["i8, f32 per *x*x*"]
    reason = next(d.reason for d in made.decisions if d.node == "conv")
    assert reason.endswith(f"{name} is for matrices, convolutions take 8 bits")
