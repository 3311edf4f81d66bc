"""What this host can do at most: `measured(host)` reads memory and caches, sums dot products, and keeps the rates.

A benchmark that gives its share of a limit measures the limit beside itself: on a shared host both change within
seconds. `read_gb_s` and `dot_gops` take some milliseconds each, for every other round.
"""

from __future__ import annotations

import ctypes
import hashlib
import mmap
import os
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import cache, partial
from typing import Literal, TypeVar

import numpy as np
from numpy.typing import NDArray

from qcc.ir import target
from qcc.ir.cache import cache_folder
from qcc.ir.errors import BadInput, NotSupported, QccError
from qcc.ir.target import Target

from . import host_limits
from .compile import compile_c, compiler_version, load
from .host_limits import Cache, CacheLimit, DotLimit, HostLimits, ReadForm, ReadLimit
from .isa import C_FOLDER

FORMS = tuple(
    ReadForm(streams, prefetch, level)
    for streams in (1, 2, 4, 8)
    for prefetch in (0, 512, 1024, 2048)
    for level in ((1, 2) if prefetch else (0,))
)
"""The ways to read memory that are tried."""

USUAL_FORM = ReadForm(4, 1024, 2)

_CHUNK = 1 << 20
_NO_THREAD, _NO_TILES = -1, -2
_TEXTS = ("probe.h", "probe_read.h", "probe_dot.h")


@dataclass(frozen=True)
class Dot:
    """A kind of dot product: the loop `DOT_<loop>` of `c/probe_dot.h`, for hosts that have all of `needs`."""

    name: str
    loop: str
    needs: tuple[str, ...]
    flags: tuple[str, ...]
    unit: Literal["GOPS", "GFLOPS"]
    summary: str


_TILES = ("amx_tile", "amx_int8"), ("-mamx-tile", "-mamx-int8")
_VNNI = ("avx512f", "avx512_vnni"), ("-mavx512f", "-mavx512vnni")
_AVX_VNNI = ("avx2", "avx_vnni"), ("-mavx2", "-mavxvnni")
_BF16 = ("avx512f", "avx512_bf16"), ("-mavx512f", "-mavx512bf16")
DOTS = (
    Dot("amx", "amx", *_TILES, "GOPS", "int8 tiles, from registers"),
    Dot("amx_loads", "amx_loads", *_TILES, "GOPS", "int8 tiles, each loaded from L1 and used twice"),
    Dot("avx512_vnni", "avx512_vnni", *_VNNI, "GOPS", "int8, vpdpbusd on 64 bytes"),
    Dot("avx_vnni", "avx_vnni", *_AVX_VNNI, "GOPS", "int8, vpdpbusd on 32 bytes"),
    Dot("avx2", "avx2", ("avx2",), ("-mavx2",), "GOPS", "int8, vpmaddubsw, vpmaddwd and vpaddd on 32 bytes"),
    Dot("portable", "portable", (), (), "GOPS", "int8, a loop in C over operands in L1"),
    Dot("bf16", "bf16", *_BF16, "GFLOPS", "bfloat16, vdpbf16ps on 64 bytes"),
    Dot("f32", "f32_avx512", ("avx512f",), ("-mavx512f",), "GFLOPS", "float32, vfmadd on 64 bytes"),
    Dot("f32", "f32_fma", ("avx2", "fma"), ("-mavx2", "-mfma"), "GFLOPS", "float32, vfmadd on 32 bytes"),
    Dot("f32", "f32_portable", (), (), "GFLOPS", "float32, product and sum of four lanes"),
)
"""Of those with one name a host takes the first it can run."""

_SAME_DOT = {"avx512_vbmi": "avx512_vnni"}
"""Instruction sets for kernels that differ in other things than their dot product."""


