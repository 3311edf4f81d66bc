"""A layout of powers of two as a matrix over the bits: slot bits = matrix @ coordinate bits (mod 2), swizzles included.

The layout is a bijection exactly where the matrix has full rank. Which memory banks a warp meets, and how wide a load
may be, is read from its rows and columns.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from math import prod

import numpy as np
from numpy.typing import NDArray

from ..errors import BadInput
from .chain import Layout
from .stages import bound_shape, radices

BANKS = 32  # of 4 bytes: the shared memory of NVIDIA GPUs (CUDA C++ Programming Guide, shared memory)
_WORD = 4


@dataclass(frozen=True)
class Bit:
    """A bit of a digit's value: bit 0 is the least significant."""

    digit: str
    bit: int

    def __str__(self) -> str:
        return f"{self.digit}.{self.bit}"


@dataclass(frozen=True)
class Wavefronts:
    """How many times shared memory is read for one load of a warp, and how many it takes at best."""

    found: int
    ideal: int


def coordinate_bits(layout: Layout) -> tuple[Bit, ...]:
    """The columns of the matrix: the bits of each dimension, least significant first, dimension after dimension."""
    extents = _powers(layout)
    return tuple(
        Bit(digit.name, bit)
        for dimension in layout.dimensions
        for digit in reversed(dimension.digits)
        for bit in range(extents[digit.name].bit_length() - 1)
    )


def matrix(layout: Layout) -> NDArray[np.bool_]:
    """[slot bits, coordinate bits], row 0 the least significant bit of the slot; columns as `coordinate_bits`.

    Raises `BadInput` for a layout with a free digit, or a radix that is no power of two.
    """
    extents = _powers(layout)
    column = {bit: i for i, bit in enumerate(coordinate_bits(layout))}
    partners = dict(layout.swizzles)
    rows: list[NDArray[np.bool_]] = []
    for name in reversed(layout.order):
        for bit in range(extents[name].bit_length() - 1):
            row = np.zeros(len(column), np.bool_)
            row[column[Bit(name, bit)]] = True
            if (other := column.get(Bit(partners.get(name, ""), bit))) is not None:
                row[other] = True
            rows.append(row)
    return np.array(rows, np.bool_).reshape(len(rows), len(column))


def rank(bits: NDArray[np.bool_]) -> int:
    """The rank of a matrix over the field of two elements."""
    basis: list[int] = []
    for row in bits:
        left = sum(1 << i for i, bit in enumerate(row) if bit)
        for vector in basis:
            left = min(left, left ^ vector)
        if left:
            basis.append(left)
    return len(basis)


def vector_width(layout: Layout, dimension: str) -> int:
    """How many consecutive codes along a dimension are contiguous and aligned in storage, from every multiple of it."""
    bits = matrix(layout)
    names = [each.name for each in layout.dimensions]
    if dimension not in names:
        raise BadInput(f"layout `{layout}` has no dimension {dimension}", hint=f"it has {' '.join(names)}")
    sizes = [size.bit_length() - 1 for size in bound_shape(layout)]
    axis = names.index(dimension)
    first = sum(sizes[:axis])
    width = 0
    while width < sizes[axis]:
        column = first + width
        if bits[:, column].sum() != 1 or bits[width].sum() != 1 or not bits[width, column]:
            break
        width += 1
    return 1 << width


def bank_conflicts(layout: Layout, lanes: Sequence[str], code_bits: int, vector: int = 16) -> Wavefronts:
    """The wavefronts of a load of `vector` bytes (4, 8 or 16) a lane from shared memory of 32 banks.

    `lanes` are the digits that count the 32 lanes, outer first; all others are 0. A load of 4 bytes is one phase, of 8
    two of 16 lanes, of 16 four of 8 lanes; a phase takes as many wavefronts as words of it lie in one bank.
    """
    extents = _powers(layout)
    for name in lanes:
        if name not in extents:
            raise BadInput(f"layout `{layout}` has no digit {name} to count lanes", hint=" ".join(extents))
    if (count := prod(extents[name] for name in lanes)) != BANKS:
        raise BadInput(f"the digits {' '.join(lanes)} count {count} lanes, but a warp has {BANKS}")
    if vector not in (4, 8, 16):
        raise BadInput(f"a lane loads {vector} bytes", hint="4, 8 or 16")
    column = {bit: i for i, bit in enumerate(coordinate_bits(layout))}
    lane_bits = [Bit(name, bit) for name in reversed(lanes) for bit in range(extents[name].bit_length() - 1)]
    coords = np.zeros((len(column), BANKS), np.int64)
    for position, bit in enumerate(lane_bits):
        coords[column[bit]] = np.arange(BANKS) >> position & 1
    slots = (1 << np.arange(len(column))) @ (matrix(layout) @ coords % 2)
    if np.any(slots * code_bits % (8 * vector)):
        raise BadInput(f"a lane of layout `{layout}` does not begin at a multiple of {vector} bytes")
    first = slots * code_bits // 8 // _WORD
    words = first[:, None] + np.arange(vector // _WORD)
    phases = words.reshape(vector // _WORD, -1)
    found = sum(int(np.bincount(phase % BANKS).max()) for phase in phases)
    return Wavefronts(found, len(phases))


def _powers(layout: Layout) -> dict[str, int]:
    extents = radices(layout)
    for name, extent in extents.items():
        if extent & (extent - 1):
            raise BadInput(f"digit {name} of layout `{layout}` has radix {extent}: the bits need powers of two")
    return extents
