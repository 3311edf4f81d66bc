"""The bytes of records: each field is sliced, shifted and merged as a whole array, then written beside the others.

Items that begin inside a byte share a word of at most 64 bits with their neighbours up to the next whole byte.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import product
from math import prod
from typing import TypeAlias

import numpy as np
from numpy.typing import DTypeLike, NDArray

from ..errors import BadInput
from .bits import refuse_codes, spread, squeeze
from .digits import Shape
from .pieces import field_bits, item_bits, record_bits
from .record import Field, Group, Place, Record
from .steps import padded

Raw: TypeAlias = NDArray[np.unsignedinteger]
"""Codes as unsigned integers, one axis a digit of their part."""


def pack_record(
    record: Record,
    parts: Mapping[str, NDArray[np.generic]],
    bits: Mapping[str, int],
    shape: Shape,
    fill: Mapping[str, int],
) -> NDArray[np.uint8]:
    """`Record.pack`."""
    if different := set(record.parts()).symmetric_difference(parts):
        part = min(different)
        has = "is missing" if part in record.parts() else "has no place in it"
        raise BadInput(f"record `{record}`: part {part} {has}", hint=f"give {', '.join(record.parts())}")
    bits = {part: _width(part, array.dtype, bits) for part, array in parts.items()}
    body = _Body(record, bits, record.extents(shape))
    raw = {part: body.raw(part, array, shape, fill.get(part, 0)) for part, array in parts.items()}
    data = np.zeros((*body.counts(record.outer), record_bits(record, bits, shape) // 8), np.uint8)
    body.write(record.items, tuple(map(Place, record.outer)), raw, data)
    return data.reshape(prod(data.shape[:-1]), data.shape[-1])


def unpack_record(
    record: Record,
    data: NDArray[np.uint8],
    bits: Mapping[str, int],
    dtypes: Mapping[str, DTypeLike],
    shape: Shape,
) -> dict[str, NDArray[np.generic]]:
    """`Record.unpack`."""
    kinds = {part: np.dtype(dtypes[part]) for part in record.parts() if part in dtypes}
    if missing := [part for part in record.parts() if part not in kinds]:
        raise BadInput(f"record `{record}`: no dtype is given for part {missing[0]}")
    bits = {part: _width(part, kind, bits) for part, kind in kinds.items()}
    body = _Body(record, bits, record.extents(shape))
    records, size = prod(body.counts(record.outer)), record_bits(record, bits, shape) // 8
    if data.dtype != np.uint8 or data.size != records * size:
        raise BadInput(
            f"{data.size} elements of {data.dtype}, but shape {tuple(shape)} in `{record}` takes {records} records of "
            f"{size} bytes",
            hint="check the shape, the bits and the record the parts were packed with",
        )
    raw = {part: np.zeros(body.counts(digits), _unsigned(kinds[part])) for part, digits in record.parts().items()}
    whole = data.reshape(*body.counts(record.outer), size)
    body.read(record.items, tuple(map(Place, record.outer)), raw, whole)
    return {part: body.part(part, raw[part], shape, kinds[part]) for part in raw}


@dataclass(frozen=True)
class _Body:
    """A record with the bits of each part and the extents of each digit."""

    record: Record
    bits: Mapping[str, int]
    extents: Mapping[str, int]

    def counts(self, digits: Sequence[str]) -> tuple[int, ...]:
        return tuple(self.extents[name] for name in digits)

    def raw(self, part: str, array: NDArray[np.generic], shape: Shape, fill: int) -> Raw:
        """A part as unsigned codes, padded, one axis a digit."""
        expected = self.record.part_shape(part, shape)
        if array.shape != expected:
            raise BadInput(
                f"part {part} of `{self.record}` has shape {array.shape}, but a tensor of {tuple(shape)} has "
                f"{expected} of them"
            )
        bits = self.bits[part]
        if array.dtype.name in ("int8", "uint8"):
            refuse_codes(array, bits, fill, f"of part {part} ")
        codes = np.ascontiguousarray(array).view(_unsigned(array.dtype)).reshape(array.shape)
        return padded(codes, self.padded_shape(part), fill % (1 << bits)).reshape(
            self.counts(self.record.parts()[part])
        )

    def padded_shape(self, part: str) -> tuple[int, ...]:
        held = self.record.parts()[part]
        return tuple(
            prod(self.extents[digit.name] for digit in dimension.digits if digit.name in held)
            for dimension in self.record.dimensions
        )

    def part(self, part: str, raw: Raw, shape: Shape, dtype: np.dtype[np.generic]) -> NDArray[np.generic]:
        """The inverse of `raw`."""
        inside = tuple(map(slice, self.record.part_shape(part, shape)))
        codes = np.asarray(raw.reshape(self.padded_shape(part))[(..., *inside)], order="C")
        if dtype == np.int8 and self.bits[part] < 8:
            sign = np.uint8(1 << self.bits[part] - 1)
            codes = (codes ^ sign) - sign  # extends the sign of two's complement
        return codes.view(dtype)

    def write(
        self, items: Sequence[Field | Group], around: tuple[Place, ...], raw: Mapping[str, Raw], data: NDArray[np.uint8]
    ) -> None:
        """Put items into `data` [*digits around them, bytes]."""
        for run, low, high in self.runs(items):
            part = data[..., low:high]
            if len(run) > 1 or self.shares_bytes(run[0]):
                part[...] = self.word(run, around, raw, (high - low) * 8)
            elif isinstance(field := run[0], Group):
                inner = np.empty((*part.shape[:-1], *self.unpinned(field.digits), self.item_bytes(field)), np.uint8)
                self.write(field.items, (*around, *field.digits), raw, inner)
                part[...] = inner.reshape(part.shape)
            else:
                first, last = field_bits(field, self.bits)
                codes = self.view(field, around, raw)
                if field.xor:
                    codes = codes ^ codes.dtype.type(field.xor)
                part[...] = _merge(codes, first, last - first, len(part.shape) - 1)

    def read(
        self, items: Sequence[Field | Group], around: tuple[Place, ...], raw: Mapping[str, Raw], data: NDArray[np.uint8]
    ) -> None:
        """Take items out of `data` [*digits around them, bytes]; their bits are ORed into `raw`."""
        for run, low, high in self.runs(items):
            part = data[..., low:high]
            if len(run) > 1 or self.shares_bytes(run[0]):
                self.split(run, around, raw, part)
            elif isinstance(field := run[0], Group):
                inner = part.reshape(*part.shape[:-1], *self.unpinned(field.digits), self.item_bytes(field))
                self.read(field.items, (*around, *field.digits), raw, inner)
            else:
                first, last = field_bits(field, self.bits)
                codes = self.view(field, around, raw)
                _split(part, codes, first, last - first, len(part.shape) - 1, field.xor)

    def view(self, field: Field, around: tuple[Place, ...], raw: Mapping[str, Raw]) -> Raw:
        """The codes of a field: the digits around it, then its own, the pinned ones taken; memory is shared."""
        places = (*around, *field.digits)
        names = self.record.parts()[field.part]
        pins = {place.name: place.pin for place in places}
        taken = raw[field.part][tuple(slice(None) if pins[name] is None else pins[name] for name in names)]
        left = [name for name in names if pins[name] is None]
        return taken.transpose([left.index(place.name) for place in places if place.pin is None])

    def unpinned(self, places: Sequence[Place]) -> tuple[int, ...]:
        return tuple(self.extents[place.name] for place in places if place.pin is None)

    def item_bytes(self, group: Group) -> int:
        return sum(item_bits(item, self.bits, self.extents) for item in group.items) // 8

    def shares_bytes(self, item: Field | Group) -> bool:
        """Whether a field that is whole bytes by itself holds codes of odd width, to be merged in one word."""
        if isinstance(item, Group):
            return False
        low, high = field_bits(item, self.bits)
        return high - low > 8 and ((high - low) % 8 != 0 or low % 8 != 0)

    def runs(self, items: Sequence[Field | Group]) -> Iterator[tuple[list[Field | Group], int, int]]:
        """Items that share bytes, with the bytes they take: from, to."""
        run: list[Field | Group] = []
        low = high = 0
        for item in items:
            size = item_bits(item, self.bits, self.extents)
            if isinstance(item, Group) and (high % 8 or self.group_bits(item) % 8):
                raise BadInput(f"record `{self.record}`: group `{item}` does not take whole bytes, from a byte on")
            run.append(item)
            high += size
            if high % 8 == 0:
                if (len(run) > 1 or self.shares_bytes(item)) and high - low > 64:
                    names = "; ".join(map(str, run))
                    raise BadInput(
                        f"record `{self.record}`: `{names}` share bytes and take {high - low} bits, above 64"
                    )
                yield run, low // 8, high // 8
                run, low = [], high
        if run:
            raise BadInput(f"record `{self.record}`: `{'; '.join(map(str, run))}` ends inside a byte")

    def group_bits(self, group: Group) -> int:
        return sum(item_bits(item, self.bits, self.extents) for item in group.items)

    def steps(
        self, run: Sequence[Field | Group], around: tuple[Place, ...], raw: Mapping[str, Raw]
    ) -> Iterator[tuple[Raw, int, int, int, int]]:
        """The codes of each field of a run, one own digit combination at a time: codes, low, width, shift, xor."""
        shift = 0
        for field in run:
            assert isinstance(field, Field)  # `runs` refuses groups here
            low, high = field_bits(field, self.bits)
            codes = self.view(field, around, raw)
            for own in product(*map(range, self.unpinned(field.digits))):
                yield codes[(..., *own)], low, high - low, shift, field.xor
                shift += high - low

    def word(
        self, run: Sequence[Field | Group], around: tuple[Place, ...], raw: Mapping[str, Raw], bits: int
    ) -> NDArray[np.uint8]:
        """A run as bytes [*around, bits / 8]."""
        word = np.zeros(self.unpinned(around), np.uint64)
        for codes, low, width, shift, xor in self.steps(run, around, raw):
            field = ((codes.astype(np.uint64) ^ np.uint64(xor)) >> np.uint64(low)) & np.uint64((1 << width) - 1)
            word |= field << np.uint64(shift)
        return word.astype("<u8")[..., None].view(np.uint8)[..., : bits // 8]

    def split(
        self,
        run: Sequence[Field | Group],
        around: tuple[Place, ...],
        raw: Mapping[str, Raw],
        data: NDArray[np.uint8],
    ) -> None:
        """The inverse of `word`."""
        word = np.zeros(data.shape[:-1], np.uint64)
        for byte in range(data.shape[-1]):
            word |= data[..., byte].astype(np.uint64) << np.uint64(8 * byte)
        for codes, low, width, shift, xor in self.steps(run, around, raw):
            mask = (1 << width) - 1
            field = ((word >> np.uint64(shift)) & np.uint64(mask)) << np.uint64(low)
            codes |= (field ^ np.uint64(xor & mask << low)).astype(codes.dtype)


def _merge(codes: Raw, low: int, width: int, outer: int) -> NDArray[np.uint8]:
    """Bits `low` to `low + width` of codes [*outer digits, *own digits] as bytes [*outer, bytes]."""
    lead, count = codes.shape[:outer], prod(codes.shape[outer:])
    if width >= 8:  # whole bytes of a wide value, and `low` is at a byte
        wide = np.ascontiguousarray(codes).astype(codes.dtype.newbyteorder("<"))
        taken = wide[..., None].view(np.uint8)[..., low // 8 : (low + width) // 8]
        return taken.reshape(*lead, count * width // 8)
    own = _byte_digits(codes.shape[outer:], width)
    mask = codes.dtype.type((1 << width) - 1)
    if own is None:
        slots = ((codes >> codes.dtype.type(low)) & mask).astype(np.uint8)
        return squeeze(slots.reshape(-1), width).reshape(*lead, count * width // 8)
    merged: Raw | None = None
    for place, values in enumerate(product(*map(range, codes.shape[codes.ndim - own :]))):
        shift = codes.dtype.type(abs(place * width - low))
        plane = codes[(..., *values)]
        field = (plane << shift if place * width >= low else plane >> shift) & (mask << codes.dtype.type(place * width))
        merged = field if merged is None else np.bitwise_or(merged, field, out=merged)
    assert merged is not None
    return merged.astype(np.uint8, copy=False).reshape(*lead, count * width // 8)


def _split(data: NDArray[np.uint8], codes: Raw, low: int, width: int, outer: int, xor: int) -> None:
    """The inverse of `_merge`: the bits are ORed into `codes`, flipped by `xor`."""
    lead, own_shape = codes.shape[:outer], codes.shape[outer:]
    one = codes.dtype.type
    flip = one(xor & ((1 << width) - 1) << low)
    if width >= 8:
        taken = data.reshape(*lead, *own_shape, width // 8)
        for byte in range(width // 8):
            codes |= taken[..., byte].astype(codes.dtype) << one(low + 8 * byte)
        codes ^= flip
        return
    own = _byte_digits(own_shape, width)
    if own is None:
        slots = spread(data.reshape(-1), width).astype(codes.dtype).reshape(codes.shape)
        codes |= (slots << one(low)) ^ flip
        return
    bytes_ = data.reshape(*lead, *own_shape[: len(own_shape) - own])
    for place, values in enumerate(product(*map(range, codes.shape[codes.ndim - own :]))):
        field = ((bytes_ >> np.uint8(place * width)) & np.uint8((1 << width) - 1)).astype(codes.dtype, copy=False)
        codes[(..., *values)] |= (field << one(low)) ^ flip


def _byte_digits(own: Sequence[int], width: int) -> int | None:
    """How many of the last digits count the codes of exactly one byte; None where no number of them does."""
    for count in range(1, len(own) + 1):
        if prod(own[len(own) - count :]) * width == 8:
            return count
    return None


def _width(part: str, dtype: np.dtype[np.generic], bits: Mapping[str, int]) -> int:
    """The bits of a part's code: those given for int8 and uint8, all of them for other dtypes."""
    whole = 8 * dtype.itemsize
    width = bits.get(part, whole)
    if dtype.name in ("int8", "uint8") and 1 <= width <= 8:
        return width
    if width != whole or whole not in (8, 16, 32, 64):
        raise BadInput(f"part {part} of {dtype} cannot take {width} bits a code", hint="1 to 8 bits of int8 or uint8")
    return whole


def _unsigned(dtype: np.dtype[np.generic]) -> np.dtype[np.unsignedinteger]:
    return np.dtype(f"u{dtype.itemsize}")
