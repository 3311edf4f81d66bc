"""Weights become codes: `q.linear`, `q.conv` and `q.embedding` compute what the float network did, up to rounding."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from qcc.ir.dialects.q import Conv, Linear, part
from qcc.ir.format import Format
from qcc.ir.formats import load_element
from qcc.ir.layout import Layout, unpack
from qcc.ir.program import Program, weight_parts
from qcc.ir.rewrite import ProgramContext
from qcc.ir.types import QuantizedType
from qcc.passes.fuse_bias import FuseBias
from qcc.passes.pack_weights import PackWeights
from qcc.passes.quantize_conv import QuantizeConv
from qcc.passes.quantize_embedding import QuantizeEmbedding
from qcc.passes.quantize_linear import QuantizeLinear
from tests.networks import agreement, names, normal, program, reasons, rewritten

SQNR = {"W8A16": 38, "W8A8": 36, "W8A8_DYNAMIC": 36, "W4A16": 16, "W4A16_ASYM": 17, "W4A8": 17, "W2A16": 5}
"""Decibels that weights alone keep, on normal data."""
WEIGHT_ONLY = ("W8A16", "W4A16", "W4A16_ASYM", "W2A16")

Weights = dict[str, NDArray[Any]]


def linear(before: Program, scheme: str, **options: Any) -> Program:
    return rewritten(before, QuantizeLinear(scheme, include=("re:.*",), **options))


def decoded(after: Program, index: int = 0) -> NDArray[np.float32]:
    """The float values of a quantized weight, by the codec alone."""
    op = [w for w in after.weight_ops() if isinstance(w.result.type, QuantizedType)][index]
    fmt = op.result.type.format  # type: ignore[attr-defined]
    codes, scale, *zero = (after.weights[p] for p in weight_parts(op))
    return fmt.decode(codes, scale, *zero)


MATMULS: list[tuple[str, Weights]] = [
    ("y = MatMul(x, w)", {"w": normal(48, 20)}),
    ("y = Gemm(x, w, b)", {"w": normal(48, 20), "b": normal(20)}),
    ("y = Gemm<transB=1>(x, w)", {"w": normal(20, 48)}),
    ("y = Gemm<transB=1, alpha=0.5, beta=2.0>(x, w, b)", {"w": normal(20, 48), "b": normal(1, 20)}),
    ("y = Gemm<alpha=-3.0>(x, w, b)", {"w": normal(48, 20), "b": np.float32(1.5)}),
]


@pytest.mark.parametrize("scheme", SQNR)
@pytest.mark.parametrize(("body", "weights"), MATMULS)
def test_linear_layers_keep_their_result(body: str, weights: Weights, scheme: str) -> None:
    before = program(f"(float[N,48] x) => (float[N,20] y) {{ {body} }}", **weights)
    after = linear(before, scheme)
    assert names(after)[-1] == "q.linear"
    assert agreement(before, after, {"x": normal(3, 48, seed=4)}) >= SQNR[scheme]


def test_the_weight_is_stored_as_rows_of_output_features() -> None:
    before = program("(float[N,48] x) => (float[N,20] y) { y = MatMul(x, w) }", w=normal(48, 20))
    after = linear(before, "W8A8")
    assert np.abs(decoded(after) - normal(48, 20).T).max() <= np.abs(normal(48, 20)).max() / 127
    assert set(after.weights) == {"w.q.codes", "w.q.scale"}, "the float weight is forgotten"


def test_activations_of_higher_rank_keep_their_batch() -> None:
    before = program("(float[B,T,48] x) => (float[B,T,20] y) { y = MatMul(x, w) }", w=normal(48, 20))
    after = linear(before, "W8A16")
    assert agreement(before, after, {"x": normal(2, 5, 48)}) >= SQNR["W8A16"]


def test_one_tensor_read_in_two_ways_becomes_two_weights() -> None:
    text = "(float[N,32] x) => (float[N,32] y) {{ a = {} b = {} y = Relu(b) }}"
    square = {"w": normal(32, 32)}
    for first, second in (
        ("MatMul(x, w)", "Gemm<transB=1>(a, w)"),
        ("Gemm<alpha=0.25>(x, w)", "Gemm<alpha=4.0>(a, w)"),
    ):
        before = program(text.format(first, second), **square)
        after = linear(before, "W8A16")
        assert agreement(before, after, {"x": normal(3, 32)}) >= 35
    tied = program("(int64[N] i) => (float[N,32] y) { e = Gather(w, i) y = MatMul(e, w) }", **square)
    both = rewritten(tied, QuantizeLinear("W8A16", include=("re:.*",)), QuantizeEmbedding("W8A16", include=("re:.*",)))
    assert agreement(tied, both, {"i": np.array([3, 0, 31])}) >= 35


def test_one_tensor_read_twice_in_the_same_way_is_one_weight() -> None:
    text = "(float[N,32] x) => (float[N,32] y) { a = MatMul(x, w) b = Relu(a) y = MatMul(b, w) }"
    after = linear(program(text, w=normal(32, 32)), "W4A16")
    assert sum(1 for _ in after.weight_ops()) == 1
    tied = "(int64[N] i) => (float[N,60] y) { e = Gather(w, i) y = Gemm<transB=1>(e, w) }"
    both = rewritten(
        program(tied, w=normal(60, 32)),
        QuantizeLinear("W8A16", include=("re:.*",)),
        QuantizeEmbedding("W8A16", include=("re:.*",)),
    )
    assert len(both.weights) == 2, "codes and scales, once"


CONVOLUTIONS: list[tuple[str, Weights, str]] = [
    ("y = Conv<pads=[1,1,1,1], strides=[2,1]>(x, w, b)", {"w": normal(6, 4, 3, 3), "b": normal(6)}, "N,4,9,8"),
    ("y = Conv<group=4>(x, w)", {"w": normal(8, 1, 3, 3)}, "N,4,9,8"),
    ("y = Conv<group=2, dilations=[2]>(x, w)", {"w": normal(6, 2, 3)}, "N,4,9"),
    ('y = Conv<auto_pad="SAME_LOWER">(x, w)', {"w": normal(5, 4, 2, 2, 3)}, "N,4,5,4,6"),
    ("y = ConvTranspose<strides=[2,2]>(x, w, b)", {"w": normal(4, 6, 3, 3), "b": normal(6)}, "N,4,9,8"),
    ("y = ConvTranspose<group=2, output_padding=[1], strides=[2]>(x, w)", {"w": normal(4, 3, 3)}, "N,4,9"),
]


@pytest.mark.parametrize("scheme", ["W8A8", "W4A16", "W4A16_ASYM", "W2A16"])
@pytest.mark.parametrize(("body", "weights", "shape"), CONVOLUTIONS)
def test_convolutions_keep_their_result(body: str, weights: Weights, shape: str, scheme: str) -> None:
    dims = ",".join("N" if i == 0 else f"D{i}" for i in range(shape.count(",") + 1))
    before = program(f"(float[{shape}] x) => (float[{dims}] y) {{ {body} }}", **weights)
    after = rewritten(before, QuantizeConv(scheme, include=("re:.*",)))
    assert names(after) == ["q.conv"]
    extents = [2 if d == "N" else int(d) for d in shape.split(",")]
    assert agreement(before, after, {"x": normal(*extents, seed=6)}) >= SQNR[scheme] - 2


def test_convolutions_of_a_four_bit_scheme_take_eight_bits_unless_named() -> None:
    text = "(float[N,4,9,9] x) => (float[N,6,7,7] y) { r = Relu(x) [c1] c = Conv(r, w) y = Relu(c) }"
    before = program(text, w=normal(6, 4, 3, 3))
    for include, element in (((), "i8"), (("c1",), "i4")):
        after = rewritten(before, QuantizeConv("W4A16", include=include))
        (conv,) = [op for op in after.body.ops if isinstance(op, Conv)]
        assert conv.weight_type().format.element == element


@pytest.mark.parametrize("scheme", WEIGHT_ONLY)
def test_embeddings_keep_their_rows(scheme: str) -> None:
    before = program("(int64[B,T] i) => (float[B,T,48] y) { [e] y = Gather(table, i) }", table=normal(100, 48))
    after = rewritten(before, QuantizeEmbedding(scheme, include=("table",)))
    assert names(after) == ["q.embedding"]
    assert agreement(before, after, {"i": np.array([[0, 99, -1], [5, 5, 5]])}) >= SQNR[scheme]


def test_a_gather_of_columns_is_no_embedding() -> None:
    before = program("(int64[T] i) => (float[100,T] y) { y = Gather<axis=1>(table, i) }", table=normal(100, 48))
    assert names(rewritten(before, QuantizeEmbedding("W8A16", include=("re:.*",)))) == ["Gather"]


BIAS = "(float[N,32] x) => (float[N,8] y, float[N,8] z) {{ m = MatMul(x, w) {} }}"


@pytest.mark.parametrize("sum_", ["Add(m, b)", "Add(b, m)"])
def test_a_bias_behind_the_product_moves_into_it(sum_: str) -> None:
    before = program(BIAS.format(f"y = {sum_} z = Relu(y)"), w=normal(32, 8), b=normal(8))
    after = rewritten(linear(before, "W8A16"), FuseBias())
    assert names(after) == ["q.linear", "Relu"]
    assert agreement(before, after, {"x": normal(3, 32)}) >= SQNR["W8A16"]


@pytest.mark.parametrize(
    ("rest", "bias", "reason"),
    [
        ("y = Add(m, b) z = Relu(m)", normal(8), ""),
        ("y = Add(m, b) z = Relu(y)", normal(1, 8), "shape [1, 8]"),
        ("y = Add(m, b) z = Relu(y)", np.float32(2), "shape []"),
        ("y = Add(m, x2) z = Relu(y)", normal(8), ""),
        ("y = Sub(m, b) z = Relu(y)", normal(8), ""),
    ],
)
def test_a_sum_that_is_no_bias_stays(rest: str, bias: NDArray[Any], reason: str) -> None:
    text = BIAS.format(f"x2 = ReduceMax<keepdims=1>(x, axes) {rest}")
    before = program(text, w=normal(32, 8), b=bias, axes=np.array([1], np.int64))
    quantized = linear(before, "W8A16")
    after = rewritten(quantized, FuseBias())
    assert names(after) == names(quantized)
    assert not reason or reason in reasons(after, "fuse_bias declined")[0]


def test_a_bias_shared_by_two_branches_stays_where_both_see_it() -> None:
    text = """(float[N,32] x, bool c) => (float[N,8] y) { y = If(c)<
        then_branch = t () => (float[N,8] p) { a = MatMul(x, v) p = Add(a, b) },
        else_branch = e () => (float[N,8] q) { d = MatMul(x, w) q = Add(d, b) }> }"""
    before = program(text, v=normal(32, 8), w=normal(32, 8, seed=1), b=normal(8))
    after = rewritten(linear(before, "W8A16"), FuseBias())
    assert sum(isinstance(op, Linear) and len(op.operands) == 3 for op in after.module.walk()) == 2
    for flag in (True, False):
        assert agreement(before, after, {"x": normal(2, 32), "c": np.array(flag)}) >= SQNR["W8A16"]


@pytest.mark.parametrize(
    "layout", ["n(n0) k(k1 k0:16) -> n0 k1 k0", "n(n0) k(k0) -> k0 n0", "n(n1 n0:4) k(k0) -> n1 k0 n0"]
)
@pytest.mark.parametrize("scheme", ["W8A16", "W4A16", "W2A16", "W4A16_ASYM"])
def test_packing_moves_bits_and_nothing_else(scheme: str, layout: str) -> None:
    before = program("(float[N,40] x) => (float[N,10] y) { y = MatMul(x, w) }", w=normal(40, 10))
    plain = linear(before, scheme)
    chosen = laid_out(plain, Layout.parse(layout))
    packed = rewritten(chosen, PackWeights())
    (weight,) = packed.weight_ops()
    type_ = weight.result.type
    assert isinstance(type_, QuantizedType)
    codes = packed.weights[part(weight.weight, "codes")]
    assert codes.dtype == np.uint8
    assert codes.ndim == 1
    family = type_.format.family
    restored = unpack(codes, family.bits, type_.shape, Layout.parse(layout), family.signed)
    assert np.array_equal(restored, plain.weights[part(weight.weight, "codes")])
    assert agreement(plain, packed, {"x": normal(3, 40)}) >= 140
    assert stored(rewritten(packed, PackWeights())) == stored(packed), "packing again changes nothing"


def test_zero_points_are_packed_where_they_have_a_layout() -> None:
    before = program("(float[N,96] x) => (float[N,6] y) { y = MatMul(x, w) }", w=normal(96, 6))
    plain = linear(before, "W4A16_ASYM", group_size=32)
    zero_layout = Layout.parse("n(n0) b(b1 b0:2) -> n0 b1 b0")
    packed = rewritten(laid_out(plain, Layout.parse("n(n0) k(k0) -> n0 k0"), zero_layout), PackWeights())
    (weight,) = packed.weight_ops()
    zero = packed.weights[part(weight.weight, "zero")]
    assert zero.shape == (6 * 2,), "three zero points of 4 bits take two bytes"
    assert np.array_equal(
        unpack(zero, load_element("u4").bits, (6, 3), zero_layout, False), plain.weights[part(weight.weight, "zero")]
    )
    assert agreement(plain, packed, {"x": normal(3, 96)}) >= 140
    assert stored(rewritten(packed, PackWeights())) == stored(packed)


def laid_out(quantized: Program, layout: Layout, zero_layout: Layout | None = None) -> Program:
    """A copy whose weight has a layout, as the choice of a kernel gives it."""
    from xdsl.rewriter import InsertPoint, Rewriter

    from qcc.ir.dialects.q import Weight

    out = quantized.clone()
    (weight,) = out.weight_ops()
    type_ = weight.result.type
    assert isinstance(type_, QuantizedType)
    new = Weight(weight.weight, QuantizedType.of(type_.expressed, type_.format, layout), zero_layout)
    Rewriter.insert_op(new, InsertPoint.before(weight))
    weight.result.replace_all_uses_with(new.result)
    Rewriter.erase_op(weight)
    return out


def stored(quantized: Program) -> dict[str, bytes]:
    return {name: quantized.weights[name].tobytes() for name in quantized.weights}


def test_the_context_carries_the_program() -> None:
    before = program("(float[N,48] x) => (float[N,20] y) { y = MatMul(x, w) }", w=normal(48, 20))
    QuantizeLinear("W8A16").apply(ProgramContext(program=before), before.module)
    assert names(before) == ["q.linear"]
    assert Format.parse("i8, f32 per 128") == next(
        w.result.type.format for w in before.weight_ops() if isinstance(w.result.type, QuantizedType)
    )
