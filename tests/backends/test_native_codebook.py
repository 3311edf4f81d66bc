"""Kernels for codebooks of each row: the values lie beside the codes, and nested codes are read at any precision."""

from __future__ import annotations

import numpy as np
import pytest

from qcc.backends.native import codebook, isa
from qcc.backends.native.codebook_spec import LARGEST, CodebookSchedule, CodebookSpec, padded
from qcc.backends.native.linear_spec import Activation
from qcc.ir.format import Format
from qcc.ir.levels import level_dtype
from qcc.ir.quantized import Quantized
from tests.backends.codebook_oracle import (
    HOST,
    ONE,
    SETS,
    TWO,
    WHOLE,
    K,
    N,
    build,
    check_exact,
    check_near,
    weight,
    whole_activations,
)
from tests.backends.native_oracle import LIMITS

ELEMENTS = ["k4", "k7", "k16", "k25", "k64", "k100", "k256"]
"""One for every number of bits from 2 to 8; some do not use every code."""
FAST = {"avx512_vnni": "k25", "avx2": "k100", "portable": "k64"}
"""What is tried of the instruction sets that are not the host's best, where time is short."""
THREADS = tuple(range(1, min(2, HOST.cores) + 1))


def chosen(name: str, element: str) -> bool:
    """Whether a case is cheap, or what runs on this host."""
    return name == SETS[0] or element == FAST.get(name)


@pytest.mark.parametrize(
    ("name", "element"),
    [
        pytest.param(name, element, marks=() if chosen(name, element) else pytest.mark.slow)
        for name in SETS
        for element in ELEMENTS
    ],
)
def test_sums_are_exact(name: str, element: str) -> None:
    w = weight(f"{element} in f32 per *", whole=True)
    bits = 8 if (SETS.index(name) + ELEMENTS.index(element)) % 2 else 16
    kernel = build(w, bits, name)
    packed = kernel.pack(w)
    for m in (1, 3):
        for threads in THREADS:
            check_exact(kernel, packed, w, m, threads)


@pytest.mark.parametrize("bits", [8, 16])
def test_default_schedules(bits: int) -> None:
    """Tiles of all sizes."""
    w = weight("k8 in f32 per *", whole=True)
    kernel = build(w, bits, schedule=None)
    packed = kernel.pack(w)
    for m in (*range(1, kernel.schedule.tile + 1), 2 * kernel.schedule.tile + 1):
        check_exact(kernel, packed, w, m, THREADS[-1])


@pytest.mark.parametrize(("text", "bits"), [("k16 in f16 per *", 8), ("k16 in f16 per *, f16 per *", 16)])
def test_products_are_those_of_the_decoded_weight(text: str, bits: int) -> None:
    w = weight(text)
    kernel = build(w, bits)
    packed = kernel.pack(w)
    for m in (1, 3):
        check_near(kernel, packed, w, m)


@pytest.mark.parametrize("name", SETS)
def test_one_packed_copy_serves_every_precision(name: str) -> None:
    """Every one on the best instruction set, and the ends of the range of tables on the others."""
    w = weight("n3..8 in f32 per *", whole=True)
    first = build(w, 16 if name in (SETS[0], "portable") else 8, name, TWO if name == SETS[0] else ONE, precision=4)
    packed, reads = first.pack(w), list[int]()
    for bits in range(3, 9) if name == SETS[0] else (4, 8):
        at = first.at(bits)
        reads.append(at.read_bytes)
        for m in (1, 3):
            for threads in THREADS:
                check_exact(at, packed, w.at(bits), m, threads)
    assert reads == sorted(set(reads)), "fewer bits read less"


@pytest.mark.parametrize(("bits", "precision"), [(8, 3), (16, 8)])
def test_nested_codes_of_any_values(bits: int, precision: int) -> None:
    w = weight("n3..8 in f32 per *")
    kernel = build(w, bits, precision=precision)
    packed = kernel.pack(w)
    for m in (1, 3):
        check_near(kernel, packed, w.at(precision), m)


def test_lower_planes_are_not_read() -> None:
    """What lies in the planes below does not matter, and what lies in the lowest plane that is read does."""
    w = weight("n3..8 in f32 per *")
    at = build(w, precision=3)
    packed, x = at.pack(w), whole_activations(2, K, 8)
    plane, wanted = (N + 1) * padded(K, 2) // 8, at(x, packed)
    packed.data[3 * plane : 8 * plane] ^= 255
    np.testing.assert_array_equal(at(x, packed), wanted)
    packed.data[2 * plane : 3 * plane] ^= 255
    assert (at(x, packed) != wanted).any(axis=0).all()


