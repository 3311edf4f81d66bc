"""A body of whole blocks and a tail: one dimension is cut at the largest multiple of the body's block.

    n(n0) k(k1 k0:64) -> n0 k1 k0 + n(n0) k(k0) -> n0 k0 along k

The slots of the body come first. A tail, or a body, may be ragged itself along another dimension, or the tail along the
same one with smaller blocks: `BODY + [BODY + TAIL along n] along k`.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from math import lcm

import numpy as np
from numpy.typing import NDArray

from ..errors import BadInput
from .chain import BITS, Layout
from .digits import Expression, Shape, unreadable
from .steps import Cut, Scalar, Step, load, store

_DEPTH = 16  # brackets inside brackets: more are refused rather than followed
_EXAMPLE = "k(k1 k0:64) -> k1 k0 + k(k0) -> k0 along k"


@dataclass(frozen=True, repr=False)
class Ragged:
    """A bijection between the coordinates of a tensor and the slots of a body, then those of a tail.

    Raises `BadInput` where the dimensions or the xor of the two differ, where the body is not free along the cut
    dimension, and where a block of the tail does not divide one of the body.
    """

    body: Layout | Ragged
    tail: Layout | Ragged
    along: str

    def __post_init__(self) -> None:
        _check(self)

    def __str__(self) -> str:
        body, tail = (f"[{side}]" if isinstance(side, Ragged) else str(side) for side in (self.body, self.tail))
        return f"{body} + {tail} along {self.along}"

    def __repr__(self) -> str:
        return f"Ragged.parse({str(self)!r})"

    @staticmethod
    def parse(text: str) -> Ragged:
        """The value that prints as `text`."""
        value = _parse(text, text)
        if isinstance(value, Layout):
            raise unreadable(text, text, _EXAMPLE)
        return value

    @property
    def xor(self) -> int:
        """The bits of every stored code that are flipped."""
        return self.body.xor

    @property
    def bit_axis(self) -> None:
        """No axis, for bit planes of a ragged layout are refused."""
        return

    def bits_first(self) -> None:
        """Nothing: a slot holds a whole code."""
        return

    @property
    def names(self) -> tuple[str, ...]:
        """The names of the dimensions."""
        return dimension_names(self.body)

    def block(self, name: str) -> int:
        """How many coordinates along a dimension a block of either side spans."""
        return lcm(block(self.body, name), block(self.tail, name))

    def cut(self, shape: Shape) -> tuple[int, tuple[int, ...], tuple[int, ...]]:
        """Where a tensor of `shape` is cut, and the shapes of both sides."""
        if len(shape) != len(self.names):
            raise BadInput(f"shape {tuple(shape)} has rank {len(shape)}, but layout `{self}` has {len(self.names)}")
        axis, step = self.names.index(self.along), block(self.body, self.along)
        at = shape[axis] // step * step
        sides = tuple((*shape[:axis], extent, *shape[axis + 1 :]) for extent in (at, shape[axis] - at))
        return at, sides[0], sides[1]

    def padded_shape(self, shape: Shape) -> tuple[int, ...]:
        """The extents that hold both sides, each rounded up to whole digits."""
        at, body, tail = self.cut(shape)
        axis = self.names.index(self.along)
        sides = self.body.padded_shape(body), self.tail.padded_shape(tail)
        return tuple(at + sides[1][i] if i == axis else max(pair) for i, pair in enumerate(zip(*sides, strict=True)))

    def size(self, shape: Shape) -> int:
        """The number of slots, padding included."""
        _, body, tail = self.cut(shape)
        return self.body.size(body) + self.tail.size(tail)

    def index(self, coords: Sequence[Expression], shape: Shape) -> Expression:
        """The slot of the code at `coords` (each below its extent), with only + - * // %."""
        at, body, tail = self.cut(shape)
        axis = self.names.index(self.along)
        if at == 0:
            return self.tail.index(coords, tail)
        if tail[axis] == 0:
            return self.body.index(coords, body)
        is_tail = coords[axis] // at  # 0 or 1: the tail is shorter than a block, and the body is at least one
        rest = [coord - at if i == axis else coord for i, coord in enumerate(coords)]
        head = [coord % at if i == axis else coord for i, coord in enumerate(coords)]
        inside = (self.tail.index(rest, tail) + self.body.size(body)) * is_tail
        return inside + self.body.index(head, body) * (1 - is_tail)

    def inverse(self, slot: Expression, shape: Shape) -> tuple[Expression, ...]:
        """The coordinates of `slot`; a padding slot has one at or beyond its extent in `shape`, or in its side."""
        at, body, tail = self.cut(shape)
        axis = self.names.index(self.along)
        sizes = self.body.size(body), self.tail.size(tail)
        if sizes[0] == 0:
            coords = self.tail.inverse(slot, tail)
            return tuple(coord + at if i == axis else coord for i, coord in enumerate(coords))
        if sizes[1] == 0:
            return self.body.inverse(slot, body)
        most = -(-sizes[1] // sizes[0])
        is_tail = (slot // sizes[0] + (most - 1)) // most  # 1 from the first slot of the tail on
        head = self.body.inverse(slot, body)
        rest = self.tail.inverse(slot - sizes[0], tail)
        return tuple(
            low * (1 - is_tail) + (high + at if i == axis else high) * is_tail
            for i, (low, high) in enumerate(zip(head, rest, strict=True))
        )

    def lowering(self, shape: Shape) -> tuple[Step, ...]:
        """One step that cuts the tensor; the steps of both sides are inside."""
        at, body, tail = self.cut(shape)
        axis = self.names.index(self.along)
        return (Cut(axis, at, self.body.lowering(body), self.tail.lowering(tail), self.body.size(body)),)

    def arrange(self, codes: NDArray[Scalar], fill: int = 0) -> NDArray[Scalar]:
        """The slots of `codes` as a 1-D array of the same dtype."""
        return store(self.lowering(codes.shape), codes, fill)

    def restore(self, slots: NDArray[Scalar], shape: Shape) -> NDArray[Scalar]:
        """The codes of `shape` that `arrange` made into the `size(shape)` elements of `slots`."""
        if slots.size != self.size(shape):
            raise BadInput(f"{slots.size} slots for shape {tuple(shape)}, but `{self}` has {self.size(shape)} of them")
        return np.ascontiguousarray(load(self.lowering(shape), slots.reshape(-1))).reshape(tuple(shape))


def dimension_names(layout: Layout | Ragged) -> tuple[str, ...]:
    """The names of the dimensions."""
    return layout.names if isinstance(layout, Ragged) else tuple(dimension.name for dimension in layout.dimensions)


def block(layout: Layout | Ragged, name: str) -> int:
    """How many coordinates along a dimension the layout keeps together."""
    if isinstance(layout, Ragged):
        return layout.block(name)
    return next(dimension.block for dimension in layout.dimensions if dimension.name == name)


def _check(ragged: Ragged) -> None:
    def refuse(message: str, hint: str = "") -> BadInput:
        return BadInput(f"layout `{ragged}`: {message}", hint=hint)

    names = dimension_names(ragged.body)
    if names != dimension_names(ragged.tail):
        raise refuse(f"the body has dimensions {' '.join(names)}, the tail {' '.join(dimension_names(ragged.tail))}")
    if ragged.along not in names:
        raise refuse(f"it is cut along {ragged.along}, which is none of its dimensions {' '.join(names)}")
    if BITS in names:
        raise refuse("bit planes of a ragged layout are not supported", "pack the body and the tail by themselves")
    if ragged.body.xor != ragged.tail.xor:
        raise refuse(f"the body has xor {ragged.body.xor}, the tail {ragged.tail.xor}", "give both the same")
    if isinstance(ragged.body, Ragged) and ragged.along in _cuts(ragged.body):
        raise refuse(f"the body is itself cut along {ragged.along}", "put the smaller blocks in the tail")
    for side, which in ((ragged.body, "body"), (ragged.tail, "tail")):
        for layout in _layouts(side):
            first = next(d.digits[0] for d in layout.dimensions if d.name == ragged.along)
            if first.radix is not None:
                raise refuse(f"digit {first} of the {which} is not free", f"write it as {first.name}")
    if block(ragged.body, ragged.along) % block(ragged.tail, ragged.along):
        blocks = block(ragged.tail, ragged.along), block(ragged.body, ragged.along)
        raise refuse(f"along {ragged.along} a block of the tail, {blocks[0]}, does not divide the body's, {blocks[1]}")


def _layouts(side: Layout | Ragged) -> list[Layout]:
    return [*_layouts(side.body), *_layouts(side.tail)] if isinstance(side, Ragged) else [side]


def _cuts(side: Layout | Ragged) -> set[str]:
    return {side.along} | _cuts(side.body) | _cuts(side.tail) if isinstance(side, Ragged) else set()


def _parse(text: str, whole: str) -> Layout | Ragged:
    """`SIDE + SIDE along NAME`, where a side is a layout or a ragged one in brackets; or a layout alone."""
    parts: list[str] = []
    depth = start = 0
    for at, mark in enumerate(text):
        depth += (mark == "[") - (mark == "]")
        if depth > _DEPTH:
            raise unreadable(text, whole, _EXAMPLE)
        if mark == "+" and depth == 0:
            parts.append(text[start:at])
            start = at + 1
    if depth:
        raise unreadable(text, whole, _EXAMPLE)
    if not parts:
        return Layout.parse(text)
    tail = re.fullmatch(r"(.*\S)\s*\balong\s+(\w+)\s*", text[start:], re.ASCII | re.DOTALL)
    if len(parts) != 1 or not tail:
        raise unreadable(text, whole, _EXAMPLE)
    return Ragged(_side(parts[0], whole), _side(tail[1], whole), tail[2])


def _side(text: str, whole: str) -> Layout | Ragged:
    inside = re.fullmatch(r"\s*\[(.*)\]\s*", text, re.DOTALL)
    return _parse(inside[1], whole) if inside else Layout.parse(text)
