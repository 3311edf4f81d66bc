"""What a row kernel computes: results [M, K], each an expression of its inputs and a form in which it is stored.

    rows 384: f32(add(x, r)); s8(mul(x, w[k]), 0.05, 3)

M is known when it runs, K when it is generated.
"""

from __future__ import annotations

import ast
from dataclasses import dataclass
from functools import cached_property

import numpy as np

from qcc.ir.errors import BadInput

from .emit_linear import LinearText
from .rows_expression import INPUTS, Node, as_node, parse_tree

DTYPES = {"f32": np.dtype(np.float32), "u8": np.dtype(np.uint8), "s8": np.dtype(np.int8), "rows": np.dtype(np.uint8)}
"""Forms of results, and the dtype that their memory has."""
ENDS = {"u8": (0, 255), "s8": (-128, 127)}
STACK_BYTES = 1 << 18
"""Bytes that a kernel may keep between its passes: less than the stack of any thread, and the second cache."""


@dataclass(frozen=True)
class Prepared:
    """Rows as a linear kernel multiplies them: what `prepare_row` of `c/activations.h` is compiled for."""

    columns: int
    group: int
    groups: int
    grouped: bool
    parts: int
    limit: int
    offset: int
    places: tuple[int, int, int, int]
    """Bytes of a row, and where its starts, scales and totals lie."""

    @staticmethod
    def of(text: LinearText) -> Prepared:
        """The rows of a linear kernel of float32 activations. `BadInput` for others."""
        s, w, a = text.storage, text.workspace, text.spec.activation
        if a.dtype != "f32" or a.fixed or text.schedule.unpack == "lookup":
            raise BadInput(
                f"rows are not prepared for {text.spec}", hint="a kernel of dot products, of f32 activations"
            )
        offset = 1 if text.spec.zero_points else text.spec.offset
        places = (w.bytes, w.starts, w.scales, w.totals)
        return Prepared(s.columns, s.group, s.groups * s.supers, a.grouped, a.parts, a.limit, offset, places)

    def __str__(self) -> str:
        return ", ".join(str(int(v)) for v in (*self._numbers, *self.places))

    @property
    def _numbers(self) -> tuple[int, ...]:
        return (self.columns, self.group, self.groups, self.grouped, self.parts, self.limit, self.offset)

    @property
    def bytes(self) -> int:
        """Bytes of a row."""
        return self.places[0]

    def constants(self) -> dict[str, str]:
        """What `c/activations.h` asks for, beside K."""
        names = ("COLUMNS", "GROUP", "GROUPS", "GROUPED", "PARTS", "LIMIT", "OFFSET")
        places = zip(("ROW_BYTES", "STARTS_AT", "SCALES_AT", "TOTALS_AT"), self.places, strict=True)
        values = {name: str(int(value)) for name, value in zip(names, self._numbers, strict=True)}
        return values | {name: str(value) for name, value in places} | {"LIMIT": f"{self.limit}.0f", "BF16": "0"}


@dataclass(frozen=True)
class Output:
    """A result: numbers, codes `saturate(round(value / scale) + zero)` as of QuantizeLinear, or prepared rows."""

    value: Node
    form: str = "f32"
    scale: Node | None = None
    zero: int = 0
    prepared: Prepared | None = None

    def __post_init__(self) -> None:
        if self.form not in DTYPES:
            raise BadInput(f"results of form {self.form!r}", hint=f"one of: {', '.join(DTYPES)}")
        if (self.scale is not None) != (self.form in ENDS) or (self.prepared is not None) != (self.form == "rows"):
            raise BadInput(
                f"a result of form {self.form} with scale {self.scale}, prepared for {self.prepared}",
                hint="codes have a scale, rows a linear kernel",
            )
        if self.scale is not None and self.scale.op == "number" and not self.scale.value > 0:
            raise BadInput(f"a scale of {self.scale.value}", hint="scales are positive")
        if not ENDS.get(self.form, (0, 0))[0] <= self.zero <= ENDS.get(self.form, (0, 0))[1]:
            raise BadInput(f"{self.zero} is no zero point of {self.form}")

    def __str__(self) -> str:
        parts = [str(self.value)]
        parts += [str(self.scale), str(self.zero)] if self.scale is not None else []
        return f"{self.form}({', '.join([*parts, *[str(self.prepared)] * (self.prepared is not None)])})"

    @property
    def nodes(self) -> tuple[Node, ...]:
        """The expressions that are its value and its scale."""
        return (self.value,) if self.scale is None else (self.value, self.scale)


