"""`Conv(x, W, b) = q.conv(x, quantize(W), b)`, and `ConvTranspose` likewise: a scale for each output channel or finer.

Schemes below 8 bits leave convolutions at 8: few of their weights share a scale, and rounding them to nearest at 4 bits
ruins networks (every line of PP-OCRv4 misread: docs/results.md). Naming a node with `include` forces the scheme's own
bits on it.
"""

from __future__ import annotations

from dataclasses import dataclass

from xdsl.ir import Operation
from xdsl.rewriter import InsertPoint, Rewriter

from qcc.ir.dialects.onnx import OnnxOp
from qcc.ir.dialects.q import Conv
from qcc.ir.program import Program
from qcc.ir.rewrite import Rewrite, array_of, replace, weight_name

from . import schemes
from .fixed_point_form import obstacle
from .quantize_linear import quantized_weight
from .selection import Selection, constant_weight


@dataclass(frozen=True)
class QuantizeConv(Rewrite):
    """Quantize the constant weights of convolutions as a scheme says."""

    name = "quantize_conv"
    roots = ("onnx.Conv", "onnx.ConvTranspose")

    scheme: str = "W8A8"
    group_size: int = 0
    algorithm: str = "rtn"
    ignore: tuple[str, ...] = ()
    include: tuple[str, ...] = ()

    def rewrite(self, op: Operation, program: Program) -> bool | str:
        """Guards: a constant float weight, not left out."""
        assert isinstance(op, OnnxOp)
        scheme = schemes.load(self.scheme)
        if not scheme.weight:
            return False
        selection, note = Selection(self.ignore, self.include), ""
        if not scheme.is_element:
            scheme = scheme.at_eight_bits
            note = f": {self.scheme} is for matrices, convolutions take 8 bits"
        elif scheme.bits < 8 and not selection.includes(op, op.operands[1]):
            scheme = scheme.at_eight_bits
            note = f": {self.scheme} is for linear layers, convolutions take 8 bits unless --include names them"
        reason = "the weight is computed"
        if constant_weight(op.slot(1), program):
            reason = selection.skip_reason(op, op.operands[1], scheme.bits, program)
        if not reason and scheme.is_fixed_point:
            reason = obstacle(op, program)
        if reason:
            program.decide(op.node, "skipped", reason)
            return False
        weight = array_of(op.operands[1], program)
        assert weight is not None
        transposed = op.op_type == "ConvTranspose"
        fmt = scheme.conv_format(weight.shape, transposed=transposed, group_size=self.group_size if scheme.group else 0)
        w = quantized_weight(op, weight_name(op.operands[1], op.node), weight, fmt, self.algorithm, program)
        attributes = {**op.parameters, **({"transposed": 1} if transposed else {})}
        conv = Conv([op.operands[0], w, op.slot(2)], [op.results[0].type], attributes, node=op.node)
        Rewriter.insert_op(conv, InsertPoint.before(op))
        replace(op, conv.results[0])
        program.decide(op.node, "quantized", f"weight {list(weight.shape)} as {fmt}{note}")
        return True
