"""The definition itself: weights are stored as codes and decoded by standard operators, which ONNX Runtime folds.

It does so when it loads: small on disk, float in memory, float speed. With integer activations the same numbers are
computed without integer kernels.
"""

from __future__ import annotations

from xdsl.ir import SSAValue

from qcc.ir.dialects.q import QuantizedOp
from qcc.ir.expand import expand_one
from qcc.ir.kernel_task import Choice, KernelTask

from ..lower import Lowering
from ..speed import Speed
from . import natural


def offers(task: KernelTask, speed: Speed) -> list[Choice]:
    """One choice for any format."""
    size = 1
    for extent in task.weight:
        size *= extent
    table = task.op == "q.embedding"
    cost = (10.0 if table else 1.0) * speed.decoded_matmul * size
    return [
        Choice(
            "expansion",
            natural(len(task.weight)),
            None,
            (),
            cost,
            "decoded when the model is loaded: float speed and memory",
        )
    ]


def lower(op: QuantizedOp, choice: Choice, lowering: Lowering) -> SSAValue:
    """The expansion of `qcc.ir.expand`."""
    del choice
    return expand_one(op, lowering.program)
