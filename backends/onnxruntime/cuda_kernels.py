"""Which operators ONNX Runtime's CUDA provider computes, for which element types: `cuda_kernels.toml` as questions.

A node goes to the provider where its registry has a kernel for the operator's version and for every element type of the
node, else to the CPU with copies on both sides (`VerifyKernelDef` in onnxruntime/core/framework/kernel_registry.cc).
"""

from __future__ import annotations

import tomllib
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cache
from pathlib import Path

from xdsl.ir import Attribute

from qcc.ir import types
from qcc.ir.dialects.onnx import OnnxOp

_TABLE = Path(__file__).with_suffix(".toml")
_INTEGERS = [f"{sign}int{bits}" for sign in ("", "u") for bits in (8, 16, 32, 64)]
_ANY = ["bfloat16", "bool", "double", "float", "float16", *_INTEGERS]


@dataclass(frozen=True)
class Kernel:
    """One row of the table: the opsets of a kernel, and element types by type constraint."""

    first: int
    last: int | None
    """None: newest version that it was registered for is `first`, and a newer schema has no kernel."""
    types: Mapping[str, frozenset[str]]

    def takes(self, since: int, actual: Mapping[str, str]) -> bool:
        """Whether it computes an operator of that schema version on those element types."""
        fits = since == self.first or (self.last is not None and self.first < since <= self.last)
        return fits and all(actual[name] in allowed for name, allowed in self.types.items() if name in actual)


def has_kernel(op: OnnxOp, instead: Mapping[Attribute, Attribute] | None = None) -> bool:
    """Whether the provider computes an operation, with some element types taken for others where `instead` says so."""
    actual = _actual(op, instead or {})
    since = op.schema.since_version
    return any(kernel.takes(since, actual) for kernel in _kernels().get((op.domain, op.op_type), ()))


def version() -> str:
    """The release of ONNX Runtime whose registry the table holds."""
    return str(_data()["version"])


def _actual(op: OnnxOp, instead: Mapping[Attribute, Attribute]) -> dict[str, str]:
    """Element types by type constraint and by the name of the formal: kernels are registered under either."""
    found: dict[str, str] = {}
    formals = [(op.schema.input_at(i), v) for i, v in enumerate(op.slots) if v is not None]
    formals += [(op.schema.output_at(i), r) for i, r in enumerate(op.results)]
    for formal, value in formals:
        element = types.element_type(value.type)
        element = instead.get(element, element) if "tensor(float16)" in formal.types else element
        if not isinstance(element, types.UnknownType):
            found.setdefault(formal.type_var, types.element_of(element).schema)
            found.setdefault(formal.name, types.element_of(element).schema)
    return found


@cache
def _kernels() -> dict[tuple[str, str], tuple[Kernel, ...]]:
    return {
        (domain, name): tuple(map(_parse, rows))
        for domain, table in _data().items()
        if isinstance(table, dict)
        for name, rows in table.items()
    }


def _parse(row: str) -> Kernel:
    """`22+ T:float,float16`, or `14-21 T:any M:int64`."""
    opsets, *constraints = row.split()
    first, _, last = opsets.rstrip("+").partition("-")
    allowed: dict[str, frozenset[str]] = {}
    for constraint in constraints:
        name, _, listed = constraint.partition(":")
        allowed[name] = frozenset(t for word in listed.split(",") for t in (_ANY if word == "any" else [word]))
    return Kernel(int(first), int(last) if last else None, allowed)


@cache
def _data() -> dict[str, str | dict[str, list[str]]]:
    return tomllib.loads(_TABLE.read_text())
