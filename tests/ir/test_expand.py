"""Each `q` operation by its expansion, against arithmetic in float64 written here independently.

Tolerances. Decoding a weight is exact to the float32 nearest `(code - zero) * scale`. Quantizing gives a code within
half a step of the real quotient, give or take float32 rounding of the quotient. Sums of products are within
`4 eps (n + 2)` of the sum of their absolute values, where n is the number of terms: any order of accumulation in
float32 keeps that.
"""

from __future__ import annotations

import itertools
import math

import numpy as np
import onnxruntime
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp
from numpy.typing import NDArray
from onnx import TensorProto, helper

from qcc.ir.errors import NotSupported
from qcc.ir.execute import run
from qcc.ir.expand import expand
from qcc.ir.layout import Layout, pack
from qcc.ir.program import Program
from qcc.ir.text import check
from tests.ir.helpers import floats, onnx_model, program

EPS = float(np.finfo(np.float32).eps)
Real = NDArray[np.float64]


def limits(element: str) -> tuple[int, int]:
    """The smallest and largest code of an element such as `i4`."""
    bits = int(element[1:])
    return (-(1 << bits - 1), (1 << bits - 1) - 1) if element[0] == "i" else (0, (1 << bits) - 1)


def code_type(element: str) -> type[np.generic]:
    return np.int8 if element[0] == "i" else np.uint8


