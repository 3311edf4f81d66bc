"""Generated C beside TIR: the first kernel in both forms, and what the portable TIR form costs without a compiler.

    python -m benchmarks.kernel_forms [--rounds 20] [--json FILE]

first     W4 (i4, f16 per 32), A8, one row of activations, one thread, AVX512-VNNI: C with intrinsics, and TIR with the
          same instruction through LLVM. Both read the same packed bytes in the same order and the same rounded
          activations, and give the same bits. 4096 x 4096 from memory, and 256 x 4096 from the second cache.
portable  TIR without intrinsics, for the host and for every x86-64, beside C with the host's intrinsics and C without.
          Whole calls, activations rounded in each.

The limit is the memory read by one thread in the same rounds, in the form that `qcc list targets --probe` finds best.
Weights from memory are several copies, more than the caches hold, and every call takes the next; two copies do for C
without intrinsics and for 16 rows, which are far from that limit. Sides alternate within a round; figures are medians
over the rounds, with the 10th and 90th percentile. All sides are compared with float64 products before anything is
timed. Needs TVM and a C compiler; pin it to one processor.
"""

from __future__ import annotations

import argparse
import ctypes
import json
import time
from collections.abc import Callable, Mapping
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np

from qcc.api.bench import interleave, summarize
from qcc.backends.native import compile, isa, linear, memory, probe
from qcc.backends.native.linear import LinearKernel, Packed
from qcc.backends.native.linear_spec import Activation, LinearSpec
from qcc.backends.tvm import linear as tir
from qcc.backends.tvm.toolchain import compile_module, script, tvm, write_functions
from qcc.ir import target
from qcc.ir.format import Format
from qcc.ir.quantize import quantize
from qcc.ir.quantized import Quantized

RESULTS = Path(__file__).parent / "results"
PAST_CACHES = 160 << 20
"""Bytes of weights that are read in turn."""
FIRST = "i4, f16 per 32"
PORTABLE = (
    (FIRST, 8, 1),
    (FIRST, 8, 16),
    ("i3, f16 per 32", 8, 1),
    ("i8, f16 per 32", 8, 1),
    ("nf4, f16 per 64", 16, 1),
)
"""Formats, bits of activations, and rows of activations."""
N, K, CACHED = 4096, 4096, 256
ERROR = {8: 0.03, 16: 1e-3}


