"""TVM as a compiler: `write_functions({name: writer}) -> module of TIR`, `compile_module(module, cpu) -> functions`."""

from __future__ import annotations

import importlib
import sys
from collections.abc import Callable, Generator, Mapping
from contextlib import contextmanager
from functools import cache
from importlib.util import find_spec
from typing import Any, TypeAlias

from qcc.ir.errors import BadInput, MissingExtra

Tvm: TypeAlias = Any
"""Any: TVM has no types, and checks its expressions when it builds them."""

EXTRA = "pip install 'qcc[tvm]'"


@cache
def tvm() -> Tvm:
    """The package; `MissingExtra` where it is not installed. Importing it takes 3 s."""
    try:
        with without_torch():
            return importlib.import_module("tvm")
    except ImportError as error:
        raise MissingExtra("the TIR form of kernels needs TVM", hint=EXTRA) from error


def require() -> None:
    """`MissingExtra` where the package, which takes seconds to import, is not installed."""
    if find_spec("tvm") is None:
        raise MissingExtra("--backend tvm needs TVM", hint=EXTRA)


def script() -> Tvm:
    """What writes TIR: a frame for each block, a call for each statement."""
    tvm()
    return importlib.import_module("tvm.tirx.script.builder")


def write_functions(functions: Mapping[str, Callable[[], None]]) -> Tvm:
    """A module of TIR with functions that are each written into a frame of its own; it prints as TVMScript."""
    builder, T, written = importlib.import_module("tvm.script.ir_builder").IRBuilder, script(), {}
    for name, write in functions.items():
        with builder() as made, T.prim_func(s_tir=True):
            T.func_name(name)
            T.func_attr({"tirx.noalias": True, "global_symbol": name})
            write()
        written[name] = made.get()
    return tvm().IRModule(written)


def compile_module(module: Tvm, cpu: str) -> Tvm:
    """Machine code: the functions by name.

    `cpu` is "host", "generic", which every processor of the host's kind runs, or a name that LLVM has; else `BadInput`.
    """
    package, target = tvm(), target_of(cpu)
    once = {"tirx.disable_cse_tir": True}  # the kernels keep what they use twice, and the search takes seconds
    with package.transform.PassContext(config=once):
        return package.tirx.build(module, target=target)


def target_of(cpu: str) -> Tvm:
    """The host without `mcpu` is the least processor of its kind."""
    package = tvm()
    if cpu == "generic":
        return package.target.Target({"kind": "llvm"})
    codegen = package.target.codegen
    name = str(codegen.llvm_get_system_cpu()) if cpu == "host" else cpu
    if name not in [str(known) for known in codegen.llvm_get_cpu_archlist(package.target.Target({"kind": "llvm"}))]:
        raise BadInput(f"LLVM knows no processor {name!r}", hint="host, generic, or a name that LLVM uses, as haswell")
    return package.target.Target({"kind": "llvm", "mcpu": name})


@contextmanager
def without_torch() -> Generator[None]:
    """TVM imports torch wherever it finds it, for 2 s and 200 MB, and needs it for no kernel."""
    hidden = "torch" not in sys.modules
    if hidden:
        sys.modules["torch"] = None  # pyright: ignore[reportArgumentType]  # what makes `import torch` fail
    try:
        yield
    finally:
        if hidden:
            del sys.modules["torch"]
