"""The seam between what must be computed and how: `KernelTask -> choices -> Choice -> resolved layout -> pack_weights`.

A backend turns each `q` operation into a `KernelTask` and offers `Choice`s for it. Whoever drives the compilation (the
default order, a database of measurements, a tuner) picks one; only then does the weight get a layout, and packing comes
last. A choice changes speed and where bits lie, never what is computed.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

from .dialects.q import QuantizedOp
from .errors import BadInput
from .format import Format
from .layout import Layout
from .types import Dim


@dataclass(frozen=True)
class KernelTask:
    """One operation to compute: hashable, so that measurements can be kept under it."""

    op: str
    """`q.linear`, `q.conv` or `q.embedding`."""
    x: tuple[Dim, ...] | None
    """Dimensions of the activation; None where its rank is unknown."""
    weight: tuple[int, ...]
    """Extents of the weight: [N, K], [M, C/group, ...] or [V, D]."""
    weight_format: Format
    activation_format: Format | None
    """None: float activations."""
    dynamic: bool
    """Whether the activation's scales are computed at run time."""
    target: str
    attributes: tuple[tuple[str, str], ...] = ()
    """What else the kernel depends on, such as strides, as text."""


@dataclass(frozen=True)
class Choice:
    """One way to compute a task: a kernel of the backend, where the weight's bits lie, and its parameters."""

    kernel: str
    layout: Layout
    zero_layout: Layout | None = None
    parameters: tuple[tuple[str, int], ...] = ()
    cost: float = 0.0
    """Predicted or measured time in milliseconds; the default is to take the cheapest."""
    reason: str = ""
    """One phrase for the user: why this choice, or what it costs."""

    def __str__(self) -> str:
        options = "".join(f" {k}={v}" for k, v in self.parameters)
        return f"{self.kernel}{options} [{self.layout}]"


Picker = Callable[[KernelTask, Sequence[Choice]], Choice]
"""Picks one of the choices for a task."""


def cheapest(task: KernelTask, choices: Sequence[Choice]) -> Choice:
    """The default picker: lowest cost, first offered where equal."""
    del task
    return min(choices, key=lambda c: c.cost)


@dataclass(frozen=True)
class Assignment:
    """An operation with its task and the choice made for it."""

    op: QuantizedOp
    task: KernelTask
    choice: Choice


def assign(
    tasks: Sequence[tuple[QuantizedOp, KernelTask]],
    offers: Callable[[KernelTask], Sequence[Choice]],
    pick: Picker = cheapest,
) -> list[Assignment]:
    """Pick a choice for every task; equal tasks get equal choices. `BadInput` where a pick was not offered."""
    made: dict[KernelTask, Choice] = {}
    assignments: list[Assignment] = []
    for op, task in tasks:
        if task not in made:
            choices = offers(task)
            choice = pick(task, choices)
            if choice not in choices:
                raise BadInput(f"{op.where()}: {choice.kernel} was not offered for this task")
            made[task] = choice
        assignments.append(Assignment(op, task, made[task]))
    return assignments


def from_mapping(chosen: Mapping[KernelTask, Choice]) -> Picker:
    """A picker that knows some tasks and leaves the others to the default."""
    return lambda task, choices: chosen.get(task) or cheapest(task, choices)
