"""Kernels of ONNX Runtime for `q` operations: one file a kernel, and this folder is the registry.

A kernel module offers `offers(task, speed) -> list[Choice]` (empty where it does not apply) and
`lower(op, choice, lowering)`, which gives the value that replaces the operation.
"""

from __future__ import annotations

import importlib
import math
import pkgutil
from typing import TYPE_CHECKING, Protocol, cast

from xdsl.ir import SSAValue

from qcc.ir.dialects.q import QuantizedOp
from qcc.ir.errors import NotSupported
from qcc.ir.kernel_task import Choice, KernelTask
from qcc.ir.layout import Layout

from ..speed import Speed

if TYPE_CHECKING:
    from ..lower import Lowering


class Kernel(Protocol):
    """What a file of this folder offers."""

    def offers(self, task: KernelTask, speed: Speed) -> list[Choice]:
        """The ways in which this kernel can compute `task`, with their costs in milliseconds."""
        ...

    def lower(self, op: QuantizedOp, choice: Choice, lowering: Lowering) -> SSAValue:
        """Standard or contrib operators in the place of `op`; its weight is packed as `choice` says."""
        ...


def names() -> list[str]:
    """The names of all kernels."""
    return sorted(m.name for m in pkgutil.iter_modules(__path__))


def load(name: str) -> Kernel:
    """The kernel called `name`."""
    return cast("Kernel", importlib.import_module(f"{__name__}.{name}"))


def offers(task: KernelTask, speed: Speed) -> list[Choice]:
    """Every choice for a task, from all kernels; `NotSupported` where there is none. Infinite costs are no choice."""
    fmt = task.weight_format
    reading = names() if fmt.is_plain else ["matmul_nbits_offset", "expansion"]  # the others know one level of scales
    found = [c for name in reading for c in load(name).offers(task, speed) if c.cost < math.inf]
    if not found:
        raise NotSupported(
            f"ONNX Runtime has no kernel for {task.op} with {task.weight_format}",
            hint="`qcc list schemes` shows what it runs",
        )
    return found


def natural(rank: int) -> Layout:
    """Row-major order, codes packed without gaps: `a(a0) b(b0) -> a0 b0`."""
    names_ = "abcdefgh"[:rank]
    return Layout.parse(" ".join(f"{n}({n}0)" for n in names_) + " -> " + " ".join(f"{n}0" for n in names_))
