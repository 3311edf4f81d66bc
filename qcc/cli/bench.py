"""`qcc bench ARTIFACT`: latency, beside a baseline where one is asked for."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from ._frame import DebugFlag, JsonFlag, QuietFlag, Screen


def command(
    artifact: Annotated[Path, typer.Argument(help="An artifact folder.")],
    against: Annotated[str, typer.Option(help="Baselines, separated by commas: onnxruntime.")] = "",
    model: Annotated[Path | None, typer.Option(help="The float .onnx file that a baseline runs.")] = None,
    threads: Annotated[int, typer.Option(help="Threads of every side; 0: all cores.")] = 1,
    rounds: Annotated[int, typer.Option(help="Rounds; every side is timed once in each.")] = 30,
    json: JsonFlag = False,
    quiet: QuietFlag = False,
    debug: DebugFlag = False,
) -> None:
    """Time an artifact on its first stored sample."""
    del debug
    from dataclasses import asdict

    from rich.table import Table

    from qcc import api

    screen = Screen(as_json=json, quiet=quiet)
    baselines = tuple(name.strip() for name in against.split(",") if name.strip())
    report = api.bench(artifact, model=model, against=baselines, threads=threads, rounds=rounds)
    table = Table(box=None, header_style="dim", padding=(0, 2))
    for column in ("", "median ms", "p10", "p90", "ratio"):
        table.add_column(column, justify="left" if not column else "right")
    for name, latency in {"artifact": report.latency_ms, **report.baselines}.items():
        ratio = latency.median / report.latency_ms.median
        table.add_row(name, f"{latency.median:.3f}", f"{latency.p10:.3f}", f"{latency.p90:.3f}", f"{ratio:.2f}x")
    screen.console.print(table)
    screen.console.print(f"[dim]{report.rounds} rounds, {report.threads or 'all'} threads, {report.machine}[/dim]")
    screen.result(
        {
            "latency_ms": asdict(report.latency_ms),
            "baselines": {name: asdict(latency) for name, latency in report.baselines.items()},
            "rounds": report.rounds,
            "threads": report.threads,
            "machine": report.machine,
        }
    )
