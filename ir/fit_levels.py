"""Numbers of nested levels whose product comes nearest to the scales that blocks ask for, from the outside in."""

from __future__ import annotations

import math
from collections.abc import Callable

import numpy as np

from .errors import BadInput
from .level import Level, spread
from .levels import level_dtype
from .quantized import inner_blocks

TINY = np.finfo(np.float32).tiny
"""What is not larger asks for no scale."""


def fit_levels(
    wanted: np.ndarray, name: str, levels: tuple[Level, ...], shape: tuple[int, ...], *, high: float | None
) -> dict[str, np.ndarray]:
    """Numbers of nested levels whose product is nearest to `wanted` (one for each innermost block), from outside in.

    Where the inner dtype has a largest value, an outer number is what lets its largest inner one just reach it.
    `high` is the element's largest value, of which powers of two take the exponent (OCP MX 6.3); None: nearest power.
    """
    rest = np.asarray(wanted, np.float32)
    parts: dict[str, np.ndarray] = {}
    for index in reversed(range(1, len(levels))):
        units = inner_blocks(levels[index], levels[0], shape)
        peak = reduced(np.abs(rest), units, np.max)
        inside = level_dtype(levels[index - 1].dtype)
        number = (
            peak / np.float32(inside.high)
            if inside.high < 1e30 and inside.bits <= 8 and not _is_power(inside)
            else peak
        )
        number = np.where(number > TINY, number, np.float32(1))
        parts[f"{name}{index}"] = _rounded(number, levels[index], f"{name}{index}")
        held = spread(np.asarray(parts[f"{name}{index}"], np.float32), units, rest.shape)
        rest = np.where(held == 0, np.float32(0), rest / np.where(held == 0, np.float32(1), held))
    parts[name] = _powers(rest, levels[0], high) if levels[0].dtype == "e8m0" else _rounded(rest, levels[0], name)
    return parts


def _is_power(dtype: object) -> bool:
    return getattr(dtype, "name", "") == "e8m0"


def _powers(scale: np.ndarray, level: Level, high: float | None) -> np.ndarray:
    """`e8m0` scales for steps s = max / high: 2^(floor(log2 max) - floor(log2 high))."""
    if high is None:
        return level_dtype(level.dtype).round(scale)
    peak = np.asarray(scale, np.float64) * high
    exponent = np.frexp(peak)[1] - 1 - math.floor(math.log2(high))
    return np.ldexp(1.0, np.clip(exponent, -127, 127)).astype(np.float32).astype(level_dtype(level.dtype).numpy)


def _rounded(numbers: np.ndarray, level: Level, name: str) -> np.ndarray:
    dtype = level_dtype(level.dtype)
    if numbers.size and dtype.bits > 8 and np.abs(numbers).max() > dtype.high:
        raise BadInput(
            f"{name} reaches {np.abs(numbers).max():.4g}, which {level.dtype} does not hold",
            hint="use f32 or bf16 scales",
        )
    return dtype.round(np.asarray(numbers, np.float32))


def reduced(numbers: np.ndarray, units: tuple[int, ...], by: Callable[..., np.ndarray]) -> np.ndarray:
    """Numbers reduced over groups of `units` along each axis; groups at the end may be smaller."""
    level = Level("f32", units)
    counts = level.shape_of(numbers.shape)
    if by is np.max:
        return level.blocks(numbers).max(axis=1, initial=0).reshape(counts)
    total = level.blocks(numbers).sum(axis=1).reshape(counts)
    return total / level.blocks(np.ones_like(numbers)).sum(axis=1).reshape(counts)
