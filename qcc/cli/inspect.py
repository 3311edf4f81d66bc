"""`qcc inspect MODEL|ARTIFACT`: a table a person reads; `qcc inspect --layout NAME`: a picture."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from ._frame import DebugFlag, JsonFlag, QuietFlag, Screen, size
from ._layout import draw

if TYPE_CHECKING:
    from qcc.backends.artifact import Manifest
    from qcc.ir.program import Program


def command(
    what: Annotated[
        Path | None, typer.Argument(metavar="MODEL|ARTIFACT", help="What `compile` takes, or an artifact folder.")
    ] = None,
    ir: Annotated[bool, typer.Option("--ir", help="Print the IR to stdout.")] = False,
    node: Annotated[str | None, typer.Option(help="Only this node: everything that is known about it.")] = None,
    layout: Annotated[
        str | None,
        typer.Option(
            metavar="NAME|TEXT",
            help="Instead of a model: draw a layout, one of `qcc list layouts` as in marlin or marlin{element=u8}, or "
            'its text as in "n(n0) k(k1 k0:32) -> n0 k1 k0 xor 8".',
        ),
    ] = None,
    shape: Annotated[str | None, typer.Option(help="With --layout: the tensor to draw, as in 16x64.")] = None,
    bits: Annotated[int | None, typer.Option(help="With --layout TEXT: bits of a code; default 4.")] = None,
    output: Annotated[
        Path | None, typer.Option("-o", "--output", help="With --layout: the picture to write; default ./<name>.svg.")
    ] = None,
    force: Annotated[bool, typer.Option("--force", help="With --layout: replace an existing file.")] = False,
    json: JsonFlag = False,
    quiet: QuietFlag = False,
    debug: DebugFlag = False,
) -> None:
    """Show the layers of a model or an artifact: formats, bytes, kernels and decisions; or draw a layout."""
    del debug
    from qcc.ir.errors import BadInput

    screen = Screen(as_json=json, quiet=quiet)
    if layout is not None:
        if what is not None or ir or node is not None:
            raise BadInput("--layout draws a layout and takes no model", hint="leave out MODEL, --ir and --node")
        draw(screen, layout, shape, bits, output, force)
        return
    if shape or bits is not None or output or force:
        raise BadInput("--shape, --bits, -o and --force belong to --layout", hint="name a layout, or leave them out")
    if what is None:
        raise BadInput("there is nothing to inspect", hint="name a model, an artifact folder, or a layout by --layout")
    from qcc.backends.artifact import MANIFEST

    if what.is_dir() and ((what / MANIFEST).exists() or not (what / "config.json").exists()):
        _artifact(screen, what, ir, node)
    else:
        _model(screen, what, ir, node)


def _artifact(screen: Screen, folder: Path, ir: bool, node: str | None) -> None:
    from rich.markup import escape
    from rich.table import Table

    from qcc.backends.artifact import MODULE, read_manifest
    from qcc.ir.errors import BadInput

    manifest = read_manifest(folder)
    if ir:
        try:
            print((folder / MODULE).read_text(), end="")
        except (OSError, UnicodeDecodeError) as error:
            raise BadInput(f"{folder / MODULE}: cannot be read: {error}", hint="compile the model again") from error
    elif node is not None:
        _node(screen, manifest, node)
        return
    else:
        console = screen.console
        console.print(
            f"[bold]{escape(manifest.name)}[/bold]  {manifest.scheme} for {manifest.target}, by {manifest.backend}; "
            f"{size(manifest.bytes)}"
        )
        console.print(f"  in   {', '.join(_port(p.name, p.dtype, p.shape) for p in manifest.inputs)}", markup=False)
        console.print(f"  out  {', '.join(_port(p.name, p.dtype, p.shape) for p in manifest.outputs)}", markup=False)
        table = Table(box=None, header_style="dim", padding=(0, 2, 0, 0))
        for column in ("node", "weight", "format", "activations", "kernel", "bytes", "of float"):
            justify = "right" if column in ("bytes", "of float") else "left"
            table.add_column(column, justify=justify, overflow="fold")
        for layer in manifest.layers:
            shape = "x".join(map(str, layer.shape))
            table.add_row(
                escape(layer.node),
                shape,
                layer.format,
                layer.activation,
                layer.kernel,
                size(layer.bytes),
                f"{layer.bytes / layer.float_bytes:.2f}x",
            )
        console.print(table)
        for decision in manifest.decisions:
            if decision.action == "skipped":
                console.print(f"  skipped {decision.node}: {decision.reason}", markup=False)
    if node is not None and not any(layer.node == node for layer in manifest.layers):
        raise BadInput(f"{folder}: no quantized node is called {node!r}")
    screen.result(manifest.model_dump(mode="json"))


def _node(screen: Screen, manifest: Manifest, node: str) -> None:
    from qcc.ir.errors import BadInput

    layers = [layer for layer in manifest.layers if layer.node == node]
    decisions = [d for d in manifest.decisions if d.node == node]
    if not layers and not decisions:
        raise BadInput(f"no node is called {node!r}", hint="`qcc inspect` without --node lists them")
    result: dict[str, Any] = {"node": node, "decisions": [d.model_dump() for d in decisions]}
    for layer in layers:
        result |= layer.model_dump()
        for key, value in layer.model_dump().items():
            screen.console.print(f"  {key:12} {value}", markup=False)
    for decision in decisions:
        screen.console.print(f"  {decision.action:12} {decision.reason}", markup=False)
    screen.result(result)


def _model(screen: Screen, path: Path, ir: bool, node: str | None) -> None:
    import tempfile

    from qcc.api.capture import capture
    from qcc.api.options import Options

    with tempfile.TemporaryDirectory(prefix="qcc-") as work:
        program = capture(path, None, Options(scheme="float"), Path(work)).program
        _show_model(screen, path, program, ir, node)


def _show_model(screen: Screen, path: Path, program: Program, ir: bool, node: str | None) -> None:
    import collections

    from rich.markup import escape
    from rich.table import Table

    from qcc.ir.dialects.onnx import OnnxOp
    from qcc.ir.errors import BadInput
    from qcc.ir.rewrite import array_of
    from qcc.ir.text import show

    if ir:
        print(show(program.module), end="")
    operations = [op for op in program.module.walk() if isinstance(op, OnnxOp) and op.op_type != "Constant"]
    if node is not None:
        operations = [op for op in operations if op.node == node]
        if not operations:
            raise BadInput(f"{path}: no node is called {node!r}", hint="`qcc inspect MODEL` lists them")
    rows: list[dict[str, Any]] = []
    for op in operations:
        arrays = [array_of(o, program) for o in op.operands]
        weights = [a for a in arrays if a is not None and a.size > 16]
        rows.append(
            {
                "node": op.node,
                "op": op.op_type,
                "weights": [list(w.shape) for w in weights],
                "bytes": sum(w.nbytes for w in weights),
            }
        )
    counts = dict(collections.Counter(row["op"] for row in rows).most_common())
    if not ir:
        screen.console.print(
            f"[bold]{escape(path.name)}[/bold]  {len(rows)} operations, weights {size(program.weights.bytes)}"
        )
        screen.console.print("  " + ", ".join(f"{count} {op}" for op, count in counts.items()))
        table = Table(box=None, header_style="dim", padding=(0, 2, 0, 0))
        for column in ("node", "operator", "weights", "bytes"):
            table.add_column(column, justify="right" if column == "bytes" else "left", overflow="fold")
        for row in rows:
            if row["weights"] or node is not None:
                table.add_row(
                    escape(row["node"]),
                    row["op"],
                    " ".join("x".join(map(str, s)) for s in row["weights"]),
                    size(row["bytes"]),
                )
        screen.console.print(table)
    screen.result({"operations": len(rows), "weight_bytes": program.weights.bytes, "operators": counts, "nodes": rows})


def _port(name: str, dtype: str, shape: list[int | str | None] | None) -> str:
    inside = "?" if shape is None else ", ".join("?" if d is None else str(d) for d in shape)
    return f"{name}: {dtype} [{inside}]"
