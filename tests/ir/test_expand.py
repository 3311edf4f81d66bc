"""Each `q` operation by its expansion, against arithmetic in float64 written here independently.

Tolerance: sums of products are within `4 eps (n + 2)` of the sum of their absolute values, where n is the number of
terms: any order of accumulation in float32 keeps that.
"""

from __future__ import annotations

import itertools
import math

import numpy as np
import pytest

from qcc.ir.execute import run
from qcc.ir.expand import expand
from qcc.ir.program import Program
from qcc.ir.text import check
from tests.ir.helpers import program
from tests.ir.stored import EPS, Real, Stored, through_codes


def assert_sum(found: np.ndarray, expected: Real, magnitude: Real, terms: int) -> None:
    """`found` is within the rounding of any float32 accumulation of `terms` products."""
    assert found.shape == expected.shape
    assert (np.abs(found.astype(np.float64) - expected) <= 4 * EPS * (terms + 2) * magnitude + 1e-30).all()


def linear(stored: Stored, x: np.ndarray, bias: np.ndarray | None = None, *, activation: str = "") -> np.ndarray:
    """`q.linear` on a dynamic batch."""
    n, k = stored.shape
    features = f"tensor<{'?x' * (x.ndim - 1)}{k}xf32>"
    result = f"tensor<{'?x' * (x.ndim - 1)}{n}xf32>"
    lines = [f'%w = q.weight "w" : {stored.weight()}']
    if bias is not None:
        lines.append(f'%b = q.weight "b" : tensor<{n}xf32>')
    if activation:
        lines.append(f'%q = q.quantize(%x) : !q.tensor<{features}, "{activation}">')
    operands = ", ".join(["%q" if activation else "%x", "%w", *(["%b"] if bias is not None else [])])
    lines.append(f"%y = q.linear({operands}) : {result}")
    parts = stored.parts() if bias is None else {**stored.parts(), "b": bias}
    return run(program({"x": features}, "\n    ".join(lines), {"y": result}, parts), {"x": x})["y"]


LINEARS = [
    ("i4", (1, 32), False),
    ("u4", (1, 32), True),
    ("i8", (1, 70), False),
    ("u2", (1, 16), True),
    ("i3", (1, 64), False),
    ("i8", (5, 70), False),
]


@pytest.mark.parametrize(("element", "block", "zero"), LINEARS)
@pytest.mark.parametrize("with_bias", [False, True])
@pytest.mark.parametrize("batch", [(3,), (1,), (0,), (2, 4), (2, 0, 4)])
def test_linear(element: str, block: tuple[int, int], zero: bool, with_bias: bool, batch: tuple[int, ...]) -> None:
    stored = Stored((5, 70), element, block, zero=zero)
    rng = np.random.default_rng(9)
    x = rng.normal(size=(*batch, 70)).astype(np.float32)
    bias = rng.normal(size=5).astype(np.float32) if with_bias else None
    w, real = stored.values(), x.astype(np.float64)
    expected, magnitude = real @ w.T, np.abs(real) @ np.abs(w).T
    if bias is not None:
        expected, magnitude = expected + bias, magnitude + np.abs(bias)
    assert_sum(linear(stored, x, bias), expected, magnitude, 71)


@pytest.mark.parametrize("activation", ["u8, f32 per tensor, zero u8", "i8, f32 per 32", "i8, f32 per *"])
def test_linear_of_codes_is_linear_of_their_values(activation: str) -> None:
    stored = Stored((5, 70), "i8", (1, 70))
    x = np.random.default_rng(8).normal(size=(4, 70)).astype(np.float32)
    values = through_codes(activation, x).astype(np.float64)
    w = stored.values()
    assert_sum(linear(stored, x, activation=activation), values @ w.T, np.abs(values) @ np.abs(w).T, 70)


