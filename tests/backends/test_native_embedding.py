"""Embedding kernels: rows of every layout that linear kernels pack, bit for bit what numpy decodes."""

from __future__ import annotations

import ctypes
import mmap
import subprocess
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from qcc.backends.native import codebook, embedding, isa, linear, lut
from qcc.backends.native.calls import Function, embedding_function, runtime
from qcc.backends.native.codebook_spec import CodebookSchedule, CodebookSpec
from qcc.backends.native.compile import compiler
from qcc.backends.native.embedding import EmbeddingKernel
from qcc.backends.native.embedding_spec import EmbeddingSpec
from qcc.backends.native.emit_embedding import BUFFER, LEAST_SHARED, EmbeddingText
from qcc.backends.native.linear import Packed
from qcc.backends.native.linear_group import Member, group_function
from qcc.backends.native.linear_spec import Activation, LinearSpec, Schedule, default_schedule, unpacks
from qcc.ir import target
from qcc.ir.errors import BadInput
from qcc.ir.format import Format
from qcc.ir.levels import level_dtype
from qcc.ir.quantized import Quantized
from tests.backends import codebook_oracle
from tests.backends.native_oracle import FACTORS, KINDS, PATTERNS, covering, host_isas, weights

HOST = target.load("cpu")
BEST = isa.best(HOST)
TWO = min(2, HOST.cores)
LOOKUP = Schedule(lut.VECTORS, unpack="lookup", tile=1)
SHAPES: dict[str, list[Any]] = {"n": [1, 15, 17, 33, 83, 130], "k": [1, 3, 31, 33, 100, 520, 4097]}
RAW = {2: np.uint16, 4: np.uint32}
NAMES = [
    "ternary, f16 per 32", "binary, bf16 per 8", "nf4, f16 per 64", "fp4, f32 per 16", "iq4nl, f16 per 32",
    "e2m1, e8m0 per 32", "e2m1, e4m3 per 16, f32 per tensor", "e4m3, f32 per *", "e5m2, bf16 per 128",
    "e2m3, f16 per 32", "i8, f32 per tensor", "i6, i8 per 16, f16 per 256", "u3, f16 per 32, zero u3 per 32",
]  # fmt: skip
"""Formats of elements whose values are taken from a table, and of other kinds of levels."""
Case = tuple[LinearSpec, Schedule, str]


def read(
    spec: LinearSpec, schedule: Schedule, weight: Quantized, name: str = BEST.name, factor: float = 1.0
) -> tuple[EmbeddingKernel, Packed]:
    """The kernel, and the weight in the storage of the linear kernel of a schedule."""
    stored = spec.storage(schedule)
    return embedding.build(EmbeddingSpec(spec, stored, factor), isa.named(name)), linear.pack(spec, stored, weight)


def some_rows(n: int, rng: np.random.Generator) -> np.ndarray:
    """The first and the last row, from either end, and others."""
    return np.concatenate([[0, n - 1, -1, -n], rng.integers(-n, n, 40)])


def assert_same(found: np.ndarray, wanted: np.ndarray, what: str) -> None:
    """Bit for bit, the signs of zeros included; any NaN is as good as another."""
    np.testing.assert_array_equal(found, wanted, err_msg=what)
    np.testing.assert_array_equal(np.signbit(found)[~np.isnan(wanted)], np.signbit(wanted)[~np.isnan(wanted)], what)


def check(spec: LinearSpec, schedule: Schedule, name: str) -> None:
    """Every pattern of codes."""
    rng = np.random.default_rng(spec.n + spec.k)
    for pattern in PATTERNS:
        weight = weights(spec.weight, (spec.n, spec.k), pattern, False, rng)
        kernel, packed = read(spec, schedule, weight, name)
        places = some_rows(spec.n, rng)
        assert_same(kernel(places, packed), weight.decode()[places], f"{spec}, {schedule}, {pattern}")


