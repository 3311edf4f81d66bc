"""`qcc inspect --layout`: a layout as a picture, and its first bytes as a table."""

from __future__ import annotations

import re
from itertools import groupby
from pathlib import Path
from typing import TYPE_CHECKING

from ._frame import Screen

if TYPE_CHECKING:
    from qcc.ir.draw_layout import Plan, Span

_MOST_ROWS = 8
_DEFAULT_BITS = 4


def draw(screen: Screen, layout: str, shape: str | None, bits: int | None, output: Path | None, force: bool) -> None:
    """Write the picture of a layout that is named or spelled out, and tell about it."""
    from qcc.api.page.place import write
    from qcc.ir.draw_layout import svg, total_bytes
    from qcc.ir.errors import BadInput

    plan = _plan(layout, _extents(shape), bits)
    path = output or Path(f"{plan.name}.svg")
    if path.exists() and not force:
        raise BadInput(f"{path} exists", hint="pass --force to replace it, or choose another place with -o")
    write(path, svg(plan), force=True)
    text = "x".join(map(str, plan.shape))
    console = screen.console
    console.print(f"{plan.name}  {plan.layout}", markup=False, soft_wrap=True)
    console.print(f"  a tensor of {text}, {plan.bits['codes']} bits a code, {total_bytes(plan)} bytes", markup=False)
    _table(screen, plan)
    console.print(f"  {path}", markup=False, soft_wrap=True)
    screen.result(
        {
            "layout": plan.name,
            "text": str(plan.layout),
            "bits": plan.bits["codes"],
            "shape": list(plan.shape),
            "bytes": total_bytes(plan),
            "file": str(path),
        }
    )


def _plan(layout: str, shape: tuple[int, ...] | None, bits: int | None) -> Plan:
    from qcc.ir import layouts
    from qcc.ir.draw_layout import plan_named, plan_text
    from qcc.ir.errors import BadInput

    if "->" in layout:
        return plan_text(layout, _DEFAULT_BITS if bits is None else bits, shape)
    if bits is not None:
        raise BadInput("--bits goes with the text of a layout", hint=f"as in --layout '{layout}{{element=u8}}'")
    return plan_named(layouts.parse(layout), shape)


def _extents(shape: str | None) -> tuple[int, ...] | None:
    from qcc.ir.errors import BadInput

    if shape is None:
        return None
    if not re.fullmatch(r"\d{1,9}(x\d{1,9})*", shape):
        raise BadInput(f"--shape {shape!r} is not a shape", hint="write it like 16x64")
    return tuple(map(int, shape.split("x")))


def _table(screen: Screen, plan: Plan) -> None:
    """The first bytes: which bits of which element lie in them, lowest first."""
    from rich.table import Table

    from qcc.ir.draw_layout import spans

    table = Table(box=None, header_style="dim", padding=(0, 2, 0, 0))
    table.add_column("byte", justify="right")
    table.add_column("holds, lowest bit first")
    found = [span for span in spans(plan, 0, 8 * _MOST_ROWS) if span.start < 8 * _MOST_ROWS]
    for byte in range(min(_MOST_ROWS, -(-found[-1].stop // 8))):
        inside = [span for span in found if span.start < 8 * byte + 8 and span.stop > 8 * byte]
        parts = groupby(inside, lambda span: "padding" if span.is_padding else span.part)
        table.add_row(str(byte), "  ".join(_run(plan, part, list(run)) for part, run in parts))
    screen.console.print(table)


def _run(plan: Plan, part: str, run: list[Span]) -> str:
    """Values of one part, as `codes (0,0) (1,0)`; `[4:6]` after a value tells which bits of it lie here."""
    if part == "padding":
        return part
    return " ".join([part, *(_value(plan, span) for span in run)])


def _value(plan: Plan, span: Span) -> str:
    place = f"({','.join(map(str, span.coords))})"
    return place if span.high - span.low == plan.bits[span.part] else f"{place}[{span.low}:{span.high}]"