class ReadBuffer:
    """Memory to read again and again: `array` is uint8, and readings go round it so that caches never hold what comes.

    An array of the caller's own must be contiguous, start at a multiple of 64 and hold 1 MiB at least.
    """

    def __init__(self, array: NDArray[np.uint8]) -> None:
        if array.dtype != np.uint8 or not array.flags.c_contiguous or array.ctypes.data % 64 or array.nbytes < _CHUNK:
            raise BadInput(
                f"a buffer to read must be contiguous uint8, aligned to 64 bytes, of {_CHUNK} bytes or more; "
                f"this one is {array.dtype}, {array.nbytes} bytes, at {array.ctypes.data:#x}",
                hint="ReadBuffer.of(size) makes one",
            )
        self.array = array
        self.chunk = 0
        """Where the next reading begins, in units of 1 MiB."""

    @classmethod
    def of(cls, size: int) -> ReadBuffer:
        """Memory of `size` bytes, a multiple of 1 MiB, in huge pages where the system gives them."""
        if size < _CHUNK or size % _CHUNK:
            raise BadInput(f"no buffer of {size} bytes", hint="ask for a multiple of 1 MiB")
        private = {"flags": mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS} if hasattr(mmap, "MAP_PRIVATE") else {}
        try:
            memory = mmap.mmap(-1, size, **private)
        except (OSError, ValueError, OverflowError) as error:
            raise BadInput(f"no buffer of {size} bytes: {error}", hint="ask for less") from error
        if hasattr(mmap, "MADV_HUGEPAGE"):
            memory.madvise(mmap.MADV_HUGEPAGE)
        array = np.frombuffer(memory, np.uint8)
        words = np.arange(_CHUNK // 8, dtype=np.uint64)
        for i, chunk in enumerate(array.view(np.uint64).reshape(-1, words.size)):
            np.add(words, i << 32, out=chunk)  # pages that are alike may be one page, which a cache holds
        return cls(array)


def measured(host: Target, say: Callable[[str], None] | None = None) -> HostLimits:
    """The limits of `host`, this machine: from the cache, or measured now, which takes seconds, and kept if `quiet`.

    A new compiler, other loops, other cores or instruction sets are measured anew. `say` hears of every stage.
    `MissingExtra` without a C compiler.
    """
    key = [host.machine, str(host.cores), *host.isa, compiler_version(), repr((FORMS, DOTS)), *map(_text, _TEXTS)]
    path = cache_folder() / f"host-{hashlib.sha256(chr(0).join(key).encode()).hexdigest()[:16]}.json"
    cached = host_limits.load(path)
    if cached is not None and _is_of(cached, host):
        return cached
    limits = measure(host, say=say)
    if limits.quiet:
        host_limits.save(path, limits)
    return limits


def measure(
    host: Target,
    *,
    buffer_bytes: int = 0,
    rounds: int = 8,
    seconds: float = 0.003,
    forms: Sequence[ReadForm] = FORMS,
    say: Callable[[str], None] | None = None,
) -> HostLimits:
    """Measure `host`, this machine: the best of `rounds`, in each of which everything has its turn.

    `buffer_bytes` of memory are read, a window at a time; 0: 256 MiB, or eight times the last cache where that is more.
    Caches and dot products have `seconds` a turn.
    """
    say = say or (lambda stage: None)
    say("compile the loops that measure")
    dots = [dot for dot in dots_of(host) if _runs(dot)]
    caches = host_limits.caches()
    buffer = ReadBuffer.of(buffer_bytes or _enough(caches, host.cores))
    counts, ends = thread_counts(host.cores), (1, host.cores)
    turns: dict[tuple[ReadForm | Cache | Dot, int], Callable[[], _Measurement]] = {
        **{(form, t): partial(_read, t, buffer, form) for form in forms for t in counts},
        **{(c, t): partial(_read_own, t, buffer, _part(c, t, buffer), seconds) for c in caches for t in ends},
        **{(dot, t): partial(_dot, dot, t, seconds) for dot in dots for t in ends},
    }
    say("read memory and caches, sum dot products")
    best = _best(rounds, turns)
    if any(not m.quiet for m in best.values()):
        say("other processes run: measure again what they disturbed")
        best |= _best(2 * rounds, {key: turns[key] for key, m in best.items() if not m.quiet}, best)
    reads: list[ReadLimit] = []
    for threads in counts:
        form = max(forms, key=lambda f, t=threads: best[f, t].rate)
        reads.append(ReadLimit(threads, best[form, threads].rate, form))
    one, every = ({key: m.rate for (key, t), m in best.items() if t == threads} for threads in ends)
    return HostLimits(
        host.machine or "unknown",
        host.cores,
        compiler_version(),
        buffer.array.nbytes,
        all(m.quiet for m in best.values()),
        tuple(reads),
        tuple(CacheLimit(c.name, c.bytes, c.line_bytes, c.shared_by, one[c], every[c]) for c in caches),
        tuple(DotLimit(d.name, d.unit, one[d], every[d], d.summary) for d in dots),
    )


def read_gb_s(threads: int, buffer: ReadBuffer, form: ReadForm = USUAL_FORM) -> float:
    """One measurement of reading: 10^9 bytes a second that `threads` threads read together.

    `form` is best that of `HostLimits.read(threads)`. The buffer should be several times the last cache.
    """
    _check_threads(threads)
    return _read(threads, buffer, form).rate


def dot_gops(isa: str, threads: int, seconds: float = 0.01) -> float:
    """One measurement of dot products: 10^9 operations a second of `threads` threads, for some `seconds`.

    `isa` is an instruction set of `isa.py`, or another name in `DOTS`. `NotSupported` where this host lacks it.
    """
    _check_threads(threads)
    host = target.load("cpu")
    name = _SAME_DOT.get(isa, isa)
    if name not in (dot.name for dot in DOTS):
        raise BadInput(f"no dot product is called {isa!r}", hint=", ".join(dict.fromkeys(dot.name for dot in DOTS)))
    for dot in dots_of(host):
        if dot.name == name:
            return _dot(dot, threads, seconds).rate
    raise NotSupported(
        f"{host.machine or 'this processor'} has no {isa}", hint=", ".join(dot.name for dot in dots_of(host))
    )


def dots_of(host: Target) -> tuple[Dot, ...]:
    """The dot products that a host can compute, each name once."""
    found: dict[str, Dot] = {}
    for dot in DOTS:
        if all(host.has(need) for need in dot.needs):
            found.setdefault(dot.name, dot)
    return tuple(found.values())


def thread_counts(cores: int) -> tuple[int, ...]:
    """The thread counts that reading is measured with: all up to 4, then powers of two and the cores."""
    return tuple(n for n in range(1, cores + 1) if n <= 4 or n == cores or n.bit_count() == 1)


def _is_of(limits: HostLimits, host: Target) -> bool:
    """Whether all was measured that is measured on `host`; a system may refuse it some of its dot products."""
    names = [dot.name for dot in limits.dots]
    known = [dot.name for dot in dots_of(host)]
    counts = tuple(read.threads for read in limits.reads)
    return counts == thread_counts(host.cores) and {"portable", "f32"} <= set(names) <= set(known)


def _check_threads(threads: int) -> None:
    cores = target.load("cpu").cores
    if not 1 <= threads <= cores:
        raise BadInput(f"{threads} threads cannot be measured", hint=f"1 to {cores}, the cores of this host")


@dataclass(frozen=True)
class _Measurement:
    rate: float
    """10^9 a second."""
    work: float
    total: int
    busy: float
    """The share of the time in which the threads had their cores."""

    @property
    def quiet(self) -> bool:
        return self.busy > 0.9


_Key = TypeVar("_Key")


def _best(
    rounds: int, turns: Mapping[_Key, Callable[[], _Measurement]], known: Mapping[_Key, _Measurement] | None = None
) -> dict[_Key, _Measurement]:
    """The highest rate of each, with all in turn in every round: what disturbs a while disturbs all alike."""
    best = {key: measurement for key, measurement in (known or {}).items() if key in turns}
    for _ in range(rounds):
        for key, turn in turns.items():
            new = turn()
            if key not in best or new.rate > best[key].rate:
                best[key] = new
    return best


def _enough(caches: Sequence[Cache], cores: int) -> int:
    """A size that no cache holds a useful part of, but at most a quarter of the memory."""
    sizes = [(c.bytes, c.bytes * -(-cores // c.shared_by)) for c in caches]
    wanted = max([256 << 20, *(8 * one for one, _ in sizes), *(4 * all_ for _, all_ in sizes)])
    memory = os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE") if hasattr(os, "sysconf") else 4 << 30
    return max(min(wanted, memory // 4) // _CHUNK, 1) * _CHUNK


def _part(cache: Cache, threads: int, buffer: ReadBuffer) -> int:
    """Bytes a thread that half fill a cache, or one thread's share of it: a multiple of 256."""
    most = buffer.array.nbytes // threads
    return max(min(cache.bytes // 2 // min(threads, cache.shared_by), most) // 256, 1) * 256


def _read(threads: int, buffer: ReadBuffer, form: ReadForm) -> _Measurement:
    """GB/s of one window, some milliseconds long, from where the last one ended."""
    chunks = buffer.array.nbytes // _CHUNK
    count = min(96 + 32 * threads, chunks)
    measurement = _call(
        _read_library().qcc_read,
        *(ctypes.c_void_p(buffer.array.ctypes.data), ctypes.c_long(chunks * _CHUNK)),
        *map(ctypes.c_long, (buffer.chunk, count, form.streams, form.prefetch, form.level)),
        ctypes.c_int(threads),
    )
    buffer.chunk = (buffer.chunk + count) % chunks
    return measurement


def _read_own(threads: int, buffer: ReadBuffer, size: int, seconds: float) -> _Measurement:
    """GB/s of threads that each read `size` bytes of their own again and again."""
    base = ctypes.c_void_p(buffer.array.ctypes.data)
    own = (base, ctypes.c_long(size), ctypes.c_double(seconds), ctypes.c_int(threads))
    return _call(_read_library().qcc_read_own, *own)


def _dot(dot: Dot, threads: int, seconds: float) -> _Measurement:
    """GOPS or GFLOPS. Every product is 3, so the sum of all must be 3/2 of the operations."""
    found = _call(_dot_library(dot).qcc_dot, ctypes.c_double(seconds), ctypes.c_int(threads))
    if 2 * found.total != 3 * found.work:
        raise QccError(f"the {dot.loop} loop summed {found.total} in {found.work:.0f} operations: not what it counted")
    return found


def _runs(dot: Dot) -> bool:
    """Whether the system lets this process use it: tiles must be granted."""
    try:
        return _dot(dot, 1, 0.0).rate > 0
    except NotSupported:
        return False


class _Result(ctypes.Structure):
    _fields_ = (("work", ctypes.c_double), ("busy", ctypes.c_double), ("sum", ctypes.c_uint64))


def _call(function: Callable[..., float], *arguments: object) -> _Measurement:
    result = _Result()
    rate = function(*arguments, ctypes.byref(result))
    if rate == _NO_THREAD:
        raise QccError("the system did not start the threads", hint="raise the limit of threads (ulimit -u)")
    if rate == _NO_TILES:
        raise NotSupported("the system grants this process no AMX tiles", hint="Linux 5.16 or later does")
    return _Measurement(rate / 1e9, result.work, result.sum, result.busy)


@cache
def _read_library() -> ctypes.CDLL:
    host = target.load("cpu")
    wide = next((flag for need, flag in (("avx512f", "-mavx512f"), ("avx2", "-mavx2")) if host.has(need)), None)
    return _library(f"{_text('probe.h')}{_text('probe_read.h')}", [wide] if wide else [], ("qcc_read", "qcc_read_own"))


@cache
def _dot_library(dot: Dot) -> ctypes.CDLL:
    return _library(f"{_text('probe.h')}{_text('probe_dot.h')}", [*dot.flags, f"-DDOT_{dot.loop}"], ("qcc_dot",))


def _library(text: str, flags: Sequence[str], functions: Sequence[str]) -> ctypes.CDLL:
    library = load(compile_c(text, flags))
    for name in functions:
        getattr(library, name).restype = ctypes.c_double
    return library


def _text(name: str) -> str:
    return (C_FOLDER / name).read_text()
