"""Equalized layers compute what they did, and their channels have one range; pairs that must not change do not."""

from __future__ import annotations

import numpy as np
import pytest

from qcc.ir.program import Program
from qcc.ir.rewrite import array_of
from qcc.passes.algorithms import rtn
from qcc.passes.equalize_layers import EqualizeLayers
from qcc.passes.schemes import load
from tests.networks import Array, agreement, normal, program, reasons, rewritten

SPREAD = np.exp2(np.arange(-4, 4)).astype(np.float32).reshape(-1, 1, 1, 1)
"""Channels whose ranges differ by 2^7: one scale leaves the smallest a single code."""
WEIGHTS = {"w": normal(8, 4, 3, 3) * SPREAD, "b": normal(8) * SPREAD.reshape(-1), "v": normal(5, 8, 1, 1, seed=2)}
TEXT = (
    "(float[1,4,8,8] x) => (float[1,5,8,8] y) "
    "{ [first] a = Conv<pads=[1,1,1,1]>(x, w, b) r = Relu(a) [second] y = Conv(r, v) }"
)


def constants(made: Program) -> list[Array]:
    """The weight and the bias of every convolution, from the top down."""
    operands = [v for op in made.body.ops if op.name == "onnx.Conv" for v in op.operands[1:]]
    return [array for v in operands if (array := array_of(v, made)) is not None]


def noise(array: Array) -> float:
    """Error of one-scale rounding over the energy of the array, in the worst channel."""
    fmt = load("XINT8").conv_format(array.shape)
    found = rtn.fit(array, fmt)
    off = (fmt.decode(found.codes, found.scale) - array).reshape(len(array), -1)
    return float(((off**2).sum(1) / (array.reshape(len(array), -1) ** 2).sum(1)).max())


def test_the_network_keeps_its_meaning() -> None:
    before = program(TEXT, **WEIGHTS)
    after = rewritten(before, EqualizeLayers())
    assert agreement(before, after, {"x": normal(1, 4, 8, 8, seed=5)}) > 110
    assert reasons(after, "equalized") == ["its channels against those of second"]


def test_channels_get_one_range_and_survive_one_scale() -> None:
    before = program(TEXT, **WEIGHTS)
    w, b, v = constants(rewritten(before, EqualizeLayers()))
    first = np.maximum(np.abs(w).reshape(8, -1).max(1), np.abs(b))
    second = np.abs(v).max(axis=(0, 2, 3))
    np.testing.assert_allclose(first, second, rtol=0.01)
    assert noise(w) < 0.05 * noise(WEIGHTS["w"])
    assert noise(np.swapaxes(v, 0, 1)) < 0.05


def test_a_depthwise_layer_is_equalized_on_both_sides() -> None:
    before = program(
        "(float[1,4,8,8] x) => (float[1,5,8,8] y) { [a] f = Conv<pads=[1,1,1,1]>(x, w, b) r = Relu(f) "
        "[b] d = Conv<pads=[1,1,1,1], group=8>(r, k) [c] y = Conv(d, v) }",
        **WEIGHTS,
        k=normal(8, 1, 3, 3, seed=6) / SPREAD,
    )
    after = rewritten(before, EqualizeLayers())
    assert agreement(before, after, {"x": normal(1, 4, 8, 8, seed=5)}) > 110
    assert len(reasons(after, "equalized")) == 2


@pytest.mark.parametrize(
    "between",
    [
        "r = HardSwish(a) y = Conv(r, v)",  # a factor does not pass through
        "r = Relu(a) c = Conv(r, v) s = Conv(r, v) y = Add(c, s)",  # two readers
        "m = Reshape(a, shape) r = Relu(m) y = Conv(r, v)",
    ],
    ids=["curved", "two readers", "reshaped"],
)
def test_other_pairs_stay(between: str) -> None:
    text = TEXT.split(" r = Relu")[0] + " " + between + " }"
    before = program(text, **WEIGHTS, shape=np.array([1, 8, 8, 8]))
    after = rewritten(before, EqualizeLayers())
    assert not reasons(after, "equalized")
    assert all(map(np.array_equal, constants(after), constants(before)))


def test_a_weight_that_others_read_is_left_to_them() -> None:
    before = program(
        "(float[1,8,8,8] x) => (float[1,5,8,8] y, float[1,8,8,8] z) { a = Conv(x, w) y = Conv(a, v) z = Conv(x, w) }",
        w=normal(8, 8, 1, 1) * SPREAD,
        v=normal(5, 8, 1, 1),
    )
    after = rewritten(before, EqualizeLayers())
    assert reasons(after, "equalized")
    assert agreement(before, after, {"x": normal(1, 8, 8, 8, seed=5)}) > 110


def test_dead_channels_do_no_harm() -> None:
    dead = WEIGHTS["w"].copy()
    dead[2] = 0
    bias = WEIGHTS["b"].copy()
    bias[2] = 0
    before = program(TEXT, **{**WEIGHTS, "w": dead, "b": bias})
    after = rewritten(before, EqualizeLayers())
    assert all(np.isfinite(array).all() for array in constants(after))
    assert agreement(before, after, {"x": normal(1, 4, 8, 8, seed=5)}) > 110
