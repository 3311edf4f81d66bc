"""Dtypes of scales: rounded as ml_dtypes and numpy round, saturating where those overflow."""

from __future__ import annotations

import ml_dtypes
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from qcc.ir.errors import BadInput, NotSupported
from qcc.ir.levels import level_dtype
from tests.ir.formats.points import telling_points

FLOATS = {
    "f32": np.float32,
    "f16": np.float16,
    "bf16": ml_dtypes.bfloat16,
    "e4m3": ml_dtypes.float8_e4m3fn,
    "e5m2": ml_dtypes.float8_e5m2,
}


@pytest.mark.parametrize("name", FLOATS)
def test_floats_round_as_their_dtype_and_saturate(name: str) -> None:
    level, dtype = level_dtype(name), np.dtype(FLOATS[name])
    assert level.numpy == dtype and level.bits == 8 * dtype.itemsize and not level.is_integer
    assert level.high == float(ml_dtypes.finfo(dtype).max) == -level.low
    grid = (
        np.arange(1 << 8, dtype=np.uint8).view(dtype).astype(np.float32)
        if dtype.itemsize == 1
        else np.float32([1, 2, 3])
    )
    x = telling_points(grid)
    inside = x[np.abs(x) <= level.high]
    np.testing.assert_array_equal(level.round(inside), inside.astype(dtype))
    ends = level.round(np.float32([3.4028235e38, -3.4028235e38]))
    assert ends.dtype == dtype and ends.astype(np.float64).tolist() == [level.high, level.low]


@pytest.mark.parametrize("name", ["i8", "u8", "u6", "i4", "i1", "u1"])
def test_integers_hold_whole_values(name: str) -> None:
    level = level_dtype(name)
    assert level.is_integer and level.bits == int(name[1:])
    assert level.numpy == (np.int8 if name[0] == "i" else np.uint8)
    x = np.float32([-1e9, -1.5, -0.5, 0.5, 1.5, 2.5, 1e9])
    expected = np.clip(np.rint(x), level.low, level.high)
    found = level.round(x)
    assert found.dtype == level.numpy
    np.testing.assert_array_equal(found, expected)


def test_powers_of_two_are_ml_dtypes() -> None:
    level = level_dtype("e8m0")
    assert (level.bits, level.high, level.low, level.is_integer) == (8, 2.0**127, 2.0**-127, False)
    powers = np.exp2(np.arange(-126, 127)).astype(np.float32)
    x = telling_points(powers)
    x = x[(x >= 2.0**-127) & (x < 1.5 * 2.0**127)]
    found = level.round(x)
    assert found.dtype == ml_dtypes.float8_e8m0fnu
    np.testing.assert_array_equal(found.view(np.uint8), x.astype(ml_dtypes.float8_e8m0fnu).view(np.uint8))


@given(st.floats(2.0**-127, 1.5 * 2.0**127, width=32, allow_subnormal=True))
def test_floor_and_ceil_enclose(value: float) -> None:
    level = level_dtype("e8m0")
    x = np.float32([value])
    floor, near, ceil = (float(level.round(x, mode)[0]) for mode in ("floor", "nearest", "ceil"))
    assert floor <= value < 2 * floor or floor == level.high
    assert ceil / 2 < value <= ceil or ceil == level.high
    assert near in (floor, ceil) and abs(near - value) == min(abs(floor - value), abs(ceil - value))


def test_ends_of_the_powers_of_two() -> None:
    level = level_dtype("e8m0")
    x = np.float32([0, -0.0, 1e-45, 2.0**-128, 2.0**-127, 3.4028235e38])
    for mode in ("nearest", "floor", "ceil"):
        assert level.round(x, mode).view(np.uint8).tolist() == [0, 0, 0, 0, 0, 254]
    x = np.float32([1, 1.25, 1.5, 1.75, 2, np.nextafter(np.float32(2), np.float32(3))])
    assert level.round(x).astype(float).tolist() == [1, 1, 2, 2, 2, 2]
    assert level.round(x, "floor").astype(float).tolist() == [1, 1, 1, 1, 2, 2]
    assert level.round(x, "ceil").astype(float).tolist() == [1, 2, 2, 2, 2, 4]
    assert level.round(np.float32(4.0)).shape == () and level.round(np.zeros((0, 3), np.float32)).shape == (0, 3)


@pytest.mark.parametrize("name", [*FLOATS, "e8m0", "i8", "u6"])
@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf])
def test_what_no_level_holds(name: str, bad: float) -> None:
    with pytest.raises(BadInput, match=f"a level of {name} cannot hold NaN or infinite"):
        level_dtype(name).round(np.float32([1, bad]))


def test_what_a_level_does_not_do() -> None:
    with pytest.raises(BadInput, match="cannot hold negative values"):
        level_dtype("e8m0").round(np.float32([1, -1]))
    with pytest.raises(BadInput, match="only e8m0 is rounded by floor"):
        level_dtype("f16").round(np.float32([1]), "floor")


@pytest.mark.parametrize("name", ["e3m2", "e2m1", "nf4", "i8q6", "k16", "e4m3fnuz", "ternary"])
def test_elements_that_are_no_scales(name: str) -> None:
    with pytest.raises(NotSupported, match=f"scales cannot be held as {name!r}") as caught:
        level_dtype(name)
    assert "f16" in caught.value.hint


@pytest.mark.parametrize("name", ["f64", "i9", "", "F32", "e9m9"])
def test_names_that_are_nothing(name: str) -> None:
    with pytest.raises(BadInput, match=f"no dtype of scales is called {name!r}"):
        level_dtype(name)
