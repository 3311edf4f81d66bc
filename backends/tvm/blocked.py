"""Images between convolutions: values in blocks of 16 channels, and codes with the halo that their readers want.

    wide(value)     float32 [N, C / 16, H, W, 16]       what convolutions write and elementwise operators keep
    codes(value)    uint8, with a halo of zeros         what convolutions read

A convolution whose only reader quantizes its result writes codes at once. Whatever stands between two convolutions and
computes one number from one number is left in blocks, so that nothing is repacked; TVM fuses it with the rounding.
"""

from __future__ import annotations

import importlib
from collections.abc import Callable
from dataclasses import replace
from functools import partial
from typing import TYPE_CHECKING, Any

import numpy as np
from xdsl.ir import Operation, SSAValue

from qcc.backends.native import conv
from qcc.backends.native.blocked import BLOCK, NARROW, Blocked, Sides
from qcc.backends.native.calls import conv_function
from qcc.backends.native.conv import Scales
from qcc.backends.native.conv_spec import ConvSpec
from qcc.backends.native.emit_conv import ConvText
from qcc.backends.native.linear import Fixed
from qcc.ir import types
from qcc.ir.dialects.onnx import OnnxOp
from qcc.ir.dialects.q import Conv, Dequantize, Quantize, Weight, part
from qcc.ir.errors import NotSupported
from qcc.ir.rewrite import array_of

from . import operators
from .chains import Chain, chain_of
from .lower import Int32, extents_of
from .quantized import fixed_of, fixed_scale
from .toolchain import Tvm, tvm

if TYPE_CHECKING:
    from .lower import Lowering

NOMINAL = (24, 80)
"""Height and width that a schedule is chosen for where an image's size is a symbol."""
_UNARY = {
    "Abs", "Clip", "Elu", "Erf", "Exp", "Gelu", "HardSigmoid", "HardSwish", "Identity", "LeakyRelu", "Neg", "Relu",
    "Sigmoid", "Softplus", "Sqrt", "Tanh",
}  # fmt: skip
_BINARY = {"Add", "Sub", "Mul", "Div", "Max", "Min"}
_NONE: Sides = (0, 0, 0, 0)


