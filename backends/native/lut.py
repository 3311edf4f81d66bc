"""A linear operation by table lookup: `build(spec, isa) -> LinearKernel`, for codes of 1 to 4 bits.

It computes what the kernels by dot products do, from the same rounded activations, to the same bits. It needs no
multiplication, so it is what a processor without a wide dot product takes for the fewest bits (decision 0020).

    n(n3 n2:4 n1:4 n0:4) k(k3 k2 q0:2 k0:4) -> n3 k3 {k2 {codes[p:p+1] n1 n2 n0 q0 k0 for each bit p}; scale n2 n1 n0}
"""

from __future__ import annotations

from dataclasses import replace

from qcc.ir.errors import NotSupported
from qcc.ir.layout import Record

from .emit_lut import CELL_COLUMNS, VECTORS, LookupText, LookupWorkspace
from .isa import Isa
from .linear import LinearKernel
from .linear_spec import LinearSpec, Schedule
from .storage import ROWS, Cell, Field, Place, Storage

MOST_BITS = 4
HEADERS = ("avx2.h", "avx512.h")
"""Headers whose instruction sets look up 16 bytes of a table at once."""


def build(spec: LinearSpec, isa: Isa, schedule: Schedule | None = None) -> LinearKernel:
    """The kernel, generated and compiled; `NotSupported` where `obstacle` gives a reason or this host lacks `isa`."""
    return LinearKernel(generate(spec, isa, schedule))


def generate(spec: LinearSpec, isa: Isa, schedule: Schedule | None = None) -> LookupText:
    """The C text of the kernel. Of the schedule, `streams` and `prefetch` are free."""
    if reason := obstacle(spec, isa):
        raise NotSupported(f"no kernel by table lookup for {spec} on {isa.name}: {reason}")
    streams, ahead = (schedule.streams, schedule.prefetch) if schedule else (4 if spec.n >= 1024 else 1, 0)
    chosen = Schedule(VECTORS, streams, ahead, "lookup", 1, 1)
    stored = storage(spec)
    groups = stored.groups * stored.supers
    work = LookupWorkspace(stored.columns, spec.activation.parts, groups, spec.activation.grouped and groups > 1)
    return LookupText(spec, isa, chosen, stored, work)


def obstacle(spec: LinearSpec, isa: Isa) -> str:
    """Why there is no kernel by table lookup, or nothing."""
    if isa.header not in HEADERS:
        return "its vectors look up no bytes"
    if isa.has("amx_tile"):
        return "its tiles have no part in lookups: avx512_vbmi is what remains"
    if spec.lattice.tables:
        return f"the values of {spec.weight.element} are no multiples of their bits"
    if spec.weight.bits > MOST_BITS:
        return f"{spec.weight.bits} planes of bits: a dot product is faster from {MOST_BITS} on"
    shape = (spec.n, spec.k)
    group = min((level.block_of(shape)[1] for level in spec.levels.values()), default=spec.k)
    if group < spec.k and group % CELL_COLUMNS:
        return f"groups of {group} columns are no multiple of {CELL_COLUMNS}"
    return ""


def pays(spec: LinearSpec, isa: Isa) -> bool:
    """Whether few rows of activations took less time by lookups than by dot products where both were measured.

    The share of a plane of bits is constant, that of a dot product falls with the width of the instruction.
    """
    if obstacle(spec, isa):
        return False
    if isa.header == "avx512.h":
        return spec.weight.bits == 1
    return spec.weight.bits in ((1, 3) if isa.wide else (1, 2, 3))


def storage(spec: LinearSpec) -> Storage:
    """Where the packed bits lie: bytes of two choices, 64 rows of them, a plane of bits behind the other."""
    n, k, shape = spec.n, spec.k, (spec.n, spec.k)
    bits, flip = spec.weight.bits, spec.lattice.flip
    per_16 = ROWS * CELL_COLUMNS // 8  # bytes of a plane of a cell for 16 rows
    piece = Cell("lookup", bits, 2, tuple(Field(p, 1, per_16 * p) for p in range(bits)))
    widths = sorted({level.block_of(shape)[1] for level in spec.levels.values()})
    group, span = (widths[0], widths[-1]) if widths else (k, k)
    per_row = group >= k
    if per_row:
        group = span = -(-k // CELL_COLUMNS) * CELL_COLUMNS
    elif span >= k:
        span = -(-k // group) * group
    inside = [name for name, level in spec.levels.items() if per_row or level.block_of(shape)[1] == group]
    outside = [name for name in spec.levels if name not in inside]
    planes = "; ".join(f"codes[{p}:{p + 1}]{f'^{flip}' if flip else ''} n1 n2 n0 q0 k0" for p in range(bits))
    text = "; ".join([f"k2 {{{planes}}}", *(f"{name} n2 n1 n0" for name in inside)])
    cells, outer = ("k2" if per_row else f"k2:{group // CELL_COLUMNS}"), "" if per_row else "k3 "
    columns = f"{outer}{cells}"
    if outside:
        text = "; ".join([f"k3 {{{text}}}", *(f"{name} n2 n1 n0" for name in outside)])
        columns, outer = f"k4 k3:{span // group} {cells}", "k4 "
    record = Record.parse(f"n(n3 n2:4 n1:4 n0:4) k({columns} q0:2 k0:4) -> n3 {outer}{{{text}}}")
    made = Storage(n, k, piece, VECTORS, group, span // group, -(-k // span), (), (), record)
    made = replace(made, inner=_places(spec, inside, made.code_bytes, made.rows))
    return replace(made, outer=_places(spec, outside, made.groups * made.group_bytes, made.rows))


def _places(spec: LinearSpec, names: list[str], at: int, rows: int) -> tuple[Place, ...]:
    """Levels one behind the other."""
    places: list[Place] = []
    for name in names:
        places.append(Place(name, spec.levels[name].dtype, at))
        at += places[-1].bytes * rows
    return tuple(places)
