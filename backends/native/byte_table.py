"""A table of 256 bytes as a kernel, `y = table[x]`: any function of one 8-bit code, such as a chain of activations."""

from __future__ import annotations

import ctypes

import numpy as np

from qcc.ir import target
from qcc.ir.errors import BadInput

from . import compile, isa
from .isa import C_FOLDER, Isa
from .pool import launcher


class TableKernel:
    """`y[i] = table[x[i]]` for bytes, of any number."""

    def __init__(self, isa_: Isa) -> None:
        self.isa, self.source = isa_, generate(isa_)
        isa.check(isa_, target.load("cpu"))
        self._run = compile.load(compile.compile_c(self.source, isa_.flags)).qcc_table
        self._run.restype = None
        self._run.argtypes = [*[ctypes.c_void_p] * 3, ctypes.c_long, ctypes.c_int, ctypes.c_void_p]

    def __call__(
        self, x: np.ndarray, table: np.ndarray, *, out: np.ndarray | None = None, threads: int = 1
    ) -> np.ndarray:
        """uint8 of the shape of `x`, contiguous uint8; `out` may be `x`. An int8 code is the index of its byte.

        `BadInput` names the array that does not fit.
        """
        y = np.empty(x.shape, np.uint8) if out is None else out
        for name, array, shape in (("x", x, x.shape), ("the table", table, (256,)), ("out", y, x.shape)):
            if array.dtype != np.uint8 or array.shape != shape or not array.flags.c_contiguous:
                raise BadInput(
                    f"{name} is {list(array.shape)} {array.dtype}", hint=f"pass {list(shape)} uint8, contiguous"
                )
        if not y.flags.writeable:
            raise BadInput("out is read-only")
        if np.may_share_memory(x, y) and x.ctypes.data != y.ctypes.data:
            raise BadInput("out lies over x", hint="exactly on top of it, or beside it")
        cores = target.load("cpu").cores
        if not 1 <= threads <= cores:
            raise BadInput(f"{threads} threads on {cores} cores", hint=f"1 to {cores}")
        launch = launcher() if threads > 1 else None
        self._run(x.ctypes.data, table.ctypes.data, y.ctypes.data, x.size, threads, launch)
        return y


def build(isa: Isa) -> TableKernel:
    """The kernel, compiled; `NotSupported` where this host lacks its instructions."""
    return TableKernel(isa)


def generate(isa: Isa) -> str:
    """The C text of the kernel."""
    lines = ["#include <math.h>", "#include <stddef.h>", isa.text(), f"#define BY_BYTES {int(not isa.needs)}"]
    return "\n".join([*lines, (C_FOLDER / "byte_table.h").read_text()])
