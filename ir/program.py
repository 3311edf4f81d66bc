"""A program: a module, the weights it names, and what was decided about it on the way."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field

import numpy as np
from xdsl.dialects.builtin import DictionaryAttr, ModuleOp
from xdsl.dialects.func import FuncOp, ReturnOp
from xdsl.ir import Attribute, Block, SSAValue

from . import attributes as attr
from .dialects.q import Weight, part
from .format import Format
from .layout import Layout, Record
from .quantized import Quantized, part_names
from .types import QuantizedType
from .weights import WeightStore

NAME = "onnx.name"
INDEX = Layout.parse("n(n0) k(k0) -> n0 k0")
"""Where the places of sparse codes lie, `index_bits` each."""


@dataclass(frozen=True)
class Decision:
    """What was done with a node, or not done, and why."""

    node: str
    action: str
    """`quantized` or `skipped`, or the verb of a pass."""
    reason: str


@dataclass(frozen=True)
class Port:
    """An input or output of the network."""

    name: str
    type: Attribute


@dataclass(frozen=True)
class StoredCodes:
    """A weight as its file holds it: `value.decode()` is the float weight, bit by bit."""

    value: Quantized
    source: str
    """What the file calls the format, such as `Q8_0`."""

    @property
    def format(self) -> Format:
        """What the codes mean."""
        return self.value.format

    def decodes_to(self, weight: np.ndarray, rows: int = 1 << 12) -> bool:
        """Whether the codes decode to a weight [N, K] bit by bit, looking at some rows at a time."""
        if self.value.shape != weight.shape:
            return False
        return all(np.array_equal(part.decode(), weight[place]) for place, part in self.value.chunks(rows))


@dataclass
class Program:
    """The value that passes rewrite in place."""

    module: ModuleOp
    weights: WeightStore
    decisions: list[Decision] = field(default_factory=list[Decision])
    peaks: dict[str, np.ndarray] = field(default_factory=dict[str, np.ndarray])
    """Largest magnitudes of activations by channel, where calibration took them: float32 [K] by value."""
    hessians: dict[str, np.ndarray] = field(default_factory=dict[str, np.ndarray])
    """Second moments of activations, where calibration took them: float64 [K, K] by value."""
    stored: dict[str, StoredCodes] = field(default_factory=dict[str, "StoredCodes"])
    """The codes of which float weights were decoded, by weight: a file that was quantized already."""

    @property
    def main(self) -> FuncOp:
        """The one function of the module."""
        return next(op for op in self.module.ops if isinstance(op, FuncOp))

    @property
    def body(self) -> Block:
        """The block of the network's operations."""
        return self.main.body.block

    @property
    def outputs(self) -> tuple[SSAValue, ...]:
        """The values that the network returns."""
        last = self.body.last_op
        assert isinstance(last, ReturnOp)
        return tuple(last.operands)

    def inputs(self) -> list[Port]:
        """The inputs with their names and types."""
        return [Port(n, a.type) for n, a in zip(port_names(self.main.arg_attrs), self.body.args, strict=True)]

    def results(self) -> list[Port]:
        """The outputs with their names and types."""
        return [Port(n, v.type) for n, v in zip(port_names(self.main.res_attrs), self.outputs, strict=True)]

    def decide(self, node: str, action: str, reason: str) -> None:
        """Record a decision."""
        self.decisions.append(Decision(node, action, reason))

    def clone(self, copies: dict[SSAValue, SSAValue] | None = None) -> Program:
        """A copy to rewrite; arrays are shared. `copies` takes the new value of each old one."""
        module = self.module.clone(copies)
        return Program(module, self.weights.copy(), list(self.decisions), self.peaks, self.hessians, self.stored)

    def weight_ops(self) -> Iterator[Weight]:
        """Every `q.weight` of the module."""
        return (op for op in self.module.walk() if isinstance(op, Weight))

    def collect_garbage(self) -> None:
        """Drop the tensors of the store that no operation names."""
        used: set[str] = set()
        for op in self.weight_ops():
            used.update(weight_parts(op))
        self.weights.keep(used)


def weight_parts(op: Weight) -> list[str]:
    """The names in the store that a `q.weight` reads."""
    if not isinstance(op.result.type, QuantizedType):
        return [op.weight]
    type_ = op.result.type
    names = ["codes"] if isinstance(type_.layout, Record) else part_names(type_.format)
    if type_.format.sparsity and type_.layout is not None and not isinstance(type_.layout, Record):
        names.append("index")
    return [part(op.weight, name) for name in names]


def index_bits(fmt: Format) -> int:
    """Bits of the place of a sparse code in its group."""
    assert fmt.sparsity is not None
    return (fmt.sparsity[1] - 1).bit_length()


def port_names(attrs: Attribute | None) -> list[str]:
    """The names in the `arg_attrs` or `res_attrs` of a function."""
    if attrs is None:
        return []
    dictionaries = getattr(attrs, "data", ())
    return [attr.text_of(d.data[NAME]) for d in dictionaries if isinstance(d, DictionaryAttr)]


def stored_value(op: Weight, program: Program) -> Quantized:
    """The parts of a quantized `q.weight` whose codes are not packed yet."""
    type_ = op.result.type
    assert isinstance(type_, QuantizedType)
    return Quantized(type_.format, {name: program.weights[part(op.weight, name)] for name in part_names(type_.format)})
