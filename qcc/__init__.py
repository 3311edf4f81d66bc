"""qcc, the compiler for quantized models: `compile`, `load`, `verify`, `evaluate` ..., and the errors they raise."""

from __future__ import annotations

import importlib
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from qcc.api import Artifact, bench, compile, evaluate, export, load, plan, report, simulate, verify
    from qcc.ir.errors import BadInput, CheckFailed, MissingExtra, NotSupported, QccError

__version__ = "0.1.0"

_PLACES = {
    **dict.fromkeys(("bench", "compile", "evaluate", "export", "plan", "report", "simulate", "verify"), "qcc.api"),
    **dict.fromkeys(("Artifact", "load"), "qcc.backends.runtime"),  # what runs an artifact loads no compiler
    **dict.fromkeys(("BadInput", "CheckFailed", "MissingExtra", "NotSupported", "QccError"), "qcc.ir.errors"),
}

__all__ = [
    "Artifact",
    "BadInput",
    "CheckFailed",
    "MissingExtra",
    "NotSupported",
    "QccError",
    "__version__",
    "bench",
    "compile",
    "evaluate",
    "export",
    "load",
    "plan",
    "report",
    "simulate",
    "verify",
]

for _folder in ("ir", "frontend", "passes", "backends", "autotune"):
    if not (Path(__file__).parent / _folder / "__init__.py").exists():
        raise ImportError(
            f"qcc/{_folder} is missing: it is a symbolic link that a ZIP download or a checkout without link support "
            "loses. Clone the repository with git, or install the wheel."
        )


def __getattr__(name: str) -> object:
    """Load the public names when they are first used, so that `import qcc` stays quick."""
    if name not in _PLACES:
        raise AttributeError(f"module 'qcc' has no attribute {name!r}")
    return getattr(importlib.import_module(_PLACES[name]), name)
