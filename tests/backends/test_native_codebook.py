"""Kernels for codebooks of each row: the values lie beside the codes, and nested codes are read at any precision.

Two oracles: whole numbers, where every result is one rounding of an exact sum and has to be met bit for bit, and the
decoded weight in float64, within half a step of the tables.
"""

from __future__ import annotations

import subprocess
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from numpy.typing import NDArray

from qcc.backends.native import codebook, compile, isa, linear
from qcc.backends.native.codebook import CodebookKernel, rounded_tables
from qcc.backends.native.codebook_spec import (
    LARGEST,
    CodebookSchedule,
    CodebookSpec,
    default_schedule,
    padded,
    space,
    storage,
)
from qcc.backends.native.emit_codebook import CodebookText
from qcc.backends.native.linear_spec import Activation
from qcc.ir import target
from qcc.ir.errors import BadInput, NotSupported
from qcc.ir.format import Format
from qcc.ir.levels import level_dtype
from qcc.ir.quantized import Quantized
from tests.backends.native_oracle import host_isas, rounded

HOST = target.load("cpu")
SETS = [name for name in host_isas() if name != "amx"]
N, K = 37, 500
WHOLE = 32767
"""The largest whole number of a table; with it, a row of whole numbers has the step 1."""
LIMITS = {8: 127, 16: 127 * 256 + 127}
TWO = CodebookSchedule(rows=2, tile=2)
ELEMENTS = ["k4", "k7", "k16", "k25", "k64", "k100", "k256"]
"""One for every number of bits from 2 to 8; some do not use every code."""


def weight(text: str, n: int = N, k: int = K, *, whole: bool = False, seed: int = 0) -> Quantized:
    """Random codes, and for each row a table of random values; whole numbers, or with an outlier."""
    rng, fmt = np.random.default_rng(seed), Format.parse(text)
    assert fmt.codebook is not None
    entries, parts = fmt.codebook.entries, dict[str, NDArray[np.generic]]()
    for name, level in fmt.levels().items():
        dtype, size = level_dtype(level.dtype).numpy, level.shape_of((n, k))
        if name != "table":
            parts[name] = rng.uniform(0.1, 2, size).astype(dtype)
            continue
        table = rng.integers(-WHOLE, WHOLE + 1, (*size, entries)) if whole else rng.standard_normal((*size, entries))
        if whole:  # in the table of each precision
            begins = [0] if fmt.element[0] == "k" else np.cumsum([0, *(1 << np.arange(fmt.bits, 2, -1))])[:-1]
            table[..., begins] = rng.choice([-WHOLE, WHOLE], (*size, len(begins)))
        else:
            table[..., -1] *= 8
        parts[name] = table.astype(dtype)
    codes = rng.integers(0, min(entries, 1 << fmt.bits), (n, k)).astype(np.uint8)
    return Quantized(fmt, {"codes": codes, **parts})


def build(w: Quantized, bits: int = 8, name: str = "", schedule: CodebookSchedule | None = None) -> CodebookKernel:
    """The kernel of a weight."""
    (n, k), chosen = w.shape, isa.named(name) if name else isa.best(HOST)
    return codebook.build(CodebookSpec(n, k, w.format, Activation(bits)), chosen, schedule)


def whole_activations(m: int, k: int, bits: int, seed: int = 1) -> NDArray[np.float32]:
    """Whole numbers of all sizes with the largest in every row, so that its scale is 1."""
    x = np.random.default_rng(seed).integers(-LIMITS[bits], LIMITS[bits] + 1, (m, k))
    x[:, 0] = LIMITS[bits]
    return x.astype(np.float32)


def check_exact(kernel: CodebookKernel, packed: linear.Packed, w: Quantized, m: int, threads: int = 1) -> None:
    """Every result is its exact sum, rounded once."""
    x = whole_activations(m, w.shape[1], kernel.spec.activation.bits)
    exact = x.astype(np.int64) @ w.decode().astype(np.int64).T
    np.testing.assert_array_equal(kernel(x, packed, threads=threads), exact.astype(np.float32))


