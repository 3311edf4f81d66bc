"""Operators that TVM's ONNX frontend has no converter for, or one of another operator of the same name."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING

from qcc.ir.dialects.onnx import OnnxOp
from qcc.ir.errors import NotSupported

from .lower import extents_of
from .toolchain import Tvm

if TYPE_CHECKING:
    from .lower import Lowering

Converter = Callable[[OnnxOp, "list[Tvm | None]", "Lowering"], Tvm]


def attention(op: OnnxOp, inputs: list[Tvm | None], lowering: Lowering) -> Tvm:
    """ONNX `Attention` of opset 23 on [batch, heads, length, size], without a cache: softmax(scale q k^T + mask) v."""
    q, k, v, mask = [*inputs, None][:4]
    relax = lowering.relax.op
    first, second = (extents_of(x) or [] for x in (q, k))
    if len([x for x in inputs[4:] if x is not None]) or op.get("is_causal") or len(op.results) > 1:
        raise NotSupported("attention with a cache, a causal mask or scores as results")
    if len(first) != 4 or len(second) != 4 or first[1] != second[1]:
        raise NotSupported("attention of heads that share keys, or that are not an axis")
    scale = op.get("scale")
    factor = scale if isinstance(scale, float) else float(first[3]) ** -0.5
    scores = relax.matmul(
        relax.multiply(q, lowering.relax.const(factor, "float32")), relax.permute_dims(k, [0, 1, 3, 2])
    )
    if mask is not None:
        least = lowering.relax.const(float("-inf"), "float32")
        masked = mask.ty.dtype.dtype == "bool"
        scores = relax.where(mask, scores, least) if masked else relax.add(scores, mask)
    return relax.matmul(relax.nn.softmax(scores, axis=-1), v)


def gather(op: OnnxOp, inputs: list[Tvm | None], lowering: Lowering) -> Tvm:
    """`Gather` that reads within its table: a row that is not there is NaN, or of integers the nearest one."""
    data, places = inputs[0], inputs[1]
    axis = op.get("axis", 0)
    extents = None if data is None else extents_of(data)
    if data is None or places is None or extents is None or not isinstance(axis, int):
        raise NotSupported("its operands have no shape")
    relax, kind = lowering.relax, places.ty.dtype.dtype
    count = extents[axis]
    if not isinstance(count, int):
        raise NotSupported("it gathers along an axis whose extent is a symbol")
    negative = relax.op.less(places, relax.const(0, kind))
    counted = relax.op.where(negative, relax.op.add(places, relax.const(count, kind)), places)
    mode = "nan" if data.ty.dtype.dtype.startswith("float") else "clip"
    return relax.op.take(data, counted, axis=axis, mode=mode)


CONVERTERS: Mapping[str, Converter] = {"Attention": attention, "Gather": gather}
