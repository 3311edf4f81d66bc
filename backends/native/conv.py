"""A convolution of 8-bit codes as a compiled kernel: `build(spec, isa)`, `pack(weight, ...)`, `kernel(x, packed)`."""

from __future__ import annotations

import ctypes
from collections.abc import Sequence
from copy import copy
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from qcc.ir import target
from qcc.ir.errors import BadInput
from qcc.ir.layout import Layout
from qcc.ir.layout import pack as pack_codes

from . import compile, isa
from .blocked import BLOCK, Blocked
from .conv_spec import TAPS, ConvSchedule, ConvSpec, default_schedule, space
from .emit_conv import ConvText
from .isa import Isa
from .memory import ALIGNMENT, READ_AHEAD, aligned
from .pool import launcher


@dataclass(frozen=True)
class Scales:
    """How codes become numbers: `x = (code - zero) scale`. An f32 result has no use for `y` and `y_zero`."""

    x: float
    weight: np.ndarray
    """float32 [channels]."""
    y: float = 1.0
    x_zero: int = 0
    y_zero: int = 0


@dataclass(frozen=True)
class PackedConv:
    """A weight in the layout of a kernel, and what its sums start with and are multiplied by."""

    weight: np.ndarray
    """int8 [bytes]."""
    start: np.ndarray
    """int32 [blocks of output channels, 16]."""
    scale: np.ndarray
    """float32 [blocks of output channels, 16]."""
    codes: np.ndarray
    """int32 [3]: the byte of zero in the result, and the ends of the clamp."""
    clamp: np.ndarray
    """float32 [2]: the ends of the clamp of an f32 result."""
    numbers: np.ndarray
    """float32: the scale of the result, then the numbers of the epilogue."""


class ConvKernel:
    """`y = conv(x, w) + bias`, rounded to codes as ONNX's QLinearConv does, for images of one size."""

    def __init__(self, text: ConvText) -> None:
        self.spec, self.isa, self.schedule = text.spec, text.isa, text.schedule
        self._text = text
        self.source = text.text()
        isa.check(text.isa, target.load("cpu"))
        self._run = compile.load(compile.compile_c(self.source, text.isa.flags)).qcc_conv
        self._run.restype = None
        pointer = ctypes.c_void_p
        self._run.argtypes = [*[pointer] * 5, *[ctypes.c_long] * 3, *[pointer] * 3, ctypes.c_int, pointer]

    def resized(self, height: int, width: int) -> ConvKernel:
        """The same kernel for images of another size, in the same schedule; packed weights serve both."""
        other = copy(self)
        other.spec = replace(self.spec, x=replace(self.spec.x, height=height, width=width))
        return other

    def pack(
        self,
        weight: np.ndarray,
        scales: Scales,
        bias: np.ndarray | None = None,
        clamp: tuple[float, float] = (-np.inf, np.inf),
        numbers: Sequence[float] = (),
    ) -> PackedConv:
        """A weight int8 [channels, input channels / groups, kernel height, kernel width] in the kernel's layout.

        `bias` is int32 [channels], in units of `scales.x * scales.weight`; `clamp` bounds the result, as a ReLU does,
        where there is no epilogue; `numbers` are those of the epilogue.
        `BadInput` for another shape, a scale that is no positive number, or sums that an int32 does not hold.
        """
        return pack(replace(self._text, spec=self.spec), weight, scales, bias, clamp, numbers)

    def __call__(
        self, x: np.ndarray, packed: PackedConv, *, out: np.ndarray | None = None, threads: int = 1
    ) -> np.ndarray:
        """`y` of `x`, [images, elements] in the forms `spec.y` and `spec.x`; the halo of `y` holds the code of zero.

        Both must be memory that `Blocked.empty` or `Blocked.pack` gave, or as long and aligned. `BadInput` names what
        does not fit.
        """
        call = self.prepared(x, packed, out=out, threads=threads)
        call()
        return call.y

    def prepared(
        self, x: np.ndarray, packed: PackedConv, *, out: np.ndarray | None = None, threads: int = 1
    ) -> ConvCall:
        """The same call, checked once and made as often as one likes."""
        spec = self.spec
        _check("x", x, spec.x, None)
        y = spec.y.empty(len(x)) if out is None else out
        _check("out", y, spec.y, len(x))
        if not y.flags.writeable:
            raise BadInput("out is read-only")
        if packed.weight.size != self._text.weight_block * spec.output_blocks:
            raise BadInput(
                f"a packed weight of {packed.weight.size} bytes", hint="use what `pack` of this kernel returned"
            )
        cores = target.load("cpu").cores
        if not 1 <= threads <= cores:
            raise BadInput(f"{threads} threads on {cores} cores", hint=f"1 to {cores}")
        return ConvCall(self, x, packed, y, threads)

    @property
    def run(self) -> ctypes._NamedFuncPointer:  # pyright: ignore[reportPrivateUsage]
        """The C function `qcc_conv`."""
        return self._run


