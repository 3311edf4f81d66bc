"""Which backend compiles for a target: a folder with `build.py` and `run.py`, loaded when it is first used."""

from __future__ import annotations

import importlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol, cast

import numpy as np

from qcc.ir.errors import BadInput, MissingExtra, NotSupported, QccError
from qcc.ir.kernel_task import Assignment, Picker
from qcc.ir.program import Program
from qcc.ir.target import Target

Samples = Sequence[Mapping[str, np.ndarray]]
"""Inputs by name, a mapping for each run."""


@dataclass(frozen=True)
class Built:
    """What a backend wrote into an artifact folder."""

    assignments: Sequence[Assignment]
    """The choice made for each operation."""
    values: dict[str, str]
    """The names of the layers' results in the written model, by node."""
    files: tuple[str, ...]
    """The files that a runtime needs: their sizes make up the size of the artifact."""
    ran_on: tuple[str, ...] = ("cpu",)
    not_run: tuple[str, ...] = ()
    """Devices that the artifact is for and that were not there to check it on."""
    cache_dtype: str = ""
    """What the caches of a language model are kept in, where it is another type than that of the inputs."""
    requires: tuple[str, ...] = ()
    """What the processor must have, as `/proc/cpuinfo` spells it; empty where the runtime chooses by itself."""


class Backend(Protocol):
    """What `build.py` of a backend offers."""

    DEVICES: tuple[str, ...]
    """The devices of targets that it compiles for."""

    def obstacle(self, scheme: str, target: Target) -> str:
        """Why it cannot compile a scheme for a target; empty where it can."""
        ...

    def resolve(self, program: Program, target: Target, pick: Picker) -> list[Assignment]:
        """Choose a kernel for every operation and resolve layouts in the IR."""
        ...

    def build(
        self, program: Program, target: Target, folder: Path, weights: str, pick: Picker, samples: Samples
    ) -> Built:
        """Pack and write everything that `run.py` of the same backend opens; `program` is left packed.

        On `samples` a backend may look at the values of the network. It may change the types of inputs and outputs.
        """
        ...


def names() -> list[str]:
    """The names of the backends: the folders beside this file that can build."""
    return sorted(path.parent.name for path in Path(__file__).parent.glob("*/build.py"))


def load(name: str) -> Backend:
    """The backend called `name`."""
    if name not in names():
        raise BadInput(f"no backend is called {name!r}", hint=f"known backends: auto, {', '.join(names())}")
    return cast("Backend", importlib.import_module(f"qcc.backends.{name}.build"))


def fitting(target: Target) -> list[str]:
    """The backends that compile for the device of a target."""
    return [name for name in names() if target.device in load(name).DEVICES]


def choose(target: Target, requested: str) -> str:
    """The backend for a target: the one asked for, or the first that compiles for its device where that is `auto`."""
    known = fitting(target)
    if requested == "auto" and known:
        return known[0]
    if requested != "auto" and target.device in load(requested).DEVICES:
        return requested
    hint = f"use --backend {' or '.join(known)}" if known else "`qcc list targets` shows the others"
    raise NotSupported(f"no backend compiles for target {target.name!r} as asked: --backend {requested}", hint=hint)


@dataclass(frozen=True)
class Candidate:
    """A backend that may compile a network, and what keeps it from that: empty where nothing does."""

    backend: str
    obstacle: str = ""


def candidates(target: Target, requested: str, scheme: str) -> list[Candidate]:
    """The backend asked for; where that is `auto` all for the target's device, at least one of them without obstacle.

    Only on the target can they be measured: of a target that is not this machine, all but the first that can have an
    obstacle. Raises what keeps the first from it where none can: `NotSupported` where it does not hold the scheme,
    `MissingExtra` where it is not installed.
    """
    first = choose(target, requested)
    errors = {name: _obstacle(name, target, scheme) for name in (fitting(target) if requested == "auto" else [first])}
    able = [name for name, error in errors.items() if error is None]
    if not able:
        raise next(error for error in errors.values() if error is not None)
    elsewhere = f"not tried: {target.name} is not this machine, where they could be compared"
    tried = able if target.machine else able[:1]
    return [
        Candidate(name, "" if name in tried else elsewhere if error is None else reason_of(error))
        for name, error in errors.items()
    ]


def check(target: Target, requested: str, scheme: str) -> None:
    """`NotSupported` where no backend compiles for the target, or those that do cannot hold the scheme."""
    candidates(target, requested, scheme)


def reason_of(error: QccError) -> str:
    """Why a backend is left out, in one line."""
    return f"not installed: {error.message} ({error.hint})" if isinstance(error, MissingExtra) else error.message


def _obstacle(name: str, target: Target, scheme: str) -> NotSupported | MissingExtra | None:
    """What keeps a backend from compiling; None where nothing does."""
    try:
        reason = load(name).obstacle(scheme, target)
    except MissingExtra as error:
        return error
    if not reason:
        return None
    return NotSupported(
        f"target {target.name} does not take scheme {scheme}: {reason}", hint=f"its own scheme is {target.scheme}"
    )
