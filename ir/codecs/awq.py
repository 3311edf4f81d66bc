"""AWQ checkpoints (AutoAWQ, version gemm): eight 4-bit codes along N in a word, the even columns first.

qweight int32 [K, N / 8]    qzeros int32 [G, N / 8]    scales f16 [G, N]      nibble i holds column 0 2 4 6 1 3 5 7

W[n, k] = (q[k, n] - zero[g, n]) * scales[g, n],   g = k // group
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np

from ..errors import BadInput, NotSupported
from ..format import Format
from ..layout import Layout, pack, unpack
from ..layouts import named
from ..level import Level
from ..quantized import Quantized
from ._words import (
    group_block,
    groups_of,
    held_as,
    integer_bits,
    refuse_extras,
    require,
    require_shape,
    scale_dtype,
    scale_level,
)

TENSORS = ("qweight", "qzeros", "scales")
_NAME = "AWQ"


@dataclass(frozen=True)
class Settings:
    """What quantization_config says of a layer. `group` is 0 for one group a row."""

    group: int


def decode(tensors: Mapping[str, np.ndarray], settings: Settings, where: str) -> Quantized:
    """The weight [N, K] of a layer as `u4, f16 per group, zero u4`. `BadInput` for tensors that do not fit."""
    require(tensors, TENSORS, where, _NAME)
    words, scales = tensors["qweight"], tensors["scales"]
    if words.ndim != 2:
        raise BadInput(f"{where}: qweight has shape {list(words.shape)}, not two axes")
    k, n = words.shape[0], words.shape[1] * 8
    group = settings.group or k
    if k % group:
        raise BadInput(f"{where}: the group size {group} does not divide {k}", hint="copy the model again")
    require_shape(words, words.shape, "qweight", where, "int32")
    require_shape(scales, (k // group, n), "scales", where)
    require_shape(tensors["qzeros"], (k // group, n // 8), "qzeros", where, "int32")
    level = scale_level(scales, group_block(settings.group), "scales", where)
    parts = {
        "codes": _codes(words, (k, n)),
        "scale": np.ascontiguousarray(scales.T),
        "zero": _codes(tensors["qzeros"], (k // group, n)),
    }
    value = Quantized(Format("u4", (level,), Level("u4", level.block)), parts)
    value.check(where)
    return value


def accepted(value: Quantized, where: str) -> Format:
    """The format AWQ would hold the values in; `NotSupported` for what it has no place for."""
    refuse_extras(value, where, _NAME)
    bits = integer_bits(value.format, where, _NAME)
    if bits > 4:
        raise NotSupported(f"{where}: AWQ holds codes of 4 bits, these have {bits}")
    group, (n, k) = groups_of(value), value.shape
    if n % 8:
        raise NotSupported(f"{where}: AWQ packs eight rows in a word, which {n} are not")
    if group and k % group:
        raise NotSupported(f"{where}: AWQ wants whole groups: {group} does not divide {k}")
    level = Level(scale_dtype(value.format, ("f16", "bf16")), group_block(group))
    return Format("u4", (level,), Level("u4", level.block))


def encode(value: Quantized) -> dict[str, np.ndarray]:
    """The tensors of a weight whose format is what `accepted` gives."""
    zeros = value.zero
    assert zeros is not None
    return {
        "qweight": _words(value.codes),
        "qzeros": _words(zeros.astype(np.uint8)),
        "scales": held_as(value.scale.T, value.format.scales[0].dtype),
    }


def _layout() -> Layout:
    found = named("awq").layout
    assert isinstance(found, Layout)
    return found


def _codes(words: np.ndarray, shape: tuple[int, int]) -> np.ndarray:
    """Codes [N, K] of words [K, N / 8]."""
    data = np.ascontiguousarray(words).view(np.uint8)
    return np.ascontiguousarray(unpack(data, 4, shape, _layout(), signed=False).T)


def _words(codes: np.ndarray) -> np.ndarray:
    """Words [K, N / 8] of codes [N, K]."""
    turned = np.ascontiguousarray(codes.T)
    return pack(turned, 4, _layout()).view("<i4").reshape(turned.shape[0], -1)
