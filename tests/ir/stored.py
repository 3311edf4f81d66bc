"""A quantized weight with random parts, and what it means by arithmetic in float64 that owes nothing to `qcc.ir`."""

from __future__ import annotations

import itertools

import numpy as np
from numpy.typing import NDArray

from qcc.ir.execute import run
from tests.ir.helpers import program

EPS = float(np.finfo(np.float32).eps)
Real = NDArray[np.float64]


def limits(element: str) -> tuple[int, int]:
    """The smallest and largest code of an element such as `i4`."""
    bits = int(element[1:])
    return (-(1 << bits - 1), (1 << bits - 1) - 1) if element[0] == "i" else (0, (1 << bits) - 1)


def code_type(element: str) -> type[np.generic]:
    return np.int8 if element[0] == "i" else np.uint8


class Stored:
    """A quantized weight with random parts, and its values in float64 by the definition."""

    def __init__(
        self, shape: tuple[int, ...], element: str, block: tuple[int, ...], *, zero: bool = False, seed: int = 0
    ) -> None:
        rng = np.random.default_rng(seed)
        low, high = limits(element)
        blocks = tuple(-(-extent // size) for extent, size in zip(shape, block, strict=True))
        self.shape, self.element, self.block = shape, element, block
        self.codes = rng.integers(low, high + 1, shape).astype(code_type(element))
        self.scale = np.exp(rng.uniform(-8, 8, blocks)).astype(np.float32)
        self.zero = rng.integers(low, high + 1, blocks).astype(code_type(element)) if zero else None

    @property
    def type(self) -> str:
        pairs = zip(self.block, self.shape, strict=True)
        sizes = "x".join("*" if size >= extent > 1 else str(size) for size, extent in pairs)
        while sizes.startswith("1x"):
            sizes = sizes.removeprefix("1x")
        zero = f", zero {self.element}" if self.zero is not None else ""
        return f'"{self.element}, f32 per {sizes}{zero}"'

    def weight(self, layout: str = "") -> str:
        """The type of the weight in IR text."""
        placed = f', "{layout}"' if layout else ""
        return f"!q.tensor<tensor<{'x'.join(map(str, self.shape))}xf32>, {self.type}{placed}>"

    def parts(self) -> dict[str, np.ndarray]:
        """What the store holds under `w`."""
        parts: dict[str, np.ndarray] = {"w.codes": self.codes, "w.scale": self.scale}
        return parts if self.zero is None else {**parts, "w.zero": self.zero}

    def values(self) -> Real:
        """`(code - zero) * scale`, element by element."""
        values = np.empty(self.shape)
        for index in itertools.product(*map(range, self.shape)):
            at = tuple(i // size for i, size in zip(index, self.block, strict=True))
            zero = 0 if self.zero is None else int(self.zero[at])
            values[index] = (int(self.codes[index]) - zero) * float(self.scale[at])
        return values


def through_codes(fmt: str, x: np.ndarray, **parameters: np.ndarray) -> np.ndarray:
    """`q.dequantize(q.quantize(x))` with a dynamic batch; scale and zero are inputs where given."""
    type_ = f"tensor<{'x'.join(['?', *map(str, x.shape[1:])])}xf32>"
    kinds = {np.dtype(np.float32): "f32", np.dtype(np.int8): "i8", np.dtype(np.uint8): "ui8"}
    inputs = {n: f"tensor<{''.join(f'{d}x' for d in a.shape)}{kinds[a.dtype]}>" for n, a in parameters.items()}
    operands = ", ".join(f"%{n}" for n in ("x", *parameters))
    body = f'%q = q.quantize({operands}) : !q.tensor<{type_}, "{fmt}">\n    %y = q.dequantize(%q) : {type_}'
    return run(program({"x": type_, **inputs}, body, {"y": type_}), {"x": x, **parameters})["y"]
