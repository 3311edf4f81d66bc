"""The `q` dialect: operations on tensors held as codes.

    %w = q.weight "fc.weight" : !q.tensor<tensor<64x128xf32>, "i4, f32 per 32">
    %q = q.quantize(%x, %scale, %zero) : !q.tensor<tensor<?x128xf32>, "u8, f32 per tensor, zero u8">
    %y = q.linear "fc"(%q, %w, %bias) : tensor<?x64xf32>

Each operation *means* its expansion into standard operators over the codes (`ir/expand.py`): that is definition,
reference and fallback at once. Results of linear and conv are float; the accumulation order is not part of the meaning.
"""

from __future__ import annotations

from xdsl.dialects.builtin import StringAttr
from xdsl.ir import Attribute, Dialect, Operation, SSAValue
from xdsl.irdl import IRDLOperation, irdl_op_definition, opt_prop_def, prop_def, result_def, traits_def
from xdsl.parser import Parser
from xdsl.printer import Printer
from xdsl.traits import Pure
from xdsl.utils.exceptions import VerifyException

from .. import types
from ..infer import constant_of
from ..layout import Layout
from ..strings import parse_string
from ..types import QuantizedType
from .graph_op import GraphOp
from .q_attention import Attention


@irdl_op_definition
class Weight(IRDLOperation):
    """A tensor of the weight store.

    A quantized one reads the parts `name.codes`, `name.scale` and, where asymmetric, `name.zero`. The type carries the
    layout of packed codes; `zero "..."` that of packed zero points.
    """

    name = "q.weight"
    key = prop_def(StringAttr)
    zero = opt_prop_def(StringAttr)
    result = result_def()
    traits = traits_def(Pure())

    def __init__(self, key: str, type_: Attribute, zero_layout: Layout | None = None) -> None:
        properties = {"key": StringAttr(key)} | ({"zero": StringAttr(str(zero_layout))} if zero_layout else {})
        super().__init__(properties=properties, result_types=[type_])

    @property
    def zero_layout(self) -> Layout | None:
        """Where the bits of packed zero points lie."""
        return Layout.parse(self.zero.data) if self.zero else None

    @property
    def weight(self) -> str:
        """The name in the store."""
        return self.key.data

    def print(self, printer: Printer) -> None:
        """Print `q.weight "name" [zero "layout"] : type`."""
        printer.print_string(" ")
        printer.print_string_literal(self.weight)
        if self.zero:
            printer.print_string(" zero ")
            printer.print_string_literal(self.zero.data)
        printer.print_string(" : ")
        printer.print_attribute(self.result.type)

    @classmethod
    def parse(cls, parser: Parser) -> Weight:
        """Parse what `print` prints."""
        key = parse_string(parser)
        zero = Layout.parse(parser.parse_str_literal()) if parser.parse_optional_keyword("zero") else None
        parser.parse_punctuation(":")
        return Weight(key, parser.parse_type(), zero)

    def verify_(self) -> None:
        """A weight is a tensor of known shape."""
        dims = types.dims_of(self.result.type)
        if dims is None or not all(isinstance(d, int) for d in dims):
            raise VerifyException(f"q.weight {self.weight!r}: the shape must be known, found {self.result.type}")


class QuantizedOp(GraphOp):
    """Base of the operations below: shared checks."""

    allowed: tuple[str, ...] = ()

    def check_arity(self, low: int, high: int) -> None:
        """The number of operands, and attributes known to the operation."""
        if not low <= len(self.slots) <= high or len(self.results) != 1:
            raise VerifyException(f"{self.where()}: expected {low} to {high} operands and one result")
        for name in self.parameters:
            if name not in self.allowed:
                raise VerifyException(f"{self.where()}: no attribute is called {name!r}; known: {list(self.allowed)}")

    def weight_type(self, rank: int | None = None) -> QuantizedType:
        """The type of the operand `w`, which must be quantized and of that rank."""
        w = self.slot(1)
        if w is None or not isinstance(w.type, QuantizedType):
            raise VerifyException(f"{self.where()}: the weight must be a quantized tensor")
        if rank is not None and len(w.type.shape) != rank:
            raise VerifyException(f"{self.where()}: the weight must have rank {rank}, found {w.type}")
        return w.type