def integer_cases(count: int, seed: int) -> Iterator[Case]:
    """Formats of integers, shapes, instruction sets and the unpackings of dot products, mixed so that pairs meet."""
    for f in covering({**FACTORS, **SHAPES}, count, seed):
        span = "*" if f["g"] == "*" else 4 * int(f["g"])
        fmt = KINDS[f["kind"]].format(**f, span=span, middle=1 << (f["b"] - 1))
        spec, (name, unpack) = LinearSpec(f["n"], f["k"], Format.parse(fmt), Activation()), f["unpacked"]
        fit = unpacks(spec, isa.named(name))
        yield spec, Schedule(f["vectors"], unpack=unpack if unpack in fit else fit[0]), name


def lookup_cases(count: int, seed: int) -> Iterator[Case]:
    """The same for the layout of table lookups."""
    factors = {**FACTORS, **SHAPES, "g": ["8", "16", "24", "32", "128", "*"], "b": [1, 2, 3, 4]}
    for f in covering(factors, count, seed):
        span = "*" if f["g"] == "*" else 4 * int(f["g"])
        fmt = KINDS[f["kind"]].format(**f, span=span, middle=1 << (f["b"] - 1))
        yield LinearSpec(f["n"], f["k"], Format.parse(fmt), Activation()), LOOKUP, f["unpacked"][0]


def case_name(case: Case) -> str:
    """What a test is called by."""
    spec, schedule, name = case
    return f"{spec} {schedule.unpack} {schedule.vectors}v {name}"


@pytest.mark.parametrize("case", [*integer_cases(32, seed=3), *lookup_cases(12, seed=4)], ids=case_name)
def test_integers(case: Case) -> None:
    check(*case)


@pytest.mark.slow
@pytest.mark.parametrize("case", [*integer_cases(200, seed=5), *lookup_cases(60, seed=6)], ids=case_name)
def test_more_integers(case: Case) -> None:
    check(*case)


@pytest.mark.parametrize("fmt", NAMES)
def test_formats_with_names(fmt: str) -> None:
    spec = LinearSpec(83, 300, Format.parse(fmt), Activation())
    for unpack in unpacks(spec, BEST):
        check(spec, Schedule(2, unpack=unpack), BEST.name)
    check(spec, default_schedule(spec, BEST), BEST.name)


@pytest.mark.parametrize("name", host_isas())
def test_every_instruction_set(name: str) -> None:
    for fmt in ("i8, f16 per 32", "u5, u6 per 32, f16 per 256, minus u6 per 32 by f16 per 256"):
        spec = LinearSpec(77, 640, Format.parse(fmt), Activation())
        check(spec, default_schedule(spec, isa.named(name)), name)


def test_a_scale_of_the_whole_table_in_a_step_that_is_no_power_of_two() -> None:
    """The factor of the linear kernel holds both: that is one rounding more, of half a unit in the last place each."""
    spec = LinearSpec(40, 64, Format.parse("nf4, f32 per tensor"), Activation())
    weight = weights(spec.weight, (40, 64), "random", False, np.random.default_rng(0))
    kernel, packed = read(spec, default_schedule(spec, BEST), weight)
    np.testing.assert_array_max_ulp(kernel(np.arange(40), packed), weight.decode(), 2)


@pytest.mark.parametrize("dtype", ["f32", "f16", "bf16", "e8m0", "e4m3", "i8", "u8", "u6"])
def test_every_number_of_a_level(dtype: str) -> None:
    """All 256 or a sample of all bits: denormals, the largest, zeros of either sign. Products may be infinite."""
    spec = LinearSpec(512, 64, Format.parse(f"i8, {dtype} per 32"), Activation())
    kind, rng = level_dtype(dtype), np.random.default_rng(1)
    weight = weights(spec.weight, (512, 64), "random", False, rng)
    if kind.is_integer:
        scale = np.resize(np.arange(int(kind.low), int(kind.high) + 1), (512, 2)).astype(kind.numpy)
    else:
        size = kind.numpy.itemsize
        raw = (
            np.resize(np.arange(256, dtype=np.uint8), (512, 2)) if size == 1 else rng.integers(0, 256, (512, 2 * size))
        )
        scale = np.ascontiguousarray(raw, np.uint8).view(kind.numpy)
        wide = scale.astype(np.float32)
        scale = np.where(np.isfinite(wide), scale, np.ones_like(scale))
        ends = np.array([0.0, -0.0, float(kind.low), float(kind.high)], np.float32)
        scale[:4, 0] = ends.astype(kind.numpy) if dtype != "e8m0" else scale[:4, 0]
    weight = replace(weight, parts={**weight.parts, "scale": scale})
    kernel, packed = read(spec, default_schedule(spec, BEST), weight)
    with np.errstate(over="ignore"):
        wanted = weight.decode()
    assert_same(kernel(np.arange(512), packed), wanted, dtype)


