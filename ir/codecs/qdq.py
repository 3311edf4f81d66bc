"""The inputs of ONNX `DequantizeLinear` on a constant: one scale a tensor, an axis, or a block along an axis.

    y = (x - x_zero_point) * x_scale        int2 uint2 int4 uint4 int8 uint8, float8 of four kinds, float4e2m1

(ONNX operators, DequantizeLinear 25.) Codes are a matrix as it lies in the model, [K, N] more often than not;
`transposed` gives it as the weight [N, K] of a linear layer.
"""

from __future__ import annotations

import dataclasses

import ml_dtypes
import numpy as np

from ..errors import BadInput, NotSupported
from ..format import Format
from ..level import Block, Level
from ..quantized import Quantized
from ._words import groups_of, held_as, integer_bits, is_symmetric, refuse_extras, scale_level

_ELEMENTS: dict[str, str] = {
    "int2": "i2",
    "uint2": "u2",
    "int4": "i4",
    "uint4": "u4",
    "int8": "i8",
    "uint8": "u8",
    "float8_e4m3fn": "e4m3",
    "float8_e5m2": "e5m2",
    "float8_e4m3fnuz": "e4m3fnuz",
    "float8_e5m2fnuz": "e5m2fnuz",
    "float4_e2m1fn": "e2m1",
}
_NAME = "DequantizeLinear"


def decode(x: np.ndarray, scale: np.ndarray, zero: np.ndarray | None, axis: int, block: int, where: str) -> Quantized:
    """The matrix behind a node with constant inputs, in its own orientation.

    `block` 0: one scale for all, or one an index of `axis`. Raises `BadInput` for shapes that do not fit,
    `NotSupported` for other dtypes.
    """
    if x.dtype.name not in _ELEMENTS:
        raise NotSupported(f"{where}: codes of {x.dtype}", hint=f"known: {', '.join(_ELEMENTS)}")
    if x.ndim != 2 or not -2 <= axis < 2:
        raise NotSupported(f"{where}: codes of shape {list(x.shape)} with axis {axis}: matrices only")
    element, axis = _ELEMENTS[x.dtype.name], axis % 2
    level = scale_level(scale, _block_of(scale, x.shape, axis, block, where), "x_scale", where)
    shape = level.shape_of(x.shape)
    parts = {"codes": _bytes(x), "scale": scale.reshape(shape)}
    held: Level | None = None
    if zero is not None and (zero.dtype != x.dtype or zero.size != scale.size):
        raise BadInput(f"{where}: x_zero_point is {zero.dtype} {list(zero.shape)}, which does not fit the scales")
    if zero is not None and _bytes(zero).any():
        if element[0] not in "iu":
            raise NotSupported(f"{where}: a zero point of {zero.dtype} that is not 0")
        held = Level(element, level.block)
        parts["zero"] = _bytes(zero).reshape(shape)
    value = Quantized(Format(element, (level,), held), parts)
    value.check(where)
    return value


def transposed(value: Quantized) -> Quantized:
    """The same matrix with its axes exchanged; blocks turn with it."""
    fmt = value.format
    if fmt.permuted or fmt.outliers or fmt.sparsity:
        raise NotSupported(f"{fmt} has an axis of its own: it cannot be transposed")

    def turn(level: Level) -> Level:
        return dataclasses.replace(level, block=_turned(level.block))

    changes = {
        "scales": tuple(map(turn, fmt.scales)),
        "zero": turn(fmt.zero) if isinstance(fmt.zero, Level) else fmt.zero,
        "offset": dataclasses.replace(fmt.offset, levels=tuple(map(turn, fmt.offset.levels))) if fmt.offset else None,
        "mean": turn(fmt.mean) if fmt.mean else None,
        "lookup": turn(fmt.lookup) if fmt.lookup else None,
    }
    turned = {name: np.ascontiguousarray(array.swapaxes(0, 1)) for name, array in value.parts.items()}
    return Quantized(dataclasses.replace(fmt, **changes), turned)


def accepted(value: Quantized, where: str) -> Format:
    """The format of [N, K] that DequantizeLinear would hold the values in; `NotSupported` for what it cannot say."""
    refuse_extras(value, where, _NAME)
    fmt = value.format
    group = groups_of(value)
    level = Level("f32", (group,) if group else fmt.scale.block if fmt.scale.block is None else (None,))
    if not fmt.is_integer and fmt.element in _ELEMENTS.values() and fmt.zero is None and fmt.offset is None:
        return Format(fmt.element, (level,))
    bits = next(b for b in (2, 4, 8) if b >= integer_bits(fmt, where, _NAME))
    if is_symmetric(value):
        return Format(f"i{bits}", (level,))
    return Format(f"u{bits}", (level,), Level(f"u{bits}", level.block))


def encode(value: Quantized) -> tuple[np.ndarray, np.ndarray, np.ndarray | None, int, int]:
    """x [K, N], x_scale, x_zero_point, axis and block_size of a weight [N, K] in a format of `accepted`."""
    turned = transposed(value)
    fmt, block = turned.format, turned.format.scales[0].block
    dtype = next(np.dtype(getattr(ml_dtypes, name, name)) for name, e in _ELEMENTS.items() if e == fmt.element)
    codes, zero = _typed(turned.codes, dtype), None if turned.zero is None else _typed(turned.zero, dtype)
    scale = held_as(turned.scale, fmt.scales[0].dtype)
    size = 0 if block is None else block[0] or 0
    shape = () if block is None else (turned.shape[1],) if not size else scale.shape
    axis = 0 if size else 1
    return codes, scale.reshape(shape), None if zero is None else zero.reshape(shape), axis, size


def _block_of(scale: np.ndarray, shape: tuple[int, ...], axis: int, block: int, where: str) -> Block | None:
    if block:
        expected = tuple(-(-d // block) if i == axis else d for i, d in enumerate(shape))
        if scale.shape != expected:
            raise BadInput(f"{where}: x_scale has shape {list(scale.shape)}, blocks of {block} want {list(expected)}")
        return (block, 1) if axis == 0 else (block,)
    if scale.size == 1:
        return None
    if scale.shape != (shape[axis],):
        raise BadInput(f"{where}: x_scale has shape {list(scale.shape)}, axis {axis} has {shape[axis]}")
    return (None,) if axis == 0 else (None, 1)


def _turned(block: Block | None) -> Block | None:
    """A block of a matrix with its axes exchanged, as short as can be written: `32x1` and `32` turn into each other."""
    if block is None:
        return None
    rows, columns = block if len(block) == 2 else (1, block[0])
    return (rows,) if columns == 1 else (columns, rows)


def _bytes(codes: np.ndarray) -> np.ndarray:
    """Codes one a byte, as a format holds them."""
    name = codes.dtype.name
    if name.startswith(("int", "uint")):
        return np.ascontiguousarray(codes.astype(np.int8 if name[0] == "i" else np.uint8))
    return np.ascontiguousarray(codes).view(np.uint8)


def _typed(codes: np.ndarray, dtype: np.dtype[np.generic]) -> np.ndarray:
    return codes.astype(dtype) if codes.dtype == np.int8 or dtype.name.startswith("u") else codes.view(dtype)
