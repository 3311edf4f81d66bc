"""Row kernels beside ONNX Runtime and torch on one thread: normalizations, softmax and gated activations.

Each side is called many times a round and the sides take turns in a round, in both orders; the figure is the time of a
call. All of them read the same inputs each time, which the second or third cache holds, as it does between two layers.
ONNX Runtime runs a session of the one operation, torch its function, both into memory of their own. Results are
compared in float64 before anything is timed.
"""

from __future__ import annotations

import argparse
import json
import platform
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np
import torch
from onnx import NodeProto, TensorProto, helper
from onnxruntime import InferenceSession, OrtValue
from torch.nn import functional

from benchmarks.peers.onnxruntime_matmul import options_for
from qcc.backends.native import isa, rows
from qcc.backends.native.rows_spec import RowsSpec
from qcc.ir import target

RESULTS = Path(__file__).parent / "results"
REACH, REACH_ROWS = 1.0, 128
"""The better of the two over ours, from this number of rows on."""
RUN_SECONDS = 2e-3
EPSILON = 1e-5
Run = Callable[[], object]
Tensors = dict[str, torch.Tensor]


@dataclass(frozen=True)
class Work:
    """An operation on [m, k], as an expression, as nodes of ONNX and as torch's function."""

    name: str
    expression: str
    nodes: Callable[[int], list[NodeProto]]
    torch: Callable[[Tensors, int], torch.Tensor]
    opset: int = 17


def _node(op: str, inputs: str, output: str = "result", **attributes: Any) -> NodeProto:
    """Any: of the types that ONNX takes."""
    return helper.make_node(op, inputs.split(), [output], **attributes)


def _swiglu(k: int) -> list[NodeProto]:
    return [_node("Sigmoid", "x", "s"), _node("Mul", "x s", "a"), _node("Mul", "a y")]


LAYER_NORM = Work(
    "LayerNorm", f"layer_norm(x, w[k], b[k], {EPSILON})",
    lambda k: [_node("LayerNormalization", "x w b", axis=-1, epsilon=EPSILON)],
    lambda t, k: functional.layer_norm(t["x"], (k,), t["w"], t["b"], EPSILON),
)  # fmt: skip
RMS_NORM = Work(
    "RMSNorm", f"rms_norm(x, w[k], {EPSILON})",
    lambda k: [_node("RMSNormalization", "x w", axis=-1, epsilon=EPSILON)],
    lambda t, k: functional.rms_norm(t["x"], (k,), t["w"], EPSILON), 23,
)  # fmt: skip
GELU = Work("GELU", "gelu(x)", lambda k: [_node("Gelu", "x")], lambda t, k: functional.gelu(t["x"]), 20)
GELU_TANH = Work(
    "GELU (tanh)", "gelu_tanh(x)",
    lambda k: [_node("Gelu", "x", approximate="tanh")],
    lambda t, k: functional.gelu(t["x"], approximate="tanh"), 20,
)  # fmt: skip
SWIGLU = Work("SwiGLU", "silu(x) * y", _swiglu, lambda t, k: functional.silu(t["x"]) * t["y"])
SOFTMAX = Work(
    "Softmax", "softmax(x)", lambda k: [_node("Softmax", "x", axis=-1)], lambda t, k: functional.softmax(t["x"], -1)
)
WORKS = (
    (LAYER_NORM, 128, 384), (LAYER_NORM, 1024, 384), (RMS_NORM, 1, 640), (RMS_NORM, 128, 640), (GELU, 128, 1536),
    (GELU_TANH, 128, 1536), (SWIGLU, 128, 2048), (SOFTMAX, 1536, 128),
)  # fmt: skip


def inputs_of(work: Work, m: int, k: int) -> dict[str, np.ndarray]:
    """Random numbers for the inputs that an operation has."""
    rng, spec = np.random.default_rng(k), spec_of(work, k)
    shapes = {"tensor": (m, k), "column": (k,)}
    return {node.name: rng.standard_normal(shapes[node.op]).astype(np.float32) for node in spec.inputs}


def spec_of(work: Work, k: int) -> RowsSpec:
    """Ours."""
    return RowsSpec.parse(f"rows {k}: f32({work.expression})")


def ours(work: Work, k: int, inputs: dict[str, np.ndarray]) -> tuple[Run, np.ndarray]:
    """What runs it, and where its result lies."""
    call = rows.build(spec_of(work, k), isa.best(target.load("cpu"))).prepared(inputs)
    return call, call.results[0]