class Quantize(QuantizedOp):
    """Float to codes.

    With `scale` (and `zero`) the parameters are fixed; without, they follow from each block of the data at run time.
    """

    name = "q.quantize"
    formals = ("x", "scale", "zero")

    def verify_(self) -> None:
        """The result is quantized and expresses the operand; fixed parameters have the shape that the format gives."""
        self.check_arity(1, 3)
        result = self.results[0].type
        if not isinstance(result, QuantizedType):
            raise VerifyException(f"{self.where()}: the result must be a quantized tensor, found {result}")
        x, scale, zero = self.slot(0), self.slot(1), self.slot(2)
        if x is None or x.type != result.expressed:
            raise VerifyException(
                f"{self.where()}: the result expresses {result.expressed}, the operand is {x and x.type}"
            )
        if scale is not None and (zero is None) != (result.format.zero is None):
            raise VerifyException(f"{self.where()}: format {result.format} and the zero point do not fit")
        if scale is not None and result.format.scale.block is None and types.dims_of(scale.type) not in ((), None):
            raise VerifyException(f"{self.where()}: one scale per tensor is a scalar, found {scale.type}")
        if result.format.by_powers_of_two and scale is not None:
            fixed = constant_of(scale)
            if fixed is None:
                raise VerifyException(f"{self.where()}: a scale that is a power of two must be a constant")
            if not result.format.holds_scale(fixed):
                raise VerifyException(f"{self.where()}: the scale {fixed} is not a power of two")


class Dequantize(QuantizedOp):
    """Codes to float."""

    name = "q.dequantize"
    formals = ("x",)

    def verify_(self) -> None:
        """The result is what the operand expresses."""
        self.check_arity(1, 1)
        x = self.operands[0].type
        if not isinstance(x, QuantizedType) or x.expressed != self.results[0].type:
            raise VerifyException(f"{self.where()}: the operand {x} does not express the result {self.results[0].type}")


class Linear(QuantizedOp):
    """`y = x w^T + bias`: x [..., K], float or quantized; w [N, K] quantized; bias [N] float; y [..., N] float."""

    name = "q.linear"
    formals = ("x", "w", "bias")
    allowed = ("kernel",)

    def verify_(self) -> None:
        """N and K agree."""
        self.check_arity(2, 3)
        n, k = self.weight_type(2).shape
        x, y = types.dims_of(self.operands[0].type), types.dims_of(self.results[0].type)
        if x is not None and x and isinstance(x[-1], int) and x[-1] != k:
            raise VerifyException(f"{self.where()}: x has {x[-1]} features, the weight takes {k}")
        if y is not None and y and isinstance(y[-1], int) and y[-1] != n:
            raise VerifyException(f"{self.where()}: the result has {y[-1]} features, the weight gives {n}")


class Conv(QuantizedOp):
    """ONNX `Conv` or `ConvTranspose` (attribute `transposed`) of a quantized weight; other attributes are ONNX's."""

    name = "q.conv"
    formals = ("x", "w", "bias")
    convolution = (
        "auto_pad",
        "dilations",
        "group",
        "kernel_shape",
        "pads",
        "strides",
        "output_padding",
        "output_shape",
    )
    allowed = (*convolution, "transposed", "kernel")

    def verify_(self) -> None:
        """The channels agree."""
        self.check_arity(2, 3)
        shape = self.weight_type().shape
        x = types.dims_of(self.operands[0].type)
        channels = shape[0] if self.integer("transposed") else shape[1] * self.integer("group", 1)
        if x is not None and len(x) != len(shape):
            raise VerifyException(f"{self.where()}: x has rank {len(x)}, the weight {len(shape)}")
        if x is not None and isinstance(x[1], int) and x[1] != channels:
            raise VerifyException(f"{self.where()}: x has {x[1]} channels, the weight takes {channels}")


class Embedding(QuantizedOp):
    """Rows of a quantized table: indices [...] int, table [V, D]; gives [..., D] float."""

    name = "q.embedding"
    formals = ("indices", "w")
    allowed = ("kernel",)

    def verify_(self) -> None:
        """The table has two axes."""
        self.check_arity(2, 2)
        self.weight_type(2)


def part(key: str, which: str) -> str:
    """The name in the store of a part of a quantized weight: `codes`, `scale` or `zero`."""
    return f"{key}.{which}"


def weight_of(value: SSAValue | None) -> Weight | None:
    """The `q.weight` that gives a value, or None."""
    owner = value.owner if value is not None else None
    return owner if isinstance(owner, Weight) else None


OPERATIONS: list[type[Operation]] = [Weight, Quantize, Dequantize, Linear, Conv, Embedding, Attention]
DIALECT = Dialect("q", OPERATIONS, [QuantizedType])
