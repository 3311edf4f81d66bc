"""Generated linear kernels on this processor: the share of what it can do, and beside ONNX Runtime, ggml and torch.

    python -m benchmarks.cpu_matmul [--rounds 20] [--parts decode,peers,batch] [--threads 1,2] [--json FILE]

decode  M = 1 at 4096 x 4096: bits 2, 3, 4, 5, 6 and 8, groups of 32 and 128, int8 (A8) and 16-bit (A16) activations.
        The limit is memory read in the same rounds, in the best form that `qcc list targets --probe` found; of A16 the
        lesser of that and the rate of the same kernel on a weight that a cache holds.
peers   M = 1 at six shapes: 4-bit weights in groups of 32 and int8 activations, beside every 4-bit peer.
batch   M = 16 and 128, 4-bit in groups of 32 and 8-bit by channel; the limit is the dot product of the instruction set
        from registers, in the same rounds.

Every call rounds its activations, ours and theirs. Weights lie in more copies than the caches hold, and calls take them
in turn. Sides alternate within a round; figures are medians with the 10th and 90th percentile. Results are compared
with float64 products of the same codes before anything is timed. `benchmarks.peers.build_ggml` builds ggml for this
processor; where it was not run, only the wheel of `xllamacpp` is there.
"""

from __future__ import annotations

import argparse
import gc
import json
import platform
from collections.abc import Iterator, Sequence
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks.peers import Peer, Problem, peers_of, time_peers
from qcc.backends.native import isa, linear, memory, probe
from qcc.backends.native.linear_spec import Activation, LinearSpec
from qcc.ir import target
from qcc.ir.format import Format
from qcc.ir.quantize import quantize
from qcc.ir.quantized import Quantized

RESULTS = Path(__file__).parent / "results"
SHAPES = ((2048, 2048), (4096, 4096), (14336, 4096), (4096, 11008), (640, 2048), (4097, 4095))
BATCH_SHAPES = ((4096, 4096), (4096, 11008), (640, 2048))
BITS, GROUPS = (2, 3, 4, 5, 6, 8), (32, 128)
PEERS = ("ort int4 b32 level 4", "Q4_0", "Q4_K", "torch int4 g32")
BATCH_PEERS = (
    "int4 b32 level 4",
    "ort int8 channel dynamic",
    "ggml Q4_K",
    "ggml Q8_0 repack",
    "torch int8 channel dynamic",
)
REACH = {"A8": 0.80, "A16": 0.75, "runtime": 1.8, "ggml": 1.15, "spread": 0.15, 16: 2.0, 128: 1.3, "dot": 0.45}
ERROR = {8: 0.03, 16: 1e-3}
"""The largest error over the RMS of the result, of int8 and of 16-bit activations."""


class Limits:
    """The limits of this host, measured as sides of the same rounds."""

    def __init__(self) -> None:
        self.host = target.load("cpu")
        self.known = probe.measured(self.host)
        self.buffer = probe.ReadBuffer.of(256 << 20)
        self.isa = isa.best(self.host)

    def read(self, threads: int, rates: list[float]) -> Peer:
        """A side that reads memory; its rates, in GB/s, go to `rates`."""
        form = self.known.read(threads).form
        return _side("read limit", threads, lambda: rates.append(probe.read_gb_s(threads, self.buffer, form)))

    def dots(self, threads: int, rates: list[float]) -> Peer:
        """A side that sums dot products in registers; in 10^9 operations a second."""
        return _side("dot limit", threads, lambda: rates.append(probe.dot_gops(self.isa.name, threads)))


def _side(name: str, threads: int, step: Any) -> Peer:
    nothing = np.zeros(0, np.float32)
    return Peer(name, Problem(1, 1, 1, threads), 1, 1, 1, lambda i: step(), lambda: nothing, lambda: nothing)


