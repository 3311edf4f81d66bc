"""Codes by their expansion, against arithmetic in float64: how weights decode, and how activations are quantized.

Tolerances. Decoding a weight is exact to the float32 nearest `(code - zero) * scale`. Quantizing gives a code within
half a step of the real quotient, give or take float32 rounding of the quotient.
"""

from __future__ import annotations

import numpy as np
import onnxruntime
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp
from onnx import TensorProto, helper

from qcc.ir.errors import NotSupported
from qcc.ir.execute import run
from qcc.ir.expand import expand
from qcc.ir.layout import Layout, pack
from tests.ir.helpers import floats, onnx_model, program
from tests.ir.stored import EPS, Real, Stored, code_type, limits, through_codes


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
@pytest.mark.parametrize("element", ELEMENTS)
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
    tiny = float(np.finfo(np.float32).tiny)  # steps of denormals are not held, and may become 1
    assert (np.abs(found.astype(np.float64) - x) <= step * (1 + 1e-5) + tiny).all()


@pytest.mark.parametrize(
    ("type_", "fmt"), [("tensor<3x?xf32>", "i8, f32 per 32"), ("tensor<4x64xf32>", "i8, f32 per 2x32")]
)
def test_activation_blocks_that_cannot_be_split_are_not_supported(type_: str, fmt: str) -> None:
    body = f'%q = q.quantize(%x) : !q.tensor<{type_}, "{fmt}">\n    %y = q.dequantize(%q) : {type_}'
    with pytest.raises(NotSupported, match="need a last axis of known extent"):
        expand(program({"x": type_}, body, {"y": type_}))
