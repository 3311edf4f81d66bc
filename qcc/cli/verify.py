"""`qcc verify ARTIFACT`: is it whole, is it right, and which layer is worst."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from ._frame import DebugFlag, JsonFlag, QuietFlag, Screen


def command(
    artifact: Annotated[Path, typer.Argument(help="An artifact folder.")],
    against: Annotated[Path | None, typer.Option(help="The float model, to compare on new random inputs.")] = None,
    samples: Annotated[int, typer.Option(help="How many random inputs, with --against.")] = 4,
    min_sqnr: Annotated[float | None, typer.Option(help="Fail below this signal to noise ratio, in dB.")] = None,
    max_error: Annotated[float | None, typer.Option(help="Fail if an output is off by more.")] = None,
    json: JsonFlag = False,
    quiet: QuietFlag = False,
    debug: DebugFlag = False,
) -> int:
    """Check the files of an artifact and recompute its error."""
    del debug
    from dataclasses import asdict

    from rich.markup import escape
    from rich.table import Table

    from qcc import api

    screen = Screen(as_json=json, quiet=quiet)
    report = api.verify(artifact, against, samples=samples, min_sqnr=min_sqnr, max_error=max_error)
    console = screen.console
    for failure in report.failures:
        console.print(f"[bold red]failed[/bold red] {escape(failure)}")
    if report.files_ok:
        what = "against the float model on random inputs" if against else "on the stored samples"
        mark = "[green]ok[/green]  " if report.ok else ""
        console.print(f"{mark}{report.sqnr_db:.2f} dB, at most {report.max_abs_error:.4g} off, {what}")
    if report.not_run:
        console.print(f"[dim]ran on {', '.join(report.ran_on)}, not on {', '.join(report.not_run)}[/dim]")
    if report.worst:
        table = Table(box=None, header_style="dim", padding=(0, 2))
        table.add_column("worst layers")
        table.add_column("dB", justify="right")
        for layer in report.worst:
            table.add_row(escape(layer.node), f"{layer.sqnr_db:.1f}")
        console.print(table)
    screen.result(
        {
            "ok": report.ok,
            "sqnr_db": round(report.sqnr_db, 3),
            "max_abs_error": report.max_abs_error,
            "worst": [asdict(layer) for layer in report.worst],
            "files_ok": report.files_ok,
            "failures": list(report.failures),
            "ran_on": list(report.ran_on),
            "not_run": list(report.not_run),
        }
    )
    return 0 if report.ok else 1