@pytest.mark.parametrize("factor", [25.298221588134766, -0.5, 1e-30, 0.0])
def test_a_factor_is_one_more_product(factor: float) -> None:
    spec = LinearSpec(33, 96, Format.parse("u4, f16 per 32, minus f16 per 32"), Activation())
    weight = weights(spec.weight, (33, 96), "random", False, np.random.default_rng(2))
    kernel, packed = read(spec, default_schedule(spec, BEST), weight, factor=factor)
    places = np.array([[5, -1], [0, 32]])
    assert_same(kernel(places, packed), weight.decode()[places] * np.float32(factor), str(factor))


@pytest.mark.parametrize("fmt", ["i8, f16 per 32", "i4, f16 per 32", "i1, f16 per 32", "nf4, f32 per 64"])
def test_one_packed_copy_serves_the_output_and_the_embedding(fmt: str) -> None:
    """The product with rows of the unit matrix gives columns of the weight, to what rounding activations costs."""
    spec = LinearSpec(300, 96, Format.parse(fmt), Activation(16))
    kernel = linear.build(spec, BEST)
    packed = kernel.pack(weights(spec.weight, (300, 96), "random", False, np.random.default_rng(3)))
    rows = embedding.build(EmbeddingSpec(spec, kernel.storage), BEST)(np.arange(300), packed)
    products = kernel(np.eye(96, dtype=np.float32), packed)
    np.testing.assert_allclose(products.T, rows, rtol=2e-6, atol=2.0**-15 * np.abs(rows).max() * (fmt[0] == "n"))


@pytest.mark.parametrize("rows", [1, 2, 4, 8])
@pytest.mark.parametrize("element", ["k4", "k7", "k16", "k25", "k100", "k256"])
def test_codebooks(element: str, rows: int) -> None:
    check_codebook(f"{element} in f32 per *", rows)


@pytest.mark.parametrize("precision", [3, 5, 8])
def test_nested_codebooks_at_each_precision(precision: int) -> None:
    check_codebook("n3..8 in f32 per *", 2, precision)


def check_codebook(text: str, rows: int, precision: int = 0) -> None:
    """Whole numbers are exact; other values are off by half a step of 1/32767 of the row's largest, which is 8 here."""
    for whole in (True, False):
        weight = codebook_oracle.weight(text, 37, 1100, whole=whole, seed=rows)
        spec = CodebookSpec(37, 1100, weight.format, Activation(), precision)
        made = codebook.generate(spec, BEST, CodebookSchedule(rows=rows, tile=1))
        packed, places = codebook.CodebookKernel(made).pack(weight), some_rows(37, np.random.default_rng(4))
        found = embedding.build(EmbeddingSpec.of(made), BEST)(places, packed)
        read = weight.at(precision) if precision else weight
        wanted = read.decode()[places]
        if whole:
            np.testing.assert_array_equal(found, wanted)
            continue
        largest = np.abs(np.asarray(read.parts["table"], np.float64).reshape(37, -1)).max(axis=1)[places, None]
        assert (np.abs(found - wanted) <= largest * (0.5 / codebook_oracle.WHOLE + 2.0**-22)).all()


def table(n: int = 70, k: int = 96, fmt: str = "i4, f16 per 32") -> tuple[EmbeddingKernel, Packed, np.ndarray]:
    """A kernel, its table, and what it holds."""
    spec = LinearSpec(n, k, Format.parse(fmt), Activation())
    weight = weights(spec.weight, (n, k), "random", False, np.random.default_rng(5))
    return *read(spec, default_schedule(spec, BEST), weight), weight.decode()


