"""What a code means: `value = (decode(code) - zero) * scale`, with scales and zero points shared by blocks.

A `Format` prints and parses: `i4, f32 per 32` is signed 4-bit codes with one float32 scale for every 32 along the last
axis; `u8, f32 per tensor, zero u8` is asymmetric bytes with one scale; `i8, f32 per *x*x*` is one scale per first index
of a 4-D tensor (blocks align to the right; `*` is a whole axis; axes further left have a scale of their own).
`i8, e8m0 per tensor` has a power of two as its scale: `e8m0` is the exponent alone (OCP Microscaling Formats 1.0,
section 5.4.1), and arithmetic with it is shifts. Such scales are held as float32 powers of two, which encode, decode,
expansions and DequantizeLinear read as they are: no value is lost, and the exponent is the float's own.
Where the bits lie is a `Layout`, how the codes were chosen an algorithm: neither appears here.
"""

from __future__ import annotations

import math
import re
from dataclasses import dataclass

import numpy as np

from .errors import BadInput, NotSupported
from .formats import ElementFamily, load_element

Block = tuple[int | None, ...]
"""Extents of a block, aligned to the last axes; None is a whole axis."""


@dataclass(frozen=True)
class Scale:
    """One level of scales: a dtype (`f32`, `f16`, `e8m0`) and the block that shares one; None is the whole tensor."""

    dtype: str
    block: Block | None

    def __str__(self) -> str:
        if self.block is None:
            return f"{self.dtype} per tensor"
        return f"{self.dtype} per " + "x".join("*" if b is None else str(b) for b in self.block)


@dataclass(frozen=True)
class Format:
    """An element type, the scale levels from the inside out, and the dtype of the zero point (None: symmetric)."""

    element: str
    scales: tuple[Scale, ...]
    zero: str | None = None

    def __str__(self) -> str:
        return ", ".join([self.element, *map(str, self.scales), *([f"zero {self.zero}"] if self.zero else [])])

    @staticmethod
    def parse(text: str) -> Format:
        """The format that prints as `text`; `BadInput` names the part that does not parse."""
        element, *parts = [part.strip() for part in text.split(",")]
        load_element(element)
        scales: list[Scale] = []
        zero: str | None = None
        for part in parts:
            if match := re.fullmatch(r"(f32|f16|e8m0) per (tensor|(?:\*|[1-9]\d*)(?:x(?:\*|[1-9]\d*))*)", part):
                block = (
                    None if match[2] == "tensor" else tuple(None if b == "*" else int(b) for b in match[2].split("x"))
                )
                scales.append(Scale(match[1], block))
            elif zero is None and (match := re.fullmatch(r"zero ([iu][1-8]|f32|f16)", part)):
                zero = match[1]
            else:
                raise BadInput(
                    f"format {text!r}: cannot read {part!r}",
                    hint='write it like "i4, f32 per 32" or "u8, f32 per tensor, zero u8"',
                )
        if not scales:
            raise BadInput(f"format {text!r} has no scale", hint='add one, as in "i8, f32 per *"')
        if len(scales) > 1:
            raise NotSupported(f"format {text!r} has {len(scales)} levels of scales, and only one is computed so far")
        return Format(element, tuple(scales), zero)

    @property
    def family(self) -> ElementFamily:
        """The element: its bits, limits, `encode` and `decode`."""
        return load_element(self.element)

    @property
    def bits(self) -> int:
        """Bits of one code."""
        return self.family.bits

    @property
    def scale(self) -> Scale:
        """The innermost scale level."""
        return self.scales[0]

    @property
    def by_powers_of_two(self) -> bool:
        """Whether every scale is a power of two."""
        return self.scale.dtype == "e8m0"

    def holds_scale(self, scale: np.ndarray) -> bool:
        """Whether values can be scales of this format: finite, above zero, and powers of two where it says so."""
        values = np.asarray(scale, np.float32)
        if not (np.isfinite(values).all() and (values > 0).all()):
            return False
        return not self.by_powers_of_two or bool((np.frexp(values)[0] == 0.5).all())

    def block_of(self, shape: tuple[int, ...]) -> tuple[int, ...]:
        """The block of the innermost scale for a tensor of `shape`, one extent an axis."""
        if self.scale.block is None:
            return tuple(max(1, d) for d in shape)
        block = self.scale.block
        if len(block) > len(shape):
            raise BadInput(f"format {self}: a block of {len(block)} axes does not fit a tensor of shape {list(shape)}")
        tail = tuple(
            max(1, d) if b is None else b for b, d in zip(block, shape[len(shape) - len(block) :], strict=True)
        )
        return (1,) * (len(shape) - len(block)) + tail

    def scale_shape(self, shape: tuple[int, ...]) -> tuple[int, ...]:
        """The shape of the scales of a tensor of `shape`: ceil(extent / block) along each axis."""
        return tuple(-(-d // b) for d, b in zip(shape, self.block_of(shape), strict=True))

    def bits_per_weight(self, shape: tuple[int, ...]) -> float:
        """Bits per element with scales and zero points included."""
        if not math.prod(shape):
            return float(self.bits)
        blocks = math.prod(self.scale_shape(shape))
        per_block = _width(self.scale.dtype) + (_width(self.zero) if self.zero else 0)
        return self.bits + blocks * per_block / math.prod(shape)

    def spread(self, per_block: np.ndarray, shape: tuple[int, ...]) -> np.ndarray:
        """One value a block, given back as one value an element of `shape`."""
        out = per_block.reshape(self.scale_shape(shape))
        for axis, (extent, block) in enumerate(zip(shape, self.block_of(shape), strict=True)):
            if out.shape[axis] == extent:
                continue
            if out.shape[axis] != 1:
                out = np.repeat(out, block, axis=axis)
                out = out[(slice(None),) * axis + (slice(0, extent),)]
        return out

    def encode(self, x: np.ndarray, scale: np.ndarray, zero: np.ndarray | None = None) -> np.ndarray:
        """Codes of `x`, rounded to nearest even and clipped. Error <= scale/2 for values that the range holds."""
        scaled = x.astype(np.float32, copy=False) / self.spread(scale, x.shape)
        if zero is not None and self.zero is not None:
            scaled = np.rint(scaled) if self.zero[0] in "iu" else scaled  # an odd zero point must not turn ties around
            scaled = scaled + self.spread(zero.astype(np.float32), x.shape)
        return self.family.encode(scaled)

    def decode(self, codes: np.ndarray, scale: np.ndarray, zero: np.ndarray | None = None) -> np.ndarray:
        """The float32 values of `codes`."""
        values = self.family.decode(codes)
        if zero is not None:
            values = values - self.spread(zero.astype(np.float32), codes.shape)
        return values * self.spread(scale, codes.shape).astype(np.float32, copy=False)


def _width(dtype: str) -> int:
    return 8 if dtype == "e8m0" else int(dtype[1:])
