"""The fused attention of ONNX Runtime against the plain form of `q.attention`, which is its definition, in one run.

    python -m benchmarks.attention [--rounds 30] [--json FILE]

One layer of the shape of Gemma 3 270M (4 heads of 256 on one of keys and values) and one of a Llama of 1B (32 heads of
64 on 8), on one thread: a prefill of 128 tokens, and decoding one token behind 127, 1023 and 4095. The fused form
appends to its cache in place; the plain one gives a longer copy, as ONNX must. Numbers are compared before timing.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
from onnxruntime import InferenceSession, OrtValue, SessionOptions

from qcc.api.bench import interleave, summarize
from qcc.backends.onnxruntime.attention import lower_attention
from qcc.ir import target
from qcc.ir.emit_onnx import emit
from qcc.ir.expand import expand
from qcc.ir.program import Program
from qcc.ir.text import parse
from qcc.ir.weights import WeightStore

RESULTS = Path(__file__).parent / "results"
SHAPES = {"Gemma 3 270M": (4, 1, 256), "Llama 1B": (32, 8, 64)}
STEPS = ((128, 0), (1, 127), (1, 1023), (1, 4095))
"""New tokens, and tokens in the cache."""


def layer(heads: int, kv_heads: int, size: int) -> Program:
    """A network of one attention."""
    q, kv, cache = f"tensor<1x?x{heads * size}xf32>", f"tensor<1x?x{kv_heads * size}xf32>", f"1x{kv_heads}x?x{size}xf32"
    cache = f"tensor<{cache}>"
    names = {"q": q, "k": kv, "v": kv, "past_key": cache, "past_value": cache, "total": "tensor<i32>"}
    arguments = ", ".join(f'%{name}: {type_} {{onnx.name = "{name}"}}' for name, type_ in names.items())
    results = ", ".join(f'{t} {{onnx.name = "{n}"}}' for n, t in (("y", q), ("key", cache), ("value", cache)))
    operands = ", ".join(f"%{n}" for n in names)
    types = f"{q}, {cache}, {cache}"
    attributes = f"heads = {heads} : i64, kv_heads = {kv_heads} : i64, scale = {size**-0.5:e} : f32"
    text = f"""builtin.module attributes {{onnx.opset = {{"" = 23 : i64, com.microsoft = 1 : i64}}}} {{
  func.func @main({arguments}) -> ({results}) {{
    %y, %key, %value = q.attention "attention"({operands}) {{{attributes}}} : {types}
    func.return %y, %key, %value : {types}
  }}
}}"""
    return Program(parse(text), WeightStore())


def session(program: Program) -> InferenceSession:
    """ONNX Runtime with all its optimizations, on one thread."""
    options = SessionOptions()
    options.intra_op_num_threads = 1
    return InferenceSession(emit(program).proto.SerializeToString(), options, providers=["CPUExecutionProvider"])


def measure(shape: tuple[int, int, int], new: int, past: int, rounds: int) -> dict[str, Any]:
    """Milliseconds of both forms: median, p10, p90. Any: JSON."""
    heads, kv_heads, size = shape
    rng = np.random.default_rng(0)
    feeds = {
        name: rng.normal(size=(1, new, n * size)).astype(np.float32)
        for name, n in zip("qkv", (heads, kv_heads, kv_heads), strict=True)
    }
    feeds |= {n: rng.normal(size=(1, kv_heads, past, size)).astype(np.float32) for n in ("past_key", "past_value")}
    feeds["total"] = np.array(new + past, np.int32)
    plain, fused = session(expand(layer(*shape))), layer(*shape)
    lower_attention(fused)
    in_place = session(fused)
    binding = in_place.io_binding()
    y = np.zeros((1, new, heads * size), np.float32)
    for name in "qkv":
        binding.bind_ortvalue_input(name, OrtValue.ortvalue_from_numpy(feeds[name]))
    binding.bind_ortvalue_input("total", OrtValue.ortvalue_from_numpy(feeds["total"]))
    for name, out in (("past_key", "key"), ("past_value", "value")):
        buffer = np.zeros((1, kv_heads, new + past, size), np.float32)
        buffer[:, :, :past] = feeds[name]
        shared = OrtValue.ortvalue_from_numpy(buffer)
        binding.bind_ortvalue_input(name, shared)
        binding.bind_ortvalue_output(out, shared)
    binding.bind_ortvalue_output("y", OrtValue.ortvalue_from_numpy(y))
    in_place.run_with_iobinding(binding)
    np.testing.assert_allclose(y, plain.run(["y"], feeds)[0], rtol=1e-4, atol=1e-5)
    sides: dict[str, Callable[[], object]] = {
        "plain": lambda: plain.run(None, feeds),
        "fused": lambda: in_place.run_with_iobinding(binding),
    }
    times = {name: summarize(seconds) for name, seconds in interleave(sides, rounds).items()}
    return {name: [t.p10, t.median, t.p90] for name, t in times.items()}


def main() -> None:
    """Run, print a line each, and write the results."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--rounds", type=int, default=30)
    parser.add_argument("--json", type=Path, default=RESULTS / "attention.json", help="write the result here")
    options = parser.parse_args()
    rows: list[dict[str, Any]] = []
    for name, shape in SHAPES.items():
        for new, past in STEPS:
            found = measure(shape, new, past, options.rounds)
            rows.append({"shape": name, "new": new, "past": past, **found})
            ratio = found["plain"][1] / found["fused"][1]
            times = "  ".join(f"{n} {t[1]:7.3f} ms ({t[0]:.3f} to {t[2]:.3f})" for n, t in found.items())
            print(f"{name:13} {new:4} new behind {past:4}  {times}  {ratio:.1f}x")
    cpu = target.load("cpu")
    result = {"machine": f"{cpu.machine}, {cpu.cores} cores", "rounds": options.rounds, "rows": rows}
    options.json.write_text(json.dumps(result, indent=1) + "\n")


if __name__ == "__main__":
    main()
