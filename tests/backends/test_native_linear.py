"""Linear kernels against an oracle that shares nothing with them, on ordinary, extreme and damaged data."""

from __future__ import annotations

from dataclasses import replace
from functools import cache

import numpy as np
import pytest

from qcc.backends.native import isa, linear, linear_spec, memory
from qcc.backends.native.linear import Fixed, LinearKernel, Packed
from qcc.backends.native.linear_spec import Activation, LinearSpec, Schedule
from qcc.ir import target
from qcc.ir.errors import BadInput, NotSupported
from qcc.ir.format import Format
from tests.backends.native_oracle import Case, Oracle, check, host_isas, integer_cases, weights

A8, A16, A8G, A16G = Activation(8), Activation(16), Activation(8, True), Activation(16, True)
BEST = host_isas()[0]
CORES = target.load("cpu").cores

HEADERS = list({isa.named(name).header: name for name in reversed(host_isas())}.values())
"""The best instruction set of this host for each vocabulary of vectors."""

each_isa = pytest.mark.parametrize("name", host_isas())
each_header = pytest.mark.parametrize("name", HEADERS)


@pytest.mark.parametrize("case", list(integer_cases(30, seed=2, most=2)), ids=str)
def test_integers(case: Case) -> None:
    exactly = check(case)
    if case.activation.bits == 8:
        assert exactly == 24, "4 patterns for 6 numbers of rows are chosen to be exact"


@pytest.mark.skipif("avx512_vbmi" not in host_isas(), reason="no permutation of bytes")
@pytest.mark.parametrize("bits", range(2, 8))
def test_dense_integers(bits: int) -> None:
    check(Case(f"i{bits}, f32 per 32", 17, 72, A8, "avx512_vbmi", Schedule(unpack="dense", tile=1)), rows=(1, 2))


@each_header
@pytest.mark.parametrize("fmt", ["i8, f32 per *", "i4, f16 per 32", "u3, f32 per 16, zero u3"])
def test_activations_of_a_fixed_scale(name: str, fmt: str) -> None:
    """Codes are those of QuantizeLinear; the zero point is folded into what is added to a row."""
    n, k, rng = 35, 96, np.random.default_rng(4)
    spec = LinearSpec(n, k, Format.parse(fmt), Activation(8, fixed=True))
    kernel, weight = linear.build(spec, isa.named(name)), weights(spec.weight, (n, k), "random", False, rng)
    decoded = weight.decode().astype(np.float64)
    x = (rng.integers(-150, 150, (3, k)) * np.float32(0.025)).astype(
        np.float32
    )  # halves of a code, and beyond the ends
    x[1, :4] = (1e30, -1e30, np.inf, -np.inf)
    for fixed in (Fixed(0.05, 131), Fixed(0.05, 0), Fixed(0.05, 255), Fixed(0.05, -7, signed=True)):
        low = -128 if fixed.signed else 0
        codes = np.clip(np.rint(x / np.float32(fixed.scale)) + fixed.zero, low, low + 255) - fixed.zero
        bias = rng.standard_normal(n).astype(np.float32)
        y = kernel(x, kernel.pack(weight, fixed), bias)
        expected = codes.astype(np.float64) @ decoded.T * np.float32(fixed.scale) + bias
        np.testing.assert_allclose(y, expected, rtol=0, atol=3e-6 * np.abs(expected).max())


def test_a_fixed_scale_is_asked_for() -> None:
    plain, fixed = Case("i8, f32 per *", 16, 16, A8, BEST), Activation(8, fixed=True)
    weight = weights(plain.spec.weight, (16, 16), "random", False, np.random.default_rng(1))
    with pytest.raises(BadInput, match="is not taken"):
        plain.build().pack(weight, Fixed(1.0, 0))
    with pytest.raises(BadInput, match="is missing"):
        linear.build(LinearSpec(16, 16, plain.spec.weight, fixed), isa.named(BEST)).pack(weight)
    for wrong in ({"bits": 16}, {"grouped": True}):
        with pytest.raises(BadInput, match="fixed scale"):
            Activation(**({"bits": 8} | wrong), fixed=True)


