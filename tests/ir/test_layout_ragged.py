"""Ragged layouts: a body of whole blocks, then a tail, together one bijection."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from qcc.ir.errors import BadInput
from qcc.ir.layout import Layout, Ragged, index_map, lowering, pack, parse_layout, unpack
from qcc.ir.layout.steps import Cut
from tests.ir.chains import random_codes
from tests.ir.test_layout import Symbol

BLOCKED = "n(n0) k(k1 k0:64) -> n0 k1 k0 + n(n0) k(k0) -> n0 k0 along k"
NESTED = (
    "[n(n1 n0:4) k(k2 k1:2 k0:8) -> n1 k2 k0 n0 k1 + n(n0) k(k2 k1:2 k0:8) -> n0 k2 k0 k1 along n] + "
    "[n(n0) k(k1 k0:4) -> k1 n0 k0 + n(n0) k(k0) -> k0 n0 along k] along k"
)


@st.composite
def ragged(draw: st.DrawFn) -> tuple[Ragged, tuple[int, int]]:
    """A body with blocks along k, and a tail whose blocks divide them."""
    block = draw(st.sampled_from([2, 4, 6, 12]))
    small = draw(st.sampled_from([d for d in (1, 2, 3, 6) if block % d == 0]))
    rows = draw(st.sampled_from([1, 2, 3]))
    orders = [draw(st.permutations(["n1", "n0", "k1", "k0"])) for _ in range(2)]
    body, tail = (
        Layout.parse(f"n(n1 n0:{rows}) k(k1 k0:{size}) -> {' '.join(order)} xor 1")
        for size, order in zip((block, small), orders, strict=True)
    )
    return Ragged(body, tail, "k"), (draw(st.integers(0, 7)), draw(st.integers(0, 40)))


@settings(deadline=None)
@given(ragged())
def test_coordinates_have_slots_of_their_own(case: tuple[Ragged, tuple[int, int]]):
    layout, shape = case
    assert parse_layout(str(layout)) == layout
    assert eval(repr(layout)) == layout
    assert hash(parse_layout(str(layout))) == hash(layout)
    grid = np.indices(shape).reshape(2, -1)
    slots = np.broadcast_to(layout.index(tuple(grid), shape), grid.shape[1:])
    assert len(set(slots.tolist())) == slots.size
    assert slots.size == 0 or (slots.min() >= 0 and slots.max() < layout.size(shape))
    for found, expected in zip(layout.inverse(slots, shape), grid, strict=True):
        np.testing.assert_array_equal(np.broadcast_to(found, expected.shape), expected)
    others = np.setdiff1d(np.arange(layout.size(shape)), slots)
    coords = np.broadcast_arrays(*layout.inverse(others, shape))
    assert np.all((coords[0] >= shape[0]) | (coords[1] >= shape[1]))


@settings(deadline=None)
@given(ragged(), st.integers(1, 8), st.booleans())
def test_unpack_inverts_pack(case: tuple[Ragged, tuple[int, int]], bits: int, signed: bool):
    layout, shape = case
    codes = random_codes(shape, bits, signed, seed=bits)
    data = pack(codes, bits, layout)
    assert data.size == -(-layout.size(shape) * bits // 8)
    np.testing.assert_array_equal(unpack(data, bits, shape, layout, signed), codes)


@settings(deadline=None)
@given(ragged())
def test_arrange_puts_every_code_at_its_index(case: tuple[Ragged, tuple[int, int]]):
    layout, shape = case
    codes = np.arange(1, shape[0] * shape[1] + 1).reshape(shape)
    expected = np.full(layout.size(shape), -7)
    expected[layout.index(tuple(np.indices(shape)), shape)] = codes
    np.testing.assert_array_equal(layout.arrange(codes, fill=-7), expected ^ 1)


@pytest.mark.parametrize("shape", [(1, 1), (4, 16), (7, 37), (4, 35), (3, 16), (9, 64), (0, 5), (5, 0), (5, 3)])
def test_sides_may_be_ragged_themselves(shape: tuple[int, int]):
    layout = Ragged.parse(NESTED)
    assert str(layout) == NESTED
    codes = random_codes(shape, 4, True, seed=0)
    data = pack(codes, 4, layout)
    assert data.size == -(-shape[0] * shape[1] // 2)  # no padding at all
    np.testing.assert_array_equal(unpack(data, 4, shape, layout, True), codes)
    slots = np.sort(np.broadcast_to(layout.index(tuple(np.indices(shape)), shape), shape).ravel())
    np.testing.assert_array_equal(slots, np.arange(codes.size))


def test_the_body_is_followed_by_the_tail():
    layout = Ragged.parse(BLOCKED)
    codes = np.arange(3 * 150).reshape(3, 150)
    np.testing.assert_array_equal(layout.arrange(codes), [*codes[:, :128].ravel(), *codes[:, 128:].ravel()])
    assert layout.index((2, 128), (3, 150)) == 3 * 128 + 2 * 22
    assert layout.inverse(3 * 128 + 2 * 22 + 1, (3, 150)) == (2, 129)
    assert layout.size((3, 150)) == 450
    assert layout.padded_shape((3, 150)) == (3, 150)
    (cut,) = lowering(layout, (3, 150))
    assert isinstance(cut, Cut)
    assert (cut.axis, cut.at, cut.body_size) == (1, 128, 384)
    assert layout.index((2, 5), (3, 60)) == 125
    assert layout.index((2, 70), (3, 128)) == 2 * 128 + 70


def test_the_cut_is_a_symbolic_expression_too():
    class Whole(Symbol):
        def __sub__(self, other: object) -> Symbol:
            return Whole(f"({self} - {other})")

        def __rsub__(self, other: object) -> Symbol:
            return Whole(f"({other} - {self})")

        def __floordiv__(self, other: int) -> Symbol:
            return Whole(f"({self} // {other})")

    layout, shape = Ragged.parse(BLOCKED), (3, 150)
    (slot,) = index_map(layout, shape)(Whole("n"), Whole("k"))
    for n, k in [(0, 0), (2, 127), (1, 128), (2, 149)]:
        assert eval(str(slot), {"n": n, "k": k}) == layout.index((n, k), shape)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("k(k1 k0:4) -> k1 k0 + k(k0) -> k0", "cannot read"),
        ("k(k1 k0:4) -> k1 k0 + k(k0) -> k0 + k(k0) -> k0 along k", "cannot read"),
        ("[k(k1 k0:4) -> k1 k0 + k(k0) -> k0 along k", "cannot read"),
        ("k(k1 k0:4) -> k1 k0 + k(k0) -> k0 along n", "cut along n, which is none of its dimensions k"),
        ("k(k1 k0:4) -> k1 k0 + m(m0) -> m0 along k", "the body has dimensions k, the tail m"),
        ("k(k1 k0:4) -> k1 k0 xor 8 + k(k0) -> k0 along k", "the body has xor 8, the tail 0"),
        ("k(k0:4) -> k0 + k(k0) -> k0 along k", "digit k0:4 of the body is not free"),
        ("k(k1 k0:4) -> k1 k0 + k(k0:3) -> k0 along k", "digit k0:3 of the tail is not free"),
        ("k(k1 k0:4) -> k1 k0 + k(k1 k0:3) -> k1 k0 along k", "a block of the tail, 3, does not divide the body's, 4"),
        ("k(k0) bit(b) -> k0 b + k(k0) bit(b) -> b k0 along k", "bit planes of a ragged layout"),
        (
            "[k(k1 k0:4) -> k1 k0 + k(k0) -> k0 along k] + k(k0) -> k0 along k",
            "the body is itself cut along k",
        ),
    ],
)
def test_a_body_and_tail_that_do_not_go_together_are_refused(text: str, message: str):
    with pytest.raises(BadInput, match=message):
        parse_layout(text)


def test_shapes_and_slots_that_do_not_fit_are_refused():
    layout = Ragged.parse(BLOCKED)
    with pytest.raises(BadInput, match=r"shape \(3,\) has rank 1"):
        layout.size((3,))
    with pytest.raises(BadInput, match="449 slots"):
        layout.restore(np.zeros(449), (3, 150))
    with pytest.raises(BadInput, match="cannot read"):
        Ragged.parse("k(k0) -> k0")
