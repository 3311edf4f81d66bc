"""`BatchNorm(Conv(x, w, b)) = Conv(x, w * a, b * a + c)` with `a = gamma / sqrt(var + eps)`, `c = beta - mean * a`.

A batch norm without a convolution before it becomes `x * a + c`, for `fold_affine` to carry further.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from xdsl.ir import Operation

from qcc.ir import types
from qcc.ir.dialects.onnx import OnnxOp
from qcc.ir.program import Program
from qcc.ir.rewrite import Rewrite, array_of, builder, rank_of, replace


@dataclass(frozen=True)
class FuseBatchNorm(Rewrite):
    """Turn inference batch norms into a multiplication and an addition; `fold_affine` moves those into convolutions."""

    name = "fuse_batch_norm"
    roots = ("onnx.BatchNormalization",)

    def rewrite(self, op: Operation, program: Program) -> bool | str:
        """Guards: inference mode, constant statistics of the input's element type, known rank."""
        assert isinstance(op, OnnxOp)
        if op.integer("training_mode"):
            return "it is in training mode"
        found = [array_of(op.slot(i), program) for i in range(1, 5)]
        gamma, beta, mean, variance = found
        if gamma is None or beta is None or mean is None or variance is None:
            return "its statistics are not constant"
        rank = rank_of(op.operands[0])
        if rank is None:
            return "the rank of its input is unknown"
        if types.element_type(op.operands[0].type) != types.element_of(gamma.dtype).ir:
            return "its statistics have another element type than its input"
        epsilon = op.get("epsilon")
        assert isinstance(epsilon, float)
        if not (variance + epsilon > 0).all():
            return "its variance is not positive"
        a = gamma.astype(np.float64) / np.sqrt(variance.astype(np.float64) + epsilon)
        c = beta - mean * a
        shape = (-1,) + (1,) * (rank - 2)
        build = builder(op, program)
        x, dtype = op.operands[0], gamma.dtype
        scale, shift = (v.astype(dtype).reshape(shape) for v in (a, c))
        value = x
        for name, kind, constant in ((f"{op.node}.scale", "Mul", scale), (f"{op.node}.shift", "Add", shift)):
            weight = build.weight(program.weights.add(name, constant), constant)
            value = build.op(f"onnx.{kind}", [value, weight], x.type, node=name)
        replace(op, value)
        return True
