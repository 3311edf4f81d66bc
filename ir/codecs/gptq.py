"""GPTQ checkpoints, as AutoGPTQ 0.7 and gptqmodel write them: 32-bit words of codes along K, zero points along N.

    qweight int32 [K * bits / 32, N]    qzeros int32 [G, N * bits / 32]    scales f16 [G, N]    g_idx int32 [K]

    W[n, k] = (q[k, n] - zero[g, n]) * scales[g, n],   g = g_idx[k]

Codes are unsigned. Version 1 stores zero points less one, `gptq_v2` as they are. With act-order g_idx is no run of
groups: the format is then `permuted`, where `order` sorts columns by group.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np

from ..errors import BadInput, NotSupported
from ..format import Format
from ..level import Level
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

TENSORS = ("qweight", "qzeros", "scales", "g_idx")
_BITS = (2, 3, 4, 8)
_NAME = "GPTQ"


@dataclass(frozen=True)
class Settings:
    """What quantization_config says of a layer. `group` is 0 for one group a row."""

    bits: int
    group: int
    symmetric: bool
    version: int = 1

    def __post_init__(self) -> None:
        if self.bits not in _BITS:
            raise NotSupported(f"GPTQ codes of {self.bits} bits", hint=f"known widths: {', '.join(map(str, _BITS))}")


def decode(tensors: Mapping[str, np.ndarray], settings: Settings, where: str) -> Quantized:
    """The weight [N, K] of a layer; `tensors` are named as in the head of this file, g_idx may be missing.

    Symmetric where the settings say so and every zero point is the middle code. Raises `BadInput` for tensors that are
    missing or do not fit the settings and for a g_idx out of range, `NotSupported` for a stored zero point of version 1
    that programs read in different ways.
    """
    require(tensors, TENSORS[:3], where, _NAME)
    bits, scales, words = settings.bits, tensors["scales"], tensors["qweight"]
    if words.ndim != 2 or words.shape[0] * 32 % bits:
        raise BadInput(f"{where}: qweight has shape {list(words.shape)}, no whole codes of {bits} bits")
    k, n = words.shape[0] * 32 // bits, words.shape[1]
    group = settings.group or k
    groups = -(-k // group)
    require_shape(words, words.shape, "qweight", where, "int32")
    require_shape(scales, (groups, n), "scales", where)
    require_shape(tensors["qzeros"], (groups, -(-n * bits // 32)), "qzeros", where, "int32")
    codes = from_words(words.T, bits, k)
    zeros = from_words(tensors["qzeros"], bits, n).T
    if settings.version == 1:
        if zeros.size and zeros.max() == (1 << bits) - 1:
            raise NotSupported(
                f"{where}: qzeros hold {zeros.max()}, which is zero point 0 to some programs and {1 << bits} to others",
                hint="write the checkpoint again as gptq_v2",
            )
        zeros = zeros + np.uint8(1)
    order = order_of(tensors.get("g_idx"), k, group, where)
    level = scale_level(scales, group_block(settings.group), "scales", where)
    parts = {"codes": codes, "scale": np.ascontiguousarray(scales.T), "zero": np.ascontiguousarray(zeros)}
    fmt = Format(f"u{bits}", (level,), Level(f"u{bits}", level.block), permuted=order is not None)
    if settings.symmetric and (zeros == 1 << bits - 1).all():
        parts["codes"] = _signed(codes, bits)
        del parts["zero"]
        fmt = Format(f"i{bits}", (level,), permuted=order is not None)
    if order is not None:
        parts["order"] = order
    value = Quantized(fmt, parts)
    value.check(where)
    return value


def accepted(value: Quantized, where: str) -> Format:
    """The format GPTQ would hold the values in; `NotSupported` for what it has no place for."""
    refuse_extras(value, where, _NAME, permuted=True)
    held = integer_bits(value.format, where, _NAME)
    bits = next((b for b in _BITS if b >= held), 8)
    group, (n, k) = groups_of(value), value.shape
    if group and k % group:
        raise NotSupported(f"{where}: GPTQ wants whole groups: {group} does not divide {k}")
    if k * bits % 32 or n * bits % 32:
        raise NotSupported(f"{where}: a weight of {n} x {k} does not fill 32-bit words at {bits} bits")
    level = Level(scale_dtype(value.format, ("f16", "bf16")), group_block(group))
    if is_symmetric(value):
        return Format(f"i{bits}", (level,), permuted=value.format.permuted)
    return Format(f"u{bits}", (level,), Level(f"u{bits}", level.block), permuted=value.format.permuted)


def encode(value: Quantized, settings: Settings, where: str) -> dict[str, np.ndarray]:
    """The tensors of a weight whose format is what `accepted` gives. `NotSupported` for zero point 0 in version 1."""
    bits, (n, k) = settings.bits, value.shape
    group = settings.group or k
    codes = _unsigned(value.codes, bits) if value.format.family.signed else value.codes
    zeros = value.parts.get("zero")
    if zeros is None:
        zeros = np.full((n, k // group), 1 << bits - 1, np.uint8)
    if settings.version == 1:
        if zeros.size and zeros.min() == 0:
            raise NotSupported(f"{where}: zero point 0 cannot be stored less one", hint="write gptq_v2")
        zeros = zeros - np.uint8(1)
    place = np.arange(k) if not value.format.permuted else np.argsort(value.parts["order"])
    return {
        "qweight": np.ascontiguousarray(to_words(codes, bits).T),
        "qzeros": to_words(np.ascontiguousarray(zeros.T).astype(np.uint8), bits),
        "scales": held_as(value.scale.T, value.format.scales[0].dtype),
        "g_idx": (place // group).astype(np.int32),
    }


def settings_for(value: Quantized, version: int) -> Settings:
    """The settings of a weight in a format of `accepted`."""
    fmt = value.format
    return Settings(fmt.bits, groups_of(value), fmt.zero is None, version)


def _signed(codes: np.ndarray, bits: int) -> np.ndarray:
    return (codes - np.uint8(1 << bits - 1)).view(np.int8)


def _unsigned(codes: np.ndarray, bits: int) -> np.ndarray:
    return codes.view(np.uint8) + np.uint8(1 << bits - 1)
