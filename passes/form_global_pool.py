"""`ReduceMean(x [N, C, H, W], axes = [2, 3]) = GlobalAveragePool(x)`, flattened to [N, C] where the axes are dropped.

PyTorch exports an adaptive pool to one pixel as a mean; fixed-point flows know it as a pool.
"""

from __future__ import annotations

from dataclasses import dataclass

from xdsl.ir import Operation

from qcc.ir import types
from qcc.ir.dialects.onnx import OnnxOp
from qcc.ir.program import Program
from qcc.ir.rewrite import Rewrite, array_of, builder, replace


@dataclass(frozen=True)
class FormGlobalPool(Rewrite):
    """Match a mean over all axes behind the channels."""

    name = "form_global_pool"
    roots = ("onnx.ReduceMean",)

    def rewrite(self, op: Operation, program: Program) -> bool | str:
        """Guards: a float32 tensor of rank 3 or more; its constant axes are exactly those behind the second."""
        assert isinstance(op, OnnxOp)
        x = op.operands[0]
        dims, axes = types.dims_of(x.type), array_of(op.slot(1), program)
        if dims is None or len(dims) < 3 or types.schema_string(x.type) != "tensor(float)":
            return False
        if axes is None or sorted(int(a) % len(dims) for a in axes.reshape(-1)) != list(range(2, len(dims))):
            return "it does not average over all axes behind the channels"
        build = builder(op, program)
        pooled_type = types.tensor_type(types.element_type(x.type), [*dims[:2], *(1 for _ in dims[2:])])
        if op.integer("keepdims", 1):
            pooled = build.op("onnx.GlobalAveragePool", [x], pooled_type, node=op.node)
        else:
            # the node's name goes to the last value, by which its statistics are known
            pool = build.op("onnx.GlobalAveragePool", [x], pooled_type, node=f"{op.node}:pool")
            pooled = build.op("onnx.Flatten", [pool], op.results[0].type, {"axis": 1}, node=op.node)
        replace(op, pooled)
        return True
