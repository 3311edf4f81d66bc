"""What a row kernel computes, as a tree that prints and parses back: `gelu(add(x, bias[k]))`.

    x       a number of a tensor [M, K]      x[k]    of a vector [K], the same in all rows
    x[m]    of a vector [M], one for a row   x[1]    a single number

Numbers are float32. `row_sum`, `row_mean` and `row_max` reduce a row to a number, which every column may use:
normalizations and softmax are expressions as any other. `+ - * /` may be written for `add sub mul div`.
"""

from __future__ import annotations

import ast
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field

import numpy as np

from qcc.ir.errors import BadInput

INPUTS = {"tensor": "", "column": "[k]", "row": "[m]", "single": "[1]"}
"""Kinds of inputs, and what stands behind their names."""
OPS = {
    "add": (2, 1), "sub": (2, 1), "mul": (2, 1), "div": (2, 6), "min": (2, 2), "max": (2, 2),
    "neg": (1, 1), "abs": (1, 1), "sqrt": (1, 6), "round": (1, 1), "relu": (1, 1),
    "exp": (1, 12), "log": (1, 24), "erf": (1, 20), "tanh": (1, 30), "sigmoid": (1, 20), "silu": (1, 20),
    "gelu": (1, 24), "gelu_tanh": (1, 24),
    "select_less": (4, 2),
    "row_sum": (1, 1), "row_mean": (1, 1), "row_max": (1, 1),
}  # fmt: skip
"""Operations, with their numbers of arguments and about what they cost.

`select_less(a, b, c, d)` is c where a < b, else d; `gelu` is that of erf; `round` goes half to even. NaN goes through
all of them, but `row_max` may pass over it."""
REDUCTIONS = ("row_sum", "row_mean", "row_max")
LARGEST, DEEPEST = 2048, 100


@dataclass(frozen=True)
class Node:
    """An operation on others, an input with its name and kind, or a number."""

    op: str
    args: tuple[Node, ...] = ()
    name: str = ""
    value: float = 0.0
    size: int = field(init=False, compare=False, repr=False)
    """Nodes of the tree, those that are there twice counted twice."""
    depth: int = field(init=False, compare=False, repr=False)

    def __post_init__(self) -> None:
        if self.op in OPS and len(self.args) != OPS[self.op][0]:
            raise BadInput(f"{self.op} takes {OPS[self.op][0]} arguments, not {len(self.args)}")
        if self.op not in OPS and self.op not in INPUTS and self.op != "number":
            raise BadInput(f"no row kernel computes {self.op!r}", hint=f"one of: {', '.join([*OPS, *MACROS])}")
        if self.op in INPUTS and not self.name.isidentifier():
            raise BadInput(f"{self.name!r} is no name of an input")
        if self.op == "number" and not np.isfinite(np.float32(self.value)):
            raise BadInput(f"{self.value} is no finite float32")
        object.__setattr__(self, "size", 1 + sum(a.size for a in self.args))
        object.__setattr__(self, "depth", 1 + max((a.depth for a in self.args), default=0))
        if self.size > LARGEST or self.depth > DEEPEST:
            raise BadInput(f"an expression of {self.size} operations, {self.depth} deep", hint="use several kernels")
        if self.op in REDUCTIONS and not self.args[0].varies:
            raise BadInput(f"{self} reduces what is the same in all columns")

    def __str__(self) -> str:
        if self.op == "number":
            return str(np.float32(self.value))
        if self.op in INPUTS:
            return self.name + INPUTS[self.op]
        return f"{self.op}({', '.join(map(str, self.args))})"

    def __add__(self, other: Node | float) -> Node:
        return Node("add", (self, as_node(other)))

    def __sub__(self, other: Node | float) -> Node:
        return Node("sub", (self, as_node(other)))

    def __mul__(self, other: Node | float) -> Node:
        return Node("mul", (self, as_node(other)))

    def __truediv__(self, other: Node | float) -> Node:
        return Node("div", (self, as_node(other)))

    @property
    def varies(self) -> bool:
        """Whether it differs between the columns of a row."""
        if self.op in INPUTS:
            return self.op in ("tensor", "column")
        return self.op not in REDUCTIONS and any(a.varies for a in self.args)

    @property
    def level(self) -> int:
        """Passes over the row that must end before it is known."""
        return max((a.level for a in self.args), default=0) + (self.op in REDUCTIONS)

    def walk(self) -> Iterator[Node]:
        """It and all below it, arguments first."""
        for arg in self.args:
            yield from arg.walk()
        yield self


def tensor(name: str) -> Node:
    """An input [M, K]."""
    return Node("tensor", name=name)


def column(name: str) -> Node:
    """An input [K]: a number for each column."""
    return Node("column", name=name)


def row(name: str) -> Node:
    """An input [M]: a number for each row."""
    return Node("row", name=name)


