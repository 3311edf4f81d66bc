"""`export`: a checkpoint or a graph in the container of another runtime, code by code, or refused by name."""

from __future__ import annotations

import os
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from qcc.backends import export as writers
from qcc.backends.artifact import MANIFEST
from qcc.backends.export import Choices, Record
from qcc.backends.places import writing_export
from qcc.frontend.checkpoints import Checkpoint, open_checkpoint
from qcc.ir.errors import BadInput, NotSupported
from qcc.ir.program import Program
from qcc.passes import algorithms, schemes

from .progress import Progress, Silent


@dataclass(frozen=True)
class ExportReport:
    """What was written where, and what became of each weight."""

    output: str
    format: str
    source: str
    bytes: int
    weights: list[Record]
    seconds: float

    @property
    def formats(self) -> dict[str, int]:
        """How many weights were written in each format."""
        found: dict[str, int] = {}
        for record in self.weights:
            found[record.written] = found.get(record.written, 0) + 1
        return found


def export(
    source: str | os.PathLike[str],
    output: str | os.PathLike[str],
    *,
    format: str,
    scheme: str = "",
    group_size: int = 0,
    algorithm: str = "rtn",
    ignore: Sequence[str] = (),
    force: bool = False,
    progress: Progress | None = None,
) -> ExportReport:
    """Write a model in another container.

    `source` is a Hugging Face folder (float, GPTQ, AWQ or compressed-tensors) or a `.gguf` file for the formats `gguf`,
    `compressed-tensors`, `gptq` and `awq`; an `.onnx` file or an artifact for `onnx` (MatMulNBits) and `qdq`
    (DequantizeLinear). Codes keep their values bit by bit. `scheme` quantizes the float weights of linear layers on the
    way; the output head and embeddings are left alone, and so is what `ignore` (names or `re:...`) covers.

    Raises `BadInput`, `MissingExtra`, and `NotSupported` naming the weight that the container cannot hold; nothing is
    written then.
    """
    begin = time.perf_counter()
    source, output, progress = Path(source), Path(output), progress or Silent()
    writer = writers.load(format)
    kind = _kind(source)
    _check_pair(source, kind, format, scheme)
    choices = _choices(scheme, group_size, algorithm, tuple(ignore))
    is_file = format in writers.FILES
    with writing_export(output, source, is_file=is_file, force=force) as place:
        progress.stage("open")
        opened = _program(source, kind) if format in writers.GRAPHS else _checkpoint(source, kind)
        progress.stage("write")
        records = writer.write(opened, place, choices)
        size = place.stat().st_size if is_file else sum(f.stat().st_size for f in place.iterdir())
    return ExportReport(str(output), format, kind, size, records, time.perf_counter() - begin)


def _kind(source: Path) -> str:
    """What a path holds."""
    if not source.exists():
        raise BadInput(
            f"{source}: no such file or folder", hint="give a model folder, an artifact, a .gguf or an .onnx"
        )
    if source.is_dir():
        return "artifact" if (source / MANIFEST).is_file() else "Hugging Face folder"
    kinds = {".gguf": "GGUF file", ".onnx": "ONNX file"}
    if source.suffix not in kinds:
        raise BadInput(
            f"{source}: not a file that is exported", hint="give a model folder, an artifact, a .gguf or an .onnx"
        )
    return kinds[source.suffix]


def _check_pair(source: Path, kind: str, format: str, scheme: str) -> None:
    graph = kind in ("artifact", "ONNX file")
    if format in writers.GRAPHS and not graph:
        raise NotSupported(
            f"{source}: a {kind} holds weights, {format} is a graph",
            hint=f"compile it, then export the artifact: `qcc compile {source} -o out.qcc`",
        )
    if format not in writers.GRAPHS and graph:
        lacks = "an artifact does not keep the configuration of its network" if kind == "artifact" else "it has none"
        raise NotSupported(
            f"{source}: {format} needs the configuration of a transformers model, and {lacks}",
            hint="export the model folder or the .gguf file itself, with --scheme where it is float",
        )
    if format == "gguf" and kind == "GGUF file":
        raise BadInput(f"{source} is a GGUF file already", hint="copy it")
    if graph and scheme:
        raise BadInput(
            f"{source}: a graph is exported as it is: it takes no scheme", hint="compile it with that scheme"
        )


def _choices(scheme: str, group_size: int, algorithm: str, ignore: tuple[str, ...]) -> Choices:
    found = schemes.load(scheme) if scheme else None
    if found is not None and found.activation:
        raise NotSupported(
            f"scheme {found.name} quantizes activations: an export holds weights", hint="take W4A16 or W8A16"
        )
    if found is not None and not found.weight:
        found = None
    algorithms.load(algorithm)
    if algorithms.needs_hessian(algorithm):
        raise NotSupported(
            f"algorithm {algorithm} needs samples, which an export does not take", hint="take --algorithm rtn"
        )
    if group_size and (found is None or group_size < 1):
        raise BadInput(f"group size {group_size} without a scheme that has groups", hint="pass --scheme W4A16 too")
    return Choices(found, group_size, algorithm, ignore)


def _checkpoint(source: Path, kind: str) -> Checkpoint:
    if kind == "GGUF file":
        from qcc.frontend.gguf_file import open_gguf_checkpoint

        return open_gguf_checkpoint(source)
    return open_checkpoint(source)


def _program(source: Path, kind: str) -> Program:
    from qcc.frontend import onnx_file
    from qcc.ir.rewrite import ProgramContext
    from qcc.passes.keep_codes import KeepCodes

    if kind == "artifact":
        from qcc.backends.stored_program import open_program

        return open_program(source)
    program = onnx_file.read(source)
    KeepCodes().run(program, ProgramContext(program=program))
    return program
