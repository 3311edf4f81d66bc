"""Random layouts for the tests of their algebra: every kind of chain, over shapes that include primes, 1 and 0."""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np
from hypothesis import strategies as st
from numpy.typing import NDArray

from qcc.ir.layout import Digit, Dimension, Layout, Space

Shape = tuple[int, ...]


@st.composite
def chains(draw: st.DrawFn, largest: int = 5) -> tuple[Layout, Shape]:
    """A layout of rank 0 to 3 with spaces and swizzles, and a shape it fits."""
    dimensions: list[Dimension] = []
    shape: list[int] = []
    for name in "nkc"[: draw(st.integers(0, 3))]:
        radices = draw(st.lists(st.integers(1, largest), max_size=3))
        fixed = bool(radices) and draw(st.booleans())
        chain: list[int | None] = [*radices] if fixed else [None, *radices]
        dimensions.append(Dimension(name, tuple(Digit(f"{name}{i}", radix) for i, radix in enumerate(chain))))
        shape.append(math.prod(radices) if fixed else draw(st.integers(0, 13)))
    digits = [digit for dimension in dimensions for digit in dimension.digits]
    order = tuple(draw(st.permutations([digit.name for digit in digits])))
    starts = sorted(draw(st.lists(st.integers(0, len(order)), max_size=2)))
    spaces = tuple(Space(f"s{i}", start) for i, start in enumerate([0, *starts])) if draw(st.booleans()) else ()
    powers = draw(st.permutations([digit.name for digit in digits if digit.radix in (1, 2, 4, 8, 16)]))
    half = len(powers) // 2
    swizzles = {(digit, draw(st.sampled_from(powers[half:]))) for digit in powers[:half] if draw(st.booleans())}
    xor = draw(st.sampled_from([0, 0, 1]))
    return Layout(tuple(dimensions), order, xor, spaces, frozenset(swizzles)), tuple(shape)


def bound_chain(rng: np.random.Generator, sizes: Sequence[int], names: Sequence[str]) -> Layout:
    """A bound layout whose dimensions have these sizes, their digits in random order, some of them swizzled."""
    dimensions = [
        Dimension(name, tuple(Digit(f"{name}{i}", radix) for i, radix in enumerate(factors(rng, size))))
        for name, size in zip(names, sizes, strict=True)
    ]
    digits = [digit for dimension in dimensions for digit in dimension.digits]
    order = tuple(str(name) for name in rng.permutation([digit.name for digit in digits]))
    powers = [digit.name for digit in digits if digit.radix in (2, 4, 8, 16, 32)]
    swizzles: set[tuple[str, str]] = set()
    if len(powers) > 1 and rng.random() < 0.3:
        digit, partner = rng.permutation(powers)[:2]
        swizzles.add((str(digit), str(partner)))
    spaces: tuple[Space, ...] = ()
    if rng.random() < 0.3:
        spaces = (Space("bank", 0), Space("addr", int(rng.integers(0, len(order) + 1))))
    return Layout(tuple(dimensions), order, int(rng.integers(0, 4)), spaces, frozenset(swizzles))


def factors(rng: np.random.Generator, size: int) -> list[int]:
    """Radices with this product, one to four of them, each maybe 1."""
    radices: list[int] = []
    for _ in range(int(rng.integers(0, 4))):
        divisors = [d for d in range(1, size + 1) if size % d == 0]
        radices.append(int(rng.choice(divisors)))
        size //= radices[-1]
    return [*radices, size]


def space_sizes(layout: Layout) -> list[int]:
    """The number of places in each space."""
    radix = {digit.name: digit.radix or 1 for dimension in layout.dimensions for digit in dimension.digits}
    return [math.prod(radix[name] for name in order) for order in layout.stored().values()]


def shape_of(layout: Layout) -> Shape:
    """The one shape of a bound layout."""
    return tuple(dimension.block for dimension in layout.dimensions)


def random_codes(shape: Shape, bits: int, signed: bool, seed: int) -> NDArray[np.int8] | NDArray[np.uint8]:
    """Codes that reach both ends of their range."""
    low = -(1 << bits - 1) if signed else 0
    codes = np.random.default_rng(seed).integers(low, low + (1 << bits), shape)
    codes.flat[:1], codes.flat[1:2] = low, low + (1 << bits) - 1
    return codes.astype(np.int8) if signed else codes.astype(np.uint8)