class Blocks:
    """The blocked forms of the values of a lowering."""

    def __init__(self, lowering: Lowering) -> None:
        self.lowering = lowering
        self.wides: dict[SSAValue, Tvm] = {}
        self.channels: dict[SSAValue, int] = {}
        self.held: dict[SSAValue, tuple[Tvm, Blocked]] = {}
        """Codes by the result of their `q.quantize`, with their form; its size is nominal."""
        self.covered: set[Operation] = set()
        """Operations that a convolution computes with its own."""

    # Forms

    def dims(self, value: SSAValue) -> list[Any] | None:
        """Extents of a value in blocks, as [N, C, H, W]; None where it is not in blocks. Any: int or expression."""
        if value not in self.wides:
            return None
        extents = extents_of(self.wides[value])
        assert extents is not None
        return [extents[0], self.channels[value], *extents[2:4]]

    def natural(self, value: SSAValue) -> Tvm:
        """An expression for a value in blocks, in the order of the IR."""
        wide = self.wides.get(value)
        if wide is None:
            raise NotSupported(f"{types.dims_of(value.type)} is not computed before it is read")
        channels = self.channels[value]
        return self._computed(partial(_unblocked, channels=channels), wide)

    def wide(self, value: SSAValue) -> Tvm:
        """A value in blocks."""
        if value not in self.wides:
            source = self.lowering.tensor(value)
            c = (extents_of(source) or [None, None])[1]
            if not isinstance(c, int):
                raise NotSupported("the number of its channels is a symbol")
            self.wides[value] = self.lowering.emit(self._computed(partial(_blocked, channels=c), source))
            self.channels[value] = c
        return self.wides[value]

    def _computed(self, compute: Callable[[Tvm], Tvm], x: Tvm) -> Tvm:
        """A call of TIR that TVM makes of an expression of one tensor; what else it needs is bound in `compute`."""

        def written(x: Tvm) -> Tvm:
            return compute(x)

        written.__name__ = getattr(compute, "func", compute).__name__.strip("_")
        return self.lowering.builder.emit_te(written, x, primfunc_name_hint=written.__name__)

    # Operations

    def conv(self, op: Conv) -> None:
        """A convolution of codes, with the chain that follows it."""
        fixed = fixed_of(op)
        assert fixed is not None
        codes, form = self.codes(op.operands[0])
        chain = chain_of(op.results[0], self.lowering.program)
        to = chain.fixed
        spec = replace(conv_spec(op, form), epilogue=chain.epilogue)
        if to is not None and chain.end is not None:
            spec = replace(spec, dtype="s8" if to.signed else "u8", halo=wanted_halo(chain.end.results[0]))
        function, text = conv_function(spec, self.lowering.isa)
        packed = _packed(op, text, fixed, chain, self.lowering)
        sizes = extents_of(codes)
        assert sizes is not None
        n, _, rows, columns, _ = sizes
        top, left, bottom, right = form.halo
        height, width = rows - top - bottom, columns - left - right
        out = self._size(spec, height, width)
        extents = [n, spec.output_blocks, *out, BLOCK]
        numbers = [n, height, width, *map(Int32, map(int, packed.codes))]
        inputs = [codes, *(self.lowering.parameter(a, f"{op.node}.{k}") for k, a in packed.arrays)]
        made = self.lowering.call(function, inputs, (extents, "float32" if spec.dtype == "f32" else "uint8"), numbers)
        self.covered.update(chain.operations)
        if chain.end is None:
            self.wides[chain.value], self.channels[chain.value] = made, spec.channels
        else:
            self.held[chain.end.results[0]] = made, spec.y

    def _size(self, spec: ConvSpec, height: Any, width: Any) -> list[Any]:
        """Rows and columns of the result with its halo. Any: int or expression."""
        top, left, bottom, right = spec.pads
        rows = (height + top + bottom - spec.reach[0]) // spec.strides[0] + 1
        columns = (width + left + right - spec.reach[1]) // spec.strides[1] + 1
        halo = spec.halo
        analyzer = tvm().sym.Analyzer()
        total = (rows + halo[0] + halo[2], columns + halo[1] + halo[3])
        return [t if isinstance(t, int) else analyzer.simplify(t) for t in total]

    def codes(self, value: SSAValue) -> tuple[Tvm, Blocked]:
        """The codes of a `q.quantize`, with the halo that all its readers together want."""
        if value not in self.held:
            quantize = value.owner
            assert isinstance(quantize, Quantize)
            fixed, source = fixed_scale(quantize), quantize.operands[0]
            assert fixed is not None
            dims = self.lowering.dims(source)
            assert dims is not None
            halo, channels = wanted_halo(value), dims[1]
            if not isinstance(channels, int):
                raise NotSupported("the number of its channels is a symbol")
            narrow = channels <= NARROW and source not in self.wides
            form = Blocked(channels, *NOMINAL, "s8" if fixed.signed else "u8", halo, NARROW if narrow else BLOCK)
            x = self.lowering.tensor(source) if narrow else self.wide(source)
            made = self._computed(partial(_quantized, form=form, fixed=fixed), x)
            self.held[value] = self.lowering.emit(made), form
        return self.held[value]

    def dequantize(self, op: Dequantize) -> None:
        """Codes back to float32: from the codes where they are held, else the value rounded to its grid."""
        quantize = op.operands[0].owner
        assert isinstance(quantize, Quantize)
        fixed, result, lowering = fixed_scale(quantize), op.results[0], self.lowering
        if fixed is None:
            raise NotSupported("codes whose scale is not known before it runs")
        if op.operands[0] in self.held:
            codes, form = self.held[op.operands[0]]
            self.wides[result] = lowering.emit(self._computed(partial(_dequantized, form=form, fixed=fixed), codes))
            self.channels[result] = form.channels
            return
        source = quantize.operands[0]
        if source in self.wides:
            self.wides[result] = lowering.emit(self._computed(partial(_rounded, fixed=fixed), self.wides[source]))
            self.channels[result] = self.channels[source]
        else:
            lowering.values[result] = lowering.emit(
                self._computed(partial(_rounded, fixed=fixed), lowering.tensor(source))
            )

    def keeps(self, op: OnnxOp) -> bool:
        """Whether an operator was lowered in blocks: it reads one, and its rule has a form for it."""
        if not any(v in self.wides and v not in self.lowering.values for v in op.operands) or len(op.results) != 1:
            return False
        made: Tvm | None = None
        first = next(v for v in op.operands if v in self.wides)
        if op.op_type in _UNARY and op.operands[0] is first:
            made = operators.convert(
                op, [self.wides[first], *map(self.lowering.tensor, op.operands[1:])], self.lowering
            )
        elif op.op_type in _BINARY:
            made = self._binary(op, first)
        elif op.op_type == "GlobalAveragePool":
            made = self.lowering.emit(self.lowering.relax.op.mean(self.wides[first], [2, 3], keepdims=True))
        if made is None:
            return False
        self.wides[op.results[0]] = made
        self.channels[op.results[0]] = self.channels[first]
        return True

    def _binary(self, op: OnnxOp, first: SSAValue) -> Tvm | None:
        """Both operands in blocks; a constant for all or for each channel is put into blocks."""
        channels, inputs = self.channels[first], list[Tvm]()
        for value in op.operands:
            if value in self.wides:
                if self.channels[value] != channels:
                    return None
                inputs.append(self.wides[value])
                continue
            array = array_of(value, self.lowering.program)
            if array is None or array.dtype != np.float32:
                return None
            if array.size == 1:
                inputs.append(self.lowering.relax.const(array.reshape(1, 1, 1, 1, 1), "float32"))
                continue
            if array.ndim < 3 or array.size != channels or array.shape[-3] != channels:
                return None
            blocks = -(-channels // BLOCK)
            spread = np.zeros(blocks * BLOCK, np.float32)
            spread[:channels] = array.reshape(-1)
            inputs.append(self.lowering.relax.const(spread.reshape(1, blocks, 1, 1, BLOCK), "float32"))
        return operators.convert(op, operators.agreeing(inputs, self.lowering), self.lowering)


def wanted_halo(value: SSAValue) -> Sides:
    """The most pixels that any convolution reads beyond each side of an image."""
    pads = [_pads(use.operation) for use in value.uses if isinstance(use.operation, Conv)]
    return tuple(max(side) for side in zip(*pads, strict=True)) if pads else _NONE  # pyright: ignore[reportReturnType]


def conv_spec(op: Conv, form: Blocked) -> ConvSpec:
    """What the kernel of a `q.conv` computes of images in a form."""
    shape, groups = op.weight_type().shape, op.integer("group", 1)
    strides, dilations = (_pair(op, name) for name in ("strides", "dilations"))
    return ConvSpec(form, shape[0], (shape[2], shape[3]), strides, _pads(op), dilations, groups, "f32")


def obstacle(op: Conv) -> str:
    """Why there is no kernel for a convolution, or nothing."""
    weight = op.weight_type()
    fmt = weight.format
    if op.integer("transposed"):
        return "it is transposed"
    if len(weight.shape) != 4:
        return f"it has {len(weight.shape) - 2} spatial axes, kernels have 2"
    if fixed_of(op) is None:
        return "its activations have no calibrated scale"
    if str(fmt.element) != "i8" or fmt.zero is not None or fmt.offset or len(fmt.levels()) != 1:
        return f"its weight is {str(fmt)!r}, kernels take i8 with one scale for each channel"
    if fmt.scale.block_of(weight.shape)[1:] != weight.shape[1:] or fmt.scale.block_of(weight.shape)[0] not in (
        1,
        weight.shape[0],
    ):
        return f"its scales are {fmt.scale}, kernels take one for each channel"
    if op.slot(2) is not None and not isinstance(op.operands[2].owner, Weight):
        return "its bias is no constant"
    if op.get("auto_pad", "NOTSET") not in ("NOTSET", "VALID"):
        return f"its padding is {op.get('auto_pad')}"
    return ""


def _pads(op: Any) -> Sides:
    """Any: a `q.conv`."""
    top, left, bottom, right = op.get("pads") or [0, 0, 0, 0]
    return int(top), int(left), int(bottom), int(right)


def _pair(op: Conv, name: str) -> tuple[int, int]:
    """Any: an attribute."""
    values: Any = op.get(name) or [1, 1]
    return int(values[0]), int(values[1])


class _Packed:
    """The arrays of a convolution, and the bytes of zero and of the ends of its codes."""

    def __init__(self, packed: conv.PackedConv) -> None:
        names = ("weight", "start", "scale", "numbers")
        self.arrays = [(name, getattr(packed, name)) for name in names]
        self.codes = packed.codes


def _packed(op: Conv, text: ConvText, x: Fixed, chain: Chain, lowering: Lowering) -> _Packed:
    spec, y = text.spec, chain.fixed
    owner = op.operands[1].owner
    assert isinstance(owner, Weight)
    store = lowering.program.weights
    codes = store[part(owner.weight, "codes")]
    scale = np.broadcast_to(store[part(owner.weight, "scale")].astype(np.float32).reshape(-1), (spec.channels,))
    scales = Scales(x.scale, np.ascontiguousarray(scale), y.scale if y else 1.0, x.zero, y.zero if y else 0)
    bias = None
    if op.slot(2) is not None:
        own = array_of(op.operands[2], lowering.program)
        assert own is not None
        units = own.reshape(-1).astype(np.float64) / (float(np.float32(x.scale)) * scale.astype(np.float64))
        bias = np.clip(np.rint(units), -(2**30), 2**30).astype(np.int32)
    return _Packed(conv.pack(text, codes, scales, bias, numbers=chain.numbers))


def _te() -> Tvm:
    tvm()
    return importlib.import_module("tvm.te")


def _unblocked(x: Tvm, channels: int) -> Tvm:
    """[N, C, H, W] of a value in blocks."""
    n, _, h, w, _ = x.shape

    def value(n: Tvm, c: Tvm, y: Tvm, z: Tvm) -> Tvm:
        return x[n, c // BLOCK, y, z, c % BLOCK]

    return _te().compute((n, channels, h, w), value, "unblocked")


def _blocked(x: Tvm, channels: int) -> Tvm:
    """A value [N, C, H, W] in blocks; channels that fill the last are 0."""
    n, _, h, w = x.shape
    te, tirx = _te(), tvm().tirx

    def value(n: Tvm, b: Tvm, y: Tvm, z: Tvm, lane: Tvm) -> Tvm:
        c = b * BLOCK + lane
        if channels % BLOCK == 0:
            return x[n, c, y, z]
        return tirx.if_then_else(c < channels, x[n, tirx.min(c, channels - 1), y, z], tirx.const(0.0, "float32"))

    return te.compute((n, -(-channels // BLOCK), h, w, BLOCK), value, "blocked")


def _quantized(x: Tvm, form: Blocked, fixed: Fixed) -> Tvm:
    """Codes with their halo, of a value in blocks, or of few channels in the order of the IR."""
    te, tirx = _te(), tvm().tirx
    (n, _, h, w), channels = x.shape[:4], form.channels
    top, left, bottom, right = form.halo
    zero = tirx.const(fixed.stored + 128, "uint8")

    def value(n: Tvm, b: Tvm, y: Tvm, z: Tvm, lane: Tvm) -> Tvm:
        inside = [y >= top, y < h + top, z >= left, z < w + left]
        place = (y - top, z - left)
        if form.block == BLOCK:
            read = x[n, b, place[0], place[1], lane]
        else:
            inside.append(lane < channels)
            read = x[n, tirx.min(lane, channels - 1), place[0], place[1]]
        code = _code(read, fixed)
        conditions = [c for c, needed in zip(inside, (top, bottom, left, right, 1), strict=False) if needed]
        return tirx.if_then_else(tirx.all(*conditions), code, zero) if conditions else code

    return te.compute((n, form.blocks, h + top + bottom, w + left + right, form.block), value, "quantized")


def _code(read: Tvm, fixed: Fixed) -> Tvm:
    """The stored byte of a number: `saturate(round(x / scale) + zero)`, plus 128 where codes are signed."""
    tirx = tvm().tirx
    offset = float(fixed.stored + 128)
    scaled = tirx.nearbyint(read / tirx.const(np.float32(fixed.scale), "float32")) + tirx.const(offset, "float32")
    zero, most = tirx.const(0.0, "float32"), tirx.const(255.0, "float32")
    return tirx.Cast("uint8", tirx.max(tirx.min(scaled, most), zero))


def _dequantized(codes: Tvm, form: Blocked, fixed: Fixed) -> Tvm:
    """float32 in blocks of codes with a halo."""
    te, tirx = _te(), tvm().tirx
    n, blocks, rows, columns, lanes = codes.shape
    top, left, bottom, right = form.halo

    def value(n: Tvm, b: Tvm, y: Tvm, z: Tvm, lane: Tvm) -> Tvm:
        code = tirx.Cast("float32", codes[n, b, y + top, z + left, lane])
        return (code - tirx.const(float(fixed.stored + 128), "float32")) * tirx.const(
            np.float32(fixed.scale), "float32"
        )

    return te.compute((n, blocks, rows - top - bottom, columns - left - right, lanes), value, "dequantized")


def _rounded(x: Tvm, fixed: Fixed) -> Tvm:
    """float32 rounded to the grid of its codes."""
    te, tirx = _te(), tvm().tirx

    def value(*place: Tvm) -> Tvm:
        code = tirx.Cast("float32", _code(x(*place), fixed))
        return (code - tirx.const(float(fixed.stored + 128), "float32")) * tirx.const(
            np.float32(fixed.scale), "float32"
        )

    return te.compute(tuple(x.shape), value, "rounded")
