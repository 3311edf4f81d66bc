"""Kernels by int8 tiles, run on an emulator of the tiles where the host has none: against oracles, and bit for bit."""

from __future__ import annotations

import ctypes
import errno
import os
import signal
import subprocess
from dataclasses import dataclass, replace
from functools import cache
from pathlib import Path

import numpy as np
import pytest

from qcc.backends.native import compile, isa, linear, memory
from qcc.backends.native.emit_amx import TiledText, Tiling
from qcc.backends.native.isa import Isa
from qcc.backends.native.linear import LinearKernel
from qcc.backends.native.linear_spec import Activation, Schedule, space
from qcc.ir import target
from qcc.ir.errors import BadInput, NotSupported
from qcc.ir.quantized import Quantized
from qcc.ir.target import Target
from tests.backends.native_oracle import Case, check, rough_activations, weights

EMULATOR = Path(__file__).with_name("amx_emulator.h")
AMX, VECTORS = isa.named("amx"), isa.named("avx512_vbmi")
HOST = target.load("cpu")

A8, A16 = Activation(8), Activation(16)
ROWS = (16, 17, 31, 33, 64)
"""Rows of activations: whole tiles, and those whose last tile overlaps the one before."""

needs_vectors = pytest.mark.skipif(bool(VECTORS.missing(HOST)), reason="tiles are emulated beside AVX512-VBMI")


@dataclass(frozen=True)
class EmulatedIsa(Isa):
    """`amx` on a host that has only its vectors."""

    before: str = ""
    """C in front of the emulator."""

    @property
    def flags(self) -> tuple[str, ...]:
        return (*VECTORS.flags, "-O2")  # compiles faster

    def missing(self, target: Target) -> tuple[str, ...]:
        return VECTORS.missing(target)

    def text(self) -> str:
        return f"{self.before}\n{EMULATOR.read_text()}\n{super().text()}"


EMULATED = EmulatedIsa(AMX.name, AMX.header, AMX.needs, AMX.wide, AMX.summary)


def schedule(vectors: int = 2, unpack: str = "split") -> Schedule:
    return Schedule(vectors, 1, unpack=unpack, tile=1)


CASES = {
    "four bits": Case("i4, f16 per 32", 83, 100, A8, "amx", schedule()),
    "groups of 16, grouped activations": Case("i3, bf16 per 16", 33, 83, Activation(8, True), "amx", schedule()),
    "groups of 64, two bytes": Case("i6, f16 per 64", 40, 200, A16, "amx", schedule(unpack="dense")),
    "two steps a group": Case("i5, f16 per 96", 33, 200, A8, "amx", schedule(unpack="dense")),
    "groups of 128, four vectors": Case("u2, f16 per 128", 70, 300, A8, "amx", schedule(4, "planes")),
    "one group, filled up": Case("i4, f32 per *", 17, 100, A8, "amx", schedule(1)),
    "carried sums": Case("i8, f32 per *", 33, 1300, A8, "amx", schedule()),
    "carried sums, two bytes": Case("i8, f32 per *", 70, 700, Activation(16, True), "amx", schedule(4)),
    "zero points in the panel": Case("u4, f16 per 32, zero u4", 33, 130, A8, "amx", schedule()),
    "zero points beside it": Case("u8, f16 per 32, zero u8", 33, 100, A16, "amx", schedule()),
    "zero points of other rows": Case("i8, f32 per 64, zero i8", 15, 100, Activation(8, True), "amx", schedule(1)),
    "float zero points": Case("u3, f16 per 32, zero f16", 33, 100, A8, "amx", schedule(unpack="dense")),
    "one zero point, signed": Case("u8, f32 per *, zero 128", 33, 260, A8, "amx", schedule()),
    "one zero point, unsigned": Case("u8, f32 per 32, zero 3", 33, 100, A16, "amx", schedule()),
    "two levels and a minimum": Case(
        "u4, u6 per 32, f16 per 128, minus u6 per 32 by f16 per 128", 33, 300, A8, "amx", schedule()
    ),
    "an addend": Case("i4, f16 per 32, plus f16 per 32", 33, 100, Activation(16, True), "amx", schedule()),
    "scales in two levels": Case("e2m1, e4m3 per 16, f32 per tensor", 33, 100, A8, "amx", schedule()),
    "a table of two bytes": Case("nf4, f32 per 64", 83, 200, A8, "amx", schedule()),
    "two bytes of each": Case("nf4, f32 per 64", 33, 130, A16, "amx", schedule()),
    "a table of three bytes": Case("e4m3, e8m0 per 32", 33, 100, A8, "amx", schedule()),
    "three bytes and two": Case("e4m3, f32 per *", 33, 400, A16, "amx", schedule()),
}


