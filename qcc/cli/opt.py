"""`qcc opt FILE.mlir -p pass,pass{option=1}`: the pass driver for tests and the curious."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from ._frame import DebugFlag, JsonFlag, QuietFlag, Screen


def command(
    file: Annotated[Path, typer.Argument(help="IR text, or an .onnx file. `-` reads text from stdin.")],
    passes: Annotated[
        str, typer.Option("-p", "--passes", help='Passes in order: canonicalize,quantize_linear{scheme="W8A8"}.')
    ] = "",
    weights: Annotated[
        Path | None, typer.Option(help="The .safetensors file with the weights that the IR names.")
    ] = None,
    explain: Annotated[bool, typer.Option("--explain", help="Print why patterns declined, to stderr.")] = False,
    json: JsonFlag = False,
    quiet: QuietFlag = False,
    debug: DebugFlag = False,
) -> None:
    """Run passes over IR text and print the result."""
    del debug
    import sys
    from dataclasses import asdict

    from xdsl.utils.arg_spec import parse_pipeline
    from xdsl.utils.exceptions import ArgSpecParseError

    from qcc import passes as registry
    from qcc.frontend import onnx_file
    from qcc.ir.errors import BadInput
    from qcc.ir.program import Program
    from qcc.ir.rewrite import ProgramContext
    from qcc.ir.text import parse, show
    from qcc.ir.weights import WeightStore
    from qcc.passes import pipeline

    if file.suffix == ".onnx":
        program = onnx_file.read(file)
    else:
        try:
            text = sys.stdin.read() if str(file) == "-" else file.read_text()
        except (OSError, UnicodeDecodeError) as error:
            raise BadInput(f"{file}: cannot be read: {error}", hint="give a file of IR text") from error
        program = Program(parse(text, str(file)), WeightStore.open(weights) if weights else WeightStore())
    try:
        specs = tuple(parse_pipeline(passes)) if passes else ()
        chosen = [registry.load(spec.name).from_spec(spec) for spec in specs]
    except (ArgSpecParseError, ValueError, TypeError) as error:
        raise BadInput(f"-p {passes!r}: {error}", hint="write it like -p canonicalize,fold_affine") from error
    pipeline.run(list(chosen), program, ProgramContext(program=program))
    print(show(program.module), end="")
    screen = Screen(as_json=json, quiet=quiet)
    if explain:
        for decision in program.decisions:
            screen.console.print(f"{decision.action} {decision.node}: {decision.reason}", markup=False)
    count = sum(1 for _ in program.module.walk())
    screen.result({"operations": count, "decisions": [asdict(decision) for decision in program.decisions]})