def check_near(kernel: CodebookKernel, packed: linear.Packed, w: Quantized, m: int, threads: int = 1) -> None:
    """Within half a step of each value times the activations, which are rounded as it is documented."""
    rng, (_, k) = np.random.default_rng(m), w.shape
    x = rng.standard_normal((m, k)).astype(np.float32) * np.exp(rng.standard_normal((m, 1))).astype(np.float32)
    q, scale = rounded(x, kernel.spec.activation, np.zeros(1, np.int64))
    values, held = w.decode().astype(np.float64), q * scale
    tables = np.abs(np.asarray(w.parts["table"], np.float64)).max(axis=-1).reshape(-1)
    if w.format.scales:
        tables = tables * np.asarray(w.parts["scale"], np.float64).reshape(-1)
    step = np.broadcast_to(tables, w.shape[:1]) / WHOLE
    terms, y = np.abs(held) @ np.abs(values).T, kernel(x, packed, threads=threads)
    allowed = 0.5001 * np.abs(held).sum(1, keepdims=True) * step + 2.0**-22 * terms
    assert (np.abs(y - held @ values.T) <= allowed).all()
    if kernel.spec.activation.bits == 16:
        exact = x.astype(np.float64) @ values.T
        assert np.abs(y - exact).max() < 1e-3 * np.sqrt((exact**2).mean())


@pytest.mark.parametrize(
    ("name", "element"),
    [
        pytest.param(name, element, marks=() if name == SETS[0] or i % 3 == 1 else pytest.mark.slow)
        for name in SETS
        for i, element in enumerate(ELEMENTS, SETS.index(name))
    ],
)
def test_sums_are_exact(name: str, element: str) -> None:
    w = weight(f"{element} in f32 per *", whole=True)
    bits = 8 if (SETS.index(name) + ELEMENTS.index(element)) % 2 else 16
    kernel = build(w, bits, name, None if name == SETS[0] else TWO)
    packed = kernel.pack(w)
    for m in (1, 3, 9):
        for threads in range(1, min(2, HOST.cores) + 1):
            check_exact(kernel, packed, w, m, threads)


@pytest.mark.parametrize("text", ["k16 in f16 per *", "k100 in bf16 per *", "n3..8 in f16 per *"])
@pytest.mark.parametrize("bits", [8, 16])
def test_products_are_those_of_the_decoded_weight(text: str, bits: int) -> None:
    w = weight(text)
    kernel = build(w, bits)
    packed = kernel.pack(w)
    for m in (1, 3, 9):
        check_near(kernel, packed, w if text[0] == "k" else w.at(8), m)


@pytest.mark.parametrize("name", SETS)
def test_one_packed_copy_serves_every_precision(name: str) -> None:
    w = weight("n3..8 in f32 per *", whole=True)
    kernel = build(w, 8 if name == "avx2" else 16, name, None if name == SETS[0] else TWO)
    packed, reads = kernel.pack(w), list[int]()
    for bits in range(3, 9) if name == SETS[0] else (3, 6):
        at = kernel.at(bits)
        reads.append(at.read_bytes)
        for m in (1, 9):
            check_exact(at, packed, w.at(bits), m)
    assert reads == sorted(set(reads)), "fewer bits read less"


def test_lower_planes_are_not_read() -> None:
    """What lies in the planes below does not matter, and what lies in the lowest plane that is read does."""
    w = weight("n3..8 in f16 per *")
    kernel = build(w, schedule=TWO)
    packed, x = kernel.pack(w), whole_activations(2, K, 8)
    at, plane = kernel.at(3), (N + 1) * padded(K, 2) // 8
    wanted = at(x, packed)
    packed.data[3 * plane : 8 * plane] ^= 255
    np.testing.assert_array_equal(at(x, packed), wanted)
    packed.data[2 * plane : 3 * plane] ^= 255
    assert (at(x, packed) != wanted).any(axis=0).all()


