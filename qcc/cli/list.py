"""`qcc list WHAT`: what there is to choose from."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Annotated, Any

import typer

from ._frame import DebugFlag, JsonFlag, QuietFlag, Screen

_WHAT = ("targets", "schemes", "formats", "algorithms", "observers", "passes", "kernels", "layouts")


def command(
    what: Annotated[
        str, typer.Argument(help="targets, schemes, formats, algorithms, observers, passes, kernels or layouts.")
    ],
    probe: Annotated[
        bool, typer.Option("--probe", help="With targets: measure the forms of the installed runtime on this host.")
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
        from qcc.backends.onnxruntime.speed import measured
        from qcc.ir import target

        forms = measured(target.load("cpu").machine).forms
        screen.console.print("\n[dim]ONNX Runtime, one row of activations, picoseconds a weight on one thread[/dim]")
        for name, cost in sorted(forms.items(), key=lambda item: item[1]):
            screen.console.print(f"  {name:34} {cost * 1e9:9.1f}")
        result["onnxruntime_ps_per_weight"] = {name: round(cost * 1e9, 2) for name, cost in forms.items()}
    screen.result(result)


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
