"""What follows a convolution, number by number, until it is rounded: `conv -> HardSwish -> Mul -> Add -> quantize`.

A chain goes through operators that have one reader, and through roundings to codes and back; it ends in a `q.quantize`,
whose codes the convolution then writes, or in numbers. Scales and constants are numbers beside the expression, so that
layers that differ in them alone share a kernel.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from xdsl.ir import Operation, SSAValue

from qcc.backends.native.linear import Fixed
from qcc.backends.native.rows_expression import Node, call, clip, hard_sigmoid, hard_swish, single, tensor
from qcc.ir.dialects.onnx import OnnxOp
from qcc.ir.dialects.q import Dequantize, Quantize
from qcc.ir.rewrite import array_of

from .quantized import fixed_scale

if TYPE_CHECKING:
    from qcc.ir.program import Program


@dataclass
class Chain:
    """The expression so far, the numbers that it takes, and the operations that it stands for."""

    value: SSAValue
    """The last value of the chain, in numbers."""
    expression: Node = field(default_factory=lambda: tensor("x"))
    numbers: list[float] = field(default_factory=list[float])
    operations: list[Operation] = field(default_factory=list[Operation])
    end: Quantize | None = None
    """What rounds the last value to codes."""

    @property
    def fixed(self) -> Fixed | None:
        """The scale of the codes."""
        return None if self.end is None else fixed_scale(self.end)

    @property
    def epilogue(self) -> Node | None:
        """The expression, where it is more than its input."""
        return None if self.expression.op == "tensor" else self.expression

    def number(self, value: float) -> Node:
        """A number beside the expression."""
        self.numbers.append(float(value))
        return single(f"n{len(self.numbers) - 1}")


def chain_of(value: SSAValue, program: Program) -> Chain:
    """The longest chain that begins at a value."""
    chain = Chain(value)
    while (reader := _only_reader(chain.value)) is not None:
        match reader:
            case Quantize() if (fixed := fixed_scale(reader)) is not None:
                back = _only_reader(reader.results[0])
                if not isinstance(back, Dequantize):
                    chain.end = reader
                    return chain
                _round(chain, fixed)
                chain.operations.append(back)
                chain.value = back.results[0]
            case OnnxOp() if _apply(reader, chain, program):
                chain.operations.append(reader)
                chain.value = reader.results[0]
            case _:
                return chain
    return chain


def _only_reader(value: SSAValue) -> Operation | None:
    uses = list(value.uses)
    return uses[0].operation if len(uses) == 1 else None


def _round(chain: Chain, fixed: Fixed) -> None:
    """To codes and back."""
    scale, zero = chain.number(fixed.scale), chain.number(fixed.zero)
    low = -128 if fixed.signed else 0
    code = clip(call("round", chain.expression / scale) + zero, low, low + 255)
    chain.expression = (code - zero) * scale


def _apply(op: OnnxOp, chain: Chain, program: Program) -> bool:
    """Whether an operator could be added to a chain."""
    if op.domain or len(op.results) != 1:
        return False
    x = chain.expression
    if op.op_type in _UNARY and len(op.operands) == 1:
        chain.expression = _UNARY[op.op_type](x)
    elif op.op_type == "HardSigmoid":
        alpha, beta = op.get("alpha", 0.2), op.get("beta", 0.5)
        assert isinstance(alpha, float) and isinstance(beta, float)
        chain.expression = hard_sigmoid(x, alpha, beta)
    elif op.op_type in _BINARY and len(op.operands) == 2:
        first = op.operands[0] is chain.value
        array = array_of(op.operands[1 if first else 0], program)
        if array is None or array.size != 1 or array.dtype.name != "float32" or array.ndim > 4:
            return False
        other = chain.number(float(array.reshape(())))
        chain.expression = call(_BINARY[op.op_type], *((x, other) if first else (other, x)))
    else:
        return False
    return True


_UNARY: Mapping[str, Callable[[Node], Node]] = {
    "HardSwish": hard_swish,
    "Identity": lambda x: x,
    "Relu": lambda x: call("relu", x),
    "Sigmoid": lambda x: call("sigmoid", x),
    "Tanh": lambda x: call("tanh", x),
}
_BINARY = {"Add": "add", "Div": "div", "Mul": "mul", "Sub": "sub"}
