"""Kernels for codebooks of each row, and for nested codes at any precision: the share of what can be read.

    python -m benchmarks.codebooks [--rounds 20] [--bits 3,4] [--activations 8,16] [--threads 1,2] [--json FILE]

One row of activations, a weight of 4096 x 4096, and three kernels for every number of bits of a code:

codebook  2^bits values for each row (SqueezeLLM), at 2 to 6 and 8 bits
nested    one packed copy of codes of 8 bits, of which `kernel.at(bits)` reads the upper ones, at 3 to 8 bits
linear    whole numbers with a scale for each row, by `qcc.backends.native.linear`

A kernel's bytes are those that one product has to read: of nested codes the planes and the tables of its precision. The
limit is memory read in the same rounds, in the best form that `qcc list targets --probe` found, and of 16-bit
activations the lesser of that and the rate of the same kernel on 1024 rows that a cache holds (for two threads twice
that of one).

Every call rounds its activations. Weights lie in more copies than the caches hold, and calls take them in turn. Sides
alternate within a round; figures are medians with the 10th and 90th percentile. Results are compared with float64
products of the decoded weight before anything is timed.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from benchmarks.cpu_matmul import ERROR, REACH, Limits
from benchmarks.peers import COLD_BYTES, RUN_SECONDS, Peer, Problem, time_peers
from qcc.backends.native import codebook, compile, linear, memory
from qcc.backends.native.codebook import CodebookKernel
from qcc.backends.native.codebook_spec import CodebookSpec
from qcc.backends.native.linear import LinearKernel, Packed
from qcc.backends.native.linear_spec import Activation, LinearSpec
from qcc.ir.format import Format
from qcc.ir.levels import level_dtype
from qcc.ir.quantize import quantize
from qcc.ir.quantized import Quantized

RESULTS = Path(__file__).parent / "results"
N, K, CACHED = 4096, 4096, 1024
BITS = (2, 3, 4, 5, 6, 7, 8)
NESTED, LEAST = "n3..8 in f16 per *", 3
KINDS = ("codebook", "nested", "linear")
FASTEST = 40e9
"""Bytes a second from which the length of a run is guessed."""


def trained(fmt: Format, rows: int, seed: int = 0) -> Quantized:
    """Codes of equal chance, and values of each row that are normal: what training makes of them costs the same."""
    rng, parts = np.random.default_rng(seed), dict[str, NDArray[np.generic]]()
    assert fmt.codebook is not None
    for name, level in fmt.levels().items():
        table = rng.standard_normal((*level.shape_of((rows, K)), fmt.codebook.entries), np.float32)
        parts[name] = (0.02 * table).astype(level_dtype(level.dtype).numpy)
    return Quantized(fmt, {"codes": rng.integers(0, 1 << fmt.bits, (rows, K), np.uint8), **parts})


class Weights:
    """A weight, 4096 and 1024 rows of it, and the copies of its packed bytes, which serve all activations."""

    def __init__(self, large: Quantized, small: Quantized, read_bytes: int) -> None:
        self.large, self.small = large, small
        self.products = max(1, round(RUN_SECONDS * FASTEST / read_bytes))
        self.copies = -(-COLD_BYTES // (read_bytes * self.products)) * self.products
        self._held: list[Packed] = []

    def packed(self, kernel: LinearKernel) -> list[Packed]:
        """As many copies as are read in turn."""
        if not self._held:
            self._held = [kernel.pack(self.large)]
        while len(self._held) < self.copies:
            self._held.append(copy_of(self._held[0]))
        return self._held


def copy_of(packed: Packed) -> Packed:
    """The same numbers in memory of their own."""
    data = memory.aligned(packed.bytes + memory.READ_AHEAD)[: packed.bytes]
    data[:] = packed.data
    return Packed(data, packed.alpha)


class Bench:
    """The weights, and the kernels for them."""

    def __init__(self, limits: Limits) -> None:
        self.limits, self._decoded = limits, dict[tuple[str, int, int], NDArray[np.float64]]()
        fmt = Format.parse(NESTED)
        self._nested = Weights(trained(fmt, N), trained(fmt, CACHED), N * K * LEAST // 8)

    def rows(self, bits: int, activations: Sequence[int], threads: Sequence[int], rounds: int) -> Iterator[Any]:
        """The figures of one number of bits. Any: JSON."""
        weights = dict(self.weights(bits))
        for parts in activations:
            kernels = {kind: self.kernel(kind, bits, Activation(parts), N) for kind in weights}
            cached = {kind: self.kernel(kind, bits, Activation(parts), CACHED) for kind in weights}
            for kind, held in weights.items():
                self.check(kind, bits, kernels[kind], held.packed(kernels[kind])[0], held.large)
            for count in threads:
                rates: list[float] = []
                sides = [
                    side(kind, kernels[kind], held.packed(kernels[kind]), held, count) for kind, held in weights.items()
                ]
                sides += [
                    from_cache(kind, cached[kind], cached[kind].pack(held.small)) for kind, held in weights.items()
                ]
                times = time_peers([*sides, self.limits.read(count, rates)], rounds)
                read = float(np.median(rates))
                for kind in weights:
                    p10, us, p90 = (1e6 * np.percentile(times[kind], [10, 50, 90])).tolist()
                    cache = read_bytes(cached[kind]) / float(np.median(times[f"{kind} from cache"])) / 1e9
                    limit = min(read, count * cache) if parts == 16 else read
                    rate = read_bytes(kernels[kind]) / us / 1e3
                    yield {
                        "kind": kind, "bits": bits, "activations": f"A{parts}", "threads": count,
                        "us": [p10, us, p90], "bytes": read_bytes(kernels[kind]), "gb_s": rate, "read_gb_s": read,
                        "cache_gb_s": count * cache, "share": rate / limit, "share_of_read": rate / read,
                    }  # fmt: skip

    def weights(self, bits: int) -> Iterator[tuple[str, Weights]]:
        """The kinds that have codes of so many bits."""
        if bits != 7:
            fmt = Format.parse(f"k{1 << bits} in f16 per *")
            yield "codebook", Weights(trained(fmt, N), trained(fmt, CACHED), N * K * bits // 8)
        if bits >= LEAST:
            yield "nested", self._nested
        values, fmt = Problem(1, N, K).w(), Format.parse(f"i{bits}, f16 per *")
        yield "linear", Weights(quantize(values, fmt), quantize(values[:CACHED], fmt), N * K * bits // 8)

    def kernel(self, kind: str, bits: int, activation: Activation, rows: int) -> LinearKernel:
        """A kernel in its default schedule."""
        best = self.limits.isa
        if kind == "linear":
            return linear.build(LinearSpec(rows, K, Format.parse(f"i{bits}, f16 per *"), activation), best)
        fmt = Format.parse(NESTED if kind == "nested" else f"k{1 << bits} in f16 per *")
        made = codebook.build(CodebookSpec(rows, K, fmt, activation), best)
        return made.at(bits) if kind == "nested" else made

    def check(self, kind: str, bits: int, kernel: LinearKernel, packed: Packed, weight: Quantized) -> None:
        """Stops where a result is not that of the decoded weight."""
        key = (kind, bits, N)
        if key not in self._decoded:
            self._decoded = {k: v for k, v in self._decoded.items() if k[1] == bits}
            self._decoded[key] = (weight.at(bits) if kind == "nested" else weight).decode().astype(np.float64)
        x = Problem(1, N, K).x()
        y, exact = kernel(x, packed), x.astype(np.float64) @ self._decoded[key].T
        error = float(np.sqrt(np.mean((y - exact) ** 2) / np.mean(exact**2)))
        allowed = ERROR[kernel.spec.activation.bits]
        if not error <= allowed:
            raise SystemExit(f"{kernel.spec}: relative error {error:.2e}, {allowed:.0e} is allowed")


def read_bytes(kernel: LinearKernel) -> int:
    """Bytes of a packed weight that one product has to read."""
    return kernel.read_bytes if isinstance(kernel, CodebookKernel) else kernel.storage.bytes


def side(name: str, kernel: LinearKernel, packed: Sequence[Packed], held: Weights, threads: int) -> Peer:
    """Products with one copy after the other."""
    problem = Problem(1, kernel.spec.n, kernel.spec.k, threads)
    calls = [kernel.prepared(problem.x(), each, threads=threads) for each in packed]

    def run(i: int) -> None:
        first = i * held.products % len(calls)
        for call in calls[first : first + held.products]:
            call()

    bytes_ = read_bytes(kernel)
    return Peer(name, problem, bytes_, len(calls), held.products, run, lambda: calls[-1].y, held.large.decode, nothing)


def from_cache(name: str, kernel: LinearKernel, packed: Packed) -> Peer:
    """One product again and again, on one thread."""
    problem = Problem(1, kernel.spec.n, kernel.spec.k)
    call, empty = kernel.prepared(problem.x(), packed), np.zeros(0)

    def run(_: int) -> None:
        call()

    return Peer(f"{name} from cache", problem, read_bytes(kernel), 1, 1, run, lambda: call.y, lambda: empty, nothing)


def nothing() -> None:
    """Our threads do not spin for long."""


def show(row: dict[str, Any]) -> str:
    """A row as a person reads it. Any: JSON."""
    p10, us, p90 = row["us"]
    limit = row["gb_s"] / row["share"]
    return (
        f"{row['bits']} bits, {row['kind']:8}, {row['activations']:3}, {row['threads']} threads: {us:6.0f} us "
        f"({p10:.0f} to {p90:.0f}), {row['gb_s']:5.1f} of {limit:5.1f} GB/s = {row['share']:4.0%}, "
        f"{row['share_of_read']:4.0%} of what is read" + ("" if row["share"] >= REACH[row["activations"]] else "  MISS")
    )


def main() -> None:
    """Measure, print a line each, and write the results."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--rounds", type=int, default=20)
    parser.add_argument("--bits", default=",".join(map(str, BITS)))
    parser.add_argument("--activations", default="8,16", help="their bits")
    parser.add_argument("--threads", default="1,2")
    parser.add_argument("--json", type=Path, default=RESULTS / "codebooks.json", help="write the result here")
    options = parser.parse_args()
    limits = Limits()
    bench, rows = Bench(limits), list[dict[str, Any]]()
    activations = [int(a) for a in options.activations.split(",")]
    threads = [int(t) for t in options.threads.split(",") if int(t) <= limits.host.cores]
    for bits in map(int, options.bits.split(",")):
        for row in bench.rows(bits, activations, threads, options.rounds):
            rows.append(row)
            print(show(row), flush=True)
    result = {
        "machine": f"{limits.host.machine}, {limits.host.cores} cores, {limits.isa.summary}",
        "compiler": compile.compiler_version(),
        "shape": [N, K],
        "rounds": options.rounds,
        "reach": {name: REACH[name] for name in ("A8", "A16")},
        "rows": rows,
    }
    options.json.write_text(json.dumps(result, indent=1) + "\n")


if __name__ == "__main__":
    main()
