"""Operators that TVM's ONNX frontend has no converter for, or one of another operator of the same name."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Any

import numpy as np
from xdsl.ir import SSAValue

from qcc.backends.native.attention_spec import AttentionSpec
from qcc.backends.native.calls import GATHER, attention_function
from qcc.ir.dialects.onnx import OnnxOp
from qcc.ir.errors import NotSupported

from .lower import extents_of
from .toolchain import Tvm

if TYPE_CHECKING:
    from .lower import Lowering

Converter = Callable[[OnnxOp, "list[Tvm | None]", "Lowering"], Tvm]


def attention(op: OnnxOp, inputs: list[Tvm | None], lowering: Lowering) -> Tvm:
    """ONNX `Attention` of opset 23 on [batch, heads, length, size], without a cache: softmax(scale q k^T + mask) v.

    Operands that are transposed from [batch, length, heads, size] are read as they are before; a result that is only
    transposed back is written so.
    """
    mask = [*inputs, None, None][3]
    first, second = (extents_of(x) or [] for x in inputs[:2] if x is not None)
    if any(x is not None for x in inputs[4:]) or len(op.results) > 1 or inputs[2] is None:
        raise NotSupported("attention with a cache, or with scores as results")
    if len(first) != 4 or len(second) != 4 or not isinstance(first[1], int) or not isinstance(first[3], int):
        raise NotSupported("attention of heads that are no axis")
    batch, heads, queries, size = first
    kv_heads, keys = second[1:3]
    scale, cap = op.get("scale"), op.get("softcap") or None
    spec = AttentionSpec(
        heads, size, kv_heads, causal=bool(op.get("is_causal")), softcap=cap if isinstance(cap, float) else None,
        scale=scale if isinstance(scale, float) else None,
        mask="none" if mask is None else "bool" if mask.ty.dtype.dtype == "bool" else "f32",
    )  # fmt: skip
    sources = [_before_transpose(v) if v is not None else None for v in op.slots[:3]]
    turned = [s is not None for s in sources]
    both = turned[1] and turned[2]
    q = lowering.tensor(sources[0]) if sources[0] is not None else inputs[0]
    k, v = [lowering.tensor(s) for s in sources[1:] if s is not None] if both else inputs[1:3]
    reader = _only_transposed(op.results[0])
    out = [batch, queries, heads, size] if reader is not None else [batch, heads, queries, size]
    numbers = [batch, queries, keys, *_strides(heads, queries, size, turned[0]), *_strides(kv_heads, keys, size, both)]
    numbers += _strides(heads, queries, size, reader is not None)
    if mask is not None:
        mask = _spread_mask(mask, [batch, heads, queries, keys], lowering)
        numbers += _mask_strides(extents_of(mask) or [])
    tensors = [q, k, v, *([mask] if mask is not None else [])]
    made = lowering.call(attention_function(spec, lowering.isa), tensors, (out, "float32"), numbers)
    if reader is not None:
        lowering.values[reader.results[0]] = made
        lowering.blocks.covered.add(reader)
    return made


def _strides(heads: Any, tokens: Any, size: int, by_token: bool) -> list[Any]:
    """Elements from a batch, a head and a token to the next. Any: int, or an expression of TVM's."""
    return [heads * tokens * size, *((size, heads * size) if by_token else (tokens * size, size))]


def _spread_mask(mask: Tvm, wanted: list[Any], lowering: Lowering) -> Tvm:
    """A mask of the extents of the scores, or of 1 where it is the same for all. Any: int, or an expression."""
    own = extents_of(mask) or []
    expected = wanted[4 - len(own) :]
    alike = [_is_one(o) or not isinstance(o, int) or o == w for o, w in zip(own, expected, strict=True)]
    if not all(alike) or _is_one(own[-1]) != _is_one(expected[-1]):
        raise NotSupported(f"a mask of {own} for scores of {wanted}")
    return lowering.agreed(mask, [o if _is_one(o) else w for o, w in zip(own, expected, strict=True)])


def _mask_strides(extents: list[Any]) -> list[Any]:
    """Elements from a batch, a head and a query to the next; 0 along an axis of one. Any: int or expression."""
    whole = [1] * (4 - len(extents)) + extents
    steps = [math.prod(whole[axis + 1 :], start=1) for axis in range(3)]
    return [0 if _is_one(extent) else step for extent, step in zip(whole, steps, strict=False)]


