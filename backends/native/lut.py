"""Where a linear operation is computed by table lookup, and how its weight then lies: codes of 1 to 4 bits.

It computes what the kernels by dot products do, from the same rounded activations, to the same bits. It needs no
multiplication, so it is what a processor without a wide dot product takes for the fewest bits (decision 0020). It is a
schedule as others are: `linear.build(spec, isa, Schedule(4, unpack="lookup", tile=1))`.

    n(n3 n2:4 n1:4 n0:4) k(k3 k2 q0:2 k0:4) -> n3 k3 {k2 {codes[p:p+1] n1 n2 n0 q0 k0 for each bit p}; scale n2 n1 n0}
"""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING

from qcc.ir.layout import Record

from .isa import Isa
from .storage import ROWS, Cell, Field, Place, Storage

if TYPE_CHECKING:
    from .linear_spec import LinearSpec

VECTORS = 4
"""Vectors of 16 rows in a block: a register, or a pair of them, holds one choice of 64 rows."""
CELL_COLUMNS = 8
"""Columns of a byte of choices."""
MOST_BITS = 4
FEWEST_ROWS = 256
"""Rows of a weight from which on the tables of a row of activations pay."""
HEADERS = ("avx2.h", "avx512.h")
"""Headers whose instruction sets look up 16 bytes of a table at once."""


def obstacle(spec: LinearSpec, isa: Isa) -> str:
    """Why there is no kernel by table lookup, or nothing."""
    if isa.header not in HEADERS:
        return "its vectors look up no bytes"
    if isa.has("amx_tile"):
        return "its tiles have no part in lookups: avx512_vbmi is what remains"
    if spec.activation.fixed:
        return "tables are made of activations that each row scales by itself"
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
    """Whether one row of activations took less time by lookups than by dot products where both were measured.

    Lookups cost as much for every plane of bits and byte of activations; dot products cost less the wider the
    instruction, and less for the second byte, whose weights are unpacked already. Few rows do not pay for tables.
    """
    if obstacle(spec, isa) or spec.n < FEWEST_ROWS:
        return False
    bits, one_byte = spec.weight.bits, spec.activation.parts == 1
    if isa.header == "avx512.h":
        return bits == 1 and one_byte
    if isa.wide:
        return bits == 1 or (bits == 3 and one_byte)
    return bits <= 3


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
