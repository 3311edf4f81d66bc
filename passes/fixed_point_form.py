"""Which nodes an int8 fixed-point flow holds: every float tensor around them becomes codes with one power of two each.

The operators are those that DPUs run in integers (Vitis AI UG1414, "Currently Supported Operators"; PG338, "Features").
Limits on sizes are the matter of the flow's own compiler, and so is what a flow lacks of them: docs/fpga.md.
"""

from __future__ import annotations

from collections.abc import Callable

from xdsl.ir import SSAValue

from qcc.ir import types
from qcc.ir.dialects.onnx import OnnxOp
from qcc.ir.program import Program
from qcc.ir.rewrite import array_of, rank_of, scalar_of

from .selection import constant_weight

LAYERS = ("Conv", "ConvTranspose", "MatMul", "Gemm")
"""Operators with a weight: where fixed point begins."""
JOINED = ("Relu", "Clip", "LeakyRelu")
"""Activation functions that run behind the sum of a layer or an addition, before it is rounded to codes."""
SHARING = (
    "MaxPool",
    "AveragePool",
    "GlobalAveragePool",
    "Concat",
    "Reshape",
    "Flatten",
    "Transpose",
    "Squeeze",
    "Unsqueeze",
    "Slice",
    "Split",
    "Pad",
    "Resize",
)
"""Operators whose operands and results have one scale: they move codes, or average them by shifts."""
_MIXING = ("Add", "Mul", "Concat")
"""Operators of several data operands; all others have one, the first."""
_OTHERS = ("Add", "Mul", "HardSigmoid", "HardSwish")


def obstacle(op: OnnxOp, program: Program) -> str:
    """Why the form cannot hold a node; empty where it can."""
    if op.domain or op.op_type not in LAYERS + JOINED + SHARING + _OTHERS:
        return f"the fixed-point form has no {op.op_type}"
    if op.parent is not program.body:
        return "it stands in the branch of a control operator"
    tensors = [*data_operands(op), op.results[0]]
    if any(types.schema_string(v.type) != "tensor(float)" for v in tensors):
        return "it computes other numbers than float32"
    if any(rank_of(v) is None for v in tensors):
        return "the rank of its tensors is unknown"
    check = _CHECKS.get(op.op_type)
    return check(op, program) if check is not None else ""


def data_operands(op: OnnxOp) -> list[SSAValue]:
    """The operands that become codes: bounds, shapes, scales and pads are parameters of the node."""
    if op.op_type in LAYERS:
        return [op.operands[0]]
    return list(op.operands) if op.op_type in _MIXING else [op.operands[0]]


def _convolution(op: OnnxOp, program: Program) -> str:
    if not constant_weight(op.slot(1), program):
        return "the weight is computed"
    if rank_of(op.operands[0]) not in (3, 4):
        return f"it convolves over {(rank_of(op.operands[0]) or 2) - 2} axes: the form has one or two"
    bias = op.slot(2)
    return "its bias is computed" if bias is not None and array_of(bias, program) is None else ""


def _linear(op: OnnxOp, program: Program) -> str:
    weight = array_of(op.operands[1], program)
    if weight is None or weight.ndim != 2:
        return "it multiplies two computed tensors" if weight is None else f"its weight has rank {weight.ndim}, not 2"
    if rank_of(op.operands[0]) != 2:
        return f"its operand has rank {rank_of(op.operands[0])}: the form multiplies matrices only"
    if op.op_type == "MatMul":
        return ""
    bias = op.slot(2)
    features = weight.shape[0] if op.integer("transB") else weight.shape[1]
    if bias is None:
        return ""
    array = array_of(bias, program)
    if array is None or array.shape not in ((features,), (1, features)):
        return "its bias is not one constant number an output feature"
    return "its bias has a factor" if op.get("beta", 1.0) != 1.0 else ""


def _elementwise(op: OnnxOp, program: Program) -> str:
    constants = [array_of(v, program) is not None for v in op.operands]
    return "both operands are constant" if all(constants) else ""


def _concat(op: OnnxOp, program: Program) -> str:
    if any(array_of(v, program) is not None for v in op.operands):
        return "it joins a constant, whose scale would be everyone's"
    return ""


def _clip(op: OnnxOp, program: Program) -> str:
    bounds = [op.slot(1), op.slot(2)]
    computed = any(b is not None and array_of(b, program) is None for b in bounds)
    return "its bounds are computed" if computed else ""


def _max_pool(op: OnnxOp, program: Program) -> str:
    del program
    return "its indices are read" if len(op.results) > 1 and op.results[1].first_use is not None else ""


def _pad(op: OnnxOp, program: Program) -> str:
    value = op.slot(2)
    zero = value is None or scalar_of(value, program) == 0.0
    return "" if op.get("mode", "constant") == "constant" and zero else "it pads with other values than zero"


def _resize(op: OnnxOp, program: Program) -> str:
    del program
    return "" if op.get("mode", "nearest") == "nearest" else "it interpolates: the form resizes by repeating"


_CHECKS: dict[str, Callable[[OnnxOp, Program], str]] = {
    "Conv": _convolution,
    "ConvTranspose": _convolution,
    "MatMul": _linear,
    "Gemm": _linear,
    "Add": _elementwise,
    "Mul": _elementwise,
    "Concat": _concat,
    "Clip": _clip,
    "MaxPool": _max_pool,
    "Pad": _pad,
    "Resize": _resize,
}