@dataclass(frozen=True)
class RowsSpec:
    """A row kernel. Raises `BadInput` where there is none."""

    k: int
    outputs: tuple[Output, ...]

    def __post_init__(self) -> None:
        if not 1 <= self.k <= 1 << 24:
            raise BadInput(f"rows of {self.k} columns", hint="1 to 2^24")
        if not self.outputs:
            raise BadInput("a row kernel without a result")
        names = [i.name for i in self.inputs]
        if twice := {name for name in names if names.count(name) > 1}:
            raise BadInput(f"{min(twice)!r} is the name of two kinds of inputs")
        if not any(i.op in ("tensor", "row") for i in self.inputs):
            raise BadInput(f"{self} has no input that tells the number of rows")
        if sum(o.form == "rows" for o in self.outputs) > 1:
            raise BadInput("rows are prepared for one linear kernel")
        if any(o.form == "rows" for o in self.outputs) and 4 * self.k > STACK_BYTES:
            raise BadInput(f"prepared rows of {self.k} columns", hint=f"up to {STACK_BYTES // 4}")

    @staticmethod
    def of(k: int, *outputs: Output | Node) -> RowsSpec:
        """The kernel of some results; a bare expression is one of float32."""
        return RowsSpec(k, tuple(o if isinstance(o, Output) else Output(o) for o in outputs))

    def __str__(self) -> str:
        return f"rows {self.k}: {'; '.join(map(str, self.outputs))}"

    @staticmethod
    def parse(text: str) -> RowsSpec:
        """The kernel that prints so; macros and signs may stand for what they are. `BadInput` names what is wrong."""
        head, colon, rest = text.partition(":")
        words = head.split()
        if not colon or len(words) != 2 or words[0] != "rows" or not words[1].isdecimal():
            raise BadInput(f"{text[:80]!r} is no row kernel", hint="rows K: f32(expression); ...")
        return RowsSpec(int(words[1]), tuple(_output(part) for part in rest.split(";")))

    @cached_property
    def inputs(self) -> tuple[Node, ...]:
        """Its inputs, in the order in which they are first read: that of the kernel's arguments."""
        found = [n for o in self.outputs for root in o.nodes for n in root.walk() if n.op in INPUTS]
        return tuple(dict.fromkeys(found))


def codes(value: Node, form: str, scale: Node | float, zero: int = 0) -> Output:
    """A result as `u8` or `s8` codes of a fixed scale, a number or an expression."""
    return Output(value, form, as_node(scale), zero)


def rows_for(value: Node, text: LinearText) -> Output:
    """A result as the rows that a linear kernel multiplies, `qcc_blocks` of which needs no pass of its own."""
    return Output(value, "rows", prepared=Prepared.of(text))


def _output(text: str) -> Output:
    """A result, from its text."""
    try:
        tree = ast.parse(text.strip(), mode="eval").body
        match tree:
            case ast.Call(func=ast.Name(id="f32"), args=[value]):
                return Output(parse_tree(value))
            case ast.Call(func=ast.Name(id="u8" | "s8" as form), args=[value, scale, zero]):
                return codes(parse_tree(value), form, parse_tree(scale), int(ast.literal_eval(zero)))
            case ast.Call(func=ast.Name(id="rows"), args=[value, *numbers]) if len(numbers) == 11:
                held = [int(ast.literal_eval(n)) for n in numbers]
                columns, group, groups, grouped, parts, limit, offset, *places = held
                a, b, c, d = places
                return Output(
                    parse_tree(value),
                    "rows",
                    prepared=Prepared(columns, group, groups, bool(grouped), parts, limit, offset, (a, b, c, d)),
                )
            case _:
                pass
    except (SyntaxError, ValueError, RecursionError, MemoryError, TypeError) as error:
        raise BadInput(f"{text[:80]!r} is no result: {error}") from None
    raise BadInput(f"{text[:80]!r} is no result", hint="f32(value), u8(value, scale, zero) or s8(value, scale, zero)")
