"""Small networks for tests, written as ONNX text with their weights given as arrays."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import onnx
from numpy.typing import NDArray
from onnx import ModelProto, numpy_helper

from qcc.frontend import onnx_file
from qcc.ir.execute import run
from qcc.ir.program import Program
from qcc.ir.rewrite import Pass, ProgramContext
from qcc.ir.verify import compare
from qcc.passes import pipeline

Array = NDArray[Any]


def model(text: str, *, opset: int = 21, **weights: Array) -> ModelProto:
    """`model("(float[N,4] x) => (float[N,2] y) { y = MatMul(x, w) }", w=array)`; a node is named `[name] y = ...`."""
    proto = onnx.parser.parse_model(f'<ir_version: 10, opset_import: ["": {opset}, "com.microsoft": 1]> main {text}')
    proto.graph.initializer.extend(numpy_helper.from_array(np.asarray(a), name) for name, a in weights.items())
    return proto


def program(text: str, *, opset: int = 21, **weights: Array) -> Program:
    """The network as a program."""
    return onnx_file.from_model(model(text, opset=opset, **weights))


def normal(*shape: int, seed: int = 0, scale: float = 1.0) -> Array:
    """Standard normal float32 numbers times `scale`."""
    return (np.random.default_rng(seed).standard_normal(shape) * scale).astype(np.float32)


def names(program: Program) -> list[str]:
    """The operations of the main block without their dialect, weights and constants left out."""
    skipped = ("q.weight", "onnx.Constant", "func.return")
    return [op.name.removeprefix("onnx.") for op in program.body.ops if op.name not in skipped]


def reasons(program: Program, action: str) -> list[str]:
    """Why nodes were decided upon as `action` says, such as `skipped` or `fold_affine declined`."""
    return [d.reason for d in program.decisions if d.action == action]


def rewritten(program: Program, *passes: Pass, context: ProgramContext | None = None) -> Program:
    """A copy of the program after some passes, verified after each."""
    out = program.clone()
    ctx = context or ProgramContext()
    ctx.program = out
    pipeline.run(list(passes), out, ctx)
    return out


def agreement(left: Program, right: Program, feeds: Mapping[str, Array] | Sequence[Mapping[str, Array]]) -> float:
    """How well the second program computes what the first does: decibels on the given inputs."""
    samples = [feeds] if isinstance(feeds, Mapping) else feeds
    return compare([run(left, f) for f in samples], [run(right, f) for f in samples]).sqnr_db
