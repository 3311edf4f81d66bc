"""Element families: one file a family, and this folder is the registry.

A family module offers `parse(name) -> ElementFamily | None` and `EXAMPLES`, the names to list. To add a family, add a
file.
"""

from __future__ import annotations

import importlib
import pkgutil
from functools import cache
from typing import Protocol

import numpy as np

from ..errors import BadInput


class ElementFamily(Protocol):
    """What every element type offers. Codes are int8 or uint8 arrays, one code an element."""

    @property
    def bits(self) -> int:
        """Bits of one code."""
        ...

    @property
    def signed(self) -> bool:
        """Whether codes are int8 (else uint8)."""
        ...

    @property
    def low(self) -> float:
        """The smallest value an unscaled code stands for."""
        ...

    @property
    def high(self) -> float:
        """The largest value an unscaled code stands for."""
        ...

    def encode(self, values: np.ndarray) -> np.ndarray:
        """The nearest codes of unscaled `values`, ties to even, clipped to the range."""
        ...

    def decode(self, codes: np.ndarray) -> np.ndarray:
        """The unscaled float32 values of `codes`."""
        ...


def names() -> list[str]:
    """The names of the families: the files of this folder."""
    return sorted(module.name for module in pkgutil.iter_modules(__path__))


@cache
def load_element(name: str) -> ElementFamily:
    """The element type called `name`, from the family that knows it; `BadInput` where none does."""
    for family in names():
        element = importlib.import_module(f"{__name__}.{family}").parse(name)
        if element is not None:
            return element
    raise BadInput(f"no element type is called {name!r}", hint="`qcc list formats` shows the families")
