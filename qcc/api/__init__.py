"""The public functions: `compile`, `plan`, `load`, `verify`, `bench`, `evaluate`, `report`, `export`, `simulate`.

Flags of the command line are the same words.
"""

from __future__ import annotations

from qcc.backends.runtime import Artifact, load

from .bench import BenchReport, bench
from .compile import compile, plan
from .evaluate import EvalReport, evaluate
from .export import ExportReport, export
from .page import report
from .progress import Plan
from .simulate import simulate
from .simulation import Simulation
from .verify import VerifyReport, verify

__all__ = [
    "Artifact",
    "BenchReport",
    "EvalReport",
    "ExportReport",
    "Plan",
    "Simulation",
    "VerifyReport",
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
