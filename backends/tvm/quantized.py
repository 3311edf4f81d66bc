"""`q.linear` and `q.embedding` as calls of generated C functions."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
from xdsl.ir import SSAValue

from qcc.backends.native.calls import embedding_function
from qcc.backends.native.embedding_spec import EmbeddingSpec
from qcc.backends.native.emit_linear import LinearText
from qcc.backends.native.linear import Fixed, Packed
from qcc.backends.native.linear_group import Member, group_function
from qcc.backends.native.linear_spec import Activation, LinearSpec
from qcc.ir.dialects.onnx import OnnxOp
from qcc.ir.dialects.q import Embedding, Linear, Quantize, QuantizedOp, Weight, part
from qcc.ir.errors import NotSupported
from qcc.ir.format import Format
from qcc.ir.infer import constant_of
from qcc.ir.program import Program
from qcc.ir.rewrite import rank_of, scalar_of
from qcc.ir.types import QuantizedType

from .wrappers import Float, Int32

if TYPE_CHECKING:
    from .lower import Lowering


@dataclass(frozen=True)
class Kernel:
    """The text of a kernel, and a weight as it reads it."""

    text: LinearText
    packed: Packed


def linear(op: Linear, lowering: Lowering) -> None:
    """`y[..., N] = x[..., K] w[N, K]^T + bias` in float32, with all other operations on the same activations."""
    if op.results[0] in lowering.values:
        return
    source, fixed = source_of(op), fixed_of(op)
    group = [other for other in _readers(source) if fixed_of(other) == fixed]
    kernels = [lowering.packed[each.node] for each in group]
    x, extents = lowering.tensor(source), lowering.dims(source)
    assert extents is not None
    biases = [_bias(each, kernel, lowering) for each, kernel in zip(group, kernels, strict=True)]
    members = [Member(kernel.text, bias is not None) for kernel, bias in zip(kernels, biases, strict=True)]
    function, called = group_function(members, lowering.isa)
    lowering.functions.update({each.symbol: each for each in called})
    data = [lowering.parameter(k.packed.data, _codes(each)) for each, k in zip(group, kernels, strict=True)]
    given = [lowering.parameter(b, f"{each.node}.bias") for each, b in zip(group, biases, strict=True) if b is not None]
    numbers = [
        math.prod(extents[:-1], start=1),
        *[Float(kernel.packed.alpha) for kernel in kernels],
        Float(fixed.scale if fixed else 0.0),
        Int32(fixed.stored if fixed else 0),
    ]
    results = [([*extents[:-1], kernel.text.spec.n], "float32") for kernel in kernels]
    made = lowering.calls(function, [x, *data, *given], results, numbers)
    for each, y in zip(group, made, strict=True):
        lowering.values[each.results[0]] = y


def source_of(op: QuantizedOp) -> SSAValue:
    """What an operation reads, before it is rounded."""
    x = op.operands[0]
    return x.owner.operands[0] if isinstance(x.owner, Quantize) else x


def _readers(source: SSAValue) -> list[Linear]:
    """The linear operations with a kernel that read `source`, rounded or not, in their order."""
    readers = list[Linear]()
    for use in source.uses:
        user = use.operation
        ends = [u.operation for u in user.results[0].uses] if isinstance(user, Quantize) else [user]
        readers += [
            r for r in ends if isinstance(r, Linear) and r.get("kernel") != "expansion" and source_of(r) is source
        ]
    block = readers[0].parent
    assert block is not None
    return [op for op in block.ops if isinstance(op, Linear) and op in readers]


def _codes(op: QuantizedOp) -> str:
    owner = op.operands[1].owner
    assert isinstance(owner, Weight)
    return part(owner.weight, "codes")


def embedding(op: Embedding, lowering: Lowering) -> None:
    """`y[..., D] = table[indices]` in float32; the table lies as its linear operation reads it, where it has one.

    A number that all of it is multiplied with, and nothing else reads it, is a factor of the kernel.
    """
    table = lowering.packed[op.node]
    scaled = scaling(op, lowering.program)
    spec = EmbeddingSpec.of(table.text, 1.0 if scaled is None else scaled[1])
    places = lowering.tensor(op.operands[0])
    extents = lowering.dims(op.operands[0])
    assert extents is not None
    if places.ty.dtype.dtype != "int64":
        places = lowering.emit(lowering.relax.op.astype(places, "int64"))
    data = lowering.parameter(table.packed.data, _codes(op))
    numbers = [math.prod(extents, start=1), Float(table.packed.alpha)]
    missing = f"{op.where()}: an index is not in the table of {spec.linear.n}"
    function = embedding_function(spec, lowering.isa)
    result = ([*extents, spec.linear.k], "float32")
    made = lowering.call(function, [places, data], result, numbers, refusal=missing)
    lowering.values[op.results[0] if scaled is None else scaled[0].results[0]] = made
    if scaled is not None:
        lowering.blocks.covered.add(scaled[0])


def scaling(op: Embedding, program: Program) -> tuple[OnnxOp, float] | None:
    """The one reader of an embedding where it multiplies with a number, and that."""
    use = op.results[0].get_unique_use()
    reader = None if use is None else use.operation
    if not isinstance(reader, OnnxOp) or reader.name != "onnx.Mul" or reader.parent is not op.parent:
        return None
    other = reader.operands[1 if reader.operands[0] is op.results[0] else 0]
    number = scalar_of(other, program)
    fits = number is not None and math.isfinite(number) and rank_of(other) in (0, 1)
    return (reader, number) if fits and number is not None else None


def table_spec(op: QuantizedOp) -> LinearSpec:
    """The linear operation whose kernel packs a table; `NotSupported` where there is none."""
    n, k = op.weight_type(2).shape
    return LinearSpec(n, k, op.weight_type(2).format, Activation(16))


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


def _bias(op: Linear, kernel: Kernel, lowering: Lowering) -> np.ndarray | None:
    """float32 [N]: the bias, and what the zero point of the activations adds; None where there is neither."""
    from qcc.ir.rewrite import array_of

    slot, offset = op.slot(2), kernel.packed.offset
    if slot is None:
        return offset
    own = array_of(slot, lowering.program)
    if own is None:
        raise NotSupported("its bias is no constant")
    return (own.reshape(-1) if offset is None else offset + own.reshape(-1)).astype(np.float32)
