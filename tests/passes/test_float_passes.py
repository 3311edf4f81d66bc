"""Float passes: each fires on its pattern, keeps the result, and leaves alone what only looks like it."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from qcc.ir.program import Program
from qcc.ir.rewrite import Pass
from qcc.passes.canonicalize import Canonicalize
from qcc.passes.fold_affine import FoldAffine
from qcc.passes.fold_constants import FoldConstants
from qcc.passes.fuse_batch_norm import FuseBatchNorm
from qcc.passes.fuse_hard_sigmoid import FuseHardSigmoid
from qcc.passes.fuse_hard_swish import FuseHardSwish
from qcc.passes.pipeline import simplify
from tests.networks import agreement, names, normal, program, reasons, rewritten

Weights = dict[str, NDArray[Any]]
ROUNDING = 105
"""Decibels that reordered float32 arithmetic keeps."""
W = {"w": normal(6, 4, 3, 3)}
X = {"x": normal(2, 4, 8, 8, seed=1)}


def check(before: Program, after: Program, feeds: Weights) -> None:
    assert agreement(before, after, feeds) >= ROUNDING


def constant(*values: float, shape: tuple[int, ...] = ()) -> NDArray[np.float32]:
    return np.array(values, np.float32).reshape(shape or (len(values),))


def per_channel(count: int, seed: int = 3) -> NDArray[Any]:
    return normal(count, 1, 1, seed=seed)


def image(body: str, channels: int = 6, size: str = "H,K") -> str:
    return f"(float[N,4,8,8] x) => (float[N,{channels},{size}] y) {{ {body} }}"


AFFINE_FIRES: list[tuple[str, Weights]] = [
    ("c = Conv(x, w) y = Mul(c, k)", {"k": per_channel(6)}),
    ("c = Conv(x, w) y = Mul(k, c)", {"k": per_channel(6)}),
    ("c = Conv(x, w, b) y = Add(c, k)", {"k": normal(1, 6, 1, 1), "b": normal(6)}),
    ("c = Conv(x, w, b) y = Add(k, c)", {"k": constant(2.5), "b": normal(6)}),
    ("c = Conv(x, w) y = Sub(c, k)", {"k": per_channel(6)}),
    ("c = Conv(x, w, b) y = Div(c, k)", {"k": per_channel(6) + 3, "b": normal(6)}),
    ("c = Conv<pads=[1,1,1,1]>(x, w) y = Add(c, k)", {"k": per_channel(6)}),
    ("c = Conv<group=2>(x, g) y = Mul(c, k)", {"g": normal(6, 2, 3, 3), "k": per_channel(6)}),
    ("c = ConvTranspose(x, t, b) y = Mul(c, k)", {"t": normal(4, 6, 3, 3), "b": normal(6), "k": per_channel(6)}),
    ("m = Mul(x, k) y = Conv<pads=[1,1,1,1]>(m, w, b)", {"k": per_channel(4), "b": normal(6)}),
    ("m = Add(x, k) y = Conv(m, w)", {"k": per_channel(4)}),
    ("m = Sub(x, k) y = Conv<auto_pad=\"VALID\">(m, w, b)", {"k": per_channel(4), "b": normal(6)}),
    ("m = Add(x, k) y = Conv<group=2>(m, g)", {"g": normal(6, 2, 3, 3), "k": per_channel(4)}),
    ("m = Mul(x, k) y = Conv<strides=[2,2], dilations=[2,2]>(m, w)", {"k": constant(0.25)}),
]  # fmt: skip


@pytest.mark.parametrize(("body", "weights"), AFFINE_FIRES)
def test_fold_affine_moves_constants_into_the_convolution(body: str, weights: Weights) -> None:
    before = program(image(body), **W, **weights)
    after = rewritten(before, FoldAffine())
    assert names(after) == ["ConvTranspose" if "ConvTranspose" in body else "Conv"]
    check(before, after, X)


def test_fold_affine_keeps_the_node_of_the_convolution_and_the_name_of_the_result() -> None:
    before = program(image("[conv_1] c = Conv(x, w) [scale_1] y = Mul(c, k)"), **W, k=per_channel(6))
    after = rewritten(before, FoldAffine())
    (conv,) = [op for op in after.body.ops if op.name == "onnx.Conv"]
    assert conv.node == "conv_1"  # type: ignore[attr-defined]
    assert [p.name for p in after.results()] == ["y"]


AFFINE_STAYS: list[tuple[str, Weights, str]] = [
    ("m = Add(x, k) y = Conv<pads=[0,0,1,0]>(m, w)", {"k": per_channel(4)}, "pads with zeros"),
    ('m = Add(x, k) y = Conv<auto_pad="SAME_UPPER">(m, w)', {"k": per_channel(4)}, "pads with zeros"),
    ("c = Conv(x, w) d = Mul(c, k) e = Relu(c) y = Add(d, e)", {"k": per_channel(6)}, ""),
    ("c = ConvTranspose<group=2>(x, t) y = Mul(c, k)", {"t": normal(4, 3, 3, 3), "k": per_channel(6)}, "has groups"),
    ("c = Conv(x, w) y = Mul(c, k)", {"k": normal(1, 1, 6, 6)}, ""),
    ("c = Conv(x, w) y = Sub(k, c)", {"k": per_channel(6)}, ""),
    ("c = Conv(x, w) y = Div(k, c)", {"k": per_channel(6)}, ""),
    ("c = Conv(x, w) y = Div(c, k)", {"k": constant(1, 2, 0, 4, 5, 6, shape=(6, 1, 1))}, ""),
    ("c = Conv(x, w, b) y = Mul(c, k)", {"k": per_channel(6)}, "bias of the convolution before it is computed"),
    ("m = Mul(x, k) y = Conv(m, w, b)", {"k": per_channel(4)}, "bias of the convolution after it is computed"),
    ("c = Conv(x, v) y = Mul(c, k)", {"k": per_channel(6)}, ""),
    ("m = Mul(x, k) a = Relu(m) y = Conv(a, w)", {"k": per_channel(4)}, ""),
    ("m = Mul(x, k) a = Conv(m, w) b2 = Conv(m, w) y = Add(a, b2)", {"k": per_channel(4)}, ""),
]  # fmt: skip


@pytest.mark.parametrize(("body", "weights", "reason"), AFFINE_STAYS)
def test_fold_affine_leaves_what_it_would_change(body: str, weights: Weights, reason: str) -> None:
    computed = {"b": "b = ReduceMean<keepdims=0>(s, axes)", "v": "v = Mul(w, q)"}
    needed = " ".join(text for name, text in computed.items() if f", {name})" in body)
    text = image(f"{needed} {body}").replace("x)", "x, float[2,6] s, float[1] q)", 1)
    before = program(text, **W, axes=np.array([0], np.int64), **weights)
    after = rewritten(before, FoldAffine())
    assert names(after) == names(before)
    assert not reason or any(reason in r for r in reasons(after, "fold_affine declined"))
    if "0, 4" not in str(weights.get("k")):
        check(before, after, {**X, "s": normal(2, 6), "q": constant(2.0)})


def test_fold_affine_leaves_a_constant_that_broadcasts_channels_into_being() -> None:
    text = "(float[N,1,8,8] x) => (float[N,6,6,6] y) { m = Mul(x, k) y = Conv(m, w) }"
    before = program(text, **W, k=per_channel(4))
    after = rewritten(before, FoldAffine())
    assert names(after) == ["Mul", "Conv"]
    assert "more channels" in reasons(after, "fold_affine declined")[0]
    text = "(float[N,4,8,8] x) => (float[N,6,6,6] y) { c = Conv(x, w) y = Mul(c, k) }"
    before = program(text, w=normal(1, 4, 3, 3), k=per_channel(6))
    assert names(rewritten(before, FoldAffine())) == ["Conv", "Mul"]


def test_fold_affine_keeps_a_value_that_the_network_also_returns() -> None:
    text = "(float[N,4,8,8] x) => (float[N,6,6,6] c, float[N,6,6,6] y) { c = Conv(x, w) y = Mul(c, k) }"
    before = program(text, **W, k=per_channel(6))
    after = rewritten(before, FoldAffine())
    assert names(after) == ["Conv", "Mul"]
    check(before, after, X)


BATCH_NORM = {"s": normal(6, seed=5), "b": normal(6, seed=6), "m": normal(6, seed=7), "v": abs(normal(6, seed=8)) + 0.1}


@pytest.mark.parametrize("conv", ["Conv(x, w)", "Conv<pads=[1,1,1,1]>(x, w, bias)", "Conv<group=2>(x, g, bias)"])
def test_batch_norm_disappears_into_the_convolution_before_it(conv: str) -> None:
    text = image(f"c = {conv} y = BatchNormalization<epsilon=0.01>(c, s, b, m, v)")
    before = program(text, **W, g=normal(6, 2, 3, 3), bias=normal(6), **BATCH_NORM)
    after = rewritten(before, FuseBatchNorm(), FoldAffine(), FoldAffine())
    assert names(after) == ["Conv"]
    check(before, after, X)


@pytest.mark.parametrize(("shape", "rank"), [("N,6", 2), ("N,6,5", 3), ("N,6,5,5", 4)])
def test_batch_norm_alone_becomes_a_multiplication_and_an_addition(shape: str, rank: int) -> None:
    text = f"(float[{shape}] x) => (float[{shape}] y) {{ [norm] y = BatchNormalization(x, s, b, m, v) }}"
    before = program(text, **BATCH_NORM)
    after = rewritten(before, FuseBatchNorm())
    assert names(after) == ["Mul", "Add"]
    nodes = {getattr(op, "node", "") for op in after.body.ops if op.name in ("onnx.Mul", "onnx.Add")}
    assert len(nodes - {""}) == 2, "calibration knows values by the names of their nodes"
    check(before, after, {"x": normal(3, 6, *(5,) * (rank - 2))})


BATCH_NORM_STAYS = {
    "training mode": ("y, m2, v2 = BatchNormalization<training_mode=1>(c, s, b, m, v)", {}),
    "not constant": ("y = BatchNormalization(c, s, b, m, q)", {}),
    "not positive": ("y = BatchNormalization(c, s, b, m, neg)", {"neg": -BATCH_NORM["v"]}),
}


@pytest.mark.parametrize("reason", list(BATCH_NORM_STAYS))
def test_batch_norm_stays_where_it_is_no_fixed_affine_map(reason: str) -> None:
    body, more = BATCH_NORM_STAYS[reason]
    text = image(f"c = Conv(x, w) {body}").replace("x)", "x, float[6] q)", 1)
    before = program(text, **W, **BATCH_NORM, **more)
    after = rewritten(before, FuseBatchNorm())
    assert names(after) == ["Conv", "BatchNormalization"]
    assert reason in reasons(after, "fuse_batch_norm declined")[0]


def test_batch_norm_of_half_precision_with_float32_statistics_stays() -> None:
    text = "(float16[N,6] x) => (float16[N,6] y) { y = BatchNormalization(x, s, b, m, v) }"
    after = rewritten(program(text, **BATCH_NORM), FuseBatchNorm())
    assert names(after) == ["BatchNormalization"]
    assert "element type" in reasons(after, "fuse_batch_norm declined")[0]


GATE = {"three": constant(3.0, shape=(1,)), "zero": np.float32(0), "six": np.float32(6), "sixth": np.float32(1 / 6)}
CLIPPED = "a = Add(x, three) g = Clip(a, zero, six)"
VECTOR = "(float[N] x) => (float[M] y)"
AROUND = {"x": np.linspace(-8, 8, 101, dtype=np.float32)}


@pytest.mark.parametrize(
    "body",
    [
        f"{CLIPPED} y = Div(g, six)",
        f"{CLIPPED} y = Mul(g, sixth)",
        f"{CLIPPED.replace('x, three', 'three, x')} y = Mul(sixth, g)",
    ],
)
def test_hard_sigmoid_is_recognized(body: str) -> None:
    before = program(f"{VECTOR} {{ {body} }}", **GATE)
    after = rewritten(before, FuseHardSigmoid())
    assert names(after) == ["HardSigmoid"]
    check(before, after, AROUND)


@pytest.mark.parametrize(
    "body",
    [
        f"{CLIPPED} h = Div(g, six) y = Mul(x, h)",
        f"{CLIPPED} h = Mul(g, sixth) y = Mul(h, x)",
        f"{CLIPPED} h = Mul(x, g) y = Div(h, six)",
        f"{CLIPPED} h = Mul(g, x) y = Mul(h, sixth)",
        "h = HardSigmoid<alpha=0.16666667, beta=0.5>(x) y = Mul(x, h)",
    ],
)
def test_hard_swish_is_recognized_however_it_is_written(body: str) -> None:
    before = program(f"{VECTOR} {{ {body} }}", **GATE)
    after = rewritten(before, FuseHardSigmoid(), FuseHardSwish())
    assert names(after) == ["HardSwish"]
    check(before, after, AROUND)


@pytest.mark.parametrize(
    ("body", "weights"),
    [
        (f"{CLIPPED} y = Div(g, six)", {**GATE, "three": np.float32(2.9)}),
        (f"{CLIPPED} y = Div(g, five)", {**GATE, "five": np.float32(5)}),
        (f"{CLIPPED} y = Div(six, g)", GATE),
        (f"{CLIPPED} y = Div(g, six)", {**GATE, "zero": np.float32(0.1)}),
        ("a = Add(x, three) g = Clip(a, , six) y = Div(g, six)", GATE),
        ("h = HardSigmoid(x) y = Mul(x, h)", {}),
        (f"{CLIPPED} h = Div(g, six) z = Relu(x) y = Mul(z, h)", GATE),
    ],
)
def test_gates_that_only_look_alike_stay(body: str, weights: Weights) -> None:
    before = program(f"{VECTOR} {{ {body} }}", **weights)
    after = rewritten(before, FuseHardSigmoid(), FuseHardSwish())
    assert "HardSwish" not in names(after)
    if "z, h" not in body and "HardSigmoid" not in body:
        assert "HardSigmoid" not in names(after)
    if "six, g" not in body:
        check(before, after, AROUND)


def test_gates_on_integers_and_with_constants_that_add_axes_stay() -> None:
    integers = {name: np.array(GATE[name], np.int32) for name in ("three", "zero", "six")}
    before = program(f"(int32[N] x) => (int32[N] y) {{ {CLIPPED} y = Div(g, six) }}", **integers)
    assert names(rewritten(before, FuseHardSigmoid(), FuseHardSwish())) == ["Add", "Clip", "Div"]
    wide = {**GATE, "three": constant(3.0, shape=(1, 1, 1))}
    for body in (f"{CLIPPED} y = Div(g, six)", f"{CLIPPED} h = Mul(x, g) y = Div(h, six)"):
        before = program(f"(float[N] x) => (float[1,1,N] y) {{ {body} }}", **wide)
        after = rewritten(before, FuseHardSigmoid(), FuseHardSwish())
        assert names(after) == names(before)


@pytest.mark.parametrize(
    "body",
    [
        "y = Identity(x)",
        "y = Dropout(x, ratio)",
        "y, mask = Dropout(x, ratio, off)",
        "y = Cast<to=1>(x)",
        "y = Transpose<perm=[0,1]>(x)",
        "y = Reshape(x, same)",
    ],
)
def test_canonicalize_removes_what_does_nothing(body: str) -> None:
    constants = {"ratio": np.float32(0.5), "off": np.array(False), "same": np.array([3, 4], np.int64)}
    before = program(f"(float[3,4] x) => (float[3,4] z) {{ {body} z = Relu(y) }}", **constants)
    after = rewritten(before, Canonicalize())
    assert names(after) == ["Relu"]
    check(before, after, {"x": normal(3, 4)})


@pytest.mark.parametrize(
    ("body", "reason"),
    [
        ("y, mask = Dropout(x, ratio, off) z = Not(mask)", "second result"),
        ("y = Dropout(x, ratio, on) z = Relu(y)", ""),
        ("y = Cast<to=11>(x) z = Relu(y)", ""),
        ("y = Transpose(x) z = Relu(y)", ""),
        ("y = Transpose<perm=[1,0]>(x) z = Relu(y)", ""),
        ("y = Reshape(x, other) z = Relu(y)", ""),
    ],
)
def test_canonicalize_leaves_what_does_something(body: str, reason: str) -> None:
    constants = {
        "ratio": np.float32(0.5),
        "off": np.array(False),
        "on": np.array(True),
        "other": np.array([4, 3], np.int64),
    }
    result = "bool[3,4]" if "mask)" in body else "double[3,4]" if "11" in body else "float[A,B]"
    before = program(f"(float[3,4] x) => ({result} z) {{ {body} }}", **constants)
    after = rewritten(before, Canonicalize())
    assert names(after) == names(before)
    assert not reason or reason in reasons(after, "canonicalize declined")[0]


def test_canonicalize_keeps_the_name_of_an_output_that_is_an_input() -> None:
    after = rewritten(program("(float[N] x) => (float[N] y) { y = Identity(x) }"), Canonicalize())
    assert [p.name for p in after.results()] == ["y"]
    check(after, program("(float[N] x) => (float[N] y) { y = Identity(x) }"), {"x": normal(5)})


def test_fold_constants_computes_shapes_and_weights_once() -> None:
    body = (
        "r = Transpose(w) c = Concat<axis=0>(r, r) n = Shape(c) k = Gather(n, one) f = Cast<to=1>(k) m = MatMul(x, c)"
    )
    before = program(
        f"(float[N,12] x) => (float[N,4] y) {{ {body} y = Mul(m, f) }}", w=normal(4, 6), one=np.array([1], np.int64)
    )
    after = rewritten(before, FoldConstants())
    assert names(after) == ["MatMul", "Mul"]
    assert sum(1 for _ in after.weight_ops()) == 1, "the large result is a weight, the small one stands in the text"
    assert len(after.weights) == 1, "the source of what was folded is forgotten"
    check(before, after, {"x": normal(2, 12)})


def test_fold_constants_keeps_what_is_random_or_would_grow_the_model() -> None:
    before = program("(float[4] x) => (float[4] y) { r = RandomNormal<shape=[4]>() y = Add(x, r) }")
    assert names(rewritten(before, FoldConstants())) == ["RandomNormal", "Add"]
    big = program(
        "(float[N] x) => (float[200,N] y) { e = Expand(one, shape) y = Mul(x, e) }",
        one=constant(1.0),
        shape=np.array([200, 100], np.int64),
    )
    after = rewritten(big, FoldConstants())
    assert names(after) == ["Expand", "Mul"]
    assert "80000 bytes" in reasons(after, "fold_constants declined")[0]
    assert names(rewritten(big, FoldConstants(grow=1 << 20))) == ["Mul"]


def test_fold_constants_folds_a_value_that_is_returned_and_read_in_a_branch() -> None:
    text = """(float[4] x, bool c) => (float[4] y, float[4] k) {
        k = Neg(w)
        y = If(c)<then_branch = t () => (float[4] p) { p = Add(x, k) },
                  else_branch = e () => (float[4] q) { q = Sub(x, k) }>
    }"""
    before = program(text, w=normal(4))
    after = rewritten(before, FoldConstants())
    assert names(after) == ["If"]
    for flag in (True, False):
        check(before, after, {"x": normal(4, seed=1), "c": np.array(flag)})


@pytest.mark.parametrize("each", simplify(), ids=lambda p: p.name)
def test_a_pass_leaves_an_unrelated_network_as_it_is(each: Pass) -> None:
    before = program("(float[N,4] x) => (float[N,4] y) { a = Softmax(x) y = Gelu(a) }")
    after = rewritten(before, each)
    assert str(after.module) == str(before.module)
    assert not after.decisions


def test_simplify_leaves_a_mobile_block_as_convolutions_and_a_hard_swish() -> None:
    text = image(
        f"""n = Mul(x, norm) c = Conv<pads=[1,1,1,1]>(n, w) d = BatchNormalization(c, s, b, m, v)
            {CLIPPED.replace("x,", "d,")} h = Div(g, six) e = Mul(d, h) i = Identity(e) y = Conv(i, w2)"""
    )
    before = program(text, **W, w2=normal(6, 6, 3, 3), norm=constant(1 / 255), **BATCH_NORM, **GATE)
    after = rewritten(before, *simplify())
    assert names(after) == ["Conv", "HardSwish", "Conv"]
    check(before, after, X)
