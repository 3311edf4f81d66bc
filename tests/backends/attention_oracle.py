"""An oracle for attention kernels: y = softmax(cap(scale q k^T) + mask) v in float64, query by query.

It shares nothing with them. `case_of` makes a call whose cache has poison behind its keys; `check` compares.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cache
from itertools import product

import numpy as np

from qcc.backends.native import attention, isa
from qcc.backends.native.attention import AttentionKernel, Cache
from qcc.backends.native.attention_spec import AttentionSpec
from qcc.ir import target
from tests.backends.native_oracle import host_isas

CORES = target.load("cpu").cores
TWO = min(2, CORES)
"""Threads that a second run takes."""
BEST = host_isas()[0]

SPECS = {
    "encoder": AttentionSpec(3, 32),
    "encoder with padding": AttentionSpec(2, 16, mask="bool"),
    "grouped": AttentionSpec(8, 64, 2, causal=True, window=1000, softcap=2.5),
    "windowed": AttentionSpec(4, 256, 1, "f16", causal=True, window=5),
    "window of one": AttentionSpec(2, 16, 1, "f16", causal=True, window=1),
    "ragged": AttentionSpec(2, 15, 1, causal=True, window=150, scale=-0.7),
    "ragged codes": AttentionSpec(4, 15, 2, "i8", causal=True, softcap=30.0),
    "codes": AttentionSpec(4, 256, 1, "i8", causal=True, window=100),
    "bias": AttentionSpec(12, 20, 1, "f16", causal=True, mask="f32"),
}


@cache
def built(name: str, each: str = BEST) -> AttentionKernel:
    """A kernel that tests share."""
    return attention.build(SPECS[name], isa.named(each))


@dataclass(frozen=True)
class Case:
    """Operands of a call, and keys and values in float64, as the cache holds them."""

    q: np.ndarray
    cache: Cache
    lengths: list[int]
    mask: np.ndarray | None
    keys: np.ndarray
    values: np.ndarray


def case_of(kernel: AttentionKernel, shape: tuple[int, int, int], kind: str = "random", seed: int = 0) -> Case:
    """A call whose cache has poison behind its keys; memory orders differ with the shape."""
    spec, (batch, n, total), rng = kernel.spec, shape, np.random.default_rng(seed)
    spread = {"random": 1.0, "large": 9.0, "equal": 0.0}[kind]
    q = (rng.standard_normal((batch, n, spec.heads, spec.size)) * spread).astype(np.float32).swapaxes(1, 2)
    k = (rng.standard_normal((batch, total, spec.kv_heads, spec.size)) * spread).astype(np.float32).swapaxes(1, 2)
    v = rng.standard_normal((batch, total, spec.kv_heads, spec.size)).astype(np.float32).swapaxes(1, 2)
    cache = kernel.cache(batch, total + 5, token_major=n % 2 == 0)
    for array in (cache.key, cache.value, cache.key_scale, cache.value_scale):
        if array is not None:
            array[:] = 99 if array.dtype == np.int8 else np.nan
    lengths = [max(0, total - 3 * b) for b in range(batch)]
    kernel.append(cache, k, v, 0, threads=TWO)
    keys, values = (a.astype(np.float64) for a in (cache.key, cache.value))
    if cache.key_scale is not None and cache.value_scale is not None:
        keys, values = keys * cache.key_scale[..., None], values * cache.value_scale[..., None]
    for b, length in enumerate(lengths):  # what is behind a sequence must not be read
        for array in (cache.key, cache.value, cache.key_scale, cache.value_scale):
            if array is not None:
                array[b, :, length:] = 99 if array.dtype == np.int8 else np.nan
    return Case(q, cache, lengths, mask_of(spec, shape, rng), keys, values)


def mask_of(spec: AttentionSpec, shape: tuple[int, int, int], rng: np.random.Generator) -> np.ndarray | None:
    """A mask that is the same for some of heads and queries, or none."""
    batch, n, total = shape
    if spec.mask == "none":
        return None
    wide = (batch, 1, 1, total) if n % 2 else (spec.heads, n, total + 2)
    seen = rng.random(wide) < 0.7
    bias = np.where(seen, rng.standard_normal(wide), -np.inf).astype(np.float32)
    return seen if spec.mask == "bool" else bias


def expected(spec: AttentionSpec, case: Case) -> tuple[np.ndarray, np.ndarray]:
    """y in float64, query by query, and what rounding may change it by.

    A score is a sum of `size` products in float32, so it may be off by some roundings of the sum of their sizes, and a
    weight by as much relatively; the rest are a few roundings of a weight, and those of sums of weights.
    """
    y, off = np.zeros(case.q.shape), np.zeros(case.q.shape)
    batch, heads, n, _ = case.q.shape
    for b, h, i in product(range(batch), range(heads), range(n)):
        at: int = case.lengths[b] - n + i
        group = h // (heads // spec.kv_heads)
        seen: np.ndarray = np.arange(case.lengths[b])
        if spec.causal:
            seen = seen[seen <= at]
        if spec.window is not None:
            seen = seen[seen > at - spec.window]
        keys, values, query = case.keys[b, group, seen], case.values[b, group, seen], case.q[b, h, i].astype(np.float64)
        scores = spec.factor * (keys @ query)
        sizes = abs(spec.factor) * (np.abs(keys) @ np.abs(query))
        if spec.softcap is not None:
            scores, sizes = spec.softcap * np.tanh(scores / spec.softcap), np.minimum(sizes, spec.softcap) + sizes
        if case.mask is not None:
            row = np.broadcast_to(case.mask, (batch, heads, n, case.mask.shape[-1]))[b, h, i, seen]
            scores = np.where(row, scores, -np.inf) if row.dtype == np.bool_ else scores + row
            sizes = sizes + np.abs(np.where(np.isfinite(scores), scores, 0))
        if not np.isfinite(scores).any():
            continue
        weights = np.exp(scores - scores.max())
        y[b, h, i] = weights @ values / weights.sum()
        largest = np.abs(values).max()
        off[b, h, i] = 2.0**-23 * (16 + 4 * sizes.max()) * largest
        if spec.cache == "i8":  # q may be rounded to 16 bits, by half a step, and weights change twice as much
            step = np.abs(query).max() / (127 * 256 + 127)
            off[b, h, i] += abs(spec.factor) * step * np.abs(keys).sum(1).max() * largest
    return y, off


def check(kernel: AttentionKernel, shape: tuple[int, int, int], kind: str = "random", seed: int = 0) -> Case:
    """The kernel is as near as rounding allows, on one thread and, with the same bits, on two."""
    case = case_of(kernel, shape, kind, seed)
    y = kernel(case.q, case.cache, case.lengths, case.mask)
    exact, off = expected(kernel.spec, case)
    wrong = ~(np.abs(y - exact) <= off)
    assert not wrong.any(), f"{kernel.spec} {kernel.isa.name} {shape} {kind}: {wrong.sum()} of {y.size} are off"
    again = kernel(case.q, case.cache, case.lengths, case.mask, threads=TWO)
    assert again.tobytes() == y.tobytes(), f"{kernel.spec} {shape}: threads change bits"
    return case
