"""Codes that cross words, packed whole: bits that stay together are moved together, as words of 8 to 64 bits.

    k(..) n(..) bit(b:3) -> ... k0 b;  group(..) column(..) stream(w:3 j:32) -> ... j

The first stage ends in all bits of a code, so its bits are those of the codes side by side; every later stage leaves
runs of 32 bits whole, so that it permutes words. The bytes are the same as those of a slot for each bit, which takes
eight times the memory.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray

from .chain import BITS, Layout
from .digits import Digit, Dimension
from .stages import Stages, bound_shape

_WIDTHS = (64, 32, 16, 8)


@dataclass(frozen=True)
class Words:
    """How the codes lie side by side, and how the words that they fill are permuted, stage by stage."""

    codes: Layout
    width: int
    stages: tuple[Layout, ...]

    def permute(self, data: NDArray[np.uint8]) -> NDArray[np.uint8]:
        """The bytes of codes side by side, words in the order of the last stage."""
        words = data.view(f"<u{self.width // 8}")
        for stage in self.stages:
            words = stage.arrange(words.reshape(bound_shape(stage)))
        return words.view(np.uint8)

    def restore(self, data: NDArray[np.uint8]) -> NDArray[np.uint8]:
        """`permute` undone."""
        words = np.ascontiguousarray(data).view(f"<u{self.width // 8}")
        for stage in reversed(self.stages):
            words = stage.restore(words, bound_shape(stage)).reshape(-1)
        return words.view(np.uint8)


def words_of(layout: object, bits: int) -> Words | None:
    """The plan for stages of that kind; None for all other layouts."""
    if not isinstance(layout, Stages):
        return None
    first, *others = layout.stages
    codes = _without_bits(first, bits)
    runs = [_run(stage) for stage in others]
    width = next((w for w in _WIDTHS if all(run % w == 0 for run in runs)), 0)
    if codes is None or not width or not all(runs):
        return None
    return Words(codes, width, tuple(_coarser(stage, width) for stage in others))


def _without_bits(layout: Layout, bits: int) -> Layout | None:
    """The layout of whole codes; None where the bits of one do not lie side by side."""
    planes = [dimension for dimension in layout.dimensions if dimension.name == BITS]
    if len(planes) != 1 or len(planes[0].digits) != 1 or planes[0].digits[0].radix != bits or layout.swizzles:
        return None
    if layout.order[-1] != planes[0].digits[0].name or any(s.start == len(layout.order) - 1 for s in layout.spaces):
        return None
    rest = tuple(dimension for dimension in layout.dimensions if dimension is not planes[0])
    return replace(layout, dimensions=rest, order=layout.order[:-1], xor=0)


def _run(layout: Layout) -> int:
    """How many neighbouring slots stay neighbours: the radix of a digit that is innermost on both sides; else 0."""
    last = layout.dimensions[-1].digits[-1]
    if layout.order[-1] != last.name or last.radix is None or any(last.name in pair for pair in layout.swizzles):
        return 0
    return last.radix


def _coarser(layout: Layout, width: int) -> Layout:
    """The same stage over words of `width` slots."""
    *dimensions, inner = layout.dimensions
    last = inner.digits[-1]
    assert last.radix is not None
    digits = (*inner.digits[:-1], Digit(last.name, last.radix // width))
    return replace(layout, dimensions=(*dimensions, Dimension(inner.name, digits)), xor=0)
