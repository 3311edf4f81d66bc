"""Formats: text, blocks and sizes, and the bound `|decode(encode(x)) - x| <= scale / 2` inside the range."""

from __future__ import annotations

import importlib
import itertools
import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from qcc.ir import formats
from qcc.ir.errors import BadInput
from qcc.ir.format import Format
from qcc.ir.level import Level

INTEGERS = [f"{sign}{bits}" for sign in "iu" for bits in range(1, 9)]
SCALES = st.builds(
    Level,
    st.sampled_from(["f32", "f16", "e8m0"]),
    st.none() | st.lists(st.none() | st.integers(1, 256), min_size=1, max_size=4).map(tuple),
)
FORMATS = st.builds(
    lambda element, scale, zero: Format(element, (scale,), None if zero is None else Level(zero, scale.block)),
    st.sampled_from(INTEGERS),
    SCALES,
    st.none() | st.sampled_from([*INTEGERS, "f32", "f16"]),
)


@given(FORMATS)
def test_parse_inverts_print(fmt: Format) -> None:
    assert Format.parse(str(fmt)) == fmt
    assert hash(Format.parse(str(fmt))) == hash(fmt)


@pytest.mark.parametrize(
    "text",
    [
        "i4, f32 per 32",
        "u8, f32 per tensor, zero u8",
        "i8, f32 per *x*x*",
        "i8, f32 per *",
        "u4, f16 per 2x3, zero u4",
        "i8, e8m0 per tensor",
    ],
)
def test_formats_of_the_field_print_as_written(text: str) -> None:
    assert str(Format.parse(text)) == text
    assert str(Format.parse(text.replace(", ", " ,  "))) == text


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "no element type is called ''"),
        ("i9, f32 per 32", "no element type is called 'i9'"),
        ("f32", "no element type is called 'f32'"),
        ("i4", "has no scale"),
        ("i4, zero u4", "has no scale"),
        ("i4, f64 per 32", "cannot read 'f64 per 32'"),
        ("i4, f32", "cannot read 'f32'"),
        ("i4, f32 per 0", "cannot read 'f32 per 0'"),
        ("i4, f32 per -1", "cannot read 'f32 per -1'"),
        ("i4, f32 per 32x", "cannot read 'f32 per 32x'"),
        ("i4, f32 per tensor x 3", "cannot read"),
        ("i4, f32 per 32, zero", "cannot read 'zero'"),
        ("i4, f32 per 32, zero i16", "cannot read 'zero i16'"),
        ("i4, f32 per 32,", "cannot read ''"),
        ("u4, f32 per 32, zero u4, zero u8", "cannot read 'zero u8'"),
    ],
)
def test_text_that_is_no_format_is_refused(text: str, message: str) -> None:
    with pytest.raises(BadInput, match=message) as caught:
        Format.parse(text)
    assert caught.value.hint


@pytest.mark.parametrize("name", INTEGERS)
def test_integer_element_covers_its_codes(name: str) -> None:
    element = formats.load_element(name)
    codes = np.arange(element.low, element.high + 1).astype(np.int8 if element.signed else np.uint8)
    assert len(codes) == 1 << element.bits
    assert element.signed == (name[0] == "i")
    np.testing.assert_array_equal(element.encode(element.decode(codes)), codes)
    beyond = element.encode(np.array([element.low - 9, element.high + 9, element.low - 1e30, np.inf], np.float32))
    np.testing.assert_array_equal(beyond, codes[[0, -1, 0, -1]])


def test_every_family_lists_examples_that_it_knows() -> None:
    assert "integer" in formats.names()
    for name in formats.names():
        module = importlib.import_module(f"qcc.ir.formats.{name}")
        assert module.EXAMPLES
        assert all(formats.load_element(example).bits <= 8 for example in module.EXAMPLES)


SHAPES = hnp.array_shapes(min_dims=1, max_dims=4, min_side=0, max_side=7)


@st.composite
def blocked(draw: st.DrawFn) -> tuple[Format, tuple[int, ...]]:
    """A format and a shape that it fits; blocks may be ragged, whole, or longer than the axis."""
    shape = draw(SHAPES)
    block = draw(st.none() | st.lists(st.none() | st.integers(1, 9), min_size=1, max_size=len(shape)).map(tuple))
    return Format("i4", (Level("f32", block),)), shape


