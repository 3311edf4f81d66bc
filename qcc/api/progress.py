"""What `compile` tells while it works, and what a dry run gives."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Protocol

from qcc.ir.program import Decision


class Progress(Protocol):
    """What shows progress: the command line draws it, a pipeline may log it."""

    def stage(self, name: str) -> None:
        """A stage of the road begins."""
        ...

    def step(self, done: int, total: int) -> None:
        """How far the stage is."""
        ...


class Silent:
    """Progress that nobody watches."""

    def stage(self, name: str) -> None:
        """Say nothing."""

    def step(self, done: int, total: int) -> None:
        """Say nothing."""


@dataclass(frozen=True)
class PassCheck:
    """The program after a pass against the float model, on one sample."""

    name: str
    sqnr_db: float
    operations: int


@dataclass
class Plan:
    """What compilation would do: the decisions, the size, and no artifact."""

    scheme: str
    target: str
    backend: str
    decisions: list[Decision] = field(default_factory=list[Decision])
    kernels: dict[str, str] = field(default_factory=dict[str, str])
    bytes: int = 0
    float_bytes: int = 0
    passes: list[PassCheck] = field(default_factory=list[PassCheck])

    @property
    def quantized(self) -> list[Decision]:
        """The nodes that become codes."""
        return [d for d in self.decisions if d.action == "quantized"]

    @property
    def skipped(self) -> list[Decision]:
        """The nodes that stay float, with reasons."""
        return [d for d in self.decisions if d.action == "skipped"]
