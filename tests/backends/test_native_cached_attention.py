"""Attention over a cache in place, as compiled networks call it, against the float64 oracle of `q.attention`."""

from __future__ import annotations

import ctypes
import subprocess
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from qcc.backends.native import isa
from qcc.backends.native.attention_spec import AttentionSpec
from qcc.backends.native.cached_attention import NUMBERS, Heads, cached_attention_function
from qcc.backends.native.calls import runtime
from qcc.backends.native.compile import compiler
from qcc.backends.native.memory import aligned
from qcc.ir.errors import NotSupported
from tests.backends.attention_oracle import BEST, TWO
from tests.ir.attention import CASES, Arrays, Case, assert_meets, extremes

PLAIN = Heads()
READY = [
    Heads(q_epsilon=1e-6, k_epsilon=1e-6, rotated=8),
    Heads(rotated=4, pairs=True),
    Heads(rotated=6),
    Heads(q_epsilon=1e-3, rotated=8, pairs=True),
    Heads(k_epsilon=1e-5),
]


SOME = [*CASES[:-6:3], *CASES[-6:]]
"""Cases of every kind, of which each takes a compilation; the last have caches of f16 and i8."""


class Linked:
    """The function of a case in a library of its own."""

    def __init__(self, case: Case, heads: Heads, folder: Path, threads: int = 1, each: str = BEST) -> None:
        form = case.cache or "f32"
        self.spec = AttentionSpec(
            case.heads, case.size, case.kv_heads, form, causal=True, window=case.window or None,
            softcap=case.softcap or None, scale=case.scale,
        )  # fmt: skip
        self.heads, self.form = heads, form
        function = cached_attention_function(self.spec, heads, isa.named(each))
        path = folder / "attention.so"
        subprocess.run([compiler(), "-shared", "-o", path, function.compile(), runtime(), "-lm"], check=True)
        library = ctypes.CDLL(str(path))
        library.qcc_set_threads(threads)
        self.call: Callable[..., int] = library[function.symbol]
        pointers = len(heads.names(self.spec)) + 1
        self.call.argtypes = [*[ctypes.c_void_p] * pointers, *[ctypes.c_int64] * len(NUMBERS)]  # type: ignore[attr-defined]

    def run(self, feeds: Arrays, more: Arrays, capacity: int, *, total: int | None = None) -> tuple[int, Arrays]:
        """The status, and what `q.attention` gives; a cache has `capacity` positions, the rest of it poison."""
        arrays: dict[str, np.ndarray] = {n: np.ascontiguousarray(feeds[n]) for n in ("q", "k", "v")}
        batch, queries = feeds["q"].shape[:2]
        for name in ("key", "value"):
            arrays |= self._stored(name, feeds[f"past_{name}"], capacity)
        arrays["total"] = np.array(feeds["total"] if total is None else total, np.int32)
        arrays |= {name: np.ascontiguousarray(a, np.float32) for name, a in more.items()}
        y = np.full_like(arrays["q"], np.nan)
        table = 0 if "cos" not in more or len(more["cos"]) == 1 else queries
        widths = [arrays[n].shape[2] for n in ("q", "k", "v")]
        names = self.heads.names(self.spec)
        status = self.call(
            *[arrays[n].ctypes.data for n in names], y.ctypes.data, batch, queries, capacity, *widths, table
        )
        caches = {name: self._read(name, arrays) for name in ("key", "value")}
        return status, {"y": y, **caches}

    def _stored(self, name: str, past: np.ndarray, capacity: int) -> Arrays:
        shape = (*past.shape[:2], capacity, past.shape[3])
        whole = np.full(shape, 7e4 if self.form != "f16" else 6e4, np.float32)
        whole[:, :, : past.shape[2]] = past
        if self.form != "i8":
            dtype = np.dtype(np.float16 if self.form == "f16" else np.float32)
            held = aligned(whole.size * dtype.itemsize).view(dtype).reshape(shape)
            held[...] = whole
            return {name: held}
        scale = np.maximum(np.abs(whole).max(-1), 2.0**-126) / np.float32(127)
        codes = aligned(whole.size).view(np.int8).reshape(shape)
        codes[...] = np.rint(whole / scale[..., None])
        return {name: codes, f"{name}_scale": np.ascontiguousarray(scale, np.float32)}

    def _read(self, name: str, arrays: Arrays) -> np.ndarray:
        held = arrays[name].astype(np.float32)
        return held * arrays[f"{name}_scale"][..., None] if self.form == "i8" else held


