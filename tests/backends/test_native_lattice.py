"""Elements as whole numbers: `value = step * (the bytes of a code, less the offset)`, exactly or as near as stated."""

from __future__ import annotations

import numpy as np
import pytest

from qcc.backends.native.lattice import Lattice, lattice_of
from qcc.ir.errors import NotSupported
from qcc.ir.formats import load_element

INTEGERS = [f"{sign}{bits}" for sign in "iu" for bits in range(1, 9)]
ONE_BYTE = ["i8q6", "u3q2", "i5q5", "ternary", "binary", "e2m1", "e2m3", "e1m2", "iq4nl"]
EXACT = [*INTEGERS, *ONE_BYTE, "e3m2", "e4m3", "e4m3fnuz", "e3m4ieee"]
ROUNDED = {"nf4": 2.0**-16, "fp4": 2.0**-25, "e5m2": 2.0**-23.9, "e5m2fnuz": 2.0**-23.9}
"""The most that their values are off by, over the largest: FP4's by what float32 rounds its multiples of 1/192."""


def known(element: str) -> tuple[np.ndarray, np.ndarray]:
    """Every code that stands for a number, and the number."""
    family = load_element(element)
    raw = np.flatnonzero(np.isfinite(family.table))
    half = 1 << (family.bits - 1)
    codes = ((raw ^ half) - half).astype(np.int8) if family.signed else raw.astype(np.uint8)
    return codes, family.table[raw].astype(np.float64)


def unpacked(lattice: Lattice, code: int) -> list[int]:
    """The bytes of a code, as a kernel finds them: one of each table, or the packed code times the multiplier."""
    packed = code & ((1 << lattice.bits) - 1) ^ lattice.flip
    return [table[packed] for table in lattice.tables] or [lattice.multiplier * packed]


@pytest.mark.parametrize("element", EXACT)
def test_values_are_exact(element: str) -> None:
    codes, values = known(element)
    lattice = lattice_of(element)
    assert lattice.rounding == 0
    np.testing.assert_allclose(lattice.step * lattice.integers(codes), values, rtol=3e-7, atol=0)


@pytest.mark.parametrize("element", [*INTEGERS, "ternary", "binary", "e2m1", "e4m3", "i8q6"])
def test_values_by_powers_of_two_are_exact_to_the_bit(element: str) -> None:
    codes, values = known(element)
    lattice = lattice_of(element)
    np.testing.assert_array_equal(lattice.step * lattice.integers(codes), values)
    assert np.frexp(lattice.step)[0] == 0.5


@pytest.mark.parametrize("element", [*ROUNDED])
def test_values_that_are_rounded_say_by_how_much(element: str) -> None:
    codes, values = known(element)
    lattice = lattice_of(element)
    error = np.abs(lattice.step * lattice.integers(codes) - values).max() / np.abs(values).max()
    assert 0 < error <= ROUNDED[element]
    assert lattice.rounding == pytest.approx(error, rel=1e-9)


@pytest.mark.parametrize("element", [*EXACT, *ROUNDED])
def test_bytes_of_a_code_add_up(element: str) -> None:
    codes, _ = known(element)
    lattice = lattice_of(element)
    for code, wanted in zip(codes.tolist(), lattice.integers(codes).tolist(), strict=True):
        parts = unpacked(lattice, code)
        assert len(parts) == lattice.parts
        assert all(0 <= part <= lattice.high <= 255 for part in parts)
        parts[0] -= lattice.offset
        assert sum(part << (8 * place) for place, part in enumerate(reversed(parts))) == wanted


@pytest.mark.parametrize("element", [*INTEGERS, *ONE_BYTE])
def test_small_elements_take_one_byte(element: str) -> None:
    assert lattice_of(element).parts == 1


@pytest.mark.parametrize(("element", "parts"), [("fp4", 2), ("e3m2", 2), ("nf4", 2), ("e4m3", 3), ("e5m2", 3)])
def test_wide_elements_take_more(element: str, parts: int) -> None:
    assert lattice_of(element).parts == parts


@pytest.mark.parametrize("element", INTEGERS)
def test_integers_are_their_own_bytes(element: str) -> None:
    lattice, bits = lattice_of(element), int(element[1:])
    middle = 1 << (bits - 1) if element[0] == "i" else 0
    assert (lattice.tables, lattice.multiplier, lattice.offset, lattice.flip) == ((), 1, middle, middle)


@pytest.mark.parametrize("element", ["k16", "n3..8"])
def test_trained_codebooks_have_none(element: str) -> None:
    with pytest.raises(NotSupported, match="trained"):
        lattice_of(element)
