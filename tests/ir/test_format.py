"""Formats: text, blocks and sizes, and the bound `|decode(encode(x)) - x| <= scale / 2` inside the range."""

from __future__ import annotations

import importlib
import itertools
import math
from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from qcc.ir import formats
from qcc.ir.errors import BadInput
from qcc.ir.format import Format, Offset, Outliers
from qcc.ir.level import Block, Level
from tests.ir.formats_of_the_field import FORMATS

INTEGERS = [f"{sign}{bits}" for sign in "iu" for bits in range(1, 9)]
FLOATS = ["e4m3", "e5m2", "e3m2", "e2m3", "e2m1", "e4m3fnuz", "e4m3b11fnuz", "e3m4ieee", "e2m1z5", "e2m1z-8", "e2m0z6"]
TABLES = ["nf4", "fp4", "iq4nl", "ternary", "binary", "i8q6", "u4q2"]
TRAINED = ["k4", "k5", "k16", "k256", "n3..8", "n2..4"]
CHOICES = [
    "[e2m1z5|e2m1z-5|e2m1z8|e2m1z-8]",
    "[e2m0z3|e2m0z-3|e2m0z6|e2m0z-6]",
    "[nf4|e2m1|u4]",
    "[i4|i4q2]",
]
DTYPES = ["f32", "f16", "bf16", "e8m0", "e4m3", "e5m2", *INTEGERS]
BLOCKS = st.none() | st.lists(st.none() | st.integers(1, 300), min_size=1, max_size=4).map(tuple)


@st.composite
def nested(draw: st.DrawFn, inner: Block | None, depth: int) -> tuple[Level, ...]:
    """`depth` levels, each made of whole blocks of the one inside; the first has the block `inner`."""
    levels = [Level(draw(st.sampled_from(DTYPES)), inner)]
    while len(levels) < depth:
        levels.append(Level(draw(st.sampled_from(DTYPES)), draw(around(levels[-1].block))))
    return tuple(levels)


@st.composite
def around(draw: st.DrawFn, block: Block | None) -> Block | None:
    """A block that is made of whole ones of `block`."""
    if block is None or draw(st.booleans()):
        return None
    more = draw(st.lists(st.none() | st.integers(1, 8), max_size=4 - len(block)))
    grown = [None if extent is None else draw(st.none() | st.integers(1, 8).map(extent.__mul__)) for extent in block]
    return (*more, *grown)


@st.composite
def formats_of_the_grammar(draw: st.DrawFn) -> Format:
    """Any format: every kind of element, up to three levels, and each part or not."""

    def perhaps(strategy: st.SearchStrategy[object]) -> object:
        return draw(st.none() | strategy)

    kind = draw(st.sampled_from(["own", "choice", "trained"]))
    block = draw(BLOCKS)
    element = draw(st.sampled_from({"own": INTEGERS + FLOATS + TABLES, "choice": CHOICES, "trained": TRAINED}[kind]))
    scales = draw(nested(block, draw(st.integers(0 if kind == "trained" else 1, 3)))) if kind else ()
    lookup = None
    if kind == "choice":
        lookup = Level("u8", draw(around(block)))
    elif kind == "trained":
        lookup = Level(draw(st.sampled_from(DTYPES)), draw(BLOCKS))
    zero = st.builds(Level, st.sampled_from(DTYPES), st.just(block) | BLOCKS)
    constant = st.integers(-300, 300).map(float) | st.floats(-6e4, 6e4, width=16)
    offset = st.builds(Offset, st.booleans(), st.integers(1, 3).flatmap(lambda n: nested(draw(BLOCKS), n)))
    outliers = st.builds(Outliers, st.sampled_from(["f32", "f16", "bf16"]), st.booleans())
    fmt = Format(
        element,
        scales,
        zero=perhaps(zero | constant),
        offset=perhaps(offset),
        mean=Level(draw(st.sampled_from(DTYPES)), draw(around(block))) if scales and draw(st.booleans()) else None,
        lookup=lookup,
        permuted=draw(st.booleans()),
        outliers=perhaps(outliers),
    )
    if fmt.zero is None and fmt.offset is None and kind == "own" and fmt.zero_code is not None:
        return replace(fmt, sparsity=perhaps(st.sampled_from([(2, 4), (1, 2), (4, 8), (31, 32)])))
    return fmt


