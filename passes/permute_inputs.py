"""`q.linear(x, w in permuted columns) = q.linear(Gather(x, order), w)`: groups lie together, as kernels read them.

GPTQ's act-order quantizes columns in the order of their importance and groups them so. The columns of the weight are
stored in that order instead, and the few numbers of the activation are moved when they come.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np
from xdsl.ir import Operation
from xdsl.rewriter import Rewriter

from qcc.ir.dialects.q import Linear, part, weight_of
from qcc.ir.program import Program
from qcc.ir.rewrite import Rewrite, builder
from qcc.ir.types import QuantizedType


@dataclass(frozen=True)
class PermuteInputs(Rewrite):
    """Give weights in permuted columns an order of their own."""

    name = "permute_inputs"
    roots = ("q.linear",)

    def rewrite(self, op: Operation, program: Program) -> bool | str:
        """Guards: all readers are linear layers with a float input; no columns are named beside the codes."""
        weight = weight_of(op.operands[1])
        type_ = None if weight is None else weight.result.type
        if weight is None or not isinstance(type_, QuantizedType) or not type_.format.permuted:
            return False
        readers = [use.operation for use in weight.result.uses]
        if not all(isinstance(r, Linear) and not isinstance(r.operands[0].type, QuantizedType) for r in readers):
            return "its weight is read by other operations than linear layers on floats"
        if type_.format.outliers or type_.format.sparsity:
            return "outliers and patterns of zeros are of the columns as they were"
        store, codes, key = program.weights, part(weight.weight, "codes"), part(weight.weight, "order")
        order = store[key]
        for reader in dict.fromkeys(readers):
            build, x = builder(reader, program), reader.operands[0]
            operands = [x, build.constant(order.astype(np.int64))]
            reader.operands[0] = build.op("onnx.Gather", operands, x.type, {"axis": -1})
        store[codes] = np.ascontiguousarray(store[codes][:, order])
        del store[key]
        fmt = replace(type_.format, permuted=False)
        Rewriter.replace_value_with_new_type(weight.result, QuantizedType.of(type_.expressed, fmt))
        for reader in dict.fromkeys(readers):
            program.decide(getattr(reader, "node", ""), "permuted", "its input takes the order of the weight's columns")
        return True
