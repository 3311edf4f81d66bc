"""`GroupQueryAttention(q, k, v, caches, total - 1, total) = q.attention(q, k, v, caches, total)`.

ONNX Runtime's contrib operator is how decoders with a cache are written in ONNX files; `q.attention` says the same with
a definition of its own, so that every backend can lower it and the reference computes it independently.
"""

from __future__ import annotations

from dataclasses import dataclass

from xdsl.ir import Operation, SSAValue
from xdsl.rewriter import InsertPoint, Rewriter

from qcc.ir import types
from qcc.ir.builder import I32
from qcc.ir.dialects.onnx import OnnxOp
from qcc.ir.dialects.q_attention import Attention
from qcc.ir.program import Program
from qcc.ir.rewrite import Rewrite, builder, producer, scalar_of

_KNOWN = {"num_heads", "kv_num_heads", "scale", "softcap", "local_window_size"}
_NEUTRAL: dict[str, tuple[int, ...]] = {
    "do_rotary": (0,),
    "rotary_interleaved": (0,),
    "smooth_softmax": (0, -1),
    "causal": (1,),
}


@dataclass(frozen=True)
class RecognizeAttention(Rewrite):
    """Look at every GroupQueryAttention; one whose rows end at different places stays what it is."""

    name = "recognize_attention"
    roots = ("msft.GroupQueryAttention",)

    def rewrite(self, op: Operation, program: Program) -> bool | str:
        """Guards: separate q, k, v with a cache, plain attributes, and every row of the batch ends at `total`."""
        assert isinstance(op, OnnxOp)
        slots = op.slots
        strange = [n for n in op.parameters if n not in _KNOWN and op.get(n) not in _NEUTRAL.get(n, ())]
        if strange:
            return f"attribute {strange[0]!r} has no counterpart"
        if len(slots) != 7 or None in slots:
            return "packed queries, rotary tables, biases or sinks have no counterpart"
        if len(op.results) != 3:
            return "it does not give both caches"
        last, total = op.operands[5], op.operands[6]
        if not _is_one_less(last, total, program):
            return "its rows may end at different places"
        scale = _scale(op)
        if not scale:
            return "it names no scale, and the size of a head is not known"
        window = op.integer("local_window_size", -1)
        attributes: dict[str, object] = {
            "heads": op.integer("num_heads"),
            "kv_heads": op.integer("kv_num_heads"),
            "scale": scale,
            **({"window": window} if window > 0 else {}),
            **({"softcap": op.get("softcap")} if op.get("softcap", 0.0) else {}),
        }
        operands = [*op.operands[:5], _as_scalar(op, total, program)]
        new = Attention(operands, [r.type for r in op.results], attributes, node=op.node)
        Rewriter.insert_op(new, InsertPoint.before(op))
        for old, value in zip(op.results, new.results, strict=True):
            value.name_hint = old.name_hint
            old.replace_all_uses_with(value)
        Rewriter.erase_op(op)
        return True


def _scale(op: OnnxOp) -> float:
    """The scale of scores: 1 / sqrt(size of a head) where none is given; 0 where that is not known."""
    scale = op.get("scale", 0.0)
    assert isinstance(scale, float)
    dims = types.dims_of(op.operands[0].type)
    if scale or dims is None or not isinstance(dims[2], int):
        return scale
    return float((dims[2] // op.integer("num_heads")) ** -0.5)


def _as_scalar(op: OnnxOp, total: SSAValue, program: Program) -> SSAValue:
    if types.dims_of(total.type) == ():
        return total
    return builder(op, program).op("onnx.Squeeze", [total], types.tensor_type(I32, ()))


_MOVES = ("onnx.Reshape", "onnx.Squeeze", "onnx.Unsqueeze", "onnx.Cast", "onnx.Expand")


def _bare(value: SSAValue) -> SSAValue:
    """What a value was before it was only reshaped or cast."""
    while (op := producer(value, *_MOVES)) is not None:
        value = op.operands[0]
    return value


def _is_one_less(last: SSAValue, total: SSAValue, program: Program) -> bool:
    """Whether `last = total - 1`, up to shape and integer type."""
    op = producer(_bare(last), "onnx.Sub", "onnx.Add")
    if op is None:
        return False
    step = scalar_of(op.operands[1], program)
    return step == (1 if op.op_type == "Sub" else -1) and _bare(op.operands[0]) is _bare(total)
