"""`qcc bench ARTIFACT`: latency, beside a baseline where one is asked for."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from ._frame import DebugFlag, JsonFlag, QuietFlag, Screen

if TYPE_CHECKING:
    from rich.table import Table

    from qcc.api import BenchReport


def command(
    artifact: Annotated[Path, typer.Argument(help="An artifact folder.")],
    against: Annotated[str, typer.Option(help="Baselines, separated by commas: onnxruntime, or llama.cpp.")] = "",
    model: Annotated[Path | None, typer.Option(help="The .onnx file, or .gguf for llama.cpp, of a baseline.")] = None,
    threads: Annotated[int, typer.Option(help="Threads of every side; 0: all cores.")] = 1,
    rounds: Annotated[int, typer.Option(help="Rounds; every side is timed once in each.")] = 30,
    prompt_tokens: Annotated[int, typer.Option(help="Language models: tokens of the prompt.")] = 128,
    new_tokens: Annotated[int, typer.Option(help="Language models: tokens to decode.")] = 32,
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
    report = api.bench(
        artifact,
        model=model,
        against=baselines,
        threads=threads,
        rounds=rounds,
        prompt_tokens=prompt_tokens,
        new_tokens=new_tokens,
    )
    table = Table(box=None, header_style="dim", padding=(0, 2))
    for column in ("", "median ms", "p10", "p90", "ratio"):
        table.add_column(column, justify="left" if not column else "right")
    for name, latency in {"artifact": report.latency_ms, **report.baselines}.items():
        ratio = latency.median / report.latency_ms.median
        table.add_row(name, f"{latency.median:.3f}", f"{latency.p10:.3f}", f"{latency.p90:.3f}", f"{ratio:.2f}x")
    screen.console.print(_rates(report) if report.rates else table)
    screen.console.print(f"[dim]{report.rounds} rounds, {report.threads or 'all'} threads, {report.machine}[/dim]")
    rates = {name: asdict(side) for name, side in report.rates.items()}
    screen.result(
        {
            "latency_ms": asdict(report.latency_ms),
            **rates.pop("artifact", {}),
            "baselines": {
                name: {**asdict(latency), **rates.get(name, {})} for name, latency in report.baselines.items()
            },
            "rounds": report.rounds,
            "threads": report.threads,
            "machine": report.machine,
        }
    )


def _rates(report: BenchReport) -> Table:
    from rich.table import Table

    table = Table(box=None, header_style="dim", padding=(0, 2))
    for column in ("", "prefill tokens/s", "p10", "p90", "decode tokens/s", "p10", "p90", "decode ratio"):
        table.add_column(column, justify="left" if not column else "right")
    ours = report.rates["artifact"].decode_tokens_per_s.median
    for name, side in report.rates.items():
        cells = [
            f"{v:.1f}" for r in (side.prefill_tokens_per_s, side.decode_tokens_per_s) for v in (r.median, r.p10, r.p90)
        ]
        table.add_row(name, *cells, f"{ours / side.decode_tokens_per_s.median:.2f}x")
    return table
