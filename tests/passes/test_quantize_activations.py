"""Activations become codes where integers pay, run on through what carries them, and stay float elsewhere."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from numpy.typing import NDArray

from qcc.ir.dialects.q import Conv, Dequantize, Linear, Quantize
from qcc.ir.errors import BadInput
from qcc.ir.execute import run
from qcc.ir.format import Format
from qcc.ir.infer import constant_of
from qcc.ir.program import Program
from qcc.ir.rewrite import ProgramContext
from qcc.ir.types import QuantizedType
from qcc.ir.verify import compare
from qcc.passes.calibrate import calibrate
from qcc.passes.pipeline import QuantizeOptions, quantize
from qcc.passes.quantize_activations import parameters
from tests.networks import agreement, names, normal, program, reasons, rewritten

Samples = Sequence[dict[str, NDArray[Any]]]
U8 = Format.parse("u8, f32 per tensor, zero u8")
C1 = {"w1": normal(16, 8, 3, 3, scale=0.2)}
C2 = {**C1, "w2": normal(16, 16, 3, 3, seed=1, scale=0.2)}
IMAGES = [{"x": normal(2, 8, 9, 9, seed=s)} for s in range(3)]


def quantized(before: Program, samples: Samples = IMAGES, scheme: str = "W8A8", **options: Any) -> Program:
    context = ProgramContext(program=before)
    if scheme == "W8A8":
        context.statistics = calibrate(before, samples)
    return rewritten(before, *quantize(QuantizeOptions(scheme, **options)), context=context)


def image(body: str, result: str = "float[N,16,H,V] y", **weights: NDArray[Any]) -> Program:
    return program(f"(float[N,8,9,9] x) => ({result}) {{ {body} }}", **weights)


def quantizers(after: Program) -> dict[str, tuple[float, int | None]]:
    """Node that computes a quantized value -> its scale and zero point."""
    found: dict[str, tuple[float, int | None]] = {}
    for op in after.body.ops:
        if isinstance(op, Quantize):
            owner = op.operands[0].owner
            scale, zero = (None if v is None else constant_of(v) for v in (op.slot(1), op.slot(2)))
            assert scale is not None
            found[getattr(owner, "node", "") or "input"] = (float(scale), None if zero is None else int(zero))
    return found


def test_a_convolution_takes_codes_and_gives_float() -> None:
    before = image("y = Conv(x, w1)", **C1)
    after = quantized(before)
    assert names(after) == ["q.quantize", "q.conv"]
    assert agreement(before, after, IMAGES) > 30


def test_codes_run_from_one_convolution_to_the_next_behind_its_activation() -> None:
    before = image("[c1] a = Conv(x, w1) [r] b = Relu(a) [c2] c = Conv(b, w2) y = Sigmoid(c)", **C2)
    after = quantized(before)
    assert set(quantizers(after)) == {"input", "r", "c2"}
    convs = [op for op in after.body.ops if isinstance(op, Conv)]
    assert all(isinstance(op.operands[0].type, QuantizedType) for op in convs)
    assert quantizers(after)["r"][1] == 0, "what Relu gives starts at zero"
    assert agreement(before, after, IMAGES) > 28


FOLLOW = {
    "m = MaxPool<kernel_shape=[2,2]>(b)": "carry",
    "m = Transpose<perm=[0,1,3,2]>(b)": "carry",
    "m = Slice(b, s0, s1, s2)": "carry",
    "m = Add(b, b)": "compute",
    "m = Mul(b, k)": "compute",
    "m = HardSwish(b)": "compute alike",
    "m = Sigmoid(b)": "compute",
    "m = LeakyRelu(b)": "compute alike",
    "m = AveragePool<kernel_shape=[2,2]>(b)": "compute",
    "m = Concat<axis=0>(b, k)": "compute",
    "m = Tanh(b)": "float",
    "m = Softplus(b)": "float",
}


@pytest.mark.parametrize("body", FOLLOW)
def test_codes_run_on_through_operators_with_integer_kernels_only(body: str) -> None:
    before = image(
        f"[c1] a = Conv(x, w1) [r] b = Relu(a) [m] {body} [c2] c = Conv(m, w2) y = Sigmoid(c)",
        **C2,
        k=normal(1, 16, 7, 7, seed=5),
        s0=np.array([0], np.int64),
        s1=np.array([6], np.int64),
        s2=np.array([2], np.int64),
    )
    after = quantized(before)
    found = quantizers(after)
    assert {"input", "r", "m", "c2"} <= set(found), "the operand of the second convolution is quantized in any case"
    if FOLLOW[body] == "carry":
        assert found["m"] == found["r"], "codes that are only moved keep their meaning"
    elif FOLLOW[body] == "compute":
        assert found["m"] != found["r"]
    assert agreement(before, after, IMAGES) > 22


def test_constant_operands_are_quantized_beside_codes() -> None:
    before = image(
        "a = Conv(x, w1) b = Concat<axis=0>(a, k) c = Conv(b, w2) y = Sigmoid(c)", **C2, k=normal(1, 16, 7, 7)
    )
    after = quantized(before)
    (concat,) = [op for op in after.body.ops if op.name == "onnx.Concat"]
    assert all(isinstance(o.owner, Dequantize) for o in concat.operands)


def test_sums_are_float() -> None:
    before = image("a = Conv(x, w1) b = Add(a, k) c = Conv(b, w2) y = Sigmoid(c)", **C2, k=normal(1, 16, 7, 7))
    (add,) = [op for op in quantized(before).body.ops if op.name == "onnx.Add"]
    assert not isinstance(add.operands[1].owner, Dequantize), "the constant stays as it is"


def test_values_that_the_network_returns_stay_float() -> None:
    before = image(
        "a = Conv(x, w1) b = Relu(a) c = Conv(b, w2) y = Sigmoid(c)", "float[N,16,7,7] b, float[N,16,5,5] y", **C2
    )
    after = quantized(before)
    assert not isinstance(after.outputs[0].owner, Dequantize)
    assert compare_output("b", before, after) > 30


def compare_output(name: str, before: Program, after: Program) -> float:
    pairs = [({name: run(before, f)[name]}, {name: run(after, f)[name]}) for f in IMAGES]
    return compare([a for a, _ in pairs], [b for _, b in pairs]).sqnr_db


@pytest.mark.parametrize(
    ("body", "weights", "reason"),
    [
        ("y = ConvTranspose(x, w1)", {"w1": normal(8, 16, 3, 3)}, "transposed"),
        ("y = Conv<group=8>(x, w1)", {"w1": normal(8, 1, 3, 3)}, "depthwise with 8 channels"),
        ("y = Conv(x, w1)", {"w1": normal(16, 8, 1, 1)}, "sums 8 products"),
    ],
)
def test_convolutions_stay_float_where_integers_do_not_pay(
    body: str, weights: dict[str, NDArray[Any]], reason: str
) -> None:
    before = image(body, "float[N,C,H,V] y", **weights)
    after = quantized(before)
    assert reason in reasons(after, "activations float")[0]
    assert names(after) == ["q.conv"], "its weight is quantized all the same"
    assert agreement(before, after, IMAGES) > 35


def test_depthwise_with_whole_lanes_takes_codes() -> None:
    before = program("(float[N,32,9,9] x) => (float[N,32,7,7] y) { y = Conv<group=32>(x, w) }", w=normal(32, 1, 3, 3))
    samples = [{"x": normal(1, 32, 9, 9)}]
    after = quantized(before, samples)
    assert names(after) == ["q.quantize", "q.conv"]
    assert agreement(before, after, samples) > 30


def test_linear_layers_take_codes_whatever_their_size() -> None:
    before = program(
        "(float[N,8] x) => (float[N,4] y) { a = MatMul(x, w) b = Add(a, c) y = Tanh(b) }", w=normal(8, 4), c=normal(4)
    )
    samples = [{"x": normal(5, 8)}]
    after = quantized(before, samples)
    assert names(after) == ["q.quantize", "q.linear", "Tanh"]
    assert agreement(before, after, samples) > 30


@pytest.mark.parametrize("scheme", ["W8A8_DYNAMIC", "W4A8"])
def test_dynamic_schemes_quantize_the_operand_of_each_linear_once(scheme: str) -> None:
    text = "(float[N,8,9,9] x, float[N,64] v) => (float[N,16,7,7] y, float[N,64] z) { y = Conv(x, w1) h = Tanh(v) a = MatMul(h, m) b = MatMul(h, m2) c = Add(a, b) z = Relu(c) }"  # noqa: E501
    before = program(text, **C1, m=normal(64, 64), m2=normal(64, 64, seed=8))
    after = quantized(before, scheme=scheme)
    assert names(after).count("q.quantize") == 1
    linears = [op for op in after.body.ops if isinstance(op, Linear)]
    assert len({op.operands[0] for op in linears}) == 1
    assert "at run time" in reasons(after, "activations float")[0], "the convolution says why it stays float"
    assert agreement(before, after, {**IMAGES[0], "v": normal(2, 64)}) > (35 if scheme == "W8A8_DYNAMIC" else 16)


@pytest.mark.parametrize("scheme", ["W8A8_DYNAMIC", "W8A8", "W4A8"])
def test_operands_of_unknown_rank_stay_float(scheme: str) -> None:
    body = "h = Tanh(x) r = Reshape(h, shape) a = MatMul(r, w) b = Relu(a) y = Mul(b, b)"
    before = program(f"(float[N,32] x, int64[R] shape) => (float[A,B,C] y) {{ {body} }}", w=normal(32, 64))
    samples = [{"x": normal(4, 32), "shape": np.array([2, 2, 32])}]
    after = quantized(before, samples, scheme)
    assert "q.quantize" not in names(after)
    assert "rank" in reasons(after, "activations float")[0]


def test_a_constant_operand_is_no_activation() -> None:
    text = "(float[64,N] x) => (float[300,N] y) { a = MatMul(big, w) b = Relu(a) y = MatMul(b, x) }"
    before = program(text, big=normal(300, 16), w=normal(16, 64))
    after = quantized(before, [{"x": normal(64, 2)}])
    assert "q.quantize" not in names(after)
    assert "own graph" in reasons(after, "activations float")[0]


def test_calibration_knows_values_of_unnamed_nodes_apart() -> None:
    """A batch norm that stands alone becomes two operations; their ranges must not be taken for one another's."""
    from qcc.passes.pipeline import simplify

    text = "r = Relu(x) n = BatchNormalization(r, s, b, m, v) c = Conv(n, w1) y = Sigmoid(c)"
    before = image(text, **C1, s=normal(8) * 100, b=normal(8), m=normal(8), v=abs(normal(8)) + 1e-4)
    simple = rewritten(before, *simplify())
    keys = list(calibrate(simple, IMAGES))
    assert len(keys) == len(set(keys))
    assert "#0" not in keys
    after = quantized(simple)
    assert agreement(before, after, IMAGES) > 25


