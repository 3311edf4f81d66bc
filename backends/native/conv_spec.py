"""What a convolution kernel computes, and the parameters that only change its speed.

    y = clamp(round((bias + sum over taps and channels of (x - x_zero) w) * x_scale w_scale / y_scale) + y_zero)

Codes of 8 bits: activations u8 or s8 with one scale and zero point, weights s8 with a scale for each output channel.
This is ONNX's QLinearConv, to the bit: sums are exact, and are scaled once, in float32.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from functools import cached_property

from qcc.ir.errors import BadInput, NotSupported

from .blocked import BLOCK, NARROW, Blocked, Sides
from .isa import Isa
from .memory import READ_AHEAD
from .rows_expression import Node

Pair = tuple[int, int]
TAPS = 4
"""Taps, or channels, that a dot instruction sums."""
LARGEST = ((1 << 31) - 1) // (255 * 128)
"""Products whose sum always fits an int32."""


@dataclass(frozen=True)
class ConvSpec:
    """A convolution. Raises `NotSupported` with the reason where no kernel is generated for it."""

    x: Blocked
    """The images that come in; their halo covers the padding."""
    channels: int
    """Output channels."""
    kernel: Pair
    strides: Pair = (1, 1)
    pads: Sides = (0, 0, 0, 0)
    dilations: Pair = (1, 1)
    groups: int = 1
    dtype: str = "u8"
    """Of the result: `u8`, `s8` or `f32`."""
    halo: Sides = (0, 0, 0, 0)
    """Of the result."""
    epilogue: Node | None = None
    """What becomes of every number before it is rounded: an expression of `x`, and of numbers `n0[1]`, `n1[1]` ... that
    are given with the weight."""

    def __post_init__(self) -> None:
        if min(*self.kernel, *self.strides, *self.dilations, self.groups, self.channels) < 1 or min(self.pads) < 0:
            raise BadInput(f"a convolution with a part that is no positive number: {self}")
        if self.x.channels % self.groups or self.channels % self.groups:
            raise BadInput(f"{self.groups} groups of {self.x.channels} channels that become {self.channels}")
        if self.x.dtype == "f32":
            raise BadInput("a convolution of f32 images", hint="quantize them to u8 or s8")
        if any(have < need for have, need in zip(self.x.halo, self.pads, strict=True)):
            raise BadInput(f"the halo {self.x.halo} of the input is less than the padding {self.pads}")
        if min(self.size) < 1:
            raise BadInput(f"a kernel of {self.reach} pixels on {self.x.rows} x {self.x.columns} of the padded image")
        if self.products > LARGEST:
            raise NotSupported(f"sums of {self.products} products: int32 holds {LARGEST} of the largest")
        _ = self.y

    @staticmethod
    def of(
        image: tuple[int, int, int],
        channels: int,
        kernel: Pair,
        strides: Pair = (1, 1),
        pads: Sides = (0, 0, 0, 0),
        dilations: Pair = (1, 1),
        groups: int = 1,
        *,
        dtypes: tuple[str, str] = ("u8", "u8"),
        halo: Sides = (0, 0, 0, 0),
    ) -> ConvSpec:
        """The convolution of images [C, H, W] whose halo is just the padding."""
        x = Blocked(*image, dtypes[0], pads, NARROW if image[0] <= NARROW else BLOCK)
        return ConvSpec(x, channels, kernel, strides, pads, dilations, groups, dtypes[1], halo)

    def __str__(self) -> str:
        parts = [f"conv {self.kernel[0]}x{self.kernel[1]} {self.x} -> {self.channels} {self.dtype}"]
        parts += [f"strides {self.strides}"] * (self.strides != (1, 1)) + [f"pads {self.pads}"] * any(self.pads)
        parts += [f"dilations {self.dilations}"] * (self.dilations != (1, 1))
        parts += [f"groups {self.groups}"] * (self.groups > 1) + [f"then {self.epilogue}"] * (self.epilogue is not None)
        return " ".join(parts)

    @property
    def reach(self) -> Pair:
        """Pixels from the first tap to the last, both counted."""
        (kh, kw), (dh, dw) = self.kernel, self.dilations
        return (kh - 1) * dh + 1, (kw - 1) * dw + 1

    @property
    def size(self) -> Pair:
        """Height and width of the result."""
        top, left, bottom, right = self.pads
        rows, columns = self.x.height + top + bottom, self.x.width + left + right
        return (rows - self.reach[0]) // self.strides[0] + 1, (columns - self.reach[1]) // self.strides[1] + 1

    @property
    def y(self) -> Blocked:
        """The images that go out."""
        return Blocked(self.channels, *self.size, self.dtype, self.halo)

    @property
    def weight(self) -> tuple[int, int, int, int]:
        """The shape of the weight: [channels, input channels / groups, kernel height, kernel width]."""
        return (self.channels, self.x.channels // self.groups, *self.kernel)

    @property
    def products(self) -> int:
        """Products in a sum."""
        return self.weight[1] * self.kernel[0] * self.kernel[1]

    @property
    def macs(self) -> int:
        """Products in a result."""
        return self.products * self.channels * self.size[0] * self.size[1]

    @property
    def depthwise(self) -> bool:
        """Whether each channel has a kernel of its own, and taps are what a dot instruction sums."""
        alone = self.groups == self.x.channels == self.channels and self.x.block == BLOCK
        return alone and self.overread <= READ_AHEAD

    @property
    def overread(self) -> int:
        """Bytes that a depthwise kernel of fewer than four columns reads behind the last pixel."""
        return max(0, TAPS - self.kernel[1]) * self.dilations[1] * BLOCK

    @property
    def numbers(self) -> int:
        """Numbers that the epilogue takes."""
        names = [n.name for n in self.epilogue.walk() if n.op == "single"] if self.epilogue else []
        return max((int(name[1:]) + 1 for name in names), default=0)

    @property
    def output_blocks(self) -> int:
        """Blocks of 16 output channels."""
        return -(-self.channels // BLOCK)

    @cached_property
    def first_blocks(self) -> tuple[int, ...]:
        """For each block of output channels, the first block of input channels that it is made of."""
        return tuple(min(low // self.x.block, self.x.blocks - self.input_blocks) for low, _ in self._inputs())

    @cached_property
    def input_blocks(self) -> int:
        """Blocks of input channels that a block of output channels is made of: all, or those that its groups touch."""
        return max((high - 1) // self.x.block - low // self.x.block + 1 for low, high in self._inputs())

    def _inputs(self) -> Iterator[tuple[int, int]]:
        """For each block of output channels, the range of input channels that its groups read."""
        to_group, per_group = self.channels // self.groups, self.x.channels // self.groups
        for first in range(0, self.channels, BLOCK):
            last = min(first + BLOCK, self.channels) - 1
            yield first // to_group * per_group, (last // to_group + 1) * per_group


@dataclass(frozen=True)
class ConvSchedule:
    """The parameters of a generator: `rows` x `columns` pixels by `vectors` blocks of channels are summed at once."""

    rows: int = 1
    columns: int = 1
    vectors: int = 1
    chunk: int = 0
    """Rows of an image that all channels are computed of before the next rows; 0: all rows of a channel first."""

    def __str__(self) -> str:
        order = f", {self.chunk} rows at a time" if self.chunk else ""
        return f"{self.rows}x{self.columns} pixels by {self.vectors}x16 channels{order}"


def default_schedule(spec: ConvSpec, isa: Isa) -> ConvSchedule:
    """The schedule that is taken where nothing was measured: the least work beside the sums."""
    return min(space(spec, isa), key=lambda s: _cost(spec, s))


def space(spec: ConvSpec, isa: Isa) -> Iterator[ConvSchedule]:
    """Every schedule that can be generated for a convolution, whose sums the registers hold."""
    height, width = spec.size
    registers = 31 if isa.sums > 8 else 8
    shared = len(set(spec.first_blocks)) == 1
    for vectors in (1, 2, 3, 4) if shared and not spec.depthwise else (1,):
        if vectors > spec.output_blocks:
            break
        fours = spec.kernel[0] * -(-spec.kernel[1] // TAPS) if registers > 16 else 0  # else they come from the cache
        held = min(fours, 10) if spec.depthwise else vectors
        for rows in range(1, min(height, 4) + 1):
            for columns in range(1, min(width, 16) + 1):
                if rows * columns * vectors <= max(1, registers - 1 - held):
                    for chunk in (0, 4, 8, 16):
                        yield ConvSchedule(rows, columns, vectors, chunk)


def _cost(spec: ConvSpec, s: ConvSchedule) -> float:
    """Instructions of all tiles, roughly, and what a cache has to read again."""
    (height, width), quads = spec.size, -(-spec.products // TAPS)
    tiles = -(-height // s.rows) * -(-width // s.columns)
    pixels, stores = s.rows * s.columns, s.rows * -(-s.columns // 4)
    if spec.depthwise:
        fours = spec.kernel[0] * -(-spec.kernel[1] // TAPS)
        loads = ((s.rows - 1) * spec.strides[0] + spec.reach[0]) * (s.columns + spec.kernel[1] // TAPS)
        return tiles * (2.0 * loads + pixels * (fours + 3) + 6 * stores + 2 * fours + 10)
    full, rest = divmod(spec.output_blocks, s.vectors)
    work = 0.0
    for groups, vectors in ((full, s.vectors), (1 if rest else 0, rest)):
        dots = max(pixels * vectors, pixels + vectors)
        work += groups * (quads * (dots + 0.25 * (pixels + vectors)) + vectors * (3 * pixels + 6 * stores) + 20)
    held = spec.input_blocks * spec.x.plane * BLOCK // 16
    weights = spec.output_blocks * BLOCK * spec.products
    chunks = height // s.chunk if 0 < s.chunk < height else 1
    again = (full + (rest > 0)) * held if chunks == 1 else chunks * weights + held
    return tiles * work + again / 32
