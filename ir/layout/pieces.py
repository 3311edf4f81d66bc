"""Where the bits of a record lie: the address of a field is a base plus a stride for each of its digits."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from math import prod

from ..errors import BadInput
from .digits import Expression, Shape
from .record import Field, Group, Place, Record


@dataclass(frozen=True)
class Piece:
    """Bits `low` to `high` - 1 of a part's codes: at bit `base` + sum(digit * stride), where the pins match."""

    part: str
    low: int
    high: int
    base: int
    strides: tuple[tuple[str, int], ...]
    pins: tuple[tuple[str, int], ...]


def field_bits(field: Field, bits: Mapping[str, int]) -> tuple[int, int]:
    """Which bits of a code a field stores: (low, high)."""
    if field.low is not None and field.high is not None:
        return field.low, field.high
    if field.part not in bits:
        raise BadInput(f"part {field.part} has no width", hint=f"say how many bits a code of {field.part} takes")
    return 0, bits[field.part]


def item_bits(item: Field | Group, bits: Mapping[str, int], extents: Mapping[str, int]) -> int:
    """The bits an item takes in one record."""
    count = prod(extents[place.name] for place in item.digits if place.pin is None)
    if isinstance(item, Group):
        return count * sum(item_bits(inner, bits, extents) for inner in item.items)
    low, high = field_bits(item, bits)
    return count * (high - low)


def record_bits(record: Record, bits: Mapping[str, int], shape: Shape) -> int:
    """The bits of one record; refused where they are not whole bytes or not those of the codes."""
    for field, _ in record.fields():
        held = max((other.high or 0 for other, _ in record.fields() if other.part == field.part), default=0)
        width = bits.get(field.part, held)
        if held not in (0, width):
            raise BadInput(f"record `{record}` stores {held} bits of {field.part}, but its codes have {width}")
        if width and field.xor >> width:
            raise BadInput(f"xor {field.xor} of `{field}` in `{record}` does not fit codes of {width} bits")
    extents = record.extents(shape)
    total = sum(item_bits(item, bits, extents) for item in record.items)
    if total % 8:
        raise BadInput(f"a record of `{record}` takes {total} bits: they are not whole bytes")
    return total


def pieces(record: Record, bits: Mapping[str, int], shape: Shape) -> tuple[Piece, ...]:
    """The pieces of all parts in storage order."""
    extents = record.extents(shape)
    strides: dict[str, int] = {}
    _add_strides(strides, tuple(map(Place, record.outer)), record_bits(record, bits, shape), extents)
    return tuple(_pieces(record.items, 0, strides, {}, bits, extents))


def _pieces(
    items: Sequence[Field | Group],
    base: int,
    strides: Mapping[str, int],
    pins: Mapping[str, int],
    bits: Mapping[str, int],
    extents: Mapping[str, int],
) -> Iterator[Piece]:
    for item in items:
        own_strides, own_pins = dict(strides), dict(pins)
        own_pins |= {place.name: place.pin for place in item.digits if place.pin is not None}
        if isinstance(item, Group):
            _add_strides(
                own_strides, item.digits, sum(item_bits(inner, bits, extents) for inner in item.items), extents
            )
            yield from _pieces(item.items, base, own_strides, own_pins, bits, extents)
        else:
            low, high = field_bits(item, bits)
            _add_strides(own_strides, item.digits, high - low, extents)
            yield Piece(item.part, low, high, base, tuple(own_strides.items()), tuple(own_pins.items()))
        base += item_bits(item, bits, extents)


def _add_strides(strides: dict[str, int], places: Sequence[Place], stride: int, extents: Mapping[str, int]) -> None:
    """The strides of digits in storage order, the last of which moves `stride` bits."""
    for place in reversed(places):
        if place.pin is None:
            strides[place.name] = stride
            stride *= extents[place.name]


def address(
    record: Record, part: str, coords: Sequence[Expression], shape: Shape, bits: Mapping[str, int], bit: int
) -> Expression:
    """The address of bit `bit` of the code of `part` at `coords`: the sum over the pieces that may hold it."""
    held = record.parts().get(part)
    if held is None:
        raise BadInput(f"record `{record}` has no part {part}", hint=f"its parts are {', '.join(record.parts())}")
    extents = record.extents(shape)
    values: dict[str, Expression] = {}
    for dimension, coord in zip(record.dimensions, coords, strict=True):
        place = prod(extents[digit.name] for digit in dimension.digits if digit.name in held)
        for digit in dimension.digits:
            if digit.name in held:
                place //= extents[digit.name] or 1
                value = coord // place
                values[digit.name] = value if digit is dimension.digits[0] else value % extents[digit.name]
    total: Expression = 0
    is_stored = False
    for piece in record.pieces(bits, shape):
        if piece.part != part or not piece.low <= bit < piece.high:
            continue
        is_stored = True
        where: Expression = piece.base + bit - piece.low
        for name, stride in piece.strides:
            where = where + values[name] * stride
        for name, pin in piece.pins:
            radix = extents[name]  # (value - pin) % radix is 0 where the pin matches: that becomes 1, all else 0
            where = where * (1 - ((values[name] + (radix - pin)) % radix + (radix - 1)) // radix)
        total = total + where
    if not is_stored:
        raise BadInput(f"record `{record}` stores no bit {bit} of {part}")
    return total
