"""qcc's dialects and passes for xDSL's own tools, through the entry point `xdsl.universe`.

Passes carry a prefix, as in `xdsl-opt -p qcc-fold_affine`: it keeps them apart from xDSL's own, of which one is called
`canonicalize` too.
"""

from __future__ import annotations

from collections.abc import Callable

from xdsl.passes import ModulePass
from xdsl.universe import Universe

from qcc import passes
from qcc.ir.dialects.registry import DIALECTS


def _pass(name: str) -> Callable[[], type[ModulePass]]:
    def load() -> type[ModulePass]:
        found = passes.load(name)
        return type(found.__name__, (found,), {"name": f"qcc-{name}", "__doc__": found.__doc__})

    return load


UNIVERSE = Universe(all_dialects=DIALECTS, all_passes={f"qcc-{name}": _pass(name) for name in passes.names()})
