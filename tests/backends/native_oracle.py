"""An oracle for linear kernels that shares nothing with them: weights by their tables, activations rounded by numpy.

    y[m, n] = sum_g xs[m, g] * sum_{k in g} q[m, k] * value[n, k] (+ bias)       in float64, of whole numbers q

`Case` is one kernel. `check` runs it on ordinary and extreme codes and activations, for several M and threads. Weights
and activations of the *exact* kind are chosen so that float32 holds every sum of the kernel: then no bit may differ.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from itertools import pairwise
from typing import Any

import numpy as np
from numpy.typing import NDArray

from qcc.backends.native import isa as instruction_sets
from qcc.backends.native import linear
from qcc.backends.native.linear import LinearKernel
from qcc.backends.native.linear_spec import Activation, LinearSpec, Schedule, unpacks
from qcc.ir import target
from qcc.ir.format import Format
from qcc.ir.formats import load_element
from qcc.ir.level import Level
from qcc.ir.levels import level_dtype
from qcc.ir.quantized import Quantized

Floats = NDArray[np.float32]
Doubles = NDArray[np.float64]
Inputs = NDArray[Any]
"""float32 or bfloat16: Any, since numpy has no type for the latter."""

PATTERNS = ("random", "lowest", "highest", "alternating")
"""How codes are chosen: of the extremes, every code is the one of the smallest or of the largest value."""
LIMITS = {8: 127, 16: 127 * 256 + 127}
"""The largest whole number of an activation."""
EXACT = 2.0**24
"""Whole numbers up to here are floats."""
ROUNDED = {"nf4": 2.0**-16, "fp4": 2.0**-16, "e5m2": 2.0**-23.9}
"""Elements whose values have no common unit, and the error of a value that a kernel may make, over the largest one."""


@dataclass(frozen=True)
class Case:
    """One kernel: a format, a shape, how activations are rounded, an instruction set and a schedule."""

    fmt: str
    n: int
    k: int
    activation: Activation
    isa: str
    schedule: Schedule | None = None

    def __str__(self) -> str:
        s = self.schedule
        how = f" {s.unpack} {s.vectors}v {s.streams}s {s.prefetch}p {s.tile}t" if s else ""
        return f"[{self.fmt}] {self.n}x{self.k} {self.activation} {self.isa}{how}"

    @property
    def spec(self) -> LinearSpec:
        """What it computes."""
        return LinearSpec(self.n, self.k, Format.parse(self.fmt), self.activation)

    def build(self) -> LinearKernel:
        """The compiled kernel."""
        return linear.build(self.spec, instruction_sets.named(self.isa), self.schedule)


def host_isas() -> list[str]:
    """The instruction sets that kernels of this host can be made for."""
    host = target.load("cpu")
    return [isa.name for isa in instruction_sets.ISAS if not isa.missing(host)]


def check(case: Case, kernel: LinearKernel | None = None, rows: tuple[int, ...] = (1, 2, 3, 5, 9, 17)) -> int:
    """Every pattern of codes, exact and rough numbers, for all `rows` and one or two threads; how many were exact."""
    kernel = kernel or case.build()
    rng = np.random.default_rng(len(str(case)) + 7 * case.n + case.k)
    exactly = 0
    for pattern in PATTERNS:
        for exact in (True, False):
            oracle = Oracle.of(kernel.spec, weights(kernel.spec.weight, (case.n, case.k), pattern, exact, rng))
            packed = kernel.pack(oracle.weight)
            for m in rows:
                x = whole_activations(kernel.spec, m, rng) if exact else rough_activations(m, case.k, rng)
                bias = rng.integers(-9, 9, case.n).astype(np.float32) if m % 2 else None
                threads = 1 + m % 2 if target.load("cpu").cores > 1 else 1
                x = read_as(x, kernel.spec.activation.dtype)
                y = kernel(x, packed, bias, threads=threads)
                what = f"{case}, codes {pattern}, M = {m}, {threads} threads"
                exactly += oracle.compare(x, bias, y, what)
                oracle.compare_with_floats(x, bias, y, what)
            if pattern == "random" and kernel.spec.activation.bits == 16:
                x = read_as(rng.standard_normal((max(rows), case.k)), kernel.spec.activation.dtype)
                error = oracle.compare_with_floats(x, None, kernel(x, packed), str(case))
                assert error < 1e-3, f"{case}: {error:.1e} of the root mean square"
    return exactly


@dataclass(frozen=True)
class Oracle:
    """A weight in float64, and what its products must be."""

    spec: LinearSpec
    weight: Quantized
    values: Doubles
    sizes: Doubles
    """Of each value, the sizes of the terms that it is the sum of: float32 may lose a few parts of their sum."""
    grain: float
    """What all terms of an exact weight are whole multiples of."""
    starts: NDArray[np.int64]

    @staticmethod
    def of(spec: LinearSpec, weight: Quantized) -> Oracle:
        """The oracle of a weight."""
        return Oracle(spec, weight, *decoded(weight), group_starts(spec.weight, (spec.n, spec.k)))

    def compare(self, x: Inputs, bias: Floats | None, y: Floats, what: str) -> bool:
        """Against the product with rounded activations: bit for bit where float32 holds all sums, which it returns."""
        q, wide = self._rounded(x.astype(np.float32))
        wanted, terms = self._product(q * wide, bias), self._terms(np.abs(q) * wide, bias)
        assert y.shape == wanted.shape and y.dtype == np.float32, what
        pieces = np.abs(q) + (256 * (np.abs(q) >= 128) if self.spec.activation.bits == 16 else 0)
        units = self._terms(pieces * wide, bias).max(initial=0) / (self.grain * wide.min(initial=1, where=wide > 0))
        power = np.frexp(wide[wide > 0])[0] == 0.5
        exact = units < EXACT and bool(power.all()) and self.spec.weight.element not in ROUNDED
        if exact and self._by_powers:
            np.testing.assert_array_equal(y, wanted.astype(np.float32), err_msg=what)
            return True
        self._within(y, wanted, self._roundings(terms) + self._losses(np.abs(q) * wide), what)
        return False

    def compare_with_floats(self, x: Inputs, bias: Floats | None, y: Floats, what: str) -> float:
        """Against the product without rounding: half a step of every activation; the largest error over the RMS."""
        exactly = x.astype(np.float64)
        wanted, sizes = self._product(exactly, bias), np.abs(exactly)
        _, wide = self._rounded(x.astype(np.float32))
        steps = np.broadcast_to(0.5001 * wide, x.shape) @ np.abs(self.values).T
        self._within(y, wanted, steps + self._roundings(self._terms(sizes, bias)) + self._losses(sizes), what)
        rms = float(np.sqrt((wanted**2).mean())) if wanted.size else 0.0
        return float(np.abs(y - wanted).max(initial=0)) / rms if rms else 0.0

    @property
    def _by_powers(self) -> bool:
        """Whether the numbers of its levels are small whole numbers, as those of exact weights are."""
        names = [name for name in self.weight.format.levels() if name != "zero"]
        held = [np.asarray(self.weight.parts[name]).astype(np.float32) for name in names]
        return all(bool(np.isin(some, [1, 2, 3]).all()) for some in held)

    def _rounded(self, x: Floats) -> tuple[Doubles, Doubles]:
        """Whole numbers [M, K] and the scale of each, [M, K] or [M, 1]."""
        q, scales = rounded(x, self.spec.activation, self.starts)
        return q, np.repeat(scales, np.diff([*self.starts, self.spec.k]), axis=1) if scales.shape[1] > 1 else scales

    def _product(self, x: Doubles, bias: Floats | None) -> Doubles:
        return x @ self.values.T + (0 if bias is None else bias.astype(np.float64))

    def _terms(self, x: Doubles, bias: Floats | None) -> Doubles:
        return x @ self.sizes.T + (0 if bias is None else np.abs(bias))

    def _roundings(self, terms: Doubles) -> Doubles:
        return (len(self.starts) + 8) * 2.0**-24 * terms

    def _losses(self, x: Doubles) -> Doubles:
        """What values that have no common unit lose."""
        loss = ROUNDED.get(self.spec.weight.element, 0.0)
        return loss * (x.sum(axis=1, keepdims=True) * self.sizes.max(axis=1) * 2) if loss else np.zeros((1, 1))

    def _within(self, y: Floats, wanted: Doubles, allowed: Doubles, what: str) -> None:
        worse = ~(np.abs(y - wanted) <= allowed)
        assert not worse.any(), f"{what}: at {np.argwhere(worse)[:4].tolist()} {y[worse][:4]} for {wanted[worse][:4]}"


def group_starts(fmt: Format, shape: tuple[int, int]) -> NDArray[np.int64]:
    """The first column of each group of the weight: a block of the finest level that lies along k."""
    along = [level for level in fmt.levels().values() if level.shape_of(shape) != (1, 1)]
    width = min((level.block_of(shape)[1] for level in along), default=shape[1])
    return np.arange(0, shape[1], max(1, width))


def rounded(x: Floats, activation: Activation, starts: NDArray[np.int64]) -> tuple[Doubles, Doubles]:
    """Whole numbers [M, K] of activations and their scales [M, G or 1], in the documented operations of float32."""
    limit = np.float32(LIMITS[activation.bits])
    edges = [*starts, x.shape[1]] if activation.grouped else [0, x.shape[1]]
    whole, scales = np.zeros(x.shape), np.zeros((len(x), len(edges) - 1))
    for g, (first, last) in enumerate(pairwise(edges)):
        part = x[:, first:last]
        high = np.abs(part).max(axis=1, initial=0, keepdims=True)
        scale = np.where(high > 0, np.maximum(high / limit, np.float32(2.0**-126)), np.float32(0))
        inverse = np.divide(np.float32(1), scale, where=scale > 0, out=np.zeros_like(scale))
        whole[:, first:last] = np.clip(np.rint(part * inverse), -limit, limit)
        scales[:, g] = scale[:, 0]
    return whole, scales


def decoded(weight: Quantized) -> tuple[Doubles, Doubles, float]:
    """float64 values [N, K]; the sizes of the terms that each is a sum of; what all of them are whole multiples of."""
    fmt, family = weight.format, weight.format.family
    raw = weight.codes.view(np.uint8).astype(np.int64) & ((1 << fmt.bits) - 1)
    table = family.table.astype(np.float64)
    values = table[raw]
    finite = np.abs(table[np.isfinite(table) & (table != 0)])
    grain, sizes = (float(finite.min()) if finite.size else 1.0), np.abs(values)
    if (
        finite.max(initial=0) > 255 * grain or fmt.element in ROUNDED
    ):  # the sum of several bytes, each of which may be as large as any
        sizes = np.full_like(values, finite.max())
    if fmt.zero is not None:
        zero = wide(weight, "zero") if isinstance(fmt.zero, Level) else np.float64(fmt.zero)
        grain = grain / 2 if fmt.zero_dtype[:1] in ("f", "b") else grain
        sizes, values = sizes + np.abs(zero), values - zero
    scale = product(weight, "scale")
    values, sizes = values * scale, sizes * np.abs(scale)
    if fmt.offset is not None:
        offset = product(weight, fmt.offset.word)
        values, sizes = values - offset if fmt.offset.negative else values + offset, sizes + np.abs(offset)
    return np.broadcast_to(values, weight.shape), np.broadcast_to(sizes, weight.shape), grain


def product(weight: Quantized, word: str) -> Doubles:
    """The product of the levels called `word`, `word1`, ..., one number for each element."""
    found = np.ones(weight.shape)
    for name in weight.format.levels():
        found = found * wide(weight, name) if name.rstrip("0123456789") == word else found
    return found


def wide(weight: Quantized, name: str) -> Doubles:
    """The numbers of a level as float64, one for each element of the weight."""
    level = weight.format.levels()[name]
    block = level.block_of(weight.shape)
    numbers = np.asarray(weight.parts[name]).astype(np.float32).astype(np.float64)
    rows, columns = (np.arange(extent) // size for extent, size in zip(weight.shape, block, strict=True))
    return numbers.reshape(level.shape_of(weight.shape))[np.ix_(rows, columns)]


def weights(fmt: Format, shape: tuple[int, int], pattern: str, exact: bool, rng: np.random.Generator) -> Quantized:
    """A weight with codes by `pattern`; scales of 1, 2 and small whole numbers where `exact`, else of every size."""
    family = load_element(fmt.element)
    valid = np.flatnonzero(np.isfinite(family.table))
    by_value = valid[np.argsort(family.table[valid], kind="stable")]
    raw = np.full(shape, by_value[0])
    if pattern == "random":
        raw = rng.choice(valid, shape)
    elif pattern == "highest":
        raw = np.full(shape, by_value[-1])
    elif pattern == "alternating":
        raw = np.where(np.add.outer(np.arange(shape[0]), np.arange(shape[1])) % 2, by_value[0], by_value[-1])
    half = 1 << (fmt.bits - 1)
    codes = ((raw ^ half) - half).astype(np.int8) if family.signed else raw.astype(np.uint8)
    parts = {name: numbers(name, level, fmt, shape, exact, rng) for name, level in fmt.levels().items()}
    made = Quantized(fmt, {"codes": codes, **parts})
    made.check("a weight of the tests")
    return made


def numbers(
    name: str, level: Level, fmt: Format, shape: tuple[int, int], exact: bool, rng: np.random.Generator
) -> NDArray[np.generic]:
    """Numbers of one level in its dtype."""
    dtype, size = level_dtype(level.dtype), level.shape_of(shape)
    low, high = int(max(dtype.low, -128)), int(min(dtype.high, 255))
    if name == "zero":
        found = rng.integers(low, high + 1, size) if dtype.is_integer else rng.integers(0, 2 << fmt.bits, size) / 2
    elif exact:
        found = rng.integers(1, min(high, 3) + 1, size) if dtype.is_integer else rng.integers(1, 3, size)
    elif dtype.is_integer:
        found = rng.integers(low, high + 1, size)
    elif level.dtype == "e8m0":
        found = np.exp2(rng.integers(-9, 4, size))
    else:
        found = rng.uniform(0.1, 2.0, size) * (rng.choice([-0.01, 0.01], size) if level.dtype != "e4m3" else 100)
    return np.asarray(found, np.float32).astype(dtype.numpy)


def whole_activations(spec: LinearSpec, m: int, rng: np.random.Generator) -> Floats:
    """Small whole numbers with the largest one in every group, whose scale is then 1; each row times a power of two.

    The longer a row is, the more of it is 0, so that float32 holds the sums.
    """
    limit, starts = LIMITS[spec.activation.bits], group_starts(spec.weight, (spec.n, spec.k))
    x = rng.integers(-3, 4, (m, spec.k)) * (rng.random((m, spec.k)) < 200 / spec.k)
    for first, last in zip(starts, [*starts[1:], spec.k], strict=True):
        if first == 0 or spec.activation.grouped:
            x[np.arange(m), rng.integers(first, last, m)] = rng.choice([-limit, limit], m)
    return np.ldexp(x.astype(np.float32), rng.integers(-2, 2, (m, 1)) if not spec.activation.grouped else 0)


def rough_activations(m: int, k: int, rng: np.random.Generator) -> Floats:
    """Rows of normal numbers of different sizes; one has an outlier, one is all zeros."""
    x = rng.standard_normal((m, k)) * np.exp(rng.standard_normal((m, 1)))
    x[0, k // 2] *= 30
    if m > 2:
        x[m // 2] = 0
    return x.astype(np.float32)


def read_as(x: NDArray[Any], dtype: str) -> Inputs:
    """Activations in the dtype that a kernel reads."""
    return np.ascontiguousarray(x.astype(level_dtype(dtype).numpy))


def covering(factors: dict[str, list[Any]], count: int, seed: int) -> Iterator[dict[str, Any]]:
    """`count` choices of one value for each factor, of which each covers as many new pairs of values as can be found.

    Pairs of the first two factors count five times.
    Any: values of factors are of many types.
    """
    rng, seen, names = np.random.default_rng(seed), set[tuple[int, int, int, int]](), list(factors)
    for _ in range(count):
        tried = [[int(rng.integers(len(factors[name]))) for name in names] for _ in range(100)]
        pairs = [{(a, t[a], b, t[b]) for a in range(len(t)) for b in range(a)} for t in tried]
        best = int(np.argmax([sum(5 if pair[::2] == (1, 0) else 1 for pair in some - seen) for some in pairs]))
        seen |= pairs[best]
        yield {name: factors[name][i] for name, i in zip(names, tried[best], strict=True)}


KINDS = {
    "symmetric": "i{b}, {s} per {g}",
    "unsigned": "u{b}, {s} per {g}",
    "zero points": "u{b}, {s} per {g}, zero u{b} per {g}",
    "signed zero points": "i{b}, {s} per {g}, zero i{b} per {g}",
    "float zero points": "u{b}, {s} per {g}, zero f16 per {g}",
    "middle": "u{b}, {s} per {g}, zero {middle}",
    "minus": "u{b}, {s} per {g}, minus {s} per {g}",
    "plus": "i{b}, {s} per {g}, plus {s} per {g}",
    "two levels": "i{b}, {inner} per {g}, {outer} per {span}",
    "two levels, minus": "u{b}, u6 per {g}, {outer} per {span}, minus u6 per {g} by {outer} per {span}",
    "whole tensor": "i{b}, {inner} per {g}, f32 per tensor",
}
"""Formats of integers by what stands beside the codes."""

FACTORS: dict[str, list[Any]] = {
    "b": [*range(1, 9)],
    "unpacked": [
        (name, unpack)
        for name in host_isas()
        for unpack in ("split", "planes", *(["dense"] if instruction_sets.named(name).has("avx512vbmi") else []))
    ],
    "kind": [*KINDS],
    "g": ["16", "32", "64", "128", "*"],
    "s": ["f32", "f16", "bf16"],
    "inner": ["e4m3", "i8", "u6", "e8m0"],
    "outer": ["f16", "f32"],
    "n": [1, 15, 17, 33, 83],
    "k": [1, 3, 31, 33, 100, 520, 4097],
    "bits": [8, 16],
    "grouped": [False, True],
    "dtype": ["f32", "f32", "bf16"],
    "vectors": [1, 2, 4],
    "streams": [1, 2, 4],
    "prefetch": [0, 1024],
    "tile": [1, 2, 3],
}


def integer_cases(count: int, seed: int, most: int = 8) -> Iterator[Case]:
    """Kernels for integers: formats, shapes, instruction sets and schedules, mixed so that pairs of them meet.

    `most` bounds the vectors that are held at once where registers are narrow: beyond 2, compiling takes long.
    """
    for f in covering(FACTORS, count, seed):
        span = "*" if f["g"] == "*" else 4 * int(f["g"])
        fmt = KINDS[f["kind"]].format(**f, span=span, middle=1 << (f["b"] - 1))
        spec = LinearSpec(f["n"], f["k"], Format.parse(fmt), Activation(f["bits"], f["grouped"], f["dtype"]))
        isa, unpack = instruction_sets.named(f["unpacked"][0]), f["unpacked"][1]
        fit, most_here = unpacks(spec, isa), 8 if isa.sums > 8 else most
        vectors, tile = min(f["vectors"], most_here), min(f["tile"], most_here)
        unpack = unpack if unpack in fit else fit[0]
        schedule = Schedule(vectors, min(f["streams"], most_here // vectors), f["prefetch"], unpack, 4, tile)
        yield Case(fmt, spec.n, spec.k, spec.activation, isa.name, schedule)
