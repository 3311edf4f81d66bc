"""Images as convolution kernels read them: NCHWc, channels in blocks of 16 side by side, with a halo around each plane.

    Blocked(c, h, w, block, halo)      uint8 [images, blocks, top + h + bottom, left + w + right, block]

A byte is an unsigned code: u8 codes as they are, s8 codes plus 128, which is what the dot instructions take. The halo
holds the code of zero, so that a convolution reads across the border of an image as it does within; whoever writes an
image writes its halo. Images of up to 4 channels, which only a first layer has, lie in blocks of 4.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np

from qcc.ir.errors import BadInput
from qcc.ir.layout import Layout

from .memory import READ_AHEAD, aligned

BLOCK = 16
"""Channels in a block: the lanes of a vector of 32-bit sums."""
NARROW = 4
"""Channels in a block of an image of few channels."""
Sides = tuple[int, int, int, int]
"""Pixels at the top, left, bottom and right, in the order of ONNX's `pads`."""


@dataclass(frozen=True)
class Blocked:
    """The memory form of images of one size."""

    channels: int
    height: int
    width: int
    dtype: str = "u8"
    """`u8` or `s8` codes, or `f32` numbers, which only results are."""
    halo: Sides = (0, 0, 0, 0)
    block: int = BLOCK
    """Channels that lie side by side."""

    def __post_init__(self) -> None:
        if min(self.channels, self.height, self.width) < 1 or min(self.halo) < 0:
            raise BadInput(f"images of {self.channels} x {self.height} x {self.width} with halo {self.halo}")
        if self.dtype not in ("u8", "s8", "f32"):
            raise BadInput(f"images of {self.dtype}", hint="u8, s8 or f32")
        if self.block not in (NARROW, BLOCK):
            raise BadInput(f"blocks of {self.block} channels", hint=f"{NARROW} or {BLOCK}")

    @property
    def blocks(self) -> int:
        """Blocks of an image."""
        return -(-self.channels // self.block)

    @property
    def rows(self) -> int:
        """Rows of a plane, halo included."""
        return self.halo[0] + self.height + self.halo[2]

    @property
    def columns(self) -> int:
        """Pixels of a row, halo included."""
        return self.halo[1] + self.width + self.halo[3]

    @property
    def item(self) -> np.dtype[Any]:
        """What is stored. Any: numpy does not name its scalars here."""
        return np.dtype(np.float32 if self.dtype == "f32" else np.uint8)

    @property
    def row(self) -> int:
        """Elements from a row to the next."""
        return self.columns * self.block

    @property
    def plane(self) -> int:
        """Elements from a block of channels to the next."""
        return self.rows * self.row

    @property
    def image(self) -> int:
        """Elements of an image."""
        return self.blocks * self.plane

    @property
    def interior(self) -> int:
        """Elements before the first pixel inside the halo."""
        return self.halo[0] * self.row + self.halo[1] * self.block

    @property
    def flip(self) -> int:
        """What turns a code into the stored byte: its highest bit."""
        return 128 if self.dtype == "s8" else 0

    @cached_property
    def layout(self) -> Layout:
        """Where a code of [images, channels, rows, columns] lies."""
        return Layout.parse(f"n(n0) c(c1 c0:{self.block}) h(h0) w(w0) -> n0 c1 h0 w0 c0")

    def empty(self, images: int, zero: int = 0) -> np.ndarray:
        """Memory for some images, [images, elements], all of it the code of zero; f32 images are zeros."""
        data = aligned(images * self.image * self.item.itemsize + READ_AHEAD)[
            : images * self.image * self.item.itemsize
        ]
        held = data.view(self.item).reshape(images, self.image)
        held.fill(0 if self.dtype == "f32" else self.stored(zero))
        return held

    def stored(self, code: int) -> int:
        """The byte of a code. `BadInput` where the dtype has no such code."""
        low, high = (0, 255) if self.dtype == "u8" else (-128, 127)
        if not low <= code <= high:
            raise BadInput(f"{code} is no {self.dtype} code", hint=f"{low} to {high}")
        return code + self.flip

    def pack(self, images: np.ndarray, zero: int = 0) -> np.ndarray:
        """The memory form of NCHW codes; halo and channels that fill a block hold the code of zero."""
        wanted = np.dtype({"u8": np.uint8, "s8": np.int8, "f32": np.float32}[self.dtype])
        if images.dtype != wanted or images.shape[1:] != (self.channels, self.height, self.width):
            raise BadInput(
                f"images are {list(images.shape)} {images.dtype}",
                hint=f"pass [N, {self.channels}, {self.height}, {self.width}] {wanted}",
            )
        held = self.empty(len(images), zero)
        stored = images.view(np.uint8) ^ np.uint8(self.flip) if self.dtype == "s8" else images
        inside = self._inside(held)
        filled = inside[0, 0, 0, 0, 0] if inside.size else held.dtype.type(0)
        padded = np.full((len(images), self.blocks * self.block, self.height, self.width), filled, self.item)
        padded[:, : self.channels] = stored
        inside[...] = self.layout.arrange(padded).reshape(inside.shape)
        return held

    def unpack(self, held: np.ndarray) -> np.ndarray:
        """NCHW codes of their memory form."""
        inside = np.ascontiguousarray(self._inside(held))
        shape = (len(held), self.blocks * self.block, self.height, self.width)
        images = self.layout.restore(inside.reshape(-1), shape)[:, : self.channels]
        if self.dtype == "s8":
            return np.ascontiguousarray(images ^ np.uint8(128)).view(np.int8)
        return np.ascontiguousarray(images)

    def _inside(self, held: np.ndarray) -> np.ndarray:
        """The view [images, blocks, height, width, block] of the pixels within the halo."""
        planes = held.reshape(len(held), self.blocks, self.rows, self.columns, self.block)
        top, left, _, _ = self.halo
        return planes[:, :, top : top + self.height, left : left + self.width]

    def __str__(self) -> str:
        around = f" halo {self.halo}" if any(self.halo) else ""
        return f"{self.dtype} {self.channels}x{self.height}x{self.width} in blocks of {self.block}{around}"
