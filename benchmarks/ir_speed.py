"""Seconds to import, print, parse and verify a graph of 3,000 nodes, each the best of some rounds. Reach: 6 s in all.

python -m benchmarks.ir_speed [--nodes 3000] [--rounds 3] [--json FILE]
"""

from __future__ import annotations

import argparse
import json
import time
from collections.abc import Callable
from pathlib import Path
from typing import TypeVar

import numpy as np
from onnx import ModelProto, TensorProto, helper, numpy_helper

from qcc.frontend.onnx_file import from_model
from qcc.ir import infer
from qcc.ir.program import Program
from qcc.ir.text import parse, show
from qcc.ir.weights import WeightStore

RESULTS = Path(__file__).parent / "results"

T = TypeVar("T")


def network(nodes: int) -> ModelProto:
    """Residual blocks of Conv, Relu, Conv, Add, Relu with weights of their own, on [N, 32, H, W]."""
    rng = np.random.default_rng(0)
    made, weights, value, index = [], [], "x", 0
    while len(made) + 5 <= nodes:
        names = [f"v{index}_{i}" for i in range(5)]
        for i in (0, 2):
            weights.append(numpy_helper.from_array(rng.normal(size=(32, 32, 3, 3)).astype(np.float32), f"w{index}_{i}"))
            weights.append(numpy_helper.from_array(rng.normal(size=32).astype(np.float32), f"b{index}_{i}"))
        pads = {"pads": [1, 1, 1, 1], "kernel_shape": [3, 3]}
        made.append(
            helper.make_node("Conv", [value, f"w{index}_0", f"b{index}_0"], [names[0]], name=f"conv{index}a", **pads)
        )
        made.append(helper.make_node("Relu", [names[0]], [names[1]], name=f"relu{index}a"))
        made.append(
            helper.make_node("Conv", [names[1], f"w{index}_2", f"b{index}_2"], [names[2]], name=f"conv{index}b", **pads)
        )
        made.append(helper.make_node("Add", [names[2], value], [names[3]], name=f"add{index}"))
        made.append(helper.make_node("Relu", [names[3]], [names[4]], name=f"relu{index}b"))
        value, index = names[4], index + 1
    x = helper.make_tensor_value_info("x", TensorProto.FLOAT, ["N", 32, "H", "W"])
    y = helper.make_tensor_value_info(value, TensorProto.FLOAT, ["N", 32, "H", "W"])
    return helper.make_model(
        helper.make_graph(made, "g", [x], [y], weights), opset_imports=[helper.make_opsetid("", 21)], ir_version=10
    )


def timed(call: Callable[[], T], rounds: int) -> tuple[float, T]:
    """The least seconds of a call, and what it gave."""
    best, result = float("inf"), call()
    for _ in range(rounds):
        begin = time.perf_counter()
        result = call()
        best = min(best, time.perf_counter() - begin)
    return best, result


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--nodes", type=int, default=3000)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--json", type=Path, default=RESULTS / "ir_speed.json", help="write the result here")
    options = parser.parse_args()
    raw = network(options.nodes).SerializeToString()

    def read() -> Program:
        infer.forget()  # every round asks the shape inference anew
        return from_model(ModelProto.FromString(raw), WeightStore())

    imported, program = timed(read, options.rounds)
    printed, text = timed(lambda: show(program.module), options.rounds)
    parsed, module = timed(lambda: parse(text, verify=False), options.rounds)

    def verify() -> None:
        infer.forget()
        module.verify()

    verified, _ = timed(verify, options.rounds)
    same = show(module) == text
    seconds = {"import": imported, "print": printed, "parse": parsed, "verify": verified}
    for name, value in seconds.items():
        print(f"{name:8} {value:6.2f} s")
    round_trip = "exact" if same else "DIFFERS"
    print(
        f"{'all':8} {sum(seconds.values()):6.2f} s   "
        f"{options.nodes} nodes, {len(text):,} characters, round trip {round_trip}"
    )
    if options.json:
        result = {"nodes": options.nodes, "seconds": seconds, "total": sum(seconds.values()), "round_trip": same}
        options.json.parent.mkdir(parents=True, exist_ok=True)
        options.json.write_text(json.dumps(result, indent=1) + "\n")


if __name__ == "__main__":
    main()
