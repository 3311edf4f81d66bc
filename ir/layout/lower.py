"""A layout for the writers of code: a plain function from coordinates to places, for whatever has + * // %."""

from __future__ import annotations

from collections.abc import Callable
from typing import TypeAlias

from .chain import Layout
from .digits import Expression, Shape
from .ragged import Ragged
from .stages import Stages
from .steps import Step

IndexMap: TypeAlias = Callable[..., tuple[Expression, ...]]


def index_map(layout: Layout | Ragged | Stages, shape: Shape) -> IndexMap:
    """A function of one coordinate a dimension: the place in each named space, or (the slot,) where none is named.

    It works on integers, arrays and symbolic expressions; TVM's `IndexMap.from_func` and `transform_layout` take it as
    it is (with `ndim`, for it has no named arguments).
    """
    layout.size(shape)  # refuses a shape that does not fit before any code is made

    def place(*coords: Expression) -> tuple[Expression, ...]:
        if isinstance(layout, Ragged):
            return (layout.index(coords, shape),)
        return tuple(layout.locate(coords, shape).values())

    return place


def lowering(layout: Layout | Ragged | Stages, shape: Shape) -> tuple[Step, ...]:
    """The array operations that put the codes of a tensor of `shape` into slots; undone in reverse they unpack."""
    return layout.lowering(shape)
