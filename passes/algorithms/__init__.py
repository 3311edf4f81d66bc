"""How codes are chosen: one file an algorithm with `fit(weight, format) -> Fitted`; this folder is the registry."""

from __future__ import annotations

import importlib
import pkgutil
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np

from qcc.ir.errors import BadInput
from qcc.ir.format import Format


@dataclass(frozen=True)
class Fitted:
    """A quantized weight: codes of the weight's shape, one scale (and zero point) a block."""

    codes: np.ndarray
    scale: np.ndarray
    zero: np.ndarray | None


def names() -> list[str]:
    """The names of all algorithms."""
    return sorted(m.name for m in pkgutil.iter_modules(__path__))


def load(name: str) -> Callable[[np.ndarray, Format], Fitted]:
    """The `fit` of an algorithm."""
    if name not in names():
        raise BadInput(f"no algorithm is called {name!r}", hint=f"known algorithms: {', '.join(names())}")
    return importlib.import_module(f"{__name__}.{name}").fit
