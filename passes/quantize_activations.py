"""Put the activations around quantized weights into codes: `q.linear(x, w) -> q.linear(q.quantize(x), w)`.

With calibrated scales the codes run on through the operators that have integer kernels, and each value that a
convolution gives is quantized as well, so that a chain of layers stays in codes. With dynamic scales only the operands
of linear layers become codes. Convolutions for which integer arithmetic does not pay keep float activations, and the
reason is recorded.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
from xdsl.dialects.func import ReturnOp
from xdsl.ir import Block, BlockArgument, Operation, SSAValue
from xdsl.rewriter import InsertPoint, Rewriter

from qcc.ir import types
from qcc.ir.builder import Builder
from qcc.ir.dialects.onnx import OnnxOp
from qcc.ir.dialects.q import Conv, Dequantize, Linear, Quantize, Weight, part
from qcc.ir.errors import BadInput
from qcc.ir.format import Format
from qcc.ir.level import Level
from qcc.ir.program import Program
from qcc.ir.rewrite import Pass, ProgramContext, array_of, builder
from qcc.ir.types import QuantizedType

from . import observers, schemes
from .calibrate import key_of
from .observers.statistics import Histogram

_ARITHMETIC = ("HardSwish", "Sigmoid", "GlobalAveragePool", "AveragePool", "LeakyRelu", "Concat")
"""Operators with integer kernels that give values of a range of their own. Add and Mul have such kernels too, and would
be faster, but PP-OCRv4 misreads lines when they are quantized: they stay float."""
_CARRYING = ("MaxPool", "Relu", "Reshape", "Transpose", "Squeeze", "Unsqueeze", "Flatten", "Slice")
"""Operators that move codes without changing what they mean."""
_DENSE = 32
"""Products an output of a convolution must sum for integer arithmetic to win."""
_BIAS_CODES = float(1 << 30)
"""The largest code of a bias: half of what int32 holds, so that the products it is added to fit beside it."""
_LANES = 16
"""Channels that a depthwise integer kernel takes at a time; other counts run a slow tail."""
_TINY = float(np.finfo(np.float32).tiny)


@dataclass(frozen=True)
class QuantizeActivations(Pass):
    """Quantize activations as a scheme says, with ranges from `ctx.statistics` where they are calibrated."""

    name = "quantize_activations"

    scheme: str = "W8A8"
    group_size: int = 0
    observer: str = "mse"

    def run(self, program: Program, ctx: ProgramContext) -> None:
        """Dynamic: quantize the operand of each linear. Static: choose the values that become codes, insert pairs."""
        scheme = schemes.load(self.scheme)
        fmt = scheme.activation_format(self.group_size)
        if fmt is None:
            return
        if scheme.dynamic:
            _quantize_dynamically(program, fmt)
        else:
            ranges = _Ranges(ctx.statistics, fmt, self.observer)
            _Static(program, fmt, ranges).run()


def _quantize_dynamically(program: Program, fmt: Format) -> None:
    made: dict[tuple[SSAValue, Format], SSAValue] = {}
    for op in list(program.body.ops):
        if isinstance(op, Conv):
            program.decide(
                op.node, "activations float", "no integer kernel computes scales of a convolution's input at run time"
            )
        if not isinstance(op, Linear):
            continue
        x = op.operands[0]
        if types.dims_of(x.type) is None:
            program.decide(op.node, "activations float", "the rank of its input is unknown")
            continue
        place = (x, _beside(op.weight_type().format, fmt))
        if place not in made:
            quantize = Quantize([x], [QuantizedType.of(x.type, place[1])])
            Rewriter.insert_op(quantize, InsertPoint.before(op))
            made[place] = quantize.results[0]
        op.operands[0] = made[place]


def _beside(weight: Format, activation: Format) -> Format:
    """The format of activations for a weight: in its groups where it has groups, whatever the scheme's are.

    A weight that keeps the codes of its file keeps their groups too.
    """
    block = weight.scale.block
    if not activation.is_plain:
        return activation
    if block is None or len(block) != 1 or block[0] is None or block == activation.scale.block:
        return activation
    return Format("i8", (Level("f32", block),))


@dataclass(frozen=True)
class _Ranges:
    statistics: dict[str, Histogram]
    format: Format
    observer: str

    def __contains__(self, value: SSAValue) -> bool:
        if isinstance(value.owner, Weight) or types.dims_of(value.type) is None:
            return False
        return key_of(value) in self.statistics

    def parameters(self, value: SSAValue) -> tuple[np.ndarray, np.ndarray | None]:
        """Scale (float32 scalar) and zero point of a value."""
        family = self.format.family
        symmetric = self.format.zero is None
        observe = observers.load(self.observer)
        low, high = observe.range_of(
            self.statistics[key_of(value)], bits=family.bits, signed=family.signed, symmetric=symmetric
        )
        return parameters(low, high, self.format)


def parameters(low: float, high: float, fmt: Format) -> tuple[np.ndarray, np.ndarray | None]:
    """The scale and zero point that map [low, high], which must hold 0, onto the codes of `fmt`."""
    family = fmt.family
    if fmt.zero is None:
        scale = max(-low / -family.low if family.low else 0.0, high / family.high)
        return np.array(scale if scale > _TINY else 1.0, np.float32), None
    scale = (high - low) / (family.high - family.low)
    scale = scale if scale > _TINY else 1.0
    zero = min(max(round(family.low - low / scale), family.low), family.high)
    return np.array(scale, np.float32), np.array(zero, np.int8 if family.signed else np.uint8)


class _Static:
    """Choose the values that become codes, from the top down, and insert quantize and dequantize around them."""

    def __init__(self, program: Program, fmt: Format, ranges: _Ranges) -> None:
        self.program = program
        self.format = fmt
        self.ranges = ranges
        self.chosen: dict[SSAValue, SSAValue] = {}
        """Values to quantize -> the value whose range they share."""

    def run(self) -> None:
        integer = [op for op in self.program.body.ops if isinstance(op, Conv | Linear) and self._pays(op)]
        if not integer:
            return
        for op in integer:
            self._choose(op.operands[0], op)
        for op in self.program.body.ops:
            if op in integer and isinstance(op, Conv):
                self._choose_result(op)
            elif isinstance(op, OnnxOp):
                self._follow(op)
        for value, source in self.chosen.items():
            self._insert(value, source, integer)
        for op in integer:
            if isinstance(op, Conv) and op.slot(2) is not None:
                self._let_bias_fit(op)

    def _pays(self, op: Conv | Linear) -> bool:
        reason = _unprofitable(op)
        if not reason and op.operands[0] not in self.ranges:
            reason = "its input is not a float value of known rank in the network's own graph"
        if reason:
            self.program.decide(op.node, "activations float", reason)
        return not reason

    def _choose(self, value: SSAValue, op: Operation) -> None:
        if value not in self.ranges:
            raise BadInput(f"{op.name}: no calibration statistics for its input", hint="calibrate the same program")
        self.chosen.setdefault(value, value)

    def _choose_result(self, op: Conv) -> None:
        """Quantize what a convolution gives, after the activation function that its kernel takes in."""
        value = op.results[0]
        use = value.get_unique_use()
        if use is not None and use.operation.name in ("onnx.Relu", "onnx.Clip"):
            value = use.operation.results[0]
        if not _is_returned(value) and value in self.ranges:
            self.chosen.setdefault(value, value)

    def _follow(self, op: OnnxOp) -> None:
        """Let codes run on through an operator whose data operands are all codes already, or constants."""
        if op.op_type not in _ARITHMETIC + _CARRYING or op.results[0] not in self.ranges or _is_returned(op.results[0]):
            return
        data = [o for o in op.operands if types.schema_string(o.type) == "tensor(float)"]
        computed = [o for o in data if array_of(o, self.program) is None]
        if not computed or any(o not in self.chosen for o in computed):
            return
        if op.op_type in _CARRYING:
            self.chosen.setdefault(op.results[0], self.chosen[computed[0]] if op.op_type != "Relu" else op.results[0])
        else:
            self.chosen.setdefault(op.results[0], op.results[0])
            for index, operand in enumerate(op.operands):
                if operand not in computed and operand in data:
                    self._quantize_constant(op, index)

    def _quantize_constant(self, op: OnnxOp, index: int) -> None:
        array = array_of(op.operands[index], self.program)
        assert array is not None
        low, high = min(0.0, float(array.min())), max(0.0, float(array.max()))
        fixed = parameters(low, high, self.format)
        _, dequantize = self._pair(op.operands[index], fixed, builder(op, self.program))
        op.operands[index] = dequantize.results[0]

    def _insert(self, value: SSAValue, source: SSAValue, integer: list[Conv | Linear]) -> None:
        readers = [(use.operation, use.index) for use in value.uses if not isinstance(use.operation, ReturnOp)]
        quantize, dequantize = self._pair(value, self.ranges.parameters(source), _after(value, self.program))
        codes, again = quantize.results[0], dequantize.results[0]
        for reader, index in readers:
            reader.operands[index] = codes if index == 0 and reader in integer else again
        if again.first_use is None:
            Rewriter.erase_op(dequantize)

    def _let_bias_fit(self, op: Conv) -> None:
        """Give channels of almost nothing but bias a coarser scale, so that their bias fits int32 beside the products.

        Training leaves such channels where it switched one off; the bias of an integer kernel would overflow there.
        """
        quantize, weight, bias = op.operands[0].owner, op.operands[1].owner, array_of(op.slot(2), self.program)
        assert isinstance(quantize, Quantize) and isinstance(weight, Weight)
        step, shape = array_of(quantize.slot(1), self.program), op.weight_type().shape
        if bias is None or step is None or op.weight_type().format.scale.block != (None,) * (len(shape) - 1):
            return
        store, codes, scale = self.program.weights, part(weight.weight, "codes"), part(weight.weight, "scale")
        steps = store[scale].reshape(-1).astype(np.float64)
        coarser = np.maximum(1.0, np.abs(bias.astype(np.float64)) / (_BIAS_CODES * steps * float(step)))
        if (coarser > 1).any():
            ratio = coarser.reshape(-1, *(1,) * (len(shape) - 1))
            store[codes] = np.rint(store[codes] / ratio).astype(store[codes].dtype)
            store[scale] = (steps * coarser).astype(np.float32).reshape(store[scale].shape)

    def _pair(
        self, value: SSAValue, fixed: tuple[np.ndarray, np.ndarray | None], build: Builder
    ) -> tuple[Quantize, Dequantize]:
        scale, zero = fixed
        operands = [value, build.constant(scale), None if zero is None else build.constant(zero)]
        quantize = Quantize(operands, [QuantizedType.of(value.type, self.format)])
        dequantize = Dequantize([quantize.results[0]], [value.type])
        for op in (quantize, dequantize):
            Rewriter.insert_op(op, InsertPoint.before(build.before))
        return quantize, dequantize


def _unprofitable(op: Conv | Linear) -> str:
    """Why integer arithmetic would be slower than float; empty where it pays."""
    if isinstance(op, Linear):
        return ""
    if op.integer("transposed"):
        return "transposed convolutions have no integer kernel"
    shape = op.weight_type().shape
    depthwise = shape[1] == 1 and op.integer("group", 1) > 1
    if depthwise and shape[0] % _LANES:
        return f"depthwise with {shape[0]} channels: the integer kernel takes {_LANES} at a time"
    if not depthwise and math.prod(shape[1:]) < _DENSE:
        return f"it sums {math.prod(shape[1:])} products, fewer than {_DENSE}: float is faster"
    return ""


def _is_returned(value: SSAValue) -> bool:
    return any(isinstance(use.operation, ReturnOp) for use in value.uses)


def _after(value: SSAValue, program: Program) -> Builder:
    """A builder that inserts right behind the definition of a value."""
    following = (
        program.body.first_op
        if isinstance(value, BlockArgument)
        else value.owner.next_op
        if not isinstance(value.owner, Block)
        else None
    )
    assert following is not None
    return builder(following, program)
