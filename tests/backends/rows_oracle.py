"""Expressions of rows in float64 numpy, numbers to try them on, and what counts as the same."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
from scipy import special

from qcc.backends.native.rows_expression import INPUTS, Node
from qcc.backends.native.rows_spec import RowsSpec

NUMPY: dict[str, Callable[..., Any]] = {
    "add": np.add, "sub": np.subtract, "mul": np.multiply, "div": np.divide, "min": np.minimum, "max": np.maximum,
    "neg": np.negative, "abs": np.abs, "sqrt": np.sqrt, "round": np.rint, "relu": lambda x: np.maximum(x, 0.0),
    "exp": np.exp, "log": np.log, "erf": special.erf, "tanh": np.tanh, "sigmoid": special.expit,
    "silu": lambda x: x / (1 + np.exp(-x)), "gelu": lambda x: x * special.ndtr(x),
    "gelu_tanh": lambda x: 0.5 * x * (1 + np.tanh(np.sqrt(2 / np.pi) * (x + 0.044715 * x**3))),
    "select_less": lambda a, b, c, d: np.where(a < b, c, d),
    "row_sum": lambda x: x.sum(1, keepdims=True), "row_mean": lambda x: x.mean(1, keepdims=True),
    "row_max": lambda x: x.max(1, keepdims=True),
}  # fmt: skip


def exact(node: Node, inputs: dict[str, np.ndarray], shape: tuple[int, int]) -> np.ndarray:
    """The value of an expression in float64, [M, K]."""

    def value(node: Node) -> np.ndarray:
        if node.op == "number":
            return np.full(shape, float(np.float32(node.value)))
        if node.op in INPUTS:
            held = inputs[node.name].astype(np.float64)
            return np.broadcast_to(held[:, None] if node.op == "row" else held, shape)
        return np.broadcast_to(NUMPY[node.op](*map(value, node.args)), shape)

    with np.errstate(all="ignore"):
        return value(node)


def random_inputs(spec: RowsSpec, m: int, seed: int = 0, scale: float = 1.0) -> dict[str, np.ndarray]:
    """Normal numbers for all inputs; single numbers are from 0.1 to 1."""
    rng = np.random.default_rng(seed)
    shapes = {"tensor": (m, spec.k), "column": (spec.k,), "row": (m,), "single": (1,)}
    made = {
        n.name: rng.uniform(0.1, 1, 1) if n.op == "single" else scale * rng.standard_normal(shapes[n.op])
        for n in spec.inputs
    }
    return {name: array.astype(np.float32) for name, array in made.items()}


def close(found: np.ndarray, wanted: np.ndarray, text: str, tolerance: float = 2e-6, least: float = 0.2) -> None:
    """Within a few roundings of the largest number of its row, or of `least` where that is more."""
    if not found.size:
        return
    sizes = np.where(np.isfinite(wanted), np.abs(wanted), 0).max(1, keepdims=True)
    atol = tolerance * np.broadcast_to(np.maximum(sizes, least), wanted.shape)
    with np.errstate(over="ignore"):
        narrow = wanted.astype(np.float32)
    same = (found == narrow) | (np.isnan(found) & np.isnan(narrow))
    with np.errstate(invalid="ignore"):
        good = same | (np.abs(found - wanted) <= atol)
    where = tuple(np.argwhere(~good)[0]) if not good.all() else (0, 0)
    assert good.all(), f"{text} at {where}: {found[where]}, should be {wanted[where]}; {(~good).sum()} of {good.size}"
