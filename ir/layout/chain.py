"""Where a code lies: a layout splits each dimension into digits and stores the digits in one order, last fastest.

    n(n0) k(k1 k0:32) -> n0 k1 k0 xor 8
    n(n1 n0:8) k(k2 k1:8 k0:8) -> @bank k1^n0 @addr n1 k2 n0 k0

A digit chain is a bijection from coordinates (with padding) onto slots, because both sides are mixed-radix numbers
over the same digits. `k0:32` has radix 32; the first digit of a dimension is free and takes what the shape asks for,
rounded up. `xor 8` flips those bits of every stored code: signed 4-bit codes then lie with offset 8. `@bank` opens a
named space: the digits after it number the places of that space. `k1^n0` is stored as k1 xor n0, a swizzle.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, replace
from math import prod

import numpy as np
from numpy.typing import NDArray

from ..errors import BadInput
from .digits import Digit, Dimension, Expression, Shape, check_dimensions, check_names, read_dimensions, unreadable
from .digits import extents as digit_extents
from .steps import Scalar, Step, chain_steps, load, store

PLAIN = "slot"  # the space of a layout that names none
BITS = "bit"  # the dimension of the bits of a code
_EXAMPLE = "n(n0) k(k1 k0:32) -> n0 k1 k0 xor 8"
_LAYOUT = re.compile(r"(?P<left>.*?)->(?P<right>.*?)(?:\bxor\s+(?P<xor>\d{1,9})\s*)?", re.ASCII | re.DOTALL)


@dataclass(frozen=True)
class Space:
    """A named space: it holds the stored digits from `start` up to the next space."""

    name: str
    start: int


@dataclass(frozen=True, repr=False)
class Layout:
    """A bijection between the coordinates of a tensor and its slots in storage.

    `dimensions` follow the axes of the tensor, `order` names every digit once in storage order, last fastest, and
    `xor` (0..255) flips bits of each stored code. `spaces` (none, or the first at 0) part the order; the slots of the
    first are outermost. Each pair (digit, partner) of `swizzles` stores digit xor (partner mod the digit's radix). A
    dimension called `bit` is that of the bits of a code, see `pack`. Raises `BadInput` for digits that are repeated,
    missing or unknown, and for swizzles of other than powers of two.
    """

    dimensions: tuple[Dimension, ...]
    order: tuple[str, ...]
    xor: int = 0
    spaces: tuple[Space, ...] = ()
    swizzles: frozenset[tuple[str, str]] = frozenset()

    def __post_init__(self) -> None:
        _check(self)

    def __str__(self) -> str:
        partners = dict(self.swizzles)
        stored = [f"{name}^{partners[name]}" if name in partners else name for name in self.order]
        for space in reversed(self.spaces):
            stored.insert(space.start, f"@{space.name}")
        text = f"{' '.join(map(str, self.dimensions))} -> {' '.join(stored)}"
        return f"{text} xor {self.xor}" if self.xor else text

    def __repr__(self) -> str:
        return f"Layout.parse({str(self)!r})"

    @staticmethod
    def parse(text: str) -> Layout:
        """The layout that prints as `text`; spaces are free. Raises `BadInput` with the part that cannot be read."""
        return _parse(text)

    @property
    def bit_axis(self) -> int | None:
        """The axis of the dimension called `bit`, whose coordinates count the bits of a code."""
        names = [dimension.name for dimension in self.dimensions]
        return names.index(BITS) if BITS in names else None

    def bits_first(self) -> Layout | None:
        """The same layout with the dimension called `bit` first; None where there is none: a slot holds a code."""
        if (axis := self.bit_axis) is None:
            return None
        before, after = self.dimensions[:axis], self.dimensions[axis + 1 :]
        return replace(self, dimensions=(self.dimensions[axis], *before, *after))

    def extents(self, shape: Shape) -> dict[str, int]:
        """How many values each digit takes for a tensor of `shape`, in the order of the dimensions."""
        return digit_extents(self.dimensions, shape, self)

    def padded_shape(self, shape: Shape) -> tuple[int, ...]:
        """`shape` with each extent rounded up to whole digits."""
        extents = self.extents(shape)
        return tuple(prod(extents[digit.name] for digit in dimension.digits) for dimension in self.dimensions)

    def size(self, shape: Shape) -> int:
        """The number of slots, padding included."""
        return prod(self.extents(shape).values())

    def bound(self, shape: Shape) -> Layout:
        """The same layout for tensors of `padded_shape(shape)` alone: every digit has its radix."""
        extents = self.extents(shape)
        if empty := [name for name, extent in extents.items() if extent == 0]:
            raise BadInput(f"digit {empty[0]} of layout `{self}` takes no value for shape {tuple(shape)}")
        dimensions = tuple(
            Dimension(dimension.name, tuple(Digit(digit.name, extents[digit.name]) for digit in dimension.digits))
            for dimension in self.dimensions
        )
        return replace(self, dimensions=dimensions)

    def stored(self) -> dict[str, tuple[str, ...]]:
        """The digits of each space in storage order; those of a layout without named spaces under `slot`."""
        spaces = self.spaces or (Space(PLAIN, 0),)
        ends = [space.start for space in spaces[1:]] + [len(self.order)]
        return {space.name: self.order[space.start : end] for space, end in zip(spaces, ends, strict=True)}

    def index(self, coords: Sequence[Expression], shape: Shape) -> Expression:
        """The slot of the code at `coords` (one per dimension, each below its padded extent; arrays broadcast).

        Uses only + * // % (and ^ for a swizzle), so that integers, numpy arrays and symbolic expressions all work;
        checks no bounds.
        """
        return self._number(self.order, self._values(coords), self.extents(shape))

    def locate(self, coords: Sequence[Expression], shape: Shape) -> dict[str, Expression]:
        """The place of the code at `coords` in each named space; `index` counts them together, the last fastest."""
        extents, values = self.extents(shape), self._values(coords)
        return {space: self._number(order, values, extents) for space, order in self.stored().items()}

    def agrees_with(self, other: Layout, shape: Shape) -> bool:
        """Whether two layouts put the same bytes in the same places for a tensor of `shape`.

        Without swizzles a slot is a sum of one function of each coordinate, so each dimension is compared by itself.
        """
        if len(self.dimensions) != len(other.dimensions) or (self.xor, self.size(shape)) != (
            other.xor,
            other.size(shape),
        ):
            return False
        if self.swizzles or other.swizzles:
            grids = [np.ogrid[tuple(map(slice, shape))]]
        else:
            line = [np.arange(extent) for extent in shape]
            grids = [[line[i] if i == axis else np.int64(0) for i in range(len(shape))] for axis in range(len(shape))]
        return all(np.array_equal(self.index(coords, shape), other.index(coords, shape)) for coords in grids)

    def inverse(self, slot: Expression, shape: Shape) -> tuple[Expression, ...]:
        """The coordinates of `slot`, one per dimension; a padding slot has one at or beyond its extent in `shape`."""
        extents = self.extents(shape)
        values: dict[str, Expression] = {}
        stride = 1
        for name in reversed(self.order):
            value = slot // stride if stride > 1 else slot
            values[name] = value if name == self.order[0] else value % extents[name]
            stride *= extents[name] or 1
        for digit, partner in self.swizzles:
            values[digit] = values[digit] ^ values[partner] % extents[digit]
        return tuple(
            sum(values[digit.name] * place for digit, place in dimension.places()) for dimension in self.dimensions
        )

    def lowering(self, shape: Shape) -> tuple[Step, ...]:
        """The array operations that make the slots of a tensor of `shape`; `steps.load` undoes them."""
        extents = self.extents(shape)
        axes = list(extents)
        return chain_steps(
            shape,
            self.padded_shape(shape),
            tuple(extents.values()),
            [axes.index(name) for name in self.order],
            [(self.order.index(digit), self.order.index(partner)) for digit, partner in sorted(self.swizzles)],
            self.xor,
        )

    def arrange(self, codes: NDArray[Scalar], fill: int = 0) -> NDArray[Scalar]:
        """The slots of `codes` as a 1-D array of the same dtype, where padding reads back as `fill`.

        Any dtype works without `xor`, integers with it. The result may share memory with `codes`.
        """
        return store(self.lowering(codes.shape), codes, fill)

    def restore(self, slots: NDArray[Scalar], shape: Shape) -> NDArray[Scalar]:
        """The codes of `shape` that `arrange` made into the `size(shape)` elements of `slots`, without the padding.

        The result may share memory with `slots`.
        """
        if slots.size != self.size(shape):
            raise BadInput(
                f"{slots.size} slots for shape {tuple(shape)}, but layout `{self}` has {self.size(shape)} of them",
                hint="check the shape and the layout the codes were stored with",
            )
        return np.ascontiguousarray(load(self.lowering(shape), slots.reshape(-1))).reshape(tuple(shape))

    def _values(self, coords: Sequence[Expression]) -> dict[str, Expression]:
        """What is stored for each digit: its value at `coords`, swizzled."""
        values: dict[str, Expression] = {}
        radices: dict[str, int | None] = {}
        for dimension, coord in zip(self.dimensions, coords, strict=True):
            for digit, value in dimension.values(coord):
                values[digit.name], radices[digit.name] = value, digit.radix
        for digit, partner in self.swizzles:
            values[digit] = values[digit] ^ values[partner] % radices[digit]
        return values

    def _number(self, order: Sequence[str], values: dict[str, Expression], extents: dict[str, int]) -> Expression:
        number: Expression = 0
        stride = 1
        for name in reversed(order):
            number = number + values[name] * stride
            stride *= extents[name]
        return number


def _check(layout: Layout) -> None:
    def refuse(message: str, hint: str = "") -> BadInput:
        return BadInput(f"layout `{layout}`: {message}", hint=hint)

    check_dimensions(layout.dimensions, refuse)
    check_names("on the right, digit", layout.order, refuse)
    check_names("space", (space.name for space in layout.spaces), refuse)
    radices = {digit.name: digit.radix for dimension in layout.dimensions for digit in dimension.digits}
    if missing := [name for name in radices if name not in layout.order]:
        raise refuse(f"digit {missing[0]} is missing on the right", "name every digit once after ->")
    if unknown := [name for name in layout.order if name not in radices]:
        raise refuse(f"digit {unknown[0]} on the right belongs to no dimension", f"the digits are {' '.join(radices)}")
    if layout.spaces and layout.spaces[0].start != 0:
        raise refuse(f"digit {layout.order[0]} lies before the first space", "begin the right side with a space")
    starts = [space.start for space in layout.spaces]
    if starts != sorted(starts) or any(start > len(layout.order) for start in starts):
        raise refuse(f"spaces begin at {starts}", "in storage order, inside the digits")
    if not 0 <= layout.xor <= 255:
        raise refuse(f"xor {layout.xor} is not a byte", "0 to 255")
    for digit, count in Counter(digit for digit, _ in layout.swizzles).items():
        if count > 1:
            raise refuse(f"digit {digit} is swizzled {count} times", "give it one partner")
    swizzled = dict(layout.swizzles)
    for digit, partner in swizzled.items():
        for name in (digit, partner):
            if name not in radices:
                raise refuse(f"digit {name} of the swizzle {digit}^{partner} belongs to no dimension")
            if not _is_power_of_two(radices[name]):
                is_free = radices[name] is None
                has = "no radix" if is_free else f"radix {radices[name]}"
                raise refuse(f"digit {name} of the swizzle {digit}^{partner} has {has}", "swizzle powers of two")
        if partner in swizzled:
            raise refuse(f"partner {partner} of the swizzle {digit}^{partner} is swizzled itself", "store it plainly")


def _is_power_of_two(radix: int | None) -> bool:
    return radix is not None and radix & (radix - 1) == 0


def _parse(text: str) -> Layout:
    if not (halves := _LAYOUT.fullmatch(text)):
        raise unreadable(text, text, _EXAMPLE)
    dimensions = read_dimensions(halves["left"], text, _EXAMPLE)
    order: list[str] = []
    spaces: list[Space] = []
    swizzles: set[tuple[str, str]] = set()
    for token in halves["right"].split():
        if token.startswith("@"):
            spaces.append(Space(token[1:], len(order)))
            continue
        name, *partners = token.split("^")
        if len(partners) > 1:
            raise unreadable(token, text, _EXAMPLE)
        order.append(name)
        swizzles |= {(name, partner) for partner in partners}
    return Layout(dimensions, tuple(order), int(halves["xor"] or 0), tuple(spaces), frozenset(swizzles))
