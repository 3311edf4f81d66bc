"""`GraphOp`: an operator call as it stands in a network graph, printed the way one reads it.

    %y = onnx.Clip "clip_3"(%x, _, %max) {...} : tensor<1x64xf32>

The name in quotes is the node's; `_` is an optional operand left out. Operands must be defined above, so their types
are not repeated. Subgraphs (the branches of If, the bodies of Loop and Scan) are regions that see the values around
them.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import ClassVar, Self

from xdsl.dialects.builtin import DenseArrayBase
from xdsl.ir import Attribute, Operation, OpTraits, Region, SSAValue
from xdsl.irdl import IRDLOperation, irdl_op_definition, traits_def, var_operand_def
from xdsl.parser import Parser, UnresolvedOperand
from xdsl.printer import Printer
from xdsl.traits import IsTerminator

from .. import attributes as attr
from ..strings import parse_optional_string

_ABSENT = "absent"
_NODE = "node"


class GraphOp(Operation):
    """Base of every operator. Subclasses give `name` and `formals`, and check themselves in `verify_`."""

    traits = OpTraits(lambda: ())
    formals: ClassVar[tuple[str, ...]] = ()
    """Names of the operands, for dialects written by hand; generated dialects ask the schema."""

    def __init__(
        self,
        operands: Sequence[SSAValue | None],
        result_types: Sequence[Attribute],
        attributes: Mapping[str, object] | None = None,
        *,
        node: str = "",
        regions: Sequence[Region] = (),
    ) -> None:
        """`attributes` may be plain Python values. Trailing absent operands are dropped."""
        slots = list(operands)
        while slots and slots[-1] is None:
            slots.pop()
        properties = {name: attr.from_python(value) for name, value in (attributes or {}).items()}
        absent = [i for i, slot in enumerate(slots) if slot is None]
        if absent:
            properties[_ABSENT] = DenseArrayBase.from_list(attr.I64, absent)
        super().__init__(
            operands=[slot for slot in slots if slot is not None],
            result_types=list(result_types),
            properties=properties,
            attributes={_NODE: attr.text_attribute(node)} if node else {},
            regions=list(regions),
        )

    @property
    def node(self) -> str:
        """The name of the node in the network; empty where it has none."""
        return attr.text_of(self.attributes[_NODE]) if _NODE in self.attributes else ""

    @property
    def slots(self) -> list[SSAValue | None]:
        """The operands in the order of the formals, None where one is left out."""
        absent = self.properties.get(_ABSENT)
        if absent is None:
            return list(self.operands)
        slots: list[SSAValue | None] = list(self.operands)
        for index in attr.integers_of(absent):
            slots.insert(index, None)
        return slots

    def slot(self, index: int) -> SSAValue | None:
        """The operand at a position of the formals, or None."""
        slots = self.slots
        return slots[index] if index < len(slots) else None

    def operand_named(self, formal: str) -> SSAValue | None:
        """The operand of that formal name, or None where it is left out."""
        return self.slot(self.formal_names().index(formal))

    def formal_names(self) -> tuple[str, ...]:
        """The names of the operands."""
        return self.formals

    @property
    def parameters(self) -> dict[str, Attribute]:
        """The attributes of the operator itself."""
        return {name: value for name, value in self.properties.items() if name != _ABSENT}

    def get(self, name: str, default: object = None) -> object:
        """An attribute as a Python value, or `default`."""
        return attr.to_python(self.properties[name]) if name in self.properties else default

    def integer(self, name: str, default: int = 0) -> int:
        """An integer attribute, or `default`."""
        value = self.get(name, default)
        assert isinstance(value, int)
        return value

    def integers(self, name: str, default: Sequence[int] = ()) -> list[int]:
        """A list of integers, or `default`."""
        if name not in self.properties:
            return list(default)
        value = attr.to_python(self.properties[name])
        assert isinstance(value, list)
        return [int(v) for v in value]

    def where(self) -> str:
        """How errors name this operation."""
        return f"{self.name} {self.node!r}" if self.node else self.name

    def print(self, printer: Printer) -> None:
        """Print in the form shown at the top of this file."""
        if self.node:
            printer.print_string(" ")
            printer.print_string_literal(self.node)
        with printer.in_parens():
            printer.print_list(
                self.slots, lambda s: printer.print_string("_") if s is None else printer.print_operand(s)
            )
        if self.parameters:
            printer.print_string(" ")
            printer.print_attr_dict(self.parameters)
        if self.regions:
            printer.print_string(" ")
            with printer.in_parens():
                printer.print_list(self.regions, printer.print_region)
        if self.results:
            printer.print_string(" : ")
            printer.print_list([r.type for r in self.results], printer.print_attribute)

    @classmethod
    def parse(cls, parser: Parser) -> Self:
        """Parse what `print` prints."""
        node = parse_optional_string(parser) or ""
        slots = parser.parse_comma_separated_list(parser.Delimiter.PAREN, lambda: _parse_slot(parser))
        properties = parser.parse_optional_attr_dict()
        if _ABSENT in properties:
            parser.raise_error("an operand left out is written `_`, not as an attribute")
        regions = _regions(parser) if parser.parse_optional_punctuation("(") else []
        result_types: Sequence[Attribute] = []
        if parser.parse_optional_punctuation(":"):
            result_types = parser.parse_comma_separated_list(parser.Delimiter.NONE, parser.parse_type)
        op = cls.__new__(cls)
        GraphOp.__init__(op, slots, result_types, dict(properties), node=node, regions=regions)
        return op


def _parse_slot(parser: Parser) -> SSAValue | None:
    if parser.parse_optional_keyword("_"):
        return None
    return _resolve(parser, parser.parse_unresolved_operand())


def _resolve(parser: Parser, name: UnresolvedOperand) -> SSAValue:
    values = parser.ssa_values.get(name.operand_name)
    if values is None or name.index >= len(values):
        parser.raise_error(f"%{name.operand_name} is used before it is defined", name.span)
    return values[name.index]


def _regions(parser: Parser) -> list[Region]:
    regions = [parser.parse_region()]
    while parser.parse_optional_punctuation(","):
        regions.append(parser.parse_region())
    parser.parse_punctuation(")")
    return regions


@irdl_op_definition
class Yield(IRDLOperation):
    """The end of a subgraph: `onnx.yield %a, %b` gives its outputs."""

    name = "onnx.yield"
    outputs = var_operand_def()
    traits = traits_def(IsTerminator())

    def __init__(self, outputs: Sequence[SSAValue]) -> None:
        super().__init__(operands=[list(outputs)])

    def print(self, printer: Printer) -> None:
        """Print `onnx.yield %a, %b`."""
        if self.outputs:
            printer.print_string(" ")
            printer.print_list(self.outputs, printer.print_operand)

    @classmethod
    def parse(cls, parser: Parser) -> Yield:
        """Parse what `print` prints."""
        operand = parser.parse_optional_unresolved_operand()
        outputs: list[SSAValue] = []
        while operand is not None:
            outputs.append(_resolve(parser, operand))
            operand = parser.parse_unresolved_operand() if parser.parse_optional_punctuation(",") else None
        return Yield(outputs)


def rename(op: GraphOp, node: str) -> None:
    """Give the node another name."""
    op.attributes[_NODE] = attr.text_attribute(node)
