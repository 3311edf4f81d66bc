"""Build the backend's part of an artifact: choose kernels, pack, lower, write."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

from xdsl.ir import SSAValue

from qcc.ir import types
from qcc.ir.dialects.onnx import OnnxOp
from qcc.ir.kernel_task import Assignment, Picker, cheapest
from qcc.ir.program import Program
from qcc.ir.rewrite import ProgramContext
from qcc.ir.target import Target
from qcc.passes import schemes
from qcc.passes.pack_weights import PackWeights

from ..select import Built, Samples
from .cuda_kernels import has_kernel, version
from .emit import write_model
from .half import to_half
from .half_range import Measured, measure
from .lower import lower
from .run import MODEL, Session, write_session
from .tasks import choose, task_of

DEVICES = ("cpu", "cuda")


def obstacle(scheme: str, target: Target) -> str:
    """Fixed point is for hardware that shifts: ONNX Runtime multiplies, and finer scales cost it nothing.

    Its CUDA provider has no integer kernels for layers: no QLinearConv (microsoft/onnxruntime issues 4037 and 24807)
    and no DynamicQuantizeMatMul, so activations stay float there.
    """
    found = schemes.load(scheme)
    if found.is_fixed_point:
        return "its kernels gain nothing from powers of two as scales"
    if target.gpu is not None and found.activation:
        return "ONNX Runtime's CUDA provider has no kernels for quantized activations; take weights only"
    return ""


def resolve(program: Program, target: Target, pick: Picker = cheapest) -> list[Assignment]:
    """Choose a kernel for every task and resolve layouts in the IR."""
    return choose(program, target, pick)


def build(
    program: Program, target: Target, folder: Path, weights: str, pick: Picker = cheapest, samples: Samples = ()
) -> Built:
    """Write `model.onnx` and the weights file into `folder`. `program` is left with layouts and packed weights.

    For a GPU it is left in float16, but for what does not fit there on `samples`.
    """
    measured = measure(program, samples) if target.gpu is not None else Measured({}, finite=False)
    assignments = resolve(program, target, pick)
    if target.gpu is not None:
        to_half(program, measured.unfit)
        assignments = [replace(a, task=task_of(a.op, target)) for a in assignments]
    PackWeights().run(program, ProgramContext(program=program))
    lowered = lower(program)
    names = write_model(lowered.program, program, folder, weights)
    values = {node: names[value] for node, value in lowered.results.items() if value in names}
    if target.gpu is not None:
        _note_fallbacks(lowered.program, program)
    session = write_session(folder, Session(not lowered.fuses, target.device, finite=measured.finite))
    elsewhere = () if target.device == "cpu" else (target.device,)
    return Built(assignments, values, (MODEL, weights, session), ("cpu",), elsewhere)


def _note_fallbacks(lowered: Program, program: Program) -> None:
    """Record the operations that ONNX Runtime will compute on the CPU, with copies to it and back.

    What depends on constants alone is none of them: it is computed when the model is loaded.
    """
    fixed: set[SSAValue] = set()
    for op in lowered.body.ops:
        if not op.regions and all(v in fixed for v in op.operands):
            fixed.update(op.results)
        elif isinstance(op, OnnxOp) and not has_kernel(op):
            kinds = ", ".join(dict.fromkeys(types.schema_string(v.type) for v in op.operands))
            reason = f"the CUDA provider of ONNX Runtime {version()} has no kernel of {op.op_type} for {kinds}"
            program.decide(op.node or op.name, "on the cpu", reason)