def block_at(fmt: Format, shape: tuple[int, ...], index: tuple[int, ...]) -> tuple[int, ...]:
    """The block that the element at `index` lies in, straight from the definition."""
    block = fmt.scale.block
    if block is None:
        return (0,) * len(shape)
    aligned = (1,) * (len(shape) - len(block)) + block
    return tuple(0 if b is None else i // b for i, b in zip(index, aligned, strict=True))


@given(blocked())
def test_spread_gives_every_element_the_value_of_its_block(case: tuple[Format, tuple[int, ...]]) -> None:
    fmt, shape = case
    per_block = np.arange(math.prod(fmt.scale_shape(shape))).reshape(fmt.scale_shape(shape))
    spread = np.broadcast_to(fmt.spread(per_block, shape), shape)
    for index in itertools.product(*map(range, shape)):
        assert spread[index] == per_block[block_at(fmt, shape, index)]


@pytest.mark.parametrize(
    ("text", "shape", "scales"),
    [
        ("i4, f32 per 32", (5, 70), (5, 3)),
        ("i4, f32 per 32", (2, 5, 64), (2, 5, 2)),
        ("i4, f32 per 128", (5, 70), (5, 1)),
        ("i8, f32 per *", (5, 70), (5, 1)),
        ("i8, f32 per tensor", (5, 70), (1, 1)),
        ("i8, f32 per *x*x*", (8, 4, 3, 3), (8, 1, 1, 1)),
        ("i8, f32 per 2x*x*", (8, 5, 3, 3), (8, 3, 1, 1)),
        ("i8, f32 per *x1x*x*", (8, 4, 3, 3), (1, 4, 1, 1)),
        ("i8, f32 per 2x3", (5, 7), (3, 3)),
        ("i8, f32 per *", (5, 0), (5, 0)),
        ("i8, f32 per *", (0, 5), (0, 1)),
        ("i8, f32 per tensor", (), ()),
    ],
)
def test_scale_shape(text: str, shape: tuple[int, ...], scales: tuple[int, ...]) -> None:
    assert Format.parse(text).scale_shape(shape) == scales


def test_block_of_more_axes_than_the_tensor_is_refused() -> None:
    with pytest.raises(BadInput, match=r"a block of 3 axes does not fit a tensor of shape \[5, 70\]"):
        Format.parse("i8, f32 per *x*x*").scale_shape((5, 70))


@pytest.mark.parametrize(
    ("text", "shape", "bits"),
    [
        ("i4, f32 per 32", (64, 128), 5.0),
        ("i4, f16 per 32", (64, 128), 4.5),
        ("u4, f32 per 32, zero u4", (64, 128), 4 + 36 / 32),
        ("u2, f16 per 16, zero f16", (64, 128), 4.0),
        ("i4, f32 per 32", (1, 33), 4 + 64 / 33),
        ("i8, f32 per tensor", (4, 8), 9.0),
        ("i8, f32 per *", (4, 8), 12.0),
        ("i8, f32 per *", (0, 8), 8.0),
    ],
)
def test_bits_per_weight_counts_scales_and_zero_points(text: str, shape: tuple[int, ...], bits: float) -> None:
    assert Format.parse(text).bits_per_weight(shape) == pytest.approx(bits)


@st.composite
def quantizable(draw: st.DrawFn) -> tuple[Format, np.ndarray, np.ndarray, np.ndarray | None]:
    """A format, and values that its range holds under drawn scales and zero points."""
    element = draw(st.sampled_from(INTEGERS))
    shape = draw(hnp.array_shapes(min_dims=1, max_dims=3, min_side=1, max_side=6))
    block = draw(st.none() | st.lists(st.none() | st.integers(1, 4), min_size=1, max_size=len(shape)).map(tuple))
    zero = draw(st.none() | st.just(element))
    fmt = Format(element, (Level("f32", block),), None if zero is None else Level(zero, block))
    low, high = fmt.family.low, fmt.family.high
    blocks = fmt.scale_shape(shape)
    scale = draw(hnp.arrays(np.float32, blocks, elements=st.floats(2**-60, 2**60, width=32)))
    zeros = None
    if zero:
        kind = np.int8 if fmt.family.signed else np.uint8
        zeros = draw(hnp.arrays(kind, blocks, elements=st.integers(int(low), int(high))))
    places = draw(hnp.arrays(np.float64, shape, elements=st.floats(low, high)))
    offset = 0.0 if zeros is None else fmt.spread(zeros.astype(np.float64), shape)
    x = ((places - offset) * fmt.spread(scale.astype(np.float64), shape)).astype(np.float32)
    return fmt, x, scale, zeros


@given(quantizable())
def test_error_is_at_most_half_a_scale(case: tuple[Format, np.ndarray, np.ndarray, np.ndarray | None]) -> None:
    fmt, x, scale, zero = case
    codes = fmt.encode(x, scale, zero)
    assert codes.shape == x.shape
    assert codes.dtype == (np.int8 if fmt.family.signed else np.uint8)
    values = fmt.decode(codes, scale, zero)
    assert values.dtype == np.float32
    step = np.broadcast_to(fmt.spread(scale.astype(np.float64), x.shape), x.shape)
    rounding = 2.0**-22 * (np.abs(x.astype(np.float64)) + step)  # float32 division and product
    assert (np.abs(values.astype(np.float64) - x) <= step / 2 + rounding).all()


@given(quantizable())
def test_codes_come_back_from_their_values(case: tuple[Format, np.ndarray, np.ndarray, np.ndarray | None]) -> None:
    fmt, x, scale, zero = case
    codes = fmt.encode(x, scale, zero)
    np.testing.assert_array_equal(fmt.encode(fmt.decode(codes, scale, zero), scale, zero), codes)


@pytest.mark.parametrize("zero", [0, 1, 2, 127, 128])
def test_ties_go_to_the_even_multiple_whatever_the_zero_point(zero: int) -> None:
    """As `QuantizeLinear` has it: round half to even first, add the zero point after."""
    fmt = Format.parse("u8, f32 per tensor, zero u8")
    x = np.array([0.5, 1.5, 2.5, 3.5, 100.5], np.float32)
    codes = fmt.encode(x, np.ones((), np.float32), np.array(zero, np.uint8))
    np.testing.assert_array_equal(codes.astype(int) - zero, [0, 2, 2, 4, 100])


def test_values_beyond_the_range_saturate() -> None:
    fmt = Format.parse("i4, f32 per 2")
    codes = fmt.encode(np.array([[100, -100, 7, 8]], np.float32), np.array([[1, 1]], np.float32))
    np.testing.assert_array_equal(codes, [[7, -8, 7, 7]])


def test_ragged_blocks_use_their_own_scale() -> None:
    fmt = Format.parse("i8, f32 per 3")
    x = np.array([[1, 2, 3, 40, 50, 60, 700]], np.float32)
    scale = np.array([[1, 10, 100]], np.float32)
    np.testing.assert_array_equal(fmt.encode(x, scale), [[1, 2, 3, 4, 5, 6, 7]])
    np.testing.assert_array_equal(fmt.decode(fmt.encode(x, scale), scale), x)


@given(st.integers(-126, 127), st.floats(1, 2, exclude_min=True, exclude_max=True, width=32))
def test_scales_that_are_powers_of_two_are_told_from_others(exponent: int, mantissa: float) -> None:
    power = np.ldexp(np.float32(1), exponent)
    by_shifts, plain = Format.parse("i8, e8m0 per tensor"), Format.parse("i8, f32 per tensor")
    assert by_shifts.holds_scale(power)
    assert plain.holds_scale(power)
    if exponent < 127:
        assert not by_shifts.holds_scale(power * np.float32(mantissa))
        assert plain.holds_scale(power * np.float32(mantissa))
    assert not by_shifts.holds_scale(-power)
    assert not any(fmt.holds_scale(np.array([power, bad])) for bad in (0, np.inf, np.nan) for fmt in (plain, by_shifts))


def test_a_power_of_two_counts_its_exponent_byte() -> None:
    assert Format.parse("i8, e8m0 per *").bits_per_weight((4, 8)) == 9
