"""Loops over the 16 channels of a block as vectors: LLVM leaves alone those that hold a choice or a rounding."""

from __future__ import annotations

import importlib

from qcc.backends.native.blocked import BLOCK

from .lower import CALL
from .toolchain import Tvm, tvm


def vectorize(module: Tvm) -> Tvm:
    """The module with its innermost loops over blocks of channels as vectors; reductions stay as they are."""
    prim = tvm().tirx.PrimFunc
    schedule = importlib.import_module("tvm.s_tir").Schedule(module)
    for name, function in module.functions_items():
        if isinstance(function, prim) and not name.name_hint.startswith(CALL):
            schedule.work_on(name.name_hint)
            _vectorize(schedule)
    return schedule.mod


def _vectorize(schedule: Tvm) -> None:
    root = schedule.get_sblock("root")
    for block in schedule.get_child_blocks(root):
        loops = schedule.get_loops(block)
        statement = schedule.get(block)
        parallel = all(int(axis.iter_type) == 0 for axis in statement.iter_vars)
        extent = getattr(schedule.get(loops[-1]).extent, "value", None) if loops else None
        if parallel and extent == BLOCK:
            schedule.vectorize(loops[-1])
