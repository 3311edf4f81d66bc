"""Kernels by table lookup beside kernels by dot products, at 1 to 4 bits: where lookups win (decision 0020).

    python -m benchmarks.table_lookup [--rounds 20] [--only cache,memory] [--isas NAMES] [--json FILE]

cache   640 x 2048, which the second cache holds, at 1 and 8 rows of activations: what the instructions cost.
memory  4096 x 4096 and 14336 x 4096, one row: the weights lie in copies that are more than the caches hold, and every
        call takes the next. The limit is the memory that one thread reads in the same rounds.

One thread, int8 activations, rounded in every call by both sides, tables built in every call. Each side is the fastest
of its schedules, which alternate within a round: dot products in blocks of 16, 32 and 64 rows, with 2 and 4 streams
and tiles of several sizes; lookups, whose blocks have 64 rows, with 1, 2 and 4 streams. Both sides must give the same
bits before they are timed. A processor with AVX-VNNI and no AVX-512 is stood in for, on one that has AVX512-VNNI, by
the same kernels with the dot product in the other encoding.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np

from qcc.api.bench import interleave, summarize
from qcc.backends.native import compile, isa, linear, lut, memory, probe
from qcc.backends.native.isa import Isa
from qcc.backends.native.linear import Packed
from qcc.backends.native.linear_spec import Activation, LinearSpec, Schedule, tile_of
from qcc.ir import target
from qcc.ir.format import Format
from qcc.ir.quantize import quantize

RESULTS = Path(__file__).parent / "results"
PAST_CACHES = 160 << 20
"""Bytes of weights that are read in turn."""
BITS, GROUPS = (1, 2, 3, 4), (32, 128)
CACHED, REPEAT = (640, 2048), 20
LARGE = ((4096, 4096), (14336, 4096))
DOTS = ((1, 4), (2, 2), (2, 4), (4, 2))
"""Vectors of 16 rows and streams."""
LOOKUPS = tuple(Schedule(lut.VECTORS, streams, unpack="lookup", tile=1) for streams in (1, 2, 4))


class Encoded(Isa):
    """AVX-VNNI on a processor that knows its dot product in the encoding of AVX-512 alone; all else is AVX2."""

    @property
    def flags(self) -> tuple[str, ...]:
        """What the compiler is told: nothing of AVX-512, whose registers and instructions it would use."""
        return isa.named("avx2").flags

    def text(self) -> str:
        """The header, with the dot product written out."""
        dot = '__asm__("%{evex%} vpdpbusd %2, %1, %0" : "+x"(acc) : "x"(w), "x"(x)); return acc;'
        function = f"static inline __m256i encoded_dot(__m256i acc, __m256i w, __m256i x) {{ {dot} }}"
        return (
            f"#include <immintrin.h>\n{function}\n#define __AVXVNNI__ 1\n"
            f"#define _mm256_dpbusd_avx_epi32 encoded_dot\n{super().text()}"
        )


def sets() -> dict[str, Isa]:
    """The instruction sets that this host can run, by name."""
    host = target.load("cpu")
    known = isa.named("avx_vnni")
    needs = ("avx2", "fma", "f16c", "avx512vl", "avx512_vnni")
    encoded = Encoded(known.name, known.header, needs, known.wide, known.summary)
    best = [each for each in isa.ISAS if each.header == "avx512.h" and not each.has("amx_tile")]
    names = {"avx2": isa.named("avx2"), "avx_vnni": encoded, **{each.name: each for each in best[:1]}}
    return {name: each for name, each in names.items() if not each.missing(host)}


def row(fmt: str, shape: tuple[int, int], isa_: Isa, m: int, rounds: int, cached: bool) -> dict[str, Any]:
    """Both sides of one kernel; microseconds a call."""
    spec = LinearSpec(*shape, Format.parse(fmt), Activation(8))
    rng = np.random.default_rng(spec.n)
    weight = quantize(rng.standard_normal(shape, np.float32) * np.float32(0.02), spec.weight)
    x = rng.standard_normal((m, spec.k), np.float32)
    kernels = {
        f"dot {each.vectors}x{each.streams}t{each.tile}": linear.build(spec, isa_, each) for each in dots(spec, isa_, m)
    }
    kernels |= {f"lookup {each.streams}": linear.build(spec, isa_, each) for each in LOOKUPS}
    results = {name: kernel(x, kernel.pack(weight)) for name, kernel in kernels.items()}
    first = next(iter(results.values()))
    for name, y in results.items():
        if not np.array_equal(y, first):
            raise SystemExit(f"{spec} on {isa_.name}: {name} differs")
    sides, counts, size = dict[str, Callable[[], None]](), dict[str, int](), 0
    copies: dict[str, list[Packed]] = {}
    for name, kernel in kernels.items():
        layout = str(kernel.storage.layout)
        if layout not in copies:
            packed = kernel.pack(weight)
            copies[layout] = [packed] if cached else [copy_of(packed) for _ in range(-(-PAST_CACHES // packed.bytes))]
            size = max(size, packed.bytes)
        calls = [kernel.prepared(x, each) for each in copies[layout]] * (REPEAT if cached else 1)
        sides[name], counts[name] = all_of(calls), len(calls)
    reads = Reads()
    times = interleave(sides if cached else {**sides, "read": reads.read}, rounds)
    found = {name: figures(times[name], counts[name]) for name in sides}
    fastest = {kind: min((n for n in found if n.startswith(kind)), key=lambda n: found[n]["us"]) for kind in KINDS}
    dot, lookup = (found[fastest[kind]] for kind in KINDS)
    result: dict[str, Any] = {"isa": isa_.name, "format": fmt, "shape": list(shape), "m": m, "bytes": size}
    result |= {"cached": cached, "limit_gb_s": None if cached else reads.gb_s, "sides": found, "fastest": fastest}
    result["dot_over_lookup"] = dot["us"] / lookup["us"]
    print(shown(result), flush=True)
    return result


KINDS = ("dot", "lookup")


def dots(spec: LinearSpec, isa_: Isa, m: int) -> list[Schedule]:
    """Schedules of dot products; for several rows also those of one tile of 4, where registers hold fewer."""
    tiles = [{tile_of(spec, isa_, vectors), *((4,) if m > 1 else ())} for vectors, _ in DOTS]
    return [Schedule(*shape, tile=tile) for shape, some in zip(DOTS, tiles, strict=True) for tile in sorted(some)]


class Reads:
    """The memory that one thread reads: measured again in every round."""

    def __init__(self) -> None:
        self._rates: list[float] = []
        self._form, self._buffer = probe.measured(target.load("cpu")).reads[0].form, probe.ReadBuffer.of(PAST_CACHES)

    def read(self) -> None:
        """Measure once."""
        self._rates.append(probe.read_gb_s(1, self._buffer, self._form))

    @property
    def gb_s(self) -> float:
        """10^9 bytes a second, the median."""
        return float(np.median(self._rates))


def all_of(calls: list[linear.Call]) -> Callable[[], None]:
    """Every call, once."""

    def run() -> None:
        for call in calls:
            call()

    return run


def copy_of(packed: Packed) -> Packed:
    """The same numbers in memory of their own."""
    data = memory.aligned(packed.bytes + memory.READ_AHEAD)[: packed.bytes]
    data[:] = packed.data
    return Packed(data, packed.alpha)


def figures(seconds: list[float], calls: int) -> dict[str, float]:
    """Microseconds of a call: median, 10th and 90th percentile."""
    latency = summarize([second / calls for second in seconds])
    return {"us": 1e3 * latency.median, "p10": 1e3 * latency.p10, "p90": 1e3 * latency.p90}


def shown(result: Mapping[str, Any]) -> str:
    """A line of a table. Any: the JSON that is written."""
    parts: list[str] = []
    for kind in KINDS:
        name = result["fastest"][kind]
        f, limit = result["sides"][name], result["limit_gb_s"]
        share = f", {result['bytes'] / f['us'] / 1e3 / limit:.0%}" if limit else ""
        parts.append(f"{f['us']:.1f} ({f['p10']:.1f} to {f['p90']:.1f}{share}; {name})")
    shape = " x ".join(map(str, result["shape"]))
    ratio = f"{result['dot_over_lookup']:.2f}"
    return f"| {result['isa']} | {result['format']} | {shape} | {result['m']} | {' | '.join(parts)} | {ratio} |"


def main() -> None:
    """Run, print a line each, and write the results."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--rounds", type=int, default=20)
    parser.add_argument("--only", default="cache,memory", help="which parts")
    parser.add_argument("--isas", default=",".join(sets()), help="which instruction sets")
    parser.add_argument("--json", type=Path, default=RESULTS / "table_lookup.json", help="write the result here")
    options = parser.parse_args()
    parts, chosen = options.only.split(","), [sets()[name] for name in options.isas.split(",")]
    formats = [f"i{bits}, f16 per {group}" for bits in BITS for group in GROUPS]
    rows: list[dict[str, Any]] = []
    for each in chosen if "cache" in parts else ():
        rows += [row(fmt, CACHED, each, m, options.rounds, cached=True) for m in (1, 8) for fmt in formats]
    for each in chosen if "memory" in parts else ():
        rows += [row(fmt, shape, each, 1, options.rounds, cached=False) for shape in LARGE for fmt in formats]
    result = {
        "machine": target.load("cpu").machine,
        "threads": 1,
        "compiler": compile.compiler_version(),
        "rounds": options.rounds,
        "rows": rows,
    }
    options.json.write_text(json.dumps(result, indent=1) + "\n")


if __name__ == "__main__":
    main()
