"""`MatMulNBits` for blocks with a minimum, as GGUF's K-quants have them: the minima multiply sums of the activations.

    w = s q + c  by blocks,   x w^T = x (s (q - h))^T + sums(x) (s h + c)^T,   h = 2^(bits-1), sums by block

The second product has one column a block: 1/32 of the first for blocks of 32. With int8 activations it reads them
before they are rounded.
"""

from __future__ import annotations

import math
from dataclasses import replace

import numpy as np
from xdsl.ir import SSAValue

from qcc.ir import types
from qcc.ir.builder import Builder
from qcc.ir.dialects.q import QuantizedOp, part
from qcc.ir.kernel_task import Choice, KernelTask

from ..lower import Lowering
from ..speed import Speed
from . import matmul_nbits


def offers(task: KernelTask, speed: Speed) -> list[Choice]:
    """What `matmul_nbits` offers for the signed codes without the offset, and the time of the second product."""
    fmt = task.weight_format
    offset = fmt.offset
    if offset is None or fmt.family.signed or len(offset.levels) != 1 or offset.levels[0] != fmt.scale:
        return []
    centred = replace(fmt, element=f"i{fmt.bits}", offset=None)
    found = matmul_nbits.offers(replace(task, weight_format=centred), speed) if centred.is_plain else []
    n, k = task.weight if len(task.weight) == 2 else (0, 0)
    return [
        replace(
            choice,
            kernel="matmul_nbits_offset",
            layout=replace(choice.layout, xor=0),
            cost=choice.cost + speed.decoded_matmul * n * math.ceil(k / dict(choice.parameters)["block_size"]),
            reason=f"{choice.reason}; minima by sums of activations",
        )
        for choice in found
    ]


def lower(op: QuantizedOp, choice: Choice, lowering: Lowering) -> SSAValue:
    """A MatMulNBits of the centred codes, a MatMul of block sums, and their sum."""
    type_, key = lowering.weight(op)
    fmt, (n, k) = type_.format, type_.shape
    assert fmt.offset is not None
    block = dict(choice.parameters)["block_size"]
    product = matmul_nbits.product(op, choice, lowering)
    store, build = lowering.program.weights, lowering.build(op)
    half = np.float32(1 << (fmt.bits - 1))
    offset = store[part(key, fmt.offset.word)].astype(np.float32)
    centre = half * store[part(key, "scale")].astype(np.float32) + (-offset if fmt.offset.negative else offset)
    centre = np.ascontiguousarray(centre.reshape(n, -1).T)
    store[part(key, "centre")] = centre
    sums = _block_sums(lowering.float_operand(op), k, block, build)
    second = build.op("onnx.MatMul", [sums, build.weight(part(key, "centre"), centre)], op.results[0].type)
    return lowering.add_bias(op, build.binary("Add", product, second))


def _block_sums(x: SSAValue, k: int, block: int, build: Builder) -> SSAValue:
    """Sums over blocks of the last axis, [..., ceil(K / block)]; the last block may be short.

    A product with ones: ONNX Runtime's ReduceSum gives an empty batch another rank.
    """
    dims = types.dims_of(x.type)
    assert dims is not None
    count, element = math.ceil(k / block), types.element_type(x.type)
    if count * block != k:
        pads = np.zeros(2 * len(dims), np.int64)
        pads[-1] = count * block - k
        x = build.op("onnx.Pad", [x, build.constant(pads)], types.tensor_type(element, [*dims[:-1], count * block]))
    keep = [0] * (len(dims) - 1)
    ones = build.constant(np.ones((block, 1), types.element_of(element).numpy))
    summed = types.tensor_type(element, [*dims[:-1], count, 1])
    return build.reshape(
        build.op("onnx.MatMul", [build.reshape(x, [*keep, count, block]), ones], summed), [*keep, count]
    )
