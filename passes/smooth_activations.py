"""`x W^T = (x / s) (W s)^T`: move outliers of single channels from activations, which share a scale, into weights.

    s_j = max|x_j|^a / max|W_j|^(1-a),   a = 3/4

(Xiao et al. 2022, "SmoothQuant", equation 4.) Where a layer norm feeds nothing but the layers that are smoothed, the
division goes into its scale and bias and costs nothing; elsewhere it is one multiplication.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from xdsl.ir import Block, BlockArgument, OpResult, SSAValue

from qcc.ir.dialects.onnx import OnnxOp
from qcc.ir.program import Program
from qcc.ir.rewrite import Pass, ProgramContext, array_of, builder, remove_dead, weight_name

from . import schemes
from .calibrate import key_of, linear_inputs
from .selection import Selection

_STRENGTH = 0.75
"""MiniLM at W8A8: mean cosine to float 0.956 at 0.35, 0.994 at 0.5, 0.998 at 0.65 and 0.8."""
_NORMS = ("onnx.LayerNormalization", "onnx.RMSNormalization")


@dataclass(frozen=True)
class SmoothActivations(Pass):
    """Smooth the operands of linear layers whose activations a scheme quantizes, by the peaks from calibration."""

    name = "smooth_activations"

    scheme: str = "W8A8"
    ignore: tuple[str, ...] = ()

    def run(self, program: Program, ctx: ProgramContext) -> None:
        """Each operand once, for all linear layers that read it."""
        del ctx
        if not schemes.load(self.scheme).activation or not program.peaks:
            return
        for value in linear_inputs(program):
            layers = [layer for layer in _layers(value, program) if not self._is_ignored(layer, program)]
            peaks = program.peaks.get(key_of(value))
            if layers and peaks is not None:
                _smooth(value, layers, peaks, program)
        remove_dead(program)

    def _is_ignored(self, layer: OnnxOp, program: Program) -> bool:
        """Left float by the user, or codes of its file: scaled, it would be quantized a second time."""
        return weight_name(layer.operands[1], "") in program.stored or bool(
            Selection(self.ignore).skip_reason(layer, layer.operands[1], 8, program)
        )


def _layers(value: SSAValue, program: Program) -> list[OnnxOp]:
    """The linear layers that read `value`."""
    found: list[OnnxOp] = []
    for use in value.uses:
        op = use.operation
        if isinstance(op, OnnxOp) and op.op_type in ("MatMul", "Gemm") and use.index == 0:
            weight = array_of(op.operands[1], program)
            if weight is not None and weight.ndim == 2 and not op.integer("transA"):
                found.append(op)
    return found


def _smooth(value: SSAValue, layers: list[OnnxOp], peaks: np.ndarray, program: Program) -> None:
    factors = _factors(peaks, [_by_input(layer, program) for layer in layers])
    readers = {use.operation for use in value.uses}
    norm = value.owner if isinstance(value, OpResult) else None
    if isinstance(norm, OnnxOp) and norm.name in _NORMS and readers == set(layers) and _fold(norm, factors, program):
        smoothed = value
    else:
        smoothed = _divided(value, factors, program)
    for layer in layers:
        layer.operands[0] = smoothed
        key, weight = weight_name(layer.operands[1], layer.node), array_of(layer.operands[1], program)
        assert weight is not None
        column = factors if layer.op_type == "Gemm" and layer.integer("transB") else factors[:, None]
        scaled = (weight * column).astype(np.float32)
        layer.operands[1] = builder(layer, program).weight(program.weights.add(f"{key}.smooth", scaled), scaled)


def _by_input(layer: OnnxOp, program: Program) -> np.ndarray:
    """The weight of a linear layer as [K, N]."""
    weight = array_of(layer.operands[1], program)
    assert weight is not None
    return weight.T if layer.op_type == "Gemm" and layer.integer("transB") else weight


def _factors(peaks: np.ndarray, weights: list[np.ndarray]) -> np.ndarray:
    """s [K]; 1 for channels that are never or nowhere used."""
    tops = np.max([np.abs(w).max(axis=1) for w in weights], axis=0)
    used = (peaks > 0) & (tops > 0)
    ratio = np.where(used, peaks, 1.0) ** _STRENGTH / np.where(used, tops, 1.0) ** (1 - _STRENGTH)
    return np.where(used, np.clip(ratio, 1e-4, 1e4), 1.0).astype(np.float32)


def _fold(norm: OnnxOp, factors: np.ndarray, program: Program) -> bool:
    """Divide scale and bias of a layer norm over the last axis; False where they are not constants of [K]."""
    parts = [array_of(norm.slot(i), program) for i in (1, 2) if norm.slot(i) is not None]
    if any(p is None or p.shape != factors.shape for p in parts) or norm.integer("axis", -1) not in (-1,):
        return False
    for index, array in enumerate(parts, 1):
        assert array is not None
        divided = (array / factors).astype(np.float32)
        key = program.weights.add(f"{norm.node}.smooth", divided)
        norm.operands[index] = builder(norm, program).weight(key, divided)
    return True


def _divided(value: SSAValue, factors: np.ndarray, program: Program) -> SSAValue:
    """`value` times 1/s, right behind its definition, under a name that calibration can find."""
    inverse = (1 / factors).astype(np.float32)
    owner = value.owner
    following = program.body.first_op if isinstance(value, BlockArgument) else None
    if not isinstance(owner, Block):
        following = owner.next_op
    assert following is not None
    build = builder(following, program)
    node = f"{key_of(value)}.smooth"
    constant = build.weight(program.weights.add(node, inverse), inverse)
    return build.op("onnx.Mul", [value, constant], value.type, node=node)