def onnxruntime(work: Work, k: int, inputs: dict[str, np.ndarray]) -> tuple[Run, np.ndarray]:
    """A session of the one operation."""
    given = [helper.make_tensor_value_info(n, TensorProto.FLOAT, a.shape) for n, a in inputs.items()]
    result = helper.make_tensor_value_info("result", TensorProto.FLOAT, inputs["x"].shape)
    model = helper.make_model(
        helper.make_graph(work.nodes(k), "one", given, [result]),
        opset_imports=[helper.make_opsetid("", work.opset)],
        ir_version=10,
    )
    session = InferenceSession(model.SerializeToString(), options_for(1), providers=["CPUExecutionProvider"])
    binding, out = session.io_binding(), OrtValue.ortvalue_from_numpy(np.zeros_like(inputs["x"]))
    held = {name: OrtValue.ortvalue_from_numpy(a) for name, a in inputs.items()}
    for name, value in held.items():
        binding.bind_ortvalue_input(name, value)
    binding.bind_ortvalue_output("result", out)

    def run(held: object = (held, out)) -> None:
        session.run_with_iobinding(binding)

    run()
    return run, out.numpy()


def torch_function(work: Work, k: int, inputs: dict[str, np.ndarray]) -> tuple[Run, np.ndarray]:
    """torch's function, whose results its allocator puts where the last one was."""
    tensors = {name: torch.from_numpy(a) for name, a in inputs.items()}
    return lambda: work.torch(tensors, k), work.torch(tensors, k).numpy()


SIDES: dict[str, Callable[[Work, int, dict[str, np.ndarray]], tuple[Run, np.ndarray]]] = {
    "qcc": ours,
    "ort": onnxruntime,
    "torch": torch_function,
}


def checked(work: Work, m: int, k: int) -> tuple[dict[str, Run], int]:
    """All sides, whose results are the same but for rounding, and the bytes that a call reads and writes."""
    inputs, runs, results = inputs_of(work, m, k), dict[str, Run](), dict[str, np.ndarray]()
    for name, side in SIDES.items():
        runs[name], results[name] = side(work, k, inputs)
        runs[name]()
    exact = work.torch({n: torch.from_numpy(a.astype(np.float64)) for n, a in inputs.items()}, k).numpy()
    for name, found in results.items():
        if not np.allclose(found, exact, rtol=2e-5, atol=2e-6):
            raise SystemExit(f"{work.name} [{m}, {k}]: {name} is off by {np.abs(found - exact).max()}")
    return runs, sum(a.nbytes for a in inputs.values()) + exact.size * 4


def measured(rounds: int) -> Iterator[dict[str, Any]]:
    """A row for each operation. Any: JSON."""
    for work, m, k in WORKS:
        runs, size = checked(work, m, k)
        calls = {
            name: max(1, round(RUN_SECONDS / min(seconds(run, 1) for _ in range(5)))) for name, run in runs.items()
        }
        found = {name: list[float]() for name in runs}
        for index in range(rounds):
            for name in list(runs)[:: 1 if index % 2 else -1]:
                found[name].append(seconds(runs[name], calls[name]))
        us = {name: [float(t) * 1e6 for t in np.percentile(each, [10, 50, 90])] for name, each in found.items()}
        yield {
            "op": work.name, "m": m, "k": k, "us": us, "gbs": {n: size / u[1] / 1e3 for n, u in us.items()},
            "ratio": min(u[1] for n, u in us.items() if n != "qcc") / us["qcc"][1],
        }  # fmt: skip


def seconds(run: Run, calls: int) -> float:
    """What a call takes, of several."""
    begin = time.perf_counter()
    for _ in range(calls):
        run()
    return (time.perf_counter() - begin) / calls


def show(row: dict[str, Any]) -> str:
    """A row as a person reads it. Any: JSON."""
    sides: Sequence[str] = [
        f"{name} {mid:.4g} us ({low:.4g} to {high:.4g}), {row['gbs'][name]:.1f} GB/s"
        for name, (low, mid, high) in row["us"].items()
    ]
    missed = "  MISS" if row["ratio"] < REACH and row["m"] >= REACH_ROWS else ""
    return f"{row['op']} {row['m']} x {row['k']}: {'; '.join(sides)}; {row['ratio']:.2f}x{missed}"


def main() -> None:
    """Measure, print a line each, and write the results."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--rounds", type=int, default=40)
    parser.add_argument("--json", type=Path, default=RESULTS / "cpu_rows.json", help="write the result here")
    options = parser.parse_args()
    torch.set_num_threads(1)
    host, found = target.load("cpu"), list[dict[str, Any]]()
    with torch.inference_mode():
        for row in measured(options.rounds):
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
