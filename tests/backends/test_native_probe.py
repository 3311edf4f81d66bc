"""Loops that measure a host read and sum what they count; limits are measured once, and kept whole or not at all."""

from __future__ import annotations

import json
import platform
import re
import shutil
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import asdict, replace
from itertools import pairwise
from pathlib import Path

import numpy as np
import pytest

from qcc.backends.native import compile as c_compiler
from qcc.backends.native import host_limits, isa, probe
from qcc.backends.native.host_limits import CacheLimit, DotLimit, HostLimits, ReadForm, ReadLimit
from qcc.backends.onnxruntime import speed
from qcc.cli import run
from qcc.ir import target
from qcc.ir.cache import cache_folder
from qcc.ir.errors import BadInput, MissingExtra, NotSupported, QccError
from qcc.ir.target import Target

MIB = 1 << 20
HOST = target.load("cpu")
PLAIN = Target("cpu", "cpu", "a processor that nothing is known of", (), HOST.cores, "")
THREADS = sorted({1, HOST.cores})
INTEGER = ["avx512_vnni", "avx_vnni", "avx2", "portable"]


@pytest.fixture(params=["host", "plain"])
def read_as(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Reading loops for this host, and those for a processor that nothing is known of."""
    if request.param == "plain":
        monkeypatch.setattr(probe.target, "load", lambda name: PLAIN)
    probe._read_library.cache_clear()
    yield
    probe._read_library.cache_clear()


@pytest.fixture
def numbers() -> probe.ReadBuffer:
    """Four chunks of random bytes."""
    buffer = probe.ReadBuffer.of(4 * MIB)
    buffer.array[:] = np.random.default_rng(0).integers(0, 256, buffer.array.size, dtype=np.uint8)
    return buffer


def words(data: np.ndarray) -> int:
    """The sum of 64-bit words, modulo 2^64."""
    return int(data.view(np.uint64).sum(dtype=np.uint64))


@pytest.mark.usefixtures("read_as")
@pytest.mark.parametrize("form", probe.FORMS, ids=str)
def test_every_word_that_counts_as_read_was_read(form: ReadForm, numbers: probe.ReadBuffer) -> None:
    length = (MIB // 64 // form.streams - 4) * 64 * form.streams
    read = numbers.array.reshape(4, MIB)[:, :length]
    for threads in THREADS:
        done = probe._read(threads, numbers, form)
        assert done.work == read.size
        assert done.total == words(np.ascontiguousarray(read))
        assert done.rate > 0
        assert 0 < done.busy <= 1.01


def test_readings_go_round_the_buffer() -> None:
    buffer = probe.ReadBuffer.of(300 * MIB)
    seen = set[int]()
    for _ in range(5):
        seen.add(buffer.chunk)
        probe.read_gb_s(1, buffer)
    assert seen == {0, 128, 256, 84, 212}, "windows of 128 MiB, one behind the other"


@pytest.mark.usefixtures("read_as")
@pytest.mark.parametrize("size", [256, 4096, 16384, 1 << 19])
@pytest.mark.parametrize("threads", THREADS)
def test_threads_read_their_own_part_again_and_again(size: int, threads: int, numbers: probe.ReadBuffer) -> None:
    done = probe._read_own(threads, numbers, size, 0.0)
    repeats = 1 + MIB // size
    assert done.work == repeats * size * threads
    assert done.total == words(numbers.array[: size * threads]) * repeats % (1 << 64)


@pytest.mark.parametrize("threads", THREADS)
@pytest.mark.parametrize("dot", probe.DOTS, ids=lambda dot: dot.loop)
def test_dot_products_that_count_were_summed(dot: probe.Dot, threads: int) -> None:
    if not all(HOST.has(need) for need in dot.needs):
        pytest.skip(f"this processor lacks one of {dot.needs}")
    done = probe._dot(dot, threads, 0.001)
    assert done.work > 0
    assert done.total * 2 == done.work * 3, "each product and its addition are two operations and make 3"


def test_a_loop_that_was_optimized_away_is_noticed(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(probe, "_call", lambda *_: probe._Measurement(1e6, 2000.0, 2997, 1.0))
    with pytest.raises(QccError, match="summed 2997 in 2000 operations"):
        probe._dot(probe.DOTS[-1], 1, 0.001)


def test_cores_that_other_processes_take_are_noticed() -> None:
    dot = probe.dots_of(PLAIN)[0]
    probe._dot(dot, 1, 0.0)
    others = [subprocess.Popen([sys.executable, "-c", "while True: pass"]) for _ in range(2 * HOST.cores)]
    try:
        time.sleep(0.2)
        crowded = probe._dot(dot, HOST.cores, 0.1)
    finally:
        for other in others:
            other.kill()
            other.wait()
    assert 0 < crowded.busy < 0.8
    assert not crowded.quiet
    assert replace(crowded, busy=0.99).quiet


MAIN_INSTRUCTION = {
    "amx": r"tdpbsud\s",
    "amx_loads": r"tileloadd\s",
    "avx512_vnni": r"vpdpbusd .*zmm",
    "avx_vnni": r"vpdpbusd .*ymm",
    "avx2": r"vpmaddubsw .*ymm",
    "f32_avx512": r"vfmadd\d+ps .*zmm",
    "f32_fma": r"vfmadd\d+ps .*ymm",
    "bf16": r"vdpbf16ps .*zmm",
}


@pytest.mark.skipif(platform.machine() != "x86_64", reason="instructions of x86-64")
@pytest.mark.parametrize("dot", [dot for dot in probe.DOTS if dot.needs], ids=lambda dot: dot.loop)
def test_every_loop_compiles_to_the_instruction_it_is_named_after(dot: probe.Dot) -> None:
    """Also those that this host cannot run."""
    text = probe._text("probe.h") + probe._text("probe_dot.h")
    library = c_compiler.compile_c(text, [*dot.flags, f"-DDOT_{dot.loop}"])
    if not (objdump := shutil.which("objdump")):
        pytest.skip("objdump is missing: it compiles, but to what?")
    code = subprocess.run([objdump, "-d", "--no-show-raw-insn", library], capture_output=True, text=True, check=True)
    assert len(re.findall(MAIN_INSTRUCTION[dot.loop], code.stdout)) >= (4 if dot.name.startswith("amx") else 10)
    if dot.name.startswith("amx"):
        before, loads, _ = code.stdout.partition("ldtilecfg")
        assert loads
        assert re.search(r"mov\w+ .*\(%rsp\)|mov\w+ .*,-?0x[0-9a-f]+\(%r[sb]p\)", before[-3000:]), "the shape is stored"


@pytest.mark.skipif(platform.machine() != "x86_64", reason="instructions of x86-64")
def test_tiles_are_refused_in_words_or_sum_right() -> None:
    try:
        assert probe._dot(probe.DOTS[0], 1, 0.0).rate > 0
    except NotSupported as error:
        assert "AMX" in error.message  # both outcomes are right, by the host


FEW = (ReadForm(1, 0, 0), ReadForm(4, 1024, 2))


@pytest.fixture(scope="module")
def limits() -> HostLimits:
    """Quick limits of this host."""
    return probe.measure(HOST, buffer_bytes=256 * MIB, rounds=4, seconds=0.002, forms=FEW)


def test_limits_are_plausible(limits: HostLimits) -> None:
    assert limits.cores == HOST.cores
    assert [r.threads for r in limits.reads] == list(probe.thread_counts(HOST.cores))
    assert 0.5 < limits.read(1).gb_s < 500
    assert all(r.form in FEW for r in limits.reads)
    ladder = [c.gb_s for c in limits.caches] + [limits.read(1).gb_s]
    for nearer, farther in pairwise(ladder):
        assert nearer > 0.8 * farther
    assert not limits.caches or ladder[0] > 1.5 * ladder[-1], "the nearest cache is faster than memory"
    assert all(d.rate_all > 0.25 * d.rate for d in limits.dots)


def test_peaks_are_in_the_order_of_the_instruction_sets(limits: HostLimits) -> None:
    rates = {d.name: d.rate for d in limits.dots}
    have = [name for name in INTEGER if name in rates]
    assert have[-1] == "portable"
    assert {"portable", "f32"} <= set(rates)
    if "avx2" in rates:
        assert rates[have[0]] > 1.3 * rates["f32"]
        assert rates["avx2"] > 2 * rates["portable"]
    if "avx512_vnni" in rates:
        assert rates["avx512_vnni"] > 1.3 * rates["avx2"]


def test_a_processor_that_nothing_is_known_of_runs_plain_loops() -> None:
    found = probe.measure(PLAIN, buffer_bytes=8 * MIB, rounds=1, seconds=0.001, forms=FEW)
    assert [d.name for d in found.dots] == ["portable", "f32"]
    assert [d.loop for d in probe.dots_of(PLAIN)] == ["portable", "f32_portable"]
    assert found.machine == "unknown"


def test_one_measurement_for_a_benchmark(limits: HostLimits) -> None:
    buffer = probe.ReadBuffer.of(256 * MIB)
    best = limits.read(1)
    rates = [probe.read_gb_s(1, buffer, best.form) for _ in range(8)]
    assert 0.1 < max(rates) / best.gb_s < 10
    for name in ("portable", isa.best(HOST).name):
        assert probe.dot_gops(name, 1, 0.002) > 0


@pytest.mark.parametrize("threads", [0, -1, HOST.cores + 1])
def test_threads_that_there_are_no_cores_for(threads: int, limits: HostLimits) -> None:
    for ask in (
        lambda: probe.read_gb_s(threads, probe.ReadBuffer.of(MIB)),
        lambda: probe.dot_gops("portable", threads),
        lambda: limits.read(threads),
    ):
        with pytest.raises(BadInput, match="threads"):
            ask()


def test_dot_products_that_are_not_there(limits: HostLimits, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(BadInput, match="avx3"):
        probe.dot_gops("avx3", 1)
    with pytest.raises(BadInput, match="avx3"):
        limits.dot("avx3")
    monkeypatch.setattr(probe.target, "load", lambda name: PLAIN)
    with pytest.raises(NotSupported, match="this processor has no avx2"):
        probe.dot_gops("avx2", 1)


@pytest.mark.parametrize(
    "array",
    [
        np.zeros(MIB - 64, np.uint8),
        np.zeros(MIB // 4, np.float32),
        np.zeros(2 * MIB, np.uint8)[::2],
        probe.ReadBuffer.of(2 * MIB).array[8:],
    ],
    ids=["short", "float", "strided", "misaligned"],
)
def test_buffers_that_cannot_be_read(array: np.ndarray) -> None:
    with pytest.raises(BadInput, match="buffer"):
        probe.ReadBuffer(array)


@pytest.mark.parametrize("size", [0, -MIB, 100, MIB + 1, 1 << 62])
def test_buffers_that_cannot_be_made(size: int) -> None:
    with pytest.raises(BadInput, match="no buffer"):
        probe.ReadBuffer.of(size)


@pytest.mark.parametrize(
    ("cores", "counts"),
    [(1, (1,)), (2, (1, 2)), (4, (1, 2, 3, 4)), (6, (1, 2, 3, 4, 6)), (48, (1, 2, 3, 4, 8, 16, 32, 48))],
)
def test_thread_counts(cores: int, counts: tuple[int, ...]) -> None:
    assert probe.thread_counts(cores) == counts


FAKE = HostLimits(
    "a machine",
    HOST.cores,
    "cc 1",
    MIB,
    True,
    tuple(ReadLimit(t, 10.0 * t, ReadForm(4, 512, 1)) for t in probe.thread_counts(HOST.cores)),
    (CacheLimit("L1", 32768, 64, 1, 100.0, 200.0),),
    (DotLimit("portable", "GOPS", 20.0, 40.0, "int8"), DotLimit("f32", "GFLOPS", 30.5, 61.0, "float32")),
)


@pytest.fixture
def calls(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> list[Target]:
    """The hosts that were measured; each takes no time, and the cache is an empty folder."""
    hosts: list[Target] = []

    def fake(host: Target, say: Callable[[str], None] | None = None) -> HostLimits:
        hosts.append(host)
        return replace(FAKE, machine=host.machine)

    monkeypatch.setenv("QCC_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr(probe, "measure", fake)
    return hosts


def test_a_host_is_measured_once(calls: list[Target], monkeypatch: pytest.MonkeyPatch) -> None:
    first = probe.measured(HOST)
    assert probe.measured(HOST) == first
    assert len(calls) == 1
    probe.measured(replace(HOST, machine="another machine"))
    probe.measured(replace(HOST, isa=()))
    monkeypatch.setattr(probe, "compiler_version", lambda: "another compiler")
    probe.measured(HOST)
    monkeypatch.setattr(probe, "_text", lambda name: "another loop")
    probe.measured(HOST)
    assert len(calls) == 5
    assert len(list(cache_folder().iterdir())) == 5, "no temporary file stays"


def test_what_other_processes_disturbed_is_not_kept(calls: list[Target], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(probe, "measure", lambda host, say=None: replace(FAKE, quiet=False))
    assert not probe.measured(HOST).quiet
    assert not cache_folder().exists()


DAMAGE: dict[str, Callable[[str], str]] = {
    "empty": lambda text: "",
    "cut": lambda text: text[: len(text) // 2],
    "a list": lambda text: "[]",
    "deep": lambda text: "[" * 100_000,
    "no reads": lambda text: json.dumps({**json.loads(text), "reads": []}),
    "no dots": lambda text: json.dumps({**json.loads(text), "dots": []}),
    "a field missing": lambda text: json.dumps({k: v for k, v in json.loads(text).items() if k != "caches"}),
    "zero": lambda text: text.replace("30.5", "0.0"),
    "negative": lambda text: text.replace("30.5", "-30.5"),
    "infinite": lambda text: text.replace("30.5", "Infinity"),
    "no number": lambda text: text.replace("30.5", "NaN"),
    "text": lambda text: text.replace("30.5", '"30.5"'),
    "unknown dot product": lambda text: text.replace('"portable"', '"avx3"'),
}


@pytest.mark.parametrize("damage", DAMAGE.values(), ids=DAMAGE.keys())
def test_damaged_files_are_measured_again(damage: Callable[[str], str], calls: list[Target]) -> None:
    first = probe.measured(HOST)
    (path,) = cache_folder().iterdir()
    whole = path.read_text()
    assert damage(whole) != whole
    path.write_text(damage(whole))
    assert probe.measured(HOST) == first
    assert len(calls) == 2
    assert path.read_text() == whole


def test_a_cache_that_cannot_be_written_costs_time_only(
    calls: list[Target], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "file").write_text("")
    monkeypatch.setenv("QCC_CACHE", str(tmp_path / "file"))
    assert probe.measured(HOST).read(1).gb_s == 10
    assert probe.measured(HOST).dot("f32").rate == 30.5
    assert len(calls) == 2


@pytest.fixture
def no_compiler(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    monkeypatch.setenv("QCC_CC", "no-such-compiler")
    monkeypatch.setenv("QCC_CACHE", str(tmp_path))
    for kept in (c_compiler.compiler, c_compiler.compiler_version):
        kept.cache_clear()
    yield
    for kept in (c_compiler.compiler, c_compiler.compiler_version):
        kept.cache_clear()


@pytest.fixture
def runtime(monkeypatch: pytest.MonkeyPatch) -> None:
    """The forms of the runtime, without measuring them."""
    monkeypatch.setattr(speed, "measured", lambda machine: speed.Speed({"float": 2e-7}))


@pytest.mark.usefixtures("no_compiler", "runtime")
def test_a_missing_compiler_is_said(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(MissingExtra, match="no C compiler called 'no-such-compiler'"):
        probe.measured(HOST)
    assert run(["list", "targets", "--probe", "--json"]) == 4
    out, err = capsys.readouterr()
    assert "apt install gcc" in json.loads(out)["hint"]
    assert "200.0" in err, "what needs no compiler is shown"


@pytest.mark.usefixtures("calls", "runtime")
def test_the_command_shows_limits_with_units(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("COLUMNS", "160")
    assert run(["list", "targets", "--probe", "--json"]) == 0
    out, err = capsys.readouterr()
    data = json.loads(out)
    assert data["host"] == json.loads(json.dumps(asdict(replace(FAKE, machine=HOST.machine))))
    assert data["onnxruntime_ps_per_weight"] == {"float": 200.0}
    for text in ("GB/s", "GOPS", "GFLOPS", "4 streams, 512 bytes ahead into L1", "32 KiB", "other processes"):
        assert (text in err) == (text != "other processes")
    monkeypatch.setattr(probe, "measured", lambda host, say: replace(FAKE, quiet=False))
    assert run(["list", "targets", "--probe"]) == 0
    assert "other processes" in capsys.readouterr().err


def test_caches_as_the_system_describes_them(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("os.sched_getaffinity", lambda _: {3, 5}, raising=False)
    rows = [
        ("1", "Data", "48K", "64", "3"),
        ("1", "Instruction", "32K", "64", "3"),
        ("2", "Unified", "2M", "64", "2-3"),
        ("3", "Unified", "33554432", "128", "0-3,8,10-11"),
        ("4", "Unified", "huge", "64", "0-3"),
    ]
    for index, row in enumerate(rows):
        folder = tmp_path / "cpu3" / "cache" / f"index{index}"
        folder.mkdir(parents=True)
        for name, text in zip(("level", "type", "size", "coherency_line_size", "shared_cpu_list"), row, strict=True):
            (folder / name).write_text(f"{text}\n")
    (tmp_path / "cpu3/cache/index9").mkdir()
    assert host_limits.caches(tmp_path) == (
        host_limits.Cache("L1", 48 << 10, 64, 1),
        host_limits.Cache("L2", 2 << 20, 64, 2),
        host_limits.Cache("L3", 32 << 20, 128, 7),
    )
    assert host_limits.caches(tmp_path / "none") == ()