def ours(name: str, weight: Quantized, activation: Activation, problem: Problem, copies: int = 0) -> Peer:
    """The generated kernel in its default schedule, checked; `copies` of the weight, or more than the caches hold."""
    spec = LinearSpec(problem.N, problem.K, weight.format, activation)
    kernel = linear.build(spec, isa.best(target.load("cpu")))
    packed, x = kernel.pack(weight), problem.x()
    y = kernel(x, packed, threads=problem.threads)
    exact = x.astype(np.float64) @ weight.decode().astype(np.float64).T
    error = float(np.sqrt(np.mean((y - exact) ** 2) / np.mean(exact**2)))
    if not error <= ERROR[activation.bits]:
        raise SystemExit(f"{spec}: relative error {error:.2e}, {ERROR[activation.bits]:.0e} is allowed")
    held, products = (copies, copies) if copies else problem.copies(packed.bytes)
    calls = [kernel.prepared(x, _copy(packed), threads=problem.threads) for _ in range(held)]

    def run(i: int) -> None:
        first = i * products % held
        for call in calls[first : first + products]:
            call()

    return Peer(name, problem, packed.bytes, held, products, run, lambda: calls[-1].y, weight.decode, lambda: None)


def _copy(packed: linear.Packed) -> linear.Packed:
    """The same numbers in memory of their own."""
    data = memory.aligned(packed.bytes + memory.READ_AHEAD)[: packed.bytes]
    data[:] = packed.data
    return linear.Packed(data, packed.alpha)


def summary(peer: Peer, seconds: Sequence[float]) -> dict[str, Any]:
    """A side's figures. Any: JSON."""
    p10, median, p90 = np.percentile(seconds, [10, 50, 90])
    n, k, m = peer.problem.N, peer.problem.K, peer.problem.M
    gops = 2e-9 * m * n * k / median
    return {"us": [p10 * 1e6, median * 1e6, p90 * 1e6], "bytes": peer.bytes_per_copy, "gops": gops}


def decode(limits: Limits, rounds: int, threads: Sequence[int]) -> Iterator[dict[str, Any]]:
    """One row of activations at 4096 x 4096. Any: JSON."""
    values = Problem(1, 4096, 4096).w()
    for bits in BITS:
        for group in GROUPS:
            weight = quantize(values, Format.parse(f"i{bits}, f16 per {group}"))
            small = quantize(values[:1024], weight.format)
            for count in threads:
                for activation in (Activation(8), Activation(16)):
                    rates: list[float] = []
                    problem, cached = Problem(1, 4096, 4096, count), Problem(1, 1024, 4096, 1)
                    sides = [ours("qcc", weight, activation, problem), limits.read(count, rates)]
                    if activation.bits == 16:
                        sides.append(ours("from cache", small, activation, cached, 1))
                    times = time_peers(sides, rounds)
                    side = summary(sides[0], times["qcc"])
                    rate = side["bytes"] / side["us"][1] / 1e3
                    limit = float(np.median(rates))
                    if activation.bits == 16:
                        limit = min(
                            limit, count * sides[2].bytes_per_copy / float(np.median(times["from cache"])) / 1e9
                        )
                    yield {
                        "part": "decode", "bits": bits, "group": group, "activations": f"A{activation.bits}",
                        "threads": count, "gb_s": rate, "limit_gb_s": limit, "share": rate / limit, **side,
                    }  # fmt: skip


def peers(limits: Limits, rounds: int, threads: Sequence[int]) -> Iterator[dict[str, Any]]:
    """4-bit weights, one row, beside the peers. Any: JSON."""
    for n, k in SHAPES:
        for count in threads:
            problem, rates = Problem(1, n, k, count), list[float]()
            weight = quantize(problem.w(), Format.parse("i4, f16 per 32"))
            sides = [ours("qcc", weight, Activation(8), problem), limits.read(count, rates), *peers_of(problem, PEERS)]
            times = time_peers(sides, rounds)
            found = {s.name: summary(s, times[s.name]) for s in sides if s.name != "read limit"}
            share = found["qcc"]["bytes"] / found["qcc"]["us"][1] / 1e3 / float(np.median(rates))
            yield {"part": "peers", "shape": [n, k], "threads": count, "share": share, "sides": found}
            del sides
            gc.collect()