@cache
def built(case: Case) -> LinearKernel:
    return linear.build(case.spec, EMULATED, case.schedule)


@needs_vectors
@pytest.mark.parametrize("case", CASES.values(), ids=CASES.keys())
def test_tiles_agree_with_float64(case: Case) -> None:
    before = products(built(case))
    check(case, built(case), ROWS)
    assert products(built(case)) > before, "no tiles were multiplied"


@needs_vectors
@pytest.mark.parametrize(
    "name", ["four bits", "groups of 64, two bytes", "carried sums", "zero points beside it", "three bytes and two"]
)
def test_tiles_and_vectors_give_the_same_bits(name: str) -> None:
    case, rng = CASES[name], np.random.default_rng(3)
    vectors = linear.build(case.spec, VECTORS, case.schedule)
    for pattern in ("random", "lowest", "highest"):
        weight = weights(case.spec.weight, (case.n, case.k), pattern, False, rng)
        x = rough_activations(47, case.k, rng)
        bias = rng.standard_normal(case.n).astype(np.float32)
        tiled = built(case)(x, built(case).pack(weight), bias, threads=min(2, HOST.cores))
        np.testing.assert_array_equal(tiled, vectors(x, vectors.pack(weight), bias))


@needs_vectors
@pytest.mark.parametrize("m", ROWS)
@pytest.mark.parametrize(
    ("fmt", "code", "value"),
    [("i8, f32 per *", -128, -128), ("i8, f32 per *", 127, 127), ("u8, f32 per 32, zero u8", 255, 255)],
)
def test_the_largest_sums_are_exact(fmt: str, code: int, value: int, m: int) -> None:
    n, k = 33, 1300
    case = Case(fmt, n, k, A8, "amx", schedule())
    form = case.spec.weight
    codes = np.full((n, k), code, np.int8 if fmt[0] == "i" else np.uint8)
    parts: dict[str, np.ndarray] = {"scale": np.ones(form.scale_shape((n, k)), np.float32)}
    if form.zero is not None:
        parts["zero"] = np.zeros(form.scale_shape((n, k)), np.uint8)
    x = np.where(np.arange(m) % 2, 127, -127).astype(np.float32)[:, None].repeat(k, axis=1)
    x[:, -1] = 126  # so that the sums are no multiples of a power of two
    wanted = (x.astype(np.int64) * value).sum(axis=1)
    y = built(case)(x, built(case).pack(Quantized(form, {"codes": codes, **parts})))
    if "*" in fmt:
        np.testing.assert_array_equal(y, wanted.astype(np.float32)[:, None].repeat(n, axis=1))
    else:  # sums of groups below 2^24 are exact, their sum is rounded in float32
        np.testing.assert_allclose(y, wanted[:, None].repeat(n, axis=1), rtol=1e-6)


@needs_vectors
def test_many_rows_take_several_passes_and_few_take_none() -> None:
    case = CASES["zero points in the panel"]
    kernel, most = built(case), 16 * schedule().most_tiles
    check(case, kernel, (most, most + 1, 2 * most + 40))
    before = products(kernel)
    check(case, kernel, (1, 15))
    assert products(kernel) == before