class Stored:
    """A quantized weight with random parts, and its values in float64 by the definition."""

    def __init__(
        self, shape: tuple[int, ...], element: str, block: tuple[int, ...], *, zero: bool = False, seed: int = 0
    ) -> None:
        rng = np.random.default_rng(seed)
        low, high = limits(element)
        blocks = tuple(-(-extent // size) for extent, size in zip(shape, block, strict=True))
        self.shape, self.element, self.block = shape, element, block
        self.codes = rng.integers(low, high + 1, shape).astype(code_type(element))
        self.scale = np.exp(rng.uniform(-8, 8, blocks)).astype(np.float32)
        self.zero = rng.integers(low, high + 1, blocks).astype(code_type(element)) if zero else None

    @property
    def type(self) -> str:
        pairs = zip(self.block, self.shape, strict=True)
        sizes = "x".join("*" if size >= extent > 1 else str(size) for size, extent in pairs)
        while sizes.startswith("1x"):
            sizes = sizes.removeprefix("1x")
        zero = f", zero {self.element}" if self.zero is not None else ""
        return f'"{self.element}, f32 per {sizes}{zero}"'

    def weight(self, layout: str = "") -> str:
        """The type of the weight in IR text."""
        placed = f', "{layout}"' if layout else ""
        return f"!q.tensor<tensor<{'x'.join(map(str, self.shape))}xf32>, {self.type}{placed}>"

    def parts(self) -> dict[str, np.ndarray]:
        """What the store holds under `w`."""
        parts: dict[str, np.ndarray] = {"w.codes": self.codes, "w.scale": self.scale}
        return parts if self.zero is None else {**parts, "w.zero": self.zero}

    def values(self) -> Real:
        """`(code - zero) * scale`, element by element."""
        values = np.empty(self.shape)
        for index in itertools.product(*map(range, self.shape)):
            at = tuple(i // size for i, size in zip(index, self.block, strict=True))
            zero = 0 if self.zero is None else int(self.zero[at])
            values[index] = (int(self.codes[index]) - zero) * float(self.scale[at])
        return values


def table(
    stored: Stored, *, layout: str = "", zero_layout: str = "", parts: dict[str, np.ndarray] | None = None
) -> np.ndarray:
    """Every row of a quantized matrix, read by `q.embedding`."""
    rows, width = stored.shape
    result = f"tensor<{rows}x{width}xf32>"
    key = f'"w" zero "{zero_layout}"' if zero_layout else '"w"'
    body = f"%w = q.weight {key} : {stored.weight(layout)}\n    %y = q.embedding(%i, %w) : {result}"
    made = program({"i": f"tensor<{rows}xi64>"}, body, {"y": result}, parts or stored.parts())
    return run(made, {"i": np.arange(rows)})["y"]


ELEMENTS = [f"{sign}{bits}" for sign in "iu" for bits in range(1, 9)]


@pytest.mark.parametrize("zero", [False, True])
@pytest.mark.parametrize("element", ELEMENTS)
def test_embedding_decodes_every_element_exactly(element: str, zero: bool) -> None:
    stored = Stored((5, 70), element, (1, 32), zero=zero)
    np.testing.assert_array_equal(table(stored), stored.values().astype(np.float32))


@pytest.mark.parametrize("block", [(1, 32), (1, 70), (5, 70), (1, 1), (2, 32), (2, 70), (5, 1), (3, 7), (1, 999)])
@pytest.mark.parametrize("zero", [False, True])
def test_embedding_decodes_every_block(block: tuple[int, int], zero: bool) -> None:
    stored = Stored((5, 70), "i4", block, zero=zero, seed=1)
    np.testing.assert_array_equal(table(stored), stored.values().astype(np.float32))


def test_rows_are_picked_by_any_indices() -> None:
    stored = Stored((6, 40), "i8", (1, 40))
    body = f'%w = q.weight "w" : {stored.weight()}\n    %y = q.embedding(%i, %w) : tensor<?x?x40xf32>'
    made = program({"i": "tensor<?x?xi32>"}, body, {"y": "tensor<?x?x40xf32>"}, stored.parts())
    for indices in (np.array([[5, 0, 5], [1, 2, 3]], np.int32), np.zeros((0, 4), np.int32)):
        found = run(made, {"i": indices})["y"]
        np.testing.assert_array_equal(found, stored.values().astype(np.float32)[indices])


def test_scales_in_half_precision_decode_too() -> None:
    stored = Stored((5, 70), "i4", (1, 32))
    halves = np.random.default_rng(0).uniform(0.1, 2, (5, 3)).astype(np.float16)
    body = """%w = q.weight "w" : !q.tensor<tensor<5x70xf32>, "i4, f16 per 32">
    %y = q.embedding(%i, %w) : tensor<5x70xf32>"""
    made = program(
        {"i": "tensor<5xi64>"}, body, {"y": "tensor<5x70xf32>"}, {"w.codes": stored.codes, "w.scale": halves}
    )
    expected = stored.codes * halves.astype(np.float32).repeat(32, axis=1)[:, :70]
    np.testing.assert_array_equal(run(made, {"i": np.arange(5)})["y"], expected)


LAYOUTS = [
    "n(n0) k(k0) -> n0 k0",
    "n(n0) k(k0) -> k0 n0",
    "n(n0) k(k1 k0:32) -> n0 k1 k0",
    "n(n1 n0:4) k(k2 k1:4 k0:8) -> n1 k2 k0 n0 k1",
    "n(n1 n0:16) k(k2 k1:16 k0:4) -> n1 k2 k1 n0 k0",
]


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("element", [e for e in ELEMENTS if 8 % int(e[1:]) == 0])
def test_packed_codes_decode_to_the_same(element: str, layout: str) -> None:
    stored = Stored((5, 70), element, (1, 32), zero=True, seed=2)
    bits = int(element[1:])
    for text in (layout, f"{layout} xor {1 << bits - 1}"):
        parts = {**stored.parts(), "w.codes": pack(stored.codes, bits, Layout.parse(text))}
        np.testing.assert_array_equal(table(stored, layout=text, parts=parts), table(stored))


@pytest.mark.parametrize("element", ["u2", "u4", "u8", "i4"])
def test_packed_zero_points_decode_to_the_same(element: str) -> None:
    stored = Stored((5, 70), element, (1, 32), zero=True, seed=3)
    bits = int(element[1:])
    codes, zeros = "n(n0) k(k1 k0:32) -> n0 k1 k0", f"n(n0) b(b1 b0:{8 // bits}) -> n0 b1 b0"
    assert stored.zero is not None
    parts = {
        "w.codes": pack(stored.codes, bits, Layout.parse(codes)),
        "w.scale": stored.scale,
        "w.zero": pack(stored.zero, bits, Layout.parse(zeros)),
    }
    np.testing.assert_array_equal(table(stored, layout=codes, zero_layout=zeros, parts=parts), table(stored))


def test_packed_codes_across_bytes_are_not_supported() -> None:
    stored = Stored((5, 70), "i3", (1, 32))
    layout = "n(n0) k(k0) -> n0 k0"
    parts = {**stored.parts(), "w.codes": pack(stored.codes, 3, Layout.parse(layout))}
    with pytest.raises(NotSupported, match="3 bits have no expansion yet"):
        table(stored, layout=layout, parts=parts)


def through_codes(fmt: str, x: np.ndarray, **parameters: np.ndarray) -> np.ndarray:
    """`q.dequantize(q.quantize(x))` with a dynamic batch; scale and zero are inputs where given."""
    type_ = f"tensor<{'x'.join(['?', *map(str, x.shape[1:])])}xf32>"
    kinds = {np.dtype(np.float32): "f32", np.dtype(np.int8): "i8", np.dtype(np.uint8): "ui8"}
    inputs = {n: f"tensor<{''.join(f'{d}x' for d in a.shape)}{kinds[a.dtype]}>" for n, a in parameters.items()}
    operands = ", ".join(f"%{n}" for n in ("x", *parameters))
    body = f'%q = q.quantize({operands}) : !q.tensor<{type_}, "{fmt}">\n    %y = q.dequantize(%q) : {type_}'
    return run(program({"x": type_, **inputs}, body, {"y": type_}), {"x": x, **parameters})["y"]


def assert_nearest(found: np.ndarray, x: np.ndarray, scale: Real, zero: Real, element: str) -> None:
    """`found` is `(code - zero) * scale` for the code nearest to x / scale + zero inside the range of the element."""
    low, high = limits(element)
    codes = np.rint(found.astype(np.float64) / scale + zero)
    assert np.abs(found - (codes - zero) * scale).max(initial=0) <= 4 * EPS * np.abs(codes - zero).max(
        initial=0
    ) * scale.max(initial=0)
    assert ((codes >= low) & (codes <= high)).all()
    wanted = np.clip(x.astype(np.float64) / scale + zero, low, high)
    assert (np.abs(codes - wanted) <= 0.5 + 8 * EPS * np.abs(wanted) + 1e-5).all()


VALUES = {
    "random": np.random.default_rng(0).normal(size=(3, 70)),
    "positive": np.random.default_rng(1).uniform(1, 2, (3, 70)),
    "negative": np.random.default_rng(2).uniform(-2, -1, (3, 70)),
    "all zero": np.zeros((3, 70)),
    "one outlier": np.where(np.arange(210).reshape(3, 70) == 100, 1e6, 1e-3),
    "tiny": np.random.default_rng(3).normal(size=(3, 70)) * 1e-35,
    "huge": np.random.default_rng(4).uniform(-1, 1, (3, 70)) * 1.6e38,
    "constant": np.full((3, 70), -7.25),
    "no rows": np.zeros((0, 70)),
    "one row": np.random.default_rng(5).normal(size=(1, 70)),
}


@pytest.mark.parametrize("case", VALUES)
@pytest.mark.parametrize("element", ["u8", "i8", "u4"])
def test_static_quantization_gives_the_nearest_code(element: str, case: str) -> None:
    x = VALUES[case].astype(np.float32)
    scale = np.array(max(np.abs(x).max(initial=0) / 100, 1e-30), np.float32)
    zero = np.array(3, code_type(element))
    found = through_codes(f"{element}, f32 per tensor, zero {element}", x, scale=scale, zero=zero)
    assert_nearest(found, x, scale.astype(np.float64), zero.astype(np.float64), element)


@pytest.mark.parametrize("zero", [0, 1, 128, 255])
def test_ties_go_to_the_even_multiple_of_the_scale(zero: int) -> None:
    x = np.array([[-2.5, -1.5, -0.5, 0.5, 1.5, 2.5]], np.float32)
    fmt, one = "u8, f32 per tensor, zero u8", np.array(1, np.float32)
    found = through_codes(fmt, x, scale=one, zero=np.array(zero, np.uint8))
    np.testing.assert_array_equal(found, np.clip([[-2, -2, 0, 0, 2, 2]], 0 - zero, 255 - zero))


@pytest.mark.parametrize("case", VALUES)
def test_dynamic_bytes_per_tensor(case: str) -> None:
    """Scale and zero point from the whole tensor, zero inside the range: as `DynamicQuantizeLinear` specifies."""
    x = VALUES[case].astype(np.float32)
    found = through_codes("u8, f32 per tensor, zero u8", x)
    low, high = min(0.0, float(x.min(initial=0))), max(0.0, float(x.max(initial=0)))
    scale = np.array((high - low) / 255 or 1.0)
    assert_nearest(found, x, scale.astype(np.float32).astype(np.float64), np.rint(-low / scale), "u8")


@pytest.mark.parametrize("case", [c for c in VALUES if c not in ("all zero", "no rows")])
def test_dynamic_bytes_per_tensor_are_those_of_onnx_runtime(case: str) -> None:
    x = VALUES[case].astype(np.float32)
    node = helper.make_node("DynamicQuantizeLinear", ["x"], ["q", "s", "z"])
    outputs = {"q": (TensorProto.UINT8, [None, 70]), "s": floats(), "z": (TensorProto.UINT8, [])}
    model = onnx_model([node], {"x": floats(None, 70)}, outputs).SerializeToString()
    codes, scale, zero = onnxruntime.InferenceSession(model, providers=["CPUExecutionProvider"]).run(None, {"x": x})
    found = through_codes("u8, f32 per tensor, zero u8", x)
    np.testing.assert_allclose(found, (codes.astype(np.float32) - zero) * scale, rtol=1e-6, atol=0)


@pytest.mark.parametrize("case", VALUES)
@pytest.mark.parametrize("size", [16, 32, 70, 128])
def test_dynamic_bytes_per_group(size: int, case: str) -> None:
    x = VALUES[case].astype(np.float32)
    found = through_codes(f"i8, f32 per {size}", x)
    peak = np.empty(x.shape)
    for begin in range(0, 70, size):
        group = slice(begin, begin + size)
        peak[:, group] = np.abs(x[:, group].astype(np.float64)).max(axis=1, keepdims=True)
    scale = np.where(peak == 0, 1.0, peak / 127).astype(np.float32).astype(np.float64)
    assert_nearest(found, x, scale, np.zeros(()), "i8")


@pytest.mark.parametrize("case", VALUES)
def test_dynamic_bytes_per_row(case: str) -> None:
    x = VALUES[case].astype(np.float32)
    found = through_codes("i8, f32 per *", x)
    peak = np.abs(x.astype(np.float64)).max(axis=1, keepdims=True, initial=0)
    scale = np.where(peak == 0, 1.0, peak / 127).astype(np.float32).astype(np.float64)
    assert_nearest(found, x, np.broadcast_to(scale, x.shape), np.zeros(()), "i8")


@settings(max_examples=30)
@given(
    hnp.arrays(
        np.float32,
        st.tuples(st.integers(0, 3), st.integers(1, 3), st.just(40)),
        elements=st.floats(-(2.0**99), 2.0**99, width=32),
    ),
    st.sampled_from(["u8, f32 per tensor, zero u8", "i8, f32 per 16", "i8, f32 per *", "i8, f32 per tensor"]),
)
def test_dynamic_codes_are_within_one_step_of_any_values(x: np.ndarray, fmt: str) -> None:
    found = through_codes(fmt, x)
    assert found.shape == x.shape
    step = (max(0.0, float(x.max(initial=0))) - min(0.0, float(x.min(initial=0)))) / (255 if fmt[0] == "u" else 127)
    assert (np.abs(found.astype(np.float64) - x) <= step * (1 + 1e-5)).all()


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


@pytest.mark.parametrize(
    ("type_", "fmt"), [("tensor<3x?xf32>", "i8, f32 per 32"), ("tensor<4x64xf32>", "i8, f32 per 2x32")]
)
def test_activation_blocks_that_cannot_be_split_are_not_supported(type_: str, fmt: str) -> None:
    body = f'%q = q.quantize(%x) : !q.tensor<{type_}, "{fmt}">\n    %y = q.dequantize(%q) : {type_}'
    with pytest.raises(NotSupported, match="need a last axis of known extent"):
        expand(program({"x": type_}, body, {"y": type_}))
