"""A dimension as a mixed-radix number: `k(k1 k0:32)` is k = 32 k1 + k0, and the first digit takes what a shape asks."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from math import prod
from typing import Any, TypeAlias

from ..errors import BadInput

Shape: TypeAlias = Sequence[int]
Expression: TypeAlias = Any  # an int, an integer array or a symbolic expression: whatever has + * // % (^ to swizzle)
Refuse: TypeAlias = Callable[[str, str], BadInput]
"""Makes the error of a message and a hint, with the text of the layout before them."""

NAME = r"[A-Za-z_]\w*"
_DIMENSION = re.compile(r"(?P<name>\w+)\((?P<digits>(?:\s*\b\w+(?::\d{1,12})?)*)\s*\)\s*", re.ASCII)
_DIGIT = re.compile(r"(\w+)(?::(\d{1,12}))?", re.ASCII)


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

    def values(self, coord: Expression) -> Iterator[tuple[Digit, Expression]]:
        """Each digit with its value at `coord`; the first is not reduced, for a coordinate is below its extent."""
        for digit, place in self.places():
            value = coord // place if place > 1 else coord
            yield digit, value if digit is self.digits[0] else value % digit.radix


def extents(dimensions: Sequence[Dimension], shape: Shape, owner: object) -> dict[str, int]:
    """How many values each digit takes for a tensor of `shape`; `owner` prints as the layout in an error."""
    if len(shape) != len(dimensions):
        raise BadInput(
            f"shape {tuple(shape)} has rank {len(shape)}, but layout `{owner}` has rank {len(dimensions)}",
            hint=f"give one extent each for {' '.join(dimension.name for dimension in dimensions)}",
        )
    found: dict[str, int] = {}
    for dimension, extent in zip(dimensions, shape, strict=True):
        first, block = dimension.digits[0], dimension.block
        if extent < 0:
            raise BadInput(f"dimension {dimension.name} of layout `{owner}` has extent {extent}: it is negative")
        if first.radix is not None and extent != block:
            raise BadInput(
                f"dimension {dimension.name} has extent {extent}, but `{dimension}` holds exactly {block}",
                hint=f"write the first digit as {first.name}, without a radix, to fit any extent",
            )
        found |= {digit.name: digit.radix or -(-extent // block) for digit in dimension.digits}
    return found


def read_dimensions(text: str, whole: str, example: str) -> tuple[Dimension, ...]:
    """The dimensions that print as `text`, a part of the layout `whole`; an error shows how to write one: `example`."""
    dimensions: list[Dimension] = []
    rest = text.strip()
    while rest:
        if not (match := _DIMENSION.match(rest)):
            raise unreadable(rest, whole, example)
        digits = _DIGIT.findall(match["digits"])
        dimensions.append(
            Dimension(match["name"], tuple(Digit(name, int(radix) if radix else None) for name, radix in digits))
        )
        rest = rest[match.end() :]
    return tuple(dimensions)


def unreadable(part: str, whole: str, example: str) -> BadInput:
    """The error of a part that cannot be read."""
    return BadInput(f"cannot read {part.strip()!r} in layout {whole!r}", hint=f"write it like `{example}`")


def check_dimensions(dimensions: Sequence[Dimension], refuse: Refuse) -> None:
    """Refuse names that are no names or stand twice, dimensions without digits and radices that are missing or 0."""
    check_names("dimension", (dimension.name for dimension in dimensions), refuse)
    check_names("digit", (digit.name for dimension in dimensions for digit in dimension.digits), refuse)
    for dimension in dimensions:
        if not dimension.digits:
            raise refuse(f"dimension {dimension.name} has no digits", f"write {dimension.name}({dimension.name}0)")
        for position, digit in enumerate(dimension.digits):
            if digit.radix is None and position > 0:
                raise refuse(f"digit {digit.name} has no radix", "only the first digit of a dimension is free")
            if digit.radix is not None and digit.radix < 1:
                raise refuse(f"digit {digit.name} has radix {digit.radix}", "a radix is at least 1")


def check_names(what: str, names: Iterable[str], refuse: Refuse) -> None:
    """Refuse what is no name, and a name that stands twice."""
    for name, count in Counter(names).items():
        if not re.fullmatch(NAME, name, re.ASCII):
            raise refuse(f"{what} {name!r} is not a name", "use letters, numbers and _, a letter first")
        if count > 1:
            raise refuse(f"{what} {name} stands {count} times", "name each once")
