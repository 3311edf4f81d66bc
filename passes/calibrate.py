"""Ranges of activations: run the float network on samples, and keep a histogram of every value that may be quantized.

Values are known by name across rewriting: the node that computes them, or the input of the network.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence

import numpy as np
from xdsl.ir import BlockArgument, OpResult, SSAValue

from qcc.ir import types
from qcc.ir.dialects.graph_op import GraphOp
from qcc.ir.errors import BadInput
from qcc.ir.execute import Reference
from qcc.ir.program import Program

from .observers.statistics import Histogram

Statistics = dict[str, Histogram]


def key_of(value: SSAValue) -> str:
    """The name of a value that stays the same while the graph around it is rewritten."""
    if isinstance(value, BlockArgument):
        return f"input:{value.index}"
    assert isinstance(value, OpResult) and isinstance(value.owner, GraphOp)
    return f"{value.owner.node}#{value.index}"


def calibrate(
    program: Program,
    samples: Sequence[Mapping[str, np.ndarray]],
    *,
    binned: bool = True,
    threads: int = 0,
    progress: Callable[[int, int], None] | None = None,
) -> Statistics:
    """Statistics of the computed float values of the main block over all samples.

    Without bins where only ranges are read. `BadInput` where there are no samples.
    """
    if not samples:
        raise BadInput("no calibration samples were given", hint="pass --calibration PATH")
    values = _candidates(program)
    statistics = {key_of(v): Histogram(key_of(v), binned) for v in values}
    reference = Reference(program, values, threads=threads)
    for index, sample in enumerate(samples):
        for value, array in zip(values, reference.fetch(sample), strict=True):
            if array.size:
                statistics[key_of(value)].update(array)
        if progress is not None:
            progress(index + 1, len(samples))
    return statistics


def _candidates(program: Program) -> list[SSAValue]:
    values: list[SSAValue] = [a for a in program.body.args if _is_float(a)]
    for op in program.body.ops:
        if isinstance(op, GraphOp) and op.node and op.name != "onnx.Constant":
            values.extend(r for r in op.results if _is_float(r) and r.first_use is not None)
    return values


def _is_float(value: SSAValue) -> bool:
    return types.schema_string(value.type) == "tensor(float)"
