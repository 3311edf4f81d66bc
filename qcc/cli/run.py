"""`qcc run ARTIFACT`: arrays in, arrays out; or, for a language model, a prompt in and text out as it comes."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from ._frame import DebugFlag, JsonFlag, QuietFlag, Screen

if TYPE_CHECKING:
    from qcc.backends.runtime import Artifact


def command(
    artifact: Annotated[Path, typer.Argument(help="An artifact folder.")],
    input: Annotated[Path | None, typer.Option("--input", help="An .npz file with an array for each input.")] = None,
    output: Annotated[
        Path | None, typer.Option("--output", help="The .npz file to write, with an array for each output.")
    ] = None,
    prompt: Annotated[str | None, typer.Option(help="Text for a language model to go on from.")] = None,
    max_new_tokens: Annotated[int, typer.Option(help="At most so many new tokens.")] = 128,
    temperature: Annotated[float, typer.Option(help="0: always the likeliest token.")] = 0.0,
    top_k: Annotated[int | None, typer.Option(help="Draw from the k likeliest; 0: all. Default: the model's.")] = None,
    top_p: Annotated[
        float | None, typer.Option(help="Draw from the fewest that reach this probability. Default: the model's.")
    ] = None,
    seed: Annotated[int, typer.Option(help="Seed of the draws.")] = 0,
    threads: Annotated[int, typer.Option(help="Threads; 0: all cores.")] = 0,
    json: JsonFlag = False,
    quiet: QuietFlag = False,
    debug: DebugFlag = False,
) -> None:
    """Run an artifact on the arrays of a file, or let a language model go on from a prompt."""
    del debug
    from qcc.backends.runtime import load  # and no compiler, which takes most of a second to import
    from qcc.ir.errors import BadInput

    screen = Screen(as_json=json, quiet=quiet)
    if prompt is not None and (input is not None or output is not None):
        raise BadInput("both a prompt and arrays were given", hint="give --prompt, or --input and --output")
    if prompt is None and (input is None or output is None):
        raise BadInput(
            "nothing to run on", hint="give --input X.npz --output Y.npz, or --prompt TEXT for a language model"
        )
    loaded = load(artifact, threads=threads)
    _say_where(loaded)
    if prompt is not None:
        sampling = loaded.sampling(temperature, top_k, top_p)
        _generate(screen, loaded, prompt, max_new_tokens, sampling, seed)
    elif input is not None and output is not None:
        _run(screen, loaded, input, output)


def _say_where(loaded: Artifact) -> None:
    """One line on stderr where the artifact is for a device that is not here: it is not as fast as it was meant."""
    import sys

    if loaded.runner.device != loaded.runner.wanted:
        print(f"qcc: compiled for {loaded.runner.wanted}, which is not here: it runs on the CPU", file=sys.stderr)


def _run(screen: Screen, loaded: Artifact, input: Path, output: Path) -> None:
    import os
    import time

    from qcc.backends.arrays import read_arrays, write_arrays
    from qcc.backends.runtime import describe
    from qcc.ir.errors import BadInput

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


def _generate(screen: Screen, loaded: Artifact, prompt: str, count: int, sampling: object, seed: int) -> None:
    """Text goes to stdout as it comes; with --json it is a field of the object instead."""
    import sys
    import time

    from qcc.backends.sampling import Sampling

    assert isinstance(sampling, Sampling)
    begin = time.perf_counter()
    first, tokens, text = begin, 0, ""
    for piece in loaded.pieces(prompt, count, sampling, seed):
        tokens += piece.token >= 0
        first = time.perf_counter() if tokens == 1 else first
        text += piece.text
        if not screen.as_json:
            sys.stdout.write(piece.text)
            sys.stdout.flush()
    end = time.perf_counter()
    if not screen.as_json:
        print(flush=True)
    rate = (tokens - 1) / (end - first) if tokens > 1 else 0.0
    screen.console.print(
        f"[dim]{tokens} tokens; the first after {first - begin:.2f} s, then {rate:.1f} tokens a second[/dim]"
    )
    screen.result(
        {
            "text": text,
            "tokens": tokens,
            "first_token_s": round(first - begin, 4),
            "decode_tokens_per_s": round(rate, 2),
        }
    )
