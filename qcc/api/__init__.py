"""The public functions: `compile`, `plan`, `load`, `verify`, `bench`, `report`.

Flags of the command line are the same words.
"""

from __future__ import annotations

from qcc.backends.runtime import Artifact, load

from .bench import BenchReport, bench
from .compile import compile, plan
from .report import Plan
from .verify import VerifyReport, verify

# isort: split
from .page import report  # after the module `report`: the name is the function's

__all__ = ["Artifact", "BenchReport", "Plan", "VerifyReport", "bench", "compile", "load", "plan", "report", "verify"]
