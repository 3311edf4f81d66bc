"""Writers for other runtimes: one file a container, and this folder is the registry (`compressed-tensors` is a name).

    checkpoints    gguf, compressed-tensors, gptq, awq      write(checkpoint, place, choices) -> records
    graphs         onnx, qdq                                write(program, place) -> records

Codes go over as they are, in another format where that has the very same values (`qcc.ir.convert`), or not at all: what
a container cannot say is `NotSupported`. Files whose name begins with `_` hold what writers share.
"""

from __future__ import annotations

import importlib
import pkgutil
from dataclasses import dataclass
from typing import Any

from qcc.ir.errors import BadInput
from qcc.passes.schemes import Scheme

GRAPHS = ("onnx", "qdq")
"""What is written from a program; the others are written from checkpoints."""
FILES = ("gguf", *GRAPHS)
"""What is one file; the others are folders."""


@dataclass(frozen=True)
class Choices:
    """What the user asked for: a scheme for float weights, and patterns of layers that are float in the result."""

    scheme: Scheme | None = None
    group_size: int = 0
    algorithm: str = "rtn"
    ignore: tuple[str, ...] = ()


@dataclass(frozen=True)
class Record:
    """What became of a weight: its format in the source and in the result, `f16` and the like where it is float."""

    name: str
    source: str
    written: str
    note: str = ""


def names() -> list[str]:
    """What can be written."""
    found = [m.name for m in pkgutil.iter_modules(__path__) if not m.name.startswith("_")]
    return sorted(name.replace("_", "-") for name in found)


def load(name: str) -> Any:
    """The module of a writer. Any: what `import_module` gives."""
    if name not in names():
        raise BadInput(f"no format is called {name!r}", hint=f"known formats: {', '.join(names())}")
    return importlib.import_module(f"{__name__}.{name.replace('-', '_')}")
