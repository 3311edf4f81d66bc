"""What `q.attention` means: slices, products and a softmax of standard ONNX operators, with the mask written out.

K = concat(past_key[:, :, :total - S], round(k)),   y = softmax(where(seen, softcap(scale q K^T), -inf)) V
seen[i, j] = j <= total - S + i  and  (no window or j > total - S + i - window)
"""

from __future__ import annotations

from typing import Any

import numpy as np
from xdsl.dialects import builtin
from xdsl.ir import Attribute, SSAValue

from . import types
from .builder import I64, Builder
from .dialects.q_attention import Attention

_BOOL = builtin.IntegerType(1)
_SMALLEST = {"float16": 2.0**-14, "bfloat16": 2.0**-126, "float32": 2.0**-126}
"""Of each type, the least normal number."""


def expand_attention(op: Attention, build: Builder) -> list[SSAValue]:
    """The three results of `op`, computed before it. Operands may be float32, float16 or bfloat16."""
    q, k, v, past_key, past_value, total = op.operands
    groups, shared = op.kv_heads, op.heads // op.kv_heads
    seen = build.reshape(build.cast(total, I64), [1])
    length = build.op("onnx.Shape", [q], types.tensor_type(I64, [1]), {"start": 1, "end": 2})
    past = build.binary("Sub", seen, length)
    new = [_heads_first(round_entries(x, op, build), groups, build) for x in (k, v)]
    keys = _append(past_key, past, new[0], build, op.results[1].type)
    values = _append(past_value, past, new[1], build, op.results[2].type)
    queries = build.transpose(build.reshape(q, [0, 0, groups, shared, _head_size(op)]), [0, 2, 3, 1, 4])
    scores = _matmul(queries, _one_for_all(build.transpose(keys, [0, 1, 3, 2]), build), build)
    scores = build.binary("Mul", scores, build.constant(_like(op.scale, scores)))
    if op.softcap:
        cap = build.constant(_like(op.softcap, scores))
        scores = build.binary("Mul", build.unary("Tanh", build.binary("Div", scores, cap)), cap)
    hidden = build.constant(_like(-np.inf, scores))
    masked = build.op("onnx.Where", [_seen(past, seen, op.window, build), scores, hidden], scores.type)
    weights = build.op("onnx.Softmax", [masked], masked.type, {"axis": -1})
    mixed = build.transpose(_matmul(weights, _one_for_all(values, build), build), [0, 3, 1, 2, 4])
    y = build.reshape(mixed, [0, 0, op.heads * _head_size(op)])
    return [y, keys, values]


def _head_size(op: Attention) -> int:
    size = op.head_size
    assert size is not None, f"{op.where()}: the size of a head is not known"
    return size


def _heads_first(x: SSAValue, heads: int, build: Builder) -> SSAValue:
    """[B, S, heads*D] as [B, heads, S, D]."""
    dims = types.dims_of(x.type)
    size = dims[2] // heads if dims is not None and isinstance(dims[2], int) else -1
    return build.transpose(build.reshape(x, [0, 0, heads, size]), [0, 2, 1, 3])


def round_entries(x: SSAValue, op: Attention, build: Builder) -> SSAValue:
    """New keys or values [B, S, kv_heads*D] as the cache of `op` holds them, in their own type."""
    if op.cache == "f16":
        return build.cast(build.cast(x, builtin.f16), types.element_type(x.type))
    if op.cache != "i8":
        return x
    heads = build.reshape(x, [0, 0, op.kv_heads, _head_size(op)])
    dims, axis = types.dims_of(heads.type), build.constant(np.array([-1], np.int64))
    each = types.tensor_type(types.element_type(x.type), None if dims is None else [*dims[:-1], 1])
    most = build.op("onnx.ReduceMax", [build.unary("Abs", heads), axis], each, {"keepdims": 1})
    step = build.binary("Div", most, build.constant(_like(127, most)))
    least = build.constant(_like(_SMALLEST[_dtype(most).name], most))  # for entries of nothing but zeros
    step = build.op("onnx.Max", [step, least], each)
    codes = build.unary("Round", build.binary("Div", heads, step))
    return build.reshape(build.binary("Mul", codes, step), [0, 0, op.kv_heads * _head_size(op)])


def _append(cache: SSAValue, past: SSAValue, new: SSAValue, build: Builder, type_: Attribute) -> SSAValue:
    """The first `past` entries of a cache and the new ones behind them."""
    zero, axis = (build.constant(np.array([i], np.int64)) for i in (0, 2))
    kept = build.op("onnx.Slice", [cache, zero, past, axis], _open(cache.type, 2))
    return build.op("onnx.Concat", [kept, new], _open(type_, 2), {"axis": 2})


def _one_for_all(x: SSAValue, build: Builder) -> SSAValue:
    """[B, G, ...] as [B, G, 1, ...], for all query heads of a group."""
    dims = types.dims_of(x.type)
    type_ = types.tensor_type(types.element_type(x.type), None if dims is None else [*dims[:2], 1, *dims[2:]])
    return build.op("onnx.Unsqueeze", [x, build.constant(np.array([2], np.int64))], type_)


def _matmul(a: SSAValue, b: SSAValue, build: Builder) -> SSAValue:
    left, right = types.dims_of(a.type), types.dims_of(b.type)
    dims = None if left is None or right is None else [*left[:-1], right[-1]]
    return build.op("onnx.MatMul", [a, b], types.tensor_type(types.element_type(a.type), dims))


def _seen(past: SSAValue, total: SSAValue, window: int, build: Builder) -> SSAValue:
    """Which entries [T] each query [S] sees: bool [S, T]."""
    vector, scalar = types.tensor_type(I64, [None]), types.tensor_type(I64, [])
    end, begin, zero, one = (
        *(build.op("onnx.Squeeze", [v], scalar) for v in (total, past)),
        *(build.constant(np.array(i, np.int64)) for i in (0, 1)),
    )
    queries = build.reshape(build.op("onnx.Range", [begin, end, one], vector), [-1, 1])
    entries = build.reshape(build.op("onnx.Range", [zero, end, one], vector), [1, -1])
    type_ = types.tensor_type(_BOOL, [None, None])
    seen = build.op("onnx.LessOrEqual", [entries, queries], type_)
    if not window:
        return seen
    first = build.binary("Sub", queries, build.constant(np.array(window, np.int64)))
    return build.op("onnx.And", [seen, build.op("onnx.Greater", [entries, first], type_)], type_)


def _open(type_: Attribute, axis: int) -> Attribute:
    """The type with one extent unknown."""
    dims = types.dims_of(type_)
    return types.tensor_type(
        types.element_type(type_), None if dims is None else [None if i == axis else d for i, d in enumerate(dims)]
    )


def _like(value: float, x: SSAValue) -> np.ndarray:
    return np.array(value, _dtype(x))


def _dtype(x: SSAValue) -> np.dtype[Any]:
    """Any: the numpy type of whatever elements there are."""
    return types.element_of(types.element_type(x.type)).numpy
