"""What a kernel for trained codebooks computes, and where its bits lie: rows along k, their tables beside them.

    n(n1 n0:R) k(k1 k0:64) e(e0:16) -> {n1 k1 n0 {codes k0}; n1 n0 {high e0; low e0}; step n1 n0}

Every row has a table of its own, so a vector holds 64 neighbours of one row, and is multiplied with the 64 activations
beside them. A value is `step * (256 * (high - 128) + low)`: 16 bits with a step for each row, so that its rounding
error is at most 1/65534 of the largest value of its row.

Nested codes (Any-Precision LLM) lie in planes, the most significant first, `span` blocks of rows in a plane. Reading b
bits touches b planes and the table for b bits: one packed copy serves every precision.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from functools import cached_property
from itertools import product

from qcc.ir.errors import BadInput, NotSupported
from qcc.ir.formats import TrainedFamily
from qcc.ir.formats.nested import Nested
from qcc.ir.layout import Record

from .isa import Isa
from .lattice import Lattice
from .linear_spec import LinearSpec, Schedule
from .storage import Cell, Field, Storage, cell

COLUMNS = 64
"""Codes of a row that a vector holds."""
LIMIT = 32767
"""The largest whole number of a value."""
LARGEST = ((1 << 31) - 1) // (128 * 128 + 255 * 128)
"""K at which both products of a high and a low byte still fit an int32, of 16-bit activations."""


@dataclass(frozen=True)
class CodebookSpec(LinearSpec):
    """A linear operation whose weight has a table of values for each row; `NotSupported` for others, with reason."""

    precision: int = 0
    """Bits of nested codes that are read; 0 for all of them."""

    def __post_init__(self) -> None:
        super().__post_init__()
        book = self.weight.codebook
        if self.precision and not isinstance(book, Nested):
            raise BadInput(f"codes of {self.weight.element} have one precision, not {self.precision} bits")
        if self.precision and isinstance(book, Nested):
            book.at(self.precision)

    def __str__(self) -> str:
        return super().__str__() + (f" at {self.precision} bits" if self.precision else "")

    @property
    def book(self) -> TrainedFamily:
        """The element."""
        assert self.weight.codebook is not None
        return self.weight.codebook

    @property
    def bits(self) -> int:
        """Bits of a code as it is read."""
        return self.precision or self.weight.bits

    @property
    def precisions(self) -> range:
        """Bits of the codes that tables are packed for."""
        return range(self.book.least if isinstance(self.book, Nested) else self.weight.bits, self.weight.bits + 1)

    @property
    def nested(self) -> bool:
        """Whether the upper bits of the codes are codes of their own."""
        return isinstance(self.book, Nested)

    @cached_property
    def lattice(self) -> Lattice:
        """The codes themselves: what they stand for lies beside them."""
        return Lattice(self.bits, 0, (), 1, self.offset, 1.0, 0.5 / LIMIT)

    @cached_property
    def offset(self) -> int:
        """What the high byte of a value is above it."""
        return 128

    def _obstacle(self) -> str:
        fmt, shape = self.weight, (self.n, self.k)
        if fmt.codebook is None:
            return "its values do not lie beside the codes"
        for what, present in {
            "it holds outliers": fmt.outliers,
            "its groups are of permuted columns": fmt.permuted,
            "it has zero points": fmt.zero is not None,
            "it has a minimum": fmt.offset,
        }.items():
            if present:
                return what
        for name, level in fmt.levels().items():
            if level.shape_of(shape)[1] != 1:
                return f"{name} is not one for the whole row"
        if self.activation.grouped:
            return "activations have a scale for each row: the weight has no groups"
        if self.activation.bits > 8 and self.k > LARGEST:
            return f"{self.k} columns: sums of products of 16-bit activations stay within 32 bits up to {LARGEST}"
        return ""


@dataclass(frozen=True)
class CodebookSchedule(Schedule):
    """The parameters of the generator: `unpack`, `rows` and `span` decide where bits lie, the others only speed."""

    tile: int = 8
    rows: int = 2
    """Rows in a block, whose codes lie beside each other."""
    span: int = 8
    """Blocks whose planes of nested codes lie together; 0 for all blocks of the weight."""

    def __str__(self) -> str:
        ahead = f" prefetch {self.prefetch}" if self.prefetch else ""
        shape = f"{self.rows} rows, {self.streams} streams{ahead}, span {self.span}"
        return f"{shape}, {self.unpack} x{self.unroll}, tile {self.tile}"


def default_schedule(spec: CodebookSpec, isa: Isa) -> CodebookSchedule:
    """The schedule that is taken where nothing was measured. Where bits lie does not depend on the precision."""
    return CodebookSchedule(streams=1 if spec.nested else 2, unpack=unpacks(spec, isa)[0])


def unpacks(spec: CodebookSpec, isa: Isa) -> list[str]:
    """How the codes can be stored for an instruction set, the preferred one first."""
    if spec.nested:
        return ["planes"]
    dense = isa.has("avx512vbmi") and spec.weight.bits not in (2, 4, 8)
    return ["dense", "split"] if dense else ["split"]


def space(spec: CodebookSpec, isa: Isa) -> Iterator[CodebookSchedule]:
    """Every schedule that is worth a trial."""
    spans = (1, 8, 64, 0) if spec.nested else (1,)
    for unpack, rows, streams, ahead, span in product(unpacks(spec, isa), (1, 2, 4), (1, 2, 4), (0, 512, 1024), spans):
        if rows * streams <= 4 and rows <= spec.n:
            yield CodebookSchedule(1, streams, ahead, unpack, 4, 8, rows, span)


@dataclass(frozen=True)
class CodebookStorage(Storage):
    """The record of a weight [N, K] with tables: its codes, then the tables and steps of each precision, by rows."""

    spec: CodebookSpec
    block: int
    """Rows in a block."""
    span: int
    """Blocks whose planes lie together."""

    @property
    def rows(self) -> int:
        """Rows in a block."""
        return self.block

    @property
    def cells(self) -> int:
        """Cells along a row: vectors hold 64 neighbours of it."""
        return self.columns // (COLUMNS * self.cell.quads)

    @property
    def padded_rows(self) -> int:
        """N with its padding."""
        whole = self.block * self.span
        return -(-self.n // whole) * whole

    @property
    def stride(self) -> int:
        """Bytes from the cell of a row to that of the next row of its block."""
        return COLUMNS // 8 if self.spec.nested else self.cell.bytes

    @property
    def piece_bytes(self) -> int:
        """Bytes of the codes of a block, or of one plane of them where planes lie apart."""
        return self.cells * self.block * self.stride

    @property
    def span_bytes(self) -> int:
        """Bytes of the codes of a span of blocks, all planes of them."""
        return self.span * self.piece_bytes * (self.spec.weight.bits if self.spec.nested else 1)

    @property
    def tables(self) -> int:
        """Where the tables for the bits that are read begin: uint8 [rows, high and low, 2^bits]."""
        at = self.padded_rows // (self.block * self.span) * self.span_bytes
        return at + sum(self._table_bytes(bits) for bits in self.spec.precisions if bits < self.spec.bits)

    @property
    def steps(self) -> int:
        """Where the steps of these tables begin: float32 [rows]."""
        return self.tables + self.padded_rows * (2 << self.spec.bits)

    @property
    def bytes(self) -> int:
        """Bytes of the packed weight."""
        at = self.padded_rows // (self.block * self.span) * self.span_bytes
        return at + sum(map(self._table_bytes, self.spec.precisions))

    @property
    def read_bytes(self) -> int:
        """Bytes that one product reads at the precision of the spec."""
        return self.padded_rows * self.columns * self.spec.bits // 8 + self._table_bytes(self.spec.bits)

    def _table_bytes(self, bits: int) -> int:
        return self.padded_rows * ((2 << bits) + 4)


def storage(spec: CodebookSpec, schedule: CodebookSchedule) -> CodebookStorage:
    """Where the packed bits lie, the same for all precisions."""
    n, k, rows = spec.n, spec.k, schedule.rows
    blocks = -(-n // rows)
    span = min(schedule.span or blocks, blocks) if spec.nested else 1
    if spec.nested:
        columns = -(-k // COLUMNS) * COLUMNS
        plane = span * rows * columns // 8
        read = tuple(Field(spec.bits - 1 - p, 1, plane * p) for p in range(spec.bits))
        piece, digits = Cell("planes", spec.bits, 1, read), ""
        planes = (f"codes[{p}:{p + 1}] n1 k1 n0 k0" for p in reversed(range(spec.weight.bits)))
        codes, outer = f"n2 {{{'; '.join(planes)}}}", f"n2 n1:{span}"
        every = "n2 n1 n0"
    else:
        piece = cell(spec.weight.bits, schedule.unpack)
        columns = -(-k // (COLUMNS * piece.quads)) * COLUMNS * piece.quads
        digits = {1: "", 2: " q0:2", 4: " q1:2 q0:2"}[piece.quads]
        codes, outer, every = f"n1 k1 n0 {{{_items(piece)}}}", "n1", "n1 n0"
    names = entry_digits(spec)
    tables = [
        f"{every} {{high{bits} {entries}; low{bits} {entries}}}; step{bits} {every}"
        for bits, entries in zip(spec.precisions, (" ".join(names[: i + 1]) for i in range(len(names))), strict=True)
    ]
    of = " ".join(f"{name}:{2 if i else 1 << spec.precisions[0]}" for i, name in enumerate(names))
    text = f"n({outer} n0:{rows}) k(k1{digits} k0:{COLUMNS}) e({of}) -> {{{'; '.join([codes, *tables])}}}"
    return CodebookStorage(n, k, piece, 1, columns, 1, 1, (), (), Record.parse(text), spec, rows, span)


def entry_digits(spec: CodebookSpec) -> list[str]:
    """The digits of the entries of the largest table: those of the least precision, then a bit for each further one."""
    return [f"e{bits}" for bits in spec.precisions]


def _items(piece: Cell) -> str:
    """The fields of a cell as items of a record: 64 neighbours of a row, in each of its vectors."""
    quads = {1: [], 2: ["q0"], 4: ["q1", "q0"]}[piece.quads]
    if piece.unpack == "dense":
        return " ".join(["codes", *quads, "k0"])
    items: list[str] = []
    for field in piece.fields:
        inside = {8: 0, 4: 1, 2: 2, 1: 0}[field.width]  # digits of the vectors that share a byte
        apart, beside = (quads[:-inside], quads[-inside:]) if inside else (quads, [])
        items.append(" ".join([f"codes[{field.low}:{field.low + field.width}]", *apart, "k0", *beside]))
    return "; ".join(items)


def check_schedule(spec: CodebookSpec, schedule: CodebookSchedule, isa: Isa) -> None:
    """`BadInput` or `NotSupported` for a schedule that cannot be generated."""
    if schedule.rows not in (1, 2, 4, 8) or schedule.span < 0 or schedule.streams < 1 or schedule.tile < 1:
        raise BadInput(f"schedule {schedule}", hint="1, 2, 4 or 8 rows; streams and tile from 1")
    if schedule.unpack not in unpacks(spec, isa):
        raise NotSupported(
            f"{isa.name} does not unpack {schedule.unpack} codes of {spec.weight.element}",
            hint=f"one of: {', '.join(unpacks(spec, isa))}",
        )
