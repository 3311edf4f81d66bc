"""The matrix of a layout over bits agrees with its index, and gives the known bank conflicts of shared memory."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from qcc.ir.errors import BadInput
from qcc.ir.layout import Layout
from qcc.ir.layout.f2 import Bit, Wavefronts, bank_conflicts, coordinate_bits, matrix, rank, vector_width
from tests.ir.chains import bound_chain, shape_of

MARLIN = "k(k3 k2:2 k1:4 k0:2) n(n3 n2:4 n1:2 n0:8) -> k3 n3 n0 k1 n2 k0 n1 k2"


@settings(deadline=None)
@given(st.integers(0, 10**6), st.lists(st.sampled_from([1, 2, 4, 8, 16]), min_size=1, max_size=3))
def test_the_matrix_is_the_index(seed: int, sizes: list[int]):
    layout = bound_chain(np.random.default_rng(seed), sizes, "nkc"[: len(sizes)])
    bits = matrix(layout)
    assert rank(bits) == len(bits) == len(coordinate_bits(layout))
    grid = np.indices(shape_of(layout)).reshape(len(sizes), -1)
    columns = [grid[axis] >> bit & 1 for axis, size in enumerate(sizes) for bit in range(size.bit_length() - 1)]
    stacked = np.array(columns, np.int64).reshape(len(columns), grid.shape[1])
    slots = (1 << np.arange(len(bits))) @ (bits @ stacked % 2) if len(bits) else np.zeros(grid.shape[1])
    np.testing.assert_array_equal(slots, np.broadcast_to(layout.index(tuple(grid), shape_of(layout)), grid.shape[1:]))


def test_a_matrix_that_loses_a_bit_has_less_rank():
    bits = matrix(Layout.parse(MARLIN).bound((16, 64)))
    assert rank(bits) == 10
    bits[3] = bits[4] ^ bits[5]
    assert rank(bits) == 9
    assert rank(np.zeros((3, 3), np.bool_)) == 0


def test_columns_are_the_bits_of_the_coordinates():
    layout = Layout.parse("k(k1:2 k0:4) n(n0:2) -> n0 k1 k0")
    assert coordinate_bits(layout) == (Bit("k0", 0), Bit("k0", 1), Bit("k1", 0), Bit("n0", 0))
    assert " ".join(map(str, coordinate_bits(layout))) == "k0.0 k0.1 k1.0 n0.0"


def test_marlin_loads_sixteen_bytes_a_lane_without_conflict():
    """A lane's 32 codes of 4 bits are 16 bytes; lane = 4 n0 + k1, as in the fragments of mma.m16n8k16."""
    layout = Layout.parse(MARLIN).bound((16, 64))
    assert bank_conflicts(layout, ("n0", "k1"), 4, 16) == Wavefronts(found=4, ideal=4)


@pytest.mark.parametrize(("swizzle", "found"), [("", 32), ("^m0", 4)])
def test_a_swizzle_frees_the_column_of_a_half_precision_tile(swizzle: str, found: int):
    """Rows of 128 bytes all begin in bank 0; ldmatrix reads 16 bytes of eight rows at a time."""
    layout = Layout.parse(f"m(m1:4 m0:8) k(k1:8 k0:8) -> m1 m0 k1{swizzle} k0")
    assert bank_conflicts(layout, ("m1", "m0"), 16, 16) == Wavefronts(found, ideal=4)


@pytest.mark.parametrize(("stride", "found"), [(1, 1), (2, 2), (4, 4), (32, 32)])
def test_strided_words_meet_in_a_bank(stride: int, found: int):
    layout = Layout.parse(f"m(m0:32) k(k0:{stride}) -> m0 k0")
    assert bank_conflicts(layout, ("m0",), 32, 4) == Wavefronts(found, ideal=1)


def test_vectors_are_as_wide_as_codes_stay_together():
    row = Layout.parse("k(k0) n(n0) -> k0 n0").bound((16, 64))
    assert (vector_width(row, "n"), vector_width(row, "k")) == (64, 1)
    vnni = Layout.parse("k(k2 k1:16 k0:4) n(n1 n0:16) -> n1 k2 k1 n0 k0").bound((64, 32))
    assert (vector_width(vnni, "k"), vector_width(vnni, "n")) == (4, 1)
    swizzled = Layout.parse("m(m1:4 m0:8) k(k1:8 k0:8) -> m1 m0 k1^m0 k0")
    assert vector_width(swizzled, "k") == 8
    moved = Layout.parse("k(k1:4 k0:8) -> k1 k0^k1")
    assert vector_width(moved, "k") == 1


def test_bits_need_powers_of_two_and_a_warp():
    with pytest.raises(BadInput, match=r"digit n0 .* has radix 6"):
        matrix(Layout.parse("n(n0:6) -> n0"))
    with pytest.raises(BadInput, match=r"digit n0 .* is free"):
        matrix(Layout.parse("n(n0) -> n0"))
    layout = Layout.parse("m(m0:32) k(k0:4) -> m0 k0")
    with pytest.raises(BadInput, match="no digit m7"):
        bank_conflicts(layout, ("m7",), 8, 4)
    with pytest.raises(BadInput, match="count 4 lanes, but a warp has 32"):
        bank_conflicts(layout, ("k0",), 8, 4)
    with pytest.raises(BadInput, match="a lane loads 3 bytes"):
        bank_conflicts(layout, ("m0",), 8, 3)
    with pytest.raises(BadInput, match="does not begin at a multiple of 8 bytes"):
        bank_conflicts(layout, ("m0",), 8, 8)
    with pytest.raises(BadInput, match="no dimension n"):
        vector_width(layout, "n")