@given(formats_of_the_grammar())
def test_parse_inverts_print(fmt: Format) -> None:
    again = Format.parse(str(fmt))
    assert again == fmt
    assert hash(again) == hash(fmt)
    assert str(again) == str(fmt)


@given(formats_of_the_grammar(), st.integers(0, 400), st.sampled_from([*"0123456789x*,|[]. izef-", " per ", "", "²"]))
def test_text_with_a_mistake_is_a_format_or_one_clear_error(fmt: Format, place: int, odd: str) -> None:
    text = str(fmt)
    place %= len(text)
    text = text[:place] + odd + text[place + 1 :]
    try:
        found = Format.parse(text)
    except BadInput as error:
        assert error.hint
    else:
        assert Format.parse(str(found)) == found


@pytest.mark.parametrize("text", FORMATS)
def test_formats_of_the_field_print_as_written(text: str) -> None:
    assert str(Format.parse(text)) == text
    assert str(Format.parse(text.replace(", ", " ,  "))) == text


@pytest.mark.parametrize(
    ("text", "canonical"),
    [
        ("u4, f16 per 32, zero u4 per 32", "u4, f16 per 32, zero u4"),
        ("u4, f16 per 32, zero u4 per 64", "u4, f16 per 32, zero u4 per 64"),
        ("u8, f32 per *, zero 128.0", "u8, f32 per *, zero 128"),
        ("u8, f32 per *, zero 1234567.25", "u8, f32 per *, zero 1234567.25"),
        ("u8, f32 per *, zero 0.00000005960464477539063", "u8, f32 per *, zero 0.00000005960464477539063"),
        ("i4, f16 per *, outliers f16 csr, permuted", "i4, f16 per *, permuted, outliers f16 csr"),
        ("k16 in f16 per *, zero f16", "k16 in f16 per *, zero f16 per tensor"),
    ],
)  # fmt: skip
def test_parts_print_in_one_order_and_form(text: str, canonical: str) -> None:
    assert str(Format.parse(text)) == canonical
    assert Format.parse(canonical) == Format.parse(text)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "no element type is called ''"),
        ("i9, f32 per 32", "no element type is called 'i9'"),
        ("f32", "no element type is called 'f32'"),
        ("[i4|i9] per 32, f32 per 32", "no element type is called 'i9'"),
        ("k3 in f16 per *", "codebook 'k3' has 3 entries"),
        ("e8m0, f32 per 32", "'e8m0' has no sign"),
        ("i4", "has no scale"),
        ("i4, zero u4", "has no scale"),
        ("i4, f64 per 32", "cannot read 'f64 per 32'"),
        ("i4, nf4 per 32", "cannot read 'nf4 per 32'"),
        ("i4, f32", "cannot read 'f32'"),
        ("i4, f32 per 0", "cannot read 'f32 per 0'"),
        ("i4, f32 per -1", "cannot read 'f32 per -1'"),
        ("i4, f32 per 32x", "cannot read 'f32 per 32x'"),
        ("i4, f32 per ٣", "cannot read"),
        (f"i4, f32 per {'9' * 5000}", "cannot read"),
        ("i4, f32 per tensor x 3", "cannot read"),
        ("i4, f32 per 32, zero", "cannot read 'zero'"),
        ("i4, f32 per 32, zero i16", "cannot read 'zero i16'"),
        ("i4, f32 per 32, zero 1e3", "cannot read 'zero 1e3'"),
        (f"i4, f32 per 32, zero {'9' * 400}", "cannot read"),
        ("i4, f32 per 32,", "cannot read ''"),
        ("u4, f32 per 32, zero u4, zero u8", "cannot read 'zero u8'"),
        ("u4, f32 per 32, plus f16 per 32, minus f16 per 32", "cannot read 'minus f16 per 32'"),
        ("u4, f32 per 32, zero u4, f32 per *", r"cannot read 'f32 per \*'"),
        ("u4, f32 per 32, minus", "cannot read 'minus'"),
        ("u4, f32 per 32, minus f16", "cannot read 'minus f16'"),
        ("u4, f32 per 32, minus u6 per 32 by", "cannot read 'minus u6 per 32 by'"),
        ("u4, f32 per 32, minus u6 per 32 by f64 per 64", "cannot read 'minus"),
        ("u4, f32 per 32, mean f32", "cannot read 'mean f32'"),
        ("u4, f32 per 32, permuted 4", "cannot read 'permuted 4'"),
        ("u4, f32 per 32, sparse 2", "cannot read 'sparse 2'"),
        ("u4, f32 per 32, sparse 0:4", "cannot read 'sparse 0:4'"),
        ("u4, f32 per 32, outliers f16", "cannot read 'outliers f16'"),
        ("u4, f32 per 32, outliers i8 csr", "cannot read 'outliers i8 csr'"),
        ("k16 in f64 per *, f32 per *", r"cannot read 'f64 per \*'"),
        ("k16 in f16", "cannot read 'k16 in f16'"),
        ("[nf4|fp4], f16 per 32", "cannot read '.nf4|fp4.'"),
        ("[nf4] per 32, f16 per 32", "cannot read '.nf4. per 32'"),
        ("[nf4|fp4 per 32, f16 per 32", "cannot read"),
        ("[nf4|e2m3] per 32, f16 per 32", "chooses among nf4, e2m3, which have different bits"),
        ("[u4|i4] per 32, f16 per 32", "chooses among u4, i4, which have different bits"),
        ("[k16|k16] per 32, f16 per 32", "chooses among codebooks"),
        ("k16, f16 per 32", "does not say where the values of its codebook are"),
        ("nf4 in f16 per *, f16 per 32", "has values beside the codes, but nf4 has values of its own"),
        ("u4, u6 per 32, f16 per 48", "has a level f16 per 48 around u6 per 32, which is not made of whole blocks"),
        ("u4, u6 per 32, f16 per 2x*, f32 per *", r"has a level f32 per \* around f16 per 2x\*"),
        ("u4, u6 per tensor, f16 per 48", "has a level f16 per 48 around u6 per tensor"),
        ("u4, u6 per *, f16 per 48", r"has a level f16 per 48 around u6 per \*"),
        ("u4, f16 per 32, minus u6 per 32 by f16 per 16", "has a level f16 per 16 around u6 per 32"),
        ("nf4, f32 per 32, mean f32 per 16", "has a mean per 16, which is not made of whole blocks of scales"),
        ("k16 in f16 per *, mean f32 per tensor", "has a mean per tensor, which is not made of whole blocks"),
        ("[nf4|fp4] per 32, f16 per 64", "chooses an element for 32, which is less than a block of scales"),
        ("u4, f16 per 32, zero u4, sparse 2:4", "prunes values, which needs one code of 0 for all blocks"),
        ("u4, f16 per 32, plus f16 per 32, sparse 2:4", "prunes values, which needs one code of 0"),
        ("[nf4|fp4] per 32, f16 per 32, sparse 2:4", "prunes values, which needs one code of 0"),
        ("binary, f16 per 32, sparse 2:4", "prunes values, which needs one code of 0"),
        ("k16 in f16 per *, sparse 2:4", "prunes values, which needs one code of 0"),
        ("i4, f16 per 32, sparse 4:4", "keeps 4 of 4 values"),
        ("i4, f16 per 32, sparse 2:64", "keeps 2 of 64 values"),
    ],
)  # fmt: skip
def test_text_that_is_no_format_is_refused(text: str, message: str) -> None:
    with pytest.raises(BadInput, match=message) as caught:
        Format.parse(text)
    assert caught.value.hint


def test_elements_without_the_blocks_that_choose_are_refused() -> None:
    with pytest.raises(BadInput, match="does not say which blocks choose an element"):
        Format("[nf4|fp4]", (Level("f16", (32,)),))
    with pytest.raises(BadInput, match="no element type is called"):
        Format("[nf4]", (Level("f16", (32,)),))


@given(formats_of_the_grammar())
def test_parts_have_the_names_of_the_levels(fmt: Format) -> None:
    names = list(fmt.levels())
    assert names[: len(fmt.scales)] == ["scale", "scale1", "scale2"][: len(fmt.scales)]
    assert len(names) == len(fmt.scales) + sum(map(bool, (fmt.zero_level, fmt.mean, fmt.lookup))) + (
        len(fmt.offset.levels) if fmt.offset else 0
    )


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
