"""Statistics of activations, by running the float network on samples: histograms, channel peaks, second moments.

Values are known by name across rewriting: the node that computes them, or the input of the network.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence

import numpy as np
from xdsl.ir import BlockArgument, OpResult, SSAValue

from qcc.ir import types
from qcc.ir.dialects.graph_op import GraphOp
from qcc.ir.dialects.onnx import OnnxOp
from qcc.ir.errors import BadInput
from qcc.ir.execute import Reference
from qcc.ir.program import Program
from qcc.ir.rewrite import array_of

from .observers.statistics import Histogram

Statistics = dict[str, Histogram]


def key_of(value: SSAValue) -> str:
    """The name of a value that stays the same while the graph around it is rewritten."""
    if isinstance(value, BlockArgument):
        return f"input:{value.index}"
    assert isinstance(value, OpResult) and isinstance(value.owner, GraphOp)
    return f"{value.owner.node}#{value.index}"


Progress = Callable[[int, int], None]
Samples = Sequence[Mapping[str, np.ndarray]]


def calibrate(
    program: Program, samples: Samples, *, binned: bool = True, threads: int = 0, progress: Progress | None = None
) -> Statistics:
    """Statistics of the computed float values of the main block over all samples.

    Without bins where only ranges are read. `BadInput` where there are no samples.
    """
    values = _candidates(program)
    statistics = {key_of(v): Histogram(key_of(v), binned) for v in values}
    for value, array in _values_of(program, values, samples, threads, progress):
        if array.size:
            statistics[key_of(value)].update(array)
    return statistics


def channel_peaks(
    program: Program, samples: Samples, *, threads: int = 0, progress: Progress | None = None
) -> dict[str, np.ndarray]:
    """The largest magnitude in each channel (last axis) of every operand of a linear layer: float32 [K], by value."""
    peaks: dict[str, np.ndarray] = {}
    for value, array in _values_of(program, linear_inputs(program), samples, threads, progress):
        rows = np.abs(array.reshape(-1, array.shape[-1])).max(axis=0, initial=0.0)
        key = key_of(value)
        peaks[key] = np.maximum(peaks[key], rows) if key in peaks else rows
    return peaks


def hessians(
    program: Program, samples: Samples, *, threads: int = 0, progress: Progress | None = None
) -> dict[str, np.ndarray]:
    """`X^T X / rows` of every operand X [rows, K] of a linear layer: float64 [K, K], by value."""
    sums: dict[str, np.ndarray] = {}
    rows: dict[str, int] = {}
    for value, array in _values_of(program, linear_inputs(program), samples, threads, progress):
        x = array.reshape(-1, array.shape[-1]).astype(np.float32, copy=False)
        key = key_of(value)
        product = (x.T @ x).astype(np.float64)
        sums[key] = sums[key] + product if key in sums else product
        rows[key] = rows.get(key, 0) + len(x)
    return {key: total / max(1, rows[key]) for key, total in sums.items()}


def linear_inputs(program: Program) -> list[SSAValue]:
    """The computed values that MatMul and Gemm multiply with constant weights of rank 2."""
    found: dict[SSAValue, None] = {}
    for op in program.body.ops:
        if isinstance(op, OnnxOp) and op.op_type in ("MatMul", "Gemm") and not op.integer("transA"):
            x, weight = op.operands[0], array_of(op.operands[1], program)
            if weight is not None and weight.ndim == 2 and array_of(x, program) is None and _is_float(x):
                found[x] = None
    return list(found)


def _values_of(
    program: Program, values: list[SSAValue], samples: Samples, threads: int, progress: Progress | None
) -> Iterator[tuple[SSAValue, np.ndarray]]:
    """Every value on every sample, from runs of the float program."""
    if not samples:
        raise BadInput("no calibration samples were given", hint="pass --calibration PATH")
    if not values:
        return
    reference = Reference(program, values, threads=threads)
    for index, sample in enumerate(samples):
        yield from zip(values, reference.fetch(sample), strict=True)
        if progress is not None:
            progress(index + 1, len(samples))


def _candidates(program: Program) -> list[SSAValue]:
    values: list[SSAValue] = [a for a in program.body.args if _is_float(a)]
    for op in program.body.ops:
        if isinstance(op, GraphOp) and op.node and op.name != "onnx.Constant":
            values.extend(r for r in op.results if _is_float(r) and r.first_use is not None)
    return values


def _is_float(value: SSAValue) -> bool:
    return types.schema_string(value.type) == "tensor(float)"
