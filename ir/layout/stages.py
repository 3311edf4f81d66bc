"""Layouts one after another: the slots of each are the coordinates of the next.

n(n0:4) k(k0:6) -> k0 n0; slot(s1:8 s0:3) -> s0 s1
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise
from math import prod

import numpy as np
from numpy.typing import NDArray

from ..errors import BadInput
from .chain import Layout
from .digits import Expression, Shape
from .steps import Reshape, Scalar, Step, load, store


@dataclass(frozen=True, repr=False)
class Stages:
    """Two or more bound layouts; the dimensions of each are the spaces of the one before, or all its slots as one.

    Raises `BadInput` for a layout with a free digit and for extents that do not fit.
    """

    stages: tuple[Layout, ...]

    def __post_init__(self) -> None:
        if len(self.stages) < 2:
            raise BadInput(f"{len(self.stages)} stages", hint="a single layout is a Layout")
        for first, second in pairwise(self.stages):
            check_fits(first, second)

    def __str__(self) -> str:
        return "; ".join(map(str, self.stages))

    def __repr__(self) -> str:
        return f"Stages.parse({str(self)!r})"

    @staticmethod
    def parse(text: str) -> Stages:
        """The stages that print as `text`."""
        return Stages(tuple(map(Layout.parse, text.split(";"))))

    @property
    def xor(self) -> int:
        """The bits of every code that are flipped after all stages."""
        flipped = 0
        for stage in self.stages:
            flipped ^= stage.xor
        return flipped

    @property
    def bit_axis(self) -> int | None:
        """The axis that counts the bits of a code, in the first stage."""
        return self.stages[0].bit_axis

    def bits_first(self) -> Stages | None:
        """The same stages with the dimension called `bit` first; None where there is none."""
        first = self.stages[0].bits_first()
        return Stages((first, *self.stages[1:])) if first else None

    def padded_shape(self, shape: Shape) -> tuple[int, ...]:
        """`shape`, which is that of the first stage."""
        return self.stages[0].padded_shape(shape)

    def size(self, shape: Shape) -> int:
        """The number of slots."""
        return self.stages[0].size(shape)

    def index(self, coords: Sequence[Expression], shape: Shape) -> Expression:
        """The slot of the code at `coords`, as `Layout.index`."""
        return self.stages[-1].index(self._before_last(coords, shape), bound_shape(self.stages[-1]))

    def locate(self, coords: Sequence[Expression], shape: Shape) -> dict[str, Expression]:
        """The place of the code at `coords` in each space of the last stage."""
        return self.stages[-1].locate(self._before_last(coords, shape), bound_shape(self.stages[-1]))

    def inverse(self, slot: Expression, shape: Shape) -> tuple[Expression, ...]:
        """The coordinates of `slot`, one per dimension of the first stage."""
        for stage in reversed(self.stages[1:]):
            sizes = bound_shape(stage)
            coords, slot = stage.inverse(slot, sizes), 0
            for coord, size in zip(coords, sizes, strict=True):
                slot = slot * size + coord
        return self.stages[0].inverse(slot, shape)

    def lowering(self, shape: Shape) -> tuple[Step, ...]:
        """The steps of each stage in turn."""
        steps = list(self.stages[0].lowering(shape))
        for stage in self.stages[1:]:
            sizes = bound_shape(stage)
            steps += [Reshape((prod(sizes),), sizes), *stage.lowering(sizes)]
        return tuple(steps)

    def arrange(self, codes: NDArray[Scalar], fill: int = 0) -> NDArray[Scalar]:
        """The slots of `codes` as a 1-D array of the same dtype; it may share memory with `codes`."""
        return store(self.lowering(codes.shape), codes, fill)

    def restore(self, slots: NDArray[Scalar], shape: Shape) -> NDArray[Scalar]:
        """The codes of `shape` that `arrange` made into `slots`; they may share memory with `slots`."""
        if slots.size != self.size(shape):
            raise BadInput(f"{slots.size} slots for shape {tuple(shape)}, but `{self}` has {self.size(shape)} of them")
        return np.ascontiguousarray(load(self.lowering(shape), slots.reshape(-1))).reshape(tuple(shape))

    def _before_last(self, coords: Sequence[Expression], shape: Shape) -> tuple[Expression, ...]:
        """The coordinates of the last stage."""
        for first, second in pairwise(self.stages):
            if len(second.dimensions) == len(first.stored()):
                coords = tuple(first.locate(coords, shape).values())
            else:
                coords = (first.index(coords, shape),)
            shape = bound_shape(second)
        return tuple(coords)


def radices(layout: Layout) -> dict[str, int]:
    """The radix of every digit; refused where one is free."""
    found: dict[str, int] = {}
    for dimension in layout.dimensions:
        for digit in dimension.digits:
            if digit.radix is None:
                raise BadInput(
                    f"digit {digit.name} of layout `{layout}` is free", hint="bind it first: layout.bound(shape)"
                )
            found[digit.name] = digit.radix
    return found


def bound_shape(layout: Layout) -> tuple[int, ...]:
    """The one shape of a bound layout; refused where a digit is free."""
    radices(layout)
    return tuple(dimension.block for dimension in layout.dimensions)


def _fit(first: Layout, second: Layout) -> list[tuple[str, tuple[str, ...]]]:
    """The spaces of `first`, with their digits, that the dimensions of `second` split: all slots where it has one."""
    spaces = list(first.stored().items())
    if len(second.dimensions) == 1 != len(spaces):
        return [("slot", first.order)]
    return spaces


def check_fits(first: Layout, second: Layout) -> None:
    """Refuse a second stage whose dimensions are not the spaces of the first."""
    extents = radices(first)
    sizes = bound_shape(second)
    spaces = _fit(first, second)
    if len(spaces) != len(sizes):
        raise BadInput(
            f"layout `{second}` has {len(sizes)} dimensions, but `{first}` before it has {len(spaces)} spaces",
            hint="give it one dimension a space, or one in all",
        )
    for (space, order), dimension, size in zip(spaces, second.dimensions, sizes, strict=True):
        count = prod(extents[name] for name in order)
        if count != size:
            raise BadInput(
                f"dimension {dimension.name} of `{second}` has extent {size}, but space {space} of `{first}` has "
                f"{count} places"
            )