WITH_512_BITS = ("avx2", "fma", "f16c", "avx512f", "avx512vl", "avx512_vnni")


@pytest.mark.skipif(bool(set(WITH_512_BITS) - set(target.load("cpu").isa)), reason="no dot products of bytes")
@pytest.mark.parametrize("fmt", ["u8, f32 per *", "i4, f16 per 32"])
def test_dot_products_of_256_bits(fmt: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """The kernels of `avx_vnni` with the same instruction as AVX-512 encodes it, where a host has only that."""
    same = "#define __AVXVNNI__ 1\n#define _mm256_dpbusd_avx_epi32 _mm256_dpbusd_epi32\n"
    header = isa.named("avx_vnni").text()
    monkeypatch.setattr(isa.Isa, "text", lambda _: f"#include <immintrin.h>\n{same}{header}")
    known = replace(isa.named("avx_vnni"), needs=WITH_512_BITS)
    case = Case(fmt, 33, 100, A8, known.name, Schedule(tile=2))
    check(case, LinearKernel(linear.generate(case.spec, known, case.schedule)))


@pytest.mark.parametrize("fmt", ["u8, f32 per *", "i3, f16 per 32", "nf4, f32 per 32"])
def test_portable_kernels_without_an_instruction_of_x86(fmt: str, monkeypatch: pytest.MonkeyPatch) -> None:
    header = isa.named("portable").text()
    monkeypatch.setattr(isa.Isa, "text", lambda _: f"#undef __SSE2__\n{header}")
    check(Case(fmt, 33, 100, A16, "portable", Schedule(tile=2)))


@pytest.mark.slow
@pytest.mark.parametrize("case", list(integer_cases(200, seed=2, most=4)), ids=str)
def test_more_integers(case: Case) -> None:
    check(case)


OTHERS = [
    Case("ternary, f32 per *", 33, 100, A8, "portable", Schedule(tile=2)),
    Case("ternary, f16 per 64", 83, 520, A16, BEST, Schedule(2, 2, tile=3)),
    Case("binary, f16 per 128", 17, 300, A8, BEST, Schedule(1, 4, tile=2)),
    Case("nf4, f16 per 64", 33, 200, A16, BEST, Schedule(2, tile=2)),
    Case("nf4, f32 per 32", 17, 100, A8G, "avx2", Schedule(tile=2)),
    Case("fp4, bf16 per 64", 15, 100, A16, BEST, Schedule(unpack="planes", tile=2)),
    Case("iq4nl, f16 per 32", 83, 200, A8, BEST, Schedule(4, tile=2)),
    Case("e2m1, e8m0 per 32", 33, 100, A8, BEST, Schedule(2, 2, tile=2)),
    Case("e2m1, e4m3 per 16, f32 per tensor", 33, 100, A16G, "avx2", Schedule(tile=1)),
    Case("e4m3, f32 per *", 17, 100, A16, BEST, Schedule(2, tile=2)),
    Case("e5m2, f16 per 32", 15, 70, A8, BEST, Schedule(tile=2)),
    Case("e3m2, e8m0 per 32", 15, 70, A8, BEST, Schedule(unpack="dense", tile=2)),
    Case("e2m3, e8m0 per 32", 15, 70, A16, "avx2", Schedule(tile=1)),
    Case("i8q6, f32 per *", 17, 70, A8, BEST, Schedule(tile=2)),
    Case("i5q2, f16 per 16", 17, 70, A16, BEST, Schedule(2, tile=2)),
]


@pytest.mark.parametrize("case", [case for case in OTHERS if case.isa in host_isas()], ids=str)
def test_other_elements(case: Case) -> None:
    unpack = linear_spec.unpacks(case.spec, isa.named(case.isa))
    assert case.schedule is not None
    check(case if case.schedule.unpack in unpack else replace(case, schedule=replace(case.schedule, unpack=unpack[0])))


@pytest.mark.slow
@each_isa
@pytest.mark.parametrize("fmt", ["nf4, f16 per *", "e4m3, f32 per 128", "e5m2, f16 per *", "e3m4ieee, f32 per 32"])
@pytest.mark.parametrize("activation", [A8, A16G], ids=str)
def test_tables_of_every_width(fmt: str, activation: Activation, name: str) -> None:
    check(Case(fmt, 33, 130, activation, name))


@pytest.mark.slow
@each_isa
@pytest.mark.parametrize("bits", range(1, 9))
def test_default_schedules(bits: int, name: str) -> None:
    """Many rows of the weight, so that all streams of the default are used."""
    check(Case(f"i{bits}, f16 per 32", 530, 96, A8, name), rows=(1, 2, 7, 8, 33))


LARGEST = linear_spec.LARGEST - 1


@each_header
@pytest.mark.parametrize("fmt", ["u8, f32 per *", "i8, f32 per *"])
def test_the_largest_sums_of_bytes(fmt: str, name: str) -> None:
    """Every product is the largest there is, with one sign: their sum still fits, and is rounded once."""
    kernel = small(Case(fmt, 3, LARGEST, A8, name, Schedule(tile=1)))
    for pattern in ("lowest", "highest"):
        oracle = Oracle.of(kernel.spec, weights(kernel.spec.weight, (3, LARGEST), pattern, True, rng()))
        x = np.full((2, LARGEST), 127, np.float32) * np.float32([[1], [-1]])
        y = kernel(x, kernel.pack(oracle.weight))
        np.testing.assert_array_equal(y, (x.astype(np.float64) @ oracle.values.T).astype(np.float32))


@each_header
@pytest.mark.parametrize("fmt", ["nf4, f32 per 40000", "e4m3, f32 per 32000", "u8, f32 per *"])
def test_the_largest_sums_of_two_bytes(fmt: str, name: str) -> None:
    """Products of high and low bytes share a sum: 32639 is 127 * 256 + 127, and 32384 is 127 * 256 - 128."""
    case = Case(fmt, 16, LARGEST, A16, name, Schedule(tile=1))
    kernel = small(case)
    weight = weights(kernel.spec.weight, (16, LARGEST), "highest", True, rng())
    table = kernel.spec.weight.family.table
    codes = np.flatnonzero(np.isfinite(table))[np.linspace(0, np.isfinite(table).sum() - 1, 16).astype(int)]
    codes = np.broadcast_to(codes.astype(np.uint8).view(weight.codes.dtype)[:, None], (16, LARGEST))
    oracle = Oracle.of(kernel.spec, replace(weight, parts={**weight.parts, "codes": codes}))
    packed = kernel.pack(oracle.weight)
    for size in (32639, 32384, -32639, -32384):
        x = np.full((1, LARGEST), size, np.float32)
        x[0, 0] = 32639
        oracle.compare(x, None, kernel(x, packed), f"{case} {size}")


@pytest.mark.parametrize(
    ("fmt", "k", "activation"),
    [
        ("nf4, f32 per *", 45000, A16),
        ("e4m3, f32 per *", 34000, A16),
        ("u8, f32 per *, zero 300", LARGEST, A8),
        ("i8, f32 per *, zero u8 per *", LARGEST, A8),
        ("i4, f32 per *, zero -300", LARGEST, A8),
    ],
)
def test_sums_that_do_not_fit(fmt: str, k: int, activation: Activation) -> None:
    with pytest.raises(NotSupported, match="do not fit 32 bits"):
        LinearSpec(16, k, Format.parse(fmt), activation)
    LinearSpec(16, k // 4, Format.parse(fmt), activation)


# Activations that are not ordinary


@each_header
@pytest.mark.parametrize("activation", [A8, A16, A8G, A16G], ids=str)
def test_activations_of_every_size(activation: Activation, name: str) -> None:
    """From the smallest float to the largest: the error stays within half a step, which is no less than 2^-127."""
    kernel = small(Case("i4, f32 per 32", 17, 100, activation, name, Schedule(tile=1)))
    oracle = Oracle.of(kernel.spec, weights(kernel.spec.weight, (17, 100), "random", False, rng()))
    packed, base = kernel.pack(oracle.weight), rng().standard_normal((3, 100)).astype(np.float32)
    base[1, 40:] = 0
    for size in (1e-45, 1e-40, 1e-38, 1e-36, 1e-34, 1e-30, 1e-10, 1.0, 1e10, 1e30, 1e36):
        x = base * np.float32(size)
        y = kernel(x, packed)
        wanted = x.astype(np.float64) @ oracle.values.T
        step = np.abs(x).max(axis=1, keepdims=True) / activation.limit + 2.0**-126
        assert (np.abs(y - wanted) <= step * np.abs(oracle.values).sum(axis=1)).all(), size


@each_header
@pytest.mark.parametrize("activation", [A8, A16, A8G, A16G], ids=str)
@pytest.mark.parametrize("odd", [np.nan, np.inf, -np.inf])
def test_rows_that_are_not_finite(odd: float, activation: Activation, name: str) -> None:
    kernel = small(Case("i4, f32 per 32", 17, 100, activation, name, Schedule(tile=1)))
    packed = kernel.pack(weights(kernel.spec.weight, (17, 100), "random", False, rng()))
    for m in (1, 2, 5):
        for k in (0, 15, 16, 50, 99):
            x = rng().standard_normal((m, 100)).astype(np.float32)
            wanted = kernel(x, packed)
            x[m // 2, k] = odd
            y = kernel(x, packed)
            assert not np.isfinite(y[m // 2]).any()
            others = np.arange(m) != m // 2
            np.testing.assert_array_equal(y[others], wanted[others])


@each_header
@pytest.mark.parametrize("activation", [A8, A16G], ids=str)
def test_rows_of_zeros(activation: Activation, name: str) -> None:
    kernel = small(Case("u4, f16 per 32, minus f16 per 32", 17, 100, activation, name, Schedule(tile=1)))
    packed = kernel.pack(weights(kernel.spec.weight, (17, 100), "highest", False, rng()))
    bias = rng().standard_normal(17).astype(np.float32)
    x = np.zeros((3, 100), np.float32)
    x[1] = -0.0
    np.testing.assert_array_equal(kernel(x, packed), np.zeros((3, 17)))
    np.testing.assert_array_equal(kernel(x, packed, bias), np.tile(bias, (3, 1)))


@each_header
@pytest.mark.parametrize("dtype", ["f32", "f16", "bf16", "e8m0", "e4m3"])
def test_every_scale_is_read_as_it_is(dtype: str, name: str) -> None:
    """Zeros, denormal numbers, the smallest and the largest: a scale for each row, times a product of 1."""
    held = {"f32": np.uint32, "f16": np.uint16, "bf16": np.uint16, "e8m0": np.uint8, "e4m3": np.uint8}[dtype]
    kernel = small(Case(f"i8, {dtype} per *", 256, 4, A8, name, Schedule(tile=1)))
    weight = weights(kernel.spec.weight, (256, 4), "random", True, rng())
    everything = (
        np.linspace(0, np.iinfo(held).max, 256).astype(held) if held != np.uint8 else np.arange(256, dtype=held)
    )
    everything[:4] = [0, 1, 2, 3]
    scale = everything.view(weight.scale.dtype).reshape(256, 1)
    known = np.isfinite(scale.astype(np.float32))
    scale[~known] = 0 if dtype != "e8m0" else 1
    weight = replace(weight, parts={"codes": np.broadcast_to(np.int8([[1, 0, 0, 0]]), (256, 4)), "scale": scale})
    y = kernel(np.full((1, 4), 127, np.float32), kernel.pack(weight))
    with np.errstate(over="ignore"):
        np.testing.assert_array_equal(y[0], scale[:, 0].astype(np.float32) * np.float32(127))


# Buffers


@each_isa
@pytest.mark.parametrize("threads", [1, min(2, CORES)])
def test_no_rows(threads: int, name: str) -> None:
    kernel, packed = ordinary(name)
    y = kernel(np.zeros((0, 100), np.float32), packed, threads=threads)
    assert y.shape == (0, 17) and y.dtype == np.float32


def test_results_into_a_buffer_of_the_caller() -> None:
    kernel, packed = ordinary()
    x, wide = rng().standard_normal((5, 100)).astype(np.float32), np.full((7, 17), np.float32(5))
    y = kernel(x, packed, out=wide[1:6])
    assert y.base is wide
    np.testing.assert_array_equal(wide[1:6], kernel(x, packed))
    assert (wide[[0, 6]] == 5).all()


def test_a_prepared_call_reads_its_buffers_anew() -> None:
    kernel, packed = ordinary()
    x = rng().standard_normal((2, 100)).astype(np.float32)
    call = kernel.prepared(x, packed)
    call()
    before = call.y.copy()
    x *= 2
    call()
    np.testing.assert_array_equal(call.y, 2 * before)


def test_threads_do_not_change_a_bit() -> None:
    kernel = small(Case("i4, f32 per 32", 260, 100, A16G, BEST, Schedule(tile=3)))
    packed = kernel.pack(weights(kernel.spec.weight, (260, 100), "random", False, rng()))
    for m in (1, 4, 33):
        x = rng().standard_normal((m, 100)).astype(np.float32)
        np.testing.assert_array_equal(kernel(x, packed, threads=1), kernel(x, packed, threads=min(2, CORES)))


def f32(*shape: int) -> np.ndarray:
    return np.zeros(shape, np.float32)


def misaligned(*shape: int) -> np.ndarray:
    return np.zeros(4 * int(np.prod(shape)) + 1, np.uint8)[1:].view(np.float32).reshape(shape)


@pytest.mark.parametrize(
    ("arguments", "named"),
    [
        ({"x": np.zeros((2, 100))}, "x is"),
        ({"x": np.zeros((2, 100), np.float16)}, "x is"),
        ({"x": f32(2, 99)}, "x is"),
        ({"x": f32(100)}, "x is"),
        ({"x": f32(1, 2, 100)}, "x is"),
        ({"x": f32(100, 2).T}, "x is not contiguous"),
        ({"x": f32(2, 200)[:, ::2]}, "x is not contiguous"),
        ({"x": misaligned(2, 100)}, "x is not aligned"),
        ({"out": f32(2, 16)}, "out is"),
        ({"out": f32(3, 17)}, "out is"),
        ({"out": np.zeros((2, 17))}, "out is"),
        ({"out": f32(17, 2).T}, "out is not contiguous"),
        ({"out": misaligned(2, 17)}, "out is not aligned"),
        ({"out": np.broadcast_to(np.float32(0), (2, 17))}, "out is"),
        ({"bias": f32(16)}, "bias is"),
        ({"bias": f32(1, 17)}, "bias is"),
        ({"bias": np.zeros(17)}, "bias is"),
        ({"threads": 0}, "0 threads"),
        ({"threads": -1}, "-1 threads"),
        ({"threads": CORES + 1}, "threads on"),
    ],
)
def test_buffers_that_do_not_fit(arguments: dict[str, object], named: str) -> None:
    kernel, packed = ordinary()
    with pytest.raises(BadInput, match=named) as refused:
        kernel(**{"x": f32(2, 100), "packed": packed, **arguments})  # pyright: ignore[reportArgumentType]
    assert refused.value.hint or "read-only" in refused.value.message


def test_a_read_only_buffer_for_results() -> None:
    kernel, packed = ordinary()
    out = f32(2, 17)
    out.flags.writeable = False
    with pytest.raises(BadInput, match="read-only"):
        kernel(f32(2, 100), packed, out=out)


def test_packed_weights_that_do_not_fit() -> None:
    kernel, packed = ordinary()
    size = packed.bytes
    shifted = memory.aligned(size + 64)[4 : 4 + size]
    for data in (packed.data[:-1], memory.aligned(size + 64), packed.data.astype(np.int8), packed.data.reshape(1, -1)):
        with pytest.raises(BadInput, match="packed is"):
            kernel(f32(1, 100), Packed(data, 1.0))
    with pytest.raises(BadInput, match="multiple of 64"):
        kernel(f32(1, 100), Packed(shifted, 1.0))


def test_weights_of_another_format_or_shape() -> None:
    kernel, _ = ordinary()
    for fmt, shape in (("i4, f32 per 32", (17, 96)), ("i4, f16 per 32", (17, 100)), ("u4, f32 per 32", (17, 100))):
        with pytest.raises(BadInput, match="the kernel is for"):
            kernel.pack(weights(Format.parse(fmt), shape, "random", True, rng()))


# What specs refuse


@pytest.mark.parametrize(("n", "k"), [(0, 4), (4, 0), (-1, 4)])
def test_weights_without_rows_or_columns(n: int, k: int) -> None:
    with pytest.raises(BadInput, match="rows and columns"):
        LinearSpec(n, k, Format.parse("i4, f32 per 32"), A8)


def test_sums_beyond_32_bits() -> None:
    assert LinearSpec(1, LARGEST, Format.parse("i8, f32 per *"), A8).k == 65535
    with pytest.raises(NotSupported, match="32 bits"):
        LinearSpec(1, LARGEST + 1, Format.parse("i8, f32 per *"), A8)


@pytest.mark.parametrize("bits", [0, 4, 32, -8])
def test_activations_of_other_bits(bits: int) -> None:
    with pytest.raises(BadInput, match="8 or 16"):
        Activation(bits)


@pytest.mark.parametrize(
    ("fmt", "reason"),
    [
        ("i4, f16 per 32, outliers f16 csr", "outliers"),
        ("i4, f16 per 32, sparse 2:4", "sparse"),
        ("k16 in f16 per *", "beside the codes"),
        ("n3..8 in f16 per *", "beside the codes"),
        ("nf4, i8 per 64, f32 per *, mean f32 per tensor", "mean"),
        ("[e2m1z5|e2m1z-5] per 128, f16 per 128", "choose"),
        ("i4, f16 per 32x32", "spans rows"),
        ("u8, f32 per *, zero u8 per tensor", "whole tensor"),
        ("i4, e5m2 per 32", "e5m2"),
        ("e2m1, f16 per 32, zero f16 per 32", "zero point"),
        ("u4, f16 per 32, zero 7.5", "whole number"),
        ("i4, f16 per 48, f16 per 96, f16 per *", "at most two"),
    ],
)
def test_formats_that_no_kernel_is_generated_for(fmt: str, reason: str) -> None:
    with pytest.raises(NotSupported, match=reason) as refused:
        LinearSpec(64, 192, Format.parse(fmt), A8)
    assert Format.parse(fmt).element in refused.value.message


def test_groups_that_are_no_whole_vectors() -> None:
    with pytest.raises(NotSupported, match="multiples of 4"):
        linear.generate(LinearSpec(16, 64, Format.parse("i4, f16 per 6"), A8), isa.named("portable"))


# Helpers


def rng() -> np.random.Generator:
    return np.random.default_rng(20)


@cache
def small(case: Case) -> LinearKernel:
    """A kernel that several tests share."""
    return case.build()


def ordinary(name: str = BEST) -> tuple[LinearKernel, Packed]:
    """A small kernel and a weight for it."""
    kernel = small(Case("i4, f32 per 32", 17, 100, A8, name, Schedule(tile=1)))
    return kernel, kernel.pack(weights(kernel.spec.weight, (17, 100), "random", False, rng()))