def of(case: Case) -> Arrays:
    """Operands whose past is what a cache of the case can hold."""
    feeds = case.feeds()
    for name in ("past_key", "past_value") if case.cache else ():
        feeds[name] = np.round(feeds[name] * 16).clip(-127, 127) / 16
        feeds[name][..., 0] = 127 / 16  # so that codes are these multiples of 1 / 16
    return feeds


@pytest.mark.parametrize("case", SOME, ids=repr)
def test_results_are_what_the_operation_says(case: Case, tmp_path: Path) -> None:
    feeds = of(case)
    status, found = Linked(case, PLAIN, tmp_path, threads=TWO).run(feeds, {}, case.total + case.slack)
    assert status == 0
    assert_meets(found, case, feeds) if case.cache != "i8" else meets_roughly(found, case, feeds)


def meets_roughly(found: Arrays, case: Case, feeds: Arrays) -> None:
    """Codes are right but where a quotient lies between two: a step, which moves y by as much."""
    from tests.ir.attention import oracle

    expected = oracle(case, feeds)
    for name in ("key", "value"):
        step = np.abs(expected[name]).max(-1, keepdims=True) / 127
        assert (np.abs(found[name][:, :, : case.total] - expected[name]) <= 1.01 * step).all()
        assert (np.abs(found[name][:, :, : case.total] - expected[name]) <= 0.01 * step).mean() > 0.99
    np.testing.assert_allclose(found["y"], expected["y"], atol=2e-3)


@pytest.mark.parametrize("kind", ["huge", "signed zeros", "alike", "spike"])
@pytest.mark.parametrize("case", [Case(), Case(window=2, length=1), Case(4, 1, 64, length=20, past=30)], ids=repr)
def test_extreme_values(case: Case, kind: str, tmp_path: Path) -> None:
    feeds = extremes(case)[kind]
    assert_meets(Linked(case, PLAIN, tmp_path).run(feeds, {}, case.total)[1], case, feeds)


def ready(x: np.ndarray, heads: int, size: int, epsilon: float | None, weight: np.ndarray | None) -> np.ndarray:
    """RMSNorm of every head, in float64 [B, S, heads, size]."""
    split = x.astype(np.float64).reshape(*x.shape[:2], heads, size)
    if epsilon is None or weight is None:
        return split
    return split / np.sqrt((split**2).mean(-1, keepdims=True) + epsilon) * weight


