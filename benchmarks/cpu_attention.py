"""Generated attention kernels on this processor, beside ONNX Runtime's and PyTorch's.

    python -m benchmarks.cpu_attention [--rounds 15] [--threads 1,2] [--only WORD] [--json FILE]

decode    one token of Gemma 3 270M (4 heads of 256 on one of keys and values) behind 511 or 2047 others, and behind
          2047 with the window of 512 of its local layers. All sides append the token to their cache. Caches are many,
          in huge pages where the system gives them, and walked through, so that they come from memory, as they do
          where weights are read between two tokens. The limit is the time in which this processor reads the bytes
          of the keys and values that are seen, in the same rounds.
prefill   128 and 512 tokens of the same layer at once. The limit is the peak of float32 products from registers, in the
          same rounds, for the products that a causal order leaves.
encoder   MiniLM: 12 heads of 32, 128 tokens, 1 and 8 sequences, no mask.

Ours keeps keys and values in float16 or int8 (encoder: float32) and computes in float32. ONNX Runtime has
GroupQueryAttention in float32 and float16, and MultiHeadAttention for the encoder; PyTorch has
scaled_dot_product_attention in both (decode: of the exact length, and its append is a copy into the cache). The fastest
of theirs counts. A run computes several, so that entering a library is not what is measured. Results are compared
before anything is timed, with keys and values that float16, or int8, holds exactly.
"""

from __future__ import annotations

import argparse
import ctypes
import json
import platform
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from functools import cache
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np
import torch
from onnx import TensorProto, helper
from onnxruntime import InferenceSession, OrtValue

from benchmarks.peers import REST_SECONDS
from benchmarks.peers.onnxruntime_matmul import options_for
from qcc.backends.native import attention, compile, isa, probe
from qcc.backends.native.attention import Cache
from qcc.backends.native.attention_spec import AttentionSpec
from qcc.backends.native.emit_attention import BYTES
from qcc.backends.native.memory import aligned
from qcc.ir import target

RESULTS = Path(__file__).parent / "results"
REACH = 1.0
"""The time of the faster of the others over ours."""
COLD_BYTES = 128 << 20
RUN_SECONDS = 1e-3
LARGEST_ERROR = {"float32": 2e-5, "float16": 2e-2}
Run = Callable[[], object]
Numbers = tuple[np.ndarray, np.ndarray, np.ndarray]
DTYPES = {"f32": np.float32, "f16": np.float16, "i8": np.int8}


