"""`Gather(table, indices) = q.embedding(indices, quantize(table))`, for the tables that the user names."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from xdsl.ir import Operation, SSAValue
from xdsl.rewriter import InsertPoint, Rewriter

from qcc.ir.dialects.onnx import OnnxOp
from qcc.ir.dialects.q import Embedding, Weight
from qcc.ir.program import Program, stored_value
from qcc.ir.rewrite import Rewrite, array_of, rank_of, replace, weight_name
from qcc.ir.types import QuantizedType

from . import schemes
from .quantize_linear import kept_weight, quantized_weight
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
        ignored, included = selection.ignores(op, table_value), selection.includes(op, table_value)
        table = array_of(op.operands[0], program)
        assert table is not None
        stored = None if ignored else program.stored.get(key)
        if stored is not None and (not included or stored.format.bits <= scheme.bits) and stored.decodes_to(table):
            w = kept_weight(op, key, stored, program)
            done = f"table {list(table.shape)} kept as {stored.format}, the {stored.source} of its file"
        elif ignored or not included:
            program.decide(op.node, "skipped", ignored or "embedding: left alone unless --include names it")
            return False
        else:
            w = _of_tied_head(op, key, table, program)
            fmt = scheme.linear_format(self.group_size)
            w = w or quantized_weight(op, key, table, fmt, self.algorithm, program)
            done = f"table {list(table.shape)} as {fmt}"
        embedding = Embedding([op.operands[1], w], [op.results[0].type], node=op.node)
        Rewriter.insert_op(embedding, InsertPoint.before(op))
        replace(op, embedding.results[0])
        program.decide(op.node, "quantized", done)
        return True


def _of_tied_head(op: Operation, key: str, table: np.ndarray, program: Program) -> SSAValue | None:
    """The codes of the output head where it shares the table, so that what is tied stays tied for any algorithm.

    A layer may also read the tensor the other way round: its codes are then those of the transposed table.
    """
    for other in program.weight_ops():
        if other.weight == f"{key}.q" and other.parent is op.parent and _stands_for(other, table, program):
            if not other.is_before_in_block(op):
                other.detach()
                Rewriter.insert_op(other, InsertPoint.before(op))
            return other.result
    return None


def _stands_for(weight: Weight, table: np.ndarray, program: Program) -> bool:
    type_ = weight.result.type
    if not isinstance(type_, QuantizedType) or type_.shape != table.shape:
        return False
    place, rows = next(stored_value(weight, program).chunks())
    rest = rows.decode() - table[place]
    return float(np.vdot(rest, rest)) < 0.25 * float(np.vdot(table[place], table[place]))