OTHER_TILES = {
    "one step, one group": (schedule(), {"panel": 1, "batch": 1, "most_tiles": 1}),
    "a small panel": (schedule(4), {"panel": 4096, "batch": 4, "most_tiles": 3}),
    "a large panel": (schedule(), {"panel": 32768, "batch": 3, "most_tiles": 32}),
}


@needs_vectors
@pytest.mark.parametrize("name", OTHER_TILES)
@pytest.mark.parametrize("fmt", ["i4, f16 per 32", "u8, f32 per *", "u4, f16 per 96, minus f16 per 96"])
def test_tiles_of_other_schedules(fmt: str, name: str) -> None:
    """Chunks of a panel, groups at once and passes over tiles do not change a bit."""
    how, other = OTHER_TILES[name]
    case = Case(fmt, 83, 700, A8, "amx", replace(how, **other))
    check(case, built(case), (16, 33, 100))
    weight = weights(case.spec.weight, (83, 700), "random", False, np.random.default_rng(3))
    x, usual = rough_activations(70, 700, np.random.default_rng(4)), built(replace(case, schedule=how))
    np.testing.assert_array_equal(built(case)(x, built(case).pack(weight)), usual(x, usual.pack(weight)))


def test_schedules_of_tiles_are_offered_where_there_are_tiles() -> None:
    spec, usual = CASES["four bits"].spec, schedule().of_tiles
    on_tiles, on_vectors = ([s.of_tiles for s in space(spec, known)] for known in (AMX, VECTORS))
    assert usual in on_tiles and len(set(on_tiles)) == 27
    assert set(on_vectors) == {usual}
    for other in ({"panel": 8192}, {"batch": 1}, {"most_tiles": 8}):
        text = linear.generate(spec, AMX, replace(schedule(), **other))
        assert isinstance(text, TiledText) and text.text() != linear.generate(spec, AMX, schedule()).text()
        with pytest.raises(BadInput, match="no int8 tiles"):
            linear.generate(spec, VECTORS, replace(schedule(), **other))


@needs_vectors
def test_bytes_are_signed_where_values_fit() -> None:
    for name, kind in {"zero points in the panel": 0, "zero points beside it": 1, "a table of two bytes": 2}.items():
        check(CASES[name], built(CASES[name]), (16,))
        counts = [counter(built(CASES[name]), word) > 0 for word in ("signed", "unsigned")]
        assert counts == [[True, False], [False, True], [True, True]][kind], name


@pytest.mark.parametrize("case", CASES.values(), ids=CASES.keys())
def test_strips_fill_the_tiles(case: Case) -> None:
    tiling = tiled(case)
    spec = case.spec
    held = tiling.sums + tiling.tiles * spec.activation.parts
    assert held < 8
    assert tiling.depth * tiling.steps - tiling.text.storage.group < 64
    assert tiling.depth <= 64
    assert tiling.depth % tiling.text.storage.cell.columns == 0
    codes = tiling.places[0]
    assert codes <= schedule().panel or tiling.groups_at_once * tiling.steps_at_once == 1
    assert tiling.bytes % 64 == 0


def test_sums_are_carried_only_where_a_group_exceeds_the_panel() -> None:
    carried = {name for name, case in CASES.items() if tiled(case).steps_at_once < tiled(case).steps}
    assert carried == {"carried sums", "carried sums, two bytes", "three bytes and two"}


@pytest.mark.parametrize(("name", "expected"), [("four bits", "tdpbssd"), ("zero points beside it", "tdpbsud")])
def test_the_compiler_takes_the_real_instructions(name: str, expected: str) -> None:
    case = CASES[name]
    library = compile.compile_c(linear.generate(case.spec, AMX, case.schedule).text(), AMX.flags)
    words = subprocess.run(["objdump", "-d", str(library)], capture_output=True, text=True, check=True).stdout
    for instruction in ("ldtilecfg", "tileloadd", expected, "tilestored", "tilezero", "tilerelease"):
        assert instruction in words, instruction


@pytest.mark.skipif(bool(AMX.missing(HOST)), reason="the host has no tiles")
def test_the_tiles_of_the_host_agree_with_float64() -> None:
    for case in CASES.values():
        check(case, rows=ROWS)


