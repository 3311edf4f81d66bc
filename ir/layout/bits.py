"""Codes side by side: `pack` puts the low bits of every code where a layout says, `unpack` takes them back.

A slot holds one code of 1 to 8 bits; slot times bits is its bit address, least significant bit first. In a layout with
a dimension called `bit` a slot holds one bit of a code instead.
"""

from __future__ import annotations

from collections.abc import Sequence
from math import gcd
from typing import Protocol

import numpy as np
from numpy.typing import NDArray

from ..errors import BadInput
from .steps import Scalar, padded
from .words import words_of

_CHUNK = 1 << 18  # codes merged at a time: the wide temporaries stay in the cache


class Storage(Protocol):
    """What `pack` and `unpack` ask of a layout: codes of a shape become slots, and back."""

    @property
    def xor(self) -> int:
        """The bits of every stored code that are flipped."""
        ...

    def bits_first(self) -> Storage | None:
        """The same layout with the axis that counts the bits of a code first; None where a slot holds whole codes."""
        ...

    def size(self, shape: Sequence[int]) -> int:
        """The number of slots, padding included."""
        ...

    def padded_shape(self, shape: Sequence[int]) -> tuple[int, ...]:
        """`shape` with each extent rounded up to whole digits."""
        ...

    def arrange(self, codes: NDArray[Scalar], fill: int = 0) -> NDArray[Scalar]:
        """The slots of `codes`, flipped by `xor`, where padding reads back as `fill`."""
        ...

    def restore(self, slots: NDArray[Scalar], shape: Sequence[int]) -> NDArray[Scalar]:
        """The codes of `shape`, contiguous and of memory of their own."""
        ...


