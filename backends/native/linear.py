"""A linear operation as a compiled kernel: `build(spec, isa) -> LinearKernel`, `pack(weight)`, `kernel(x, packed)`."""

from __future__ import annotations

import ctypes
import os
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np

from qcc.ir import target
from qcc.ir.errors import BadInput, NotSupported
from qcc.ir.levels import level_dtype
from qcc.ir.quantized import Quantized

from . import compile, isa
from .emit_amx import TiledText
from .emit_linear import LinearText, Workspace
from .emit_lut import LookupText, LookupWorkspace
from .isa import Isa
from .linear_spec import LinearSpec, Schedule, check_schedule, default_schedule
from .memory import ALIGNMENT, READ_AHEAD, aligned
from .pool import launcher
from .storage import Storage


@dataclass(frozen=True)
class Fixed:
    """The scale and zero point of activations that are known before: `x = (code - zero) scale`."""

    scale: float
    zero: int
    signed: bool = False
    """Whether codes are s8 instead of u8."""

    @property
    def stored(self) -> int:
        """The zero point of the codes -128 to 127 that are multiplied."""
        return self.zero if self.signed else self.zero - 128


@dataclass(frozen=True)
class Packed:
    """A weight in the layout of a kernel: `data` uint8 [bytes], and the factor that all its values share."""

    data: np.ndarray
    alpha: float
    fixed: Fixed | None = None
    """What was given for activations of a fixed scale."""
    offset: np.ndarray | None = None
    """float32 [N] that their zero point adds to every row of a product."""

    @property
    def bytes(self) -> int:
        """Bytes that a kernel reads for one product."""
        return self.data.size


class LinearKernel:
    """`y[M, N] = x[M, K] w[N, K]^T + bias` for one shape and format, on processors with the instructions of `isa`."""

    def __init__(self, text: LinearText) -> None:
        self.spec, self.isa, self.schedule, self.storage = text.spec, text.isa, text.schedule, text.storage
        self.workspace, self.panel_bytes = text.workspace, text.panel_bytes
        self.source = text.text()
        isa.check(text.isa, target.load("cpu"))
        self._library = compile.load(compile.compile_c(self.source, text.isa.flags))
        if text.isa.has("amx_tile") and (refused := self._library.qcc_ask_for_tiles()):
            raise NotSupported(
                f"the system grants this process no tiles: {os.strerror(refused)}", hint="compile it for avx512_vbmi"
            )
        self._run = self._library.qcc_linear
        self._run.restype = None
        self._run.argtypes = [
            *[ctypes.c_void_p] * 4,
            ctypes.c_long,
            ctypes.c_float,
            ctypes.c_void_p,
            ctypes.c_int,
            ctypes.c_void_p,
            ctypes.c_float,
            ctypes.c_int,
        ]

    def pack(self, weight: Quantized, fixed: Fixed | None = None) -> Packed:
        """The bits of a weight [N, K] in the kernel's layout. `BadInput` for another format or shape.

        A kernel for activations of a fixed scale takes the scale here.
        """
        return pack(self.spec, self.storage, weight, fixed)

    def __call__(
        self,
        x: np.ndarray,
        packed: Packed,
        bias: np.ndarray | None = None,
        *,
        out: np.ndarray | None = None,
        threads: int = 1,
    ) -> np.ndarray:
        """`y` float32 [M, N] of `x` [M, K], in the dtype of the spec. `BadInput` names the buffer that does not fit."""
        call = self.prepared(x, packed, bias, out=out, threads=threads)
        call()
        return call.y

    def prepared(
        self,
        x: np.ndarray,
        packed: Packed,
        bias: np.ndarray | None = None,
        *,
        out: np.ndarray | None = None,
        threads: int = 1,
    ) -> Call:
        """The same call, checked once and made as often as one likes."""
        spec = self.spec
        _check("x", x, level_dtype(spec.activation.dtype).numpy, (None, spec.k))
        m = x.shape[0]
        y = np.empty((m, spec.n), np.float32) if out is None else out
        _check("out", y, np.float32, (m, spec.n))
        if not y.flags.writeable:
            raise BadInput("out is read-only")
        if bias is not None:
            _check("bias", bias, np.float32, (spec.n,))
        if packed.offset is not None:
            bias = packed.offset if bias is None else bias + packed.offset
        _check("packed", packed.data, np.uint8, (self.storage.bytes,))
        if packed.data.ctypes.data % ALIGNMENT:
            raise BadInput(f"packed weights begin at a multiple of {ALIGNMENT} bytes", hint="use what `pack` returned")
        cores = target.load("cpu").cores
        if not 1 <= threads <= cores:
            raise BadInput(f"{threads} threads on {cores} cores", hint=f"1 to {cores}")
        scratch = aligned(m * self.workspace.bytes + threads * self.panel_bytes + ALIGNMENT)
        return Call(self, x, packed, bias, y, scratch, threads)

    @cached_property
    def run(self) -> ctypes._NamedFuncPointer:  # pyright: ignore[reportPrivateUsage]
        """The C function `qcc_linear`."""
        return self._run