@pytest.mark.skipif(not AMX.missing(HOST), reason="the host has tiles")
def test_a_host_without_tiles_is_refused() -> None:
    with pytest.raises(NotSupported, match="amx_tile"):
        CASES["four bits"].build()


@needs_vectors
def test_a_system_that_grants_no_tiles_is_told() -> None:
    refusing = replace(EMULATED, before=f"#define EMULATED_REFUSAL {errno.EPERM}")
    with pytest.raises(NotSupported, match="no tiles: Operation not permitted"):
        linear.build(CASES["four bits"].spec, refusing, schedule())


SANITIZED = """
int main(void) {
    for (long i = 0, sizes[] = {16, 17, 40, 256}; i < 4; i++)
        for (int threads = 1; threads < 3; threads++) {
            const long m = sizes[i], blocks = threads == 2 ? BLOCKS - 1 : BLOCKS;
            const size_t rows = m * ROW_BYTES, panels = threads * PANEL_BYTES;
            uint8_t *w, *scratch, *y = malloc(m * N * sizeof(float)), *x = calloc(m * K, sizeof(input));
            if (posix_memalign((void **)&w, 64, BLOCKS * BLOCK_BYTES + READ_AHEAD)) return 2;
            if (posix_memalign((void **)&scratch, 64, rows + panels)) return 2;
            memset(w, 1, BLOCKS * BLOCK_BYTES + READ_AHEAD);
            qcc_linear((input *)x, w, 0, (float *)y, m, 1.0f, scratch, 1, 0, 0, 0);
            linear_job job = {0, scratch, w, 0, (float *)y, scratch + rows, m, 1.0f};
            block_task(&job, blocks, BLOCKS, threads - 1); /* the memory of the last thread */
            free(w), free(scratch), free(y), free(x);
        }
    return 0;
}
"""


@needs_vectors
@pytest.mark.parametrize("name", ["four bits", "carried sums, two bytes"])
def test_tiles_stay_in_their_buffers(name: str, tmp_path: Path) -> None:
    """Workspaces, panels and results that end where they are said to, under the address sanitizer."""
    text = linear.generate(CASES[name].spec, EMULATED, CASES[name].schedule).text()
    program = c_program(
        f"{text}\n#define READ_AHEAD {memory.READ_AHEAD}\n{SANITIZED}",
        tmp_path,
        *VECTORS.flags, "-g1", "-fsanitize=address", "-fno-sanitize-recover=all",
    )  # fmt: skip
    run = subprocess.run(
        [program], capture_output=True, text=True, check=False, env={**os.environ, "ASAN_OPTIONS": "detect_leaks=0"}
    )
    assert run.returncode == 0, run.stderr[:3000]


# The emulator itself

FAULTS = {
    "none": "",
    "not granted": "emulated_grant = 0; configure(16, 64, 16, 64)",
    "not configured": "_tile_release(); _tile_zero(0)",
    "no such tile": "_tile_zero(8)",
    "a tile without rows": "_tile_zero(3)",
    "too many rows": "configure(17, 64, 16, 64)",
    "too many columns": "configure(16, 68, 16, 64)",
    "rows without columns": "configure(16, 0, 16, 64)",
    "depths that differ": "configure(16, 60, 16, 64); _tile_dpbssd(0, 1, 2)",
    "rows that differ": "configure(15, 64, 16, 64); _tile_dpbssd(0, 1, 2)",
    "columns that differ": "configure(16, 64, 16, 60); _tile_dpbsud(0, 1, 2)",
    "one tile twice": "_tile_dpbssd(0, 1, 1)",
}