def _is_one(extent: Any) -> bool:
    """Any: int, or an expression of TVM's, which compares to another expression."""
    return type(extent) is int and extent == 1


def _before_transpose(value: SSAValue) -> SSAValue | None:
    """What a value is the transpose of, heads and tokens exchanged."""
    owner = value.owner
    return owner.operands[0] if isinstance(owner, OnnxOp) and _exchanges(owner) else None


def _only_transposed(value: SSAValue) -> OnnxOp | None:
    """The operator that exchanges heads and tokens of a value, where it is the only reader."""
    readers = [use.operation for use in value.uses]
    reader = readers[0] if len(readers) == 1 else None
    return reader if isinstance(reader, OnnxOp) and _exchanges(reader) else None


def _exchanges(op: OnnxOp) -> bool:
    order: Any = op.get("perm")
    return op.op_type == "Transpose" and order is not None and list(order) == [0, 2, 1, 3]


def rotary(op: OnnxOp, inputs: list[Tvm | None], lowering: Lowering) -> Tvm:
    """ONNX `RotaryEmbedding` of opset 23 on [batch, heads, length, size] or [batch, length, heads * size]."""
    relax, (x, cos, sin, *places) = lowering.relax.op, inputs
    extents, heads = extents_of(x) or [], op.integer("num_heads")
    if x is None or len(extents) not in (3, 4) or (len(extents) == 3 and not heads) or not isinstance(extents[-1], int):
        raise NotSupported("heads whose number or size is not known")
    split = x if len(extents) == 4 else relax.reshape(x, [*extents[:2], heads, extents[2] // heads])
    size = extents[3] if len(extents) == 4 else extents[2] // heads
    rotated = op.integer("rotary_embedding_dim") or size
    if places and places[0] is not None:
        cos, sin = (relax.take(t, places[0], axis=0) for t in (cos, sin))
    axis = 1 if len(extents) == 4 else 2
    cos, sin = (relax.expand_dims(t, axis) for t in (cos, sin))
    pairs, half = bool(op.integer("interleaved")), rotated // 2
    ends = ((0, rotated, 2), (1, rotated, 2)) if pairs else ((0, half, 1), (half, rotated, 1))
    one, two = (lowering.emit(relax.strided_slice(split, [3], [b], [e], [s])) for b, e, s in ends)
    turned = [
        lowering.emit(relax.subtract(relax.multiply(one, cos), relax.multiply(two, sin))),
        lowering.emit(relax.add(relax.multiply(one, sin), relax.multiply(two, cos))),
    ]
    if pairs:
        turned = [relax.reshape(relax.stack(turned, axis=4), [*(extents_of(turned[0]) or [])[:3], rotated])]
    if rotated < size:
        turned.append(relax.strided_slice(split, [3], [rotated], [size]))
    made = turned[0] if len(turned) == 1 else relax.concat([lowering.emit(t) for t in turned], axis=3)
    return made if len(extents) == 4 else relax.reshape(lowering.emit(made), extents)


def gather(op: OnnxOp, inputs: list[Tvm | None], lowering: Lowering) -> Tvm:
    """`Gather` that reads within its table: a row that is not there ends the call with an error."""
    data, places = inputs[0], inputs[1]
    axis = op.get("axis", 0)
    extents, picked = (None if x is None else extents_of(x) for x in (data, places))
    if data is None or places is None or extents is None or picked is None or not isinstance(axis, int):
        raise NotSupported("its operands have no shape")
    relax, axis = lowering.relax, axis % len(extents)
    if places.ty.dtype.dtype != "int64":
        places = lowering.emit(relax.op.astype(places, "int64"))
    kind = data.ty.dtype.dtype
    outer, count, inner = (math.prod(e, start=1) for e in (extents[:axis], picked, extents[axis + 1 :]))
    item = 1 if kind == "bool" else np.dtype(kind).itemsize
    shape = [*extents[:axis], *picked, *extents[axis + 1 :]]
    numbers = [outer, extents[axis], count, inner * item]
    missing = f"{op.where()}: an index is not in its table"
    return lowering.call(GATHER, [data, places], (shape, kind), numbers, refusal=missing)


CONVERTERS: Mapping[str, Converter] = {"Attention": attention, "Gather": gather, "RotaryEmbedding": rotary}
