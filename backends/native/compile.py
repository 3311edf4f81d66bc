"""C text to machine code: `compile_c(text, flags) -> library`, kept in the cache by text, flags and compiler.

The library is written beside its place and moved there, so that two processes can compile one kernel at a time.
`QCC_CC` names the compiler; without it `cc`, `gcc` and `clang` are tried.
"""

from __future__ import annotations

import atexit
import contextlib
import ctypes
import hashlib
import os
import shutil
import subprocess
import tempfile
from collections.abc import Sequence
from functools import cache
from pathlib import Path

from qcc.ir.cache import cache_folder
from qcc.ir.errors import MissingExtra, QccError

_OPTIONS = (
    "-O3",
    "-fno-tree-slp-vectorize",
    "-std=gnu11",
    "-fPIC",
    "-pthread",
    "-fno-math-errno",
    "-ffp-contract=off",
    "-w",
)


@cache
def compiler() -> str:
    """The path of a C compiler; `MissingExtra` where there is none."""
    named = os.environ.get("QCC_CC", "")
    for name in [named] if named else ["cc", "gcc", "clang"]:
        if found := shutil.which(name):
            return found
    raise MissingExtra(
        f"no C compiler{f' called {named!r}' if named else ''} was found, which generated kernels need",
        hint="apt install gcc, or name one in QCC_CC",
    )


@cache
def compiler_version() -> str:
    """The first line of what the compiler says of itself."""
    run = subprocess.run([compiler(), "--version"], capture_output=True, text=True, check=False)
    return run.stdout.partition("\n")[0].strip() or "unknown"


def compile_c(text: str, flags: Sequence[str] = ()) -> Path:
    """The shared library of a C text. `QccError` with the compiler's words where it is refused: a fault of qcc."""
    return _compile(text, [*_OPTIONS, *flags, "-shared"], ".so", "-lm")


def compile_object(text: str, flags: Sequence[str] = ()) -> Path:
    """The object file of a C text, to be linked with others."""
    return _compile(text, [*_OPTIONS, *flags, "-c"], ".o")


def _compile(text: str, options: list[str], suffix: str, *libraries: str) -> Path:
    key = hashlib.sha256("\0".join([text, *options, compiler_version()]).encode()).hexdigest()[:24]
    folder = _library_folder(cache_folder() / "kernels")
    kept = folder / f"{key}{suffix}"
    if kept.exists():
        return kept
    with tempfile.TemporaryDirectory(dir=folder, prefix="compiling-") as scratch:
        source, made = Path(scratch, f"{key}.c"), Path(scratch, kept.name)
        source.write_text(text)
        command = [compiler(), *options, "-o", str(made), str(source), *libraries]
        run = subprocess.run(command, capture_output=True, text=True, check=False)
        if run.returncode:
            raise QccError(f"{compiler()} refused a generated kernel:\n{run.stderr[-4000:]}")
        os.replace(made, kept)
        with contextlib.suppress(OSError):
            os.replace(source, kept.with_suffix(".c"))
    return kept


def _library_folder(wanted: Path) -> Path:
    """A folder that can be written: the one that is wanted, else one of this process."""
    try:
        wanted.mkdir(parents=True, exist_ok=True)
        tempfile.TemporaryFile(dir=wanted).close()
    except OSError:
        return _own_folder()
    return wanted


@cache
def _own_folder() -> Path:
    """A folder that is gone when the process ends."""
    own = tempfile.TemporaryDirectory(prefix="qcc-kernels-")
    atexit.register(own.cleanup)
    return Path(own.name)


def load(library: Path) -> ctypes.CDLL:
    """The functions of a compiled library."""
    return ctypes.CDLL(str(library))