class Call:
    """A kernel with its buffers: calling it computes `y` again."""

    def __init__(
        self,
        kernel: LinearKernel,
        x: np.ndarray,
        packed: Packed,
        bias: np.ndarray | None,
        y: np.ndarray,
        scratch: np.ndarray,
        threads: int,
    ) -> None:
        self.y = y
        self._held = (kernel, x, packed, bias, scratch)
        self._run = kernel.run
        self._arguments = (
            x.ctypes.data,
            packed.data.ctypes.data,
            None if bias is None else bias.ctypes.data,
            y.ctypes.data,
            x.shape[0],
            packed.alpha,
            scratch.ctypes.data,
            threads,
            launcher() if threads > 1 else None,
            packed.fixed.scale if packed.fixed else 0.0,
            packed.fixed.stored if packed.fixed else 0,
        )

    def __call__(self) -> None:
        self._run(*self._arguments)


def pack(spec: LinearSpec, stored: Storage, weight: Quantized, fixed: Fixed | None = None) -> Packed:
    """`LinearKernel.pack` for a kernel that is not compiled yet."""
    if (fixed is not None) != spec.activation.fixed:
        raise BadInput(f"{spec}: a scale of activations is {'missing' if spec.activation.fixed else 'not taken'}")
    if weight.format != spec.weight or weight.shape != (spec.n, spec.k):
        raise BadInput(
            f"the kernel is for [{spec.n}, {spec.k}] in {str(spec.weight)!r}, the weight is {list(weight.shape)} "
            f"in {str(weight.format)!r}"
        )
    levels = {name: _stored(weight.parts[name], level.dtype) for name, level in spec.levels.items()}
    alpha = spec.lattice.step
    for name in spec.tensor_levels:
        alpha *= float(np.asarray(weight.parts[name]).astype(np.float32).reshape(()))
    bits = {"codes": spec.weight.bits} | {name: 8 for name, held in levels.items() if held.dtype.itemsize == 1}
    records = stored.layout.pack({"codes": weight.codes, **levels}, bits, weight.shape)
    data = aligned(stored.bytes + READ_AHEAD)
    data[: records.size] = records.reshape(-1)
    return Packed(data[: stored.bytes], alpha, fixed, fixed and zero_offset(weight, fixed))


def build(spec: LinearSpec, isa: Isa, schedule: Schedule | None = None) -> LinearKernel:
    """The kernel, generated and compiled; `NotSupported` where this host lacks its instructions."""
    return LinearKernel(generate(spec, isa, schedule))


def generate(spec: LinearSpec, isa: Isa, schedule: Schedule | None = None) -> LinearText:
    """The C text of the kernel, by dot products or table lookup. Errors as of `check_schedule`."""
    schedule = schedule or default_schedule(spec, isa)
    check_schedule(spec, isa, schedule)
    stored = spec.storage(schedule)
    groups = stored.groups * stored.supers
    sizes = stored.columns, spec.activation.parts, groups, spec.activation.grouped and groups > 1
    if schedule.unpack == "lookup":
        return LookupText(spec, isa, schedule, stored, LookupWorkspace(*sizes))
    text = TiledText if isa.has("amx_tile") else LinearText
    return text(spec, isa, schedule, stored, Workspace(*sizes))


def zero_offset(weight: Quantized, fixed: Fixed) -> np.ndarray:
    """What the zero point of activations adds to every row of a product: float32 [N]."""
    sums = [part.decode().astype(np.float64).sum(1) for _, part in weight.chunks(1 << 10)]
    return (-fixed.scale * fixed.stored * np.concatenate(sums)).astype(np.float32)


def _stored(numbers: np.ndarray, dtype: str) -> np.ndarray:
    """The numbers of a level in the dtype that lies in memory."""
    held = np.asarray(numbers)
    if dtype[0] in "iu":
        return held.astype(np.int8 if dtype[0] == "i" else np.uint8)
    return held.astype(level_dtype(dtype).numpy)


def _check(name: str, array: np.ndarray, dtype: np.dtype[Any] | type, shape: tuple[int | None, ...]) -> None:
    """`BadInput` where a buffer is not what a kernel reads."""
    wanted = "[" + ", ".join("M" if d is None else str(d) for d in shape) + f"] {np.dtype(dtype)}"
    fits = array.ndim == len(shape) and all(d is None or d == s for d, s in zip(shape, array.shape, strict=True))
    if array.dtype != dtype or not fits:
        raise BadInput(f"{name} is {list(array.shape)} {array.dtype}", hint=f"pass {wanted}")
    if not array.flags.c_contiguous:
        raise BadInput(f"{name} is not contiguous", hint="np.ascontiguousarray")
    if not array.flags.aligned:
        raise BadInput(f"{name} is not aligned to its {np.dtype(dtype).itemsize} bytes", hint="copy it")