@pytest.mark.parametrize(
    ("shape", "rows", "bits"),
    [
        ((1, 1), 8, 8),
        ((15, 65), 1, 16),
        ((2, 64), 4, 16),
        ((83, 1030), 2, 8),
        ((83, 1030), 8, 16),
    ],
)
def test_ragged_shapes_and_chunks(shape: tuple[int, int], rows: int, bits: int) -> None:
    w = weight(f"{'k16' if rows in (1, 4) else 'k7'} in f32 per *", *shape, whole=True)
    kernel = build(w, bits, schedule=CodebookSchedule(rows=rows, prefetch=512, tile=2))
    packed = kernel.pack(w)
    for m in (1, 2, 7):
        check_exact(kernel, packed, w, m)


@pytest.mark.parametrize(
    ("name", "bits"),
    [
        pytest.param(name, bits, marks=() if name in (SETS[0], "avx2") else pytest.mark.slow)
        for name in SETS
        for bits in (8, 16)
    ],
)
def test_the_longest_sums_fit(name: str, bits: int) -> None:
    """Codes and activations at their limits, over as many columns as are taken."""
    k = LARGEST if bits == 16 else (1 << 16) - 1
    table = np.array([-WHOLE, WHOLE, 255 - 32768, 127], np.float32)[None, None]
    w = Quantized(
        Format.parse("k4 in f32 per tensor"),
        {"codes": np.tile(np.arange(4, dtype=np.uint8)[:, None], k), "table": table},
    )
    kernel = build(w, bits, name, TWO)
    packed = kernel.pack(w)
    for lowest in (LIMITS[bits], -128 if bits == 8 else 127 * 256 - 128, -127 * 256 + 127):
        x = np.full((2, k), min(max(lowest, -LIMITS[bits]), LIMITS[bits]), np.float32)
        x[:, 0] = LIMITS[bits]
        x[1] *= -1
        exact = x.astype(np.int64) @ w.decode().astype(np.int64).T
        np.testing.assert_array_equal(kernel(x, packed), exact.astype(np.float32))


def test_activations_of_bfloat16() -> None:
    w = weight("k16 in f32 per *", whole=True)
    spec = CodebookSpec(N, K, w.format, Activation(8, dtype="bf16"))
    kernel, x = codebook.build(spec, isa.best(HOST), ONE), whole_activations(3, K, 8)
    exact = (x.astype(np.int64) @ w.decode().astype(np.int64).T).astype(np.float32)
    np.testing.assert_array_equal(kernel(x.astype(level_dtype("bf16").numpy), kernel.pack(w)), exact)


def test_rows_that_are_not_finite_and_rows_of_zeros() -> None:
    w = weight("k16 in f16 per *")
    kernel = build(w)
    packed, x = kernel.pack(w), whole_activations(4, K, 8)
    wanted = kernel(x, packed)
    x[0, 5], x[2, 7], x[3] = np.nan, np.inf, 0
    y = kernel(x, packed)
    assert not np.isfinite(y[[0, 2]]).any() and not y[3].any()
    np.testing.assert_array_equal(y[1], wanted[1])


def test_bias_out_and_an_empty_batch() -> None:
    w = weight("k16 in f16 per *")
    kernel = build(w)
    packed, bias, x = kernel.pack(w), np.arange(N, dtype=np.float32), whole_activations(2, K, 8)
    out = np.full((2, N), np.nan, np.float32)
    assert kernel(x, packed, bias, out=out) is out
    np.testing.assert_array_equal(out, kernel(x, packed) + bias)
    assert kernel(x[:0], packed).shape == (0, N)


@pytest.mark.parametrize("how", ["columns", "rows", "bits", "bytes of tables"])
def test_what_is_in_the_wrong_place_is_noticed(how: str) -> None:
    w = weight("k16 in f32 per *", whole=True)
    kernel = build(w)
    packed = kernel.pack(w)
    if how == "columns":
        packed = kernel.pack(Quantized(w.format, {**w.parts, "codes": np.roll(w.codes, 1, axis=1)}))
    elif how == "rows":
        packed = kernel.pack(w.take_rows(np.roll(np.arange(N), 1)))
    elif how == "bits":
        codes = N // 2 * padded(K, 2)
        packed.data[:codes] = packed.data[:codes] << 4 | packed.data[:codes] >> 4
    else:
        tables = (N + 1) * padded(K, 2) // 2
        packed.data[tables : tables + 32] = np.roll(packed.data[tables : tables + 32], 16)
    with pytest.raises(AssertionError):
        check_exact(kernel, packed, w, 2)