class ConvCall:
    """A kernel with its buffers: calling it computes `y` again."""

    def __init__(self, kernel: ConvKernel, x: np.ndarray, packed: PackedConv, y: np.ndarray, threads: int) -> None:
        self.y, self._held, self._run = y, (kernel, x, packed), kernel.run
        buffers = (x, packed.weight, packed.start, packed.scale, y)
        ends = (packed.codes.ctypes.data, packed.clamp.ctypes.data, packed.numbers.ctypes.data)
        pool = launcher() if threads > 1 else None
        size = (len(x), kernel.spec.x.height, kernel.spec.x.width)
        self._arguments = (*(b.ctypes.data for b in buffers), *size, *ends, threads, pool)

    def __call__(self) -> None:
        self._run(*self._arguments)


def pack(
    text: ConvText,
    weight: np.ndarray,
    scales: Scales,
    bias: np.ndarray | None = None,
    clamp: tuple[float, float] = (-np.inf, np.inf),
    numbers: Sequence[float] = (),
) -> PackedConv:
    """`ConvKernel.pack` of a kernel that is not compiled yet."""
    spec = text.spec
    if weight.dtype != np.int8 or weight.shape != spec.weight:
        raise BadInput(f"the weight is {list(weight.shape)} {weight.dtype}", hint=f"pass {list(spec.weight)} int8")
    if bias is not None and (bias.dtype != np.int32 or bias.shape != (spec.channels,)):
        raise BadInput(f"the bias is {list(bias.shape)} {bias.dtype}", hint=f"pass [{spec.channels}] int32")
    if len(numbers) != spec.numbers or (spec.epilogue is not None and clamp != (-np.inf, np.inf)):
        raise BadInput(
            f"{len(numbers)} numbers and clamp {clamp} for epilogue {spec.epilogue}, which takes {spec.numbers}"
        )
    start = _starts(weight, spec.x.stored(scales.x_zero), bias)
    factors = _factors(spec, scales)
    lanes = (spec.output_blocks, BLOCK)
    return PackedConv(
        _packed(text, weight),
        _filled(start, np.dtype(np.int32), lanes),
        _filled(factors, np.dtype(np.float32), lanes),
        _codes(spec, scales, clamp),
        np.array(clamp, np.float32),
        np.array([scales.y, *numbers], np.float32),
    )


def build(spec: ConvSpec, isa: Isa, schedule: ConvSchedule | None = None) -> ConvKernel:
    """The kernel, generated and compiled; `NotSupported` where this host lacks its instructions."""
    return ConvKernel(generate(spec, isa, schedule))


def generate(spec: ConvSpec, isa: Isa, schedule: ConvSchedule | None = None) -> ConvText:
    """The C text of the kernel. `BadInput` for a schedule whose sums the registers do not hold."""
    chosen = schedule or default_schedule(spec, isa)
    if chosen not in (offered := set(space(spec, isa))):
        raise BadInput(f"{spec} cannot be computed in {chosen}", hint=f"one of the {len(offered)} of `space`")
    return ConvText(spec, isa, chosen)


def _packed(text: ConvText, weight: np.ndarray) -> np.ndarray:
    """The bytes of a weight, each block of 16 output channels with the input channels that it is made of."""
    spec = text.spec
    layout, arranged = (_by_taps if spec.depthwise else _by_channels)(spec, text.starts, weight)
    data = aligned(text.weight_block * spec.output_blocks + READ_AHEAD)
    stored = pack_codes(arranged, 8, layout).reshape(-1)
    data[: stored.size] = stored
    return data[: stored.size].view(np.int8)


def _starts(weight: np.ndarray, zero: int, bias: np.ndarray | None) -> np.ndarray:
    """What sums start with, int64 [channels]: activations count from the byte of zero."""
    flat = weight.reshape(len(weight), -1).astype(np.int64)
    start = (0 if bias is None else bias.astype(np.int64)) - zero * flat.sum(1)
    least, most = start + 255 * np.minimum(flat, 0).sum(1), start + 255 * np.maximum(flat, 0).sum(1)
    outside = np.flatnonzero((np.minimum(least, start) < -(1 << 31)) | (np.maximum(most, start) >= 1 << 31))
    if outside.size:
        raise BadInput(
            f"the bias of channel {outside[0]} takes its sums beyond int32", hint="a larger scale of the weight"
        )
    return start


