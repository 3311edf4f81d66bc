"""What lies where: the bytes of a tensor as spans of bits, each of one code, and the place of each element in them."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from math import prod

import numpy as np
from numpy.typing import NDArray

from ..errors import BadInput, NotSupported
from ..layout import AnyLayout, Dimension, Layout, Ragged, Record, Stages, parse_layout
from ..layout.bits import refuse_bits
from ..layout.chain import BITS
from ..layouts import NamedLayout

CODES = "codes"
_MOST_ELEMENTS = 4096


@dataclass(frozen=True)
class Plan:
    """What a picture is of: a layout for a tensor of `shape`, the bits of each part, and who owns a code."""

    name: str
    summary: str
    layout: AnyLayout | Record
    bits: Mapping[str, int]
    shape: tuple[int, ...]
    owner: str
    """What a colour stands for: `lane`, `bank`, `block` ..."""
    digits: tuple[str, ...]
    """The digits that number the owner of a code, outer first; none: words of 32 bits are the owners."""


@dataclass(frozen=True)
class Span:
    """Bits `low` to `high` - 1 of the code of `part` at `coords` (of that part), at bit address `start`."""

    start: int
    part: str
    low: int
    high: int
    coords: tuple[int, ...]
    owner: int | None
    is_padding: bool

    @property
    def stop(self) -> int:
        """The bit address after it."""
        return self.start + self.high - self.low


def plan_named(layout: NamedLayout, shape: Sequence[int] | None = None) -> Plan:
    """A picture of a named layout, of its own small shape where none is given."""
    own = layout.owner
    drawn = tuple(shape or layout.shape)
    return _checked(layout.name, layout.summary, layout.layout, layout.part_bits, drawn, own)


def plan_text(text: str, bits: int, shape: Sequence[int] | None = None) -> Plan:
    """A picture of a layout that is spelled out, for codes of `bits`; other parts of a record take 16 bits a value.

    Without a shape, each free digit is drawn with few values.
    """
    layout = parse_layout(text)
    widths = {CODES: bits}
    if isinstance(layout, Record):
        if CODES not in layout.parts():
            raise BadInput(f"record `{layout}` has no part {CODES}", hint=f"call the codes of the tensor {CODES}")
        for field, _ in layout.fields():
            if field.part != CODES:
                widths[field.part] = max(widths.get(field.part, 0), field.high or 16)
    return _checked("layout", "", layout, widths, tuple(shape or _small(layout)), None)


def _small(layout: AnyLayout | Record) -> tuple[int, ...]:
    """A shape of one to four blocks along each dimension: about 16 elements each way; of a ragged one, a tail too."""
    if isinstance(layout, Ragged):
        return tuple(layout.block(name) + (1 if name == layout.along else 0) for name in layout.names)
    sizes: list[int] = []
    for dimension in _tensor_dimensions(layout):
        free = dimension.digits[0].radix is None
        sizes.append(dimension.block * (max(1, min(4, 16 // dimension.block)) if free else 1))
    return tuple(sizes)


def _checked(
    name: str,
    summary: str,
    layout: AnyLayout | Record,
    bits: Mapping[str, int],
    shape: tuple[int, ...],
    owner: tuple[str, tuple[str, ...]] | None,
) -> Plan:
    if owner is None:
        owner = _default_owner(layout)
    if not isinstance(layout, Record):
        refuse_bits(bits[CODES], layout)
    elif not 1 <= bits[CODES] <= 8:
        raise BadInput(f"a code of {bits[CODES]} bits cannot be packed", hint="1 to 8 bits a code")
    plan = Plan(name, summary, layout, bits, shape, *owner)
    if not 1 <= prod(shape) <= _MOST_ELEMENTS:
        text = "x".join(map(str, shape))
        raise BadInput(f"a picture of {text} has {prod(shape)} elements", hint=f"--shape with 1 to {_MOST_ELEMENTS}")
    total_bytes(plan)
    return plan


def _default_owner(layout: AnyLayout | Record) -> tuple[str, tuple[str, ...]]:
    """The first named space, or whoever shares a scale; else words."""
    if isinstance(layout, Record):
        parts = layout.parts()
        return ("group", parts["scale"]) if "scale" in parts else ("word", ())
    if isinstance(layout, Layout) and layout.spaces:
        first = layout.spaces[0]
        return first.name, layout.stored()[first.name]
    return "word", ()


def _digits(layout: AnyLayout | Record) -> Layout | Record | None:
    """What splits the coordinates into digits; a ragged layout has no one way."""
    if isinstance(layout, Stages):
        return layout.stages[0]
    return None if isinstance(layout, Ragged) else layout


def _tensor_dimensions(layout: AnyLayout | Record) -> list[Dimension]:
    """The dimensions of the tensor, without the bits of a code."""
    split = _digits(layout)
    return [dimension for dimension in split.dimensions if dimension.name != BITS] if split else []


def dimension_names(plan: Plan) -> list[str]:
    """The names of the dimensions of the tensor."""
    if isinstance(plan.layout, Ragged):
        return list(plan.layout.names)
    return [dimension.name for dimension in _tensor_dimensions(plan.layout)]


def has_bit_planes(plan: Plan) -> bool:
    """Whether the bits of a code lie apart, each in a slot of its own."""
    return not isinstance(plan.layout, Record) and plan.layout.bits_first() is not None


@dataclass(frozen=True)
class _Slots:
    """A layout of codes, or of bits with their dimension first; the shape it is for, and the bits of a slot."""

    layout: AnyLayout
    shape: tuple[int, ...]
    width: int


def _slots(plan: Plan, layout: AnyLayout) -> _Slots:
    planes = layout.bits_first()
    if planes is None:
        return _Slots(layout, plan.shape, plan.bits[CODES])
    return _Slots(planes, (plan.bits[CODES], *plan.shape), 1)


def total_bytes(plan: Plan) -> int:
    """The bytes that the whole tensor takes."""
    if isinstance(plan.layout, Record):
        extents = plan.layout.extents(plan.shape)
        return prod(extents[name] for name in plan.layout.outer) * plan.layout.bytes(plan.bits, plan.shape)
    slots = _slots(plan, plan.layout)
    return -(-slots.layout.size(slots.shape) * slots.width // 8)


def addresses(plan: Plan) -> NDArray[np.int64]:
    """The bit address of the lowest bit of each code of the tensor."""
    grid = [np.asarray(coord, np.int64) for coord in np.indices(plan.shape)]
    if isinstance(plan.layout, Record):
        found = plan.layout.index(CODES, grid, plan.shape, plan.bits, 0)
    else:
        slots = _slots(plan, plan.layout)
        coords = grid if slots.layout is plan.layout else [np.int64(0), *grid]
        found = slots.layout.index(coords, slots.shape) * slots.width
    return np.broadcast_to(np.asarray(found, np.int64), plan.shape)


def owners(plan: Plan) -> NDArray[np.int64]:
    """The number of the owner of each code of the tensor."""
    if not plan.digits:
        return addresses(plan) // 32
    found = _owner(plan, _digit_values(plan, [np.asarray(coord, np.int64) for coord in np.indices(plan.shape)]))
    if found is None:
        raise NotSupported(f"{plan.owner} is numbered by {' '.join(plan.digits)}, which the codes do not all have")
    return np.broadcast_to(found, plan.shape)


def _digit_values(plan: Plan, coords: Sequence[NDArray[np.int64]]) -> dict[str, NDArray[np.int64]]:
    values: dict[str, NDArray[np.int64]] = {}
    for dimension, coord in zip(_tensor_dimensions(plan.layout), coords, strict=True):
        values |= {digit.name: value for digit, value in dimension.values(coord)}
    return values


def _owner(plan: Plan, values: Mapping[str, NDArray[np.int64]]) -> NDArray[np.int64] | None:
    extents = _extents(plan)
    number: NDArray[np.int64] = np.zeros((), np.int64)
    for name in plan.digits:
        if name not in values:
            return None
        number = number * extents[name] + values[name]
    return number


def _extents(plan: Plan) -> dict[str, int]:
    """How many values each digit of the tensor takes."""
    found: dict[str, int] = {}
    for dimension, extent in zip(_tensor_dimensions(plan.layout), plan.shape, strict=False):
        found |= {digit.name: digit.radix or -(-extent // dimension.block) for digit in dimension.digits}
    return found


def spans(plan: Plan, start: int, stop: int) -> list[Span]:
    """What lies in the bits from `start` to before `stop`, in order; neighbouring bits of a code are one span."""
    layout = plan.layout
    if isinstance(layout, Record):
        found = _record_spans(plan, layout, start, stop)
    else:
        found = _chain_spans(plan, layout, start, stop)
    joined: list[Span] = []
    for span in sorted(found, key=lambda span: span.start):
        before = joined[-1] if joined else None
        if before and (before.part, before.coords, before.high, before.stop) == (
            span.part, span.coords, span.low, span.start,
        ):  # fmt: skip
            joined[-1] = replace(before, high=span.high)
        else:
            joined.append(span)
    return joined


def _chain_spans(plan: Plan, layout: AnyLayout, start: int, stop: int) -> Iterator[Span]:
    slots = _slots(plan, layout)
    width = slots.width
    slot = np.arange(max(0, -(-start // width)), min(-(-stop // width), slots.layout.size(slots.shape)))
    coords = [np.broadcast_to(coord, slot.shape) for coord in slots.layout.inverse(slot, slots.shape)]
    bit = np.zeros_like(slot) if slots.layout is layout else coords.pop(0)
    owner = slot * width // 32 if not plan.digits else _owner(plan, _digit_values(plan, coords))
    outside = bit >= plan.bits[CODES]
    for coord, extent in zip(coords, plan.shape, strict=True):
        outside = outside | (coord >= extent)
    low = bit.tolist()
    owners = [None] * slot.size if owner is None else np.broadcast_to(owner, slot.shape).tolist()
    places = zip(slot.tolist(), low, zip(*(c.tolist() for c in coords), strict=True), owners, outside, strict=True)
    for at, first, coord, number, is_padding in places:
        yield Span(at * width, CODES, first, first + width, coord, number, bool(is_padding))


def _record_spans(plan: Plan, record: Record, start: int, stop: int) -> Iterator[Span]:
    extents = record.extents(plan.shape)
    for piece in record.pieces(plan.bits, plan.shape):
        names = [name for name, _ in piece.strides]
        grid = np.indices([extents[name] for name in names]).reshape(len(names), -1)
        address = piece.base + np.array([stride for _, stride in piece.strides]) @ grid
        inside = np.flatnonzero((start <= address) & (address < stop))
        values = dict(zip(names, grid[:, inside], strict=True))
        values |= {name: np.full(inside.size, pin) for name, pin in piece.pins}
        coords = _part_coords(record, values, extents, inside.size)
        owner = _owner(plan, values) if plan.digits else address[inside] // 32
        outside = np.zeros(inside.size, np.bool_)
        for coord, extent in zip(coords, record.part_shape(piece.part, plan.shape), strict=True):
            outside = outside | (coord >= extent)
        owners = [None] * inside.size if owner is None else np.broadcast_to(owner, inside.shape).tolist()
        places = zip(*(c.tolist() for c in coords), strict=True)
        for at, coord, number, is_padding in zip(address[inside].tolist(), places, owners, outside, strict=True):
            yield Span(at, piece.part, piece.low, piece.high, coord, number, bool(is_padding))


def _part_coords(
    record: Record, values: Mapping[str, NDArray[np.int64]], extents: Mapping[str, int], size: int
) -> list[NDArray[np.int64]]:
    """The coordinates of a part from the values of its digits."""
    coords: list[NDArray[np.int64]] = []
    for dimension in record.dimensions:
        coord: NDArray[np.int64] = np.zeros(size, np.int64)
        for digit in dimension.digits:
            if digit.name in values:
                coord = coord * extents[digit.name] + values[digit.name]
        coords.append(coord)
    return coords
