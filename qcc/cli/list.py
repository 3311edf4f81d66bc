"""`qcc list WHAT`: what there is to choose from."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Annotated, Any

import typer

from ._frame import DebugFlag, JsonFlag, QuietFlag, Screen

if TYPE_CHECKING:
    from qcc.backends.native.host_limits import HostLimits

_WHAT = ("targets", "schemes", "formats", "algorithms", "observers", "passes", "kernels", "layouts")


def command(
    what: Annotated[
        str, typer.Argument(help="targets, schemes, formats, algorithms, observers, passes, kernels or layouts.")
    ],
    probe: Annotated[
        bool, typer.Option("--probe", help="With targets: measure this host, and the forms of its runtime.")
    ] = False,
    json: JsonFlag = False,
    quiet: QuietFlag = False,
    debug: DebugFlag = False,
) -> None:
    """List targets, schemes, formats, algorithms, observers, passes, kernels or layouts."""
    del debug
    from qcc.ir.errors import BadInput

    if what not in _WHAT:
        raise BadInput(f"there is no list of {what!r}", hint=f"one of: {', '.join(_WHAT)}")
    screen = Screen(as_json=json, quiet=quiet)
    rows = _rows(what)
    _print(screen, (what, ""), rows)
    result: dict[str, Any] = {what: [{"name": name, "summary": summary} for name, summary in rows]}
    if what == "formats":
        written = _written()
        screen.console.print()
        _print(screen, ("scheme", "bits", "its weights, as a format is written"), written)
        result["written"] = [{"name": n, "bits_per_weight": float(bits), "format": text} for n, bits, text in written]
    if probe:
        result.update(_measure(screen))
    screen.result(result)


def _measure(screen: Screen) -> dict[str, Any]:
    """Show what this host does at most; kept in the cache, so that only the first time takes seconds."""
    from dataclasses import asdict

    from qcc.backends.native.probe import measured as measured_host
    from qcc.backends.onnxruntime.speed import measured
    from qcc.ir import target

    host = target.load("cpu")
    forms = measured(host.machine).forms
    screen.console.print("\n[dim]ONNX Runtime, one row of activations, picoseconds a weight on one thread[/dim]")
    for name, cost in sorted(forms.items(), key=lambda item: item[1]):
        screen.console.print(f"  {name:34} {cost * 1e9:9.1f}")
    limits = measured_host(host, screen.stage)
    _print_limits(screen, limits)
    return {
        "onnxruntime_ps_per_weight": {name: round(cost * 1e9, 2) for name, cost in forms.items()},
        "host": asdict(limits),
    }


def _print_limits(screen: Screen, limits: HostLimits) -> None:
    every = f"{limits.cores} thread{'s' if limits.cores > 1 else ''}"
    buffer = f"{limits.buffer_bytes >> 20} MiB"
    screen.console.print(f"\n{limits.machine}, {limits.cores} cores, {limits.compiler}\n", style="dim", markup=False)
    reads = [(str(r.threads), f"{r.gb_s:.1f}", str(r.form)) for r in limits.reads]
    _print(screen, ("threads", "GB/s", f"read from {buffer} of memory"), reads)
    screen.console.print()
    caches = [
        (c.name, f"{c.bytes >> 10} KiB", f"{c.line_bytes} B", str(c.shared_by), f"{c.gb_s:.0f}", f"{c.gb_s_all:.0f}")
        for c in limits.caches
    ]
    _print(screen, ("cache", "size", "line", "shared by", "GB/s, 1 thread", f"GB/s, {every}"), caches)
    screen.console.print()
    dots = [(d.name, d.unit, f"{d.rate:.0f}", f"{d.rate_all:.0f}", d.summary) for d in limits.dots]
    _print(screen, ("dot product", "unit", "1 thread", every, ""), dots)
    if not limits.quiet:
        screen.console.print("\nother processes took the cores meanwhile: this is not kept, measure again without them")


def _print(screen: Screen, header: Sequence[str], rows: Sequence[Sequence[str]]) -> None:
    """A table; brackets are text here, as those of `[nf4|fp4] per 128`."""
    from rich.markup import escape
    from rich.table import Table

    table = Table(box=None, header_style="dim", padding=(0, 2))
    for title in header:
        table.add_column(title)
    for row in rows:
        table.add_row(*map(escape, row))
    screen.console.print(table)


def _written() -> list[tuple[str, str, str]]:
    """Each scheme with the bits of a weight of 4096 x 4096 and the text of its format."""
    from qcc.passes import schemes

    loaded = [(name, schemes.load(name)) for name in schemes.names()]
    formats = [(name, scheme.linear_format()) for name, scheme in loaded if scheme.weight]
    return [(name, f"{fmt.bits_per_weight((4096, 4096)):.3f}", str(fmt)) for name, fmt in formats]


def _rows(what: str) -> list[tuple[str, str]]:
    import importlib

    match what:
        case "targets":
            from qcc.ir import target

            known = [target.load(name) for name in target.names()]
            return [(t.name, ": ".join(filter(None, (t.summary, t.details)))) for t in known]
        case "schemes":
            from qcc.passes import schemes

            return [(name, schemes.load(name).summary) for name in schemes.names()]
        case "formats":
            from qcc.ir import formats

            loaded = [(name, importlib.import_module(f"qcc.ir.formats.{name}")) for name in formats.names()]
            return [(name, f"{_summary(module)} For example {', '.join(module.EXAMPLES)}.") for name, module in loaded]
        case "algorithms":
            from qcc.passes import algorithms

            return [
                (name, _summary(importlib.import_module(f"qcc.passes.algorithms.{name}")))
                for name in algorithms.names()
            ]
        case "observers":
            from qcc.passes import observers

            return [
                (name, _summary(importlib.import_module(f"qcc.passes.observers.{name}"))) for name in observers.names()
            ]
        case "passes":
            from qcc import passes

            return [(name, _summary(importlib.import_module(f"qcc.passes.{name}"))) for name in passes.names()]
        case "layouts":
            from qcc.ir import layouts

            return [(name, layouts.load(name).summary) for name in layouts.names()]
        case _:
            from qcc.backends.onnxruntime import kernels

            return [
                (name, _summary(importlib.import_module(f"qcc.backends.onnxruntime.kernels.{name}")))
                for name in kernels.names()
            ]


def _summary(module: object) -> str:
    return (getattr(module, "__doc__", "") or "").strip().splitlines()[0]
