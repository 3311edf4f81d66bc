"""`qcc simulate MODEL --schemes A,B,...`: size and error of each scheme, as tables and a plot."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from ._frame import DebugFlag, JsonFlag, QuietFlag, Screen, size
from ._options import (
    Algorithm,
    Calibration,
    CalibrationLimit,
    Dynamic,
    GroupSize,
    Ignore,
    ImageMean,
    ImageOrder,
    ImageSize,
    ImageStd,
    Include,
    InputShape,
    Observer,
    Seed,
    dynamic_axes,
    image_options,
    input_shapes,
)

if TYPE_CHECKING:
    from qcc.api import Simulation

_TITLE = "layer alone, dB"
_NAME = 24
"""Letters of a line of a layer's or a scheme's name."""


def command(
    model: Annotated[Path, typer.Argument(help="An .onnx, .pt2 or .gguf file, or a Hugging Face folder.")],
    schemes: Annotated[
        list[str],
        typer.Option(help='Names of schemes and texts of formats: W4A16,NVFP4A16,"nf4, f32 per 64". Repeatable.'),
    ],
    output: Annotated[Path, typer.Option("-o", "--output", help="The plot to write.")] = Path("simulation.svg"),
    top: Annotated[int, typer.Option(help="How many of the most sensitive layers are shown.")] = 10,
    group_size: GroupSize = 0,
    algorithm: Algorithm = "rtn",
    observer: Observer = "mse",
    calibration: Calibration = None,
    calibration_limit: CalibrationLimit = 128,
    image_size: ImageSize = None,
    image_mean: ImageMean = "0",
    image_std: ImageStd = "1",
    image_order: ImageOrder = "rgb",
    ignore: Ignore = None,
    include: Include = None,
    input_shape: InputShape = None,
    dynamic: Dynamic = None,
    seed: Seed = 0,
    force: Annotated[bool, typer.Option("--force", help="Replace an existing file.")] = False,
    json: JsonFlag = False,
    quiet: QuietFlag = False,
    debug: DebugFlag = False,
) -> None:
    """Try number formats on a network: size and error of each, and what each does to every layer."""
    del debug
    from qcc import api
    from qcc.ir.errors import BadInput

    if top < 0:
        raise BadInput(f"--top {top} is negative", hint="0 shows no layers")
    screen = Screen(as_json=json, quiet=quiet)
    found = api.simulate(
        model,
        schemes=schemes,
        group_size=group_size,
        algorithm=algorithm,
        observer=observer,
        calibration=calibration,
        calibration_limit=calibration_limit,
        image=image_options(image_size, image_mean, image_std, image_order),
        ignore=tuple(ignore or ()),
        include=tuple(include or ()),
        input_shapes=input_shapes(input_shape),
        dynamic=dynamic_axes(dynamic),
        seed=seed,
        output=output,
        force=force,
        progress=screen,
    )
    _show(screen, found, top)
    screen.result(_json(found))


def _show(screen: Screen, found: Simulation, top: int) -> None:
    from rich.markup import escape

    console = screen.console
    console.print()
    console.print(_schemes(found))
    console.print(f"[dim]errors on[/dim] {escape(found.samples)}", soft_wrap=True)
    for row in found.schemes:
        elements = Counter(layer.format.split(",")[0] for layer in row.layers)
        if len(elements) > 1:  # convolutions stay at 8 bits unless they are included
            mixed = ", ".join(f"{count} in {element}" for element, count in elements.items())
            console.print(f"{row.scheme}: {mixed}", markup=False, soft_wrap=True)
    nodes = found.most_sensitive(top)
    if nodes:
        console.print(f"\n[dim]the most sensitive of {len(found.nodes)} layers, the worst first[/dim]")
        for table in _layers(found, nodes, console.width):
            console.print(table)
    everywhere, some = _skipped(found)
    for node, reason, names in some:
        console.print(f"left float in {', '.join(names)}: {node}: {reason}", markup=False, soft_wrap=True)
    if everywhere:
        console.print(f"[dim]left float in every scheme:[/dim] {escape(', '.join(everywhere))}", soft_wrap=True)
    console.print(f"\n{escape(str(found.file))}", soft_wrap=True)


def _schemes(found: Simulation) -> Any:
    """A row a scheme. Any: rich is loaded when it is used."""
    from rich.markup import escape
    from rich.table import Table

    table = Table(box=None, header_style="dim", padding=(0, 1))
    table.add_column("scheme", overflow="fold")
    for title in ("bits", "size", "of float", "dB"):
        table.add_column(title, justify="right", no_wrap=True)
    table.add_column("worst layer alone", overflow="fold")
    table.add_column("dB", justify="right", no_wrap=True)
    for row in found.schemes:
        worst = row.worst
        table.add_row(
            escape(row.scheme),
            f"{row.bits_per_weight:.2f}",
            size(row.bytes),
            f"{row.bytes / row.float_bytes:.2f}x" if row.float_bytes else "?",
            f"{row.sqnr_db:.1f}",
            escape(worst.node if worst else "no layer was quantized"),
            f"{worst.output_sqnr_db:.1f}" if worst else "",
        )
    return table


def _layers(found: Simulation, nodes: list[str], room: int) -> Iterator[Any]:
    """Decibels of layers in each scheme, as many columns a table as there is room for. Any: rich is loaded late."""
    from rich.markup import escape
    from rich.table import Table

    from qcc.api.simulation import shortened

    short = dict(zip(found.nodes, shortened(found.nodes), strict=True))
    first = min(_NAME, max(len(_TITLE), *(len(short[node]) for node in nodes)))
    wide = [min(_NAME, max(6, len(row.scheme))) for row in found.schemes]
    begin = 0
    while begin < len(wide):
        end = begin + 1
        while end < len(wide) and first + 2 + sum(w + 2 for w in wide[begin : end + 1]) <= room:
            end += 1
        table = Table(box=None, header_style="dim", padding=(0, 1))
        table.add_column(_TITLE, overflow="fold", width=first)
        for row, w in zip(found.schemes[begin:end], wide[begin:end], strict=True):
            table.add_column(escape(row.scheme), justify="right", overflow="fold", width=w)
        for node in nodes:
            numbers = ["float" if db is None else f"{db:.1f}" for db in found.output_sqnr(node)[begin:end]]
            table.add_row(escape(short[node]), *numbers)
        yield table
        begin = end


def _skipped(found: Simulation) -> tuple[list[str], list[tuple[str, str, list[str]]]]:
    """The nodes left float in every scheme; and those in some schemes, with the reason."""
    why: dict[tuple[str, str], list[str]] = {}
    for row in found.schemes:
        for decision in row.skipped:
            why.setdefault((decision.node, decision.reason), []).append(row.scheme)
    everywhere = [node for node in dict.fromkeys(node for node, _ in why) if node not in found.nodes]
    return everywhere, [(node, reason, names) for (node, reason), names in why.items() if node not in everywhere]


def _json(found: Simulation) -> dict[str, Any]:
    """Any: plain JSON values."""
    return {
        "schemes": [
            {
                "scheme": row.scheme,
                "bits_per_weight": round(row.bits_per_weight, 3),
                "bytes": row.bytes,
                "float_bytes": row.float_bytes,
                "sqnr_db": round(row.sqnr_db, 3),
                "max_abs_error": row.max_abs_error,
                "layers": [
                    {
                        "node": layer.node,
                        "format": layer.format,
                        "weight_sqnr_db": round(layer.weight_sqnr_db, 3),
                        "output_sqnr_db": None if layer.output_sqnr_db is None else round(layer.output_sqnr_db, 3),
                        "bytes": layer.bytes,
                    }
                    for layer in row.layers
                ],
                "skipped": [{"node": d.node, "reason": d.reason} for d in row.skipped],
            }
            for row in found.schemes
        ],
        "samples": found.samples,
        "file": str(found.file),
    }
