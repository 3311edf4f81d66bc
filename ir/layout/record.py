"""Several parts side by side: for every combination of the outer digits, a record holds the bits of its items in turn.

    n(n0) k(k1 k0:32) -> n0 k1 {scale; codes^8 k0}

    record = dimensions "->" digit* "{" item (";" item)* "}"
    item   = part ["[" low ":" high "]"] ["^" xor] digit*    bits low..high-1 of the part's codes, last digit fastest
           | digit* "{" item (";" item)* "}"                 for every combination of the digits, the items in turn
    digit  = name ["=" value]                                a pinned digit has that one value

Everything is one sequence of bits, the least significant first. A part has an element for every combination of the
digits around it and its own; the other digits are inside its block. `xor` flips bits of the code before its bits are
taken.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import product
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import DTypeLike, NDArray

from ..errors import BadInput
from .digits import Dimension, Expression, Refuse, Shape, check_dimensions, check_names, read_dimensions, unreadable
from .digits import extents as digit_extents

if TYPE_CHECKING:
    from .pieces import Piece

_EXAMPLE = "n(n0) k(k1 k0:32) -> n0 k1 {scale; codes^8 k0}"
_FIELD = re.compile(
    r"([A-Za-z_]\w*)(?: \[ (\d{1,9}) : (\d{1,9}) \])?(?: \^ (\d{1,9}))?((?: \w+(?: = \d{1,9})?)*)", re.ASCII
)
_PLACES = re.compile(r"(?:\w+(?: = \d{1,9})?(?: |$))*", re.ASCII)
_DEPTH = 16  # braces inside braces: more are refused rather than followed
_PINNED = 1 << 12  # combinations of pinned digits that are told apart
_TOKEN = re.compile(r"\s*(?:(?P<word>\w+)|(?P<mark>[{};^=:\[\]]))", re.ASCII)


@dataclass(frozen=True)
class Place:
    """A digit of an item: every value of it in turn, or the one it is pinned to."""

    name: str
    pin: int | None = None

    def __str__(self) -> str:
        return self.name if self.pin is None else f"{self.name}={self.pin}"


@dataclass(frozen=True)
class Field:
    """Bits `low` to `high` - 1 (all of them where None) of a part's codes, for every combination of the digits."""

    part: str
    digits: tuple[Place, ...] = ()
    low: int | None = None
    high: int | None = None
    xor: int = 0

    def __str__(self) -> str:
        bits = "" if self.high is None else f"[{self.low}:{self.high}]"
        flip = f"^{self.xor}" if self.xor else ""
        return " ".join([f"{self.part}{bits}{flip}", *map(str, self.digits)])


@dataclass(frozen=True)
class Group:
    """Items that are repeated for every combination of the digits."""

    digits: tuple[Place, ...]
    items: tuple[Field | Group, ...]

    def __str__(self) -> str:
        return " ".join([*map(str, self.digits), "{" + "; ".join(map(str, self.items)) + "}"])