def convolution(x: Real, w: Real, *, group: int, strides: list[int], pads: list[int], dilations: list[int]) -> Real:
    """ONNX `Conv` by its definition, one output at a time."""
    spatial = w.ndim - 2
    x = np.pad(x, [(0, 0), (0, 0), *((pads[i], pads[i + spatial]) for i in range(spatial))])
    reach = [(k - 1) * d + 1 for k, d in zip(w.shape[2:], dilations, strict=True)]
    extents = [(n - r) // s + 1 for n, r, s in zip(x.shape[2:], reach, strides, strict=True)]
    y = np.zeros((x.shape[0], w.shape[0], *extents))
    per_group = w.shape[0] // group
    for m, *at in itertools.product(range(w.shape[0]), *map(range, extents)):
        channels = slice(m // per_group * w.shape[1], (m // per_group + 1) * w.shape[1])
        window = tuple(slice(a * s, a * s + r, d) for a, s, r, d in zip(at, strides, reach, dilations, strict=True))
        y[(slice(None), m, *at)] = (x[(slice(None), channels, *window)] * w[m]).sum(axis=tuple(range(1, w.ndim)))
    return y


def transposed_convolution(
    x: Real, w: Real, *, group: int, strides: list[int], pads: list[int], dilations: list[int]
) -> Real:
    """ONNX `ConvTranspose` by its definition: every input spreads the kernel over the output."""
    spatial = w.ndim - 2
    reach = [(k - 1) * d + 1 for k, d in zip(w.shape[2:], dilations, strict=True)]
    whole = [(n - 1) * s + r for n, s, r in zip(x.shape[2:], strides, reach, strict=True)]
    y = np.zeros((x.shape[0], w.shape[1] * group, *whole))
    per_group = w.shape[0] // group
    for c, *at in itertools.product(range(w.shape[0]), *map(range, x.shape[2:])):
        out = slice(c // per_group * w.shape[1], (c // per_group + 1) * w.shape[1])
        window = tuple(slice(a * s, a * s + r, d) for a, s, r, d in zip(at, strides, reach, dilations, strict=True))
        source = x[(slice(None), c, *at)].reshape(len(x), *(1,) * (spatial + 1))
        y[(slice(None), out, *window)] += source * w[c]
    crop = tuple(slice(pads[i], n - pads[i + spatial]) for i, n in enumerate(whole))
    return y[(slice(None), slice(None), *crop)]


CONVOLUTIONS = {
    "plain": ((4, 3, 3, 3), (2, 3, 7, 6), {}),
    "strided and padded": ((4, 3, 3, 3), (2, 3, 7, 6), {"strides": [2, 1], "pads": [1, 0, 2, 1]}),
    "dilated": ((4, 3, 2, 3), (1, 3, 7, 8), {"dilations": [3, 2]}),
    "grouped": ((6, 2, 3, 3), (2, 4, 5, 5), {"group": 2, "pads": [1, 1, 1, 1]}),
    "depthwise": ((5, 1, 3, 3), (2, 5, 5, 5), {"group": 5, "pads": [1, 1, 1, 1]}),
    "pointwise": ((7, 5, 1, 1), (2, 5, 3, 4), {}),
    "one axis": ((4, 3, 5), (2, 3, 11), {"strides": [3], "pads": [2, 2]}),
    "three axes": ((2, 2, 2, 2, 2), (1, 2, 3, 3, 3), {}),
    "no batch": ((4, 3, 3, 3), (0, 3, 7, 6), {}),
}
TRANSPOSED = {
    "plain": ((3, 4, 3, 3), (2, 3, 5, 4), {}),
    "strided and padded": ((3, 4, 2, 2), (2, 3, 5, 4), {"strides": [2, 2], "pads": [1, 0, 0, 1]}),
    "grouped": ((4, 3, 3, 3), (2, 4, 5, 5), {"group": 2}),
}


def check_convolution(
    shape: tuple[int, ...],
    x_shape: tuple[int, ...],
    options: dict[str, object],
    block: tuple[int, ...],
    *,
    transposed: bool,
) -> None:
    spatial = len(shape) - 2
    stored = Stored(shape, "i8", block, zero=False, seed=4)
    rng = np.random.default_rng(7)
    x = rng.normal(size=x_shape).astype(np.float32)
    given = {"group": 1, "strides": [1] * spatial, "pads": [0] * 2 * spatial, "dilations": [1] * spatial, **options}
    oracle = transposed_convolution if transposed else convolution
    w, real = stored.values(), x.astype(np.float64)
    bias = rng.normal(size=shape[1] * int(str(given["group"])) if transposed else shape[0]).astype(np.float32)
    column = bias.reshape(-1, *(1,) * spatial)
    expected = oracle(real, w, **given) + column  # pyright: ignore[reportArgumentType]
    magnitude = oracle(np.abs(real), np.abs(w), **given) + np.abs(column)  # pyright: ignore[reportArgumentType]
    attributes = [
        f"{name} = {value} : i64" if isinstance(value, int) else f"{name} = array<i64: {', '.join(map(str, value))}>"  # pyright: ignore[reportArgumentType]
        for name, value in {**options, **({"transposed": 1} if transposed else {})}.items()
    ]
    result = f"tensor<?x{'x'.join(map(str, expected.shape[1:]))}xf32>"
    body = f"""%w = q.weight "w" : {stored.weight()}
    %b = q.weight "b" : tensor<{len(bias)}xf32>
    %y = q.conv "c"(%x, %w, %b) {{{", ".join(attributes)}}} : {result}"""
    activation = f"tensor<?x{'x'.join(map(str, x_shape[1:]))}xf32>"
    made = program({"x": activation}, body, {"y": result}, {**stored.parts(), "b": bias})
    assert_sum(run(made, {"x": x})["y"], expected, magnitude, math.prod(shape[1:]) + 1)


@pytest.mark.parametrize("case", CONVOLUTIONS)
def test_conv(case: str) -> None:
    shape, x_shape, options = CONVOLUTIONS[case]
    check_convolution(shape, x_shape, options, (1, *shape[1:]), transposed=False)


@pytest.mark.parametrize("case", TRANSPOSED)
def test_transposed_conv(case: str) -> None:
    shape, x_shape, options = TRANSPOSED[case]
    check_convolution(shape, x_shape, options, (shape[0], 1, *shape[2:]), transposed=True)


@pytest.mark.parametrize("block", [(1, 2, 3, 3), (1, 1, 1, 1), (4, 3, 3, 3), (3, 2, 2, 2)])
def test_conv_with_scales_by_any_block(block: tuple[int, ...]) -> None:
    check_convolution((4, 3, 3, 3), (2, 3, 5, 5), {}, block, transposed=False)


def shared() -> Program:
    """Two layers on one weight and one quantized activation."""
    stored = Stored((4, 32), "i8", (1, 32))
    body = f"""%w = q.weight "w" : {stored.weight()}
    %q = q.quantize(%x) : !q.tensor<tensor<?x32xf32>, "u8, f32 per tensor, zero u8">
    %a = q.linear "a"(%q, %w) : tensor<?x4xf32>
    %b = q.linear "b"(%q, %w) : tensor<?x4xf32>
    %y = onnx.Add(%a, %b) : tensor<?x4xf32>"""
    return program({"x": "tensor<?x32xf32>"}, body, {"y": "tensor<?x4xf32>"}, stored.parts())


def test_expansion_leaves_standard_operators_that_verify() -> None:
    made = shared()
    before = str(made.module)
    expanded = expand(made)
    check(expanded.module)
    assert {op.name.split(".")[0] for op in expanded.body.ops} == {"onnx", "q", "func"}
    assert {op.name for op in expanded.body.ops if op.name.startswith("q.")} == {"q.weight"}
    assert str(made.module) == before


def test_shared_weights_and_codes_are_expanded_once() -> None:
    names = [op.name for op in expand(shared()).body.ops]
    assert names.count("q.weight") == 2
    assert names.count("onnx.Round") == 2
    assert names.count("onnx.MatMul") == 2


def test_expansion_keeps_names_of_nodes_and_values() -> None:
    text = str(expand(shared()).module)
    assert 'onnx.MatMul "a"(' in text
    assert "%a = " in text
