"""A linear operation without a C compiler: `build(spec) -> TirKernel`; `kernel_for(spec)` takes the form that there is.

    kernel_for = generated C with intrinsics, or the portable TIR form where no C compiler is found

Both read the same packed bytes where their schedules are the same, and both are called alike.
"""

from __future__ import annotations

import ctypes
import warnings
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from copy import copy
from functools import cache, cached_property
from itertools import pairwise
from typing import Any

import numpy as np

from qcc.backends.native import linear
from qcc.backends.native.isa import Isa, best, named
from qcc.backends.native.linear import Call, LinearKernel, Packed
from qcc.backends.native.linear_spec import LinearSpec, Schedule
from qcc.ir import target
from qcc.ir.errors import BadInput, MissingExtra, NotSupported

from .emit_activations import Prepare, WideWorkspace
from .emit_linear import Product
from .toolchain import EXTRA, compile_module, tvm, write_functions

SLOWER = "2 to 18"
"""Times that the portable form takes what C with the host's intrinsics takes: `benchmarks/kernel_forms.py`."""


class TirKernel(LinearKernel):
    """The portable form of a linear kernel, for TVM: it packs and is called as the C form is."""

    form = "portable TIR"

    def __init__(self, spec: LinearSpec, schedule: Schedule | None = None, cpu: str = "host") -> None:
        if spec.activation.fixed:
            raise NotSupported(f"{spec}: the TIR form rounds each row by its own scale", hint="install a C compiler")
        text = linear.generate(spec, named("portable"), schedule)
        self.spec, self.isa, self.schedule, self.storage = spec, text.isa, text.schedule, text.storage
        self.panel_bytes, self.threads = 0, 1
        self.workspace = work = WideWorkspace(**vars(text.workspace))
        product, prepare = Product(spec, self.storage, work, text.schedule), Prepare(spec, self.storage, work)
        tables = b"".join(spec.lattice.tables) or bytes(1)
        self._tables = tvm().runtime.tensor(np.frombuffer(tables, np.uint8))
        module = write_functions({"prepare": prepare.write, "product": product.write})
        self.source = str(module.script())
        compiled = compile_module(module, cpu)
        self._prepare, self._product = compiled["prepare"], compiled["product"]

    def prepared(
        self,
        x: np.ndarray,
        packed: Packed,
        bias: np.ndarray | None = None,
        *,
        out: np.ndarray | None = None,
        threads: int = 1,
    ) -> Call:
        """The same call, checked once and made as often as one likes."""
        cores = target.load("cpu").cores
        if not 1 <= threads <= cores:
            raise BadInput(f"{threads} threads on {cores} cores", hint=f"1 to {cores}")
        kernel = copy(self)
        kernel.threads = threads
        return super(TirKernel, kernel).prepared(x, packed, bias, out=out)

    @cached_property
    def run(self) -> Any:
        """What stands for the C function `qcc_linear`, and is Any as that is: it takes the addresses of buffers."""
        prepare, product = self._prepare, self._product
        threads, blocks, tables = self.threads, self.storage.blocks, self._tables

        def run(x: int, w: int, bias: int | None, y: int, m: int, alpha: float, rows: int, *_: object) -> None:
            pointers = [ctypes.c_void_p(address) for address in (rows, w, bias, y)]
            prepare(ctypes.c_void_p(x), pointers[0], m, tables)

            def some(first: int, last: int) -> None:
                product(*pointers, m, alpha, first, last, int(bias is not None), tables)

            if m:
                _share(some, blocks, threads)

        return run


def build(spec: LinearSpec, schedule: Schedule | None = None, cpu: str = "host") -> TirKernel:
    """The portable TIR form for the host, for `generic` processors of its kind, or for one that LLVM names.

    `MissingExtra` without TVM; `NotSupported` where the C form has none either.
    """
    return TirKernel(spec, schedule, cpu)


def kernel_for(spec: LinearSpec, isa: Isa | None = None, schedule: Schedule | None = None) -> LinearKernel:
    """The C form for an instruction set, the host's best if none is named; without a C compiler the portable TIR form.

    A warning says so. `MissingExtra` where TVM is missing too.
    """
    try:
        return linear.build(spec, isa or best(target.load("cpu")), schedule)
    except MissingExtra as no_compiler:
        try:
            kernel = build(spec, schedule)
        except MissingExtra as no_tvm:
            hint = f"{no_compiler.hint}, or {EXTRA} for the slower TIR form"
            raise MissingExtra(no_compiler.message, hint=hint) from no_tvm
    warnings.warn(f"portable TIR form: no C compiler was found; {SLOWER} times slower than generated C", stacklevel=2)
    return kernel


def _share(work: Callable[[int, int], None], count: int, threads: int) -> None:
    """Split 0 .. count - 1 among threads; the calling one takes the first part."""
    edges = [count * i // threads for i in range(threads + 1)]
    others = [_pool().submit(work, first, last) for first, last in pairwise(edges[1:])]
    work(0, edges[1])
    for other in others:
        other.result()


@cache
def _pool() -> ThreadPoolExecutor:
    return ThreadPoolExecutor(max(1, target.load("cpu").cores - 1), "qcc-tir")
