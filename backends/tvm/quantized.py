"""`q.linear` as a call of a generated C function, and which kernel each `q` operation gets."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

import numpy as np

from qcc.backends.native.calls import linear_function
from qcc.backends.native.linear import Fixed
from qcc.backends.native.linear_spec import Activation, LinearSpec
from qcc.ir.dialects.q import Linear, Quantize, QuantizedOp, Weight, part
from qcc.ir.errors import NotSupported
from qcc.ir.format import Format
from qcc.ir.infer import constant_of
from qcc.ir.types import QuantizedType

from .lower import Float, Int32
from .toolchain import Tvm

if TYPE_CHECKING:
    from .lower import Lowering


def linear(op: Linear, lowering: Lowering) -> Tvm:
    """`y[..., N] = x[..., K] w[N, K]^T + bias` in float32."""
    spec = linear_spec(op)
    function, _ = linear_function(spec, lowering.isa)
    source, fixed = op.operands[0], fixed_of(op)
    if isinstance(source.owner, Quantize):
        source = source.owner.operands[0]
    x = lowering.tensor(source)
    extents = lowering.dims(source)
    assert extents is not None
    rows = math.prod(extents[:-1], start=1)
    owner = op.operands[1].owner
    assert isinstance(owner, Weight)
    packed = lowering.packed[op.node]
    data = lowering.parameter(packed.data, part(owner.weight, "codes"))
    bias = lowering.parameter(_bias(op, spec.n, lowering), f"{op.node}.bias")
    numbers = [
        rows,
        Float(packed.alpha),
        Float(fixed.scale if fixed else 0.0),
        Int32(fixed.stored if fixed else 0),
    ]
    return lowering.call(function, [x, data, bias], ([*extents[:-1], spec.n], "float32"), numbers)


def linear_spec(op: QuantizedOp) -> LinearSpec:
    """What the kernel of a `q.linear` computes; `NotSupported` with the reason where there is none."""
    n, k = op.weight_type(2).shape
    weight = op.weight_type(2).format
    return LinearSpec(n, k, weight, activation(op, weight))


def activation(op: QuantizedOp, weight: Format) -> Activation:
    """How a kernel rounds what the operation reads. Floats are read in 16 bits of fixed point."""
    x = op.operands[0]
    if not isinstance(x.owner, Quantize) or not isinstance(x.type, QuantizedType):
        return Activation(16)
    fmt = x.type.format
    if fixed_of(op) is not None:
        return Activation(8, fixed=True)
    if str(fmt.element) != "i8" or fmt.zero is not None or fmt.offset or len(fmt.levels()) != 1:
        raise NotSupported(f"activations of {str(fmt)!r} at run time: kernels round to i8 with one scale")
    block, k = fmt.scale.block, op.weight_type().shape[1]
    if block is None or len(block) != 1:
        raise NotSupported(
            f"activations of {str(fmt)!r} at run time: kernels have a scale for each row, or group of it"
        )
    columns = block[0]
    if columns is None or columns >= k:
        return Activation(8)
    if columns != weight.scale.block_of(op.weight_type().shape)[1]:
        raise NotSupported(f"activations in groups of {columns} beside weights in others")
    return Activation(8, grouped=True)


def fixed_of(op: QuantizedOp) -> Fixed | None:
    """The calibrated scale and zero point of what an operation reads."""
    quantize = op.operands[0].owner
    return fixed_scale(quantize) if isinstance(quantize, Quantize) else None


def fixed_scale(quantize: Quantize) -> Fixed | None:
    """The constant scale and zero point of a `q.quantize` to 8 bits, one for the tensor; None where it is another."""
    type_ = quantize.results[0].type
    scale = None if quantize.slot(1) is None else constant_of(quantize.operands[1])
    if not isinstance(type_, QuantizedType) or scale is None or scale.size != 1 or type_.format.bits != 8:
        return None
    slot = quantize.slot(2)
    zero = np.zeros(1, np.int64) if slot is None else constant_of(slot)
    signed = type_.format.family.signed
    return None if zero is None else Fixed(float(scale.reshape(())), int(zero.reshape(())), signed)


def _bias(op: Linear, n: int, lowering: Lowering) -> np.ndarray:
    """float32 [N]: the bias, and what the zero point of the activations adds."""
    from qcc.ir.rewrite import array_of

    offset = lowering.packed[op.node].offset
    total = np.zeros(n, np.float32) if offset is None else offset
    slot = op.slot(2)
    if slot is None:
        return total
    own = array_of(slot, lowering.program)
    if own is None:
        raise NotSupported("its bias is no constant")
    return (total + own.reshape(-1)).astype(np.float32)
