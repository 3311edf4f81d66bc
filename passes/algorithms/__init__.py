"""How codes are chosen: one file an algorithm with `fit(weight, format, hessian)`; this folder is the registry."""

from __future__ import annotations

import importlib
import pkgutil
from typing import Any, Protocol

import numpy as np

from qcc.ir.errors import BadInput
from qcc.ir.format import Format
from qcc.ir.quantized import Quantized


class Fit(Protocol):
    """`hessian` is the second moment of the input of a weight [N, K], float64 [K, K]; None where none was taken."""

    def __call__(self, weight: np.ndarray, fmt: Format, hessian: np.ndarray | None = None) -> Quantized:
        """Codes, scales and zero points of `weight` in `fmt`."""
        ...


def names() -> list[str]:
    """The names of all algorithms."""
    return sorted(m.name for m in pkgutil.iter_modules(__path__))


def load(name: str) -> Fit:
    """The `fit` of an algorithm."""
    return _module(name).fit


def needs_hessian(name: str) -> bool:
    """Whether an algorithm reads second moments of the activations, which calibration must take."""
    return bool(getattr(_module(name), "NEEDS_HESSIAN", False))


def _module(name: str) -> Any:
    """Any: what `import_module` gives."""
    if name not in names():
        raise BadInput(f"no algorithm is called {name!r}", hint=f"known algorithms: {', '.join(names())}")
    return importlib.import_module(f"{__name__}.{name}")