@pytest.mark.parametrize("rows", [1, 2, 4, 8])
@pytest.mark.parametrize("shape", [(1, 1), (2, 64), (15, 65), (83, 1030)])
def test_ragged_shapes_and_chunks(shape: tuple[int, int], rows: int) -> None:
    text, schedule = ("k16 in f32 per *", "k7 in f32 per *")[shape[0] % 2], CodebookSchedule(rows=rows, prefetch=512)
    w = weight(text, *shape, whole=True)
    kernel = build(w, 8, schedule=schedule)
    packed = kernel.pack(w)
    for m in (1, 2, 7):
        check_exact(kernel, packed, w, m)


@pytest.mark.parametrize("name", SETS)
@pytest.mark.parametrize("bits", [8, 16])
def test_the_longest_sums_fit(name: str, bits: int) -> None:
    """Codes and activations at their limits, over as many columns as are taken."""
    k = LARGEST if bits == 16 else (1 << 16) - 1
    table = np.array([-WHOLE, WHOLE, 255 - 32768, 127], np.float32)[None, None]
    w = Quantized(
        Format.parse("k4 in f32 per tensor"),
        {"codes": np.tile(np.arange(4, dtype=np.uint8)[:, None], k), "table": table},
    )
    kernel = build(w, bits, name, CodebookSchedule(rows=4, tile=2))
    packed = kernel.pack(w)
    for lowest in (LIMITS[bits], -128 if bits == 8 else 127 * 256 - 128, -127 * 256 + 127):
        x = np.full((2, k), min(max(lowest, -LIMITS[bits]), LIMITS[bits]), np.float32)
        x[:, 0] = LIMITS[bits]
        x[1] *= -1
        exact = x.astype(np.int64) @ w.decode().astype(np.int64).T
        np.testing.assert_array_equal(kernel(x, packed), exact.astype(np.float32))


@pytest.mark.parametrize(
    "text", ["k16 in f16 per *, f16 per *", "k8 in f32 per tensor", "k16 in f16 per *, f32 per tensor"]
)
def test_scales_and_shared_tables(text: str) -> None:
    w = weight(text)
    kernel = build(w, 16)
    check_near(kernel, kernel.pack(w), w, 3)


def test_tables_of_several_rows() -> None:
    w = weight("k16 in f32 per 5x*", whole=True)
    kernel = build(w)
    check_exact(kernel, kernel.pack(w), w, 2)


def test_activations_of_bfloat16() -> None:
    w = weight("k16 in f32 per *", whole=True)
    spec = CodebookSpec(N, K, w.format, Activation(8, dtype="bf16"))
    kernel, x = codebook.build(spec, isa.best(HOST)), whole_activations(3, K, 8)
    exact = (x.astype(np.int64) @ w.decode().astype(np.int64).T).astype(np.float32)
    np.testing.assert_array_equal(kernel(x.astype(level_dtype("bf16").numpy), kernel.pack(w)), exact)


@pytest.mark.parametrize("size", [0, 1e-42, 1e-30, 1, 3e38])
def test_tables_of_any_size(size: float) -> None:
    w = weight("k16 in f32 per *")
    table = np.array(w.parts["table"] / np.abs(w.parts["table"]).max(axis=-1, keepdims=True), np.float64) * size
    high, low, step = rounded_tables(Quantized(w.format, {**w.parts, "table": table.astype(np.float32)}), 4)
    held = step.astype(np.float64) * (256 * (high.astype(np.int64) - 128) + low)
    error = np.abs(held - table.astype(np.float32)).max()
    assert error <= max(size / 65534 * 1.00001, 2.0**-127)


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


@pytest.mark.parametrize("text", ["k7 in f16 per *", "k40 in f16 per *", "k100 in f16 per *", "n3..8 in f16 per *"])
def test_the_record_holds_every_bit_once(text: str) -> None:
    w = weight(text)
    for schedule in (CodebookSchedule(rows=rows) for rows in (1, 2, 4, 8)):
        spec = CodebookSpec(N, K, w.format, Activation())
        stored, shape = storage(spec, schedule), (N, K, 1 << w.format.bits)
        parts: dict[str, NDArray[np.generic]] = {"codes": w.codes[..., None]}
        bits = {"codes": w.format.bits}
        for precision in spec.precisions:
            for name, held in zip(("high", "low", "step"), rounded_tables(w, precision), strict=True):
                parts[f"{name}{precision}"] = held
                bits |= {f"{name}{precision}": 8 * held.itemsize}
        packed = stored.layout.pack(parts, bits, shape)
        assert packed.size == stored.bytes and stored.read_bytes <= stored.bytes
        back = stored.layout.unpack(packed, bits, {name: part.dtype for name, part in parts.items()}, shape)
        for name, part in parts.items():
            np.testing.assert_array_equal(back[name], part)


