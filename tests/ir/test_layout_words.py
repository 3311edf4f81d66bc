"""Codes that are packed by words lie where a slot for each bit puts them."""

from __future__ import annotations

import numpy as np
import pytest

from qcc.ir.layout import Stages, pack, parse_layout, unpack
from qcc.ir.layout.words import words_of
from qcc.ir.layouts import named

GPTQ = str(named("gptq", "u3", groups=3, columns=7).layout)
BY_WORDS = {
    GPTQ: (3, (96, 7)),
    GPTQ.replace("; group", " xor 5; group"): (3, (96, 7)),
    "k(k1:4 k0:16) bit(b:5) -> k1 k0 b; slot(w:5 v:2 j:32) -> v w j": (5, (64,)),
    "k(k1:4 k0:16) bit(b:6) -> k0 k1 b; slot(u:2 w:6 j:32) -> w u j": (6, (64,)),
    "k(k0:24) bit(b:7) -> k0 b; slot(w:21 j:8) -> w j; slot(w:3 v:7 j:8) -> v w j": (7, (24,)),
}
BY_BITS = {
    "k(k0:24) bit(b:3) -> b k0; slot(w:9 j:8) -> w j": (3, (24,)),  # planes: the bits of a code lie apart
    "k(k0:24) bit(b:3) -> k0 b; slot(w:18 j:4) -> w j": (3, (24,)),  # runs of four bits
    "k(k0:24) bit(b:3) -> k0 b; slot(w:9 j:8) -> j w": (3, (24,)),  # no runs at all
}


def by_bits(codes: np.ndarray, bits: int, layout: Stages) -> np.ndarray:
    """Each bit at the slot of the layout's own index."""
    planes = layout.bits_first()
    assert planes is not None
    shape = (bits, *codes.shape)
    raw = (codes.view(np.uint8) ^ layout.xor) & ((1 << bits) - 1)
    slots = np.zeros(planes.size(shape), np.uint8)
    for bit in range(bits):
        coords = (bit, *np.indices(codes.shape))
        slots[planes.index(coords, shape)] = raw >> bit & 1
    return np.packbits(slots, bitorder="little")


@pytest.mark.parametrize("text", [*BY_WORDS, *BY_BITS])
@pytest.mark.parametrize("signed", [False, True])
def test_bytes_are_those_of_the_bits(text: str, signed: bool) -> None:
    bits, shape = (BY_WORDS | BY_BITS)[text]
    layout = parse_layout(text)
    assert isinstance(layout, Stages)
    assert (words_of(layout, bits) is not None) == (text in BY_WORDS)
    low = -(1 << bits - 1) if signed else 0
    codes = np.random.default_rng(0).integers(low, low + (1 << bits), shape).astype(np.int8 if signed else np.uint8)
    packed = pack(codes, bits, layout)
    np.testing.assert_array_equal(packed, by_bits(codes, bits, layout))
    np.testing.assert_array_equal(unpack(packed, bits, shape, layout, signed), codes)


def test_other_layouts_are_not_taken_by_words() -> None:
    assert words_of(parse_layout("n(n0) k(k0) -> n0 k0"), 3) is None
    assert words_of(parse_layout(GPTQ), 4) is None