def _factors(spec: ConvSpec, scales: Scales) -> np.ndarray:
    """What sums are multiplied by, float32 [channels], in the order in which ONNX Runtime rounds it."""
    weight = np.asarray(scales.weight, np.float32)
    if weight.shape != (spec.channels,):
        raise BadInput(f"scales of the weight are {list(weight.shape)}", hint=f"pass [{spec.channels}]")
    factors = np.float32(scales.x) * weight
    if spec.dtype != "f32" and spec.epilogue is None:
        factors = factors / np.float32(scales.y)
    if not (np.isfinite(factors) & (factors > 0)).all():
        channel = int(np.flatnonzero(~(np.isfinite(factors) & (factors > 0)))[0])
        raise BadInput(f"the scale of channel {channel} is {factors[channel]}", hint="scales are positive numbers")
    return factors


def _codes(spec: ConvSpec, scales: Scales, clamp: tuple[float, float]) -> np.ndarray:
    """int32 [3]: the byte of zero, and the bytes of the ends of the clamp."""
    if not clamp[0] <= clamp[1]:
        raise BadInput(f"a clamp from {clamp[0]} to {clamp[1]}")
    if spec.dtype == "f32":
        return np.array([0, 0, 255], np.int32)
    zero = spec.y.stored(scales.y_zero)
    ends = np.clip(np.rint(np.array(clamp, np.float32) / np.float32(scales.y)) + zero, 0, 255)
    return np.array([zero, *ends], np.int32)


def _by_channels(spec: ConvSpec, starts: Sequence[int], weight: np.ndarray) -> tuple[Layout, np.ndarray]:
    """[output channels, input channels of its block, rows, columns]; zeros where a group has no part."""
    block, held = spec.x.block, spec.input_blocks * spec.x.block
    wide = np.zeros((spec.output_blocks * BLOCK, held, *spec.kernel), np.int8)
    to_group, per_group = spec.channels // spec.groups, spec.x.channels // spec.groups
    for channel, one in enumerate(weight):
        first = channel // to_group * per_group - spec.first_blocks[channel // BLOCK] * block
        wide[channel, first : first + per_group] = one
    order = f"o(o1 o0:{BLOCK}) c(c2 c1:{block // TAPS} c0:{TAPS}) h(h0) w(w0) -> o1 c2 h0 w0 c1 o0 c0"
    return Layout.parse(order), wide


def _by_taps(spec: ConvSpec, starts: Sequence[int], weight: np.ndarray) -> tuple[Layout, np.ndarray]:
    """[channels, rows, fours of taps, taps]: a tap that two fours hold is counted in the first."""
    kh, kw = spec.kernel
    wide, counted = np.zeros((spec.output_blocks * BLOCK, kh, len(starts), TAPS), np.int8), 0
    for j, start in enumerate(starts):
        end = min(start + TAPS, kw)
        wide[: spec.channels, :, j, counted - start : end - start] = weight[:, 0, :, counted:end]
        counted = end
    return Layout.parse(f"o(o1 o0:{BLOCK}) h(h0) j(j0) t(t0) -> o1 h0 j0 o0 t0"), wide


def _filled(numbers: np.ndarray, dtype: np.dtype[Any], lanes: tuple[int, int]) -> np.ndarray:
    """The numbers of each channel in whole vectors; zeros behind the last. Any: numpy does not name its scalars."""
    held = aligned(4 * lanes[0] * lanes[1]).view(dtype)
    held[: numbers.size] = numbers
    return held.reshape(lanes)


def _check(name: str, held: np.ndarray, form: Blocked, images: int | None) -> None:
    """`BadInput` where a buffer is not the images that a kernel reads or writes."""
    fits = held.ndim == 2 and held.shape[1] == form.image and images in (None, len(held))
    if held.dtype != form.item or not fits:
        count = "N" if images is None else images
        raise BadInput(
            f"{name} is {list(held.shape)} {held.dtype}", hint=f"pass [{count}, {form.image}] {form.item}: {form}"
        )
    if not held.flags.c_contiguous or held.ctypes.data % ALIGNMENT:
        raise BadInput(
            f"{name} is not contiguous at a multiple of {ALIGNMENT} bytes", hint="use `Blocked.empty` or `pack`"
        )
