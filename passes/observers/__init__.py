"""Observers choose the range `low <= 0 <= high` of an activation from its statistics; each file here is one."""

from __future__ import annotations

import importlib
import pkgutil
from typing import TYPE_CHECKING, Protocol, cast

from qcc.ir.errors import BadInput

if TYPE_CHECKING:
    from .statistics import Histogram

_NOT_AN_OBSERVER = "statistics"


class Observer(Protocol):
    """A file of this folder: how one range is chosen."""

    def range_of(self, statistics: Histogram, *, bits: int, signed: bool, symmetric: bool) -> tuple[float, float]:
        """The range `(low, high)` that the codes of a `bits`-wide integer should span, in the units of the activation.

        `low <= 0 <= high`, and never wider than the values seen (with zero among them). A uniform quantizer follows
        from it: asymmetric, `scale = (high - low) / (2^bits - 1)` and a zero point of `round(-low / scale)` above the
        lowest code; symmetric and signed, `low == -high` and `scale = high / (2^(bits-1) - 1)`; symmetric and unsigned,
        `low == 0` and `scale = high / (2^bits - 1)`. A tensor of zeros gives `(0.0, 0.0)`, and any scale serves.

        Raises BadInput when no value was seen, when `bits` is not within 2..32, and when an unsigned symmetric range
        is asked for values of which some are negative.
        """
        ...


def load(name: str) -> Observer:
    """The observer called `name`; BadInput with the names there are when there is none."""
    known = names()
    if name not in known:
        raise BadInput(f"there is no observer called '{name}'", hint=f"use one of: {', '.join(known)}")
    return cast("Observer", importlib.import_module(f".{name}", __name__))


def reads_bins(name: str) -> bool:
    """Whether an observer needs the distribution of values, or only their range."""
    load(name)
    return bool(getattr(importlib.import_module(f".{name}", __name__), "READS_BINS", True))


def names() -> list[str]:
    """The names of all observers, sorted."""
    return sorted(module.name for module in pkgutil.iter_modules(__path__) if module.name != _NOT_AN_OBSERVER)