@dataclass(frozen=True)
class Task:
    """What is computed: `queries` tokens behind others, of `keys` in all."""

    part: str
    batch: int
    queries: int
    keys: int
    spec: AttentionSpec

    def __str__(self) -> str:
        seen = f", window {self.spec.window}" if self.spec.window else ""
        return f"{self.part} {self.batch} x {self.queries} of {self.keys}{seen}, {self.spec.cache}"

    @property
    def seen(self) -> int:
        """Pairs of a query and a key that it sees, of all heads."""
        each = range(self.keys - self.queries + 1, self.keys + 1)
        width = self.spec.window or self.keys
        pairs = sum(min(n, width) for n in each) if self.spec.causal else self.queries * self.keys
        return self.batch * self.spec.heads * pairs

    @property
    def bytes(self) -> int:
        """Of keys and values that a decoding step must read."""
        seen = min(self.keys, self.spec.window or self.keys)
        scales = 8 if self.spec.cache == "i8" else 0
        return self.batch * self.spec.kv_heads * seen * (2 * self.spec.size * BYTES[self.spec.cache] + scales)

    @property
    def flops(self) -> int:
        """Of both products."""
        return 4 * self.seen * self.spec.size

    @property
    def cold(self) -> bool:
        """Whether keys and values come from memory."""
        return self.part == "decode"

    def copies(self, held: int) -> int:
        """How many caches of `held` bytes a side walks through."""
        if self.cold:
            return max(2, COLD_BYTES // held)
        return max(1, min(16, round(RUN_SECONDS / (self.flops / 100e9))))

    def numbers(self) -> Numbers:
        """q, k and v [batch, heads, tokens, size] in float32, such that int8 with a scale of 1/64 holds k and v."""
        rng, spec = np.random.default_rng(0), self.spec
        q = rng.standard_normal((self.batch, spec.heads, self.queries, spec.size)).astype(np.float32)
        shape = (2, self.batch, spec.kv_heads, self.keys, spec.size)
        k, v = (np.rint(rng.standard_normal(shape) * 30).clip(-127, 127) / 64).astype(np.float32)
        k[..., 0] = v[..., 0] = 127 / 64  # so that the largest of a row is
        return q, k, v


GEMMA = AttentionSpec(4, 256, 1, causal=True)
TASKS = [
    *(Task("decode", 1, 1, n, replace(GEMMA, cache=c)) for c in ("f16", "i8") for n in (512, 2048)),
    *(Task("decode", 1, 1, 2048, replace(GEMMA, cache=c, window=512)) for c in ("f16", "i8")),
    *(Task("prefill", 1, n, n, replace(GEMMA, cache=c)) for c in ("f16", "i8") for n in (128, 512)),
    *(Task("encoder", b, 128, 128, AttentionSpec(12, 32)) for b in (1, 8)),
]


def arena(count: int, shape: tuple[int, ...], item: np.dtype[Any]) -> np.ndarray:
    """[count, *shape] zeros, in huge pages where the system gives them. Any: numpy does not name its scalars."""
    size = count * int(np.prod(shape)) * item.itemsize
    array = probe.ReadBuffer.of(-(-size // (1 << 20)) << 20).array
    array[:] = 0
    return array[:size].view(item).reshape(count, *shape)


def ours(task: Task, threads: int) -> tuple[Run, int, np.ndarray]:
    """What runs all copies of a task, how many there are, and the last result."""
    spec, (q, k, v) = task.spec, task.numbers()
    kernel = attention.build(spec, isa.best(target.load("cpu")))
    shape = (task.batch, spec.kv_heads, task.keys, spec.size)
    dtype = np.dtype(DTYPES[spec.cache])
    count = task.copies(2 * int(np.prod(shape)) * dtype.itemsize)
    held, scales = arena(count, (2, *shape), dtype), arena(count, (2, *shape[:3]), np.dtype(np.float32))
    rows = np.ascontiguousarray(q.swapaxes(1, 2)).swapaxes(1, 2)
    y = np.zeros_like(rows.swapaxes(1, 2)).swapaxes(1, 2)
    scratch = aligned(kernel.scratch(task.batch, task.queries, task.keys, threads))
    calls = list[Callable[[], None]]()
    for kv, scale in zip(held, scales, strict=True):
        cache_ = Cache(kv[0], kv[1], *((scale[0], scale[1]) if spec.cache == "i8" else (None, None)))
        kernel.append(cache_, k, v, 0)
        if task.part != "encoder":
            new = slice(task.keys - task.queries, task.keys)
            calls.append(kernel.prepared_append(cache_, k[:, :, new], v[:, :, new], new.start, threads=threads))
        calls.append(kernel.prepared(rows, cache_, task.keys, out=y, threads=threads, scratch=scratch))

    def run() -> None:
        for call in calls:
            call()

    run()
    return run, count, y


def onnxruntime(task: Task, threads: int, dtype: np.dtype[Any]) -> tuple[Run, int, np.ndarray]:
    """The same of ONNX Runtime: one session with an operator for each copy. Any: numpy does not name its scalars."""
    spec, (q, k, v) = task.spec, (a.astype(dtype) for a in task.numbers())
    flat = [np.ascontiguousarray(a.swapaxes(1, 2)).reshape(task.batch, a.shape[2], -1) for a in (q, k, v)]
    new = [flat[0], *(a[:, task.keys - task.queries :].copy() for a in flat[1:])]
    past = task.keys - task.queries
    kind = TensorProto.FLOAT if dtype == np.float32 else TensorProto.FLOAT16
    count = task.copies(k.nbytes + v.nbytes)
    nodes, ends, outs = list[Any](), dict[str, tuple[int, tuple[int, ...]]](), dict[str, tuple[int, tuple[int, ...]]]()
    values = {name: OrtValue.ortvalue_from_numpy(a) for name, a in zip("qkv", new, strict=True)}
    ends |= {name: (kind, a.shape) for name, a in zip("qkv", new, strict=True)}
    results = dict[str, OrtValue]()
    if task.part != "encoder":
        values |= {
            "last": OrtValue.ortvalue_from_numpy(np.full(task.batch, task.keys - 1, np.int32)),
            "total": OrtValue.ortvalue_from_numpy(np.array(task.keys, np.int32)),
        }
        ends |= {"last": (TensorProto.INT32, (task.batch,)), "total": (TensorProto.INT32, ())}
    for i in range(count):
        if task.part == "encoder":
            nodes.append(
                helper.make_node(
                    "MultiHeadAttention", [*"qkv"], [f"y{i}"], domain="com.microsoft", num_heads=spec.heads
                )
            )
        else:
            attributes: dict[str, Any] = {"num_heads": spec.heads, "kv_num_heads": spec.kv_heads, "scale": spec.factor}
            attributes |= {"local_window_size": spec.window} if spec.window else {}
            names = [*"qkv", f"pk{i}", f"pv{i}", "last", "total"]
            nodes.append(
                helper.make_node(
                    "GroupQueryAttention", names, [f"y{i}", f"k{i}", f"v{i}"], domain="com.microsoft", **attributes
                )
            )
            for name, old in (("k", k), ("v", v)):
                buffer = old.copy()
                buffer[:, :, past:] = 0
                value = OrtValue.ortvalue_from_numpy(buffer)
                values[f"p{name}{i}"], results[f"{name}{i}"] = value, value
                ends[f"p{name}{i}"] = outs[f"{name}{i}"] = (kind, buffer.shape)
        results[f"y{i}"] = OrtValue.ortvalue_from_numpy(np.zeros_like(flat[0]))
        outs[f"y{i}"] = (kind, flat[0].shape)
    inputs, outputs = ([helper.make_tensor_value_info(n, *e) for n, e in some.items()] for some in (ends, outs))
    opsets = [helper.make_opsetid("", 20), helper.make_opsetid("com.microsoft", 1)]
    model = helper.make_model(helper.make_graph(nodes, "all", inputs, outputs), opset_imports=opsets, ir_version=9)
    session = InferenceSession(model.SerializeToString(), options_for(threads), providers=["CPUExecutionProvider"])
    binding = session.io_binding()
    for name, value in values.items():
        binding.bind_ortvalue_input(name, value)
    for name, value in results.items():
        binding.bind_ortvalue_output(name, value)

    def run(held: object = (values, results)) -> None:
        session.run_with_iobinding(binding)

    run()
    y = outputs_of(results[f"y{count - 1}"])
    return run, count, y.reshape(task.batch, task.queries, spec.heads, spec.size).swapaxes(1, 2)


def outputs_of(value: Any) -> np.ndarray:
    """What an OrtValue holds. Any: its numpy() is not in the stubs."""
    return value.numpy()


def pytorch(task: Task, threads: int, dtype: np.dtype[Any]) -> tuple[Run, int, np.ndarray]:
    """The same of PyTorch. Any: numpy does not name its scalars."""
    torch.set_num_threads(threads)
    spec, (q, k, v) = task.spec, (torch.tensor(a.astype(dtype)) for a in task.numbers())
    q = q.transpose(1, 2).contiguous().transpose(1, 2)
    count, past = task.copies(2 * k.nbytes), task.keys - task.queries
    first = max(0, task.keys - spec.window) if spec.window else 0
    caches = [(k.clone(), v.clone()) for _ in range(count)]
    last = [q]
    causal = spec.causal and task.queries > 1
    sdpa = torch.nn.functional.scaled_dot_product_attention

    def run() -> None:
        torch.set_num_threads(threads)
        with torch.inference_mode():
            for keys, values in caches:
                if task.part != "encoder":
                    keys[:, :, past:] = k[:, :, past:]
                    values[:, :, past:] = v[:, :, past:]
                last[0] = sdpa(
                    q, keys[:, :, first:], values[:, :, first:], is_causal=causal, scale=spec.factor, enable_gqa=True
                )

    run()
    return run, count, last[0].float().numpy()


SIDES: dict[str, Callable[[Task, int], tuple[Run, int, np.ndarray]]] = {
    "qcc": ours,
    "ort f32": lambda task, threads: onnxruntime(task, threads, np.dtype(np.float32)),
    "ort f16": lambda task, threads: onnxruntime(task, threads, np.dtype(np.float16)),
    "torch f32": lambda task, threads: pytorch(task, threads, np.dtype(np.float32)),
    "torch f16": lambda task, threads: pytorch(task, threads, np.dtype(np.float16)),
}
_PEAK = """
double qcc_peak(const float *p, long count) {
    const floats x = load_f32(p), y = load_f32(p + 16);
    floats a[12];
    for (int i = 0; i < 12; i++) a[i] = load_f32(p + i);
    for (long n = 0; n < count; n++) {
        a[0] = fma_(x, y, a[0]); a[1] = fma_(x, y, a[1]); a[2] = fma_(x, y, a[2]); a[3] = fma_(x, y, a[3]);
        a[4] = fma_(x, y, a[4]); a[5] = fma_(x, y, a[5]); a[6] = fma_(x, y, a[6]); a[7] = fma_(x, y, a[7]);
        a[8] = fma_(x, y, a[8]); a[9] = fma_(x, y, a[9]); a[10] = fma_(x, y, a[10]); a[11] = fma_(x, y, a[11]);
    }
    float all[16];
    for (int i = 1; i < 12; i++) a[0] = add(a[0], a[i]);
    store_floats(all, a[0], 16);
    return all[0];
}
"""


@cache
def _peak_function() -> Callable[[np.ndarray, int], float]:
    best = isa.best(target.load("cpu"))
    function = compile.load(compile.compile_c(best.text() + _PEAK, best.flags)).qcc_peak
    function.restype, function.argtypes = ctypes.c_double, [ctypes.c_void_p, ctypes.c_long]
    return lambda x, count: function(x.ctypes.data, count)


def peak_gflops() -> float:
    """10^9 float32 operations a second of one thread, from registers."""
    x, count = np.full(32, 0.5, np.float32), 100_000
    begin = time.perf_counter()
    _peak_function()(x, count)
    return count * 12 * 32 / (time.perf_counter() - begin) / 1e9


def rows(tasks: Sequence[Task], rounds: int, threads: Sequence[int]) -> Iterator[dict[str, Any]]:
    """A row for each task and number of threads; microseconds of one attention. Any: JSON."""
    buffer = probe.ReadBuffer.of(256 << 20)
    for count in threads:
        for task in tasks:
            made = checked(task, count)
            times, limits = {name: list[float]() for name in made}, list[float]()
            for index in range(rounds + 1):
                limits.append(probe.read_gb_s(count, buffer) if task.cold else count * peak_gflops())
                for name in list(made)[:: 1 if index % 2 else -1]:
                    run, copies, _ = made[name]
                    if count > 1 and not task.cold:
                        run()  # which wakes its threads
                    begin = time.perf_counter()
                    run()
                    times[name].append((time.perf_counter() - begin) / copies)
                    time.sleep(REST_SECONDS if count > 1 else 0)
            us = {name: [1e6 * float(t) for t in np.percentile(each[1:], [10, 50, 90])] for name, each in times.items()}
            rate = (task.bytes if task.cold else task.flops) / us["qcc"][1] / 1e3
            limit = float(np.median(limits))
            yield {
                "part": task.part, "task": str(task), "threads": count, "us": us, "rate": rate, "limit": limit,
                "unit": "GB/s" if task.cold else "GFLOPS", "share": rate / limit,
                "ratio": min(m for name, (_, m, _) in us.items() if name != "qcc") / us["qcc"][1],
            }  # fmt: skip


def checked(task: Task, threads: int) -> dict[str, tuple[Run, int, np.ndarray]]:
    """All sides that can compute a task, whose results are alike."""
    made = dict[str, tuple[Run, int, np.ndarray]]()
    for name, side in SIDES.items():
        try:
            made[name] = side(task, threads)
        except Exception as error:  # theirs differ from library to library
            if name == "qcc":
                raise
            print(f"{task}: {name} cannot: {str(error).splitlines()[0][:100]}", flush=True)
            continue
        off = float(np.abs(made[name][2].astype(np.float64) - made["qcc"][2]).max())
        if not off <= LARGEST_ERROR["float16" if name.endswith("f16") else "float32"]:
            raise SystemExit(f"{task}: {name} differs by {off:.1e}")
    return made


def show(row: dict[str, Any]) -> str:
    """A row as a person reads it. Any: JSON."""
    sides = [f"{name} {m:.4g} ({low:.4g} to {high:.4g})" for name, (low, m, high) in row["us"].items()]
    missed = "" if row["ratio"] >= REACH else "  MISS"
    rate = f"{row['rate']:.1f} {row['unit']}, {row['share']:.0%} of {row['limit']:.1f}"
    return f"{row['task']}, {row['threads']} threads: {', '.join(sides)} us; {rate}; {row['ratio']:.2f}x{missed}"


def main() -> None:
    """Measure, print a line each, and write the results."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--rounds", type=int, default=15)
    parser.add_argument("--threads", default="1,2")
    parser.add_argument("--only", default="", help="tasks whose words hold this")
    parser.add_argument("--json", type=Path, default=RESULTS / "cpu_attention.json", help="write the result here")
    options = parser.parse_args()
    host = target.load("cpu")
    threads = [int(t) for t in options.threads.split(",") if int(t) <= host.cores]
    found = list[dict[str, Any]]()
    for row in rows([t for t in TASKS if options.only in str(t)], options.rounds, threads):
        found.append(row)
        print(show(row), flush=True)
    result = {
        "machine": f"{host.machine}, {host.cores} cores, {isa.best(host).summary}",
        "python": platform.python_version(),
        "packages": {name: version(name) for name in ("numpy", "onnxruntime", "torch")},
        "rounds": options.rounds,
        "reach": REACH,
        "rows": found,
    }
    options.json.write_text(json.dumps(result, indent=1) + "\n")


if __name__ == "__main__":
    main()
