"""Where the bits of a packed weight lie: records of 16 R rows and a group of columns, in the order a kernel reads them.

    n(n2 n1:2 n0:16) k(k3 k2:8 q0:2 k0:4) -> n2 k3 {k2 n1 {codes n0 k0 q0}; scale n1 n0}

A vector register holds 16 rows and 4 columns, which is what one dot instruction takes. A *cell* is the fewest vectors
whose codes fill whole registers: two of 4-bit codes, four where there are 2-bit fields. How codes lie in a cell is its
`Unpack`:

    split    fields of 8, 4 and 2 bits beside each other, shifted into place; single bits as planes
    dense    codes end to end, as 64 b bits; a permutation and a multi-shift (AVX512-VBMI) take them apart
    planes   every bit of the codes as a plane of 64: nested precision reads the upper planes alone
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from qcc.ir.errors import BadInput
from qcc.ir.format import Format
from qcc.ir.layout import Record
from qcc.ir.levels import level_dtype

ROWS = 16
"""Rows in a vector register."""
UNPACKS = ("split", "dense", "planes")


@dataclass(frozen=True)
class Field:
    """Bits `low` to `low + width - 1` of the codes of a cell, `vectors` registers of them; planes are of 8 bytes."""

    low: int
    width: int
    offset: int
    """Bytes from the start of the cell."""


@dataclass(frozen=True)
class Cell:
    """The smallest piece that is taken apart at once: `quads` vectors of 16 rows x 4 columns, in `bytes` bytes."""

    unpack: str
    bits: int
    quads: int
    fields: tuple[Field, ...]

    @property
    def columns(self) -> int:
        """Columns of the weight in a cell."""
        return 4 * self.quads

    @property
    def bytes(self) -> int:
        """Bytes of a cell."""
        return 8 * self.quads * self.bits

    def items(self, flip: int) -> str:
        """Its fields as items of a record, with bits of the code flipped."""
        if self.unpack == "dense":
            return f"codes^{flip} {self._quad_digits} n0 k0" if flip else f"codes {self._quad_digits} n0 k0"
        return "; ".join(self._item(field, flip) for field in self.fields)

    @property
    def digits(self) -> str:
        """The digits of the columns inside a cell, outermost first."""
        return {1: "", 2: " q0:2", 4: " q1:2 q0:2"}[self.quads]

    @property
    def _quad_digits(self) -> str:
        return {1: "", 2: "q0", 4: "q1 q0"}[self.quads]

    def _item(self, field: Field, flip: int) -> str:
        name = f"codes[{field.low}:{field.low + field.width}]" + (f"^{flip}" if flip else "")
        if field.width in (1, 8):
            return f"{name} {self._quad_digits} n0 k0"
        inside = {4: 1, 2: 2}[field.width]  # digits of the quads that share a byte
        quads = self._quad_digits.split()
        return " ".join([name, *quads[:-inside], "n0 k0", *quads[-inside:]])


def cell(bits: int, unpack: str) -> Cell:
    """The cell of codes of `bits` bits; `BadInput` for an unpacking that does not exist."""
    if unpack == "dense":
        return Cell(unpack, bits, 1, (Field(0, bits, 0),))
    if unpack == "planes":
        return Cell(unpack, bits, 1, tuple(Field(p, 1, 8 * p) for p in range(bits)))
    if unpack != "split":
        raise BadInput(f"there is no unpacking {unpack!r}", hint=f"one of: {', '.join(UNPACKS)}")
    widths = [width for width in (8, 4, 2, 1) if bits & width]
    quads = 4 if 2 in widths else 2 if 4 in widths else 1
    fields, low, offset = list[Field](), 0, 0
    for width in widths:
        fields.append(Field(low, width, offset))
        low, offset = low + width, offset + 8 * quads * width
    return Cell(unpack, bits, quads, tuple(fields))


@dataclass(frozen=True)
class Place:
    """Where the numbers of a level lie in its record: `offset` bytes from where it starts, for 16 R rows."""

    name: str
    dtype: str
    offset: int

    @property
    def bytes(self) -> int:
        """Bytes of one number: levels of less than a byte take a whole one."""
        return max(8, level_dtype(self.dtype).bits) // 8


@dataclass(frozen=True)
class Storage:
    """The record of a weight [N, K]: for each block of `rows` rows, `supers` x `groups` groups of `group` columns.

    A super-block is what an outer level of scales covers; there is one where there is no such level.
    """

    n: int
    k: int
    cell: Cell
    vectors: int
    """R: registers of 16 rows in a block."""
    group: int
    """Columns of a group, a multiple of the cell's."""
    groups: int
    """Groups in a super-block."""
    supers: int
    inner: tuple[Place, ...]
    """Levels of a group, after its codes."""
    outer: tuple[Place, ...]
    """Levels of a super-block, after its groups."""
    layout: Record

    @property
    def rows(self) -> int:
        """Rows in a block."""
        return ROWS * self.vectors

    @property
    def blocks(self) -> int:
        """Blocks of rows; the last may hold padding."""
        return -(-self.n // self.rows)

    @property
    def columns(self) -> int:
        """K with its padding."""
        return self.group * self.groups * self.supers

    @property
    def cells(self) -> int:
        """Cells of a group along k."""
        return self.group // self.cell.columns

    @property
    def code_bytes(self) -> int:
        """Bytes of the codes of a group."""
        return self.cells * self.vectors * self.cell.bytes

    @property
    def group_bytes(self) -> int:
        """Bytes of a group with its levels."""
        return self.code_bytes + sum(place.bytes * self.rows for place in self.inner)

    @property
    def super_bytes(self) -> int:
        """Bytes of a super-block."""
        return self.groups * self.group_bytes + sum(place.bytes * self.rows for place in self.outer)

    @property
    def block_bytes(self) -> int:
        """Bytes of a block of rows."""
        return self.supers * self.super_bytes

    @property
    def bytes(self) -> int:
        """Bytes of the packed weight."""
        return self.blocks * self.block_bytes


def storage(n: int, k: int, fmt: Format, flip: int, unpack: str, vectors: int) -> Storage:
    """The storage of a weight [n, k] whose levels lie along k; the caller has checked that its levels are such."""
    shape, piece = (n, k), cell(fmt.bits, unpack)
    levels = {name: level for name, level in fmt.levels().items() if level.shape_of(shape) != (1, 1) or n == 1}
    widths = {name: level.block_of(shape)[1] for name, level in levels.items()}
    group, span = min(widths.values(), default=k), max(widths.values(), default=k)
    if group >= k:
        group = span = -(-k // piece.columns) * piece.columns
        inner = list(levels)
    else:
        span = -(-min(span, k) // group) * group
        inner = [name for name in levels if widths[name] == group]
    if group % piece.columns:
        raise BadInput(
            f"groups of {group} are no whole cells of {piece.columns} columns, as {unpack} takes {fmt.bits}-bit codes",
            hint="unpack dense or planes, or a group that is a multiple of 16",
        )
    outer = [name for name in levels if name not in inner]
    record = _record(piece, flip, vectors, span // group, group // piece.columns if group < k else 0, inner, outer)
    code_bytes, rows = group // piece.columns * vectors * piece.bytes, ROWS * vectors
    inner_places = _places({name: levels[name].dtype for name in inner}, code_bytes, rows)
    group_bytes = code_bytes + rows * sum(place.bytes for place in inner_places)
    outer_places = _places({name: levels[name].dtype for name in outer}, span // group * group_bytes, rows)
    supers = -(-k // span)
    return Storage(n, k, piece, vectors, group, span // group, supers, inner_places, outer_places, record)


def _places(dtypes: Mapping[str, str], offset: int, rows: int) -> tuple[Place, ...]:
    """Levels one behind the other, from `offset` on."""
    places: list[Place] = []
    for name, dtype in dtypes.items():
        places.append(Place(name, dtype, offset))
        offset += rows * places[-1].bytes
    return tuple(places)


def _record(
    piece: Cell, flip: int, vectors: int, groups: int, cells: int, inner: Sequence[str], outer: Sequence[str]
) -> Record:
    """The layout: groups of `cells` cells, or one group of as many as there are where that is 0."""
    rows = "n1 n0" if vectors > 1 else "n0"
    numbers = [f"{name} {rows}" for name in inner]
    group = "; ".join([f"k2{' n1' if vectors > 1 else ''} {{{piece.items(flip)}}}", *numbers])
    inside = f"{piece.digits} k0:4)"
    if outer:
        whole = "; ".join([f"k3 {{{group}}}", *(f"{name} {rows}" for name in outer)])
        columns = f"k(k4 k3:{groups} k2:{cells}{inside} -> n2 k4 {{{whole}}}"
    elif cells:
        columns = f"k(k3 k2:{cells}{inside} -> n2 k3 {{{group}}}"
    else:
        columns = f"k(k2{inside} -> n2 {{{group}}}"
    return Record.parse(f"n(n2{f' n1:{vectors}' if vectors > 1 else ''} n0:16) {columns}")
