"""Rounding to nearest in every format: the error bound, the nearest code, stochastic means, and what is refused."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from qcc.ir.errors import BadInput
from qcc.ir.format import Format
from qcc.ir.quantize import encode, quantize
from qcc.ir.quantized import Quantized
from tests.ir.formats_of_the_field import FORMATS

TRAINED = tuple(text for text in FORMATS if text[0] in "kn" and text[1].isdigit())
OWN_VALUES = tuple(text for text in FORMATS if text not in TRAINED)
SHAPES = st.tuples(st.sampled_from([1, 2, 3, 5, 8]), st.sampled_from([1, 2, 7, 31, 64, 97, 128]))


def normal(shape: tuple[int, int], seed: int, scale: float = 1.0) -> np.ndarray:
    return (np.random.default_rng(seed).standard_normal(shape) * scale).astype(np.float32)


def kept(value: Quantized) -> np.ndarray:
    """Where an outlier or a pruned value stands, which no bound is about."""
    mask = np.zeros(value.shape, bool)
    if "outlier_start" in value.parts:
        rows = np.repeat(np.arange(value.shape[0]), np.diff(value.parts["outlier_start"]))
        mask[rows, value.parts["outlier_columns"]] = True
    elif "outlier_columns" in value.parts:
        mask[:, value.parts["outlier_columns"]] = True
    return mask


@settings(deadline=None, max_examples=150)
@given(st.sampled_from(OWN_VALUES), SHAPES, st.integers(0, 99), st.sampled_from([1e-20, 1e-3, 1.0, 300.0]))
def test_errors_stay_within_the_bound(text: str, shape: tuple[int, int], seed: int, size: float) -> None:
    x = normal(shape, seed, size if "f16" not in text or size > 1e-10 else 1e-3)
    value = quantize(x, Format.parse(text))
    value.check(text)
    bound, found = value.error_bound(), value.decode()
    fmt = value.format
    low, high = (np.asarray(v, np.float32) for v in range_of(value))
    inside = (x >= low) & (x <= high) & ~kept(value)
    if fmt.sparsity:
        inside &= value.codes != fmt.zero_code
    assert (np.abs(found - x) <= bound * (1 + 1e-5) + 3e-6 * (np.abs(x) + np.abs(low) + np.abs(high)))[inside].all()


def range_of(value: Quantized) -> tuple[np.ndarray, np.ndarray]:
    """The smallest and largest value that each element could have."""
    ends: list[np.ndarray] = []
    for family in value.format.families:
        for end in (family.low, family.high):
            raw = np.flatnonzero(family.table == np.float32(end))[0]
            code = raw - (1 << value.format.bits) * (family.signed and raw >= 1 << (value.format.bits - 1))
            codes = np.full(value.shape, code, value.codes.dtype)
            parts = {**value.parts, "codes": codes}
            if "choice" in parts:
                index = value.format.families.index(family)
                parts["choice"] = np.full_like(parts["choice"], index)
            ends.append(Quantized(value.format, parts).decode())
    if len(ends) > 2:
        choice = np.broadcast_to(value.format.lookup.spread(value.parts["choice"], value.shape), value.shape)
        index = choice[None].astype(np.int64)
        ends = [np.take_along_axis(np.stack(ends[side::2]), index, axis=0)[0] for side in (0, 1)]
    return np.minimum(*ends), np.maximum(*ends)


@pytest.mark.parametrize("text", [text for text in FORMATS if "sparse" not in text])
def test_codes_are_those_of_the_nearest_value(text: str) -> None:
    x = normal((3, 70), 5)
    value = quantize(x, Format.parse(text))
    best = np.full(x.shape, np.inf)
    for raw in range(1 << value.format.bits):
        code = raw - (1 << value.format.bits) * (value.format.family.signed and raw >= 1 << (value.format.bits - 1))
        codes = np.full(x.shape, code, value.codes.dtype)
        try:
            other = Quantized(value.format, {**value.parts, "codes": codes})
            other.check(text)
        except BadInput:
            continue
        best = np.fmin(best, np.abs(other.decode().astype(np.float64) - x))
    found = np.abs(value.decode().astype(np.float64) - x)
    assert (found <= best + 1e-6 * (1 + np.abs(x)) * (1 + 20 * (value.format.zero is not None))).all()


@pytest.mark.parametrize("text", FORMATS)
def test_values_that_codes_stand_for_come_back(text: str) -> None:
    value = quantize(normal((4, 64), 7), Format.parse(text))
    values = value.decode()
    again = encode(values, Quantized(value.format, {k: v for k, v in value.parts.items() if k != "codes"}))
    if value.format.sparsity or value.format.outliers:
        np.testing.assert_array_equal(again.decode(), values)
    else:
        np.testing.assert_allclose(again.decode(), values, rtol=1e-6, atol=1e-7)


@pytest.mark.parametrize("text", ["i4, f32 per 32", "u4, f16 per 32, zero u4", "e2m1, e8m0 per 32", "nf4, f32 per 64"])
def test_stochastic_rounding_has_the_right_mean_and_a_seed(text: str) -> None:
    fmt, x = Format.parse(text), np.tile(normal((1, 64), 3), (4096, 1))
    first, second = quantize(x, fmt, seed=1), quantize(x, fmt, seed=1)
    np.testing.assert_array_equal(first.codes, second.codes)
    assert not np.array_equal(first.codes, quantize(x, fmt, seed=2).codes)
    inside = (x >= range_of(first)[0]) & (x <= range_of(first)[1])
    off = np.where(inside, first.decode() - x, 0).mean(axis=0)
    assert np.abs(off).max() < 5 * float(first.error_bound().max()) / 64


@pytest.mark.parametrize("text", FORMATS)
@pytest.mark.parametrize("x", [np.zeros((2, 64)), np.full((2, 64), 1e-42), np.zeros((0, 64)), np.full((1, 1), -3.0)])
def test_blocks_of_nothing_and_extents_of_one(text: str, x: np.ndarray) -> None:
    if not x.size and text in TRAINED:
        return  # nothing to find a codebook of
    found = quantize(x, Format.parse(text))
    found.check(text)
    assert np.isfinite(found.decode()).all()
    if np.abs(x).max(initial=0) < 1e-30:
        assert np.abs(found.decode()).max(initial=0) <= 1e-30


@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf])
def test_values_without_a_code_are_named(bad: float) -> None:
    x = normal((40, 1 << 16), 0)
    x[33, 5] = bad
    with pytest.raises(BadInput, match=rf"value at \(33, 5\) is {bad}"):
        quantize(x, Format.parse("i4, f32 per 32"))


def test_scales_beyond_their_dtype_are_refused() -> None:
    with pytest.raises(BadInput, match=r"scale reaches .* f16 does not hold"):
        quantize(np.full((1, 32), 1e7, np.float32), Format.parse("i4, f16 per 32"))


def test_rows_at_a_time_are_the_same_as_all_at_once() -> None:
    x = normal((96, 1 << 15), 4)
    for text in ("i4, f16 per 32", "u4, u6 per 32, f16 per 256, minus u6 per 32 by f16 per 256", "e2m1, e8m0 per 32"):
        whole = quantize(x, Format.parse(text))
        alone = quantize(x[50:51], Format.parse(text))
        for name, array in alone.parts.items():
            np.testing.assert_array_equal(whole.parts[name][50:51], array)


def test_two_of_four_neighbours_stay() -> None:
    value = quantize(normal((8, 128), 9), Format.parse("i4, f16 per 32, sparse 2:4"))
    assert ((value.codes.reshape(8, -1, 4) != 0).sum(axis=2) <= 2).all()


def test_the_share_of_outliers_is_kept_exactly() -> None:
    x = normal((64, 256), 11)
    x[3, 7], x[:, 9] = 300.0, 50.0
    single = quantize(x, Format.parse("i3, f16 per 16, outliers f16 csr"), outlier_share=0.01)
    assert len(single.parts["outlier_values"]) == round(0.01 * x.size)
    assert single.decode()[3, 7] == 300.0
    columns = quantize(x, Format.parse("i8, f32 per *, outliers f16 columns"), outlier_share=2 / 256)
    assert set(columns.parts["outlier_columns"]) == {7, 9}
    np.testing.assert_array_equal(columns.decode()[:, 9], x[:, 9])
