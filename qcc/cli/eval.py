"""`qcc eval ARTIFACT|MODEL --text FILE`: how well a language model predicts a text."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from ._frame import DebugFlag, JsonFlag, QuietFlag, Screen


def command(
    model: Annotated[Path, typer.Argument(metavar="ARTIFACT|MODEL", help="An artifact, a model folder or a .gguf.")],
    text: Annotated[Path, typer.Option(help="A text file in UTF-8.")],
    against: Annotated[
        Path | None, typer.Option(help="Another artifact or model, such as the unquantized one: adds KL and agreement.")
    ] = None,
    tokens: Annotated[int, typer.Option(help="At most so many tokens of the text; 0: all.")] = 0,
    window: Annotated[int, typer.Option(help="Tokens of a window.")] = 512,
    stride: Annotated[int, typer.Option(help="Tokens between the beginnings of windows; 0: no overlap.")] = 0,
    threads: Annotated[int, typer.Option(help="Threads; 0: all cores.")] = 0,
    json: JsonFlag = False,
    quiet: QuietFlag = False,
    debug: DebugFlag = False,
) -> None:
    """Perplexity of a language model on a text, and its distance from another one."""
    del debug
    from dataclasses import asdict

    from qcc import api

    screen = Screen(as_json=json, quiet=quiet)
    report = api.evaluate(
        model, text, against=against, tokens=tokens, window=window, stride=stride, threads=threads, progress=screen
    )
    console = screen.console
    console.print(f"\n  perplexity  {report.perplexity:.3f}")
    if report.kl is not None and report.top1 is not None:
        console.print(f"  against     {report.against_perplexity:.3f}", markup=False)
        console.print(f"  KL          {report.kl:.5f} nats a token")
        console.print(f"  same token  {100 * report.top1:.2f} %")
    console.print(
        f"  [dim]{report.tokens} tokens scored in {report.windows} windows of {report.window}, "
        f"every {report.stride}; {report.seconds:.1f} s[/dim]"
    )
    screen.result(asdict(report))