@pytest.mark.parametrize("how", ["columns", "rows", "bits", "bytes of tables"])
def test_what_is_in_the_wrong_place_is_noticed(how: str) -> None:
    w = weight("k16 in f32 per *", whole=True)
    kernel = build(w, schedule=TWO)
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


def test_schedules() -> None:
    """Every one computes the same; the default wastes little on padding."""
    w = weight("n3..8 in f32 per *", 9, 640, whole=True)
    spec = CodebookSpec(9, 640, w.format, Activation())
    every = list(space(spec, isa.best(HOST)))
    assert len(every) == len(set(every)) > 8
    for schedule in every[:: max(1, len(every) // 4)]:
        kernel = build(w, schedule=replace(schedule, tile=2))
        check_exact(kernel.at(4), kernel.pack(w), w.at(4), 3)
    for k, rows in ((4096, 2), (640, 4), (64, 8), (11008, 2)):
        chosen = default_schedule(CodebookSpec(8, k, w.format, Activation()), isa.best(HOST))
        assert chosen.rows == rows and str(chosen).startswith(f"{rows} rows")


MAIN = """
#include <stdio.h>
#include <stdlib.h>
static void *exact(size_t size) { void *p = 0; return posix_memalign(&p, 64, size ? size : 1) ? 0 : p; }
int main(int count, char **names) {
    FILE *in = fopen(names[1], "rb"), *out = fopen(names[2], "wb");
    uint8_t *w = exact(WEIGHT_BYTES);
    if (count != 3 || fread(w, 1, WEIGHT_BYTES, in) != WEIGHT_BYTES) abort();
    for (long m = 0; m < 10; m++) {
        input *x = malloc(m * K * sizeof(input) + !m);
        float *y = malloc(m * N * sizeof(float) + !m);
        uint8_t *scratch = exact(m * ROW_BYTES);
        if (fread(x, sizeof(input), m * K, in) != (size_t)(m * K)) abort();
        qcc_linear(x, w, 0, y, m, 1.0f, scratch, 1, 0);
        fwrite(y, sizeof(float), m * N, out);
        free(x), free(y), free(scratch);
    }
    free(w), fclose(in);
    return fclose(out);
}
"""


@pytest.mark.parametrize("compiled", [["-Wall", "-Wextra", "-Werror", "-Wno-unused-function", "-Wno-psabi"], []])
@pytest.mark.parametrize("text", ["k7 in f32 per *", "n3..8 in f32 per *"])
@pytest.mark.parametrize(
    "name", [name if name != "portable" else pytest.param(name, marks=pytest.mark.slow) for name in SETS]
)
def test_kernels_stay_in_their_buffers(name: str, text: str, compiled: list[str], tmp_path: Path) -> None:
    """With the address and undefined-behaviour sanitizers and strict warnings; a weight has its documented slack."""
    w = weight(text, 5, 70, whole=True)
    spec = CodebookSpec(5, 70, w.format, Activation(16), 3 if text[0] == "n" else 0)
    made: CodebookText = codebook.generate(spec, isa.named(name), CodebookSchedule(rows=2, prefetch=1024, tile=2))
    source, program = tmp_path / "kernel.c", tmp_path / "kernel"
    source.write_text(f"{made.text()}#define WEIGHT_BYTES {made.storage.bytes + linear.READ_AHEAD}\n{MAIN}")
    flags = [
        "-std=gnu11",
        "-Wno-unknown-pragmas",
        *made.isa.flags,
        *(compiled or ["-w", "-O1", "-fsanitize=address,undefined"]),
    ]
    only = ["-fsyntax-only"] if compiled else ["-fno-sanitize-recover=all", "-o", str(program)]
    run = subprocess.run(
        [compile.compiler(), *flags, *only, source, "-lm"], capture_output=True, text=True, check=False
    )
    if run.returncode and "cannot find" in run.stderr:
        pytest.skip("the compiler has no sanitizers")
    assert run.returncode == 0, run.stderr[:3000]
    if compiled:
        return
    packed = CodebookKernel(made).pack(w)
    inputs = [whole_activations(m, 70, 16) for m in range(10)]
    slack = np.zeros(linear.READ_AHEAD, np.uint8)
    (tmp_path / "in").write_bytes(b"".join(part.tobytes() for part in (packed.data, slack, *inputs)))
    run = subprocess.run([program, tmp_path / "in", tmp_path / "out"], capture_output=True, text=True, check=False)
    assert run.returncode == 0, run.stderr[:3000]
    values = (w.at(3) if text[0] == "n" else w).decode().astype(np.int64)
    exact = np.concatenate([x.astype(np.int64) @ values.T for x in inputs]).astype(np.float32)
    np.testing.assert_array_equal(np.fromfile(tmp_path / "out", np.float32), exact.reshape(-1))


@pytest.mark.parametrize(
    ("text", "reason"),
    {
        "i4, f32 per 32": "beside the codes",
        "k16 in f16 per 32": "whole row",
        "k16 in f16 per *, f16 per 32": "whole row",
        "k16 in f16 per *, outliers f16 csr": "outliers",
        "k16 in f16 per *, f16 per *, minus f16 per *": "minimum",
    }.items(),
)
def test_formats_that_have_no_kernel(text: str, reason: str) -> None:
    with pytest.raises(NotSupported, match=reason):
        CodebookSpec(N, K, Format.parse(text), Activation())


def test_what_does_not_fit_is_refused() -> None:
    w, best = weight("k16 in f16 per *"), isa.best(HOST)
    spec, kernel = CodebookSpec(N, K, w.format, Activation()), build(w)
    packed, x = kernel.pack(w), np.ones((1, K), np.float32)
    with pytest.raises(BadInput, match="the kernel is for"):
        kernel.pack(weight("k8 in f16 per *"))
    with pytest.raises(BadInput, match="beyond the 12 values"):
        some = weight("k12 in f16 per *")
        build(some).pack(Quantized(some.format, {**some.parts, "codes": np.full((N, K), 12, np.uint8)}))
    with pytest.raises(BadInput, match="table at block"):
        kernel.pack(Quantized(w.format, {**w.parts, "table": np.full_like(w.parts["table"], np.inf)}))
    with pytest.raises(BadInput, match="x is"):
        kernel(x[:, :-1], packed)
    with pytest.raises(BadInput, match="packed is"):
        kernel(x, linear.Packed(packed.data[:-64], 1.0))
    with pytest.raises(BadInput, match="begin at a multiple"):
        kernel(x, linear.Packed(np.concatenate([packed.data[:1], packed.data])[1:], 1.0))
    with pytest.raises(BadInput, match="threads"):
        kernel(x, packed, threads=0)
    with pytest.raises(BadInput, match="one precision"):
        kernel.at(3)
    with pytest.raises(BadInput, match="no precision of 2 bits"):
        CodebookSpec(N, K, Format.parse("n3..8 in f16 per *"), Activation(), 2)
    with pytest.raises(BadInput, match="chunks of 3 rows"):
        codebook.generate(spec, best, CodebookSchedule(rows=3))
    with pytest.raises(BadInput, match="tiles of 0 rows"):
        codebook.generate(spec, best, CodebookSchedule(tile=0))
    with pytest.raises(NotSupported, match=f"up to {LARGEST}"):
        CodebookSpec(N, LARGEST + 1, w.format, Activation(16))
    with pytest.raises(NotSupported, match="a scale for each row"):
        CodebookSpec(N, K, w.format, Activation(8, grouped=True))
    with pytest.raises(BadInput, match="rows and columns"):
        CodebookSpec(0, K, w.format, Activation())
