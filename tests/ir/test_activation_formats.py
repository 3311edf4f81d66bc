"""Activations quantized at run time: the expansion against `quantize` of the same rows, and casts of ml_dtypes.

Both find scales by the same rule from the same values in float32, so that values are equal bit by bit. Where a scale is
below the normal float32 numbers `quantize` takes a row for zeros, and the expansion need only be close.
"""

from __future__ import annotations

from typing import Any

import ml_dtypes
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp
from numpy.typing import NDArray

from qcc.ir.errors import NotSupported
from qcc.ir.expand import expand
from qcc.ir.format import Format
from qcc.ir.quantize import quantize
from tests.ir.helpers import program
from tests.ir.stored import through_codes

FORMATS = [
    "e4m3, f32 per *",
    "e5m2, f32 per *",
    "e2m1, f32 per 32",
    "e2m3, f32 per 16",
    "e3m2, f32 per tensor",
    "e4m3, e8m0 per 32",
    "e5m2, e8m0 per 32",
    "e2m3, e8m0 per 32",
    "e3m2, e8m0 per 32",
    "e2m1, e8m0 per 32",
    "i8q6, e8m0 per 32",
    "e2m1, e4m3 per 16, f32 per tensor",
    "e2m3, e4m3 per 16, f32 per tensor",
    "e2m1, e5m2 per 32, f32 per tensor",
]
RNG = np.random.default_rng(0)
NORMAL = RNG.standard_normal((5, 96)).astype(np.float32)
VALUES: dict[str, NDArray[np.float32]] = {
    "random": NORMAL,
    "zeros": np.zeros((2, 96), np.float32),
    "a row of zeros": NORMAL * (np.arange(5) != 2)[:, None].astype(np.float32),
    "powers of two": np.ldexp(np.where(NORMAL > 0, 1, -1), RNG.integers(-9, 9, (5, 96))).astype(np.float32),
    "just below powers of two": np.nextafter(np.ldexp(np.ones((5, 96)), np.arange(5)[:, None]).astype(np.float32), 0),
    "one negative power of two": np.where(np.arange(96) % 32 == 5, -1, 1e-3).astype(np.float32)[None],
    "huge": NORMAL * np.float32(1e30),
    "tiny": NORMAL * np.float32(1e-30),
    "one outlier": np.where(np.arange(480).reshape(5, 96) == 7, 1e6, NORMAL).astype(np.float32),
    "ragged": np.ascontiguousarray(NORMAL[:, :67]),
    "one column": np.ascontiguousarray(NORMAL[:, :1]),
    "positive": np.abs(NORMAL),
    "half of the largest": np.linspace(-1, 1, 480, dtype=np.float32).reshape(5, 96),
}


def same_bits(found: NDArray[Any], expected: NDArray[Any]) -> None:
    """Equal values; the sign of a zero is none of a code's."""
    assert found.shape == expected.shape
    np.testing.assert_array_equal(found + np.float32(0), expected + np.float32(0))


@pytest.mark.parametrize("case", VALUES)
@pytest.mark.parametrize("text", FORMATS)
def test_values_are_those_of_quantize(text: str, case: str) -> None:
    x = VALUES[case]
    same_bits(through_codes(text, x), quantize(x, Format.parse(text)).decode())


@settings(max_examples=25)
@given(
    st.sampled_from(FORMATS),
    hnp.arrays(
        np.float32,
        st.tuples(st.integers(1, 3), st.just(40)),
        elements=st.floats(-(2.0**60), 2.0**60, width=32).filter(lambda v: v == 0 or abs(v) > 2.0**-60),
    ),
)
def test_any_values_are_those_of_quantize(text: str, x: NDArray[np.float32]) -> None:
    same_bits(through_codes(text, x), quantize(x, Format.parse(text)).decode())


@pytest.mark.parametrize("text", FORMATS)
def test_denormals_stay_as_small(text: str) -> None:
    x = np.full((2, 64), 1e-42, np.float32)
    x[0, :32] = -1e-40
    found = through_codes(text, x)
    assert np.isfinite(found).all()
    assert np.abs(found).max() <= 4e-38


@pytest.mark.parametrize("text", FORMATS)
def test_an_empty_batch(text: str) -> None:
    assert through_codes(text, np.zeros((0, 96), np.float32)).shape == (0, 96)


CASTS = {
    "e4m3": ml_dtypes.float8_e4m3fn,
    "e5m2": ml_dtypes.float8_e5m2,
    "e2m1": ml_dtypes.float4_e2m1fn,
    "e2m3": ml_dtypes.float6_e2m3fn,
    "e3m2": ml_dtypes.float6_e3m2fn,
}


@pytest.mark.parametrize("element", CASTS)
def test_given_scales_round_as_ml_dtypes_casts(element: str) -> None:
    """All values, the middles between them and what lies beside these, and what is beyond the range: it saturates."""
    family = Format.parse(f"{element}, f32 per tensor").family
    values = np.unique(family.table[np.isfinite(family.table)]).astype(np.float64)
    middles = ((values[1:] + values[:-1]) / 2).astype(np.float32)
    near = [np.nextafter(middles, np.float32(end)) for end in (-np.inf, np.inf)]
    x = np.concatenate([values.astype(np.float32), middles, *near, np.array([1e30, -1e30], np.float32)])[None]
    found = through_codes(f"{element}, f32 per tensor", x, scale=np.array(1, np.float32))
    clipped = np.clip(x, np.float32(family.low), np.float32(family.high))
    same_bits(found, clipped.astype(CASTS[element]).astype(np.float32))
    assert not np.array_equal(found, np.clip(x, family.low, family.high))


def test_scales_of_nvfp4_are_float8_steps_of_one_float() -> None:
    """Blocks too small for a scale decode to 0, as they would from what is stored; no other scale stands in."""
    x = np.full((1, 32), 1e-3, np.float32)
    x[0, 0] = 1000
    found = through_codes("e2m1, e4m3 per 16, f32 per tensor", x)
    np.testing.assert_array_equal(found[0, 16:], 0)
    assert found[0, 0] == pytest.approx(1000, rel=1e-6)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("nf4, f32 per 32", "activations in nf4 have no expansion"),
        ("ternary, f32 per 32", "activations in ternary have no expansion"),
        ("k16 in f16 per *", "have no expansion"),
        ("u4, f16 per 32, plus f16 per 32", "have no expansion"),
        ("i8, f32 per *, outliers f16 columns", "have no expansion"),
        ("e2m1, e4m3 per 16, f32 per *", "one outer scale, per tensor, is computed"),
        ("e4m3, f16 per *", "scales that are computed are f32 or e8m0"),
    ],
)
def test_formats_without_an_expansion_are_refused(text: str, message: str) -> None:
    type_ = "tensor<4x64xf32>"
    body = f'%q = q.quantize(%x) : !q.tensor<{type_}, "{text}">\n    %y = q.dequantize(%q) : {type_}'
    with pytest.raises(NotSupported, match=message):
        expand(program({"x": type_}, body, {"y": type_}))