@dataclass(frozen=True, repr=False)
class Record:
    """A bijection between the bits of several parts and the bits of records; one record an outer digit combination.

    Raises `BadInput` for digits that are unknown, repeated or stored nowhere, and for a bit stored twice or never.
    """

    dimensions: tuple[Dimension, ...]
    outer: tuple[str, ...]
    items: tuple[Field | Group, ...]

    def __post_init__(self) -> None:
        _check(self)

    def __str__(self) -> str:
        body = Group(tuple(map(Place, self.outer)), self.items)
        return f"{' '.join(map(str, self.dimensions))} -> {body}"

    def __repr__(self) -> str:
        return f"Record.parse({str(self)!r})"

    @staticmethod
    def parse(text: str) -> Record:
        """The record that prints as `text`; spaces are free. Raises `BadInput` with the part that cannot be read."""
        return _parse(text)

    def fields(self) -> Iterator[tuple[Field, tuple[Place, ...]]]:
        """Each field in storage order, with all its digits: outer ones, enclosing ones and its own."""
        return _fields(self.items, tuple(map(Place, self.outer)))

    def parts(self) -> dict[str, tuple[str, ...]]:
        """The digits of each part in the order of the dimensions; the parts in the order they are first stored."""
        held = {field.part: {place.name for place in places} for field, places in self.fields()}
        digits = [digit.name for dimension in self.dimensions for digit in dimension.digits]
        return {part: tuple(name for name in digits if name in names) for part, names in held.items()}

    def extents(self, shape: Shape) -> dict[str, int]:
        """How many values each digit takes for a tensor of `shape`, in the order of the dimensions."""
        return digit_extents(self.dimensions, shape, self)

    def part_shape(self, part: str, shape: Shape) -> tuple[int, ...]:
        """The shape of a part that belongs to a tensor of `shape`: one element for each, maybe ragged, block."""
        extents, held = self.extents(shape), self.parts()[part]
        blocks = [
            int(np.prod([extents[digit.name] for digit in dimension.digits if digit.name not in held]))
            for dimension in self.dimensions
        ]
        return tuple(-(-extent // block) if block else 0 for extent, block in zip(shape, blocks, strict=True))

    def bytes(self, bits: Mapping[str, int], shape: Shape) -> int:
        """The bytes of one record, with `bits` for a code of each part."""
        from .pieces import record_bits

        return record_bits(self, bits, shape) // 8

    def pieces(self, bits: Mapping[str, int], shape: Shape) -> tuple[Piece, ...]:
        """Where the bits of each field lie, as a sum over the digits."""
        from .pieces import pieces

        return pieces(self, bits, shape)

    def index(
        self, part: str, coords: Sequence[Expression], shape: Shape, bits: Mapping[str, int], bit: int = 0
    ) -> Expression:
        """The address of one bit of the code of `part` at `coords` of that part, counted over all records.

        Uses only + - * // %, as `Layout.index` does; checks no bounds.
        """
        from .pieces import address

        return address(self, part, coords, shape, bits, bit)

    def pack(
        self,
        parts: Mapping[str, NDArray[np.generic]],
        bits: Mapping[str, int],
        shape: Shape,
        fill: Mapping[str, int] | None = None,
    ) -> NDArray[np.uint8]:
        """The bytes [records, bytes] of the parts of a tensor of `shape`; each part has its `part_shape`.

        int8 and uint8 codes take `bits[part]` bits, two's complement where int8; any other dtype is stored as its raw
        bits. Padding holds the code `fill[part]` (0). Raises `BadInput` for a part that is missing or does not fit.
        """
        from .record_bytes import pack_record

        return pack_record(self, parts, bits, shape, fill or {})

    def unpack(
        self, data: NDArray[np.uint8], bits: Mapping[str, int], dtypes: Mapping[str, DTypeLike], shape: Shape
    ) -> dict[str, NDArray[np.generic]]:
        """The parts that `pack` made into `data` (bytes of any shape), each of its dtype and `part_shape`."""
        from .record_bytes import unpack_record

        return unpack_record(self, data, bits, dtypes, shape)


def _fields(items: Sequence[Field | Group], around: tuple[Place, ...]) -> Iterator[tuple[Field, tuple[Place, ...]]]:
    for item in items:
        if isinstance(item, Field):
            yield item, (*around, *item.digits)
        else:
            yield from _fields(item.items, (*around, *item.digits))


def _check(record: Record) -> None:
    def refuse(message: str, hint: str = "") -> BadInput:
        return BadInput(f"record `{record}`: {message}", hint=hint)

    check_dimensions(record.dimensions, refuse)
    check_names("outer digit", record.outer, refuse)
    radices = {digit.name: digit.radix for dimension in record.dimensions for digit in dimension.digits}
    pieces: dict[str, list[tuple[Field, tuple[Place, ...]]]] = {}
    for field, places in record.fields():
        check_names(f"around `{field}`, digit", (place.name for place in places), refuse)
        for place in places:
            if place.name not in radices:
                raise refuse(f"digit {place} belongs to no dimension", f"the digits are {' '.join(radices)}")
            if place.pin is not None and place.pin >= (radices[place.name] or 0):
                raise refuse(f"digit {place} is pinned beyond its radix", "a free digit cannot be pinned")
        pieces.setdefault(field.part, []).append((field, places))
    if not pieces:
        raise refuse("it holds no part", f"write it like `{_EXAMPLE}`")
    parts = record.parts()
    if unused := set(radices).difference(*parts.values()):
        raise refuse(f"digit {min(unused)} lies in no part", "give every digit to the part whose codes it counts")
    for part, fields in pieces.items():
        _check_prefix(record, part, parts[part], refuse)
        _check_bits(part, fields, radices, refuse)


def _check_prefix(record: Record, part: str, held: Sequence[str], refuse: Refuse) -> None:
    """The digits of a dimension outside a part are inside its block: none of them stands before one that it has."""
    for dimension in record.dimensions:
        names = [digit.name for digit in dimension.digits]
        inside = [name for name in names if name in held]
        if inside != names[: len(inside)]:
            outside = next(name for name in names if name not in held)
            raise refuse(f"part {part} has digit {inside[-1]} but not {outside}", "a block is of the last digits")


def _check_bits(
    part: str,
    fields: Sequence[tuple[Field, tuple[Place, ...]]],
    radices: Mapping[str, int | None],
    refuse: Refuse,
) -> None:
    """Every bit of every code of a part is stored once; only pinned digits tell one code from another here."""
    first = {place.name for place in fields[0][1]}
    for field, places in fields:
        if other := first.symmetric_difference(place.name for place in places):
            raise refuse(f"digit {min(other)} is around some bits of {part} and not around `{field}`", "pin it there")
        if field.low is not None and field.high is not None and not 0 <= field.low < field.high <= 64:
            raise refuse(f"`{field}` takes bits {field.low} to {field.high}", "low is below high, which is at most 64")
    pinned = {place.name: radices[place.name] or 1 for _, places in fields for place in places if place.pin is not None}
    highs = [field.high for field, _ in fields if field.high is not None]
    if np.prod(list(pinned.values()), dtype=object) > _PINNED:
        raise refuse(f"part {part} pins digits of {' x '.join(map(str, pinned.values()))} values", "pin small digits")
    count = np.zeros((*pinned.values(), max(highs, default=1)), np.int64)
    for field, places in fields:
        pins = {place.name: place.pin for place in places}
        where = [slice(None) if pins[name] is None else pins[name] for name in pinned]
        count[(*where, slice(field.low, field.high))] += 1
    for values in product(*map(range, count.shape)):
        if count[values] != 1:
            at = "".join(f" {name}={value}" for name, value in zip(pinned, values, strict=False))
            often = f"{count[values]} times" if count[values] else "never"
            raise refuse(f"bit {values[-1]} of {part}{at} is stored {often}", "store every bit of a part once")


def _parse(text: str) -> Record:
    left, arrow, right = text.partition("->")
    if not arrow:
        raise unreadable(text, text, _EXAMPLE)
    tokens = _tokens(right, text)
    body, rest = _read_item(tokens, 0, text)
    if rest != len(tokens) or not isinstance(body, Group) or any(p.pin is not None for p in body.digits):
        raise unreadable(right, text, _EXAMPLE)
    return Record(read_dimensions(left, text, _EXAMPLE), tuple(place.name for place in body.digits), body.items)


def _tokens(text: str, whole: str) -> list[str]:
    tokens: list[str] = []
    rest = text.strip()
    while rest:
        if not (match := _TOKEN.match(rest)):
            raise unreadable(rest, whole, _EXAMPLE)
        tokens.append(match["word"] or match["mark"])
        rest = rest[match.end() :]
    return tokens


def _read_item(tokens: Sequence[str], at: int, whole: str, depth: int = 0) -> tuple[Field | Group, int]:
    """The item that begins at a token, and where it ends."""
    if depth > _DEPTH:
        raise unreadable(" ".join(tokens[at:]), whole, _EXAMPLE)
    end = next((i for i in range(at, len(tokens)) if tokens[i] in "{};"), len(tokens))
    if end == len(tokens) or tokens[end] != "{":
        return _read_field(tokens[at:end], whole), end
    items: list[Field | Group] = []
    digits = _read_places(tokens[at:end], whole)
    while True:
        item, end = _read_item(tokens, end + 1, whole, depth + 1)
        items.append(item)
        if end == len(tokens):
            raise unreadable(" ".join(tokens[at:]), whole, _EXAMPLE)
        if tokens[end] == "}":
            return Group(digits, tuple(items)), end + 1
        if tokens[end] != ";":
            raise unreadable(" ".join(tokens[end:]), whole, _EXAMPLE)


def _read_field(tokens: Sequence[str], whole: str) -> Field:
    text = " ".join(tokens)
    match = _FIELD.fullmatch(text)
    if not match:
        raise unreadable(text, whole, _EXAMPLE)
    part, low, high, xor, digits = match.groups()
    places = _read_places(digits.split(), whole)
    return Field(part, places, int(low) if low else None, int(high) if high else None, int(xor or 0))


def _read_places(tokens: Sequence[str], whole: str) -> tuple[Place, ...]:
    text = " ".join(tokens)
    if not _PLACES.fullmatch(text):
        raise unreadable(text, whole, _EXAMPLE)
    found = re.findall(r"(\w+)(?: = (\d+))?", text, re.ASCII)
    return tuple(Place(name, int(pin) if pin else None) for name, pin in found)
