"""`qcc report ARTIFACT`: one HTML page that tells everything about it."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from ._frame import DebugFlag, JsonFlag, QuietFlag, Screen, size


def command(
    artifact: Annotated[Path, typer.Argument(help="An artifact folder.")],
    output: Annotated[
        Path | None, typer.Option("-o", "--output", help="The page to write; default ./<artifact name>.html.")
    ] = None,
    bench: Annotated[bool, typer.Option("--bench", help="Time the artifact now.")] = False,
    model: Annotated[
        Path | None, typer.Option(help="With --bench: the float .onnx file, timed on ONNX Runtime as a baseline.")
    ] = None,
    threads: Annotated[int, typer.Option(help="With --bench: threads of every side; 0: all cores.")] = 1,
    rounds: Annotated[int, typer.Option(help="With --bench: rounds; every side is timed once in each.")] = 20,
    force: Annotated[bool, typer.Option("--force", help="Replace a file that is not a qcc report.")] = False,
    json: JsonFlag = False,
    quiet: QuietFlag = False,
    debug: DebugFlag = False,
) -> None:
    """Write one HTML page about an artifact: sizes, errors, kernels, decisions and, if measured, speed."""
    del debug
    from qcc import api
    from qcc.backends.artifact import read_manifest

    screen = Screen(as_json=json, quiet=quiet)
    layers = len(read_manifest(artifact).layers)
    path = output or Path(artifact.resolve().name.removesuffix(".qcc") + ".html")
    page = api.report(artifact, bench=bench, model=model, threads=threads, rounds=rounds, output=path, force=force)
    written = len(page.encode())
    screen.console.print(f"  {path}: {size(written)}, {layers} layers", markup=False)
    screen.result({"report": str(path), "bytes": written, "layers": layers})
