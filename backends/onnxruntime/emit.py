"""Write a lowered program as `model.onnx` over the weights file of an artifact."""

from __future__ import annotations

from pathlib import Path

from xdsl.ir import SSAValue

from qcc.ir.emit_onnx import emit
from qcc.ir.program import Program
from qcc.ir.weights import WeightStore, locate

from .run import MODEL


def write_model(lowered: Program, program: Program, folder: Path, weights: str) -> dict[SSAValue, str]:
    """Write the model and the file `weights`, from which `module.mlir` reads as well; gives the names of its values."""
    emitted = emit(lowered)
    together = WeightStore()
    for store in (lowered.weights, program.weights):
        for name in store:
            together[name] = store[name]
    together.save(folder / weights)
    model = emitted.refer(weights, locate(folder / weights))
    (folder / MODEL).write_bytes(model.SerializeToString())
    return emitted.value_names
