"""Round to nearest in any format: scales from the range of each block, every level of them, then the codes.

    s = max |w| / high  (or the range over the codes)     scale1 = round(max s / high1), scale = round(s / scale1), ...
    codes = encode((w +- offset) / (scale * scale1 ...) + zero)

Scales that are powers of two follow the OCP Microscaling specification 1.0, section 6.3: floor(log2 max |w|) less the
exponent of the element's largest value, so values up to twice the range may clip. `passes/algorithms` chooses better.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass, fields

import numpy as np

from .errors import BadInput
from .fit_levels import TINY, fit_levels, reduced
from .format import Format
from .formats import ElementFamily, load_element
from .kept_values import outliers, pruned, without
from .level import Level, holds, spread
from .levels import level_dtype
from .quantized import Quantized, combined, combined_scale, inner_blocks, inverse_order, rows_of

_CHUNK = 1 << 18
"""Elements that are worked on at a time where rows, or blocks, are apart: the temporaries stay in the cache."""
_NARROW = 64
"""Blocks up to which it is faster to transpose them first than to reduce each by itself."""


@dataclass(frozen=True)
class Steps:
    """What the blocks of the innermost scales ask for, float32 [blocks]."""

    scale: np.ndarray
    offset: np.ndarray
    """What is added after scaling, or taken away, as the format says."""
    low: np.ndarray
    """The least value that is not clipped; zero points make it the lowest code."""


Choose = Callable[[np.ndarray, Format, ElementFamily], Steps]
"""Chooses scales for blocks float32 [blocks, elements] in one element of a format."""


def quantize(
    x: np.ndarray,
    fmt: Format,
    *,
    choose: Choose | None = None,
    seed: int | None = None,
    outlier_share: float = 0.005,
) -> Quantized:
    """`x` (float, finite) in `fmt`; `choose` picks the scales (default: the range of each block).

    With a `seed` codes are rounded stochastically. Formats with outliers keep that share of the largest values, or of
    the columns with the largest value; sparse formats keep the largest of each group. Raises `BadInput` for NaN,
    infinity, and scales that their dtype does not hold.
    """
    choose, rng = choose or by_range, None if seed is None else np.random.default_rng(seed)
    if not _rows_are_apart(x, fmt):
        return _quantize(x, fmt, choose, rng, outlier_share)
    rows = rows_of(x.shape, _CHUNK)
    parts: dict[str, np.ndarray] = {}
    for begin in range(0, len(x), rows):
        for name, array in _quantize(x[begin : begin + rows], fmt, choose, rng, outlier_share, begin).parts.items():
            if name not in parts:
                parts[name] = np.empty((len(x), *array.shape[1:]), array.dtype)
            parts[name][begin : begin + rows] = array
    return Quantized(fmt, parts)


def _rows_are_apart(x: np.ndarray, fmt: Format) -> bool:
    """Whether each row has numbers of its own only, so that some rows can be quantized at a time."""
    if x.ndim < 2 or x.size <= _CHUNK or fmt.outliers is not None or fmt.permuted:
        return False
    return all(level.block_of(x.shape)[0] == 1 for level in fmt.levels().values())


def _quantize(
    x: np.ndarray, fmt: Format, choose: Choose, rng: np.random.Generator | None, outlier_share: float, first: int = 0
) -> Quantized:
    x = np.asarray(x, np.float32)
    if x.size and not np.isfinite(x).all():
        place = tuple(map(int, np.argwhere(~np.isfinite(x))[0]))
        where = (place[0] + first, *place[1:]) if place else ()
        raise BadInput(f"the value at {where} is {x[place]}: it has no code", hint="repair the weights")
    kept = outliers(x, fmt, outlier_share)
    dense = pruned(without(x, kept), fmt)
    parts = {"order": np.arange(x.shape[-1], dtype=np.int32)} if fmt.permuted else {}
    parts |= _parameters(dense, fmt, choose)
    value = encode(dense, Quantized(fmt, parts), rng)
    return Quantized(fmt, {**value.parts, **kept})


def encode(x: np.ndarray, value: Quantized, rng: np.random.Generator | None = None) -> Quantized:
    """`value`, whose scales, zero points, tables and choices stand, with the codes of `x`: nearest, ties to even."""
    whole = _held(value.format, value.parts, x.shape)
    if x.ndim < 2:
        return Quantized(value.format, {"codes": _encode(x, whole, rng), **value.parts})
    codes = np.empty(x.shape, np.int8 if value.format.family.signed else np.uint8)
    for place, held in whole.chunks(rows_of(x.shape, _CHUNK)):
        codes[place] = _encode(x[place], held, rng)
    return Quantized(value.format, {"codes": codes, **value.parts})


def _encode(x: np.ndarray, held: Quantized, rng: np.random.Generator | None) -> np.ndarray:
    fmt, shape = held.format, x.shape
    order = held.parts.get("order")
    x = x if order is None else x[..., order]
    if fmt.offset is not None:
        offset = fmt.offset.levels[0].spread(combined(held, fmt.offset.word, fmt.offset.levels), shape)
        x = x + offset if fmt.offset.negative else x - offset
    scale = combined_scale(held) if fmt.scales else None
    codes = _codes(x, fmt, scale, held, rng)
    return codes if order is None else codes[..., inverse_order(order)]


def _codes(
    x: np.ndarray, fmt: Format, scale: np.ndarray | None, held: Quantized, rng: np.random.Generator | None
) -> np.ndarray:
    scaled, zero = x if scale is None else fmt.scaled(x, scale), fmt.zero
    if zero is not None:
        whole = level_dtype(zero.dtype).is_integer if isinstance(zero, Level) else zero % 1 == 0
        shift = (
            zero.spread(np.asarray(held.parts["zero"], np.float32), x.shape)
            if isinstance(zero, Level)
            else np.float32(zero)
        )
        if rng is None and fmt.is_integer and whole:
            scaled = np.rint(scaled)  # an odd zero point must not turn ties around
        scaled = scaled + shift
    if fmt.codebook is not None:
        assert fmt.lookup is not None
        table = np.asarray(held.parts["table"], np.float32)
        blocks = fmt.lookup.blocks(scaled)
        return fmt.lookup.restore(fmt.codebook.encode(blocks, rng, table.reshape(-1, table.shape[-1])), x.shape)
    if len(fmt.choices) == 1:
        return fmt.family.encode(scaled, rng)
    assert fmt.lookup is not None
    choice = np.broadcast_to(fmt.lookup.spread(held.parts["choice"], x.shape), x.shape)
    codes = np.empty(x.shape, np.int8 if fmt.family.signed else np.uint8)
    for index, family in enumerate(fmt.families):
        mask = choice == index
        codes[mask] = family.encode(scaled[mask], rng)
    return codes


def by_range(blocks: np.ndarray, fmt: Format, family: ElementFamily) -> Steps:
    """The least scale that clips nothing; 1 (or 0) for blocks of next to nothing. The default of `quantize`."""
    across = np.ascontiguousarray(blocks.T) if blocks.shape[1] <= _NARROW else blocks.T
    low, high = across.min(axis=0, initial=0.0), across.max(axis=0, initial=0.0)
    steps = steps_of(low, high, fmt, family)
    if len(fmt.scales) == 1 and fmt.by_powers_of_two and fmt.offset is None and fmt.zero is None:
        return Steps(_ocp_scale(np.maximum(-low if family.low < 0 else 0, high), family.high), steps.offset, steps.low)
    return steps


def _ocp_scale(peak: np.ndarray, high: float) -> np.ndarray:
    """2^(floor(log2 peak) - floor(log2 high)) for the largest magnitudes of blocks: OCP MX 1.0, 6.3; 1 for nothing."""
    exponent = np.frexp(peak)[1] - 1 - math.floor(math.log2(high))
    return np.where(peak > TINY, np.ldexp(1.0, np.clip(exponent, -127, 127)), 1).astype(np.float32)


def steps_of(low: np.ndarray, high: np.ndarray, fmt: Format, family: ElementFamily) -> Steps:
    """Scale and offset that map ranges [low, high], which hold 0, onto the codes of an element; float32 [blocks]."""
    offset = np.zeros_like(low, np.float32)
    if fmt.offset is not None:
        scale = (high.astype(np.float64) - low) / (family.high - family.low)
        offset = (low - np.float64(family.low) * scale).astype(np.float32)
        offset = -offset if fmt.offset.negative else offset
    elif fmt.zero_level is not None:
        scale = (high.astype(np.float64) - low) / (family.high - family.low)
    else:
        centre = float(fmt.zero) if isinstance(fmt.zero, float) else 0.0
        ends = ((low, family.low - centre), (high, family.high - centre))
        scale = np.maximum(*(v / end if end else v * 0 for v, end in ends))
    shared = len(fmt.scales) > 1 or fmt.mean is not None  # then a 1 would raise what other blocks share
    empty = 1.0 if (family.table == 0).any() and not shared else 0.0  # an element without 0 needs a scale of 0
    return Steps(np.where(scale > TINY, scale, empty).astype(np.float32), offset, low.astype(np.float32))


def _parameters(x: np.ndarray, fmt: Format, choose: Choose) -> dict[str, np.ndarray]:
    """Every part but the codes."""
    if not fmt.scales:
        return {"table": _table(x, fmt)}
    if len(fmt.choices) > 1:
        return _chosen(x, fmt, choose)
    family = load_element("nf4") if fmt.family.trained else fmt.family  # a codebook is scaled to [-1, 1]
    steps = _steps(fmt.scale.blocks(x), fmt, family, choose)
    parts = _fit_scales(steps.scale, fmt, family, x.shape)
    parts |= _fit_offset(steps.offset, fmt, x.shape) if fmt.offset is not None else {}
    scale = combined_scale(_held(fmt, parts, x.shape))
    if fmt.zero_level is not None:
        parts["zero"] = _zero_points(steps.low.reshape(scale.shape), scale, fmt, x.shape)
    if fmt.family.trained:
        parts["table"] = _table(fmt.scaled(x, scale), fmt)
    return parts


def _steps(blocks: np.ndarray, fmt: Format, family: ElementFamily, choose: Choose) -> Steps:
    """`choose`, some blocks at a time."""
    count = rows_of(blocks.shape, _CHUNK)
    if len(blocks) <= count:
        return choose(blocks, fmt, family)
    found = [choose(blocks[begin : begin + count], fmt, family) for begin in range(0, len(blocks), count)]
    return Steps(*(np.concatenate([getattr(some, f.name) for some in found]) for f in fields(Steps)))


def _held(fmt: Format, parts: Mapping[str, np.ndarray], shape: tuple[int, ...]) -> Quantized:
    return Quantized(fmt, {**parts, "codes": np.broadcast_to(np.int8(0), shape)})


def _table(x: np.ndarray, fmt: Format) -> np.ndarray:
    assert fmt.lookup is not None and fmt.codebook is not None
    table = level_dtype(fmt.lookup.dtype).round(fmt.codebook.fit(fmt.lookup.blocks(x)))
    return table.reshape(*fmt.lookup.shape_of(x.shape), fmt.codebook.entries)


def _chosen(x: np.ndarray, fmt: Format, choose: Choose) -> dict[str, np.ndarray]:
    """Each element tried on every block of `lookup`; the one with the least squared error stays."""
    assert fmt.lookup is not None
    lookup, tried, errors = fmt.lookup, list[np.ndarray](), list[np.ndarray]()
    for family in fmt.families:
        scale = _steps(fmt.scale.blocks(x), fmt, family, choose).scale
        parts = _fit_scales(scale, fmt, family, x.shape)
        wide = fmt.scale.spread(combined_scale(_held(fmt, parts, x.shape)), x.shape)
        safe = np.where(wide == 0, np.float32(1), wide)
        off = family.decode(family.encode(x / safe)) * wide - x
        errors.append((lookup.blocks(off) ** 2).sum(axis=1))
        tried.append(scale)
    choice = np.argmin(np.stack(errors), axis=0).astype(np.uint8).reshape(lookup.shape_of(x.shape))
    pick = spread(choice, inner_blocks(lookup, fmt.scale, x.shape), fmt.scale.shape_of(x.shape))
    pick = np.broadcast_to(pick, fmt.scale.shape_of(x.shape)).reshape(-1)
    scale = np.stack(tried)[pick, np.arange(pick.size)]
    return {**_fit_scales(scale, fmt, fmt.family, x.shape), "choice": choice}


def _fit_scales(scale: np.ndarray, fmt: Format, family: ElementFamily, shape: tuple[int, ...]) -> dict[str, np.ndarray]:
    inner = scale.reshape(fmt.scale.shape_of(shape))
    if fmt.mean is None:
        return fit_levels(inner, "scale", fmt.scales, shape, high=family.high)
    units = inner_blocks(fmt.mean, fmt.scale, shape)
    mean = level_dtype(fmt.mean.dtype).round(reduced(inner, units, np.mean))
    rest = inner - spread(np.asarray(mean, np.float32), units, inner.shape)
    return {**fit_levels(rest, "scale", fmt.scales, shape, high=family.high), "mean": mean}


def _fit_offset(offset: np.ndarray, fmt: Format, shape: tuple[int, ...]) -> dict[str, np.ndarray]:
    """Levels of the offset; where its blocks are larger than those of the scales, the furthest one of each."""
    assert fmt.offset is not None
    level = fmt.offset.levels[0]
    inner = offset.reshape(fmt.scale.shape_of(shape))
    if level.block != fmt.scale.block:
        raise BadInput(f"format {fmt}: to quantize, {level} must have the blocks of the scales")
    if level_dtype(level.dtype).low >= 0:
        inner = np.maximum(inner, 0)
    return fit_levels(inner, fmt.offset.word, fmt.offset.levels, shape, high=None)


def _zero_points(low: np.ndarray, scale: np.ndarray, fmt: Format, shape: tuple[int, ...]) -> np.ndarray:
    """The zero point of each of its blocks: what the lowest value there, in steps, needs to become the lowest code."""
    level = fmt.zero_level
    assert level is not None
    steps = -low / np.where(scale == 0, np.float32(1), scale)
    if level.block != fmt.scale.block:
        if not holds(level.block, fmt.scale.block):
            raise BadInput(f"format {fmt}: to quantize, zero points take whole blocks of scales")
        steps = reduced(steps, inner_blocks(level, fmt.scale, shape), np.max)
    zero = np.float32(fmt.family.low) + steps
    dtype = level_dtype(level.dtype)
    zero = np.clip(np.rint(zero), fmt.family.low, fmt.family.high) if dtype.is_integer else zero
    return dtype.round(zero.astype(np.float32)).reshape(level.shape_of(shape))
