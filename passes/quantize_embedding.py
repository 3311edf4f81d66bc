"""`Gather(table, indices) = q.embedding(indices, quantize(table))`, for the tables that the user names."""

from __future__ import annotations

from dataclasses import dataclass

from xdsl.ir import Operation
from xdsl.rewriter import InsertPoint, Rewriter

from qcc.ir.dialects.onnx import OnnxOp
from qcc.ir.dialects.q import Embedding
from qcc.ir.program import Program
from qcc.ir.rewrite import Rewrite, array_of, rank_of, replace, weight_name

from . import schemes
from .quantize_linear import quantized_weight
from .selection import Selection, constant_weight


@dataclass(frozen=True)
class QuantizeEmbedding(Rewrite):
    """Embeddings are left alone unless `include` names them: they cost little time; their errors reach everything."""

    name = "quantize_embedding"
    roots = ("onnx.Gather",)

    scheme: str = "W4A16"
    group_size: int = 0
    algorithm: str = "rtn"
    ignore: tuple[str, ...] = ()
    include: tuple[str, ...] = ()

    def rewrite(self, op: Operation, program: Program) -> bool | str:
        """Guards: a constant float table of rank 2 read by rows, asked for."""
        assert isinstance(op, OnnxOp)
        scheme = schemes.load(self.scheme)
        if (
            not scheme.weight
            or not constant_weight(op.slot(0), program)
            or rank_of(op.operands[0]) != 2
            or op.integer("axis")
        ):
            return False
        key = weight_name(op.operands[0], op.node)
        selection, table_value = Selection(self.ignore, self.include), op.operands[0]
        reason = selection.skip_reason(op, table_value, 8, program)
        if not reason and not selection.includes(op, table_value):
            reason = "embedding: left alone unless --include names it"
        if reason:
            program.decide(op.node, "skipped", reason)
            return False
        table = array_of(op.operands[0], program)
        assert table is not None
        fmt = scheme.linear_format(self.group_size)
        w = quantized_weight(op, key, table, fmt, self.algorithm, program)
        embedding = Embedding([op.operands[1], w], [op.results[0].type], node=op.node)
        Rewriter.insert_op(embedding, InsertPoint.before(op))
        replace(op, embedding.results[0])
        program.decide(op.node, "quantized", f"table {list(table.shape)} as {fmt}")
        return True
