"""`qcc export SOURCE --format F -o PATH`: the same codes in another runtime's container."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from ._frame import DebugFlag, JsonFlag, QuietFlag, Screen, size


def command(
    source: Annotated[
        Path, typer.Argument(metavar="SOURCE", help="A Hugging Face folder, a .gguf, an .onnx, or an artifact.")
    ],
    format: Annotated[
        str, typer.Option("--format", "-f", help="gguf, compressed-tensors, gptq, awq; onnx or qdq for graphs.")
    ],
    output: Annotated[Path, typer.Option("--output", "-o", help="Where to write the file or folder.")],
    scheme: Annotated[
        str, typer.Option(help="Quantize float weights of linear layers on the way, such as W4A16.")
    ] = "",
    group_size: Annotated[int, typer.Option(help="Weights that share a scale; 0: the scheme's.")] = 0,
    algorithm: Annotated[str, typer.Option(help="How codes are chosen: rtn needs no samples.")] = "rtn",
    ignore: Annotated[
        list[str] | None, typer.Option(help="Layers that are floats in the result: a name, or re:...")
    ] = None,
    force: Annotated[bool, typer.Option("--force", help="Replace what stands there.")] = False,
    json: JsonFlag = False,
    quiet: QuietFlag = False,
    debug: DebugFlag = False,
) -> None:
    """Write a model in the container of another runtime, code by code; what would change a value is refused."""
    del debug
    from dataclasses import asdict

    from qcc import api

    screen = Screen(as_json=json, quiet=quiet)
    report = api.export(
        source,
        output,
        format=format,
        scheme=scheme,
        group_size=group_size,
        algorithm=algorithm,
        ignore=ignore or [],
        force=force,
        progress=screen,
    )
    console = screen.console
    console.print(f"\n  {report.output}: {report.format}, {size(report.bytes)}, {report.seconds:.1f} s", markup=False)
    for written, count in sorted(report.formats.items(), key=lambda entry: -entry[1]):
        console.print(f"  {count:5d}  {written}", markup=False)
    decoded = [record for record in report.weights if "decoded exactly" in record.note]
    for record in decoded[:5]:
        console.print(f"         {record.name}: {record.note}, as {record.written}", markup=False)
    if len(decoded) > 5:
        console.print(f"         and {len(decoded) - 5} more")
    screen.result({**asdict(report), "formats": report.formats})