def test_shapes_of_indices() -> None:
    kernel, packed, values = table()
    for indices in (
        np.array(3),
        np.empty(0, np.int64),
        np.empty((2, 0, 3), np.int64),
        np.arange(-70, 70).reshape(4, 35).T,
    ):
        found = kernel(indices, packed)
        assert found.shape == (*indices.shape, 96)
        np.testing.assert_array_equal(found, values[indices])


@pytest.mark.parametrize("wrong", [70, -71, 1 << 40, (1 << 63) - 1, -(1 << 63)])
def test_an_index_that_is_not_there(wrong: int) -> None:
    kernel, packed, _ = table()
    out = np.full((3, 96), 7, np.float32)
    with pytest.raises(BadInput, match=f"index {wrong} of a table of 70 rows"):
        kernel(np.array([0, 1, wrong]), packed, out=out)
    assert (out == 7).all(), "all indices are looked at before a row is written"


@pytest.mark.parametrize("fmt", [*(f"i{b}, f16 per 32" for b in range(1, 9)), "i3, f32 per *", "u8, f16 per 48"])
def test_nothing_outside_is_touched(fmt: str) -> None:
    """The table ends where memory that cannot be read begins, and so does the result."""
    spec = LinearSpec(64, 100, Format.parse(fmt), Activation())
    weight = weights(spec.weight, (64, 100), "random", False, np.random.default_rng(6))
    able = [*unpacks(spec, BEST)] + ["lookup"] * (not lut.obstacle(spec, BEST))
    for unpack in able:
        kernel, packed = read(spec, LOOKUP if unpack == "lookup" else Schedule(1, unpack=unpack), weight)
        data, out = at_the_edge(packed.bytes), at_the_edge(4 * 64 * 100).view(np.float32).reshape(64, 100)
        data[...] = packed.data
        np.testing.assert_array_equal(kernel(np.arange(64), replace(packed, data=data), out=out), weight.decode())