def test_missing_statistics_are_an_error_and_no_samples_too() -> None:
    before = image("y = Conv(x, w1)", **C1)
    with pytest.raises(BadInput, match="no calibration samples"):
        calibrate(before, [])
    after = rewritten(before, *quantize(QuantizeOptions("W8A8")))
    assert names(after) == ["q.conv"]


def test_values_that_are_not_finite_name_the_tensor() -> None:
    before = image("a = Log(x) y = Conv(a, w1)", **C1)
    with pytest.raises(BadInput, match=r"Log:a.*NaN"):
        calibrate(before, IMAGES)


@given(st.floats(-1e30, 0), st.floats(0, 1e30))
def test_parameters_cover_the_range_and_hold_zero(low: float, high: float) -> None:
    scale, zero = parameters(low, high, U8)
    assert scale.dtype == np.float32
    assert zero is not None
    assert zero.dtype == np.uint8
    assert scale > 0
    step = float(scale)
    smallest, largest = (0 - int(zero)) * step, (255 - int(zero)) * step
    assert smallest <= 0 <= largest
    slack = 0.501 * step + 1e-6 * max(-low, high)
    assert smallest <= low + slack
    assert largest >= high - slack


@pytest.mark.parametrize("text", ["u8, f32 per tensor, zero u8", "i8, f32 per tensor", "i8, f32 per tensor, zero i8"])
@pytest.mark.parametrize(("low", "high"), [(0, 0), (-1e-45, 1e-45), (0, 1e-39), (-3e38, 3e38), (-1, 0), (0, 1)])
def test_parameters_are_finite_at_the_ends(text: str, low: float, high: float) -> None:
    fmt = Format.parse(text)
    scale, zero = parameters(low, high, fmt)
    assert np.isfinite(scale)
    assert scale >= np.finfo(np.float32).tiny
    assert (zero is None) == (fmt.zero is None)
    codes = fmt.encode(
        np.array([low, 0, high], np.float32), scale.reshape(1), None if zero is None else zero.reshape(1)
    )
    back = fmt.decode(codes, scale.reshape(1), None if zero is None else zero.reshape(1))
    assert back[1] == 0
    assert np.abs(back - np.array([low, 0, high])).max() <= 0.51 * float(scale) if scale < 1 else True


@pytest.mark.parametrize("observer", ["minmax", "percentile", "mse", "entropy"])
def test_every_observer_gives_a_working_network(observer: str) -> None:
    before = image("a = Conv(x, w1) b = Relu(a) c = Conv(b, w2) y = Sigmoid(c)", **C2)
    assert agreement(before, quantized(before, observer=observer), IMAGES) > 20
