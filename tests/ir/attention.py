"""Causal grouped-query attention over a cache in float64 loops, and cases of `q.attention` for every way to compute it.

Written from what the operation says, position by position, not from its expansion.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from qcc.ir.dialects.q_attention import CACHES
from qcc.ir.program import Program
from tests.ir.helpers import program

Array = NDArray[Any]
Arrays = dict[str, Array]


@dataclass(frozen=True)
class Case:
    """One attention: `past` entries in a cache of `past + slack` positions, then `length` new ones."""

    heads: int = 4
    kv_heads: int = 2
    size: int = 8
    length: int = 3
    past: int = 5
    slack: int = 0
    batch: int = 1
    window: int = 0
    softcap: float = 0.0
    scale: float = 0.25
    element: str = "f32"
    cache: str = ""

    @property
    def dtype(self) -> type[np.floating[Any]]:
        """The numpy type of the operands."""
        return np.float32 if self.element == "f32" else np.float16

    @property
    def total(self) -> int:
        """Entries of the cache afterwards."""
        return self.past + self.length

    def feeds(self, seed: int = 0, spread: float = 1.0) -> Arrays:
        """Random operands; what the cache holds behind its used part is large, so that reading it shows."""
        rng = np.random.default_rng(seed)

        def normal(*shape: int) -> Array:
            return (rng.standard_normal(shape) * spread).astype(self.dtype)

        cache = (self.batch, self.kv_heads, self.past + self.slack, self.size)
        feeds = {
            "q": normal(self.batch, self.length, self.heads * self.size),
            "k": normal(self.batch, self.length, self.kv_heads * self.size),
            "v": normal(self.batch, self.length, self.kv_heads * self.size),
            "past_key": normal(*cache),
            "past_value": normal(*cache),
            "total": np.array(self.total, np.int32),
        }
        for name in ("past_key", "past_value"):
            feeds[name][:, :, self.past :] = 9000
        return feeds


def oracle(case: Case, feeds: Arrays) -> Arrays:
    """The results in float64; caches hold the used entries only."""
    keys = _grown(feeds["past_key"], feeds["k"], case)
    values = _grown(feeds["past_value"], feeds["v"], case)
    q = feeds["q"].astype(np.float64).reshape(case.batch, case.length, case.heads, case.size)
    y = np.zeros_like(q)
    for b, i, h in np.ndindex(case.batch, case.length, case.heads):
        group = h // (case.heads // case.kv_heads)
        own = case.past + i
        first = max(0, own - case.window + 1) if case.window else 0
        seen = range(first, own + 1)
        scores = [case.scale * float(np.dot(q[b, i, h], keys[b, group, j])) for j in seen]
        if case.softcap:
            scores = [case.softcap * math.tanh(s / case.softcap) for s in scores]
        weights = [math.exp(s - max(scores)) for s in scores]
        y[b, i, h] = sum(w * values[b, group, j] for w, j in zip(weights, seen, strict=True)) / sum(weights)
    return {"y": y.reshape(case.batch, case.length, -1), "key": keys, "value": values}


def _grown(cache: Array, new: Array, case: Case) -> Array:
    """[B, kv_heads, total, D] float64."""
    grown = np.zeros((case.batch, case.kv_heads, case.total, case.size))
    grown[:, :, : case.past] = cache[:, :, : case.past]
    for b, i, g in np.ndindex(case.batch, case.length, case.kv_heads):
        grown[b, g, case.past + i] = rounded(new[b, i, g * case.size : (g + 1) * case.size], case.cache)
    return grown


def rounded(entry: Array, cache: str) -> Array:
    """One entry of one head as a cache holds it: float64 [D]."""
    if cache == "f16":
        return entry.astype(np.float16).astype(np.float64)
    largest = float(np.abs(entry).max())
    if cache != "i8" or largest == 0:
        return entry.astype(np.float64)
    step = np.float64(np.float32(largest) / np.float32(127))
    return np.array([round(float(x) / step) * step for x in entry])


def attention(case: Case) -> Program:
    """The program of one `q.attention` with open lengths."""
    flat = {n: f"tensor<{case.batch}x?x{h * case.size}x{case.element}>" for n, h in _widths(case).items()}
    cache = f"tensor<{case.batch}x{case.kv_heads}x?x{case.size}x{case.element}>"
    attributes = f"heads = {case.heads} : i64, kv_heads = {case.kv_heads} : i64, scale = {case.scale:e} : f32"
    attributes += f", window = {case.window} : i64" if case.window else ""
    attributes += f", softcap = {case.softcap:e} : f32" if case.softcap else ""
    attributes += f', cache = "{case.cache}"' if case.cache else ""
    return program(
        {**flat, "past_key": cache, "past_value": cache, "total": "tensor<i32>"},
        f'%y, %key, %value = q.attention "layer"(%q, %k, %v, %past_key, %past_value, %total) {{{attributes}}}'
        f" : {flat['q']}, {cache}, {cache}",
        {"y": flat["q"], "key": cache, "value": cache},
        opset=23,
    )


def _widths(case: Case) -> dict[str, int]:
    return {"q": case.heads, "k": case.kv_heads, "v": case.kv_heads}


def assert_meets(found: Arrays, case: Case, feeds: Arrays) -> None:
    """`found` is what the oracle says: caches bit by bit, y within what rounding scores and weights can change."""
    expected = oracle(case, feeds)
    for name in ("key", "value"):
        assert found[name].shape[2] >= case.total
        used = found[name][:, :, : case.total]
        if case.cache == "i8":  # products of codes and scales, rounded once
            np.testing.assert_allclose(used, expected[name], rtol=2 * float(np.finfo(case.dtype).eps), err_msg=name)
        else:
            np.testing.assert_array_equal(used, expected[name].astype(case.dtype), err_msg=name)
    assert found["y"].dtype == case.dtype
    eps = float(np.finfo(case.dtype).eps)
    largest = float(np.abs(expected["value"]).max(initial=0.0))
    raw = case.scale * case.size * float(np.abs(feeds["q"]).max()) * float(np.abs(expected["key"]).max(initial=0.0))
    tolerance = 4 * eps * (case.total + case.size + 4 * raw + 8) * largest
    np.testing.assert_allclose(found["y"].astype(np.float64), expected["y"], rtol=0, atol=tolerance)


GROUPS = [(1, 1), (4, 1), (4, 2), (8, 8)]
CASES = [
    *(Case(heads, kv, length=length, past=past) for heads, kv in GROUPS for length in (1, 4) for past in (0, 7)),
    *(Case(size=size, past=past) for size in (2, 6, 16, 40, 64) for past in (0, 9)),
    *(Case(window=w, length=n, past=p) for w in (1, 3, 100) for n, p in ((1, 0), (1, 12), (6, 0), (6, 12))),
    *(Case(softcap=c, length=n, past=4) for c in (0.5, 30.0) for n in (1, 5)),
    Case(window=3, softcap=2.0, length=5, past=6),
    Case(8, 2, 16, length=40, past=300, window=64),
    Case(4, 2, 8, length=1, past=700),
    Case(length=3, past=5, slack=9),
    Case(length=1, past=5, slack=40, window=4),
    Case(length=6, past=0, slack=8),
    Case(batch=2, length=1, past=6),
    Case(batch=3, length=5, past=0),
    Case(scale=1.0, length=4, past=4),
    *(Case(length=n, past=p, cache=c, size=s) for c in CACHES[1:] for n, p, s in ((1, 6, 8), (5, 0, 64), (4, 9, 40))),
]
IDS = [repr(case).removeprefix("Case") for case in CASES]


def extremes(case: Case) -> dict[str, Arrays]:
    """Operands that try the softmax: scores too large for exp, signed zeros, all alike."""
    huge, zero, alike = case.feeds(1, 30.0), case.feeds(), case.feeds()
    for name in ("q", "k", "past_key"):
        zero[name][..., : case.past] = -0.0
    for name in ("k", "v"):
        alike[name][:] = 0.5
        cache = alike["past_key" if name == "k" else "past_value"]
        cache[:, :, : case.past] = 0.5
    spike = case.feeds(2)
    spike["q"][:, :, 0] = 200
    spike["k"][:, 0, 0] = 200
    return {"huge": huge, "signed zeros": zero, "alike": alike, "spike": spike}
