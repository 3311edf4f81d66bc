"""TIR functions that call C functions: what a compiled network has between its tensors and generated C."""

from __future__ import annotations

import importlib
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from .toolchain import Tvm, script, tvm

_OPAQUE = 8
"""TVM's number for a function that is fused with no other."""


@dataclass(frozen=True)
class Float:
    """A float32 argument."""

    value: float


@dataclass(frozen=True)
class Int32:
    """An int32 argument."""

    value: int


def wrapper(
    symbol: str,
    inputs: Sequence[tuple[int, str]],
    results: Sequence[tuple[int, str]],
    numbers: Sequence[Any],
    refusal: str,
    changed: Sequence[int],
) -> Tvm:
    """The TIR function `(inputs..., extents..., results...)` that passes tensors and numbers on to a C function.

    Tensors are of ranks and dtypes; numbers are `Float`, `Int32`, or anything else for an int64 of the call. With
    `refusal` the C function gives a number, and where that is not 0 the call ends so. Any: as said.
    """
    T, package = script(), tvm()
    builder = importlib.import_module("tvm.script.ir_builder").IRBuilder
    with builder() as made, T.prim_func(s_tir=True):
        T.func_name(symbol)
        T.func_attr({"tirx.noalias": True, "op_pattern": _OPAQUE})
        handles = [T.arg(f"t{i}", T.handle()) for i in range(len(inputs))]
        passed: list[Any] = []
        for i, number in enumerate(numbers):
            if isinstance(number, Float):
                passed.append(T.float32(number.value))
            elif isinstance(number, Int32):
                passed.append(T.int32(number.value))
            else:
                passed.append(T.arg(f"n{i}", T.int64()))
        handles += [T.arg(f"y{i}", T.handle()) for i in range(len(results))]
        buffers = [
            T.match_buffer(handle, [package.tirx.Var(f"d{i}_{axis}", "int64") for axis in range(rank)], kind)
            for i, (handle, (rank, kind)) in enumerate(zip(handles, [*inputs, *results], strict=True))
        ]
        with T.sblock(symbol):  # in which TVM's passes expect every body, with what it touches
            whole = [b[tuple(slice(0, extent) for extent in b.shape)] for b in buffers]
            T.reads(*whole[: len(inputs)])
            T.writes(*whole[len(inputs) :], *[whole[i] for i in changed])
            arguments = [buffer.data for buffer in buffers]
            called = T.call_extern("int32" if refusal else "void", symbol, *arguments, *passed)
            if refusal:
                with T.Assert(called == 0, refusal):
                    T.evaluate(0)
            else:
                T.evaluate(called)
    return made.get().without_attr("global_symbol")
