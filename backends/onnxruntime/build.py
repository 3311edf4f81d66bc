"""Build the backend's part of an artifact: choose kernels, pack, lower, write."""

from __future__ import annotations

from pathlib import Path

from qcc.ir.kernel_task import Assignment, Picker, cheapest
from qcc.ir.program import Program
from qcc.ir.rewrite import ProgramContext
from qcc.ir.target import Target
from qcc.passes.pack_weights import PackWeights

from ..select import Built
from .emit import write_model
from .lower import lower
from .run import MODEL
from .tasks import choose

DEVICES = ("cpu",)


def resolve(program: Program, target: Target, pick: Picker = cheapest) -> list[Assignment]:
    """Choose a kernel for every task and resolve layouts in the IR."""
    return choose(program, target, pick)


def build(program: Program, target: Target, folder: Path, weights: str, pick: Picker = cheapest) -> Built:
    """Write `model.onnx` and the weights file into `folder`. `program` is left with layouts and packed weights."""
    assignments = resolve(program, target, pick)
    PackWeights().run(program, ProgramContext(program=program))
    lowered = lower(program)
    names = write_model(lowered.program, program, folder, weights)
    values = {node: names[value] for node, value in lowered.results.items() if value in names}
    return Built(assignments, values, (MODEL, weights))