def at_the_edge(size: int) -> np.ndarray:
    """Bytes behind which a page can be neither read nor written."""
    pages = -(-size // mmap.PAGESIZE)
    held = np.frombuffer(mmap.mmap(-1, (pages + 1) * mmap.PAGESIZE), np.uint8)
    libc, end = ctypes.CDLL(None, use_errno=True), held.ctypes.data + pages * mmap.PAGESIZE
    assert libc.mprotect(ctypes.c_void_p(end), mmap.PAGESIZE, 0) == 0
    return held[pages * mmap.PAGESIZE - size : pages * mmap.PAGESIZE]


def test_long_rows_are_read_in_pieces() -> None:
    for k in (BUFFER - 4, BUFFER, BUFFER + 4, 3 * BUFFER + 2, 65535):
        spec = LinearSpec(20, k, Format.parse("i5, f32 per *"), Activation())
        for unpack in unpacks(spec, BEST):
            check(spec, Schedule(1, unpack=unpack), BEST.name)


def test_threads_give_the_same() -> None:
    kernel, packed, values = table(257, 96)
    places = np.random.default_rng(7).integers(-257, 257, LEAST_SHARED // 96 + 5)
    for count in (len(places), 3):
        np.testing.assert_array_equal(kernel(places[:count], packed, threads=TWO), values[places[:count]])


def test_what_does_not_fit_is_refused() -> None:
    kernel, packed, _ = table()
    spec, other = kernel.spec, LinearSpec(70, 96, Format.parse("u4, f16 per 32, zero u4 per 32"), Activation())
    with pytest.raises(BadInput, match="indices are int32"):
        kernel(np.zeros(2, np.int32), packed)
    with pytest.raises(BadInput, match="packed is"):
        kernel(np.zeros(2, np.int64), replace(packed, data=packed.data[1:]))
    with pytest.raises(BadInput, match="out is"):
        kernel(np.zeros(2, np.int64), packed, out=np.empty((2, 95), np.float32))
    with pytest.raises(BadInput, match="threads"):
        kernel(np.zeros(2, np.int64), packed, threads=0)
    with pytest.raises(BadInput, match="the storage holds codes, scale"):
        EmbeddingSpec(other, spec.storage)
    with pytest.raises(BadInput, match="in the storage of one"):
        EmbeddingSpec(replace(spec.linear, n=71), spec.storage)
    with pytest.raises(BadInput, match="a factor"):
        EmbeddingSpec(spec.linear, spec.storage, float("nan"))


FAULTS = {
    "rows swapped": ("= (size_t)(n % 16)", "= (size_t)(n % 16 ^ 1)"),
    "a row's half of a byte": ("(n0 * 4) % 8", "0"),
    "scales of the first group": ("k3 * 2048 + 1920", "1920"),
    "a bit too low": ("1, 1) << 4", "1, 1) << 3"),
    "minima added": ("scale - low", "scale + low"),
}


@pytest.mark.parametrize("fault", FAULTS)
def test_a_fault_is_noticed(fault: str, monkeypatch: pytest.MonkeyPatch) -> None:
    spec = LinearSpec(70, 200, Format.parse("u5, f16 per 96, minus f16 per 96"), Activation())
    check(spec, Schedule(2, unpack="planes"), BEST.name)
    text, (right, wrong) = EmbeddingText.text, FAULTS[fault]

    def changed(self: EmbeddingText) -> str:
        assert right in text(self)
        return text(self).replace(right, wrong)

    monkeypatch.setattr(EmbeddingText, "text", changed)
    with pytest.raises(AssertionError, match="Arrays are not equal"):
        check(spec, Schedule(2, unpack="planes"), BEST.name)


def test_functions_of_a_network(tmp_path: Path) -> None:
    """Two embeddings and the linear operation of the same table in one library, on its threads."""
    spec = LinearSpec(300, 256, Format.parse("i8, f16 per 32, f32 per tensor"), Activation(16))
    weight = weights(spec.weight, (300, 256), "random", False, np.random.default_rng(8))
    values = weight.decode()
    text = linear.generate(spec, BEST)
    product, kernels = group_function([Member(text)], BEST)
    made = [embedding_function(EmbeddingSpec.of(text, factor), BEST) for factor in (1.0, 16.0)]
    library = linked(tmp_path, [product, *kernels, *made])
    packed = linear.pack(spec, text.storage, weight)
    for threads in (1, TWO):
        library.qcc_set_threads(threads)
        for count in (0, 1, LEAST_SHARED // 256 + 3):
            places = np.random.default_rng(count).integers(-300, 300, count)
            for function, factor in zip(made, (1, 16), strict=True):
                status, y = call(library, function, places, packed)
                assert status == 0
                np.testing.assert_array_equal(y, values[places] * np.float32(factor))
        status, y = call(library, made[0], np.array([5, 300]), packed)
        assert status == 1 and np.isnan(y).all()
    y = np.empty((1, 300), np.float32)
    x = np.eye(1, 256, 9, dtype=np.float32)
    arguments = [ctypes.c_void_p(a.ctypes.data) for a in (x, packed.data)]
    library[product.symbol](
        *arguments, ctypes.c_void_p(y.ctypes.data), ctypes.c_int64(1), ctypes.c_float(packed.alpha),
        ctypes.c_float(0), 0,
    )  # fmt: skip
    np.testing.assert_allclose(y[0], values[:, 9], rtol=2e-6)


def linked(folder: Path, functions: list[Function]) -> ctypes.CDLL:
    """Functions and the runtime in one library."""
    path = folder / "functions.so"
    objects = [function.compile() for function in functions]
    subprocess.run([compiler(), "-shared", "-o", path, *objects, runtime(), "-lm"], check=True)
    return ctypes.CDLL(str(path))


def call(library: ctypes.CDLL, function: Function, places: np.ndarray, packed: Packed) -> tuple[int, np.ndarray]:
    """The status, and the rows: NaN where none was written."""
    y = np.full((len(places), 256), np.nan, np.float32)
    pointers = [ctypes.c_void_p(a.ctypes.data) for a in (places, packed.data, y)]
    return library[function.symbol](*pointers, ctypes.c_int64(len(places)), ctypes.c_float(packed.alpha)), y