def batch(limits: Limits, rounds: int, threads: Sequence[int]) -> Iterator[dict[str, Any]]:
    """16 and 128 rows of activations. Any: JSON."""
    for m in (16, 128):
        for n, k in BATCH_SHAPES:
            for count in threads:
                problem, rates = Problem(m, n, k, count), list[float]()
                formats = {"qcc 4-bit": "i4, f16 per 32", "qcc 8-bit": "i8, f32 per *"}
                made = {name: quantize(problem.w(), Format.parse(text)) for name, text in formats.items()}
                sides = [ours(name, weight, Activation(8), problem) for name, weight in made.items()]
                sides += [limits.dots(count, rates), *peers_of(problem, BATCH_PEERS)]
                times = time_peers(sides, rounds)
                found = {s.name: summary(s, times[s.name]) for s in sides if s.name != "dot limit"}
                limit = float(np.median(rates))
                yield {"part": "batch", "m": m, "shape": [n, k], "threads": count, "limit_gops": limit, "sides": found}
                del sides
                gc.collect()


def best(row: dict[str, Any], *words: str) -> tuple[str, float]:
    """The fastest peer whose name holds one of `words`, or any, and its microseconds. Any: JSON."""
    rivals = {n: s["us"][1] for n, s in row["sides"].items() if not n.startswith("qcc")}
    rivals = {n: us for n, us in rivals.items() if not words or any(w in n for w in words)}
    return min(rivals.items(), key=lambda item: item[1], default=("none", float("nan")))


def show(row: dict[str, Any]) -> str:
    """A row as a person reads it. Any: JSON."""
    if row["part"] == "decode":
        p10, us, p90 = row["us"]
        reach = REACH[row["activations"]]
        return (
            f"{row['bits']} bits, groups of {row['group']:3}, {row['activations']:3}, {row['threads']} threads: "
            f"{us:6.0f} us ({p10:.0f} to {p90:.0f}), {row['gb_s']:5.1f} of {row['limit_gb_s']:5.1f} GB/s = "
            f"{row['share']:4.0%}" + ("" if row["share"] >= reach else "  MISS")
        )
    shape = f"{row['shape'][0]} x {row['shape'][1]}, {row['threads']} threads"
    if row["part"] == "peers":
        us = row["sides"]["qcc"]["us"][1]
        rivals = [(best(row, "ort"), REACH["runtime"]), (best(row, "ggml", "xllamacpp"), REACH["ggml"])]
        said = [f"{n} {t:.0f} us = {t / us:.2f}x{'' if t / us >= reach else ' MISS'}" for (n, t), reach in rivals]
        return f"M = 1, {shape}: qcc {us:.0f} us, {row['share']:.0%} of the read limit; {'; '.join(said)}"
    lines = [f"M = {row['m']}, {shape}:"]
    name, us = best(row)
    for mine in ("qcc 4-bit", "qcc 8-bit"):
        side = row["sides"][mine]
        share, ratio = side["gops"] / row["limit_gops"], us / side["us"][1]
        lines.append(f"{mine} {side['us'][1]:.0f} us, {share:.0%} of the dot limit, {ratio:.2f}x;")
    return " ".join(lines) + f" best peer {name} {us:.0f} us" + ("" if ratio >= REACH[row["m"]] else "  MISS")


def main() -> None:
    """Measure, print a line each, and write the results."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--rounds", type=int, default=20)
    parser.add_argument("--parts", default="decode,peers,batch")
    parser.add_argument("--threads", default="1,2")
    parser.add_argument("--json", type=Path, default=RESULTS / "cpu_matmul.json", help="write the result here")
    options = parser.parse_args()
    limits = Limits()
    threads = [int(t) for t in options.threads.split(",") if int(t) <= limits.host.cores]
    rows: list[dict[str, Any]] = []
    for part in (decode, peers, batch):
        if part.__name__ in options.parts.split(","):
            for row in part(limits, options.rounds, threads):
                rows.append(row)
                print(show(row), flush=True)
    result = {
        "machine": f"{limits.host.machine}, {limits.host.cores} cores, {limits.isa.summary}",
        "python": platform.python_version(),
        "packages": {name: version(name) for name in ("numpy", "onnxruntime", "torch", "xllamacpp")},
        "rounds": options.rounds,
        "reach": {str(name): value for name, value in REACH.items()},
        "rows": rows,
    }
    options.json.write_text(json.dumps(result, indent=1) + "\n")


if __name__ == "__main__":
    main()