def vnni(kernel: LinearKernel) -> Callable[[], None]:
    """Writes `main(rows, w, y, alpha)`: what the C form computes for the first kernel, in the order of its schedule.

    Everything in a group is written out: `streams` blocks side by side, `vectors` of 16 rows in each.
    """
    s, work, streams = kernel.storage, kernel.workspace, kernel.schedule.streams
    T, part = script(), s.blocks // streams
    assert s.cell.quads == 2 and not s.outer and s.blocks % streams == 0
    name = T.llvm_lookup_intrinsic_id

    def write() -> None:
        rows = T.arg("rows", T.buffer((work.bytes // 4,), "int32"))
        packed, result = T.arg("w", T.handle("uint8")), T.arg("y", T.handle("float32"))
        alpha = T.arg("alpha", T.float32())
        numbers = T.decl_buffer((work.bytes // 4,), "float32", data=rows.data, align=64)
        w = T.decl_buffer((s.bytes,), "uint8", data=packed, align=64)
        y = T.decl_buffer((s.n,), "float32", data=result, align=4)
        lane = T.ramp(0, 1, 16)
        lanes = [(i, r) for i in range(streams) for r in range(s.vectors)]
        acc = {at: T.alloc_buffer((16,), "int32", scope="local") for at in lanes}
        total = {at: T.alloc_buffer((16,), "float32", scope="local") for at in lanes}

        def ints(value: Any) -> Any:
            return T.broadcast(T.int32(value) if isinstance(value, int) else value, 16)

        with T.serial(0, part) as block:
            for at in lanes:
                T.buffer_store(total[at], T.broadcast(T.float32(0.0), 16), [lane])
            with T.serial(0, s.groups * s.supers) as group:
                base = [(block + i * part) * s.block_bytes + group * s.group_bytes for i in range(streams)]
                for at in lanes:
                    T.buffer_store(acc[at], ints(rows[work.starts // 4 + group]), [lane])
                for cell in range(s.cells):
                    x = [ints(rows[group * (s.group // 4) + 2 * cell + quad]) for quad in range(2)]
                    for i, r in lanes:
                        place = base[i] + (cell * s.vectors + r) * s.cell.bytes
                        codes = T.reinterpret("int32x16", w.vload([place], "uint8x64"))
                        for quad, shifted in enumerate((codes, codes >> ints(4))):
                            halves = T.reinterpret("uint8x64", shifted & ints(0x0F0F0F0F))
                            four = T.reinterpret("int8x64", x[quad])
                            operands = (acc[i, r][lane], halves, four)
                            dot = T.call_llvm_pure_intrin("int32x16", name("llvm.x86.avx512.vpdpbusd.512"), *operands)
                            T.buffer_store(acc[i, r], dot, [lane])
                for i, r in lanes:
                    half = w.vload([base[i] + s.inner[0].offset + 32 * r], "uint8x32")
                    scale = T.cast(T.reinterpret("float16x16", half), "float32x16")
                    operands = (T.cast(acc[i, r][lane], "float32x16"), scale, total[i, r][lane])
                    T.buffer_store(
                        total[i, r], T.call_llvm_pure_intrin("float32x16", name("llvm.fma"), *operands), [lane]
                    )
            for i, r in lanes:
                factor = T.broadcast(alpha * numbers[work.scales // 4], 16)
                at = T.ramp(((block + i * part) * s.vectors + r) * 16, 1, 16)
                T.buffer_store(y, total[i, r][lane] * factor, [at])

    return write


def first(n: int, copies: int, rounds: int) -> dict[str, Any]:
    """Both forms of the first kernel on `copies` of one weight [n, K]; microseconds a call."""
    spec = LinearSpec(n, K, Format.parse(FIRST), Activation(8))
    kernel = linear.build(spec, isa.named("avx512_vnni"))
    library: Any = compile.load(compile.compile_c(kernel.source, kernel.isa.flags))
    weight = made(spec)
    packed = kernel.pack(weight)
    places = [copy_of(packed).data for _ in range(copies)]
    x = np.random.default_rng(1).standard_normal((1, K), np.float32)
    row, ours, theirs = memory.aligned(kernel.workspace.bytes), np.zeros(n, np.float32), np.zeros(n, np.float32)
    address = ctypes.c_void_p
    library.qcc_prepare(address(x.ctypes.data), ctypes.c_long(1), address(row.ctypes.data), ctypes.c_float(0), 0)
    library.qcc_blocks.argtypes = [*[address] * 4, ctypes.c_long, ctypes.c_float, address, *[ctypes.c_long] * 2]
    function = compile_module(write_functions({"main": vnni(kernel)}), "host")["main"]
    rows, y = tvm().runtime.from_dlpack(row.view(np.int32)), address(theirs.ctypes.data)
    weights = [address(data.ctypes.data) for data in places]
    alpha, blocks = packed.alpha, kernel.storage.blocks
    c = [(row.ctypes.data, data.ctypes.data, None, ours.ctypes.data, 1, alpha, None, 0, blocks) for data in places]
    repeat = 1 if copies > 1 else 50

    def run_c() -> None:
        for _ in range(repeat):
            for arguments in c:
                library.qcc_blocks(*arguments)

    def run_tir() -> None:
        for _ in range(repeat):
            for data in weights:
                function(rows, data, y, alpha)

    run_c()
    run_tir()
    assert np.array_equal(ours, theirs), "both forms give the same bits"
    check(ours[None], x, weight, ERROR[8])
    forms: dict[str, Callable[[], None]] = {"C": run_c, "TIR": run_tir}
    with_limit = Limit()
    times = interleave(forms | {"read": with_limit.read} if copies > 1 else forms, rounds)
    sides = {side: figures(times[side], copies * repeat, packed.bytes) for side in forms}
    ratio = sides["TIR"]["us"] / sides["C"]["us"]
    where, limit = ("memory", with_limit.gb_s) if copies > 1 else ("cache", None)
    print(f"{n} x {K} from {where}: {shown(sides, limit)}; TIR / C {ratio:.3f} [{kernel.isa.name}: {kernel.schedule}]")
    result = {"n": n, "k": K, "from": where, "isa": kernel.isa.name, "schedule": str(kernel.schedule)}
    return {**result, "limit_gb_s": limit, "sides": sides, "tir_over_c": ratio}


class Limit:
    """The memory that one thread reads: measured again in every round, the median taken."""

    def __init__(self) -> None:
        self._form = probe.measured(target.load("cpu")).reads[0].form
        self._buffer = probe.ReadBuffer.of(PAST_CACHES)
        self._rates: list[float] = []

    def read(self) -> None:
        """Measure once."""
        self._rates.append(probe.read_gb_s(1, self._buffer, self._form))

    @property
    def gb_s(self) -> float:
        """10^9 bytes a second."""
        return float(np.median(self._rates))


def portable(fmt: str, bits: int, m: int, rounds: int) -> dict[str, Any]:
    """Whole calls of the portable form and of C, from memory; microseconds a call."""
    spec = LinearSpec(N, K, Format.parse(fmt), Activation(bits))
    best = isa.best(target.load("cpu"))
    kernels: dict[str, LinearKernel] = {
        best.name: linear.build(spec, best),
        "TIR": tir.build(spec),
        "TIR generic": tir.build(spec, cpu="generic"),
        "C portable": linear.build(spec, isa.named("portable")),
    }
    weight, x = made(spec), np.random.default_rng(m).standard_normal((m, K), np.float32)
    sides: dict[str, Callable[[], object]] = {}
    counts, size = dict[str, int](), 0
    for name, kernel in kernels.items():
        packed = kernel.pack(weight)
        size = packed.bytes
        far_from_memory = m > 1 or name == "C portable"
        counts[name] = 2 if far_from_memory else -(-PAST_CACHES // size)
        check(kernel(x, packed), x, weight, ERROR[bits])
        sides[name] = all_of([kernel.prepared(x, copy_of(packed)) for _ in range(counts[name])])
    with_limit = Limit()
    times = interleave({**sides, "read": with_limit.read}, rounds, warmup=1)
    limit = with_limit.gb_s
    found = {side: figures(times[side], counts[side], size) for side in sides}
    ratio = found["TIR"]["us"] / found[best.name]["us"]
    print(f"[{fmt}] A{bits} M = {m}: {shown(found, limit)}; TIR / {best.name} {ratio:.1f}")
    return {"format": fmt, "bits": bits, "m": m, "limit_gb_s": limit, "sides": found, "tir_over_best": ratio}


def builds() -> dict[str, float]:
    """Seconds until the first kernel can be called, for each form; importing TVM comes once on top."""
    spec = LinearSpec(N, K, Format.parse(FIRST), Activation(8))
    kernel = linear.build(spec, isa.named("avx512_vnni"))
    found: dict[str, float] = {}
    flags = [*kernel.isa.flags, f"-DFRESH_{time.time_ns()}"]  # a key of its own, which the cache does not have
    begin = time.perf_counter()
    library = compile.compile_c(kernel.source, flags)
    found["C"] = time.perf_counter() - begin
    for file in (library, library.with_suffix(".c")):
        file.unlink()
    begin = time.perf_counter()
    compile_module(write_functions({"main": vnni(kernel)}), "host")["main"]
    found["TIR"] = time.perf_counter() - begin
    begin = time.perf_counter()
    tir.build(spec)
    found["portable TIR"] = time.perf_counter() - begin
    print("building, s: " + ", ".join(f"{side} {seconds:.2f}" for side, seconds in found.items()))
    return found


def all_of(calls: list[linear.Call]) -> Callable[[], None]:
    """Every call, once."""

    def run() -> None:
        for call in calls:
            call()

    return run


def made(spec: LinearSpec) -> Quantized:
    """A weight of normal numbers in the format of a kernel."""
    values = np.random.default_rng(spec.n).standard_normal((spec.n, spec.k), np.float32) * np.float32(0.02)
    return quantize(values, spec.weight)


def copy_of(packed: Packed) -> Packed:
    """The same numbers in memory of their own."""
    data = memory.aligned(packed.bytes + memory.READ_AHEAD)[: packed.bytes]
    data[:] = packed.data
    return Packed(data, packed.alpha)


def check(y: np.ndarray, x: np.ndarray, weight: Quantized, most: float) -> None:
    """Stop where a result is further from the float64 product of the same codes than `most` of its RMS."""
    exact = x.astype(np.float64) @ weight.decode().astype(np.float64).T
    error = float(np.sqrt(np.mean((y - exact) ** 2)) / np.sqrt(np.mean(exact**2)))
    if not error <= most:
        raise SystemExit(f"{weight.format} {weight.shape}: relative error {error:.2e}, {most:.0e} is allowed")


def figures(seconds: list[float], calls: int, size: int) -> dict[str, float]:
    """Microseconds of a call, and the GB/s at which it reads the packed weight."""
    latency = summarize([second / calls for second in seconds])
    us, p10, p90 = (1e3 * each for each in (latency.median, latency.p10, latency.p90))
    return {"us": us, "p10": p10, "p90": p90, "gb_s": size / us / 1e3}


def shown(sides: Mapping[str, Mapping[str, float]], limit: float | None) -> str:
    """A line of figures, with the share of what memory gives where the weight comes from there."""
    found: list[str] = []
    for side, f in sides.items():
        share = f", {f['gb_s'] / limit:.0%} of {limit:.1f} GB/s" if limit else f", {f['gb_s']:.1f} GB/s"
        found.append(f"{side} {f['us']:.1f} us ({f['p10']:.1f} to {f['p90']:.1f}{share})")
    return "  ".join(found)


def main() -> None:
    """Run, print a line each, and write the results."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--rounds", type=int, default=20)
    parser.add_argument("--json", type=Path, default=RESULTS / "kernel_forms.json", help="write the result here")
    options = parser.parse_args()
    begin = time.perf_counter()
    tvm()
    seconds = {"import TVM": time.perf_counter() - begin, **builds()}
    copies = -(-PAST_CACHES // (N * K * 9 // 16))
    firsts = [first(N, copies, options.rounds), first(CACHED, 1, options.rounds)]
    others = [portable(*case, options.rounds) for case in PORTABLE]
    result = {
        "machine": target.load("cpu").machine,
        "threads": 1,
        "tvm": version("apache-tvm"),
        "compiler": compile.compiler_version(),
        "rounds": options.rounds,
        "seconds": seconds,
        "first": firsts,
        "portable": others,
    }
    options.json.write_text(json.dumps(result, indent=1) + "\n")


if __name__ == "__main__":
    main()
