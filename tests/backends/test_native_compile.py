"""From C text to machine code: what the compiler says, what the cache keeps, and that kernels stay in their buffers."""

from __future__ import annotations

import ctypes
import os
import platform
import re
import shutil
import subprocess
import threading
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from qcc.backends.native import compile, isa, linear, memory
from qcc.backends.native.emit_linear import LinearText
from qcc.backends.native.linear_spec import Activation, LinearSpec, Schedule
from qcc.ir import target
from qcc.ir.errors import BadInput, MissingExtra, NotSupported, QccError
from qcc.ir.format import Format
from qcc.ir.target import Target
from tests.backends.native_oracle import Case, Oracle, host_isas, read_as, weights

A8, A16G = Activation(8), Activation(16, True)
BEST = host_isas()[0]
ANSWER = "int answer(void) { return 42; }\n"


@pytest.fixture
def empty_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """A cache of its own, and a compiler that is looked for anew."""
    monkeypatch.setenv("QCC_CACHE", str(tmp_path / "cache"))
    forget()
    yield tmp_path / "cache" / "kernels"
    forget()


def forget() -> None:
    compile.compiler.cache_clear()
    compile.compiler_version.cache_clear()


# The compiler and its cache


def test_a_library_is_compiled_once(empty_cache: Path) -> None:
    library = compile.compile_c(ANSWER)
    assert compile.load(library).answer() == 42
    made = library.stat().st_mtime_ns
    assert compile.compile_c(ANSWER) == library and library.stat().st_mtime_ns == made
    assert library.with_suffix(".c").read_text() == ANSWER
    assert sorted(path.suffix for path in empty_cache.iterdir()) == [".c", ".so"]


def test_text_and_flags_make_libraries_of_their_own(empty_cache: Path) -> None:
    made = {compile.compile_c(ANSWER), compile.compile_c(ANSWER + "\n"), compile.compile_c(ANSWER, ["-DX"])}
    assert len(made) == 3 and all(library.parent == empty_cache for library in made)


