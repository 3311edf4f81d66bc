"""The public functions: `compile`, `plan`, `load`, `verify`, `bench`, `evaluate`, `report`.

Flags of the command line are the same words.
"""

from __future__ import annotations

from qcc.backends.runtime import Artifact, load

from .bench import BenchReport, bench
from .compile import compile, plan
from .evaluate import EvalReport, evaluate
from .page import report
from .progress import Plan
from .verify import VerifyReport, verify

__all__ = [
    "Artifact",
    "BenchReport",
    "EvalReport",
    "Plan",
    "VerifyReport",
    "bench",
    "compile",
    "evaluate",
    "load",
    "plan",
    "report",
    "verify",
]
