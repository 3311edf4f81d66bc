"""Where a code lies: a layout splits each dimension into digits and stores the digits in one order, last fastest.

    n(n0) k(k1 k0:32) -> n0 k1 k0 xor 8

A digit chain is a bijection from coordinates (with padding) onto slots, because both sides are mixed-radix numbers
over the same digits. `k0:32` has radix 32; the first digit of a dimension is free and takes what the shape asks for,
rounded up. `xor 8` flips those bits of every stored code: signed 4-bit codes then lie with offset 8. A slot holds one
code of 1 to 8 bits; slot times bits is its bit address, least significant bit first.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from math import gcd, prod
from typing import Any, TypeAlias, TypeVar

import numpy as np
from numpy.typing import NDArray

from .errors import BadInput

Shape: TypeAlias = Sequence[int]
Expression: TypeAlias = Any  # an int, an integer array or a symbolic expression: whatever has + * // %
Scalar = TypeVar("Scalar", bound=np.generic)

_EXAMPLE = "n(n0) k(k1 k0:32) -> n0 k1 k0 xor 8"
_LAYOUT = re.compile(r"(?P<left>.*?)->(?P<right>.*?)(?:\bxor\s+(?P<xor>\d+)\s*)?", re.ASCII | re.DOTALL)
_DIMENSION = re.compile(r"(?P<name>\w+)\((?P<digits>(?:\s*\b\w+(?::\d+)?)*)\s*\)\s*", re.ASCII)
_DIGIT = re.compile(r"(\w+)(?::(\d+))?", re.ASCII)
_NAME = re.compile(r"[A-Za-z_]\w*", re.ASCII)
_CHUNK = 1 << 18  # codes merged at a time: the wide temporaries stay in the cache


@dataclass(frozen=True)
class Digit:
    """One digit of a dimension; without a radix it is free."""

    name: str
    radix: int | None = None

    def __str__(self) -> str:
        return self.name if self.radix is None else f"{self.name}:{self.radix}"


@dataclass(frozen=True)
class Dimension:
    """A dimension as a mixed-radix number, outer digit first."""

    name: str
    digits: tuple[Digit, ...]

    def __str__(self) -> str:
        return f"{self.name}({' '.join(map(str, self.digits))})"

    @property
    def block(self) -> int:
        """How many coordinates the digits with a radix span together."""
        return prod(digit.radix for digit in self.digits if digit.radix is not None)

    def places(self) -> Iterator[tuple[Digit, int]]:
        """Each digit with its place value: the product of the radices to its right."""
        place = self.block
        for digit in self.digits:
            place //= digit.radix or 1
            yield digit, place


@dataclass(frozen=True, repr=False)
class Layout:
    """A bijection between the coordinates of a tensor and its slots in storage.

    `dimensions` follow the axes of the tensor, `order` names every digit once in storage order, last fastest, and
    `xor` (0..255) flips bits of each stored code. Raises `BadInput` for digits that are repeated, missing or unknown.
    """

    dimensions: tuple[Dimension, ...]
    order: tuple[str, ...]
    xor: int = 0

    def __post_init__(self) -> None:
        _check(self)

    def __str__(self) -> str:
        text = f"{' '.join(map(str, self.dimensions))} -> {' '.join(self.order)}"
        return f"{text} xor {self.xor}" if self.xor else text

    def __repr__(self) -> str:
        return f"Layout.parse({str(self)!r})"

    @staticmethod
    def parse(text: str) -> Layout:
        """The layout that prints as `text`; spaces are free. Raises `BadInput` with the part that cannot be read."""
        return _parse(text)

    def extents(self, shape: Shape) -> dict[str, int]:
        """How many values each digit takes for a tensor of `shape`, in the order of the dimensions."""
        if len(shape) != len(self.dimensions):
            raise BadInput(
                f"shape {tuple(shape)} has rank {len(shape)}, but layout `{self}` has rank {len(self.dimensions)}",
                hint=f"give one extent each for {' '.join(dimension.name for dimension in self.dimensions)}",
            )
        extents: dict[str, int] = {}
        for dimension, extent in zip(self.dimensions, shape, strict=True):
            first, block = dimension.digits[0], dimension.block
            if extent < 0:
                raise BadInput(f"dimension {dimension.name} of layout `{self}` has extent {extent}: it is negative")
            if first.radix is not None and extent != block:
                raise BadInput(
                    f"dimension {dimension.name} has extent {extent}, but `{dimension}` holds exactly {block}",
                    hint=f"write the first digit as {first.name}, without a radix, to fit any extent",
                )
            extents |= {digit.name: digit.radix or -(-extent // block) for digit in dimension.digits}
        return extents

    def padded_shape(self, shape: Shape) -> tuple[int, ...]:
        """`shape` with each extent rounded up to whole digits."""
        extents = self.extents(shape)
        return tuple(prod(extents[digit.name] for digit in dimension.digits) for dimension in self.dimensions)

    def size(self, shape: Shape) -> int:
        """The number of slots, padding included."""
        return prod(self.extents(shape).values())

    def index(self, coords: Sequence[Expression], shape: Shape) -> Expression:
        """The slot of the code at `coords` (one per dimension, each below its padded extent; arrays broadcast).

        Uses only + * // %, so that integers, numpy arrays and symbolic expressions all work; checks no bounds.
        """
        strides = self._strides(self.extents(shape))
        slot: Expression = 0
        for dimension, coord in zip(self.dimensions, coords, strict=True):
            for digit, place in dimension.places():
                value = coord // place if digit is dimension.digits[0] else coord // place % digit.radix
                slot = slot + value * strides[digit.name]
        return slot

    def agrees_with(self, other: Layout, shape: Shape) -> bool:
        """Whether two layouts put the same bytes in the same places for a tensor of `shape`.

        A slot is a sum of one function of each coordinate, so each dimension is compared by itself.
        """
        if len(self.dimensions) != len(other.dimensions) or (self.xor, self.size(shape)) != (
            other.xor,
            other.size(shape),
        ):
            return False
        for axis, extent in enumerate(shape):
            coords = [np.arange(extent) if i == axis else np.int64(0) for i in range(len(shape))]
            if not np.array_equal(self.index(coords, shape), other.index(coords, shape)):
                return False
        return True

    def inverse(self, slot: Expression, shape: Shape) -> tuple[Expression, ...]:
        """The coordinates of `slot`, one per dimension; a padding slot has one at or beyond its extent in `shape`."""
        extents = self.extents(shape)
        values = {name: slot // stride for name, stride in self._strides(extents).items()}
        values |= {name: values[name] % extents[name] for name in self.order[1:]}
        return tuple(
            sum(values[digit.name] * place for digit, place in dimension.places()) for dimension in self.dimensions
        )

    def arrange(self, codes: NDArray[Scalar], fill: int = 0) -> NDArray[Scalar]:
        """The slots of `codes` as a 1-D array of the same dtype, where padding reads back as `fill`.

        Any dtype works without `xor`, integers with it. The result may share memory with `codes`.
        """
        extents = self.extents(codes.shape)
        padded = self.padded_shape(codes.shape)
        if padded != codes.shape:
            whole = np.full(padded, fill, codes.dtype)
            whole[tuple(map(slice, codes.shape))] = codes
            codes = whole
        axes = list(extents)
        digits = codes.reshape(tuple(extents.values())).transpose([axes.index(name) for name in self.order])
        return self._flip(digits.reshape(-1))

    def restore(self, slots: NDArray[Scalar], shape: Shape) -> NDArray[Scalar]:
        """The codes of `shape` that `arrange` made into the `size(shape)` elements of `slots`, without the padding."""
        extents = self.extents(shape)
        if slots.size != self.size(shape):
            raise BadInput(
                f"{slots.size} slots for shape {tuple(shape)}, but layout `{self}` has {self.size(shape)} of them",
                hint="check the shape and the layout the codes were stored with",
            )
        digits = slots.reshape([extents[name] for name in self.order])
        codes = digits.transpose([self.order.index(name) for name in extents]).reshape(self.padded_shape(shape))
        return self._flip(np.asarray(codes[(..., *map(slice, shape))], order="C"))

    def _strides(self, extents: dict[str, int]) -> dict[str, int]:
        """How many slots one step of each digit moves."""
        strides: dict[str, int] = {}
        stride = 1
        for name in reversed(self.order):
            strides[name] = stride
            stride *= extents[name]
        return strides

    def _flip(self, codes: NDArray[Scalar]) -> NDArray[Scalar]:
        if not self.xor:
            return codes
        if codes.dtype.kind not in "iu":
            raise BadInput(f"layout `{self}` flips bits of integer codes, but the codes are {codes.dtype}")
        bits = np.array(self.xor).astype(codes.dtype)  # wraps: an int8 code may have its sign bit flipped
        return np.bitwise_xor(codes, bits, out=np.empty_like(codes))


def pack(codes: NDArray[np.int8] | NDArray[np.uint8], bits: int, layout: Layout, fill: int = 0) -> NDArray[np.uint8]:
    """The `ceil(slots * bits / 8)` bytes of `codes`, one code of 1..8 bits a slot, least significant bit first.

    int8 codes are stored in two's complement, uint8 codes as they are, both flipped by the layout's `xor`; padding
    decodes to `fill`. Raises `BadInput` for a code, fill or xor that does not fit the bits.
    """
    _refuse_bits(bits, layout)
    if codes.dtype.name not in ("int8", "uint8"):
        raise BadInput(f"codes to pack are int8 or uint8, not {codes.dtype}", hint="cast them: one code an element")
    signed = codes.dtype == np.int8
    low, high = (-(1 << bits - 1), (1 << bits - 1) - 1) if signed else (0, (1 << bits) - 1)
    span = f"{bits} {'signed' if signed else 'unsigned'} bits ({low}..{high})"
    if not low <= fill <= high:
        raise BadInput(f"fill {fill} does not fit {span}")
    if codes.size and not (low <= codes.min() and codes.max() <= high):
        worst = int(codes.argmin() if codes.min() < low else codes.argmax())
        where = tuple(map(int, np.unravel_index(worst, codes.shape)))
        raise BadInput(f"code {codes[where]} at {where} does not fit {span}", hint="clip the codes, or store more bits")
    slots = layout.arrange(codes, fill).view(np.uint8)
    return _squeeze(slots, bits)[: -(-slots.size * bits // 8)]


def unpack(
    data: NDArray[np.uint8], bits: int, shape: Shape, layout: Layout, signed: bool
) -> NDArray[np.int8] | NDArray[np.uint8]:
    """The codes of `shape` that `pack` made into `data` (bytes of any shape): int8 if `signed`, else uint8."""
    _refuse_bits(bits, layout)
    slots = layout.size(shape)
    if data.dtype != np.uint8 or data.size != -(-slots * bits // 8):
        raise BadInput(
            f"{data.size} elements of {data.dtype}, but shape {tuple(shape)} at {bits} bits in layout `{layout}` "
            f"takes {-(-slots * bits // 8)} bytes of uint8",
            hint="check the shape, the bits and the layout the codes were packed with",
        )
    codes = layout.restore(_spread(data.reshape(-1), bits)[:slots], shape)
    if not signed:
        return codes
    sign = np.uint8(1 << bits - 1)
    codes ^= sign  # (code xor sign) - sign extends the sign of two's complement
    codes -= sign
    return codes.view(np.int8)


def _refuse_bits(bits: int, layout: Layout) -> None:
    if not 1 <= bits <= 8:
        raise BadInput(f"a code of {bits} bits cannot be packed", hint="1 to 8 bits a code")
    if layout.xor >> bits:
        raise BadInput(f"xor {layout.xor} of layout `{layout}` does not fit codes of {bits} bits")


def _squeeze(slots: NDArray[np.uint8], bits: int) -> NDArray[np.uint8]:
    """The low `bits` of each byte, side by side: inside one wide word neighbours merge, then pairs, then fours."""
    group, size = _group(bits)
    words = _whole(slots, group).view(f"<u{group}")
    squeezed = np.empty((words.size, size), np.uint8)
    for start in range(0, words.size, _CHUNK // group):
        rows = slice(start, start + _CHUNK // group)
        merged = words[rows]
        for count, mask in _merges(bits, group):
            merged = (merged & mask) | ((merged >> (8 - bits) * count) & (mask << bits * count))
        squeezed[rows] = merged.view(np.uint8).reshape(-1, group)[:, :size]
    return squeezed.reshape(-1)


def _spread(data: NDArray[np.uint8], bits: int) -> NDArray[np.uint8]:
    """One code of `bits` a byte: the merges of `_squeeze` undone in reverse."""
    group, size = _group(bits)
    squeezed = _whole(data, size).reshape(-1, size)
    spread = np.zeros((len(squeezed), group), np.uint8)
    words = spread.reshape(-1).view(f"<u{group}")
    for start in range(0, words.size, _CHUNK // group):
        rows = slice(start, start + _CHUNK // group)
        spread[rows, :size] = squeezed[rows]
        merged = words[rows]
        for count, mask in reversed(_merges(bits, group)):
            merged = (merged & mask) | ((merged & (mask << bits * count)) << (8 - bits) * count)
        words[rows] = merged
    return spread.reshape(-1)


def _group(bits: int) -> tuple[int, int]:
    """The fewest codes that fill whole bytes, and those bytes: (2, 1) for 4 bits, (8, 3) for 3, (4, 3) for 6."""
    group = 8 // gcd(8, bits)
    return group, bits * group // 8


def _merges(bits: int, group: int) -> list[tuple[int, int]]:
    """Each step of squeezing a group: how many codes a field holds already, and the mask of every other field."""
    steps: list[tuple[int, int]] = []
    count = 1
    while count < group:
        field = (1 << bits * count) - 1
        steps.append((count, sum(field << start for start in range(0, 8 * group, 16 * count))))
        count *= 2
    return steps


def _whole(data: NDArray[np.uint8], group: int) -> NDArray[np.uint8]:
    """`data`, contiguous, with zeros that complete its last group."""
    missing = -data.size % group
    return np.concatenate([data, np.zeros(missing, np.uint8)]) if missing else np.ascontiguousarray(data)


def _check(layout: Layout) -> None:
    def refuse(message: str, hint: str = "") -> BadInput:
        return BadInput(f"layout `{layout}`: {message}", hint=hint)

    digits = [digit.name for dimension in layout.dimensions for digit in dimension.digits]
    dimensions = [dimension.name for dimension in layout.dimensions]
    for what, names in (("dimension", dimensions), ("digit", digits), ("on the right, digit", layout.order)):
        for name, count in Counter(names).items():
            if not _NAME.fullmatch(name):
                raise refuse(f"{what} {name!r} is not a name", "use letters, numbers and _, a letter first")
            if count > 1:
                raise refuse(f"{what} {name} stands {count} times", "name each once")
    if missing := [name for name in digits if name not in layout.order]:
        raise refuse(f"digit {missing[0]} is missing on the right", "name every digit once after ->")
    if unknown := [name for name in layout.order if name not in digits]:
        raise refuse(f"digit {unknown[0]} on the right belongs to no dimension", f"the digits are {' '.join(digits)}")
    for dimension in layout.dimensions:
        if not dimension.digits:
            raise refuse(f"dimension {dimension.name} has no digits", f"write {dimension.name}({dimension.name}0)")
        for position, digit in enumerate(dimension.digits):
            if digit.radix is None and position > 0:
                raise refuse(f"digit {digit.name} has no radix", "only the first digit of a dimension is free")
            if digit.radix is not None and digit.radix < 1:
                raise refuse(f"digit {digit.name} has radix {digit.radix}", "a radix is at least 1")
    if not 0 <= layout.xor <= 255:
        raise refuse(f"xor {layout.xor} is not a byte", "0 to 255")


def _parse(text: str) -> Layout:
    def unreadable(part: str) -> BadInput:
        return BadInput(f"cannot read {part.strip()!r} in layout {text!r}", hint=f"write it like `{_EXAMPLE}`")

    if not (halves := _LAYOUT.fullmatch(text)):
        raise unreadable(text)
    dimensions: list[Dimension] = []
    rest = halves["left"].strip()
    while rest:
        if not (match := _DIMENSION.match(rest)):
            raise unreadable(rest)
        digits = _DIGIT.findall(match["digits"])
        dimensions.append(
            Dimension(match["name"], tuple(Digit(name, int(radix) if radix else None) for name, radix in digits))
        )
        rest = rest[match.end() :]
    return Layout(tuple(dimensions), tuple(halves["right"].split()), int(halves["xor"] or 0))