def test_another_compiler_makes_a_library_of_its_own(
    empty_cache: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    before, real = compile.compile_c(ANSWER), compile.compiler()
    other = tmp_path / "mycc"
    other.write_text(f'#!/bin/sh\n[ "$1" = --version ] && echo mycc 7 && exit\nexec {real} "$@"\n')
    other.chmod(0o755)
    monkeypatch.setenv("QCC_CC", str(other))
    forget()
    assert compile.compiler_version() == "mycc 7"
    after = compile.compile_c(ANSWER)
    assert after != before and compile.load(after).answer() == 42


@pytest.mark.parametrize("name", ["/nonexistent", "no-such-compiler"])
def test_no_compiler(name: str, empty_cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Kernels of the cache are not taken either: they may be of any compiler."""
    monkeypatch.setenv("QCC_CC", name)
    with pytest.raises(MissingExtra, match=re.escape(name)) as missing:
        compile.compile_c(ANSWER)
    assert missing.value.code == 4 and "QCC_CC" in missing.value.hint
    with pytest.raises(MissingExtra):
        Case("i4, f32 per 32", 16, 32, A8, BEST).build()
    assert not empty_cache.exists()


def test_no_compiler_on_the_path(empty_cache: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    monkeypatch.delenv("QCC_CC", raising=False)
    with pytest.raises(MissingExtra, match="no C compiler was found"):
        compile.compile_c(ANSWER)


def test_a_text_that_the_compiler_refuses(empty_cache: Path) -> None:
    with pytest.raises(QccError, match="refused") as refused:
        compile.compile_c("int answer(void) { return nothing; }\n")
    assert refused.value.code == 70 and "nothing" in refused.value.message
    assert not list(empty_cache.iterdir()), "neither a library nor a folder is left behind"


def test_many_compile_one_text_at_a_time(empty_cache: Path) -> None:
    found: list[int] = []
    each = [
        threading.Thread(target=lambda: found.append(compile.load(compile.compile_c(ANSWER)).answer())) for _ in "1234"
    ]
    for thread in each:
        thread.start()
    for thread in each:
        thread.join()
    assert found == [42] * 4
    assert sorted(path.suffix for path in empty_cache.iterdir()) == [".c", ".so"]


def test_a_cache_that_cannot_be_written(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A file lies where the folder should be: libraries then last as long as the process."""
    (tmp_path / "file").write_text("")
    monkeypatch.setenv("QCC_CACHE", str(tmp_path / "file"))
    library = compile.compile_c(ANSWER)
    assert compile.load(library).answer() == 42
    assert compile.compile_c(ANSWER) == library and tmp_path not in library.parents


# Instruction sets


def test_a_processor_that_nothing_is_known_of() -> None:
    unknown = Target("unknown", "cpu", "")
    assert isa.best(unknown).name == "portable"
    isa.check(isa.named("portable"), unknown)


@pytest.mark.parametrize("known", isa.ISAS, ids=lambda known: known.name)
def test_the_best_of_a_target_is_what_it_can_run(known: isa.Isa) -> None:
    exactly = Target("exactly", "cpu", "", known.needs)
    assert isa.best(exactly) == known
    isa.check(known, exactly)
    assert len(known.flags) == len(known.needs)
    for need in known.needs:
        less = replace(exactly, isa=tuple(other for other in known.needs if other != need), machine="Old 486")
        assert isa.best(less) != known and not isa.best(less).missing(less)
        with pytest.raises(NotSupported, match=f"{need}.*Old 486") as refused:
            isa.check(known, less)
        assert isa.best(less).name in refused.value.hint


def test_an_instruction_set_that_does_not_exist() -> None:
    with pytest.raises(BadInput, match="mmx") as refused:
        isa.named("mmx")
    assert "portable" in refused.value.hint


@pytest.mark.parametrize("name", [known.name for known in isa.ISAS if known.needs])
def test_kernels_are_refused_where_the_host_lacks_their_instructions(
    name: str, empty_cache: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Before anything is compiled, or loaded and killed by the processor."""
    monkeypatch.setattr(target, "load", lambda _: Target("cpu", "cpu", "", (), 2, "Old 486"))
    with pytest.raises(NotSupported, match="lacks"):
        Case("i4, f32 per 32", 16, 32, A8, name).build()
    assert not empty_cache.exists()


# What a stricter compiler and its sanitizers say

CASES = {
    "split": Case("i4, f16 per 32", 83, 100, A8, BEST, Schedule(2, 2, 512, "split", 4, 3)),
    "dense": Case("i3, f16 per 32", 33, 70, A16G, BEST, Schedule(1, 2, 0, "dense", 4, 2)),
    "planes": Case("i5, i8 per 16, f16 per 64", 17, 33, A8, BEST, Schedule(1, 1, 0, "planes", 4, 2)),
    "minima": Case(
        "u6, u6 per 32, f16 per 128, minus u6 per 32 by f16 per 128", 35, 300, A16G, BEST, Schedule(2, tile=2)
    ),
    "table": Case("e4m3, f32 per *", 31, 33, replace(A8, dtype="bf16"), BEST, Schedule(2, tile=2)),
    "bytes": Case("u8, f32 per *, zero u8 per *", 1, 1, Activation(16), BEST, Schedule(tile=2)),
    "one bit": Case("u1, bf16 per 32, zero f16 per 32", 50, 65, A8, BEST, Schedule(4, tile=1)),
}
NARROW = {
    "avx2": Case("u7, f16 per 32, zero u7 per 32", 33, 70, A16G, "avx2", Schedule(1, 2, 512, "split", 4, 1)),
    "avx2, table": Case("nf4, e8m0 per 32", 17, 33, A8, "avx2", Schedule(tile=2)),
    "portable": Case("i3, f16 per 32, plus f16 per 32", 33, 40, A8, "portable", Schedule(1, 1, 0, "split", 1, 1)),
    "portable, table": Case("e2m1, e4m3 per 16, f32 per tensor", 17, 33, A8, "portable", Schedule(tile=1)),
}
UNSEEN = {
    "avx_vnni": Case("u8, f16 per 32, zero u8 per 32", 33, 70, A16G, "avx_vnni", Schedule(1, 2, tile=2)),
    "amx": Case("i4, f16 per 32", 83, 128, A8, "amx", Schedule(2, 2, tile=2)),
}
"""What a host of the same family need not have to compile it."""
EVERY = {name: case for name, case in (CASES | NARROW).items() if case.isa in host_isas()}
SANITIZED = ["split", "dense", "minima", "avx2", "portable"]


def text_of(case: Case) -> LinearText:
    known, schedule = isa.named(case.isa), case.schedule
    if schedule and schedule.unpack == "dense" and not known.has("avx512vbmi"):
        schedule = replace(schedule, unpack="planes")
    return linear.generate(case.spec, known, schedule)


@pytest.mark.parametrize("compiler", list(filter(shutil.which, ["gcc", "clang"])))
@pytest.mark.parametrize("name", [*EVERY, *(UNSEEN if platform.machine() == "x86_64" else ())])
def test_warnings(name: str, compiler: str, tmp_path: Path) -> None:
    text = text_of((EVERY | UNSEEN)[name])
    source = tmp_path / "kernel.c"
    source.write_text(text.text())
    strict = ["-Wall", "-Wextra", "-Werror", "-Wno-unused-function", "-Wno-unknown-pragmas", "-Wno-psabi"]
    command = [compiler, "-std=gnu11", "-fsyntax-only", *strict, *text.isa.flags, source]
    run = subprocess.run(command, capture_output=True, text=True, check=False)
    assert run.returncode == 0, run.stderr[:3000]


MAIN = """
#include <sanitizer/asan_interface.h>
#include <stdio.h>
#include <stdlib.h>
#include <sys/mman.h>
void qcc_launch(task_fn task, void *data, long count, long chunk, int threads);
static FILE *in;
/* How many bytes less than it is to have a buffer gets: of the one that is called so, none ordinarily. */
static size_t less(const char *name) {
    const char *some = getenv("SHORT");
    return some && !strcmp(some, name) ? atoi(getenv("LESS")) : 0;
}
static void *filled(void *p, size_t size, int from_file) {
    if (from_file && fread(p, 1, size, in) != size) abort();
    return p;
}
/* Aligned to 64 bytes, with nothing behind it that the sanitizer lets be touched. */
static void *taken(const char *name, size_t size, size_t ahead, int from_file) {
    void *p = 0;
    if (posix_memalign(&p, 64, size + ahead - less(name) + 1) || size < less(name)) abort();
    __asan_poison_memory_region((char *)p + size + ahead - less(name), 1);
    return filled(p, size - less(name), from_file);
}
/* Aligned to 4 bytes; behind it a page that nobody may touch, which masked vectors are not excused from either. */
static void *fenced(const char *name, size_t size, int from_file) {
    const size_t page = 4096, room = (size + page - 1) / page * page;
    char *all = mmap(0, room + page, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
    if (all == MAP_FAILED || mprotect(all + room, page, PROT_NONE)) abort();
    char *p = all + room - size + less(name);
    __asan_poison_memory_region(all, p - all);
    return filled(p, size - less(name), from_file);
}
int main(int count, char **names) {
    float alpha;
    FILE *out = fopen(names[2], "wb");
    in = fopen(names[1], "rb");
    if (count != 3 || fread(&alpha, 4, 1, in) != 1) abort();
    uint8_t *w = taken("w", (size_t)BLOCKS * BLOCK_BYTES, READ_AHEAD, 1);
    float *bias = fenced("bias", N * sizeof(float), 1);
    for (long m = 0; m < 10; m++) {
        input *x = fenced("x", m * K * sizeof(input), 1);
        for (int threads = 1; threads < 4; threads++) {
            float *y = fenced("y", m * N * sizeof(float), 0);
            uint8_t *scratch = taken("scratch", m * ROW_BYTES + threads * PANEL_BYTES, 0, 0);
            qcc_linear(x, w, threads == 2 ? 0 : bias, y, m, alpha, scratch, threads, qcc_launch, 0, 0);
            fwrite(y, sizeof(float), m * N, out);
            free(scratch);
        }
    }
    return fclose(out);
}
"""


@pytest.mark.parametrize(
    "name", [name if name in SANITIZED else pytest.param(name, marks=pytest.mark.slow) for name in EVERY]
)
def test_kernels_stay_in_their_buffers(name: str, tmp_path: Path) -> None:
    """With the address and undefined-behaviour sanitizers, 0 to 9 rows, 1 to 3 threads, buffers without slack."""
    case, text = EVERY[name], text_of(EVERY[name])
    rng = np.random.default_rng(5)
    oracle = Oracle.of(case.spec, weights(case.spec.weight, (case.n, case.k), "random", False, rng))
    packed, bias = linear.LinearKernel(text).pack(oracle.weight), rng.standard_normal(case.n).astype(np.float32)
    inputs = [read_as(rng.standard_normal((m, case.k)), case.activation.dtype) for m in range(10)]
    run = run_with(sanitized(text, tmp_path), np.float32(packed.alpha), packed.data, bias, *inputs)
    assert run.returncode == 0, run.stderr[:3000]
    found = np.fromfile(tmp_path / "out", np.float32)
    for x in inputs:
        for threads in (1, 2, 3):
            y, found = found[: len(x) * case.n].reshape(-1, case.n), found[len(x) * case.n :]
            oracle.compare(x, None if threads == 2 else bias, y, f"{case}, M = {len(x)}, {threads} threads")
    assert not found.size


def test_buffers_that_are_too_short_are_found(tmp_path: Path) -> None:
    """The same program with a few bytes less of one buffer does not pass."""
    text = text_of(Case("i3, f32 per *", 33, 62, A8, BEST, Schedule(tile=1)))
    program, zeros = sanitized(text, tmp_path), np.zeros(1 << 16, np.uint8)
    assert run_with(program, zeros).returncode == 0
    room = 4 + memory.READ_AHEAD
    for name, less in {"w": room, "bias": 4, "x": 4, "y": 4, "scratch": 128}.items():
        run = run_with(program, zeros, SHORT=name, LESS=str(less))
        assert run.returncode != 0 and "AddressSanitizer" in run.stderr, name


def sanitized(text: LinearText, folder: Path) -> Path:
    """The kernel as a program that reads and writes files."""
    source, program = folder / "kernel.c", folder / "kernel"
    source.write_text(text.text() + f"#define READ_AHEAD {memory.READ_AHEAD}\n" + MAIN)
    flags = ["-std=gnu11", "-O1", "-g1", "-pthread", "-w", "-fsanitize=address,undefined", "-fno-sanitize-recover=all"]
    command = [compile.compiler(), *flags, *text.isa.flags, "-o", program, source, isa.C_FOLDER / "pool.c", "-lm"]
    made = subprocess.run(command, capture_output=True, text=True, check=False)
    if made.returncode and "cannot find" in made.stderr:
        pytest.skip("this compiler has no sanitizers")
    assert made.returncode == 0, made.stderr[:3000]
    return program


def run_with(program: Path, *data: np.ndarray | np.float32, **settings: str) -> subprocess.CompletedProcess[str]:
    """A run that reads `data` and writes the file `out` beside the program."""
    read, written = program.with_name("in"), program.with_name("out")
    read.write_bytes(b"".join(some.tobytes() for some in data))
    environment = {**os.environ, **settings, "ASAN_OPTIONS": "detect_leaks=0"}
    command = [program, read, written]
    return subprocess.run(command, capture_output=True, text=True, check=False, timeout=120, env=environment)


# What a library offers


def test_a_kernel_offers_its_three_functions() -> None:
    kernel = Case("i4, f32 per 32", 17, 64, A8, BEST, Schedule(tile=1)).build()
    library = compile.load(compile.compile_c(kernel.source, kernel.isa.flags))
    for name in ("qcc_prepare", "qcc_blocks", "qcc_linear"):
        assert isinstance(getattr(library, name), ctypes._CFuncPtr)  # pyright: ignore[reportPrivateUsage]


def test_a_text_says_what_it_computes() -> None:
    source = linear.generate(LinearSpec(17, 64, Format.parse("i4, f32 per 32"), A8), isa.named("portable")).text()
    assert "linear 17x64 A8 [i4, f32 per 32], portable: " in source
