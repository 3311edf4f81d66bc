"""Element families: one file a family, and this folder is the registry.

A family module offers `parse(name) -> ElementFamily | None` and `EXAMPLES`, the names to list. To add a family, add a
file. Files whose name begins with `_` hold what families share.
"""

from __future__ import annotations

import importlib
import pkgutil
from functools import cache
from typing import Protocol, TypeGuard

import numpy as np

from ..errors import BadInput


class ElementFamily(Protocol):
    """What every element type offers. Codes are int8 or uint8 arrays, one code an element.

    A trained family (`k16`, `n3..8`) has no values of its own: see `TrainedFamily`. Its `table`, `low`, `high` and
    `half_gap` are `NotSupported`.
    """

    @property
    def bits(self) -> int:
        """Bits of one code."""
        ...

    @property
    def signed(self) -> bool:
        """Whether codes are int8 in two's complement (else uint8, raw bit patterns)."""
        ...

    @property
    def trained(self) -> bool:
        """Whether the values lie beside the codes."""
        ...

    @property
    def low(self) -> float:
        """The smallest finite value an unscaled code stands for."""
        ...

    @property
    def high(self) -> float:
        """The largest finite value an unscaled code stands for."""
        ...

    @property
    def table(self) -> np.ndarray:
        """float32[2**bits]: the value of each code read as an unsigned bit pattern; NaN where it stands for none."""
        ...

    @property
    def half_gap(self) -> float:
        """The largest |x - decode(encode(x))| for x in [low, high]."""
        ...

    def encode(self, values: np.ndarray, rng: np.random.Generator | None = None) -> np.ndarray:
        """The nearest codes of unscaled `values`, ties to the even code, clipped to the range; NaN is `BadInput`.

        With `rng` the rounding is stochastic: up or down with probability by distance, so that the mean is the value.
        """
        ...

    def decode(self, codes: np.ndarray) -> np.ndarray:
        """The unscaled float32 values of `codes`."""
        ...


class TrainedFamily(ElementFamily, Protocol):
    """An element whose values lie beside the codes: `tables` float32 [B, entries], one row for each of B blocks."""

    @property
    def entries(self) -> int:
        """How many values a block has."""
        ...

    def fit(self, blocks: np.ndarray, weights: np.ndarray | None = None) -> np.ndarray:
        """Tables for `blocks` [B, n], whose errors count by `weights` [B, n]; `BadInput` for NaN or infinities."""
        ...

    def encode(
        self, values: np.ndarray, rng: np.random.Generator | None = None, tables: np.ndarray | None = None
    ) -> np.ndarray:
        """uint8 codes [B, n] of `values` [B, n]; `NotSupported` without tables."""
        ...

    def decode(self, codes: np.ndarray, tables: np.ndarray | None = None) -> np.ndarray:
        """float32 values [B, n] of `codes` [B, n]; `NotSupported` without tables."""
        ...


def is_trained(element: ElementFamily) -> TypeGuard[TrainedFamily]:
    """Whether the values of `element` lie beside its codes."""
    return element.trained


def names() -> list[str]:
    """The names of the families: the files of this folder."""
    return sorted(module.name for module in pkgutil.iter_modules(__path__) if not module.name.startswith("_"))


@cache
def load_element(name: str) -> ElementFamily:
    """The element type called `name`, from the family that knows it; `BadInput` where none does."""
    for family in names():
        element = importlib.import_module(f"{__name__}.{family}").parse(name)
        if element is not None:
            return element
    raise BadInput(f"no element type is called {name!r}", hint="`qcc list formats` shows the families")
