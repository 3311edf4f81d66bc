"""What holds for every element: the nearest value, ties to even, the stated bound; unbiased stochastic rounding."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from qcc.ir.errors import BadInput
from qcc.ir.formats import ElementFamily, is_trained, load_element, names
from tests.ir.formats.points import telling_points

NAMES = [
    *(f"{sign}{bits}" for sign in "iu" for bits in range(1, 9)),
    *("i8q6", "i4q3", "u8q8", "i8q64", "i1q1"),
    *("e4m3", "e5m2", "e3m2", "e2m3", "e2m1", "e3m3", "e1m2", "e2m0", "e1m0", "e1m6", "e7m0", "e6m1ieee", "e2m5fn"),
    *("e4m3ieee", "e3m4ieee", "e4m3finite", "e4m3fnuz", "e5m2fnuz", "e4m3b11fnuz", "e3m2b0", "e2m1b-3"),
    *("e2m1z5", "e2m1z-5", "e2m1z8", "e2m1z-8", "e2m0z6", "e2m0z-3", "e2m1z5.1", "e4m3finitez-500"),
    *("nf4", "fp4", "iq4nl", "ternary", "binary"),
]
ELEMENTS = {name: load_element(name) for name in NAMES}
each = pytest.mark.parametrize("element", ELEMENTS.values(), ids=ELEMENTS.keys())


def raw(codes: np.ndarray, element: ElementFamily) -> np.ndarray:
    """Codes as unsigned bit patterns."""
    return codes.view(np.uint8) & np.uint8((1 << element.bits) - 1)


@each
def test_table_agrees_with_limits_and_decode(element: ElementFamily) -> None:
    table = element.table
    assert table.dtype == np.float32 and table.shape == (1 << element.bits,)
    finite = np.isfinite(table)
    assert (element.low, element.high) == (table[finite].min(), table[finite].max())
    patterns = np.arange(1 << element.bits, dtype=np.uint8)
    codes = patterns
    if element.signed:
        shift = 8 - element.bits
        codes = (patterns << shift).view(np.int8) >> shift
    decoded = element.decode(codes)
    assert decoded.dtype == np.float32
    np.testing.assert_array_equal(decoded, table)
    np.testing.assert_array_equal(element.decode(element.encode(table[finite])), table[finite])
    assert not element.trained and not is_trained(element)


@each
def test_encode_takes_the_nearest_of_all_codes(element: ElementFamily) -> None:
    x = telling_points(element.table)
    codes = element.encode(x)
    assert codes.dtype == (np.int8 if element.signed else np.uint8) and codes.shape == x.shape
    clipped = np.clip(x.astype(np.float64), element.low, element.high)
    table = element.table.astype(np.float64)
    distance = np.abs(clipped[:, None] - np.where(np.isfinite(table), table, np.inf))
    chosen = raw(codes, element)
    off = distance[np.arange(len(x)), chosen]
    np.testing.assert_array_equal(off, distance.min(axis=1))
    assert off.max() <= element.half_gap
    # Where two values are equally near: the even code, or the nearer to zero where evenness does not tell.
    near = (distance == off[:, None]) & ~np.isin(np.arange(len(table)), duplicates(table))
    tied = np.flatnonzero(near.sum(axis=1) == 2)
    for at in tied:
        pair = np.flatnonzero(near[at])
        if 2 * clipped[at] != table[pair].sum():
            continue  # float64 does not tell the distances apart
        even = pair[pair % 2 == 0]
        expected = even[0] if len(even) == 1 else pair[np.abs(table[pair]).argmin()]
        assert chosen[at] == expected
    assert not np.isin(chosen, duplicates(table)).any()


def duplicates(table: np.ndarray) -> np.ndarray:
    """Codes of a value that a smaller code has too."""
    return np.flatnonzero([v in table[:code] for code, v in enumerate(table)])


@each
def test_half_gap_is_reached(element: ElementFamily) -> None:
    """The bound is no larger than need be: some value in range is as far from its code."""
    values = np.unique(element.table[np.isfinite(element.table)].astype(np.float64))
    middles = ((values[1:] + values[:-1]) / 2).astype(np.float32)
    off = np.abs(element.decode(element.encode(middles)).astype(np.float64) - middles)
    assert off.max() == pytest.approx(element.half_gap, rel=1e-6)


@each
def test_infinities_clip_and_nan_is_refused(element: ElementFamily) -> None:
    ends = element.decode(element.encode(np.array([-np.inf, np.inf], np.float32)))
    np.testing.assert_array_equal(ends, [element.low, element.high])
    x = np.zeros((300, 300), np.float32)
    x[299, 7] = np.nan
    for rng in (None, np.random.default_rng(0)):
        with pytest.raises(BadInput, match=r"no code for NaN, which is value 89707 of the data"):
            element.encode(x, rng)


@each
def test_shapes_and_dtypes(element: ElementFamily) -> None:
    x = np.random.default_rng(1).normal(0, max(abs(element.low), element.high) / 2, (70000, 3)).astype(np.float32)
    codes = element.encode(x)  # several chunks, the last one ragged
    np.testing.assert_array_equal(codes[65530:65600], element.encode(x[65530:65600]))
    np.testing.assert_array_equal(element.encode(x.T), codes.T)
    np.testing.assert_array_equal(element.encode(x[::-2, 1]), codes[::-2, 1])
    np.testing.assert_array_equal(element.decode(codes.T), element.decode(codes).T)
    np.testing.assert_array_equal(element.encode(x.astype(np.float64)), codes)
    assert element.encode(x[5, 2]).shape == () and element.encode(x[5, 2]) == codes[5, 2]
    for empty in ((0,), (3, 0)):
        assert element.encode(np.zeros(empty, np.float32)).shape == empty
        assert element.decode(element.encode(np.zeros(empty, np.float32))).shape == empty


@each
def test_stochastic_rounding_has_the_value_as_its_mean(element: ElementFamily) -> None:
    rng = np.random.default_rng(2)
    span = element.high - element.low
    x = rng.uniform(element.low, element.high, 64).astype(np.float32)
    draws = 4096
    rounded = element.decode(element.encode(np.tile(x, (draws, 1)), rng)).astype(np.float64)
    assert rounded.min() >= element.low and rounded.max() <= element.high
    for column, value in zip(rounded.T, x, strict=True):
        found = np.unique(column)
        assert len(found) <= 2 and found[0] <= value <= found[-1]
    error = rounded.mean(axis=0) - x
    assert np.abs(error).max() <= 5 * element.half_gap / np.sqrt(draws)  # five deviations of a coin at worst
    values = element.table[np.isfinite(element.table)]
    np.testing.assert_array_equal(element.decode(element.encode(np.tile(values, (50, 1)), rng))[49], values)
    beyond = np.array([element.high + span, element.low - span, np.inf, -np.inf], np.float32)
    ends = [element.high, element.low] * 2
    np.testing.assert_array_equal(element.decode(element.encode(np.tile(beyond, (50, 1)), rng)), np.tile(ends, (50, 1)))


@each
def test_stochastic_rounding_is_given_by_its_seed(element: ElementFamily) -> None:
    x = np.random.default_rng(3).uniform(element.low, element.high, 1000).astype(np.float32)
    first, again, other = (element.encode(x, np.random.default_rng(seed)) for seed in (4, 4, 5))
    np.testing.assert_array_equal(first, again)
    assert (first != other).any()


@given(
    st.sampled_from(NAMES), hnp.arrays(np.float32, st.integers(0, 40), elements=st.floats(width=32, allow_nan=False))
)
def test_decode_then_encode_changes_nothing(name: str, x: np.ndarray) -> None:
    element = ELEMENTS[name]
    codes = element.encode(x)
    values = element.decode(codes)
    np.testing.assert_array_equal(element.encode(values), codes)
    off = np.abs(values.astype(np.float64) - np.clip(x.astype(np.float64), element.low, element.high))
    assert (off <= element.half_gap).all()


@pytest.mark.parametrize("name", [*NAMES, "k4", "k16", "k256", "n3..8", "n2..3"])
def test_elements_print_as_they_parse(name: str) -> None:
    element = load_element(name)
    assert str(element) == name
    assert load_element(str(element)) == element and hash(element) == hash(load_element(name))


def test_files_that_families_share_are_no_families() -> None:
    assert "integer" in names() and "small_float" in names()
    assert not [name for name in names() if name.startswith("_")]


@pytest.mark.parametrize("name", ["nf4", "e2m1", "ternary"])
def test_codes_that_are_too_wide_are_refused(name: str) -> None:
    with pytest.raises(BadInput, match=f"element {name} has codes of . bits, and the data holds 16"):
        load_element(name).decode(np.array([0, 16], np.uint8))
