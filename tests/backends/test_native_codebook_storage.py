"""Where the bits of codebook kernels lie, what is refused, and that their C stays in its buffers."""

from __future__ import annotations

import subprocess
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from numpy.typing import NDArray

from qcc.backends.native import codebook, compile, isa, linear, memory
from qcc.backends.native.codebook import CodebookKernel, rounded_tables
from qcc.backends.native.codebook_spec import (
    LARGEST,
    CodebookSchedule,
    CodebookSpec,
    default_schedule,
    space,
    storage,
)
from qcc.backends.native.emit_codebook import CodebookText
from qcc.backends.native.linear_spec import Activation
from qcc.ir.errors import BadInput, NotSupported
from qcc.ir.format import Format
from qcc.ir.quantized import Quantized
from tests.backends.codebook_oracle import HOST, SETS, K, N, build, check_exact, weight, whole_activations


@pytest.mark.parametrize("size", [0, 1e-42, 1e-30, 1, 3e38])
def test_tables_of_any_size(size: float) -> None:
    w = weight("k16 in f32 per *")
    table = np.array(w.parts["table"] / np.abs(w.parts["table"]).max(axis=-1, keepdims=True), np.float64) * size
    high, low, step = rounded_tables(Quantized(w.format, {**w.parts, "table": table.astype(np.float32)}), 4)
    held = step.astype(np.float64) * (256 * (high.astype(np.int64) - 128) + low)
    error = np.abs(held - table.astype(np.float32)).max()
    assert error <= max(size / 65534 * 1.00001, 2.0**-127)


@pytest.mark.parametrize(
    "text",
    [
        "k16 in f32 per 5x*",
        "k100 in bf16 per *",
        "k8 in f32 per tensor",
        "k16 in f16 per *, f16 per *",
        "k16 in f16 per *, f32 per tensor",
    ],
)
def test_tables_hold_scales_and_are_those_of_each_row(text: str) -> None:
    w = weight(text)
    high, low, step = rounded_tables(w, w.format.bits)
    held = step.astype(np.float64) * (256 * (high.astype(np.int64) - 128) + low)
    found = np.take_along_axis(held[:, 0], w.codes.astype(np.int64), axis=1)
    values = w.decode().astype(np.float64)
    assert (np.abs(found - values) <= 0.5001 * step[:, 0] + 2.0**-23 * np.abs(values)).all()


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


def test_schedules() -> None:
    """Every one computes the same; the default wastes little on padding."""
    w = weight("n3..8 in f32 per *", 9, 640, whole=True)
    spec = CodebookSpec(9, 640, w.format, Activation())
    every = list(space(spec, isa.best(HOST)))
    assert len(every) == len(set(every)) > 8
    for schedule in every[::5]:
        kernel = build(w, schedule=replace(schedule, tile=1), precision=4)
        check_exact(kernel, kernel.pack(w), w.at(4), 3)
    for k, rows in ((4096, 2), (640, 4), (64, 8), (11008, 2)):
        chosen = default_schedule(CodebookSpec(8, k, w.format, Activation()), isa.best(HOST))
        assert chosen.rows == rows and str(chosen).startswith(f"{rows} rows")
    few = [
        default_schedule(CodebookSpec(8, 4096, Format.parse(f"{k} in f16 per *"), Activation()), isa.best(HOST)).rows
        for k in ("k4", "k8", "k16")
    ]
    assert few == [4, 2, 2], "codes of few bits share their activations among more rows"


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
        qcc_linear(x, w, 0, y, m, 1.0f, scratch, 1, 0, 0, 0);
        fwrite(y, sizeof(float), m * N, out);
        free(x), free(y), free(scratch);
    }
    free(w), fclose(in);
    return fclose(out);
}
"""


WARNINGS = ["-Wall", "-Wextra", "-Werror", "-Wno-unused-function", "-Wno-psabi"]
TEXTS = ("k7 in f32 per *", "n3..8 in f32 per *")
FAST = {(SETS[0], TEXTS[1]), ("avx2", TEXTS[0])}
"""What runs with sanitizers where time is short."""


@pytest.mark.parametrize(
    ("name", "text", "compiled"),
    [
        pytest.param(name, text, compiled, marks=() if compiled or (name, text) in FAST else pytest.mark.slow)
        for name in SETS
        for text in TEXTS
        for compiled in (WARNINGS, [])
    ],
)
def test_kernels_stay_in_their_buffers(name: str, text: str, compiled: list[str], tmp_path: Path) -> None:
    """With the address and undefined-behaviour sanitizers and strict warnings; a weight has its documented slack."""
    w = weight(text, 5, 70, whole=True)
    spec = CodebookSpec(5, 70, w.format, Activation(16), 3 if text[0] == "n" else 0)
    made: CodebookText = codebook.generate(spec, isa.named(name), CodebookSchedule(rows=2, prefetch=1024, tile=2))
    source, program = tmp_path / "kernel.c", tmp_path / "kernel"
    source.write_text(f"{made.text()}#define WEIGHT_BYTES {made.storage.bytes + memory.READ_AHEAD}\n{MAIN}")
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
    slack = np.zeros(memory.READ_AHEAD, np.uint8)
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
    with pytest.raises(BadInput, match="beyond the 7 values"):
        some = weight("k7 in f32 per *")
        build(some).pack(Quantized(some.format, {**some.parts, "codes": np.full((N, K), 7, np.uint8)}))
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
