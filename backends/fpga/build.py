"""Build the FPGA part of an artifact: `model.onnx` (QDQ) and `model.qonnx.onnx` (QONNX), each whole in one file.

Tool chains read the files, so weights lie inside them: some do not follow external data. The hardware itself is made by
the vendor's tools; what is checked here is the arithmetic, by ONNX Runtime on the QDQ form.
"""

from __future__ import annotations

from pathlib import Path

from onnx import ModelProto
from xdsl.dialects.builtin import StringAttr

from qcc.ir.dialects.q import Conv, Linear
from qcc.ir.emit_onnx import emit
from qcc.ir.errors import NotSupported
from qcc.ir.kernel_task import Assignment, Choice, KernelTask, Picker, assign, cheapest
from qcc.ir.program import Program
from qcc.ir.target import Target
from qcc.passes import schemes

from ..onnxruntime.kernels import natural
from ..onnxruntime.run import MODEL
from ..onnxruntime.tasks import task_of
from ..select import Built, Samples
from .lower import lower
from .opset import at_opset
from .qonnx import to_qonnx
from .shapes import add_shapes

DEVICES = ("fpga",)
QONNX = "model.qonnx.onnx"
_LARGEST = (1 << 31) - (1 << 20)
"""What protobuf holds, with room for the graph around the weights."""


def obstacle(scheme: str, target: Target) -> str:
    """Why the form cannot hold a scheme; empty where it can."""
    del target
    found = schemes.load(scheme)
    if found.is_fixed_point:
        return ""
    return "the form holds 8-bit weights, activations and biases, each tensor with one power of two as its scale"


def resolve(program: Program, target: Target, pick: Picker = cheapest) -> list[Assignment]:
    """One way to compute each layer: integers and shifts, weights row by row."""
    tasks = [(op, task_of(op, target)) for op in program.module.walk() if isinstance(op, Conv | Linear)]
    return assign(tasks, _offers, pick)


def _offers(task: KernelTask) -> list[Choice]:
    return [Choice("fixed_point", natural(len(task.weight)), reason="integer sums, scaled by a shift")]


def build(
    program: Program, target: Target, folder: Path, weights: str, pick: Picker = cheapest, samples: Samples = ()
) -> Built:
    """Write both models and the weights file that `module.mlir` reads; codes lie row by row, one a byte.

    Raises `NotSupported` where a model would be larger than one file can be.
    """
    del samples
    assignments = resolve(program, target, pick)
    if program.weights.bytes > _LARGEST // 4:
        raise NotSupported(
            "the weights do not fit into one ONNX file", hint="the fixed-point form is for small networks"
        )
    for made in assignments:
        made.op.properties["kernel"] = StringAttr(made.choice.kernel)
    lowered = lower(program)
    emitted = emit(lowered.program)
    qdq = at_opset(emitted.embed(lowered.program.weights))
    add_shapes(qdq, emitted.value_names)
    (folder / MODEL).write_bytes(qdq.SerializeToString())
    (folder / QONNX).write_bytes(to_qonnx(_copy(qdq)).SerializeToString())
    program.weights.save(folder / weights)
    names = emitted.value_names
    values = {node: names[value] for node, value in lowered.results.items() if value in names}
    return Built(assignments, values, (MODEL,), ("cpu",), ("fpga",))


def _copy(model: ModelProto) -> ModelProto:
    other = ModelProto()
    other.CopyFrom(model)
    return other
