"""Named spaces, swizzles and bit planes: the same bijection, told apart by space, xor and bit."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from qcc.ir.errors import BadInput
from qcc.ir.layout import Layout, canonical, index_map, lowering, pack, unpack
from qcc.ir.layout.steps import Swizzle
from tests.ir.chains import Shape, chains, random_codes, space_sizes
from tests.ir.test_layout import Symbol

BANKS = "n(n1 n0:8) k(k1 k0:16) -> @bank n0 @addr n1 k1 k0"
SHARED = "m(m1 m0:8) k(k2 k1:8 k0:8) -> m1 k2 m0 k1^m0 k0"
TMAC = {
    1: "m(m4 m3:8 m2:4 m0:8) k(k2 k1:16 k0:4) bit(b:1) -> m4 k2 m3 k1 b m0 m2 k0",
    2: "m(m4 m3:8 m2:2 m0:8) k(k2 k1:16 k0:4) bit(b:2) -> m4 k2 m3 k1 b m0 m2 k0",
    4: "m(m4 m3:8 m0:8) k(k2 k1:16 k0:4) bit(b1:2 b0:2) -> m4 k2 m3 k1 b0 m0 b1 k0",
}


@settings(deadline=None)
@given(chains())
def test_the_slot_counts_the_spaces_the_first_outermost(case: tuple[Layout, Shape]):
    layout, shape = case
    if 0 in shape:
        return
    grid = tuple(np.indices(shape))
    number = 0
    for place, size in zip(layout.locate(grid, shape).values(), space_sizes(layout.bound(shape)), strict=True):
        assert np.all((np.asarray(place) >= 0) & (np.asarray(place) < size))
        number = number * size + place
    np.testing.assert_array_equal(number, layout.index(grid, shape))


def test_banks_are_read_by_place():
    layout = Layout.parse(BANKS)
    assert layout.locate((11, 37), (16, 64)) == {"bank": 3, "addr": 64 + 37}
    assert layout.index((11, 37), (16, 64)) == 3 * 128 + 101
    assert index_map(layout, (16, 64))(11, 37) == (3, 101)
    assert Layout.parse("n(n0) -> n0").locate((5,), (9,)) == {"slot": 5}
    assert str(Layout.parse("n(n0)->@a @b n0 @c")) == "n(n0) -> @a @b n0 @c"


def test_a_swizzle_moves_each_row_by_its_own_xor():
    layout, shape = Layout.parse(SHARED), (16, 64)
    codes = np.arange(16 * 64).reshape(shape)
    slots = layout.arrange(codes).reshape(16, 8, 8)
    for row in range(16):
        for chunk in range(8):
            np.testing.assert_array_equal(slots[row, chunk ^ row % 8], codes[row, chunk * 8 : chunk * 8 + 8])
    assert Swizzle(axis=3, partner=2) in lowering(layout, shape)
    plain = Layout.parse(SHARED.replace("^m0", ""))
    assert not layout.agrees_with(plain, shape)
    assert layout.agrees_with(Layout.parse(SHARED), shape)
    assert layout.agrees_with(plain, (1, 64))  # row 0 stays


def test_a_swizzle_is_a_symbolic_expression_too():
    class Xor(Symbol):
        def __xor__(self, other: object) -> Symbol:
            return Symbol(f"({self} ^ {other})")

        def __mod__(self, other: int) -> Symbol:
            return Xor(f"({self} % {other})")

        def __floordiv__(self, other: int) -> Symbol:
            return Xor(f"({self} // {other})")

    layout, shape = Layout.parse(SHARED), (16, 128)
    (slot,) = index_map(layout, shape)(Xor("m"), Xor("k"))
    for m, k in [(0, 0), (3, 77), (15, 127)]:
        assert eval(str(slot), {"m": m, "k": k}) == layout.index((m, k), shape)


def test_index_map_refuses_a_shape_that_does_not_fit():
    with pytest.raises(BadInput, match="dimension n has extent 5"):
        index_map(Layout.parse("n(n0:4) -> n0"), (5,))


@pytest.mark.parametrize("bits", TMAC)
def test_bit_planes_lie_where_the_index_says(bits: int):
    layout, shape = Layout.parse(TMAC[bits]), (256, 128)
    codes = random_codes(shape, bits, False, seed=bits)
    stream = np.unpackbits(pack(codes, bits, layout), bitorder="little")
    m, k, bit = np.indices((*shape, bits))
    np.testing.assert_array_equal(stream[layout.index((m, k, bit), (*shape, bits))], codes[m, k] >> bit & 1)
    np.testing.assert_array_equal(unpack(pack(codes, bits, layout), bits, shape, layout, False), codes)


def test_tmac_groups_four_codes_of_a_plane_in_a_nibble():
    """T-MAC looks up g = 4 bits at a time; a byte holds the nibbles of rows m and m + 8 of one plane."""
    codes = random_codes((128, 64), 2, False, seed=1)
    data = pack(codes, 2, Layout.parse(TMAC[2])).reshape(8, 16, 2, 8)
    for row, group, plane, lane in [(0, 0, 0, 0), (3, 5, 1, 6), (7, 15, 1, 7)]:
        m, k = row * 16 + lane, group * 4
        nibbles = [sum(int(codes[m + half * 8, k + i] >> plane & 1) << i for i in range(4)) for half in range(2)]
        assert data[row, group, plane, lane] == nibbles[0] | nibbles[1] << 4


@settings(deadline=None)
@given(st.permutations(["m1", "m0", "k1", "k0", "b"]), st.integers(1, 8), st.booleans(), st.integers(0, 2))
def test_bit_planes_in_any_order(order: list[str], bits: int, signed: bool, axis: int):
    dimensions = ["m(m1 m0:4)", "k(k1 k0:3)"]
    dimensions.insert(axis, "bit(b)")
    layout = Layout.parse(f"{' '.join(dimensions)} -> {' '.join(order)} xor {1 << bits - 1}")
    codes = random_codes((5, 7), bits, signed, seed=bits)
    data = pack(codes, bits, layout, fill=-1 if signed else 1)
    assert data.size == -(-8 * 9 * bits // 8)
    np.testing.assert_array_equal(unpack(data, bits, (5, 7), layout, signed), codes)
    whole = unpack(data, bits, (8, 9), layout, signed)
    assert np.all(whole[5:] == (-1 if signed else 1))
    assert np.all(whole[:, 7:] == (-1 if signed else 1))


def test_bit_planes_refuse_another_width():
    layout = Layout.parse(TMAC[2])
    with pytest.raises(BadInput, match=r"dimension bit has extent 4, but `bit\(b:2\)` holds exactly 2"):
        pack(np.zeros((128, 64), np.uint8), 4, layout)
    with pytest.raises(BadInput, match="takes 2048 bytes"):
        unpack(np.zeros(2047, np.uint8), 2, (128, 64), layout, False)
    with pytest.raises(BadInput, match="rank 3"):
        pack(np.zeros(128, np.uint8), 2, layout)


def test_bit_planes_exchanged_change_the_bytes():
    codes = random_codes((128, 64), 2, False, seed=2)
    data = pack(codes, 2, Layout.parse(TMAC[2]))
    exchanged = (codes >> 1 | codes << 1 & 2).astype(np.uint8)
    assert not np.array_equal(pack(exchanged, 2, Layout.parse(TMAC[2])), data)
    for old, new in [("b m0", "m0 b"), ("m0 m2", "m2 m0"), ("m3 k1", "k1 m3")]:
        assert not np.array_equal(pack(codes, 2, Layout.parse(TMAC[2].replace(f"{old} ", f"{new} "))), data)


@pytest.mark.parametrize("layout", [BANKS, SHARED, TMAC[2]])
def test_bound_layouts_keep_the_map(layout: str):
    free = Layout.parse(layout)
    shape = (128, 128, 2)[: len(free.dimensions)]
    bound = free.bound(shape)
    grid = tuple(np.indices(shape))
    np.testing.assert_array_equal(bound.index(grid, shape), free.index(grid, shape))
    np.testing.assert_array_equal(canonical(bound).index(grid, shape), free.index(grid, shape))


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("n(n0) -> n0 @a", "digit n0 lies before the first space"),
        ("n(n0) -> @a @a n0", "space a stands 2 times"),
        ("n(n0) -> @1 n0", "space '1' is not a name"),
        ("n(n1 n0:6) k(k0:2) -> n1 n0^k0 k0", r"digit n0 of the swizzle n0\^k0 has radix 6"),
        ("n(n1 n0:4) k(k0:3) -> n1 n0^k0 k0", r"digit k0 of the swizzle n0\^k0 has radix 3"),
        ("n(n1 n0:4) k(k0) -> n1 n0^k0 k0", r"digit k0 of the swizzle n0\^k0 has no radix"),
        ("n(n1 n0:4) k(k0:2) -> n1 n0^k1 k0", r"digit k1 of the swizzle n0\^k1 belongs to no dimension"),
        ("n(n1:2 n0:4) k(k0:2) -> n1^n0 n0^k0 k0", r"partner n0 of the swizzle n1\^n0 is swizzled itself"),
        ("n(n0:4) -> n0^n0", "partner n0 .* is swizzled itself"),
        ("n(n1:2 n0:4) k(k0:2) -> n1^n0^k0 n0 k0", r"cannot read 'n1\^n0\^k0'"),
    ],
)
def test_spaces_and_swizzles_that_do_not_go_are_refused(text: str, message: str):
    with pytest.raises(BadInput, match=message):
        Layout.parse(text)


def test_a_digit_swizzled_twice_is_refused():
    layout = Layout.parse("n(n1:2 n0:2) k(k0:2) -> n1 n0 k0")
    with pytest.raises(BadInput, match="digit k0 is swizzled 2 times"):
        Layout(layout.dimensions, layout.order, swizzles=frozenset({("k0", "n0"), ("k0", "n1")}))
