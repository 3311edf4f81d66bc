"""compressed-tensors checkpoints (0.20): packed integers, plain int8 or float8, and NVFP4.

    pack-quantized         weight_packed int32 [N, K * bits / 32] offset binary, weight_shape, weight_scale [N, G]
                           asymmetric: weight_zero_point int32 [N * bits / 32, G], packed along N
    int-quantized          weight int8 [N, K], weight_scale; asymmetric: weight_zero_point int8
    float-quantized        weight float8_e4m3 [N, K], weight_scale
    naive-quantized        either of the two
    nvfp4-pack-quantized   weight_packed uint8 [N, K / 2], low nibble first, weight_scale e4m3 [N, K / 16],
                           weight_global_scale f32 [1], by which scales are divided

    W = (q - zero) * scale     G: one a group, one a row (channel), one in all (tensor), or rectangles (block)

A global scale is kept as its reciprocal where the product with that is, for every block, the quotient; else the format
has one level, the quotients.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import ml_dtypes
import numpy as np

from ..errors import BadInput, NotSupported
from ..format import Format
from ..layout import Layout, pack, unpack
from ..level import Block, Level
from ..quantize import encode as encode_codes
from ..quantized import Quantized
from ._words import (
    from_words,
    group_block,
    groups_of,
    held_as,
    integer_bits,
    is_symmetric,
    order_of,
    refuse_extras,
    require,
    require_shape,
    scale_dtype,
    scale_level,
    to_words,
)

TENSORS = (
    "weight_packed",
    "weight",
    "weight_scale",
    "weight_zero_point",
    "weight_shape",
    "weight_g_idx",
    "weight_global_scale",
)
PACKED, INTEGERS, FLOATS, NAIVE = "pack-quantized", "int-quantized", "float-quantized", "naive-quantized"
NVFP4 = "nvfp4-pack-quantized"
KNOWN = (PACKED, INTEGERS, FLOATS, NAIVE, NVFP4)
_NAME = "compressed-tensors"
NVFP4_FORMAT = Format.parse("e2m1, e4m3 per 16, f32 per tensor")
_PAIRS = Layout.parse("n(n0) k(k1 k0:2) -> n0 k1 k0")


@dataclass(frozen=True)
class Settings:
    """What config_groups says of the weights of a layer. `block` is that of the scales; None: the tensor."""

    container: str
    bits: int
    is_float: bool
    symmetric: bool
    block: Block | None

    def __post_init__(self) -> None:
        if self.container not in KNOWN:
            raise NotSupported(f"compressed-tensors' {self.container!r}", hint=f"known: {', '.join(KNOWN)}")
        if self.is_float != (self.container in (FLOATS, NVFP4)) and self.container != NAIVE:
            raise BadInput(f"{self.container} weights whose type is {'float' if self.is_float else 'int'}")
        if not 1 <= self.bits <= 8 or (self.container in (INTEGERS, FLOATS, NAIVE) and self.bits != 8):
            raise NotSupported(f"{self.container} weights of {self.bits} bits")


def decode(tensors: Mapping[str, np.ndarray], settings: Settings, where: str) -> Quantized:
    """The weight [N, K] of a layer; raises `BadInput` where tensors are missing or do not fit the settings."""
    require(tensors, ["weight_scale"], where, _NAME)
    if settings.container == NVFP4:
        return _decode_nvfp4(tensors, where)
    codes = _packed_codes(tensors, settings, where) if settings.container == PACKED else _plain_codes(tensors, where)
    shape, scale = codes.shape, tensors["weight_scale"]
    level = scale_level(scale, settings.block, "weight_scale", where)
    order = _order_of(tensors.get("weight_g_idx"), shape, level, where)
    expected = level.shape_of(shape)
    _require_scales(scale, expected, "weight_scale", where)
    parts = {"codes": codes, "scale": scale.reshape(expected)}
    element = _element(tensors, settings)
    zero = None if settings.symmetric or settings.is_float else Level(element, level.block)
    if zero is not None:
        parts["zero"] = _zero_points(tensors, settings, expected, where)
    if order is not None:
        parts["order"] = order
    value = Quantized(Format(element, (level,), zero, permuted=order is not None), parts)
    value.check(where)
    return value


def accepted(value: Quantized, where: str) -> Format:
    """The format compressed-tensors would hold the values in; `NotSupported` for what it has no place for."""
    refuse_extras(value, where, f"{_NAME} (its version 0.20 gave up weight_g_idx)" if value.format.permuted else _NAME)
    fmt, (_, k) = value.format, value.shape
    if fmt == NVFP4_FORMAT:
        if k % 16:
            raise NotSupported(f"{where}: NVFP4 wants whole groups: 16 does not divide {k}")
        return fmt
    group = groups_of(value)
    if group and k % group:
        raise NotSupported(f"{where}: {_NAME} wants whole groups: {group} does not divide {k}")
    if fmt.element == "e4m3" and len(fmt.scales) == 1 and fmt.zero is None and fmt.offset is None:
        if fmt.scales[0].block not in (None, (None,)) and len(fmt.scales[0].block or ()) != 2:
            raise NotSupported(f"{where}: {_NAME} has float8 weights by tensor, row or rectangle, not {fmt.scales[0]}")
        return fmt
    bits = integer_bits(fmt, where, _NAME)
    level = Level(scale_dtype(fmt, ("f16", "bf16", "f32")) if len(fmt.scales) == 1 else "f32", group_block(group))
    zero = None if is_symmetric(value) else Level(f"i{bits}", level.block)
    return Format(f"i{bits}", (level,), zero)


def with_divisor(value: Quantized, weight: np.ndarray) -> Quantized:
    """NVFP4 codes of `weight` whose outer scale is the reciprocal of a divisor for every inner one, a few ulps away."""
    wanted = np.asarray(value.parts["scale1"], np.float32).reshape(1)
    near = (np.float32(1) / wanted).view(np.int32) + np.arange(-4096, 4096)
    divisors = near[np.argsort(np.abs(near - near[4096]), kind="stable")].astype(np.int32).view(np.float32)
    factors = np.float32(1) / divisors
    inner = np.arange(127, dtype=np.uint8).view(ml_dtypes.float8_e4m3fn).astype(np.float32)
    same = (inner[:, None] * factors == inner[:, None] / divisors).all(axis=0)
    if not same.any():
        return value
    held = Quantized(value.format, {"scale": value.scale, "scale1": factors[same][:1].reshape(1, 1)})
    return encode_codes(weight, held)


def settings_for(fmt: Format) -> Settings:
    """The settings of a format of `accepted`."""
    if fmt == NVFP4_FORMAT:
        return Settings(NVFP4, 4, is_float=True, symmetric=True, block=(16,))
    container = PACKED if fmt.is_integer else FLOATS
    return Settings(container, fmt.bits, not fmt.is_integer, fmt.zero is None, fmt.scales[0].block)


def encode(value: Quantized, where: str) -> dict[str, np.ndarray]:
    """The tensors of a weight whose format is what `accepted` gives."""
    fmt = value.format
    if fmt == NVFP4_FORMAT:
        return _encode_nvfp4(value, where)
    scale = held_as(value.scale, fmt.scales[0].dtype)
    if not fmt.is_integer:
        return {"weight": value.codes.view(ml_dtypes.float8_e4m3fn), "weight_scale": scale}
    tensors = {
        "weight_packed": to_words(_offset(value.codes, fmt.bits), fmt.bits),
        "weight_scale": scale,
        "weight_shape": np.array(value.shape, np.int64),
    }
    if value.zero is not None:
        turned = np.ascontiguousarray(_offset(value.zero.astype(np.int8), fmt.bits).T)
        tensors["weight_zero_point"] = np.ascontiguousarray(to_words(turned, fmt.bits).T)
    return tensors


def _packed_codes(tensors: Mapping[str, np.ndarray], settings: Settings, where: str) -> np.ndarray:
    require(tensors, ["weight_packed", "weight_shape"], where, _NAME)
    told, words, bits = tensors["weight_shape"], tensors["weight_packed"], settings.bits
    if told.size != 2 or told.dtype.kind not in "iu" or (told.reshape(-1) < 1).any():
        raise BadInput(f"{where}: weight_shape is {told.tolist()}, no shape of a matrix", hint="copy the model again")
    n, k = map(int, told.reshape(-1))
    require_shape(words, (n, -(-k * bits // 32)), "weight_packed", where, "int32")
    return _centred(from_words(words, bits, k), bits)


def _plain_codes(tensors: Mapping[str, np.ndarray], where: str) -> np.ndarray:
    require(tensors, ["weight"], where, _NAME)
    weight = tensors["weight"]
    if weight.ndim != 2 or weight.dtype.name not in ("int8", "float8_e4m3fn"):
        raise BadInput(f"{where}: weight is {weight.dtype} {list(weight.shape)}, no matrix of int8 or float8_e4m3")
    return weight if weight.dtype == np.int8 else weight.view(np.uint8)


def _element(tensors: Mapping[str, np.ndarray], settings: Settings) -> str:
    if settings.container == PACKED:
        return f"i{settings.bits}"
    return "i8" if tensors["weight"].dtype == np.int8 else "e4m3"


def _zero_points(
    tensors: Mapping[str, np.ndarray], settings: Settings, expected: tuple[int, ...], where: str
) -> np.ndarray:
    require(tensors, ["weight_zero_point"], where, f"asymmetric {_NAME}")
    zero, bits = tensors["weight_zero_point"], settings.bits
    if settings.container == PACKED and settings.block is not None:
        require_shape(zero, (-(-expected[0] * bits // 32), expected[1]), "weight_zero_point", where, "int32")
        return np.ascontiguousarray(_centred(from_words(zero.T, bits, expected[0]), bits).T)
    _require_scales(zero, expected, "weight_zero_point", where)
    return zero.astype(np.int8).reshape(expected)


def _require_scales(array: np.ndarray, expected: tuple[int, ...], name: str, where: str) -> None:
    """One number in all may lie as [1] or []."""
    if array.size == 1 and int(np.prod(expected)) == 1:
        return
    require_shape(array, expected, name, where)


def _order_of(g_idx: np.ndarray | None, shape: tuple[int, ...], level: Level, where: str) -> np.ndarray | None:
    if g_idx is None or not g_idx.size or (g_idx == -1).all():
        return None
    return order_of(g_idx, shape[1], level.block_of(shape)[1], where)


def _centred(codes: np.ndarray, bits: int) -> np.ndarray:
    """Offset binary as numbers."""
    return (codes - np.uint8(1 << bits - 1)).view(np.int8)


def _offset(codes: np.ndarray, bits: int) -> np.ndarray:
    """Numbers in offset binary; padding, which is zero bits there, stays zero."""
    return np.ascontiguousarray(codes).view(np.uint8) + np.uint8(1 << bits - 1)


def _decode_nvfp4(tensors: Mapping[str, np.ndarray], where: str) -> Quantized:
    require(tensors, ["weight_packed", "weight_global_scale"], where, "NVFP4")
    packed, scale, divisor = (tensors[n] for n in ("weight_packed", "weight_scale", "weight_global_scale"))
    if packed.ndim != 2 or packed.dtype != np.uint8 or packed.shape[1] % 8:
        raise BadInput(f"{where}: weight_packed is {packed.dtype} {list(packed.shape)}, no pairs in groups of 16")
    shape = (packed.shape[0], packed.shape[1] * 2)
    require_shape(scale, (shape[0], shape[1] // 16), "weight_scale", where, "float8_e4m3fn")
    g = np.asarray(divisor, np.float32).reshape(-1)
    if g.size != 1 or not np.isfinite(g[0]) or g[0] == 0:
        raise BadInput(f"{where}: weight_global_scale is {divisor.tolist()}, not one number that divides")
    parts = {"codes": unpack(np.ascontiguousarray(packed), 4, shape, _PAIRS, signed=False)}
    quotients = scale.astype(np.float32) / g[0]
    factor = np.float32(1) / g
    if np.isfinite(factor[0]) and np.array_equal(factor[0] * scale.astype(np.float32), quotients):
        value = Quantized(NVFP4_FORMAT, {**parts, "scale": scale, "scale1": factor.reshape(1, 1)})
    else:
        value = Quantized(Format.parse("e2m1, f32 per 16"), {**parts, "scale": quotients})
    value.check(where)
    return value


def _encode_nvfp4(value: Quantized, where: str) -> dict[str, np.ndarray]:
    factor = np.asarray(value.parts["scale1"], np.float32).reshape(1)
    scale = value.scale.astype(np.float32)
    with np.errstate(divide="ignore", over="ignore"):
        divisor = np.float32(1) / factor
        same = np.isfinite(divisor[0]) and np.array_equal(scale / divisor[0], factor[0] * scale)
    if not same:
        raise NotSupported(
            f"{where}: NVFP4 divides by its global scale, and 1 / {factor[0]:.9g} gives other scales in the last bits"
        )
    packed = pack(value.codes, 4, _PAIRS).reshape(value.shape[0], -1)
    return {"weight_packed": packed, "weight_scale": held_as(value.scale, "e4m3"), "weight_global_scale": divisor}
