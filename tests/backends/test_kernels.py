"""Every kernel computes what the expansion of its operation defines, on ordinary, extreme and empty data."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from qcc.backends.onnxruntime import kernels
from qcc.backends.onnxruntime.integer_hard_swish import integer_hard_swish
from qcc.backends.onnxruntime.speed import Speed
from qcc.ir.errors import NotSupported
from qcc.ir.execute import run
from qcc.ir.format import Format
from qcc.ir.kernel_task import KernelTask
from qcc.ir.program import Program
from qcc.passes import schemes
from qcc.passes.schemes import Scheme
from tests.backends.lowering import built, decibels, inputs, quantized
from tests.networks import names, normal, program

FLOAT = 110
"""Decibels between two orders of float32 summation, with the same codes on both sides."""
CONVOLUTION = 60
"""An integer convolution adds its bias in int32 steps."""
CHAINED = 32
"""Codes between two layers may differ by one where the float results lie near the middle of two."""

SUMS = 80.0
"""Decibels where blocks of activations are summed by themselves: what cancels inside a block is rounded twice."""

Weights = dict[str, NDArray[Any]]


def matmul(k: int, n: int = 11) -> Program:
    return program(f"(float[N,{k}] x) => (float[N,{n}] y) {{ y = MatMul(x, w) }}", w=normal(k, n))


def agree(subject: Program, kernel: str, folder: Path, samples: list[NDArray[Any]], least: float) -> None:
    found = decibels(subject, built(subject, kernel, folder), [{"x": sample} for sample in samples])
    assert min(found) >= least, f"{kernel}: {found} dB"


def extremes(*shape: int) -> list[NDArray[Any]]:
    return [*inputs(*shape).values(), normal(1, *shape[1:]), np.zeros((0, *shape[1:]), np.float32)]


@pytest.mark.parametrize("k", [32, 37, 300])
@pytest.mark.parametrize("level", [1, 4])
@pytest.mark.parametrize("asymmetric", [False, True], ids=["symmetric", "asymmetric"])
@pytest.mark.parametrize("bits", [2, 4, 8])
def test_matmul_nbits(
    bits: int, asymmetric: bool, level: int, k: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    activation = {"activation": "i8", "dynamic": True} if level == 4 else {}
    scheme = Scheme("TEST", "", f"i{bits}", 32, asymmetric, **activation)
    monkeypatch.setattr(schemes, "load", lambda name: scheme)
    subject = quantized(matmul(k), "TEST")
    agree(subject, "matmul_nbits", tmp_path, extremes(3, k), FLOAT if level == 1 else 100)


@pytest.mark.parametrize("k", [256, 320])
@pytest.mark.parametrize("scheme", ["Q4_1", "Q4_K", "Q5_1", "Q5_K", "Q2_K"])
def test_matmul_nbits_with_minima_as_sums_of_activations(scheme: str, k: int, tmp_path: Path) -> None:
    agree(quantized(matmul(k), scheme), "matmul_nbits_offset", tmp_path, extremes(3, k), SUMS)


@pytest.mark.parametrize("group", [16, 64, 128, 256])
def test_matmul_nbits_with_other_blocks(group: int, tmp_path: Path) -> None:
    for scheme in ("W4A16", "W4A16_ASYM"):
        subject = quantized(matmul(200), scheme, group_size=group)
        agree(subject, "matmul_nbits", tmp_path / scheme, [normal(3, 200)], FLOAT)


@pytest.mark.parametrize("k", [32, 37, 300])
def test_dynamic_quantize_matmul(k: int, tmp_path: Path) -> None:
    agree(quantized(matmul(k), "W8A8_DYNAMIC"), "dynamic_quantize_matmul", tmp_path, extremes(3, k), FLOAT)


@pytest.mark.parametrize("kind", inputs(3, 37))
def test_qdq_linear(kind: str, tmp_path: Path) -> None:
    sample = inputs(3, 37)[kind]
    subject = quantized(matmul(37), "W8A8", [{"x": sample}])
    agree(subject, "qdq_linear", tmp_path, [sample, sample[:1], sample[:0], sample * 3], FLOAT)


BIASES: dict[str, NDArray[Any]] = {
    "[N]": normal(11),
    "[1, N]": normal(1, 11),
    "scalar": np.float32(1.5),
    "[1]": normal(1),
    "[M, 1]": normal(11, 1),
    "[M, N]": normal(11, 11),
}


@pytest.mark.parametrize("shape", BIASES)
@pytest.mark.parametrize(
    ("kernel", "scheme"),
    [
        ("matmul_nbits", "W4A16"),
        ("matmul_nbits", "W4A8"),
        ("dynamic_quantize_matmul", "W8A8_DYNAMIC"),
        ("qdq_linear", "W8A8"),
        ("expansion", "W8A16"),
    ],
)
def test_a_bias_of_any_shape_that_gemm_takes(kernel: str, scheme: str, shape: str, tmp_path: Path) -> None:
    """[M, 1] with M = N is the trap: as many numbers as features, but one a row."""
    text = "(float[11,64] x) => (float[11,11] y) { y = Gemm(x, w, b) }"
    sample = normal(11, 64)
    calibration = [{"x": sample}] if scheme == "W8A8" else []
    subject = quantized(program(text, w=normal(64, 11), b=BIASES[shape]), scheme, calibration)
    agree(subject, kernel, tmp_path, [sample], 100)


@pytest.mark.parametrize("scheme", ["W8A16", "W4A16", "W4A16_ASYM", "W2A16", "W4A8", "W8A8_DYNAMIC", "W8A8"])
def test_the_expansion_of_packed_weights_is_that_of_plain_ones(scheme: str, tmp_path: Path) -> None:
    calibration = [{"x": normal(3, 37)}] if scheme == "W8A8" else []
    agree(quantized(matmul(37), scheme, calibration), "expansion", tmp_path, extremes(3, 37), FLOAT)


CONVOLUTIONS: dict[str, tuple[str, str, Weights]] = {
    "padded": ("<pads=[1,0,1,1], strides=[2,1]>(x, w, b)", "N,16,9,8", {"w": normal(24, 16, 3, 3), "b": normal(24)}),
    "depthwise": ("<group=32>(x, w, b)", "N,32,7,7", {"w": normal(32, 1, 3, 3), "b": normal(32)}),
    "groups": ("<group=2>(x, w)", "N,16,7,7", {"w": normal(24, 8, 3, 3)}),
    "same upper": (
        '<auto_pad="SAME_UPPER", strides=[2,2]>(x, w, b)',
        "N,16,7,8",
        {"w": normal(5, 16, 3, 3), "b": normal(5)},
    ),
    "same lower": ('<auto_pad="SAME_LOWER">(x, w, b)', "N,16,7,8", {"w": normal(5, 16, 2, 2), "b": normal(5)}),
    "1-D": ("<dilations=[2], pads=[2,2]>(x, w, b)", "N,16,20", {"w": normal(7, 16, 3), "b": normal(7)}),
    "3-D": ("(x, w, b)", "N,4,5,6,7", {"w": normal(7, 4, 2, 3, 2), "b": normal(7)}),
    "pointwise": ("(x, w)", "N,48,3,5", {"w": normal(13, 48, 1, 1)}),
}


def convolution(kind: str) -> tuple[Program, list[int]]:
    body, shape, weights = CONVOLUTIONS[kind]
    dims = ",".join("N" if i == 0 else f"D{i}" for i in range(shape.count(",") + 1))
    subject = program(f"(float[{shape}] x) => (float[{dims}] y) {{ y = Conv{body} }}", **weights)
    return subject, [2 if d == "N" else int(d) for d in shape.split(",")]


@pytest.mark.parametrize("kind", CONVOLUTIONS)
def test_qdq_conv(kind: str, tmp_path: Path) -> None:
    subject, shape = convolution(kind)
    for data in ("normal", "huge", "tiny", "positive", "outlier"):
        sample = inputs(*shape)[data]
        after = quantized(subject, "W8A8", [{"x": sample}])
        agree(after, "qdq_conv", tmp_path / data, [sample, sample[:1]], CONVOLUTION)


@pytest.mark.parametrize("kind", CONVOLUTIONS)
@pytest.mark.parametrize("scheme", ["W8A16", "W4A16_ASYM"])
def test_the_expansion_of_convolutions(kind: str, scheme: str, tmp_path: Path) -> None:
    subject, shape = convolution(kind)
    agree(quantized(subject, scheme), "expansion", tmp_path, list(inputs(*shape).values()), FLOAT)


@pytest.mark.parametrize("scheme", ["W8A8", "W4A16", "W2A16", "W4A16_ASYM"])
def test_the_expansion_of_transposed_convolutions(scheme: str, tmp_path: Path) -> None:
    body = "y = ConvTranspose<strides=[2,2], pads=[1,0,1,1], output_padding=[1,0]>(x, w, b)"
    before = program(f"(float[N,4,9,9] x) => (float[N,6,H,V] y) {{ {body} }}", w=normal(4, 6, 3, 3), b=normal(6))
    calibration = [{"x": normal(2, 4, 9, 9)}] if scheme == "W8A8" else []
    agree(quantized(before, scheme, calibration), "expansion", tmp_path, list(inputs(2, 4, 9, 9).values()), FLOAT)


def test_a_channel_of_almost_nothing_but_bias_keeps_its_bias(tmp_path: Path) -> None:
    """In int32 steps of both scales its bias would overflow without a word."""
    weight, bias = normal(32, 16, 3, 3), normal(32)
    weight[3] *= 1e-11
    bias[3] = 5
    before = program("(float[N,16,8,8] x) => (float[N,32,6,6] y) { y = Conv(x, w, b) }", w=weight, b=bias)
    sample = {"x": normal(2, 16, 8, 8)}
    subject = quantized(before, "W8A8", [sample])
    got = built(subject, "qdq_conv", tmp_path).run(sample)["y"]
    expected = run(before, sample)["y"]
    assert np.abs(got[:, 3] - expected[:, 3]).max() < 1e-3
    assert np.abs(got - expected).max() < 0.05 * np.abs(expected).max()


def test_a_chain_in_codes_differs_by_a_step_at_most(tmp_path: Path) -> None:
    body = "c = Conv(x, w, b) r = Relu(c) p = MaxPool<kernel_shape=[2,2]>(r) d = Conv(p, v) y = Sigmoid(d)"
    before = program(
        f"(float[N,16,9,9] x) => (float[N,16,4,4] y) {{ {body} }}",
        w=normal(16, 16, 3, 3, scale=0.2), b=normal(16), v=normal(16, 16, 3, 3, seed=2, scale=0.2),
    )  # fmt: skip
    samples = [normal(2, 16, 9, 9, seed=s) for s in range(2)]
    subject = quantized(before, "W8A8", [{"x": s} for s in samples])
    agree(subject, "qdq_conv", tmp_path, samples, CHAINED)


INDICES = [np.array([[0, 49, -1], [3, 3, -50]]), np.array([[7]]), np.zeros((0, 3), np.int64)]


@pytest.mark.parametrize("width", [64, 48, 33, 10])
@pytest.mark.parametrize(
    ("kernel", "scheme", "group"),
    [
        ("gather_rows", "W8A8", 0),
        ("gather_block_quantized", "W8A16", 32),
        ("gather_block_quantized", "W4A16", 16),
        ("gather_block_quantized", "W4A16", 1024),
        ("expansion", "W2A16", 32),
        ("expansion", "W4A16_ASYM", 32),
    ],
)
def test_embeddings(kernel: str, scheme: str, group: int, width: int, tmp_path: Path) -> None:
    before = program(f"(int64[B,T] x) => (float[B,T,{width}] y) {{ y = Gather(table, x) }}", table=normal(50, width))
    subject = quantized(before, scheme, group_size=group)
    if width == 33 and scheme == "W4A16":
        with pytest.raises(StopIteration):  # rows of half bytes: this kernel is not offered
            built(subject, kernel, tmp_path)
        return
    agree(subject, kernel, tmp_path, INDICES, 140)


@pytest.mark.parametrize(
    ("kernel", "scheme"), [("gather_rows", "W8A8"), ("gather_block_quantized", "W4A16"), ("expansion", "W8A16")]
)
@pytest.mark.parametrize("indices", [np.array(-3), np.array([1, 2], np.int32)], ids=["scalar", "int32"])
def test_indices_of_any_rank_and_integer_type(kernel: str, scheme: str, indices: NDArray[Any], tmp_path: Path) -> None:
    dtype, shape = ("int32", "[T]") if indices.ndim else ("int64", "")
    dims = "T,64" if indices.ndim else "64"
    before = program(f"({dtype}{shape} x) => (float[{dims}] y) {{ y = Gather(table, x) }}", table=normal(50, 64))
    agree(quantized(before, scheme), kernel, tmp_path, [indices], 140)


@pytest.mark.parametrize(("scale", "zero"), [(0.05, 0), (0.03, 97), (0.2, 128), (0.01, 200)])
def test_integer_hard_swish_is_within_its_steps(scale: float, zero: int) -> None:
    """t has steps of 6/255 on [0, 6], y those of its output: each may be off by half of one."""
    text = """(float[N] x) => (float[N] y) {
        a = QuantizeLinear(x, s, z) b = DequantizeLinear(a, s, z) h = HardSwish(b)
        c = QuantizeLinear(h, s2, z2) y = DequantizeLinear(c, s2, z2) }"""
    out_scale, out_zero = np.float32(max(scale, 0.02)), np.uint8(20)
    before = program(text, s=np.float32(scale), z=np.uint8(zero), s2=out_scale, z2=out_zero)
    after = before.clone()
    integer_hard_swish(after)
    assert "HardSwish" not in names(after)
    x = (np.arange(256) - zero).astype(np.float32) * np.float32(scale)
    expected, got = run(before, {"x": x})["y"], run(after, {"x": x})["y"]
    step = np.abs(x) / 6 * (6 / 255) / 2 + float(out_scale) * 1.001
    assert (np.abs(expected - got) <= step).all()
    assert got.max() > 0 or zero >= 200


@pytest.mark.parametrize(
    "text",
    [
        "h = HardSwish(b) y = Relu(h)",
        "h = HardSwish(b) c = QuantizeLinear(h, s, i) y = DequantizeLinear(c, s, i)",
        "h = HardSwish(b) c = QuantizeLinear(h, s, z) d = DequantizeLinear(c, s, z) y = Add(d, h)",
        "r = Relu(b) h = HardSwish(r) c = QuantizeLinear(h, s, z) y = DequantizeLinear(c, s, z)",
    ],
)
def test_hard_swish_stays_where_codes_do_not_stand_on_both_sides(text: str) -> None:
    before = program(
        f"(float[N] x) => (float[N] y) {{ a = QuantizeLinear(x, s, z) b = DequantizeLinear(a, s, z) {text} }}",
        s=np.float32(0.1), z=np.uint8(30), i=np.int8(3),
    )  # fmt: skip
    after = before.clone()
    integer_hard_swish(after)
    assert names(after) == names(before)


SPEED = Speed(
    {f"matmul_nbits {b} level {v} block {g}": 1e-9 for b in (2, 4, 8) for v in (1, 4) for g in (32, 128)}
    | {"dynamic_quantize_matmul": 2e-9, "float": 3e-9}
)


@pytest.mark.parametrize(
    ("op", "weight", "activation", "dynamic", "offered"),
    [
        ("q.linear", "i4, f32 per 32", None, False, {"matmul_nbits", "expansion"}),
        ("q.linear", "i4, f32 per 32", "i8, f32 per 32", True, {"matmul_nbits", "expansion"}),
        ("q.linear", "i4, f32 per 32", "i8, f32 per 64", True, {"expansion"}),
        ("q.linear", "i4, f32 per 24", None, False, {"expansion"}),
        ("q.linear", "i4, f32 per 8", None, False, {"expansion"}),
        ("q.linear", "i4, f32 per 512", None, False, {"expansion"}),
        ("q.linear", "u4, f32 per 32", None, False, {"expansion"}),
        ("q.linear", "u4, f32 per 32, zero i4", None, False, {"expansion"}),
        ("q.linear", "i4, f16 per 32", None, False, {"expansion"}),
        ("q.linear", "i3, f32 per 32", None, False, {"expansion"}),
        ("q.linear", "u4, f32 per 32, minus f32 per 32", None, False, {"matmul_nbits_offset", "expansion"}),
        ("q.linear", "u4, f16 per 32, minus f16 per 32", None, False, {"expansion"}),
        ("q.linear", "i4, f32 per 32, plus f32 per 32", None, False, {"expansion"}),
        ("q.linear", "e2m1, e4m3 per 16, f32 per tensor", None, False, {"expansion"}),
        ("q.linear", "i8, f32 per *", "u8, f32 per tensor, zero u8", True, {"dynamic_quantize_matmul", "expansion"}),
        ("q.linear", "i8, f32 per *", "u8, f32 per tensor, zero u8", False, {"qdq_linear", "expansion"}),
        ("q.conv", "i8, f32 per *", "u8, f32 per tensor, zero u8", False, {"qdq_conv", "expansion"}),
        ("q.conv", "i8, f32 per *", None, False, {"expansion"}),
        ("q.embedding", "i8, f32 per *", None, False, {"gather_rows", "expansion"}),
        ("q.embedding", "i4, f32 per 32", None, False, {"gather_block_quantized", "expansion"}),
        ("q.embedding", "u4, f32 per 32, zero u4", None, False, {"expansion"}),
    ],
)
def test_kernels_are_offered_for_exactly_what_they_compute(
    op: str, weight: str, activation: str | None, dynamic: bool, offered: set[str]
) -> None:
    task = KernelTask(
        op, ("N", 64), (16, 64), Format.parse(weight), Format.parse(activation) if activation else None, dynamic, "cpu"
    )
    if not offered:
        with pytest.raises(NotSupported, match="no kernel"):
            kernels.offers(task, SPEED)
        return
    choices = kernels.offers(task, SPEED)
    assert {c.kernel for c in choices} == offered
    assert all(c.cost > 0 and c.reason for c in choices)
