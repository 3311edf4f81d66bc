"""Passes: one file a pass, and this folder is the registry. The order in which they run is `pipeline.py`.

The file `fuse_batch_norm.py` holds the pass `fuse_batch_norm` as the class `FuseBatchNorm`.
"""

from __future__ import annotations

import importlib
import pkgutil

from qcc.ir.errors import BadInput
from qcc.ir.rewrite import Pass

_NOT_PASSES = {
    "pipeline",
    "calibrate",
    "selection",
    "schemes",
    "observers",
    "algorithms",
    "fixed_point_form",
    "power_of_two",
}


def names() -> list[str]:
    """The names of all passes."""
    return sorted(m.name for m in pkgutil.iter_modules(__path__) if m.name not in _NOT_PASSES)


def load(name: str) -> type[Pass]:
    """The class of the pass called `name`."""
    if name not in names():
        raise BadInput(f"no pass is called {name!r}", hint=f"known passes: {', '.join(names())}")
    module = importlib.import_module(f"{__name__}.{name}")
    found = getattr(module, "".join(word.capitalize() for word in name.split("_")))
    assert issubclass(found, Pass)
    return found
