"""A layout lowered: the array operations that put codes into slots, in order; undone in reverse they take them out.

    pad -> split (reshape) -> transpose -> swizzle -> merge (reshape) -> xor

The numpy packer runs these steps; a backend that unpacks in another language matches on the same ones.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import product
from math import prod
from typing import TypeAlias, TypeVar

import numpy as np
from numpy.typing import NDArray

from ..errors import BadInput

Scalar = TypeVar("Scalar", bound=np.generic)

_TILE = 128  # rows and columns of a matrix that are transposed inside the first cache
_RUN = 8  # elements side by side that are worth a loop of their own
_CHUNK = 1 << 19  # elements that are transposed inside the second cache


@dataclass(frozen=True)
class Pad:
    """A tensor of shape `before` in the low corner of one of shape `after`, which holds the fill elsewhere."""

    before: tuple[int, ...]
    after: tuple[int, ...]

    def apply(self, array: NDArray[Scalar], fill: int) -> NDArray[Scalar]:
        """`array` with padding."""
        return padded(array, self.after, fill)

    def undo(self, array: NDArray[Scalar]) -> NDArray[Scalar]:
        """`array` without the padding."""
        return array[(..., *map(slice, self.before))]


@dataclass(frozen=True)
class Reshape:
    """The same elements, row-major, in another shape."""

    before: tuple[int, ...]
    after: tuple[int, ...]

    def apply(self, array: NDArray[Scalar], fill: int) -> NDArray[Scalar]:
        """`array` of shape `after`."""
        del fill
        return array.reshape(self.after)

    def undo(self, array: NDArray[Scalar]) -> NDArray[Scalar]:
        """`array` of shape `before`."""
        return array.reshape(self.before)


@dataclass(frozen=True)
class Transpose:
    """Axis `axes[i]` becomes axis i."""

    axes: tuple[int, ...]

    def apply(self, array: NDArray[Scalar], fill: int) -> NDArray[Scalar]:
        """`array` transposed."""
        del fill
        return _moved(array, self.axes)

    def undo(self, array: NDArray[Scalar]) -> NDArray[Scalar]:
        """`array` transposed back."""
        return _moved(array, tuple(self.axes.index(axis) for axis in range(len(self.axes))))


@dataclass(frozen=True)
class Swizzle:
    """Place v along `axis` holds what was at v xor p, at place p along axis `partner` (mod the extent of `axis`)."""

    axis: int
    partner: int

    def apply(self, array: NDArray[Scalar], fill: int) -> NDArray[Scalar]:
        """`array` swizzled."""
        del fill
        return self.undo(array)

    def undo(self, array: NDArray[Scalar]) -> NDArray[Scalar]:
        """`array` swizzled, for doing it twice changes nothing."""
        pair = np.moveaxis(array, (self.partner, self.axis), (0, 1))
        rows, places = np.ogrid[: pair.shape[0], : pair.shape[1]]
        return np.moveaxis(pair[rows, places ^ rows % pair.shape[1]], (0, 1), (self.partner, self.axis))


@dataclass(frozen=True)
class Xor:
    """Every code with some bits flipped."""

    bits: int

    def apply(self, array: NDArray[Scalar], fill: int) -> NDArray[Scalar]:
        """`array` flipped."""
        del fill
        return self.undo(array)

    def undo(self, array: NDArray[Scalar]) -> NDArray[Scalar]:
        """`array` flipped back, in memory of its own."""
        if array.dtype.kind not in "iu":
            raise BadInput(f"xor {self.bits} flips bits of integer codes, but the codes are {array.dtype}")
        bits = np.array(self.bits).astype(array.dtype)  # wraps: an int8 code may have its sign bit flipped
        return np.bitwise_xor(array, bits, out=np.empty(array.shape, array.dtype))


@dataclass(frozen=True)
class Cut:
    """The coordinates below `at` along `axis` go through the steps of `body`, the others through those of `tail`."""

    axis: int
    at: int
    body: tuple[Step, ...]
    tail: tuple[Step, ...]
    body_size: int

    def apply(self, array: NDArray[Scalar], fill: int) -> NDArray[Scalar]:
        """The slots of the body, then those of the tail."""
        body, tail = np.split(array, [self.at], axis=self.axis)
        return np.concatenate([store(self.body, body, fill), store(self.tail, tail, fill)])

    def undo(self, array: NDArray[Scalar]) -> NDArray[Scalar]:
        """Both sides of the cut joined."""
        body, tail = array[: self.body_size], array[self.body_size :]
        return np.concatenate([load(self.body, body), load(self.tail, tail)], axis=self.axis)


Step: TypeAlias = Pad | Reshape | Transpose | Swizzle | Xor | Cut


def _moved(array: NDArray[Scalar], axes: tuple[int, ...]) -> NDArray[Scalar]:
    """`array.transpose(axes)`, copied at once where that is faster: matrices, and short rows that move as one word."""
    if axes == (1, 0):
        return _swapped(array)
    row = array.shape[-1] * array.itemsize
    if axes[-1] != len(axes) - 1 or row not in (2, 4, 8) or array.dtype.hasobject or not array.flags.c_contiguous:
        return _along_neighbours(array.transpose(axes))
    words = array.view(f"u{row}").transpose(axes)
    return np.ascontiguousarray(words).view(array.dtype)


def _along_neighbours(view: NDArray[Scalar]) -> NDArray[Scalar]:
    """`view`, copied where few elements lie behind an axis of neighbours in memory: one of them at a time.

    numpy would loop over the last axis innermost, however short it is.
    """
    axes = [axis for axis, stride in enumerate(view.strides) if stride == view.itemsize and view.shape[axis] >= _RUN]
    behind = view.shape[axes[-1] + 1 :] if axes else ()
    if not 1 < prod(behind) <= _TILE:
        return view
    copied = np.empty(view.shape, view.dtype)
    rows = max(1, _CHUNK // max(1, prod(view.shape[1:])))
    for begin in range(0, len(view), rows):
        for place in product(*map(range, behind)):
            copied[begin : begin + rows][(..., *place)] = view[begin : begin + rows][(..., *place)]
    return copied


def _swapped(array: NDArray[Scalar]) -> NDArray[Scalar]:
    """The transpose of a matrix, contiguous, tile by tile: a column of a wide matrix alone would fill the cache."""
    swapped = np.empty(array.shape[::-1], array.dtype)
    tile = np.empty((_TILE, _TILE), array.dtype)
    for row in range(0, array.shape[0], _TILE):
        for column in range(0, array.shape[1], _TILE):
            source = array[row : row + _TILE, column : column + _TILE]
            held = tile[: source.shape[0], : source.shape[1]]
            held[...] = source
            swapped[column : column + _TILE, row : row + _TILE] = held.T
    return swapped


def store(steps: Sequence[Step], array: NDArray[Scalar], fill: int) -> NDArray[Scalar]:
    """The result of all steps in order; it may share memory with `array`."""
    for step in steps:
        array = step.apply(array, fill)
    return array


def load(steps: Sequence[Step], array: NDArray[Scalar]) -> NDArray[Scalar]:
    """All steps undone in reverse order; the result may share memory with `array`."""
    for step in reversed(steps):
        array = step.undo(array)
    return array


def chain_steps(
    shape: Sequence[int],
    padded_shape: Sequence[int],
    split: Sequence[int],
    axes: Sequence[int],
    swizzles: Sequence[tuple[int, int]] = (),
    xor: int = 0,
) -> tuple[Step, ...]:
    """The steps of a digit chain; those that change nothing are left out."""
    steps: list[Step] = []
    if tuple(shape) != tuple(padded_shape):
        steps.append(Pad(tuple(shape), tuple(padded_shape)))
    steps.append(Reshape(tuple(padded_shape), tuple(split)))
    if list(axes) != sorted(axes):
        steps.append(Transpose(tuple(axes)))
    steps += [Swizzle(axis, partner) for axis, partner in swizzles]
    steps.append(Reshape(tuple(split[axis] for axis in axes), (prod(split),)))
    if xor:
        steps.append(Xor(xor))
    return tuple(steps)


def padded(codes: NDArray[Scalar], shape: Sequence[int], fill: int) -> NDArray[Scalar]:
    """`codes` in the low corner of a tensor of `shape` that is `fill` elsewhere; `codes` itself where it has it."""
    if codes.shape == tuple(shape):
        return codes
    whole = np.full(shape, fill, codes.dtype)
    whole[tuple(map(slice, codes.shape))] = codes
    return whole