@needs_vectors
def test_the_emulator_stops_at_what_would_fault(tmp_path: Path) -> None:
    cases = "\n".join(f"case {i}: {body}; break;" for i, body in enumerate(FAULTS.values()))
    text = f"""{EMULATOR.read_text()}
    static void configure(int rows, int columns, int depth, int width) {{ /* of tile 1, and of tile 2 */
        struct {{ uint8_t palette, start, reserved[14]; uint16_t columns[16]; uint8_t rows[16]; }} shape =
            {{1, 0, {{0}}, {{64, columns, width}}, {{16, rows, depth}}}};
        _tile_loadconfig(&shape);
    }}
    int main(int count, char **words) {{
        (void)count, syscall(SYS_arch_prctl, 0x1023, 18), configure(16, 64, 16, 64);
        switch (atoi(words[1])) {{ {cases} }}
        _tile_dpbssd(0, 1, 2);
        return 0;
    }}"""
    program = c_program(text, tmp_path, *VECTORS.flags)
    for i, fault in enumerate(FAULTS):
        run = subprocess.run([program, str(i)], capture_output=True, text=True, check=False)
        assert run.returncode == (0 if fault == "none" else -signal.SIGABRT), fault
        assert run.stderr.startswith("tiles: ") == (fault != "none"), fault


@needs_vectors
def test_the_emulator_multiplies_as_the_manual_says() -> None:
    text = f"""{EMULATOR.read_text()}
    void product(const void *a, const void *b, int32_t *sums, int m, int k, int n, int is_signed) {{
        struct {{ uint8_t palette, start, reserved[14]; uint16_t columns[16]; uint8_t rows[16]; }} shape =
            {{1, 0, {{0}}, {{4 * n, k, 4 * n}}, {{m, m, k / 4}}}};
        syscall(SYS_arch_prctl, 0x1023, 18), _tile_loadconfig(&shape);
        _tile_loadd(0, sums, 4 * n), _tile_loadd(1, a, k), _tile_loadd(2, b, 4 * n);
        if (is_signed) _tile_dpbssd(0, 1, 2); else _tile_dpbsud(0, 1, 2);
        _tile_stored(0, sums, 4 * n), _tile_release();
    }}"""
    library, rng = ctypes.CDLL(str(compile.compile_c(text, EMULATED.flags))), np.random.default_rng(7)
    for m, k, n in ((16, 64, 16), (16, 32, 16), (5, 12, 3)):
        for extreme in (False, True):
            a = rng.integers(-128, 128, (m, k)).astype(np.int8)
            b = rng.integers(0, 256, (k, n)).astype(np.uint8)
            sums = rng.integers(-(2**31), 2**31, (m, n)).astype(np.int32)
            if extreme:
                a[:], b[:], sums[:] = -128, 255, -(2**31)  # wraps around
            in_fours = np.ascontiguousarray(b.reshape(k // 4, 4, n).transpose(0, 2, 1))
            for is_signed, weight in ((1, b.view(np.int8)), (0, b)):
                found = sums.copy()
                places = (ctypes.c_void_p(some.ctypes.data) for some in (a, in_fours, found))
                library.product(*places, m, k, n, is_signed)
                wanted = sums.astype(np.int64) + a.astype(np.int64) @ weight.astype(np.int64)
                np.testing.assert_array_equal(found, wanted.astype(np.int32))


def c_program(text: str, folder: Path, *flags: str) -> Path:
    source, program = folder / "tiles.c", folder / "tiles"
    source.write_text(text)
    command = [compile.compiler(), "-std=gnu11", "-O1", "-w", "-pthread", *flags, "-o", program, source, "-lm"]
    made = subprocess.run(command, capture_output=True, text=True, check=False)
    if made.returncode and "cannot find" in made.stderr:
        pytest.skip("this compiler has no sanitizers")
    assert made.returncode == 0, made.stderr[:3000]
    return program


def tiled(case: Case) -> Tiling:
    text = linear.generate(case.spec, AMX, case.schedule)
    assert isinstance(text, TiledText)
    return Tiling.of(text)


def counter(kernel: LinearKernel, word: str) -> int:
    library = ctypes.CDLL(str(compile.compile_c(kernel.source, EMULATED.flags)))
    return ctypes.c_long.in_dll(library, f"emulated_{word}_products").value


def products(kernel: LinearKernel) -> int:
    return counter(kernel, "signed") + counter(kernel, "unsigned")
