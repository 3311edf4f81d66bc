"""What a pass is: a frozen dataclass with typed options that rewrites a `Program` in place.

Most passes are a `Rewrite`: they look at one operation at a time, and either replace it (True), see nothing of theirs
(False), or decline with the reason that `--explain` prints (a string).
"""

from __future__ import annotations

from abc import abstractmethod
from dataclasses import dataclass, field
from typing import Any, ClassVar

import numpy as np
from xdsl.context import Context
from xdsl.dialects.builtin import ModuleOp
from xdsl.ir import Operation, SSAValue
from xdsl.passes import ModulePass
from xdsl.rewriter import Rewriter

from . import types
from .builder import Builder
from .dialects.onnx import OnnxOp
from .dialects.q import Weight
from .emit_onnx import types_opset
from .infer import constant_of
from .program import Program
from .types import QuantizedType
from .weights import WeightStore


@dataclass
class ProgramContext(Context):
    """What a pass may see beside the module: the program with its weights, and statistics of its activations."""

    program: Program | None = None
    statistics: dict[str, Any] = field(default_factory=dict[str, Any])
    """Histograms of activations by value, from `passes.calibrate`. Any: the class lives above this folder."""


@dataclass(frozen=True)
class Pass(ModulePass):
    """Base of every pass of qcc."""

    name: ClassVar[str] = ""

    def apply(self, ctx: Context, op: ModuleOp) -> None:
        """Run on a module, inside qcc or in xDSL's own tools (then without weights)."""
        if isinstance(ctx, ProgramContext) and ctx.program is not None and ctx.program.module is op:
            self.run(ctx.program, ctx)
        else:
            self.run(Program(op, WeightStore()), ProgramContext())

    @abstractmethod
    def run(self, program: Program, ctx: ProgramContext) -> None:
        """Rewrite `program` in place."""


@dataclass(frozen=True)
class Rewrite(Pass):
    """A pass of one pattern. `roots` are the operators at which it looks."""

    roots: ClassVar[tuple[str, ...]] = ()

    def run(self, program: Program, ctx: ProgramContext) -> None:
        """Offer every operation to the pattern once, from the top down, then drop what nothing reads any more."""
        del ctx
        for op in list(program.module.walk()):
            if op.parent is None or op.name not in self.roots:
                continue
            assert isinstance(op, OnnxOp) or op.name.startswith("q.")
            outcome = self.rewrite(op, program)
            if isinstance(outcome, str):
                program.decide(_name(op), f"{self.name} declined", outcome)
        remove_dead(program)

    @abstractmethod
    def rewrite(self, op: Operation, program: Program) -> bool | str:
        """Rewrite at `op`: True where replaced, False where the pattern is not there, a reason where it must stay."""


def _name(op: Operation) -> str:
    return getattr(op, "node", "") or op.name


def builder(op: Operation, program: Program) -> Builder:
    """A builder that inserts before `op`."""
    return Builder(op, types_opset(program, ""))


def replace(op: Operation, value: SSAValue) -> None:
    """Let `value` stand for the first result of `op`, keeping its name, and erase `op`; nothing reads other results."""
    if value.name_hint is None or op.results[0].name_hint:
        value.name_hint = op.results[0].name_hint
    op.results[0].replace_all_uses_with(value)
    Rewriter.erase_op(op)


def producer(value: SSAValue | None, *names: str) -> OnnxOp | None:
    """The operation that computes `value` if it is one of `names`, else None."""
    owner = value.owner if value is not None else None
    return owner if isinstance(owner, OnnxOp) and owner.name in names else None


def array_of(value: SSAValue | None, program: Program) -> np.ndarray | None:
    """The array behind a float weight or a small constant; None where `value` is computed or quantized."""
    if value is None:
        return None
    owner = value.owner
    if isinstance(owner, Weight):
        return None if isinstance(owner.result.type, QuantizedType) else program.weights[owner.weight]
    return constant_of(value)


def scalar_of(value: SSAValue | None, program: Program) -> float | None:
    """The number behind a constant of one element; None where `value` is anything else."""
    array = array_of(value, program)
    return float(array.reshape(-1)[0]) if array is not None and array.size == 1 and array.dtype.kind in "fiu" else None


def weight_name(value: SSAValue, fallback: str) -> str:
    """The name in the store of the weight that gives `value`, else `fallback`."""
    return value.owner.weight if isinstance(value.owner, Weight) else fallback


def has_one_use(value: SSAValue) -> bool:
    """Whether exactly one operand reads `value`."""
    return value.get_unique_use() is not None


def rank_of(value: SSAValue) -> int | None:
    """The rank of a tensor value, None where unknown."""
    dims = types.dims_of(value.type)
    return None if dims is None else len(dims)


def remove_dead(program: Program) -> None:
    """Erase operations whose results nothing reads, and forget the weights that nothing names."""
    for op in reversed(list(program.module.walk())):
        removable = isinstance(op, OnnxOp) or op.name.startswith("q.")
        if removable and op.parent is not None and not any(r.first_use for r in op.results):
            Rewriter.erase_op(op)
    program.collect_garbage()