def pack(codes: NDArray[np.int8] | NDArray[np.uint8], bits: int, layout: Storage, fill: int = 0) -> NDArray[np.uint8]:
    """The `ceil(slots * bits / 8)` bytes of `codes`, one code of 1..8 bits a slot, least significant bit first.

    int8 codes are stored in two's complement, uint8 codes as they are, both flipped by the layout's `xor`; padding
    decodes to `fill`. With a `bit` dimension the codes have one axis less than the layout, a slot holds one bit and
    bit 0 is the least significant. Raises `BadInput` for a code, fill or xor that does not fit the bits.
    """
    refuse_bits(bits, layout)
    if codes.dtype.name not in ("int8", "uint8"):
        raise BadInput(f"codes to pack are int8 or uint8, not {codes.dtype}", hint="cast them: one code an element")
    refuse_codes(codes, bits, fill)
    if (words := words_of(layout, bits)) is not None:
        flipped = codes.view(np.uint8) ^ np.uint8(layout.xor) if layout.xor else codes.view(np.uint8)
        slots = words.codes.arrange(flipped, (fill & 255) ^ layout.xor)
        return words.permute(squeeze(slots, bits)[: slots.size * bits // 8])
    if (planes := layout.bits_first()) is not None:
        slots = planes.arrange(_planes(codes, bits, planes, fill))
        slots = slots ^ np.uint8(layout.xor) if layout.xor else slots  # a plane is already flipped
        return squeeze(slots, 1)[: -(-slots.size // 8)]
    slots = layout.arrange(codes, fill).view(np.uint8)
    return squeeze(slots, bits)[: -(-slots.size * bits // 8)]


def unpack(
    data: NDArray[np.uint8], bits: int, shape: Sequence[int], layout: Storage, signed: bool
) -> NDArray[np.int8] | NDArray[np.uint8]:
    """The codes of `shape` that `pack` made into `data` (bytes of any shape): int8 if `signed`, else uint8."""
    refuse_bits(bits, layout)
    planes = layout.bits_first()
    slots, width = (layout.size(shape), bits) if planes is None else (planes.size((bits, *shape)), 1)
    if data.dtype != np.uint8 or data.size != -(-slots * width // 8):
        raise BadInput(
            f"{data.size} elements of {data.dtype}, but shape {tuple(shape)} at {bits} bits in layout `{layout}` "
            f"takes {-(-slots * width // 8)} bytes of uint8",
            hint="check the shape, the bits and the layout the codes were packed with",
        )
    if (words := words_of(layout, bits)) is not None:
        side_by_side = spread(words.restore(data.reshape(-1)), bits)[: words.codes.size(shape)]
        codes = words.codes.restore(side_by_side, shape) ^ np.uint8(layout.xor)
    elif planes is None:
        codes = layout.restore(spread(data.reshape(-1), width)[:slots], shape)
    else:
        bits_of = spread(data.reshape(-1), width)[:slots] ^ np.uint8(layout.xor)
        codes = _joined(planes.restore(bits_of, (bits, *shape))) ^ np.uint8(layout.xor)
    if not signed:
        return codes
    sign = np.uint8(1 << bits - 1)
    codes ^= sign  # (code xor sign) - sign extends the sign of two's complement
    codes -= sign
    return codes.view(np.int8)


def refuse_bits(bits: int, layout: Storage) -> None:
    """Refuse a width that cannot be packed, and a xor beyond it."""
    if not 1 <= bits <= 8:
        raise BadInput(f"a code of {bits} bits cannot be packed", hint="1 to 8 bits a code")
    if layout.xor >> bits:
        raise BadInput(f"xor {layout.xor} of layout `{layout}` does not fit codes of {bits} bits")


def refuse_codes(codes: NDArray[np.generic], bits: int, fill: int, owner: str = "") -> None:
    """Refuse int8 or uint8 codes, and a fill, that do not fit the bits; `owner` follows "code" in the message."""
    low, high = (-(1 << bits - 1), (1 << bits - 1) - 1) if codes.dtype == np.int8 else (0, (1 << bits) - 1)
    span = f"{bits} {'signed' if low else 'unsigned'} bits ({low}..{high})"
    if not low <= fill <= high:
        raise BadInput(f"fill {fill} does not fit {span}")
    if bits < 8 and codes.size and not (low <= int(codes.min()) and int(codes.max()) <= high):
        worst = int(codes.argmin() if codes.min() < low else codes.argmax())
        where = tuple(map(int, np.unravel_index(worst, codes.shape)))
        raise BadInput(
            f"code {codes[where]} {owner}at {where} does not fit {span}", hint="clip the codes, or store more bits"
        )


def _planes(codes: NDArray[np.int8] | NDArray[np.uint8], bits: int, layout: Storage, fill: int) -> NDArray[np.uint8]:
    """The bits of `codes`, padded and flipped: [bits, *padded shape]."""
    whole = padded(codes, layout.padded_shape((bits, *codes.shape))[1:], fill)
    flipped = whole.view(np.uint8) ^ np.uint8(layout.xor) if layout.xor else whole.view(np.uint8)
    planes = np.empty((bits, *whole.shape), np.uint8)
    for bit in range(bits):
        np.right_shift(flipped, np.uint8(bit), out=planes[bit, ...])
    planes &= np.uint8(1)
    return planes


def _joined(planes: NDArray[np.uint8]) -> NDArray[np.uint8]:
    """The codes of bit planes [bits, *shape]."""
    codes = planes[0].copy()
    for bit, plane in enumerate(planes[1:], start=1):
        codes |= plane << np.uint8(bit)
    return codes


def squeeze(slots: NDArray[np.uint8], bits: int) -> NDArray[np.uint8]:
    """The low `bits` of each byte, side by side: inside one wide word neighbours merge, then pairs, then fours."""
    group, size = _group(bits)
    words = _whole(slots, group).view(f"<u{group}")
    squeezed = np.empty((words.size, size), np.uint8)
    for start in range(0, words.size, _CHUNK // group):
        rows = slice(start, start + _CHUNK // group)
        merged = words[rows]
        for count, mask in _merges(bits, group):
            merged = (merged & mask) | ((merged >> (8 - bits) * count) & (mask << bits * count))
        squeezed[rows] = merged.view(np.uint8).reshape(-1, group)[:, :size]
    return squeezed.reshape(-1)


def spread(data: NDArray[np.uint8], bits: int) -> NDArray[np.uint8]:
    """One code of `bits` a byte: the merges of `squeeze` undone in reverse."""
    group, size = _group(bits)
    squeezed = _whole(data, size).reshape(-1, size)
    spread = np.zeros((len(squeezed), group), np.uint8)
    words = spread.reshape(-1).view(f"<u{group}")
    for start in range(0, words.size, _CHUNK // group):
        rows = slice(start, start + _CHUNK // group)
        spread[rows, :size] = squeezed[rows]
        merged = words[rows]
        for count, mask in reversed(_merges(bits, group)):
            merged = (merged & mask) | ((merged & (mask << bits * count)) << (8 - bits) * count)
        words[rows] = merged
    return spread.reshape(-1)


def _group(bits: int) -> tuple[int, int]:
    """The fewest codes that fill whole bytes, and those bytes: (2, 1) for 4 bits, (8, 3) for 3, (4, 3) for 6."""
    group = 8 // gcd(8, bits)
    return group, bits * group // 8


def _merges(bits: int, group: int) -> list[tuple[int, int]]:
    """Each step of squeezing a group: how many codes a field holds already, and the mask of every other field."""
    steps: list[tuple[int, int]] = []
    count = 1
    while count < group:
        field = (1 << bits * count) - 1
        steps.append((count, sum(field << start for start in range(0, 8 * group, 16 * count))))
        count *= 2
    return steps


def _whole(data: NDArray[np.uint8], group: int) -> NDArray[np.uint8]:
    """`data`, contiguous, with zeros that complete its last group."""
    missing = -data.size % group
    return np.concatenate([data, np.zeros(missing, np.uint8)]) if missing else np.ascontiguousarray(data)
