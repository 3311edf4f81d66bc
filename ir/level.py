"""A level of numbers that blocks of a tensor share: `f16 per 32` is one float16 for every 32 along the last axis.

Scales, zero points, minima and tables all come in levels. Blocks align to the last axes: axes further left have numbers
of their own. `*` is a whole axis, `tensor` all of them; the last block of an axis may be ragged.
"""

from __future__ import annotations

import math
import re
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from .errors import BadInput

Block = tuple[int | None, ...]
"""Extents of a block, aligned to the last axes; None is a whole axis."""

_EXTENT = r"(?:\*|[1-9][0-9]{0,17})"
BLOCK = rf"tensor|{_EXTENT}(?:x{_EXTENT})*"
"""What a block looks like in text."""


@dataclass(frozen=True)
class Level:
    """A dtype (`f32`, `f16`, `bf16`, `e8m0`, `e4m3`, `u6` ...) and the block that shares a number; None: the tensor."""

    dtype: str
    block: Block | None

    def __str__(self) -> str:
        return f"{self.dtype} per {block_text(self.block)}"

    def block_of(self, shape: Sequence[int]) -> tuple[int, ...]:
        """The block for a tensor of `shape`, one extent an axis; `BadInput` for a block of more axes."""
        if self.block is None:
            return tuple(max(1, d) for d in shape)
        if len(self.block) > len(shape):
            raise BadInput(
                f"level {self}: a block of {len(self.block)} axes does not fit a tensor of shape {list(shape)}"
            )
        left = len(shape) - len(self.block)
        tail = (max(1, d) if b is None else b for b, d in zip(self.block, shape[left:], strict=True))
        return (1,) * left + tuple(tail)

    def shape_of(self, shape: Sequence[int]) -> tuple[int, ...]:
        """The shape of the numbers for a tensor of `shape`: ceil(extent / block) along each axis."""
        return tuple(-(-d // b) for d, b in zip(shape, self.block_of(shape), strict=True))

    def spread(self, numbers: np.ndarray, shape: Sequence[int]) -> np.ndarray:
        """One number a block, given back so that it broadcasts against a tensor of `shape`: whole axes stay 1."""
        return spread(numbers.reshape(self.shape_of(shape)), self.block_of(shape), shape)

    def blocks(self, x: np.ndarray) -> np.ndarray:
        """A tensor as [blocks, elements of a block], ragged ends padded with zeros."""
        block, counts = self.block_of(x.shape), self.shape_of(x.shape)
        padded = tuple(c * b for c, b in zip(counts, block, strict=True))
        if padded != x.shape:
            x = np.pad(x, [(0, p - d) for p, d in zip(padded, x.shape, strict=True)])
        apart = x.reshape([e for pair in zip(counts, block, strict=True) for e in pair])
        rank = len(block)
        split = apart.transpose([*range(0, 2 * rank, 2), *range(1, 2 * rank, 2)])
        return split.reshape(math.prod(counts), math.prod(block))

    def restore(self, blocks: np.ndarray, shape: Sequence[int]) -> np.ndarray:
        """The tensor of `shape` that `blocks` took apart."""
        block, counts = self.block_of(shape), self.shape_of(shape)
        rank = len(block)
        split = blocks.reshape(*counts, *block)
        whole = split.transpose([i + side * rank for i in range(rank) for side in (0, 1)])
        whole = whole.reshape(tuple(c * b for c, b in zip(counts, block, strict=True)))
        return np.ascontiguousarray(whole[tuple(slice(0, d) for d in shape)]).reshape(tuple(shape))


def spread(numbers: np.ndarray, block: Sequence[int], shape: Sequence[int]) -> np.ndarray:
    """Repeat each number along its block; an axis with one number stays 1."""
    for axis, (extent, size) in enumerate(zip(shape, block, strict=True)):
        if numbers.shape[axis] not in (1, extent):
            numbers = np.repeat(numbers, size, axis=axis)[(slice(None),) * axis + (slice(0, extent),)]
    return numbers


def holds(outer: Block | None, inner: Block | None) -> bool:
    """Whether each block of `outer` is made of whole blocks of `inner`, for every shape."""
    if outer is None or inner is None:
        return outer is None
    wide = max(len(outer), len(inner))
    pairs = zip(((1,) * (wide - len(outer))) + outer, ((1,) * (wide - len(inner))) + inner, strict=True)
    return all(o is None or (i is not None and o % i == 0) for o, i in pairs)


def block_text(block: Block | None) -> str:
    """`tensor`, or extents like `32`, `*x*` and `32x32`."""
    return "tensor" if block is None else "x".join("*" if b is None else str(b) for b in block)


def parse_block(text: str) -> Block | None:
    """What `block_text` prints; the text matches `BLOCK`."""
    return None if text == "tensor" else tuple(None if b == "*" else int(b) for b in text.split("x"))


def parse_level(text: str) -> Level | None:
    """The level that prints as `text`, None where it is none. Whether the dtype exists is not looked at."""
    match = re.fullmatch(rf"([a-z]\w*) per ({BLOCK})", text)
    return Level(match[1], parse_block(match[2])) if match else None
