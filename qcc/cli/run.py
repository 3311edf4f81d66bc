"""`qcc run ARTIFACT`: arrays in, arrays out."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from ._frame import DebugFlag, JsonFlag, QuietFlag, Screen


def command(
    artifact: Annotated[Path, typer.Argument(help="An artifact folder.")],
    input: Annotated[Path, typer.Option("--input", help="An .npz file with an array for each input.")],
    output: Annotated[Path, typer.Option("--output", help="The .npz file to write, with an array for each output.")],
    threads: Annotated[int, typer.Option(help="Threads; 0: all cores.")] = 0,
    json: JsonFlag = False,
    quiet: QuietFlag = False,
    debug: DebugFlag = False,
) -> None:
    """Run an artifact on the arrays of a file."""
    del debug
    import os
    import time

    from qcc import api
    from qcc.backends.arrays import read_arrays, write_arrays
    from qcc.backends.runtime import describe
    from qcc.ir.errors import BadInput

    screen = Screen(as_json=json, quiet=quiet)
    loaded = api.load(artifact, threads=threads)
    wanted = "; ".join(map(describe, loaded.inputs))
    feeds = read_arrays(input, hint=f"save arrays with numpy.savez; the artifact takes {wanted}")
    begin = time.perf_counter()
    outputs = loaded(feeds)
    seconds = time.perf_counter() - begin
    temporary = output.with_name(f".{output.name}.tmp.npz")
    try:
        write_arrays(temporary, outputs)
        os.replace(temporary, output)
    except OSError as error:
        raise BadInput(
            f"{output}: cannot be written: {error.strerror or error}", hint="choose another place with --output"
        ) from error
    finally:
        temporary.unlink(missing_ok=True)
    for name, array in outputs.items():
        screen.console.print(f"  {name}: {array.dtype.name} {list(array.shape)}", markup=False)
    shapes = {name: {"dtype": a.dtype.name, "shape": list(a.shape)} for name, a in outputs.items()}
    screen.result({"output": str(output), "outputs": shapes, "seconds": round(seconds, 6)})