def single(name: str) -> Node:
    """An input of one number."""
    return Node("single", name=name)


def as_node(value: Node | float) -> Node:
    """A number as float32, or the expression it is already."""
    if isinstance(value, Node):
        return value
    with np.errstate(over="ignore"):  # which the node refuses, with a word about it
        return Node("number", value=float(np.float32(value)))


def call(op: str, *args: Node | float) -> Node:
    """`op(args)`, of `OPS` or of `MACROS`."""
    if op in MACROS:
        return MACROS[op](*map(as_node, args))
    return Node(op, tuple(as_node(a) for a in args))


def power(x: Node, exponent: Node | float) -> Node:
    """x^n for whole n from -16 to 16, by squaring; x^(1/2)."""
    n = exponent.value if isinstance(exponent, Node) and exponent.op == "number" else exponent
    if isinstance(n, Node) or (n != 0.5 and (n != int(n) or abs(n) > 16)):
        raise BadInput(f"power({x}, {exponent})", hint="whole exponents from -16 to 16, or 0.5")
    if n == 0.5:
        return call("sqrt", x)
    if n < 0:
        return as_node(1.0) / power(x, -n)
    result, square = as_node(1.0), x
    for bit in reversed(f"{int(n):b}"):
        if bit == "1":
            result = square if result.op == "number" else result * square
        square = square * square
    return result


def clip(x: Node, low: Node | float, high: Node | float) -> Node:
    """x between two bounds; NaN stays."""
    return call("min", as_node(high), call("max", as_node(low), x))


def hard_sigmoid(x: Node, alpha: Node | float = 1 / 6, beta: Node | float = 0.5) -> Node:
    """min(1, max(0, alpha x + beta))."""
    return clip(x * alpha + beta, 0.0, 1.0)


def hard_swish(x: Node) -> Node:
    """x hard_sigmoid(x)."""
    return x * hard_sigmoid(x)


def layer_norm(x: Node, weight: Node | float, bias: Node | float, epsilon: Node | float) -> Node:
    """(x - mean) / sqrt(variance + epsilon) weight + bias; the variance is the mean of (x - mean)^2."""
    centred = x - call("row_mean", x)
    variance = call("row_mean", centred * centred)
    return centred * (as_node(1.0) / call("sqrt", variance + epsilon)) * weight + bias


def rms_norm(x: Node, weight: Node | float, epsilon: Node | float) -> Node:
    """x / sqrt(mean of x^2 + epsilon) weight."""
    return x * (as_node(1.0) / call("sqrt", call("row_mean", x * x) + epsilon)) * weight


def softmax(x: Node) -> Node:
    """e^(x - max) / sum over a row; NaN in a row of nothing but -inf."""
    e = call("exp", x - call("row_max", x))
    return e * (as_node(1.0) / call("row_sum", e))


MACROS: dict[str, Callable[..., Node]] = {
    "power": power, "clip": clip, "hard_sigmoid": hard_sigmoid, "hard_swish": hard_swish, "layer_norm": layer_norm,
    "rms_norm": rms_norm, "softmax": softmax,
}  # fmt: skip
"""What is written as one operation and is several."""

_SIGNS: dict[type[ast.operator], str] = {ast.Add: "add", ast.Sub: "sub", ast.Mult: "mul", ast.Div: "div"}


def parse(text: str) -> Node:
    """The expression of a text. `BadInput` names the part that is none."""
    try:
        tree = ast.parse(text.strip(), mode="eval").body
        return parse_tree(tree)
    except (SyntaxError, ValueError, RecursionError, MemoryError, TypeError) as error:
        raise BadInput(f"{text[:80]!r} is no expression of rows: {error}") from None


def parse_tree(tree: ast.expr) -> Node:
    """The expression of a syntax tree."""
    match tree:
        case ast.Constant(value=int() | float() as value):
            return as_node(float(value))
        case ast.Name(id=name):
            return tensor(name)
        case ast.Subscript(value=ast.Name(id=name), slice=ast.Name(id="k")):
            return column(name)
        case ast.Subscript(value=ast.Name(id=name), slice=ast.Name(id="m")):
            return row(name)
        case ast.Subscript(value=ast.Name(id=name), slice=ast.Constant(value=1)):
            return single(name)
        case ast.UnaryOp(op=ast.USub(), operand=ast.Constant(value=int() | float() as value)):
            return as_node(-float(value))
        case ast.UnaryOp(op=ast.USub(), operand=inner):
            return call("neg", parse_tree(inner))
        case ast.BinOp(left=left, op=op, right=right) if type(op) in _SIGNS:
            return call(_SIGNS[type(op)], parse_tree(left), parse_tree(right))
        case ast.Call(func=ast.Name(id=name), args=args, keywords=[]):
            return call(name, *map(parse_tree, args))
        case _:
            raise BadInput(f"{ast.unparse(tree)[:80]!r} is no expression of rows")
