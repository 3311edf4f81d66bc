"""The one pool of threads of the process, `c/pool.c`."""

from __future__ import annotations

import ctypes
from functools import cache

from . import compile
from .isa import C_FOLDER


@cache
def launcher() -> int:
    """The address of `qcc_launch`."""
    library = compile.load(compile.compile_c((C_FOLDER / "pool.c").read_text()))
    address = ctypes.cast(library.qcc_launch, ctypes.c_void_p).value
    assert address is not None
    return address
