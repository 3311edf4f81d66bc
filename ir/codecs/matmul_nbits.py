"""The inputs of `com.microsoft.MatMulNBits`, ONNX Runtime's operator for weights of 2, 4 and 8 bits in blocks along K.

    B uint8 [N, blocks, block * bits / 8]    scales [N, blocks]    zero_points uint8 [N, ceil(blocks * bits / 8)]

    W[n, k] = (B[n, k] - zero[n, k // block]) * scales[n, k // block]      without zero points: zero = 2^(bits - 1)

Zero points may be floats [N, blocks] too. A block is a power of two from 16. (ONNX Runtime, docs/ContribOperators.md.)
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from ..errors import BadInput, NotSupported
from ..format import Format
from ..layout import Layout, pack, unpack
from ..layouts import named
from ..level import Level
from ..quantized import Quantized
from ._words import (
    groups_of,
    held_as,
    integer_bits,
    is_symmetric,
    refuse_extras,
    require_shape,
    scale_dtype,
    scale_level,
)

_BITS = (2, 4, 8)
_NAME = "MatMulNBits"


@dataclass(frozen=True)
class Settings:
    """The attributes of a node: `N` rows, `K` columns, bits of a code, block."""

    n: int
    k: int
    bits: int
    block: int

    def __post_init__(self) -> None:
        if self.bits not in _BITS:
            raise NotSupported(f"MatMulNBits codes of {self.bits} bits", hint="known widths: 2, 4, 8")
        if self.block < 16 or self.block & (self.block - 1):
            raise BadInput(f"MatMulNBits has block_size {self.block}, not a power of two from 16")

    @property
    def blocks(self) -> int:
        """Blocks of a row; the last one may be ragged."""
        return -(-self.k // self.block)


def decode(b: np.ndarray, scales: np.ndarray, zeros: np.ndarray | None, settings: Settings, where: str) -> Quantized:
    """The weight [N, K] behind a node. `BadInput` where inputs do not fit the attributes."""
    s = settings
    if b.dtype != np.uint8 or b.size != s.n * s.blocks * s.block * s.bits // 8:
        raise BadInput(f"{where}: B is {b.dtype} {list(b.shape)}, which {s} does not want")
    if scales.size != s.n * s.blocks:
        raise BadInput(f"{where}: scales have shape {list(scales.shape)}, which {s} does not want")
    level = scale_level(scales, (s.block,), "scales", where)
    parts = {"scale": scales.reshape(s.n, s.blocks)}
    if zeros is None:
        parts["codes"] = _unpack(b, f"i{s.bits}", s)
        fmt = Format(f"i{s.bits}", (level,))
    else:
        parts["codes"] = _unpack(b, f"u{s.bits}", s)
        zero = Level(f"u{s.bits}", level.block)
        if zeros.dtype == np.uint8:
            row = -(-s.blocks * s.bits // 8)
            require_shape(zeros.reshape(-1), (s.n * row,), "zero_points", where)
            flat = np.ascontiguousarray(zeros).reshape(-1)
            parts["zero"] = unpack(flat, s.bits, (s.n, s.blocks), _layout(f"u{s.bits}", zeros=True), signed=False)
        else:
            zero = scale_level(zeros, level.block, "zero_points", where)
            require_shape(zeros.reshape(-1), (s.n * s.blocks,), "zero_points", where)
            parts["zero"] = zeros.reshape(s.n, s.blocks)
        fmt = Format(f"u{s.bits}", (level,), zero)
    value = Quantized(fmt, parts)
    value.check(where)
    return value


def accepted(value: Quantized, where: str) -> Format:
    """The format MatMulNBits would hold the values in; `NotSupported` for what it has no place for."""
    refuse_extras(value, where, _NAME)
    held = integer_bits(value.format, where, _NAME)
    bits = next(b for b in _BITS if b >= held)
    block = groups_of(value)
    if block and block & -block < 16:
        raise NotSupported(f"{where}: {_NAME} has blocks of a power of two from 16, not groups of {block}")
    block = block & -block if block else 32  # one scale a row is repeated
    level = Level(scale_dtype(value.format, ("f32",)), (block,))
    return (
        Format(f"i{bits}", (level,))
        if is_symmetric(value)
        else Format(f"u{bits}", (level,), Level(f"u{bits}", (block,)))
    )


def encode(value: Quantized) -> tuple[np.ndarray, np.ndarray, np.ndarray | None, Settings]:
    """B, scales and zero points of a weight whose format is what `accepted` gives, and the attributes."""
    fmt, (n, k) = value.format, value.shape
    block = fmt.scales[0].block
    assert block is not None and block[0] is not None
    settings = Settings(n, k, fmt.bits, block[0])
    b = pack(value.codes, fmt.bits, _layout(fmt.element, block[0])).reshape(n, settings.blocks, -1)
    zeros = value.zero
    if zeros is not None:
        zeros = pack(zeros.astype(np.uint8), fmt.bits, _layout(fmt.element, zeros=True)).reshape(n, -1)
    return b, held_as(value.scale, fmt.scales[0].dtype), zeros, settings


def _unpack(b: np.ndarray, element: str, s: Settings) -> np.ndarray:
    data = np.ascontiguousarray(b).reshape(-1)
    return unpack(data, s.bits, (s.n, s.k), _layout(element, s.block), signed=element[0] == "i")


def _layout(element: str, block: int = 0, *, zeros: bool = False) -> Layout:
    if zeros:
        found = named("onnxruntime_matmul_nbits_zeros", element).layout
    else:
        found = named("onnxruntime_matmul_nbits", element, block=block).layout
    assert isinstance(found, Layout)
    return found
