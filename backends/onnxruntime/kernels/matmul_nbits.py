"""`com.microsoft.MatMulNBits`: weights of 2, 4 or 8 bits in blocks along K, activations float or int8 by block.

Codes lie as [N, blocks, block * bits / 8] bytes, low code first; unsigned with an implicit zero point of 2^(bits-1)
where the format is symmetric. At accuracy level 4 the kernel itself quantizes blocks of activations to int8.
"""

from __future__ import annotations

import math

from xdsl.ir import SSAValue

from qcc.ir.dialects.q import QuantizedOp
from qcc.ir.kernel_task import Choice, KernelTask
from qcc.ir.layout import Layout

from ..lower import Lowering
from ..speed import Speed

_BITS = (2, 4, 8)
_BLOCKS = (16, 32, 64, 128, 256)


def offers(task: KernelTask, speed: Speed) -> list[Choice]:
    """One choice where the format has blocks of 16 to 256 along K; activations are float, or int8 in the same."""
    fmt, block = task.weight_format, _block(task)
    if task.op != "q.linear" or not block or fmt.bits not in _BITS or fmt.scale.dtype != "f32":
        return []
    symmetric = fmt.family.signed and fmt.zero is None
    if not symmetric and fmt.zero_dtype != f"u{fmt.bits}":
        return []
    activation = task.activation_format
    if activation is not None and not (
        task.dynamic and activation.element == "i8" and activation.scale.block == (block,)
    ):
        return []
    level = 1 if activation is None else 4
    xor = f" xor {1 << (fmt.bits - 1)}" if symmetric else ""
    codes = Layout.parse(f"n(n0) k(k1 k0:{block}) -> n0 k1 k0{xor}")
    zeros = None if symmetric else Layout.parse(f"n(n0) b(b1 b0:{8 // fmt.bits}) -> n0 b1 b0")
    n, k = task.weight
    cost = speed.matmul_nbits(fmt.bits, level, block) * n * k
    reason = "float activations" if level == 1 else "int8 activations by block"
    return [Choice("matmul_nbits", codes, zeros, (("accuracy_level", level), ("block_size", block)), cost, reason)]


def _block(task: KernelTask) -> int:
    """The extent of a block along K, 0 where this kernel has no such blocks."""
    block = task.weight_format.scale.block
    if block is None or len(block) != 1:
        return 0
    size = block[0] or 0
    return size if size in _BLOCKS else 0


def lower(op: QuantizedOp, choice: Choice, lowering: Lowering) -> SSAValue:
    """One MatMulNBits, and an addition where there is a bias."""
    return lowering.add_bias(op, product(op, choice, lowering))


def product(op: QuantizedOp, choice: Choice, lowering: Lowering) -> SSAValue:
    """The MatMulNBits alone."""
    parameters = dict(choice.parameters)
    type_, _ = lowering.weight(op)
    n, k = type_.shape
    bits, block = type_.format.bits, parameters["block_size"]
    blocks = math.ceil(k / block)
    codes = lowering.part(op, "codes", (n, blocks, block * bits // 8))
    scale = lowering.part(op, "scale", (n, blocks))
    zero = None
    if type_.format.zero_level is not None:
        zero = lowering.part(op, "zero", (n, math.ceil(blocks * bits / 8)))
    attributes: dict[str, object] = {
        "K": k,
        "N": n,
        "bits": bits,
        "block_size": block,
        "accuracy_level": parameters["accuracy_level"],
    }
    operands = [lowering.float_operand(op), codes, scale, zero]
    return lowering.build(op).op("msft.MatMulNBits", operands, op.results[0].type, attributes, node=op.node)