def turned(x: np.ndarray, heads: Heads, cos: np.ndarray, sin: np.ndarray) -> np.ndarray:
    """Numbers of a rotation as complex ones: RoFormer, section 3.4.2."""
    x, n = x.copy(), heads.rotated
    one, two = (slice(0, n, 2), slice(1, n, 2)) if heads.pairs else (slice(0, n // 2), slice(n // 2, n))
    spun = (x[..., one] + 1j * x[..., two]) * (cos + 1j * sin)[:, :, None]
    x[..., one], x[..., two] = spun.real, spun.imag
    return x


@pytest.mark.parametrize("form", ["", "f16", "i8"])
@pytest.mark.parametrize("heads", READY, ids=repr)
@pytest.mark.parametrize(
    "case",
    [Case(), Case(length=1, past=9), Case(4, 1, 40, length=19, past=3, batch=2), Case(2, 2, 15, batch=2)],
    ids=repr,
)
def test_heads_are_made_ready(case: Case, heads: Heads, form: str, tmp_path: Path) -> None:
    """Norms and rotations give what they give one after the other; angles may differ between rows of a batch."""
    case, rng = replace(case, cache=form), np.random.default_rng(3)
    feeds = of(case)
    angles = rng.uniform(-9, 9, (case.batch if case.size != 15 else 1, case.length, heads.rotated // 2))
    more: dict[str, Any] = {"cos": np.cos(angles), "sin": np.sin(angles)} if heads.rotated else {}
    weights = {n: rng.uniform(0.5, 2, case.size).astype(np.float32) for n in ("q_weight", "k_weight")}
    q = ready(feeds["q"], case.heads, case.size, heads.q_epsilon, weights["q_weight"])
    k = ready(feeds["k"], case.kv_heads, case.size, heads.k_epsilon, weights["k_weight"])
    if heads.rotated:
        q, k = (turned(x, heads, more["cos"], more["sin"]) for x in (q, k))
    names = heads.names(AttentionSpec(case.heads, case.size, case.kv_heads))
    more |= {name: w for name, w in weights.items() if name in names}
    flat = {n: x.reshape(*x.shape[:2], -1).astype(np.float32) for n, x in (("q", q), ("k", k))}
    status, found = Linked(case, heads, tmp_path, threads=TWO).run(feeds, more, case.total + 3)
    assert status == 0
    from tests.ir.attention import oracle

    expected = oracle(case, {**feeds, **flat})
    step = {"": 1e-6, "f16": 2e-3, "i8": 1.01 / 127}[form]
    for name in ("key", "value"):
        off = np.abs(found[name][:, :, : case.total] - expected[name])
        assert (off <= step * np.abs(expected[name]).max(-1, keepdims=True) + 1e-6).all()
    np.testing.assert_allclose(found["y"], expected["y"], atol={"": 1e-5, "f16": 5e-3, "i8": 4e-2}[form])


def test_threads_and_batches_change_no_bit(tmp_path: Path) -> None:
    case, heads = Case(4, 1, 64, length=33, past=200, batch=2, cache="f16"), Heads(1e-6, 1e-6, 64)
    feeds, angles = of(case), np.random.default_rng(0).uniform(-3, 3, (1, case.length, 32))
    more = {"cos": np.cos(angles), "sin": np.sin(angles), "q_weight": np.ones(64), "k_weight": np.full(64, 1.5)}
    places = [tmp_path / str(i) for i in range(2)]
    for place in places:
        place.mkdir()
    one, many = (
        Linked(case, heads, p, t).run(feeds, more, case.total)[1]["y"] for p, t in zip(places, (1, TWO), strict=True)
    )
    np.testing.assert_array_equal(one, many)
    first = {n: a[:1] if a.ndim else a for n, a in feeds.items()}
    alone = Linked(replace(case, batch=1), heads, places[0]).run(first, more, case.total)[1]["y"]
    np.testing.assert_array_equal(one[:1], alone)


@pytest.mark.parametrize("total", [-1, 0, 2, 9, 1 << 30])
def test_a_total_that_does_not_fit_is_refused(total: int, tmp_path: Path) -> None:
    case = Case(length=3, past=5)
    linked = Linked(case, PLAIN, tmp_path)
    status, found = linked.run(of(case), {}, 8, total=total)
    assert status == 1
    assert np.isnan(found["y"]).all(), "nothing is written"


def test_no_tokens_and_no_rows(tmp_path: Path) -> None:
    linked = Linked(Case(), PLAIN, tmp_path)
    for case in (Case(length=0, past=4), Case(batch=0)):
        status, _ = linked.run(case.feeds(), {}, case.total + 1)
        assert status == 0


@pytest.mark.parametrize("rotated", [3, 10])
def test_rotations_that_do_not_fit_are_refused(rotated: int) -> None:
    with pytest.raises(NotSupported, match=f"{rotated} of 8 values"):
        cached_attention_function(AttentionSpec(2, 8, causal=True), Heads(rotated=rotated), isa.named(BEST))
